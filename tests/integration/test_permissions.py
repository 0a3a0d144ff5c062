"""Every role makes only calls that its policy allows, and its policy names only calls that it makes.

ministack enforces IAM policies, so a missing permission fails the flows below. What was called is read from ministack's
CloudTrail and the SageMaker server's log. A whole installation of its own is run with the flow runner's role.
"""

import hashlib
import json
import re
from collections import defaultdict

import pytest

from local_aws.config import LocalConfig
from tasks.aws.clients import client
from tasks.aws.stacks import stack_outputs
from tests.integration.conftest import run_flow

STACK = "permissions"
SMALL = {
    "SCONES_GENERATED_TEST_PER_CLASS": "2",
    "SCONES_GATE_MIN_ACCURACY": "0",
    # So that one is recommended, and old models are pruned.
    "SCONES_THRESHOLD": "recommended",
    "SCONES_THRESHOLD_TARGET": "0.1",
    "SCONES_RETAINED_VERSIONS": "1",
}
PIPELINE = """
from flows.pipeline import pipeline
from flows.preflight import preflight
from flows.teardown import teardown
from tasks.aws import stacks
from tasks.aws.stacks import installation
from tasks.evaluation import executions
from tasks.model import training
summary = pipeline("generated")
preflight()
pipeline("generated", retrain=True)
# What only a cancelled or failed run calls.
training.stop("permissions-none")
import time
from tasks.aws import storage
machine = installation().state_machine_arn
arn = executions.start(machine, "fails", {"bucket": installation().bucket, "key": "test/none.png"})
while executions.describe(arn).status == "RUNNING":
    time.sleep(0.2)
print("failed in", executions.describe(arn).failed_state)
executions.stop([arn], "test")
print("of a stack:", stacks._failure("permissions"), stacks._failed_validation("permissions"))
storage.put(installation().bucket, "train/stale.png", b"x")
storage.delete_others(installation().bucket, "train/stale", [])
teardown()
print("DONE")
"""
# Made by AWS itself in the role's name, or not to be seen on one machine.
BY_AWS = {
    "ecr:BatchGetImage": "SageMaker pulls the container image",
    "ecr:GetDownloadUrlForLayer": "SageMaker pulls the container image",
    "ecr:BatchCheckLayerAvailability": "SageMaker pulls the container image",
    "ecr:GetAuthorizationToken": "SageMaker pulls the container image",
    "cloudwatch:PutMetricData": "SageMaker publishes the job's metrics",
    "logs:DescribeLogStreams": "SageMaker continues a log stream",
    "lambda:GetFunction": "CloudFormation calls it for the flow runner",
    "lambda:GetFunctionConfiguration": "CloudFormation calls it for the flow runner",
    "lambda:UpdateFunctionConfiguration": "CloudFormation calls it for the flow runner",
    "lambda:GetFunctionCodeSigningConfig": "CloudFormation calls it for the flow runner",
    "lambda:GetRuntimeManagementConfig": "CloudFormation calls it for the flow runner",
    "lambda:GetFunctionRecursionConfig": "CloudFormation calls it for the flow runner",
    "servicequotas:ListServiceQuotas": "Service Quotas is not on this machine; preflight asks for it on AWS",
    "lambda:GetAccountSettings": "preflight, whose call ministack does not record",
    "iam:SimulatePrincipalPolicy": "preflight, whose call ministack does not record",
    "cloudwatch:DescribeAlarms": "SageMaker looks at the alarms that roll an update back",
    "lambda:InvokeFunction": "Step Functions invokes the functions; an execution that ended proves it",
}
BY_LAMBDA = {
    "logs:CreateLogStream": "the Lambda service writes the function's log",
    "logs:PutLogEvents": "the Lambda service writes the function's log",
    "s3:ListBucket": "S3 checks it if an object is missing; ImageNotFound instead of ImageAccessDenied proves it",
}
EVENT_NAMES = {"s3:ListBucket": ["ListObjects", "ListObjectsV2"], "s3:DeleteObject": ["POST.s3", "DeleteObject"]}


