from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoRegionError

from settings import settings
from tasks.aws import storage
from tasks.aws.clients import ignore_existing, retry_transient
from tasks.aws.errors import AwsError, translate_aws_errors
from tasks.evaluation import executions


def refusal(code: str, message: str) -> ClientError:
    return ClientError({"Error": {"Code": code, "Message": message}}, "CreateTrainingJob")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            refusal("ExpiredToken", "The security token included in the request is expired"),
            "is expired; the credentials have expired: sign in again",
        ),
        (
            refusal("ResourceLimitExceeded", "'ml.m5.xlarge for training job usage' is 0"),
            "ml.m5.xlarge .* higher quota",
        ),
        (refusal("AccessDeniedException", "not authorized"), "flow runner's role"),
        (EndpointConnectionError(endpoint_url="http://127.0.0.1:9"), "Cannot reach AWS"),
        (NoRegionError(), "set AWS credentials and a region"),
    ],
)
def test_errors_of_aws_say_what_to_do(error: Exception, text: str) -> None:
    with pytest.raises(AwsError, match=f"train: .*{text}"), translate_aws_errors("train"):
        raise error


def failing(code: str, times: int, status: int = 400) -> Any:
    """A call that fails so often with that code, and then answers."""
    calls: list[int] = []

    def call() -> int:
        calls.append(1)
        if len(calls) <= times:
            response: Any = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
            raise ClientError(response, "Operation")
        return len(calls)

    return call


@pytest.mark.parametrize(("code", "status"), [("ThrottlingException", 400), ("SlowDown", 503), ("Anything", 500)])
def test_what_passes_is_waited_out(code: str, status: int) -> None:
    assert retry_transient("try", failing(code, 2, status)) == 3


def test_a_missing_permission_fails_at_once() -> None:
    call = failing("AccessDeniedException", 1)
    with pytest.raises(AwsError, match="try: AccessDeniedException"):
        retry_transient("try", call)
    assert call() == 2  # it had been called once


def test_an_outage_that_lasts_too_long_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings(), "outage_max_seconds", 0)
    with pytest.raises(AwsError, match="try: ThrottlingException"):
        retry_transient("try", failing("ThrottlingException", 99))


def test_a_broken_connection_is_waited_out() -> None:
    calls: list[int] = []

    def call() -> int:
        calls.append(1)
        if len(calls) < 2:
            raise EndpointConnectionError(endpoint_url="https://nowhere")
        return len(calls)

    assert retry_transient("try", call) == 2


@pytest.mark.parametrize("code", ["ResourceInUse", "ValidationException"])
def test_what_is_there_already_was_created_by_an_earlier_try(code: str) -> None:
    def create() -> None:
        response: Any = {"Error": {"Code": code, "Message": "Cannot create already existing endpoint"}}
        raise ClientError(response, "CreateEndpoint")

    ignore_existing(create)


def test_what_can_not_be_created_is_an_error() -> None:
    with pytest.raises(ClientError):
        ignore_existing(failing("ValidationException", 1))


def test_a_pace_lets_a_burst_through_and_then_keeps_to_its_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        now[0] += seconds

    monkeypatch.setattr(executions, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    pace = executions._Pace(per_second=10)
    for _ in range(executions.BURST):
        pace.wait()
    assert slept == []
    for _ in range(20):
        pace.wait()
    assert now[0] == pytest.approx(2.0, abs=0.2)


@pytest.mark.parametrize(
    ("endpoint", "region", "address"),
    [
        (
            "https://s3.eu-central-1.amazonaws.com",
            "eu-central-1",
            "https://eu-central-1.console.aws.amazon.com/s3/object/ours?region=eu-central-1&prefix=reports%2Fa+b%26c.html",
        ),
        (
            "https://s3.cn-north-1.amazonaws.com.cn",
            "cn-north-1",
            "https://cn-north-1.console.amazonaws.cn/s3/object/ours?region=cn-north-1&prefix=reports%2Fa+b%26c.html",
        ),
        ("https://127.0.0.1:4567", "us-east-1", None),
        ("https://amazonaws.com.evil.example", "us-east-1", None),
    ],
)
def test_an_object_is_opened_in_the_console_of_its_partition(
    monkeypatch: pytest.MonkeyPatch, endpoint: str, region: str, address: str | None
) -> None:
    meta = SimpleNamespace(region_name=region, endpoint_url=endpoint)
    monkeypatch.setattr(storage, "client", lambda service: SimpleNamespace(meta=meta))
    assert storage.console_address("ours", "reports/a b&c.html") == address
