"""The queue of images that a person should look at: chosen from the results of bulk runs, and kept in the bucket.

review/queue/INFERENCE_ID.json is written once and never changed, so that queueing the same results twice changes
nothing. Images whose label is known stay out: the test images above all, which decide about models.
"""

import hashlib
import heapq
from collections import Counter
from collections.abc import Container, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from itertools import chain, islice
from typing import Literal

from settings import BULK_PREFIX, REVIEW_QUEUE_PREFIX, TEST_PREFIX, TRAIN_PREFIX, Settings
from tasks.aws import storage
from tasks.errors import SconesError
from tasks.evaluation.catalogue import newest_first
from tasks.evaluation.results import Result, iterate_results
from tasks.evaluation.summary import EvaluationSummary
from tasks.records import Record, RecordError
from tasks.run import Log, iso, utc_now

Reason = Literal["below_threshold", "not_a_class", "audit"]
# Of the flow run's log.
PROGRESS_IMAGES = 500
# What `choose` counts for the members of Queued.
COUNTED = ("results", "labelled", "failed", "accepted", "audit", "below_threshold", "not_a_class", "over_limit")


class ReviewError(SconesError):
    """There is nothing to look at; the message says what to do."""


class Waiting(Record, frozen=True, kw_only=True):
    """review/queue/INFERENCE_ID.json: an image that waits for a person's answer.

    key, sha256: of the image, whose content must still be this when somebody looks at it. run, date: of the bulk run.
    probabilities: one per class of the installation at that time; None of results of earlier releases. reason: `audit`
    is of an accepted image. sampling_probability: with which an image like this one was chosen, 1 of all that were not
    accepted, unless `limited`: it was among the first of a day that had more of them than the setting allows. queued:
    ISO 8601 in UTC.
    """

    inference_id: str
    key: str
    sha256: str
    run: str
    date: str
    model_version: str
    threshold: float
    predicted_class: str
    confidence: float
    probabilities: tuple[float, ...] | None
    outlier_score: float | None
    reason: Reason
    sampling_probability: float
    limited: bool
    queued: str


class Queued(Record, frozen=True, kw_only=True):
    """What became of the results of some bulk runs.

    results: how many there are; labelled, failed: of them, not looked at. accepted: of the others, of which `audit`
    were drawn. below_threshold, not_a_class: of the others. over_limit: of these, those that the day's limit left out.
    already: were in the queue before. gone: whose image is not there any more. queued: new in the queue, by reason.
    """

    runs: tuple[str, ...]
    results: int
    labelled: int
    failed: int
    accepted: int
    below_threshold: int
    not_a_class: int
    over_limit: int
    audit: int
    already: int
    gone: int
    queued: dict[str, int]


@dataclass(frozen=True)
class Chosen:
    """A result that somebody should look at."""

    row: Result
    reason: Reason
    probability: float


def drawn(inference_id: str, share: float) -> bool:
    """Whether an accepted image is in the random share: by a hash, so that it is so whenever it is asked."""
    return by_chance("audit", inference_id) < share * 2**64


def by_chance(what: str, inference_id: str) -> int:
    """A number below 2**64, always the same for the same id."""
    return int.from_bytes(hashlib.sha256(f"{what}/{inference_id}".encode()).digest()[:8], "big")


def stays_out(row: Result) -> bool:
    """Whether the label is known, or is that of a training or test image, whatever the manifest says."""
    return row.label is not None or row.key.startswith((TEST_PREFIX, TRAIN_PREFIX))


def reason_of(row: Result, audit_share: float) -> Reason | None:
    """Why somebody should look at a result; None if nobody need."""
    if stays_out(row):
        return None
    if row.status in ("below_threshold", "not_a_class"):
        return row.status
    return "audit" if row.status == "accepted" and drawn(row.inference_id, audit_share) else None


def choose(
    rows: Iterable[Result], chosen: Settings, room: int, there: Container[str] = ()
) -> tuple[list[Chosen], Counter[str]]:
    """All audits, and `room` of the images that were not accepted, without those that are there; and how many rows
    there were of each kind.

    The random share has no limit: leaving some of it out would make it less random.
    """
    counts: Counter[str] = Counter()
    audits: list[Chosen] = []

    def unsure() -> Iterator[tuple[float, str, Result, Reason]]:
        for row in rows:
            counts["results"] += 1
            if stays_out(row):
                counts["labelled"] += 1
                continue
            if row.status in ("failed", "not_submitted"):
                counts["failed"] += 1
                continue
            counts[row.status] += 1
            reason = reason_of(row, chosen.audit_share)
            counts["audit"] += reason == "audit"
            if reason is not None and row.inference_id in there:
                counts["already"] += 1
            elif reason == "audit":
                audits.append(Chosen(row, reason, chosen.audit_share))
            elif reason is not None:
                counts["unsure"] += 1
                yield rank(row.inference_id, row.confidence, chosen), row.inference_id, row, reason

    # The id tells two apart that are as uncertain as each other.
    # nsmallest looks at no row if none is wanted, and all are to be counted.
    first = heapq.nsmallest(max(room, 1), unsure(), key=lambda each: each[:2])[:room]
    counts["over_limit"] = counts["unsure"] - len(first)
    return [Chosen(row, reason, 1.0) for _, _, row, reason in first] + audits, counts


