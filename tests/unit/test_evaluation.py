import json
from datetime import UTC, datetime
from typing import Any

import pytest

from tasks.endpoint import ServingEndpoint
from tasks.evaluation import Run, not_submitted, planned_images, result, summarize
from tasks.executions import Execution
from tasks.infrastructure import Installation

INSTALLATION = Installation("bucket", "arn", "endpoint", ("bicycle", "motorcycle"), 0.93, "role", "role")
ENDPOINT = ServingEndpoint("endpoint", "v7")
RUN = Run("5b52074c57ed", "2026-11-22")
PLANNED = planned_images("0\t0\ta.png\n1\t1\tb.png\n2\t0\tc.png\n3\t1\td.png\n", INSTALLATION.classes, RUN.id)


def execution(status: str, **fields: Any) -> Execution:
    now = datetime(2026, 11, 22, 3, 30, tzinfo=UTC)
    content = {"output": None, "error": None, "cause": None, "started": now, "stopped": now, **fields}
    return Execution("arn:execution", status, {}, **content)


def accepted(predicted: str) -> Execution:
    return execution("SUCCEEDED", output={"predicted_class": predicted, "confidence": 0.99, "threshold": 0.93})


LOW = execution(
    "FAILED",
    error="LowConfidence",
    cause=json.dumps({"predicted_class": "bicycle", "confidence": 0.6, "threshold": 0.93}),
)


def test_inference_ids_are_distinct_and_fit_both_limits() -> None:
    ids = [image.inference_id for image in PLANNED]
    assert len(set(ids)) == 4
    assert all(len(name) == 36 and name.startswith("5b52074c57ed-") and name.endswith("-a1") for name in ids)


@pytest.mark.parametrize(
    ("end", "status", "error"),
    [
        (accepted("bicycle"), "accepted", None),
        (LOW, "below_threshold", None),
        (execution("FAILED", error="ImageNotFound", cause="{}"), "failed", "ImageNotFound"),
        (execution("TIMED_OUT", error="States.Timeout"), "failed", "States.Timeout"),
        (execution("ABORTED"), "failed", "ABORTED"),
    ],
)
def test_every_end_has_its_status(end: Execution, status: str, error: str | None) -> None:
    row = result(PLANNED[0], end, 0.93, "v7")
    assert (row.status, row.error) == (status, error)


def test_the_summary_adds_up() -> None:
    ends = [accepted("bicycle"), LOW, execution("ABORTED")]
    rows = [result(image, end, 0.93, "v7") for image, end in zip(PLANNED, ends, strict=False)]
    rows.append(not_submitted(PLANNED[3], 0.93, "v7"))
    summary = summarize(rows, RUN, ENDPOINT, INSTALLATION, {"source": "generated", "synthetic": True})
    assert summary["planned"] == summary["submitted"] + summary["not_submitted"] == 4
    assert summary["submitted"] == summary["accepted"] + summary["below_threshold"] + summary["failed"] == 3
    assert summary["accuracy"] == 0.5
    assert summary["accepted_accuracy"] == 1.0
    assert summary["errors"] == {"ABORTED": 1}


def test_a_summary_of_nothing_has_no_shares() -> None:
    summary = summarize([], RUN, ENDPOINT, INSTALLATION, {})
    assert summary["accuracy"] is summary["coverage"] is summary["accepted_accuracy"] is None
