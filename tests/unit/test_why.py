"""What `scones why` says of an image, of a batch above all."""

import json
from typing import Any

import pytest
from msgspec.structs import replace
from typer.testing import CliRunner

from cli import why
from cli.app import app
from settings import BULK_PREFIX
from tasks.evaluation.results import Result
from tasks.report import story
from tasks.report.history import History, Step
from tests.unit.bucket import MemoryBucket
from tests.unit.results import RESULT
from tests.unit.test_catalogue import INSTALLED, put

BATCH = "arn:aws:states:us-east-1:000000000000:execution:scones-classify-batch/batches:9c6f"
CAUSE = json.dumps({"errorMessage": "the object s3://bucket/incoming/a.png is not there " * 9, "stackTrace": ["line"]})
FAILED = replace(
    RESULT,
    execution_arn=BATCH,
    status="failed",
    predicted_class=None,
    confidence=None,
    error="ImageNotFound",
    cause=CAUSE,
    failed_state="SerializeImageData",
    started="2026-11-27T06:28:55.830+00:00",
    stopped="2026-11-27T06:28:56.040+00:00",
)


def told(monkeypatch: pytest.MonkeyPatch, row: Result, steps: tuple[Step, ...], *options: str, bulk: bool) -> str:
    """Standard output of `scones why` about a row of a run."""
    put(MemoryBucket(monkeypatch), "a" * 12, "2026-11-27", "2026-11-27T06:28:00.000+00:00", bulk=bulk)

    def history_of(inference_id: str, key: str, arn: str, attempt: int) -> History:
        return History(inference_id, key, arn, attempt, steps)

    monkeypatch.setattr("cli.app._installation", lambda aws: pytest.MonkeyPatch.context())
    monkeypatch.setattr(why, "installation", lambda: INSTALLED)
    monkeypatch.setattr(story, "iterate_results", lambda bucket, summary: [row])
    monkeypatch.setattr(story, "history_of", history_of)
    monkeypatch.setattr(story, "_captures", lambda *arguments: ())
    done = CliRunner().invoke(app, ["why", *options, row.key])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_an_image_of_a_batch_has_its_own_time_and_row_and_no_history_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = told(monkeypatch, FAILED, (), bulk=True)
    assert "any more" not in text
    assert f"attempt 1      {BATCH}\n" in text
    assert "2026-11-27T06:28:55.830+00:00  this image           0.21 s" in text
    assert "no history of this batch, and none of a single image of it: see the run's results" in text
    assert f"results        s3://bucket/{BULK_PREFIX}2026-11-27/{'a' * 12}/results/\n" in text


def test_the_states_of_a_batch_are_told_where_they_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = (
        Step("2026-11-27T06:28:54.000+00:00", "TaskStateEntered", "ClassifyBatch", ""),
        Step("2026-11-27T06:28:57.500+00:00", "TaskStateExited", "ClassifyBatch", ""),
    )
    text = told(monkeypatch, FAILED, steps, bulk=True)
    assert "this image           0.21 s" in text and "ClassifyBatch        3.50 s" in text
    assert "no history" not in text


def test_an_execution_that_aws_forgot_is_still_said_to_be_so(monkeypatch: pytest.MonkeyPatch) -> None:
    text = told(monkeypatch, replace(FAILED, execution_arn=RESULT.execution_arn), (), bulk=False)
    assert "Step Functions has no history of it any more" in text and "this image" not in text
    assert f"results        s3://bucket/evaluations/2026-11-27/{'a' * 12}/results.jsonl\n" in text


def test_a_cause_is_told_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    detail = f"error: ImageNotFound; cause: {'it is not there ' * 20}"
    failed = (Step("2026-11-27T06:28:57.500+00:00", "ExecutionFailed", "", detail),)
    text = told(monkeypatch, FAILED, failed, bulk=True)
    assert f"error          ImageNotFound: {json.loads(CAUSE)['errorMessage']}\n" in text
    assert f"ExecutionFailed: {detail}\n" in text


def test_json_has_probabilities_by_class(monkeypatch: pytest.MonkeyPatch) -> None:
    row = replace(RESULT, probabilities=(0.99, 0.01), previous_attempts=(FAILED,))
    found: list[dict[str, Any]] = json.loads(told(monkeypatch, row, (), "--json", bulk=True))
    assert found[0]["result"]["probabilities"] == {"bicycle": 0.99, "motorcycle": 0.01}
    assert found[0]["result"]["previous_attempts"][0]["probabilities"] is None
    assert found[0]["result"]["previous_attempts"][0]["cause"] == CAUSE
