"""The outcome of an evaluation: its figures, whether they pass the gates of the settings, and both in words."""

import json
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from settings import Settings
from tasks.evaluation.cost import cost
from tasks.evaluation.results import Result
from tasks.evaluation.summary import (
    INCOMPLETE,
    MISSED,
    PASSED,
    STATUSES,
    Confusion,
    ConfusionTables,
    Cost,
    Counts,
    EvaluationSummary,
    GateFigure,
    Latency,
    Status,
)
from tasks.installation import DatasetNote, ServingEndpoint
from tasks.run import Run, iso, share, utc_now

# Rows of a table that a person still reads.
SHOWN = 50


class GateMissed(Exception):
    """The evaluation is complete, and its figures are not good enough; `summary` has them."""

    def __init__(self, summary: EvaluationSummary) -> None:
        super().__init__(verdict(summary))
        self.summary = summary


@dataclass(frozen=True)
class Gate:
    """A figure and its limit. value is None if there is nothing to divide by, which is a miss."""

    name: str
    value: float | None
    limit: float
    at_most: bool = False

    @property
    def missed(self) -> bool:
        if self.value is None:
            return True
        return self.value > self.limit if self.at_most else self.value < self.limit

    def __str__(self) -> str:
        if self.value is None:
            return f"{self.name} is unknown, as no image was classified"
        side = "over" if self.at_most else "under"
        return f"{self.name} {self.value:.3f} is {abs(self.value - self.limit):.3f} {side} {self.limit:g}"


def summarize(
    results: list[Result],
    run: Run,
    endpoint: ServingEndpoint,
    classes: tuple[str, ...],
    dataset: DatasetNote,
    chosen: Settings,
    revision: int = 1,
) -> EvaluationSummary:
    """Judges the results by the gates of the chosen settings."""
    tally = Tally()
    for row in results:
        tally.add(row)
    price = cost(results, chosen.endpoint_instance_type, chosen.endpoint_instance_count)
    return tally.summary(run, endpoint, classes, dataset, chosen, price, revision)


class Tally:
    """Counts results one by one, so that nobody has to hold all of them; `started` and `stopped` are of all so far."""

    def __init__(self) -> None:
        self.started: str | None = None
        self.stopped: str | None = None
        self._first: Result | None = None
        self._planned = self._labelled = self._executions = self._retried = 0
        self._statuses: Counter[Status] = Counter()
        self._errors: Counter[str] = Counter()
        # By label and predicted class, of images whose label is known.
        self._classified: Counter[tuple[str | None, str | None]] = Counter()
        self._accepted: Counter[tuple[str | None, str | None]] = Counter()
        self._seconds = array("d")

    def add(self, row: Result) -> None:
        self._first = self._first or row
        self._planned += 1
        self._labelled += row.label is not None
        self._statuses[row.status] += 1
        self._executions += (row.status != "not_submitted") + len(row.previous_attempts)
        self._retried += bool(row.previous_attempts)
        if row.error:
            self._errors[row.error] += 1
        if row.label is not None and row.predicted_class is not None:
            self._classified[row.label, row.predicted_class] += 1
            self._accepted[row.label, row.predicted_class] += row.status == "accepted"
        if row.started:
            self.started = min(self.started or row.started, row.started)
        if row.stopped:
            self.stopped = max(self.stopped or row.stopped, row.stopped)
        if row.predicted_class is not None and row.started and row.stopped:
            taken = datetime.fromisoformat(row.stopped) - datetime.fromisoformat(row.started)
            self._seconds.append(taken.total_seconds())

    def summary(
        self,
        run: Run,
        endpoint: ServingEndpoint,
        classes: tuple[str, ...],
        dataset: DatasetNote,
        chosen: Settings,
        price: Cost,
        revision: int = 1,
        bulk: bool = False,
    ) -> EvaluationSummary:
        """The counted results, judged by the gates of the chosen settings; by accuracy only if images have labels."""
        statuses, first = self._statuses, self._first
        submitted = self._planned - statuses["not_submitted"]
        coverage, failed = share(statuses["accepted"], submitted), share(statuses["failed"], submitted)
        accuracy = _right(self._classified)
        gates = [
            Gate("failed share", failed, chosen.evaluation_max_failed, at_most=True),
            Gate("accuracy", accuracy, chosen.evaluation_min_accuracy),
            Gate("coverage", coverage, chosen.evaluation_min_coverage),
        ]
        if self._planned and not self._labelled:
            gates = [gate for gate in gates if gate.name != "accuracy"]
        missed = tuple(str(gate) for gate in gates if gate.missed)
        return EvaluationSummary(
            run=run.id,
            date=run.date,
            outcome=INCOMPLETE if statuses["not_submitted"] else MISSED if missed else PASSED,
            gates_missed=missed,
            gates=tuple(GateFigure(name=gate.name, value=gate.value, limit=gate.limit) for gate in gates),
            dataset=dataset,
            endpoint=endpoint.name,
            model_version=first.model_version if first else endpoint.model_version,
            threshold=first.threshold if first else None,
            classes=classes,
            planned=self._planned,
            submitted=submitted,
            accepted=statuses["accepted"],
            below_threshold=statuses["below_threshold"],
            failed=statuses["failed"],
            not_submitted=statuses["not_submitted"],
            not_a_class=statuses["not_a_class"],
            failed_share=failed,
            coverage=coverage,
            accuracy=accuracy,
            accepted_accuracy=_right(self._accepted),
            confusion=ConfusionTables(
                classified=_confusion(self._classified, classes), accepted=_confusion(self._accepted, classes)
            ),
            executions=self._executions,
            retried=self._retried,
            errors=dict(self._errors.most_common()),
            latency_seconds=_latency(self._seconds),
            cost_usd=price,
            started=self.started,
            stopped=self.stopped,
            revision=revision,
            supersedes=run.summary_key(revision - 1) if revision > 1 else None,
            judged=iso(utc_now()),
            bulk=bulk,
        )


