from typing import Any

import pandas as pd
from msgspec.structs import replace

from tasks.capture.window import COLUMNS, Captured
from tasks.evaluation.results import Result
from tasks.evaluation.summary import Status
from tasks.report.reconciliation import KINDS, counts, reconcile
from tests.unit.results import RESULT

START, STOP = "2026-11-22T03:30:00.000+00:00", "2026-11-22T03:40:00.000+00:00"


def result(name: str, status: Status = "accepted", **rest: Any) -> Result:
    return replace(RESULT, inference_id=name, status=status, **rest)


def captured(*names: str | None, minute: int = 35, **rest: Any) -> Captured:
    rows = [[name, pd.Timestamp(f"2026-11-22T03:{minute}Z"), "v1", 0.9, 0.5, "bicycle"] for name in names]
    return Captured(pd.DataFrame(rows, columns=COLUMNS), **rest)


def test_what_matches_gives_no_line() -> None:
    results = [result("a"), result("b", "below_threshold"), result("c", "not_submitted")]
    assert reconcile(results, captured("a", "b"), START, STOP) == []
    assert counts([]) == dict.fromkeys(KINDS, 0)


def test_every_difference_is_listed_with_its_kind() -> None:
    retried = result("b-a2", previous_attempts=(result("b-a1", "failed", error="ModelError"),))
    results = [result("a"), retried, result("c", "failed", error="TIMED_OUT")]
    found = captured("b-a1", "b-a2", "stranger", None, missing=("a",), without_output=("d",), repeated={"b-a2": 2})
    lines = reconcile(results, found, START, STOP)
    assert [(line.kind, line.inference_id, line.detail) for line in lines] == [
        ("missing_capture", "a", ""),
        ("capture_without_output", "d", ""),
        ("execution_without_outcome", "c", "TIMED_OUT"),
        ("retried_attempt", "b-a1", "ModelError"),
        ("repeated_capture", "b-a2", "2 records"),
        ("capture_without_execution", "stranger", "2026-11-22T03:35:00+00:00"),
        ("capture_without_execution", None, "2026-11-22T03:35:00+00:00"),
    ]
    assert counts(lines)["capture_without_execution"] == 2


def test_what_others_asked_before_or_after_is_theirs() -> None:
    assert reconcile([], captured("stranger", minute=41), START, STOP) == []
    assert reconcile([], captured("stranger"), None, None) == []
