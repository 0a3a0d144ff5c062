"""The pipeline runs twice on an AWS at its least convenient, with the flow runner's role.

Every role makes only calls that its policy allows, or the flows below would fail, and its policy names only calls that
it makes. What was called is read from ministack's CloudTrail and the SageMaker server's log.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import IO, Any, Self

import pytest
from botocore.exceptions import ClientError

from local_aws.config import ROOT, LocalConfig
from local_aws.environment import aws_variables
from local_aws.standalone import StandaloneAws
from testing.waiting import eventually
from tests.integration.conftest import run_flow

# The pipeline runs twice, slowed down, and once more for an evaluation.
pytestmark = pytest.mark.timeout(1800)
STACK = "permissions"
SMALL = {
    "SCONES_STACK": STACK,
    "SCONES_GENERATED_TEST_PER_CLASS": "2",
    "SCONES_GATE_MIN_ACCURACY": "0",
    # So that one is recommended, and old models are pruned.
    "SCONES_THRESHOLD": "recommended",
    "SCONES_THRESHOLD_TARGET": "0.1",
    "SCONES_RETAINED_VERSIONS": "1",
    # Longer than a record takes; one that is lost is waited for in vain.
    "SCONES_CAPTURE_MAX_SECONDS": "12",
    "SCONES_SMOKE_CAPTURE_SECONDS": "12",
    "SCONES_ENDPOINT_MAX_INSTANCES": "2",
    # Every door is closed.
    "SCONES_KMS_KEY": "arn:aws:kms:us-east-1:000000000000:key/scones",
    "SCONES_VPC_SUBNETS": "subnet-0a1b2c3d",
    "SCONES_VPC_SECURITY_GROUPS": "sg-0a1b2c3d",
    **{
        f"SCONES_{name}": "true"
        for name in (
            "FUNCTIONS_IN_VPC",
            "NETWORK_ISOLATION",
            "ACCESS_LOGS",
            "STATE_MACHINE_LOGS",
            "TRACING",
            "ALARMS",
            "TRAINING_SPOT",
        )
    },
}
# AWS at its least convenient: records late or lost, lists late, models not up, roles that take a while, throttling.
HABITS = "--capture-delay 5 --capture-loss 0.3 --worker-delay 4 --calls-per-second 20"
DELAYS = {"SCONES_LIST_DELAY": "3", "SCONES_ROLE_DELAY": "5"}
PIPELINE = """
from flows.pipeline import pipeline
from flows.preflight import preflight
from flows.teardown import teardown
from tasks.aws import stacks
from tasks.aws.stacks import installation
from tasks.evaluation import executions
from tasks.model import training
from tasks.serving.endpoint import find
pipeline("generated")
print("FIRST", find(installation().endpoint).endpoint_config_name, flush=True)
preflight()
pipeline("generated", retrain=True)
from flows.classify_images import classify_images
print("BULK", classify_images(prefix="test/", return_state=True), flush=True)
print("SECOND", find(installation().endpoint).endpoint_config_name, flush=True)
input()
# An endpoint that stands at night only.
import os
from tasks.serving import scaling
scaling.stop_scaling(installation().endpoint, print)
from flows.nightly_evaluation import nightly_evaluation
from settings import settings
from tasks.serving.endpoint import delete_endpoint
delete_endpoint(installation().endpoint)
os.environ |= {"SCONES_ENDPOINT_SCHEDULE": "night", "SCONES_ENDPOINT_LINGER_SECONDS": "8"}
settings.cache_clear()
print("NIGHT", nightly_evaluation(return_state=True).name, find(installation().endpoint), flush=True)
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
    "logs:CreateLogDelivery": "Step Functions logs executions",
    "logs:GetLogDelivery": "Step Functions logs executions",
    "logs:UpdateLogDelivery": "Step Functions logs executions",
    "logs:DeleteLogDelivery": "Step Functions logs executions",
    "logs:ListLogDeliveries": "Step Functions logs executions",
    "logs:PutResourcePolicy": "Step Functions logs executions",
    "logs:DescribeResourcePolicies": "Step Functions logs executions",
    "logs:DescribeLogGroups": "Step Functions logs executions",
    "logs:DescribeLogStreams": "SageMaker continues a log stream",
    "sagemaker:UpdateEndpointWeightsAndCapacities": "Application Auto Scaling calls it for the flow runner",
    "cloudwatch:PutMetricAlarm": "Application Auto Scaling calls it for the flow runner",
    "cloudwatch:DeleteAlarms": "Application Auto Scaling calls it for the flow runner",
    "iam:CreateServiceLinkedRole": "Application Auto Scaling calls it for the flow runner, once in an account",
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
# Of which every action is AWS's own: instances and functions join a VPC, traces are written, a key is used.
SERVICES_OF_AWS = ("ec2", "xray", "kms")
BY_LAMBDA = {
    "logs:CreateLogStream": "the Lambda service writes the function's log",
    "logs:PutLogEvents": "the Lambda service writes the function's log",
    "s3:ListBucket": "S3 checks it if an object is missing; ImageNotFound instead of ImageAccessDenied proves it",
}
# What a Distributed Map does in its role's name; the embedded AWS refuses a role that may not.
BY_STEP_FUNCTIONS = {
    "states:StartExecution",
    "states:DescribeExecution",
    "states:StopExecution",
    "s3:GetObject",
    "s3:PutObject",
    "s3:ListMultipartUploadParts",
    "s3:AbortMultipartUpload",
}
EVENT_NAMES = {"s3:ListBucket": ["ListObjects", "ListObjectsV2"], "s3:DeleteObject": ["POST.s3", "DeleteObject"]}


