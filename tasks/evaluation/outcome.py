"""The outcome of an evaluation: its figures, whether they pass the gates of the settings, and both in words."""

import json
from collections import Counter
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
    Counts,
    EvaluationSummary,
    GateFigure,
    Latency,
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
    counts = {status: sum(row.status == status for row in results) for status in STATUSES}
    classified = [row for row in results if row.predicted_class is not None]
    accepted = [row for row in results if row.status == "accepted"]
    submitted = len(results) - counts["not_submitted"]
    coverage, failed = share(counts["accepted"], submitted), share(counts["failed"], submitted)
    accuracy = share(sum(row.predicted_class == row.label for row in classified), len(classified))
    gates = [
        Gate("failed share", failed, chosen.evaluation_max_failed, at_most=True),
        Gate("accuracy", accuracy, chosen.evaluation_min_accuracy),
        Gate("coverage", coverage, chosen.evaluation_min_coverage),
    ]
    missed = tuple(str(gate) for gate in gates if gate.missed)
    return EvaluationSummary(
        run=run.id,
        date=run.date,
        outcome=INCOMPLETE if counts["not_submitted"] else MISSED if missed else PASSED,
        gates_missed=missed,
        gates=tuple(GateFigure(name=gate.name, value=gate.value, limit=gate.limit) for gate in gates),
        dataset=dataset,
        endpoint=endpoint.name,
        model_version=results[0].model_version if results else endpoint.model_version,
        threshold=results[0].threshold if results else None,
        classes=classes,
        planned=len(results),
        submitted=submitted,
        **counts,
        failed_share=failed,
        coverage=coverage,
        accuracy=accuracy,
        accepted_accuracy=share(sum(row.predicted_class == row.label for row in accepted), len(accepted)),
        confusion=ConfusionTables(classified=_confusion(classified, classes), accepted=_confusion(accepted, classes)),
        executions=sum(1 + len(row.previous_attempts) for row in results) - counts["not_submitted"],
        retried=sum(bool(row.previous_attempts) for row in results),
        errors=dict(Counter(row.error for row in results if row.error).most_common()),
        latency_seconds=_latency(classified),
        cost_usd=cost(results, chosen.endpoint_instance_type, chosen.endpoint_instance_count),
        started=min((row.started for row in results if row.started), default=None),
        stopped=max((row.stopped for row in results if row.stopped), default=None),
        revision=revision,
        supersedes=run.summary_key(revision - 1) if revision > 1 else None,
        judged=iso(utc_now()),
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
        "| planned | accepted | below threshold | failed | not submitted |",
        "|---:|---:|---:|---:|---:|",
        f"| {counts.planned} | " + " | ".join(str(getattr(counts, status)) for status in STATUSES) + " |",
        "",
    ]


def _failures(failed: list[Result]) -> list[str]:
    if not failed:
        return []
    rows = [
        f"| {_cell(row.key)} | {_cell(row.failed_state or '')} | {_cell(row.error or '')} "
        f"| {_cell(_message(row.cause or ''))} | `{row.inference_id}` |"
        for row in failed[:SHOWN]
    ]
    more = [f"and {len(failed) - SHOWN} more", ""] if len(failed) > SHOWN else []
    return ["| failed image | in | error | cause | inference id |", "|---|---|---|---|---|", *rows, "", *more]


def _message(cause: str) -> str:
    """What a function's exception said, if the cause is the JSON that Lambda makes of one."""
    try:
        return str(json.loads(cause)["errorMessage"])
    except (ValueError, TypeError, KeyError):
        return cause


def _cell(text: str) -> str:
    """Text of AWS or of a key, which must not become a part of the table."""
    return "".join(" " if char in "|\r\n`<>" else char for char in text)[:120]


def _confusion(rows: list[Result], classes: tuple[str, ...]) -> Confusion:
    counts = Counter((row.label, row.predicted_class) for row in rows)
    return {label: {predicted: counts[label, predicted] for predicted in classes} for label in classes}


def _latency(rows: list[Result]) -> Latency:
    seconds = [
        (datetime.fromisoformat(row.stopped) - datetime.fromisoformat(row.started)).total_seconds()
        for row in rows
        if row.started and row.stopped
    ]
    names = {"p50": 50, "p90": 90, "p99": 99, "max": 100}
    found = {name: round(float(np.percentile(seconds, rank)), 3) if seconds else None for name, rank in names.items()}
    return Latency(**found)
