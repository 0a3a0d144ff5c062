"""The habits of AWS that ministack has on demand: lists that lag behind, roles that take a while."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from ministack.core import iam_evaluator
from ministack.services import iam

# Its package reads the environment when it is imported; nothing of it listens anywhere.
from local_aws.ministack import roles, state_machines

TRUST = {"Effect": "Allow", "Principal": {"Service": "sagemaker.amazonaws.com"}, "Action": "sts:AssumeRole"}
ACCOUNT = "000000000000"


def seconds_ago(seconds: float) -> str:
    return (datetime.now(UTC) - timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@pytest.mark.parametrize(
    ("wanted", "listed"),
    [
        (None, [("old", "SUCCEEDED"), ("ended", "RUNNING"), ("running", "RUNNING")]),
        ("RUNNING", [("ended", "RUNNING"), ("running", "RUNNING")]),
        ("SUCCEEDED", [("old", "SUCCEEDED")]),
    ],
)
def test_a_list_is_as_it_was_some_seconds_ago(wanted: str | None, listed: list[tuple[str, str]]) -> None:
    executions = [
        {"name": "old", "status": "SUCCEEDED", "startDate": seconds_ago(99), "stopDate": seconds_ago(50)},
        {"name": "ended", "status": "SUCCEEDED", "startDate": seconds_ago(99), "stopDate": seconds_ago(2)},
        {"name": "running", "status": "RUNNING", "startDate": seconds_ago(99), "stopDate": None},
        {"name": "new", "status": "RUNNING", "startDate": seconds_ago(2), "stopDate": None},
    ]

    def list_executions(data: dict[str, Any]) -> tuple[int, dict[str, str], bytes]:
        return 200, {}, json.dumps({"executions": executions}).encode()

    delayed = state_machines._list_as_it_was(list_executions, 10)
    page = json.loads(delayed({"statusFilter": wanted})[2])
    assert [(each["name"], each["status"]) for each in page["executions"]] == listed


def assume(monkeypatch: pytest.MonkeyPatch, trust: dict[str, Any], delay: float = 0, age: float = 60) -> bool:
    """Whether SageMaker can assume a role of that age with that trust policy."""
    monkeypatch.setattr(iam, "_roles", {"role": {"CreateDate": seconds_ago(age)}})
    trusts = roles._strictly(iam_evaluator.evaluate_trust_policy, delay)
    context = iam_evaluator.EvalContext(
        principal_arn=f"arn:aws:iam::{ACCOUNT}:root",
        principal_type="Root",
        principal_account=ACCOUNT,
        action="sts:AssumeRole",
        resource_arn=f"arn:aws:iam::{ACCOUNT}:role/role",
        region="us-east-1",
        service_context={"sts:rolesessionname": "SageMaker"},
    )
    return trusts(json.dumps({"Version": "2012-10-17", "Statement": trust}), context.principal_arn, context)


def test_a_new_role_can_not_be_assumed_for_some_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not assume(monkeypatch, TRUST, delay=10, age=5)
    assert assume(monkeypatch, TRUST, delay=10, age=15)


def test_a_service_assumes_only_roles_that_trust_it_in_this_account(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not assume(monkeypatch, {**TRUST, "Principal": {"Service": "lambda.amazonaws.com"}})
    assert assume(monkeypatch, {**TRUST, "Principal": {"Service": ["lambda.amazonaws.com", "sagemaker.amazonaws.com"]}})
    for account, trusted in ((ACCOUNT, True), ("111111111111", False)):
        condition = {"StringEquals": {"aws:SourceAccount": account}}
        assert assume(monkeypatch, {**TRUST, "Condition": condition}) == trusted