def verdict(summary: EvaluationSummary) -> str:
    """A line that says whether the evaluation passed, and if not, by how much it missed what."""
    if summary.outcome == INCOMPLETE:
        return f"Incomplete: {summary.not_submitted} of {summary.planned} images were not submitted"
    if summary.outcome == MISSED:
        return f"Missed: {'; '.join(summary.gates_missed)}. {_figures(summary)}"
    return f"Passed: {_figures(summary)}"


def heading(summary: EvaluationSummary) -> str:
    """The verdict without the figures, short enough for a flow run's name: what was missed and by how much."""
    if summary.outcome == PASSED:
        return "passed" if summary.accuracy is None else f"passed, accuracy {summary.accuracy:.3f}"
    if summary.outcome == MISSED:
        return f"missed: {'; '.join(summary.gates_missed)}"
    return f"incomplete: {summary.not_submitted} of {summary.planned} images were not submitted"


def _figures(summary: EvaluationSummary) -> str:
    figures = f"{summary.accepted} of {summary.planned} images accepted"
    if summary.not_a_class:
        figures += f", {summary.not_a_class} of no class"
    if summary.accuracy is not None:
        figures += f", accuracy {summary.accuracy:.3f}, coverage {summary.coverage:.3f}"
    errors = ", ".join(f"{count} {error}" for error, count in summary.errors.items())
    return f"{figures}, {summary.failed} failed" + (f" ({errors})" if errors else "")


def markdown(summary: EvaluationSummary, results: list[Result], bucket: str, prefix: str) -> str:
    """The outcome as a Prefect artifact: the verdict, the counts, and the images that need a look."""
    latency, spent = summary.latency_seconds, summary.cost_usd.total
    short = heading(summary)
    lines = [
        f"# {short[0].upper()}{short[1:]}",
        "",
        f"{_figures(summary)}. Model {summary.model_version}, threshold {summary.threshold:g}, "
        f"{summary.executions} executions, {summary.retried} images tried again.",
        "",
        *counts_table(summary.counts),
    ]
    if latency.p50 is not None:
        lines += [
            f"Seconds an image: median {latency.p50:.2f}, 90 % within {latency.p90:.2f}, longest "
            f"{latency.max:.2f}. On AWS it would cost about "
            + ("an unknown amount" if spent is None else f"${spent:.2g}")
            + " by list price.",
            "",
        ]
    lines += _failures([row for row in results if row.status == "failed"])
    lines += [f"All of it: `s3://{bucket}/{prefix}`: `results.jsonl` has a line per image, `summary.json` the figures."]
    return "\n".join(lines)


def counts_table(counts: Counts) -> list[str]:
    """Lines of markdown with the number of planned images and of those with each status."""
    return [
        "| planned | " + " | ".join(status.replace("_", " ") for status in STATUSES) + " |",
        "|---:" * (1 + len(STATUSES)) + "|",
        f"| {counts.planned} | " + " | ".join(str(getattr(counts, status)) for status in STATUSES) + " |",
        "",
    ]


def _failures(failed: list[Result]) -> list[str]:
    if not failed:
        return []
    rows = [
        f"| {_cell(row.key)} | {_cell(row.failed_state or '')} | {_cell(row.error or '')} "
        f"| {_cell(message_of(row.cause or ''))} | `{row.inference_id}` |"
        for row in failed[:SHOWN]
    ]
    more = [f"and {len(failed) - SHOWN} more", ""] if len(failed) > SHOWN else []
    return ["| failed image | in | error | cause | inference id |", "|---|---|---|---|---|", *rows, "", *more]


def message_of(cause: str) -> str:
    """What a function's exception said, if the cause is the JSON that Lambda makes of one."""
    try:
        return str(json.loads(cause)["errorMessage"])
    except (ValueError, TypeError, KeyError):
        return cause


def _cell(text: str) -> str:
    """Text of AWS or of a key, which must not become a part of the table."""
    return "".join(" " if char in "|\r\n`<>" else char for char in text)[:120]


def _right(table: Counter[tuple[str | None, str | None]]) -> float | None:
    """Share of the images whose predicted class is their label."""
    right = sum(count for (label, predicted), count in table.items() if label == predicted)
    return share(right, table.total())


def _confusion(table: Counter[tuple[str | None, str | None]], classes: tuple[str, ...]) -> Confusion:
    return {label: {predicted: table[label, predicted] for predicted in classes} for label in classes}


def _latency(seconds: Sequence[float]) -> Latency:
    names = {"p50": 50, "p90": 90, "p99": 99, "max": 100}
    found = {name: round(float(np.percentile(seconds, rank)), 3) if seconds else None for name, rank in names.items()}
    return Latency(**found)
