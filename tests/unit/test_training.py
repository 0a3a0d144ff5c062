"""A training job without AWS: what it is asked for, what is said of it, and how it is stopped."""

from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import ClientError
from sagemaker.core.resources import TrainingJob

from tasks.aws.errors import AwsError
from tasks.model import training
from tasks.run import Log

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


def test_each_job_has_checkpoints_of_its_own_and_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    created: dict[str, Any] = {}
    monkeypatch.setattr(TrainingJob, "create", lambda **given: created.update({given["training_job_name"]: given}))
    monkeypatch.setattr(training, "sdk", dict)
    installation: Any = SimpleNamespace(bucket="bucket", training_role_arn="arn:aws:iam::000000000000:role/train")
    for name in ("job-1", "job-1-2"):
        training._start(name, installation, training.JobPlan("train.py", "s3://bucket/code.tar.gz", {}, {}, ()))
        # Without the slash the first would get what the second saved.
        assert created[name]["checkpoint_config"].s3_uri == f"s3://bucket/checkpoints/{name}/"
        assert created[name]["retry_strategy"].maximum_retry_attempts == 30


def test_the_jobs_own_estimate_is_told_in_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    artifacts = SimpleNamespace(s3_model_artifacts="s3://bucket/model.tar.gz")
    job = SimpleNamespace(
        training_job_status="Completed",
        secondary_status="Completed",
        model_artifacts=artifacts,
        final_metric_data_list=[],
    )
    said = ["member=6/6 epoch=1/84 seconds=28.4", "estimated_seconds=2412 estimated_end=2026-11-29T19:20:31Z"]

    class Tail:
        def __init__(self, group: str, prefix: str, progress: Log) -> None:
            self.progress = progress

        def read(self) -> None:
            while said:
                self.progress(said.pop(0))

    monkeypatch.setattr(training, "LogTail", Tail)
    monkeypatch.setattr(training, "_find", lambda name: job)
    lines: list[str] = []
    training.wait("job", lines.append)
    assert lines[2] == "at the pace of its first epoch the training takes about 40 min, until 19:20 UTC"


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
