"""What a report is about: one evaluation, or everything that an endpoint answered in a window of time."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from prefect import task

from tasks.aws import storage
from tasks.capture.window import Window
from tasks.data.images import dataset_note
from tasks.errors import SconesError
from tasks.evaluation.outcome import MISSED, PASSED, STATUSES, verdict
from tasks.evaluation.results import newest_summaries, results_of, summary_keys
from tasks.installation import Installation
from tasks.run import Run, iso

# Clocks differ a little, and an hour's folder is named after the time of the inference.
SLACK = timedelta(minutes=5)
# AWS's own rule for endpoints and variants.
NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}")


class ReportError(SconesError):
    """There is nothing to report on; the message says what to do."""


@dataclass(frozen=True)
class Subject:
    """run: names the report's folder. evaluation: its summary, or those of the window's made one. results: a line per
    planned image. window: where its captures are. verdict: a sentence. is_window: about a window of time, not one run.
    """

    run: Run
    evaluation: dict[str, Any]
    results: list[dict[str, Any]]
    window: Window
    verdict: str
    is_window: bool = False

    @property
    def expected(self) -> list[str]:
        """Inference ids that the endpoint answered, so that a capture record must exist."""
        return [row["inference_id"] for row in self.results if row["status"] in ("accepted", "below_threshold")]


@task(task_run_name="read the evaluation")
def read_evaluation(bucket: str, date: str | None, run: str | None) -> Subject:
    """One evaluation; the newest one if date or run is not given."""
    if date is None or run is None:
        date, run = _newest(bucket, date)
    chosen = Run(run, date)
    keys = newest_summaries(storage.list_etags(bucket, chosen.prefix))
    summary = storage.get_json(bucket, keys[0]) if keys else None
    if summary is None:
        raise ReportError(f"there is no evaluation s3://{bucket}/{chosen.prefix}", "run nightly-evaluation first")
    results = results_of(bucket, summary)
    started, stopped = (datetime.fromisoformat(summary[name]) if summary[name] else None for name in _ENDS)
    first = started or datetime.now(UTC)  # nothing was submitted
    window = Window(summary["endpoint"], (summary["model_version"],), first - SLACK, (stopped or first) + SLACK)
    return Subject(chosen, summary, results, window, verdict(summary))


@task(task_run_name="read the window's evaluations")
def read_window(
    installed: Installation, first: datetime, last: datetime, endpoint: str | None, variant: str | None
) -> Subject:
    """All that an endpoint (by default the installation's) answered from `first` to `last`; naive times are UTC.

    Raises ReportError for a window that ends before it begins, and for names that are none.
    """
    first, last = (time.replace(tzinfo=time.tzinfo or UTC).astimezone(UTC) for time in (first, last))
    if first >= last:
        raise ReportError(f"the window ends at {last:%Y-%m-%dT%H:%M:%SZ}, before it begins")
    for name in (name for name in (endpoint, variant) if name is not None):
        if not NAME.fullmatch(name):
            raise ReportError(f"{name[:80]!r} is no name of an endpoint or variant: letters, digits and hyphens")
    window = Window(endpoint or installed.endpoint, (variant,) if variant else (), first, last)
    evaluations = [
        summary
        for key in summary_keys(installed.bucket)
        if iso(first - timedelta(days=2))[:10] <= key.split("/")[1] <= iso(last)[:10]
        and (summary := storage.get_json(installed.bucket, key))
        and _within(summary, window)
    ]
    evaluations.sort(key=lambda summary: summary["started"])
    results = [row for summary in evaluations for row in results_of(installed.bucket, summary)]
    name = "-".join(filter(None, [f"window-{first:%Y%m%dT%H%M%SZ}-{last:%Y%m%dT%H%M%SZ}", endpoint, variant]))
    run = Run(name, f"{last:%Y-%m-%d}")
    missed = sum(summary["outcome"] != PASSED for summary in evaluations)
    times = f"{first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC"
    sentence = f"{times}. Evaluations: {len(evaluations)}, not passed: {missed}"
    return Subject(run, _together(evaluations, installed, run, window), results, window, sentence, is_window=True)


_ENDS = ("started", "stopped")


def _newest(bucket: str, date: str | None) -> tuple[str, str]:
    """Date and run of the evaluation that stopped last, of one day or of all."""
    summaries = summary_keys(bucket, date)
    if not summaries:
        raise ReportError("there is no evaluation to report on", "run the nightly-evaluation deployment first")
    newest_date = max(key.split("/")[1] for key in summaries)
    of_day = [storage.get_json(bucket, key) for key in summaries if key.split("/")[1] == newest_date]
    newest = max(of_day, key=lambda summary: summary["stopped"] or "")
    return newest["date"], newest["run"]


def _within(summary: dict[str, Any], window: Window) -> bool:
    """Whether any of an evaluation's executions may be in the window."""
    if not summary["started"] or not summary["stopped"] or summary["endpoint"] != window.endpoint:
        return False
    if window.variants and summary["model_version"] not in window.variants:
        return False
    started, stopped = (datetime.fromisoformat(summary[name]) for name in _ENDS)
    return started <= window.last and stopped >= window.first


def _together(evaluations: list[dict[str, Any]], installed: Installation, run: Run, window: Window) -> dict[str, Any]:
    """What a report reads of a summary, for all of them; threshold, classes and images are the last one's."""
    last = evaluations[-1] if evaluations else None
    versions = sorted({summary["model_version"] for summary in evaluations})
    return {
        "run": run.id,
        "date": run.date,
        "outcome": PASSED if all(summary["outcome"] == PASSED for summary in evaluations) else MISSED,
        "endpoint": window.endpoint,
        "model_version": ", ".join(window.variants or versions) or "every variant",
        "threshold": last["threshold"] if last else installed.threshold,
        "classes": last["classes"] if last else list(installed.classes),
        "dataset": last["dataset"] if last else dataset_note(installed.bucket),
        "started": iso(window.first),
        "stopped": iso(window.last),
        **{name: sum(summary[name] for summary in evaluations) for name in ("planned", "submitted", *STATUSES)},
    }
