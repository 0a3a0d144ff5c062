"""What Step Functions refuses on AWS is refused here too."""

import json
import uuid
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from local_aws.config import LocalConfig
from tasks.aws.clients import client
from testing.archives import function_zip
from testing.waiting import eventually

RETURNS = """
def handler(event, context):
    print("called")
    return "x" * event["bytes"]
"""
LIMIT = 262_144
TRUST = {"Effect": "Allow", "Principal": {"Service": ["lambda.amazonaws.com", "states.amazonaws.com"]}}


@pytest.fixture(scope="module")
def function(stack: LocalConfig) -> Iterator[str]:
    """The ARN of a function that returns as many bytes as it is told."""
    name = f"returns-{uuid.uuid4().hex[:8]}"
    arn: str = client("lambda").create_function(
        FunctionName=name,
        Runtime="provided.al2023",
        Handler="function.handler",
        Role=role(),
        Code={"ZipFile": function_zip(RETURNS)},
    )["FunctionArn"]
    yield arn
    client("lambda").delete_function(FunctionName=name)


def role(*allowed: str, resource: str = "*") -> str:
    name = f"test-{uuid.uuid4().hex[:8]}"
    trust = json.dumps({"Version": "2012-10-17", "Statement": {**TRUST, "Action": "sts:AssumeRole"}})
    arn: str = client("iam").create_role(RoleName=name, AssumeRolePolicyDocument=trust)["Role"]["Arn"]
    if allowed:
        statement = {"Effect": "Allow", "Action": list(allowed), "Resource": resource}
        document = json.dumps({"Version": "2012-10-17", "Statement": statement})
        client("iam").put_role_policy(RoleName=name, PolicyName="policy", PolicyDocument=document)
    return arn


def run(role_arn: str, function: str, size: int, **state: Any) -> dict[str, Any]:
    """The ended execution of a machine that invokes the function once."""
    task = {
        "Type": "Task",
        "Resource": "arn:aws:states:::lambda:invoke",
        "Arguments": {"FunctionName": function, "Payload": {"bytes": size}},
        "Output": "{% $states.result.Payload %}",
        "End": True,
        **state,
    }
    caught = {"Type": "Pass", "Output": "caught", "End": True}
    definition = {"QueryLanguage": "JSONata", "StartAt": "Call", "States": {"Call": task, "Caught": caught}}
    machine = client("stepfunctions").create_state_machine(
        name=f"test-{uuid.uuid4().hex[:8]}", definition=json.dumps(definition), roleArn=role_arn
    )["stateMachineArn"]
    arn = client("stepfunctions").start_execution(stateMachineArn=machine, input="{}")["executionArn"]

    def ended() -> dict[str, Any] | None:
        found: dict[str, Any] = client("stepfunctions").describe_execution(executionArn=arn)
        return found if found["status"] != "RUNNING" else None

    execution: dict[str, Any] = eventually(ended)
    client("stepfunctions").delete_state_machine(stateMachineArn=machine)
    return execution


def test_a_function_is_invoked_only_in_the_name_of_a_role_that_may(function: str) -> None:
    allowed = run(role("lambda:InvokeFunction", resource=function), function, 3)
    assert (allowed["status"], allowed.get("output")) == ("SUCCEEDED", '"xxx"'), allowed
    for arn in (role("logs:PutLogEvents"), role("lambda:InvokeFunction", resource=f"{function}-2")):
        refused = run(arn, function, 3)
        assert (refused["status"], refused["error"]) == ("FAILED", "Lambda.AWSLambdaException")
        assert f"is not authorized to perform: lambda:InvokeFunction on resource: {function}" in refused["cause"]
        assert f"assumed-role/{arn.rsplit('/')[-1]}/" in refused["cause"]


def test_a_result_of_too_many_bytes_ends_the_execution(function: str) -> None:
    may = role("lambda:InvokeFunction", resource=function)
    # The two quotation marks of the JSON count, and what lambda:invoke answers besides the function's own result.
    assert run(may, function, LIMIT - 200)["status"] == "SUCCEEDED"
    catch = [{"ErrorEquals": ["States.ALL"], "Next": "Caught"}]
    large = run(may, function, LIMIT, Catch=catch)
    assert (large["status"], large["error"]) == ("FAILED", "States.DataLimitExceeded")


def test_an_input_of_too_many_bytes_starts_nothing(installed: Any) -> None:
    with pytest.raises(ClientError, match=f"length less than or equal to {LIMIT}") as raised:
        client("stepfunctions").start_execution(
            stateMachineArn=installed.state_machine_arn, input=json.dumps({"key": "x" * LIMIT})
        )
    assert raised.value.response["Error"]["Code"] == "ValidationException"


def test_metrics_are_put_only_into_the_namespace_that_a_policy_names(installed: Any) -> None:
    arn = role("cloudwatch:PutMetricData")
    name, condition = arn.rsplit("/")[-1], {"StringEquals": {"cloudwatch:namespace": "Scones"}}
    statement = {"Effect": "Allow", "Action": "cloudwatch:PutMetricData", "Resource": "*", "Condition": condition}
    document = json.dumps({"Version": "2012-10-17", "Statement": statement})
    client("iam").put_role_policy(RoleName=name, PolicyName="policy", PolicyDocument=document)
    trust = {"Effect": "Allow", "Principal": {"AWS": arn.split(":")[4]}, "Action": "sts:AssumeRole"}
    trusts = json.dumps({"Version": "2012-10-17", "Statement": trust})
    client("iam").update_assume_role_policy(RoleName=name, PolicyDocument=trusts)
    session = eventually(lambda: client("sts").assume_role(RoleArn=arn, RoleSessionName="test")["Credentials"])
    metrics = boto3.Session().client(
        "cloudwatch",
        aws_access_key_id=session["AccessKeyId"],
        aws_secret_access_key=session["SecretAccessKey"],
        aws_session_token=session["SessionToken"],
    )
    metrics.put_metric_data(Namespace="Scones", MetricData=[{"MetricName": "Age", "Value": 1}])
    with pytest.raises(ClientError, match="AccessDenied"):
        metrics.put_metric_data(Namespace="Other", MetricData=[{"MetricName": "Age", "Value": 1}])