@dataclass
class Installation:
    """An installation whose pipeline ran twice with the flow runner's role, on an AWS of its own."""

    aws: StandaloneAws
    output: str
    # How the executions ended that classified an image all the while the second version was trained and deployed.
    endings: Counter[str]
    # Actions by role name: those that were called, and those that its policies allow.
    called: dict[str, set[str]]
    allowed: dict[str, set[str]]


@pytest.fixture(scope="module")
def ran(stack: LocalConfig) -> Iterator[Installation]:
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory() as folder,
    ):
        for name, value in DELAYS.items():
            patch.setenv(name, value)
        with StandaloneAws(Path(folder), *HABITS.split()) as aws:
            yield run_pipelines(aws, aws_variables(aws.config) | SMALL)


def run_pipelines(aws: StandaloneAws, environment: dict[str, str]) -> Installation:
    prepared = run_flow("from flows.prepare_data import prepare_data; prepare_data('generated')", **environment)
    assert prepared.returncode == 0, prepared.stderr
    outputs = aws.client("cloudformation").describe_stacks(StackName=STACK)["Stacks"][0]["Outputs"]
    values = {each["OutputKey"]: each["OutputValue"] for each in outputs}
    runner = values["FlowRunnerRoleArn"]
    credentials = eventually(lambda: assume(aws, runner))
    flows = subprocess.Popen(
        [sys.executable, "-c", PIPELINE],
        cwd=ROOT,
        env=os.environ
        | environment
        | {
            "AWS_ACCESS_KEY_ID": credentials["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": credentials["SecretAccessKey"],
            "AWS_SESSION_TOKEN": credentials["SessionToken"],
        },
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert flows.stdin and flows.stdout
    try:
        lines = read_until(flows.stdout, "FIRST")
        bucket = aws.client("cloudformation").describe_stacks(StackName=f"{STACK}-storage")["Stacks"][0]["Outputs"]
        with Executions(aws, values["StateMachineArn"], bucket[0]["OutputValue"]) as executions:
            lines += read_until(flows.stdout, "SECOND")
        endings = executions.endings()
        allowed = allowed_actions(aws)
        keys = {credentials["AccessKeyId"]: role_name(runner)} | lambda_keys(aws) | sagemaker_keys(aws)
        flows.stdin.write("go on\n")
        flows.stdin.flush()
        lines += read_until(flows.stdout, "DONE")
    finally:
        flows.kill()
        flows.communicate()
    return Installation(aws, "".join(lines), endings, called_actions(aws, keys, allowed), allowed)


def assume(aws: StandaloneAws, role: str) -> dict[str, str] | None:
    """Credentials of a role; None if it is too new."""
    try:
        session: dict[str, str] = aws.client("sts").assume_role(RoleArn=role, RoleSessionName="test")["Credentials"]
    except ClientError:
        return None
    return session


def read_until(output: IO[str], beginning: str) -> list[str]:
    """The lines up to the one that begins so."""
    lines = []
    for line in output:
        lines.append(line)
        if line.startswith(beginning):
            return lines
    raise AssertionError(f"no line begins with {beginning}: {''.join(lines)}")


class Executions:
    """Classifies a test image every second, by executions of their own."""

    def __init__(self, aws: StandaloneAws, machine: str, bucket: str) -> None:
        self._client, self._machine = aws.client("stepfunctions"), machine
        key = aws.client("s3").list_objects_v2(Bucket=bucket, Prefix="test/", MaxKeys=1)["Contents"][0]["Key"]
        self._input = json.dumps({"bucket": bucket, "key": key})
        self._started: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(1):
            started = self._client.start_execution(
                stateMachineArn=self._machine, name=f"load-{len(self._started)}", input=self._input
            )
            self._started.append(started["executionArn"])

    def endings(self) -> Counter[str]:
        """How many succeeded, and how many ended in which error."""
        described = [eventually(partial(self._ended, arn)) for arn in self._started]
        return Counter(each.get("error", each["status"]) for each in described)

    def _ended(self, arn: str) -> dict[str, Any] | None:
        found: dict[str, Any] = self._client.describe_execution(executionArn=arn)
        return found if found["status"] != "RUNNING" else None


def called_actions(aws: StandaloneAws, keys: dict[str, str], allowed: dict[str, set[str]]) -> dict[str, set[str]]:
    """Actions by role name, from the SageMaker server's log and ministack's CloudTrail."""
    calls: dict[str, set[str]] = defaultdict(set)
    for key, action in sagemaker_calls(aws):
        if key in keys:
            calls[keys[key]].add(action)
            if action in ("sagemaker:CreateTrainingJob", "sagemaker:CreateModel"):
                calls[keys[key]].add("iam:PassRole")
    cloudtrail = aws.client("cloudtrail")
    for key, role in keys.items():
        wanted = allowed.get(role, set()) - calls[role] - set(BY_AWS)
        calls[role] |= {action for action in wanted if cloudtrail_has(cloudtrail, key, action)}
    return calls


def role_name(arn: str) -> str:
    return arn.rsplit("/", 1)[-1]


def lambda_keys(aws: StandaloneAws) -> dict[str, str]:
    """ministack derives the access key of a function's session from the function and its role."""
    found = {}
    for page in aws.client("lambda").get_paginator("list_functions").paginate():
        for function in page["Functions"]:
            text = f"{function['FunctionArn']}:{function['Role']}"
            found["ASIA" + hashlib.sha256(text.encode()).hexdigest()[:16].upper()] = role_name(function["Role"])
    return found


def sagemaker_log(aws: StandaloneAws) -> str:
    return (aws.config.state / "logs" / "sagemaker.log").read_text()


def sagemaker_keys(aws: StandaloneAws) -> dict[str, str]:
    pairs = re.findall(r"acting as (\S+) with access key (\S+)", sagemaker_log(aws))
    return {key: role_name(arn) for arn, key in pairs}


def sagemaker_calls(aws: StandaloneAws) -> list[tuple[str, str]]:
    """Access key and action; a Create call with tags is also a call of AddTags, as AWS authorizes it."""
    calls = []
    for text in re.findall(r"request (\{.*\})", sagemaker_log(aws)):
        request = json.loads(text)
        calls.append((request["access_key"], f"{request['service']}:{request['operation']}"))
        if request["operation"].startswith("Create") and request["tagged"]:
            calls.append((request["access_key"], "sagemaker:AddTags"))
    return calls


def cloudtrail_has(cloudtrail: Any, key: str, action: str) -> bool:
    """Whether ministack recorded the call. It names some calls by their HTTP method."""
    service, name = action.split(":")
    for event_name in EVENT_NAMES.get(action, [f"POST.{service}" if service == "cloudformation" else name]):
        for event in cloudtrail_events(cloudtrail, {"AccessKeyId": key, "EventName": event_name}):
            parameters = json.loads(event["CloudTrailEvent"]).get("requestParameters") or {}
            if parameters.get("Action", name) == name:
                return True
    return False


def cloudtrail_events(cloudtrail: Any, wanted: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Events with these attributes, newest first; ministack answers at most 50 of a call, and has no next page."""
    attributes = [{"AttributeKey": field, "AttributeValue": value} for field, value in wanted.items()]
    end = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=1)
    while True:
        found = cloudtrail.lookup_events(LookupAttributes=attributes, EndTime=end, MaxResults=50)["Events"]
        yield from found
        if len(found) < 50:
            return
        # A request carries whole seconds, so the second of the oldest event is asked for again.
        oldest = found[-1]["EventTime"].astimezone(UTC).replace(microsecond=0) + timedelta(seconds=1)
        end = oldest if oldest < end else end - timedelta(seconds=1)


def allowed_actions(aws: StandaloneAws) -> dict[str, set[str]]:
    """Actions of the inline policies by logical id, and the physical role name of each."""
    found: dict[str, set[str]] = {}
    iam = aws.client("iam")
    for resource in aws.client("cloudformation").describe_stack_resources(StackName=STACK)["StackResources"]:
        if resource["ResourceType"] != "AWS::IAM::Role":
            continue
        name = resource["PhysicalResourceId"].rsplit("/", 1)[-1]
        actions: set[str] = set()
        for policy in iam.list_role_policies(RoleName=name)["PolicyNames"]:
            document = iam.get_role_policy(RoleName=name, PolicyName=policy)["PolicyDocument"]
            for statement in document["Statement"]:
                named = statement["Action"]
                actions |= set(named if isinstance(named, list) else [named])
        found[name] = actions
    return found


def test_two_versions_in_a_row_pass_at_aws_s_worst(ran: Installation) -> None:
    first, second = re.findall(r"(?m)^(?:FIRST|SECOND) permissions-(v\d+)-", ran.output)
    assert (first, second) == ("v1", "v2")
    assert len(re.findall(r"Flow run 'pipeline .* - Finished in state Passed\(", ran.output)) == 2, ran.output
    bulk = re.search(r"(?m)^BULK (.*)", ran.output)
    assert bulk and "images accepted" in bulk[1] and " 0 failed" in bulk[1], bulk
    # Nobody's image failed while the second version took the first one's place.
    assert set(ran.endings) <= {"SUCCEEDED", "LowConfidence"}, ran.endings
    assert ran.endings.total() > 10


def test_with_every_door_closed_and_an_endpoint_at_night_only(ran: Installation) -> None:
    sagemaker = ran.aws.client("sagemaker")
    jobs = sagemaker.list_training_jobs(NameContains=STACK)["TrainingJobSummaries"]
    assert jobs
    for summary in jobs:
        job = sagemaker.describe_training_job(TrainingJobName=summary["TrainingJobName"])
        assert job["EnableNetworkIsolation"] and job["VpcConfig"]["Subnets"] == ["subnet-0a1b2c3d"]
        assert job["OutputDataConfig"]["KmsKeyId"] == job["ResourceConfig"]["VolumeKmsKeyId"] == SMALL["SCONES_KMS_KEY"]
    assert re.search(r"(?m)^NIGHT (Passed|Missed) None$", ran.output), ran.output[-3000:]


def test_every_call_was_authorized(ran: Installation) -> None:
    """A call that the policies do not allow would have failed; what they do not name was not made either."""
    for role, allowed in ran.allowed.items():
        assert {action for action in ran.called[role] if action.startswith("sagemaker:")} <= allowed, role
    assert "AccessDenied" not in sagemaker_log(ran.aws)


def test_no_policy_names_a_call_that_is_never_made(ran: Installation) -> None:
    assert len(ran.allowed) == 10
    for role, allowed in ran.allowed.items():
        if "ReviewerRole" in role:  # test_review.py has somebody review with it
            continue
        made = ran.called[role]
        exempt = set(BY_AWS) | {action for action in allowed if action.split(":")[0] in SERVICES_OF_AWS}
        if "Image" in role or "Filter" in role or "BatchRole" in role:
            exempt |= set(BY_LAMBDA)
        if "BatchStateMachine" in role:
            exempt |= BY_STEP_FUNCTIONS
        assert allowed - exempt <= made, f"{role} never calls {sorted(allowed - exempt - made)}"
        if "StateMachine" not in role and "Filter" not in role:
            assert made, f"nothing was recorded of {role}"
