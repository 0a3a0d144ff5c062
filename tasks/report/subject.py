"""What a report is about: one evaluation, or everything that an endpoint answered in a window of time."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from msgspec import structs
from prefect import task

from settings import BULK_PREFIX, EVALUATIONS_PREFIX
from tasks.aws import storage
from tasks.capture.window import Window
from tasks.data.images import dataset_note
from tasks.errors import SconesError
from tasks.evaluation.outcome import verdict
from tasks.evaluation.results import Result, newest_summaries, read_summary, results_of, summary_keys
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
    if run is None:
        date, run = _newest(bucket, date)
    elif date is None:
        date = _date_of(bucket, run)
    chosen = Run(run, date)
    roots = (chosen.prefix, Run(run, date, BULK_PREFIX).prefix)
    keys = [key for root in roots for key in newest_summaries(storage.list_etags(bucket, f"{root}summary"))]
    summary = read_summary(bucket, keys[0]) if keys else None
    if summary is None or summary.threshold is None:
        raise ReportError(f"there is no evaluation s3://{bucket}/{chosen.prefix}", "run nightly-evaluation first")
    first = _time(summary.started) or datetime.now(UTC)  # nothing was submitted
    last = _time(summary.stopped) or first
    return Subject(
        run=chosen,
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
    evaluations = [
        summary
        for key in summary_keys(installed.bucket)
        if iso(first - timedelta(days=2))[:10] <= key.split("/")[1] <= iso(last)[:10]
        and (summary := read_summary(installed.bucket, key))
        and _within(summary, window)
    ]
    evaluations.sort(key=lambda summary: str(summary.started))
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


def find_run(bucket: str, run: str | None) -> tuple[str, str]:
    """Date and run of one evaluation or bulk run; without a run of the newest evaluation. Raises ReportError."""
    return _newest(bucket, None) if run is None else (_date_of(bucket, run), run)


def _newest(bucket: str, date: str | None) -> tuple[str, str]:
    """Date and run of the evaluation that stopped last, of one day or of all."""
    keys = summary_keys(bucket, date)
    if not keys:
        raise ReportError("there is no evaluation to report on", "run the nightly-evaluation deployment first")
    newest_date = max(key.split("/")[1] for key in keys)
    of_day = [read_summary(bucket, key) for key in keys if key.split("/")[1] == newest_date]
    newest = max((summary for summary in of_day if summary), key=lambda summary: summary.stopped or "")
    return newest.date, newest.run


def _date_of(bucket: str, run: str) -> str:
    """The date below which a run's summary is."""
    for root in (EVALUATIONS_PREFIX, BULK_PREFIX):
        for date in reversed(storage.list_folders(bucket, root)):
            if storage.list_etags(bucket, f"{root}{date}/{run}/summary"):
                return date
    raise ReportError(
        f"there is no evaluation {run[:50]!r} in s3://{bucket}", "RUN is 12 hex digits of a flow run's id"
    )


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
