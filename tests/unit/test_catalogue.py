"""Which runs are the newest, and what is said of one that is not there."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import pytest
from msgspec import structs
from typer.testing import CliRunner

from cli.app import app
from settings import BULK_PREFIX, EVALUATIONS_PREFIX, Settings
from tasks import costs
from tasks.aws import stacks
from tasks.evaluation.catalogue import UnknownRun, find, newest_first
from tasks.evaluation.results import Result
from tasks.evaluation.summary import EvaluationSummary
from tasks.installation import Installation
from tasks.report import analysis, story
from tasks.report.analysis import last_nights
from tasks.report.story import NothingKnown, stories
from tasks.report.subject import ReportError, read_window, summary_of
from tasks.review.queue import ReviewError, bulk_runs
from tasks.run import Run
from tests.unit.bucket import MemoryBucket
from tests.unit.results import RESULT
from tests.unit.test_report import ABOUT, night

INSTALLED = Installation("bucket", "arn", "batch-arn", "e", ("bicycle", "motorcycle"), 0.93, "arn", "arn")
BOTH = (EVALUATIONS_PREFIX, BULK_PREFIX)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> MemoryBucket:
    return MemoryBucket(monkeypatch)


def put(bucket: MemoryBucket, run: str, date: str, started: str | None, **changed: Any) -> EvaluationSummary:
    """A judged run that started at that time."""
    times = {"started": started, "stopped": started, "judged": changed.pop("judged", started)}
    summary = structs.replace(night(1), run=run, date=date, **times, **changed)
    bucket.put_object(summary.identity.summary_key(summary.revision), json.dumps(summary.to_json()).encode())
    bucket.put_object(f"{summary.identity.prefix}manifest.jsonl", b"")
    return summary


def runs(*arguments: Any, **options: Any) -> list[str]:
    return [summary.run for summary in newest_first("bucket", *arguments, **options)]


def busy_day(bucket: MemoryBucket, root: str) -> None:
    """Thirty runs of a day, whose ids say nothing about their times: the later, the smaller."""
    for number in range(30):
        time = f"2026-11-27T{number // 2:02}:{number % 2 * 30:02}:00.000+00:00"
        put(bucket, f"{100 - number:012x}", "2026-11-27", time, bulk=root == BULK_PREFIX)


NEWEST_OF_BUSY_DAY = f"{71:012x}"


@pytest.mark.parametrize("root", BOTH)
def test_the_newest_of_many_runs_a_day_is_the_one_that_started_last(bucket: MemoryBucket, root: str) -> None:
    busy_day(bucket, root)
    found = runs((root,))
    assert found[0] == NEWEST_OF_BUSY_DAY and found == sorted(found)
    assert len(found) == 30


def test_everybody_who_takes_the_newest_takes_the_same(bucket: MemoryBucket, monkeypatch: pytest.MonkeyPatch) -> None:
    busy_day(bucket, EVALUATIONS_PREFIX)
    monkeypatch.setattr("cli.app._installation", lambda aws: pytest.MonkeyPatch.context())
    monkeypatch.setattr(stacks, "installation", lambda: INSTALLED)
    told = json.loads(CliRunner().invoke(app, ["nights", "--json", "--last", "2"]).stdout)
    assert [each["run"] for each in told] == [NEWEST_OF_BUSY_DAY, f"{72:012x}"]
    assert summary_of("bucket", None, None).run == NEWEST_OF_BUSY_DAY
    assert summary_of("bucket", "2026-11-27", None).run == NEWEST_OF_BUSY_DAY

    monkeypatch.setattr(costs, "last_training", lambda: None)
    nights = costs.of_installation(INSTALLED, Settings(), datetime(2026, 11, 28, tzinfo=UTC).date())[1]
    assert NEWEST_OF_BUSY_DAY in nights.basis

    looked: list[str] = []

    def look(bucket: str, summary: EvaluationSummary) -> list[Result]:
        looked.append(summary.run)
        return []

    monkeypatch.setattr(story, "iterate_results", look)
    with pytest.raises(NothingKnown, match=r"the 3 newest runs have no image 'none\.png'"):
        list(stories(INSTALLED, "none.png", 3))
    assert looked[:3] == [f"{number:012x}" for number in (71, 72, 73)]


def test_the_newest_bulk_run_is_queued(bucket: MemoryBucket) -> None:
    busy_day(bucket, BULK_PREFIX)
    assert [each.run for each in bulk_runs("bucket", None, None, None, None)] == [NEWEST_OF_BUSY_DAY]
    assert [each.run for each in bulk_runs("bucket", f"{90:012x}", None, None, None)] == [f"{90:012x}"]
    since, until = datetime(2026, 11, 27, 1, tzinfo=UTC), datetime(2026, 11, 27, 2, tzinfo=UTC)
    assert len(bulk_runs("bucket", None, None, since, until)) == 3
    with pytest.raises(ReviewError):
        bulk_runs("bucket", None, "2026-11-26", None, None)


def test_a_run_that_started_after_its_day_is_where_it_started(bucket: MemoryBucket) -> None:
    put(bucket, "a" * 12, "2026-11-26", "2026-11-27T02:00:00.000+00:00")  # its turn came after midnight
    put(bucket, "b" * 12, "2026-11-27", "2026-11-27T01:00:00.000+00:00")
    put(bucket, "c" * 12, "2026-11-23", "2026-11-27T09:00:00.000+00:00")  # no worker ran for days
    put(bucket, "d" * 12, "2026-11-26", "2026-11-26T23:00:00.000+00:00")
    assert runs() == [letter * 12 for letter in "cabd"]
    assert runs(since="2026-11-26", until="2026-11-26") == ["a" * 12, "d" * 12]
    assert summary_of("bucket", "2026-11-26", None).run == "a" * 12


def test_one_that_submitted_nothing_is_where_it_was_judged(bucket: MemoryBucket) -> None:
    put(bucket, "a" * 12, "2026-11-26", None, judged="2026-11-26T04:00:00.000+00:00")
    put(bucket, "b" * 12, "2026-11-26", "2026-11-26T03:00:00.000+00:00")
    put(bucket, "c" * 12, "2026-11-26", "2026-11-26T05:00:00.000+00:00")
    assert runs() == ["c" * 12, "a" * 12, "b" * 12]


def test_no_more_is_read_than_is_asked_for(bucket: MemoryBucket) -> None:
    for day in range(1, 31):
        put(bucket, f"{day:012x}", f"2026-10-{day:02}", f"2026-10-{day:02}T03:30:00.000+00:00")
    assert [each.run for each in islice(newest_first("bucket"), 3)] == [f"{day:012x}" for day in (30, 29, 28)]
    assert len(bucket.read) < 15


def test_the_last_judgement_counts_and_a_night_in_batches_counts_once(bucket: MemoryBucket) -> None:
    put(bucket, "a" * 12, "2026-11-26", "2026-11-26T03:00:00.000+00:00")
    put(bucket, "a" * 12, "2026-11-26", "2026-11-26T03:00:00.000+00:00", revision=2, planned=7)
    in_batches = put(bucket, "b" * 12, "2026-11-26", "2026-11-26T02:00:00.000+00:00", bulk=True)
    copy = json.dumps(in_batches.to_json()).encode()
    bucket.put_object(Run("b" * 12, "2026-11-26").summary_key(), copy)
    bucket.put_object("evaluations/notes/readme.txt", b"no run")
    assert runs(BOTH) == ["a" * 12, "b" * 12]
    assert find("bucket", "a" * 12).planned == 7
    assert find("bucket", "b" * 12).bulk


def test_a_window_has_the_evaluations_that_ran_in_it(bucket: MemoryBucket) -> None:
    late = put(bucket, "a" * 12, "2026-11-24", "2026-11-27T02:00:00.000+00:00", threshold=0.8)
    put(bucket, "b" * 12, "2026-11-26", "2026-11-26T23:00:00.000+00:00", threshold=0.9)
    put(bucket, "c" * 12, "2026-11-28", "2026-11-28T03:00:00.000+00:00")
    for summary in (late,):
        bucket.put_object(summary.identity.results_key(), b"")
    bucket.put_object(Run("b" * 12, "2026-11-26").results_key(), b"")
    first, last = datetime(2026, 11, 26, 22, tzinfo=UTC), datetime(2026, 11, 27, 3, tzinfo=UTC)
    window = read_window.fn(INSTALLED, first, last, None, None)
    assert window.verdict.endswith("Evaluations: 2, not passed: 2")
    assert window.threshold == 0.8  # of the one that started last


def test_a_report_is_compared_with_the_nights_before_it(bucket: MemoryBucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(analysis, "NIGHTS", 3)
    busy_day(bucket, EVALUATIONS_PREFIX)
    about = replace(ABOUT, stopped="2026-11-27T10:00:00.000+00:00")
    found = [each.started for each in last_nights("bucket", about)]
    assert found == [f"2026-11-27T{time}:00.000+00:00" for time in ("09:00", "09:30", "10:00")]
    assert last_nights("bucket", replace(about, stopped=None)) == []


@pytest.mark.parametrize("root", BOTH)
def test_what_is_said_of_a_run_that_is_not_there(bucket: MemoryBucket, root: str) -> None:
    put(bucket, "a" * 12, "2026-11-26", "2026-11-26T03:00:00.000+00:00")
    bucket.put_object(f"{root}2026-11-26/{'b' * 12}/manifest.jsonl", b"")
    with pytest.raises(UnknownRun, match=f"there is no run '{'c' * 12}' in s3://bucket; `scones nights` lists"):
        summary_of("bucket", None, "c" * 12)
    with pytest.raises(UnknownRun, match=f"run {'b' * 12} of 2026-11-26 is not judged yet; it is still running, or"):
        summary_of("bucket", None, "b" * 12)
    with pytest.raises(UnknownRun, match=f"there is no run '{'a' * 12}' of 2026-11-25"):
        summary_of("bucket", "2026-11-25", "a" * 12)


def test_what_why_says_of_an_image_that_nobody_knows(bucket: MemoryBucket, monkeypatch: pytest.MonkeyPatch) -> None:
    def said(wanted: str) -> str:
        with pytest.raises((NothingKnown, UnknownRun)) as told:
            list(stories(INSTALLED, wanted, 30))
        return str(told.value)

    assert said("a.png") == "no run has been judged yet; run the nightly-evaluation deployment first"
    with pytest.raises(ReportError, match="no evaluation has been judged; run the nightly-evaluation deployment"):
        summary_of("bucket", None, None)
    put(bucket, "a" * 12, "2026-11-26", "2026-11-26T03:00:00.000+00:00")
    monkeypatch.setattr(story, "iterate_results", lambda bucket, summary: [RESULT])
    assert said("b.png").startswith("the only run has no image 'b.png'; give its key, such as")
    assert said("a" * 12) == f"{'a' * 12} is a run and no image; `scones report {'a' * 12}` opens its report"
    unknown = f"{'c' * 12}-{'0' * 20}-a1"
    assert said(unknown).startswith(f"there is no run '{'c' * 12}' in s3://bucket")
    other = f"{'a' * 12}-{'0' * 20}-a1"
    assert said(other).startswith(f"run {'a' * 12} of 2026-11-26 has no image of the id '{other}'")
