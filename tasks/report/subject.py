"""What a report is about: one evaluation, or everything that an endpoint answered in a window of time."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from msgspec import structs
from prefect import task

from tasks.capture.window import Window
from tasks.data.images import dataset_note
from tasks.errors import SconesError
from tasks.evaluation.catalogue import LATEST_START, find, newest_first
from tasks.evaluation.outcome import verdict
from tasks.evaluation.results import Result, results_of
from tasks.evaluation.summary import DECIDED, MISSED, PASSED, Counts, EvaluationSummary, Outcome
from tasks.installation import DatasetNote, Installation
from tasks.run import Run, iso

# Clocks differ a little, and an hour's folder is named after the time of the inference.
SLACK = timedelta(minutes=5)
# AWS's own rule for the names of endpoints.
NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}")
VERSION = re.compile(r"v[0-9]{1,9}")


class ReportError(SconesError):
    """There is nothing to report on; the message says what to do."""


@dataclass(frozen=True)
class Subject:
    """run: names the report's folder. verdict: a sentence. counts and results: of all planned images. window: where
    its captures are. is_window: about a window of time, not one evaluation. dataset, threshold and classes of a window
    are those of its last evaluation; model_version names all of its versions. Times are ISO 8601 in UTC.
    """

    run: Run
    verdict: str
    outcome: Outcome
    endpoint: str
    model_version: str
    threshold: float
    classes: tuple[str, ...]
    dataset: DatasetNote
    started: str | None
    stopped: str | None
    counts: Counts
    results: list[Result]
    window: Window
    is_window: bool = False

    @property
    def expected(self) -> list[str]:
        """Inference ids that the endpoint answered, so that a capture record must exist."""
        return [row.inference_id for row in self.results if row.status in DECIDED]


@task(task_run_name="read the evaluation")
def read_evaluation(bucket: str, date: str | None, run: str | None) -> Subject:
    """One evaluation, or one bulk run. Without a run the newest evaluation, of the date if that is given."""
    summary = summary_of(bucket, date, run)
    if summary.threshold is None:
        raise ReportError(f"run {summary.run} of {summary.date} had no image, so that there is nothing to report on")
    first = _time(summary.started) or datetime.now(UTC)  # nothing was submitted
    last = _time(summary.stopped) or first
    return Subject(
        run=Run(summary.run, summary.date),
        verdict=verdict(summary),
        outcome=summary.outcome,
        endpoint=summary.endpoint,
        model_version=summary.model_version,
        threshold=summary.threshold,
        classes=summary.classes,
        dataset=summary.dataset,
        started=summary.started,
        stopped=summary.stopped,
        counts=summary.counts,
        results=results_of(bucket, summary),
        window=Window(summary.endpoint, (summary.model_version,), first - SLACK, last + SLACK),
    )


@task(task_run_name="read the window's evaluations")
def read_window(
    installed: Installation, first: datetime, last: datetime, endpoint: str | None, version: str | None
) -> Subject:
    """All that an endpoint (by default the installation's) answered from `first` to `last`; naive times are UTC.

    Raises ReportError for a window that ends before it begins, and for names that are none.
    """
    first, last = (time.replace(tzinfo=time.tzinfo or UTC).astimezone(UTC) for time in (first, last))
    if first >= last:
        raise ReportError(f"the window ends at {last:%Y-%m-%dT%H:%M:%SZ}, before it begins")
    if endpoint is not None and not NAME.fullmatch(endpoint):
        raise ReportError(f"{endpoint[:80]!r} is no name of an endpoint: letters, digits and hyphens")
    if version is not None and not VERSION.fullmatch(version):
        raise ReportError(f"{version[:80]!r} is no model version, such as v7")
    window = Window(endpoint or installed.endpoint, (version,) if version else (), first, last)
    runs = newest_first(installed.bucket, since=f"{first - LATEST_START:%Y-%m-%d}", until=f"{last:%Y-%m-%d}")
    evaluations = [summary for summary in runs if _within(summary, window)][::-1]
    name = "-".join(filter(None, [f"window-{first:%Y%m%dT%H%M%SZ}-{last:%Y%m%dT%H%M%SZ}", endpoint, version]))
    latest = evaluations[-1] if evaluations else None
    versions = sorted({summary.model_version for summary in evaluations})
    return Subject(
        run=Run(name, f"{last:%Y-%m-%d}"),
        verdict=verdict_of_window(window, evaluations),
        outcome=PASSED if all(summary.outcome == PASSED for summary in evaluations) else MISSED,
        endpoint=window.endpoint,
        model_version=", ".join(window.versions or versions) or "every version",
        threshold=latest.threshold if latest and latest.threshold is not None else installed.threshold,
        classes=latest.classes if latest else installed.classes,
        dataset=latest.dataset if latest else dataset_note(installed.bucket),
        started=iso(window.first),
        stopped=iso(window.last),
        counts=_sum(summary.counts for summary in evaluations),
        results=[row for summary in evaluations for row in results_of(installed.bucket, summary)],
        window=window,
        is_window=True,
    )


def verdict_of_window(window: Window, evaluations: list[EvaluationSummary]) -> str:
    """Its time and, if evaluations are in it, how many of them did not pass."""
    same_day = window.first.date() == window.last.date()
    times = f"{window.first:%Y-%m-%d %H:%M} to {window.last:{'%H:%M' if same_day else '%Y-%m-%d %H:%M'}} UTC"
    missed = sum(summary.outcome != PASSED for summary in evaluations)
    return f"{times}. Evaluations: {len(evaluations)}, not passed: {missed}" if evaluations else times


def summary_of(bucket: str, date: str | None, run: str | None) -> EvaluationSummary:
    """An evaluation or bulk run; without a run the newest evaluation, of the date if that is given.

    Raises ReportError if there is no evaluation yet, and UnknownRun.
    """
    if run is not None:
        return find(bucket, run, date)
    newest = next(newest_first(bucket, since=date, until=date), None)
    if newest is None:
        of_date = f" of {date}" if date else ""
        raise ReportError(f"no evaluation{of_date} has been judged", "run the nightly-evaluation deployment first")
    return newest


def _within(summary: EvaluationSummary, window: Window) -> bool:
    """Whether any of an evaluation's executions may be in the window."""
    started, stopped = _time(summary.started), _time(summary.stopped)
    if started is None or stopped is None or summary.endpoint != window.endpoint:
        return False
    if window.versions and summary.model_version not in window.versions:
        return False
    return started <= window.last and stopped >= window.first


def _sum(counts: Iterable[Counts]) -> Counts:
    rows = [structs.astuple(each) for each in counts]
    names = Counts.__struct_fields__
    return Counts(**{name: sum(row[index] for row in rows) for index, name in enumerate(names)})


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
