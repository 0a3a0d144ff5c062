"""What preflight makes of answers; that it gets them is tested beside the services."""

from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from botocore.exceptions import EndpointConnectionError

from settings import Settings
from tasks import preflight
from tasks.preflight import Finding, batches, clock, findings, images, lambda_concurrency, quotas, rates, role_of

NOW = datetime(2026, 11, 25, tzinfo=UTC)
CHOSEN = Settings(executions_in_flight=50)


@pytest.mark.parametrize(("seconds", "level"), [(0, "ok"), (-299, "ok"), (301, "problem"), (-3600, "problem")])
def test_a_clock_that_aws_refuses_is_a_problem(seconds: int, level: str) -> None:
    assert clock(NOW, NOW + timedelta(seconds=seconds)).level == level


def test_an_image_past_its_end_is_a_warning_and_one_that_is_not_there_a_problem(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before, after = (images(CHOSEN, day) for day in (date(2026, 6, 1), date(2026, 11, 25)))
    assert [each.level for each in before] == ["ok", "ok"]
    assert [each.level for each in after] == ["ok", "warning"]
    assert "/pytorch:2.13-cpu-amzn2023-sagemaker" in after[0].detail
    assert "2026-06-30" in after[1].detail
    assert "SCONES_INFERENCE_CONTAINER=ray-serve" in after[1].hint
    unknown = images(Settings(training_pytorch="9.9.9"), NOW.date())
    assert (unknown[0].level, unknown[0].hint) == ("problem", "choose another with SCONES_TRAINING_PYTORCH")
    assert images(Settings(inference_image="a/b:c"), NOW.date())[1].detail == "a/b:c, patched until an unknown day"
    old = images(Settings(training_pytorch="2.10.0"), date(2027, 2, 1))[0]
    assert (old.level, "pytorch-training:2.10.0-cpu-py313" in old.detail) == ("warning", True)
    maintained = images(Settings(inference_container="ray-serve"), NOW.date())[1]
    assert (maintained.level, "/ray:serve-ml-sagemaker-cpu-v1.4" in maintained.detail) == ("ok", True)


class Answering:
    """In place of a boto3 client whose service no emulator has."""

    def __init__(self, **answers: Any) -> None:
        self._answers = answers

    def get_paginator(self, name: str) -> Any:
        return self

    def paginate(self, **request: Any) -> list[Any]:
        return [self._answers]

    def get_account_settings(self) -> Any:
        return self._answers


def test_quotas_are_compared_with_what_the_settings_need(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = [
        {"QuotaName": "ml.m5.xlarge for training job usage", "Value": 0.0},
        {"QuotaName": "ml.m5.large for endpoint usage", "Value": 3.0},
    ]
    monkeypatch.setattr(preflight, "client", lambda service: Answering(Quotas=listed))
    training, endpoint = quotas(CHOSEN)
    assert (training.level, training.detail) == ("problem", "0 are allowed, and 1 are needed")
    assert "Service Quotas console" in training.hint
    assert endpoint.level == "ok"
    monkeypatch.setattr(preflight, "client", lambda service: Answering(Quotas=[]))
    assert {each.level for each in quotas(CHOSEN)} == {"warning"}


@pytest.mark.parametrize("real", [True, False])
def test_quotas_are_looked_at_where_there_are_some(monkeypatch: pytest.MonkeyPatch, real: bool) -> None:
    def no_answer(service: str) -> Any:
        raise EndpointConnectionError(endpoint_url=f"http://127.0.0.1/{service}")

    monkeypatch.setattr(preflight, "client", no_answer)
    monkeypatch.setattr(preflight, "on_aws", lambda: real)
    monkeypatch.setattr(preflight, "credentials", lambda: [Finding("credentials", "ok", "somebody")])
    for name in ("lambda_concurrency", "permissions", "stacks", "prefect_server"):
        monkeypatch.setattr(preflight, name, lambda *arguments: [])
    found = {each.check: each.level for each in findings(CHOSEN)}
    assert found.get("quotas") == ("warning" if real else None)
    assert ("rate of StartExecution" in found) == real


@pytest.mark.parametrize(
    ("paces", "region", "levels"),
    [
        ((100, 10, 2), "eu-central-1", ["ok", "ok", "ok"]),
        ((300, 15, 4), "us-east-1", ["ok", "ok", "ok"]),
        ((100, 10, 4), "eu-central-1", ["ok", "ok", "warning"]),
        ((200, 15, 2), None, ["warning", "warning", "ok"]),
    ],
)
def test_rates_are_compared_with_the_regions(
    paces: tuple[float, float, float], region: str | None, levels: list[str]
) -> None:
    starts, describes, lists = paces
    found = rates(Settings(starts_per_second=starts, describes_per_second=describes, lists_per_second=lists), region)
    assert [each.level for each in found] == levels
    assert all("SCONES_" in each.hint for each in found if each.level == "warning")


def test_lambda_must_bear_what_is_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit, level in ((10, "problem"), (1000, "ok")):
        answer = Answering(AccountLimit={"ConcurrentExecutions": limit})
        monkeypatch.setattr(preflight, "client", lambda service, answer=answer: answer)
        assert lambda_concurrency(CHOSEN)[0].level == level
    many = lambda_concurrency(Settings(executions_in_flight=1, bulk_concurrency=2000))
    assert [each.level for each in many] == ["ok", "problem"] and "SCONES_BULK_CONCURRENCY to 1000" in many[1].hint


@pytest.mark.parametrize(("concurrency", "level"), [(None, "ok"), (1000, "ok"), (1001, "warning"), (10_000, "warning")])
def test_batches_are_compared_with_the_rate_of_distributed_map(concurrency: int | None, level: str) -> None:
    (found,) = batches(Settings(bulk_concurrency=concurrency))
    assert found.level == level


def test_a_sessions_role_is_what_is_simulated() -> None:
    assert role_of("arn:aws:sts::1:assumed-role/runner/session") == "arn:aws:iam::1:role/runner"
    assert role_of("arn:aws:iam::1:user/someone") == "arn:aws:iam::1:user/someone"
