"""A training job that is to stop: what is tried again, what is left alone, and what is said."""

from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tasks.aws.errors import AwsError
from tasks.model import training

Codes = list[str]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> tuple[Codes, Codes]:
    """Error codes that SageMaker is to answer with, and the jobs that it was asked to stop."""
    codes: Codes = []
    names: Codes = []

    def stop_training_job(TrainingJobName: str) -> None:  # noqa: N803 the API's name
        names.append(TrainingJobName)
        if codes:
            response: Any = {"Error": {"Code": codes.pop(0), "Message": "no"}}
            raise ClientError(response, "StopTrainingJob")

    monkeypatch.setattr(training, "client", lambda service: SimpleNamespace(stop_training_job=stop_training_job))
    return codes, names


def test_a_stop_is_tried_again_while_aws_is_busy(asked: tuple[Codes, Codes]) -> None:
    codes, names = asked
    codes += ["ThrottlingException", "RequestLimitExceeded"]
    training.stop("job")
    assert names == ["job"] * 3


def test_a_job_that_has_ended_or_is_gone_is_left_alone(asked: tuple[Codes, Codes]) -> None:
    """Which SageMaker answers with the same code: https://github.com/aws/aws-sdk/issues/165."""
    codes, names = asked
    codes.append("ValidationException")
    training.stop("job")
    assert names == ["job"]


def test_a_cancelled_run_says_what_it_could_not_stop(
    asked: tuple[Codes, Codes], monkeypatch: pytest.MonkeyPatch
) -> None:
    codes, _ = asked
    codes.append("AccessDeniedException")
    lines: list[str] = []
    monkeypatch.setattr(training, "is_cancelled", lambda: True)
    with pytest.raises(KeyboardInterrupt), training._stopped_on_cancel("job", lines.append):
        raise KeyboardInterrupt
    assert lines[0] == "cancelled: stopping training job job"
    assert "stop training job job: AccessDeniedException" in lines[1] and "the job goes on" in lines[1]


def test_a_process_that_is_stopped_leaves_its_job_alone(
    asked: tuple[Codes, Codes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by `make down`: the flow run attaches to the job when it goes on. Only a person's cancellation stops it."""
    _, names = asked
    monkeypatch.setattr(training, "is_cancelled", lambda: False)
    with pytest.raises(KeyboardInterrupt), training._stopped_on_cancel("job", print):
        raise KeyboardInterrupt
    assert names == []


def test_after_an_error_the_job_goes_on(asked: tuple[Codes, Codes]) -> None:
    _, names = asked
    with pytest.raises(AwsError), training._stopped_on_cancel("job", print):
        raise AwsError("the log can't be read")
    assert names == []
