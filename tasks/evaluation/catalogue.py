"""Finds runs in the bucket: the newest ones, by time, or the one of an id."""

import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta
from itertools import zip_longest

from settings import BULK_PREFIX, EVALUATIONS_PREFIX
from tasks.aws import storage
from tasks.errors import SconesError
from tasks.evaluation.evaluation import newest_summary
from tasks.evaluation.summary import EvaluationSummary
from tasks.run import Run

DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
# A run is in the folder of the day on which it should have started. It never starts before, but maybe days later: its
# turn came after midnight, it was tried again, or no worker ran. No order is promised for one that is later still.
LATEST_START = timedelta(days=7)


class UnknownRun(SconesError):
    """There is no judged run of that id; the message says what there is of it."""


def newest_first(
    bucket: str,
    roots: Sequence[str] = (EVALUATIONS_PREFIX,),
    *,
    since: str | None = None,
    until: str | None = None,
) -> Iterator[EvaluationSummary]:
    """The last judgement of each run, by the time at which the run started, or was judged if nothing was submitted.

    Reads the folders of days from the newest back, as far as the caller goes on: to take ten, take ten. since, until:
    the first and the last date of runs. An evaluation in batches is below both roots, and comes once.
    """
    folders = {day for root in roots for day in storage.list_folders(bucket, root) if DAY.fullmatch(day)}
    days = sorted((day for day in folders if (since or day) <= day <= (until or day)), reverse=True)
    waiting: list[EvaluationSummary] = []
    for day, earlier in zip_longest(days, days[1:]):
        waiting = sorted([*waiting, *_of_day(bucket, roots, day)], key=_time)
        while waiting and (earlier is None or _time(waiting[-1]) >= _latest_start(earlier)):
            yield waiting.pop()


def find(bucket: str, run: str, date: str | None = None) -> EvaluationSummary:
    """The last judgement of an evaluation or bulk run. date: of the run, if it is known. Raises UnknownRun."""
    begun = None
    for root in (EVALUATIONS_PREFIX, BULK_PREFIX):
        for day in [date] if date else reversed(storage.list_folders(bucket, root)):
            if run in storage.list_folders(bucket, f"{root}{day}/"):
                if summary := newest_summary(bucket, Run(run, day, root)):
                    return summary
                begun = day
    if begun:
        hint = "it is still running, or was interrupted: its flow run in the Prefect UI tells, and goes on with Retry"
        raise UnknownRun(f"run {run} of {begun} is not judged yet", hint)
    hint = "`scones nights` lists evaluations; RUN is the last 12 hex digits of a flow run's id"
    raise UnknownRun(f"there is no run {run[:50]!r}{f' of {date}' if date else ''} in s3://{bucket}", hint)


def _of_day(bucket: str, roots: Sequence[str], day: str) -> list[EvaluationSummary]:
    runs = [Run(run, day, root) for root in roots for run in storage.list_folders(bucket, f"{root}{day}/")]
    with ThreadPoolExecutor(storage.PARALLEL_REQUESTS) as threads:
        read = list(threads.map(lambda run: newest_summary(bucket, run), runs))
    return list({summary.run: summary for summary in read if summary}.values())


def _time(summary: EvaluationSummary) -> str:
    return summary.started or summary.judged or summary.date


def _latest_start(day: str) -> str:
    """The time until which runs of a day are taken to have started."""
    return f"{date.fromisoformat(day) + timedelta(days=1) + LATEST_START}"