@pytest.fixture(scope="module")
def called(stack: LocalConfig) -> dict[str, set[str]]:
    """Actions by role name."""
    prepared = run_flow(
        "from flows.prepare_data import prepare_data; prepare_data('generated')", SCONES_STACK=STACK, **SMALL
    )
    assert prepared.returncode == 0, prepared.stderr
    runner = stack_outputs(STACK)["FlowRunnerRoleArn"]
    credentials = client("sts").assume_role(RoleArn=runner, RoleSessionName="permissions-test")["Credentials"]
    done = run_flow(
        PIPELINE,
        SCONES_STACK=STACK,
        **SMALL,
        AWS_ACCESS_KEY_ID=credentials["AccessKeyId"],
        AWS_SECRET_ACCESS_KEY=credentials["SecretAccessKey"],
        AWS_SESSION_TOKEN=credentials["SessionToken"],
    )
    assert "DONE" in done.stdout, done.stdout + done.stderr
    keys = {credentials["AccessKeyId"]: role_name(runner)} | lambda_keys() | sagemaker_keys(stack)
    calls: dict[str, set[str]] = defaultdict(set)
    for key, action in sagemaker_calls(stack):
        if key in keys:
            calls[keys[key]].add(action)
            if action in ("sagemaker:CreateTrainingJob", "sagemaker:CreateModel"):
                calls[keys[key]].add("iam:PassRole")
    allowed = allowed_actions()
    for key, role in keys.items():
        wanted = allowed.get(role, set()) - calls[role]
        calls[role] |= {action for action in wanted if cloudtrail_has(key, action)}
    return calls


def role_name(arn: str) -> str:
    return arn.rsplit("/", 1)[-1]


def lambda_keys() -> dict[str, str]:
    """ministack derives the access key of a function's session from the function and its role."""
    found = {}
    for page in client("lambda").get_paginator("list_functions").paginate():
        for function in page["Functions"]:
            text = f"{function['FunctionArn']}:{function['Role']}"
            found["ASIA" + hashlib.sha256(text.encode()).hexdigest()[:16].upper()] = role_name(function["Role"])
    return found


def sagemaker_log(stack: LocalConfig) -> str:
    return (stack.state / "logs" / "sagemaker.log").read_text()


def sagemaker_keys(stack: LocalConfig) -> dict[str, str]:
    pairs = re.findall(r"acting as (\S+) with access key (\S+)", sagemaker_log(stack))
    return {key: role_name(arn) for arn, key in pairs}


def sagemaker_calls(stack: LocalConfig) -> list[tuple[str, str]]:
    requests = [json.loads(text) for text in re.findall(r"request (\{.*\})", sagemaker_log(stack))]
    return [(request["access_key"], f"sagemaker:{request['operation']}") for request in requests]


def cloudtrail_has(key: str, action: str) -> bool:
    """Whether ministack recorded the call. It names some calls by their HTTP method, and answers at most 50 events."""
    service, name = action.split(":")
    for event_name in EVENT_NAMES.get(action, [f"POST.{service}" if service == "cloudformation" else name]):
        wanted = {"AccessKeyId": key, "EventName": event_name}
        attributes = [{"AttributeKey": field, "AttributeValue": value} for field, value in wanted.items()]
        for event in client("cloudtrail").lookup_events(LookupAttributes=attributes, MaxResults=50)["Events"]:
            parameters = json.loads(event["CloudTrailEvent"]).get("requestParameters") or {}
            if parameters.get("Action", name) == name:
                return True
    return False


def allowed_actions() -> dict[str, set[str]]:
    """Actions of the inline policies by logical id, and the physical role name of each."""
    found: dict[str, set[str]] = {}
    for resource in client("cloudformation").describe_stack_resources(StackName=STACK)["StackResources"]:
        if resource["ResourceType"] != "AWS::IAM::Role":
            continue
        name = resource["PhysicalResourceId"].rsplit("/", 1)[-1]
        actions: set[str] = set()
        for policy in client("iam").list_role_policies(RoleName=name)["PolicyNames"]:
            document = client("iam").get_role_policy(RoleName=name, PolicyName=policy)["PolicyDocument"]
            for statement in document["Statement"]:
                named = statement["Action"]
                actions |= set(named if isinstance(named, list) else [named])
        found[name] = actions
    return found


def test_every_call_to_sagemaker_is_allowed(called: dict[str, set[str]]) -> None:
    """The SageMaker server does not enforce policies; ministack does for all other services."""
    for role, allowed in allowed_actions().items():
        assert {action for action in called[role] if action.startswith("sagemaker:")} <= allowed, role


def test_no_policy_names_a_call_that_is_never_made(called: dict[str, set[str]]) -> None:
    roles = allowed_actions()
    assert len(roles) == 7
    for role, allowed in roles.items():
        made = called[role]
        exempt = set(BY_AWS)
        if "Image" in role or "Filter" in role:
            exempt |= set(BY_LAMBDA)
        assert allowed - exempt <= made, f"{role} never calls {sorted(allowed - exempt - made)}"
        if "StateMachine" not in role and "Filter" not in role:
            assert made, f"nothing was recorded of {role}"
