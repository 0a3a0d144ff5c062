"""What happened to one image: every run it was in, each execution with its states, captures, reports and answers."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice

from settings import (
    BULK_PREFIX,
    EVALUATIONS_PREFIX,
    REPORTS_PREFIX,
    REVIEW_LABELS_PREFIX,
    REVIEW_QUEUE_PREFIX,
    settings,
)
from tasks.aws import storage
from tasks.capture import collect
from tasks.capture.window import Window, read
from tasks.data.folder import plain_stem
from tasks.errors import SconesError
from tasks.evaluation import executions
from tasks.evaluation.catalogue import find, newest_first
from tasks.evaluation.results import Planned, Result, iterate_results, result, results_place
from tasks.evaluation.summary import DECIDED, EvaluationSummary
from tasks.installation import Installation
from tasks.report.history import History, history_of
from tasks.review.labels import Label
from tasks.review.queue import Waiting
from tasks.run import iso

INFERENCE_ID = re.compile(r"(?P<run>[0-9a-f]{12})-[0-9a-f]{20}-a[0-9]{1,3}")
RUN = re.compile(r"[0-9a-f]{12}")
ADHOC = re.compile(r"adhoc-[0-9a-f]{12}-[0-9]{4,}")
# Clocks differ a little, and records may come late.
SLACK = timedelta(minutes=5)


class NothingKnown(SconesError):
    """No run had this image; the message says where was looked."""


@dataclass(frozen=True)
class Captured:
    """A capture record. time: ISO 8601 in UTC."""

    inference_id: str
    time: str
    model_version: str
    predicted_class: str
    confidence: float


@dataclass(frozen=True)
class Story:
    """An image in one run. run and date: empty if it was classified by itself. report: where it opens, if there is one.

    histories: of each execution, the one that counts first. classes: of the run, in the order of probabilities.
    results: where those of the run are. waiting and labels: of the review, if it was queued.
    """

    run: str
    date: str
    result: Result
    histories: tuple[History, ...]
    captures: tuple[Captured, ...]
    report: str | None
    classes: tuple[str, ...]
    results: str | None = None
    waiting: Waiting | None = None
    labels: tuple[Label, ...] = ()


def stories(installation: Installation, wanted: str, runs: int) -> Iterator[Story]:
    """The image's stories, those of the newest runs first.

    wanted: an inference id, an execution's ARN or name, an S3 URI, a key, the end of a key after a slash, or the name
    of a file of one's own. runs: in how many of the newest evaluations and bulk runs is looked. Raises NothingKnown if
    it is in none of them.
    """
    wanted = wanted.removeprefix(f"s3://{installation.bucket}/")
    if wanted.startswith("arn:"):
        wanted = wanted.rsplit(":", 1)[-1]
    if ADHOC.fullmatch(wanted):
        yield _adhoc(installation, wanted)
        return
    identified = INFERENCE_ID.fullmatch(wanted)
    if identified:
        summaries = [find(installation.bucket, identified["run"])]
    else:
        summaries = list(islice(newest_first(installation.bucket, (EVALUATIONS_PREFIX, BULK_PREFIX)), runs))
    for told in (_is, _is_called):
        found = False
        for summary in summaries:
            for row in iterate_results(installation.bucket, summary):
                if told(row, wanted):
                    found = True
                    yield _of_run(installation, summary, row)
        if found:
            return
    raise _nothing_known(wanted, summaries, identified is not None)


def _nothing_known(wanted: str, summaries: list[EvaluationSummary], identified: bool) -> NothingKnown:
    if not summaries:
        return NothingKnown("no run has been judged yet", "run the nightly-evaluation deployment first")
    if identified:
        told = f"run {summaries[0].run} of {summaries[0].date} has no image of the id {wanted!r}"
        return NothingKnown(told, "take the id from its results, or give the image's key")
    if RUN.fullmatch(wanted):
        return NothingKnown(f"{wanted} is a run and no image", f"`scones report {wanted}` opens its report")
    newest = f"the {len(summaries)} newest runs have" if len(summaries) > 1 else "the only run has"
    hint = "give its key, such as test/bicycle-0001.png, the end of it, or an inference id; --runs N looks further back"
    return NothingKnown(f"{newest} no image {wanted!r}", hint)


def _is(row: Result, wanted: str) -> bool:
    ids = (row.inference_id, *(earlier.inference_id for earlier in row.previous_attempts))
    return wanted in (row.key, *ids) or row.key.endswith(f"/{wanted}")


def _is_called(row: Result, wanted: str) -> bool:
    """Whether it was made of a file of that name by prepare-data, which calls IMG_1.jpg cat_IMG-1_1a2b3c4d.png."""
    return f"_{plain_stem(wanted)}_" in row.key.rpartition("/")[2]


def _of_run(installation: Installation, summary: EvaluationSummary, row: Result) -> Story:
    attempts = [row, *reversed(row.previous_attempts)]
    ids = [each.inference_id for each in attempts]
    started = _time(row.previous_attempts[0].started if row.previous_attempts else row.started)
    captures: tuple[Captured, ...] = ()
    if started and any(each.status in DECIDED for each in attempts):
        window = Window(summary.endpoint, (row.model_version,), started - SLACK, _time(row.stopped) or started + SLACK)
        captures = _captures(installation.bucket, window, summary.classes, ids)
    bucket, waiting_key = installation.bucket, f"{REVIEW_QUEUE_PREFIX}{row.inference_id}.json"
    labels = [
        label
        for key in storage.list_etags(bucket, f"{REVIEW_LABELS_PREFIX}{row.inference_id}/")
        if (label := storage.get_record(bucket, key, Label))
    ]
    return Story(
        run=summary.run,
        date=summary.date,
        result=row,
        histories=tuple(
            history_of(each.inference_id, each.key, each.execution_arn, each.attempt)
            for each in attempts
            if each.execution_arn
        ),
        captures=captures,
        report=report_address(bucket, summary.date, summary.run),
        classes=summary.classes,
        results=f"s3://{bucket}/{results_place(summary)}",
        waiting=storage.get_record(bucket, waiting_key, Waiting),
        labels=tuple(sorted(labels, key=lambda label: label.time)),
    )


def _adhoc(installation: Installation, name: str) -> Story:
    """Of an image that `scones classify` sent; nothing but its execution knows it."""
    arn = executions.execution_arn(installation.state_machine_arn, name)
    execution = executions.describe(arn)
    if execution is None:
        raise NothingKnown(f"there is no execution {arn}", "Step Functions forgets an execution after 90 days")
    started = execution.started or datetime.now(UTC)
    planned = Planned(
        inference_id=name,
        key=str(execution.input.get("key", "")),
        label="",
        attempt=1,
        model_version="",
        threshold=installation.threshold,
        planned=iso(started),
    )
    row = result(planned, execution)
    captures: tuple[Captured, ...] = ()
    if row.status in DECIDED:
        window = Window(installation.endpoint, (), started - SLACK, (execution.stopped or started) + SLACK)
        captures = _captures(installation.bucket, window, installation.classes, [name])
    classes = installation.classes if row.predicted_class in installation.classes else ()
    return Story("", "", row, (history_of(name, row.key, arn, 1),), captures, None, classes)


def _captures(bucket: str, window: Window, classes: tuple[str, ...], ids: list[str]) -> tuple[Captured, ...]:
    there = collect.archives(bucket, window, lambda done, total: None)
    records = read(there, window, classes).records
    return tuple(
        Captured(
            inference_id=row["inference_id"],
            time=iso(row["time"].to_pydatetime()),
            model_version=row["model_version"],
            predicted_class=str(row["predicted_class"]),
            confidence=float(row["confidence"]),
        )
        for row in records[records.inference_id.isin(ids)].to_dict("records")
    )


def report_address(bucket: str, date: str, run: str) -> str | None:
    """Where a run's report opens in a browser, on this machine if it is here too; None if there is none yet."""
    here = settings().reports / date / run / "report.html"
    if here.is_file():
        return here.as_uri()
    key = f"{REPORTS_PREFIX}{date}/{run}/report.html"
    return storage.web_address(bucket, key) if key in storage.list_etags(bucket, key) else None


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None