def rank(inference_id: str, confidence: float | None, chosen: Settings) -> float:
    """The smaller, the earlier it is looked at: the confidence, or by chance."""
    if chosen.review_order == "random":
        return by_chance("order", inference_id)
    return confidence if confidence is not None else 0.0


def queue(bucket: str, summaries: list[EvaluationSummary], chosen: Settings, progress: Log) -> Queued:
    """Puts what somebody should look at of these bulk runs into the queue, and says what became of all of it."""
    times = storage.list_times(bucket, REVIEW_QUEUE_PREFIX)
    there = {key.removeprefix(REVIEW_QUEUE_PREFIX).removesuffix(".json") for key in times}
    midnight = utc_now().replace(hour=0, minute=0, second=0, microsecond=0)
    room = max(0, chosen.review_per_day - _limited(bucket, [key for key, time in times.items() if time >= midnight]))
    rows = chain.from_iterable(iterate_results(bucket, summary) for summary in summaries)
    picked, counts = choose(rows, chosen, room, there)
    dates = {summary.run: summary.date for summary in summaries}
    result: Counter[str] = Counter()
    queued: Counter[str] = Counter()

    def put(each: Chosen) -> str:
        row = each.row
        content = storage.get_image(bucket, row.key)
        if content is None:
            return "gone"
        run = row.inference_id.split("-")[0]
        waiting = Waiting(
            inference_id=row.inference_id,
            key=row.key,
            sha256=hashlib.sha256(content).hexdigest(),
            run=run,
            date=dates[run],
            model_version=row.model_version,
            threshold=row.threshold,
            predicted_class=str(row.predicted_class),
            confidence=row.confidence or 0.0,
            probabilities=row.probabilities,
            outlier_score=row.outlier_score,
            reason=each.reason,
            sampling_probability=each.probability,
            limited=counts["over_limit"] > 0 and each.reason != "audit",
            queued=iso(utc_now()),
        )
        key = f"{REVIEW_QUEUE_PREFIX}{row.inference_id}.json"
        return "queued" if storage.create_json(bucket, key, waiting.to_json()) else "already"

    with ThreadPoolExecutor(storage.PARALLEL_REQUESTS) as threads:
        for number, (each, outcome) in enumerate(zip(picked, threads.map(put, picked), strict=True), 1):
            result[outcome] += 1
            queued[each.reason] += outcome == "queued"
            if number % PROGRESS_IMAGES == 0:
                progress(f"{number} of {len(picked)} images are in the queue")
    return Queued(
        runs=tuple(summary.run for summary in summaries),
        already=counts["already"] + result["already"],
        gone=result["gone"],
        queued=dict(queued),
        **{name: counts[name] for name in COUNTED},
    )


def bulk_runs(
    bucket: str, run: str | None, date: str | None, since: datetime | None, until: datetime | None
) -> list[EvaluationSummary]:
    """One bulk run, those that ended in a window of time, or the newest one. Raises ReviewError if there is none."""
    runs = newest_first(bucket, (BULK_PREFIX,), since=date, until=date)
    wanted = (each for each in runs if each.stopped and run in (None, each.run))
    if since is not None:
        last = until or utc_now()
        read = [each for each in wanted if iso(since) <= str(each.stopped) <= iso(last)]
    else:
        read = list(islice(wanted, 1))
    if not read:
        raise ReviewError(
            f"there is no bulk run{f' {run[:50]!r}' if run else ''} to look at", "run classify-images first"
        )
    return read


def _limited(bucket: str, keys: list[str]) -> int:
    """How many of the queued images were not accepted, so that a day's limit counts them; also what can't be read."""

    def counts(key: str) -> bool:
        try:
            record = storage.get_record(bucket, key, Waiting)
        except RecordError:
            return True
        return record is not None and record.reason != "audit"

    with ThreadPoolExecutor(storage.PARALLEL_REQUESTS) as threads:
        return sum(threads.map(counts, keys))


def told(queued: Queued) -> str:
    """What happened, in a line."""
    new = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in queued.queued.items() if count) or "none"
    left = f", {queued.over_limit} left for another day" if queued.over_limit else ""
    return f"new in the queue: {new}; {queued.already} were there already, {queued.gone} are gone{left}"


def markdown(queued: Queued, bucket: str) -> str:
    """The same as a Prefect artifact, with all that was looked at."""
    rows = [
        ("results", queued.results),
        ("with a label, not looked at", queued.labelled),
        ("without an answer, not looked at", queued.failed),
        ("accepted", queued.accepted),
        ("of these drawn at random", queued.audit),
        ("below the threshold", queued.below_threshold),
        ("of no class", queued.not_a_class),
        ("left for another day", queued.over_limit),
        ("in the queue already", queued.already),
        ("image gone", queued.gone),
        *((f"new in the queue: {reason.replace('_', ' ')}", count) for reason, count in queued.queued.items()),
    ]
    lines = [f"| {name} | {count:,} |" for name, count in rows]
    runs = ", ".join(f"`{run}`" for run in queued.runs)
    return "\n".join(
        [
            f"# {told(queued).capitalize()}",
            "",
            f"Bulk runs {runs}; `s3://{bucket}/{REVIEW_QUEUE_PREFIX}`.",
            "",
            "| images | |",
            "|---|---:|",
            *lines,
            "",
        ]
    )
