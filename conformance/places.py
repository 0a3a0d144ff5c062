"""Where the calls are made: the embedded AWS, or the account that the shell's credentials are of.

Everything that they make is named by one prefix; teardown deletes what has it.
"""

import json
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError
from sagemaker.core import image_uris

from local_aws.standalone import StandaloneAws
from testing.archives import function_zip, tar_gz

ClientOf = Callable[[str], Any]

UNDER_WAY = {"Creating", "Updating", "SystemUpdating", "RollingBack"}
SETTLING_SECONDS = 1200
# What a service says of something that is not there, and need not be deleted.
NOT_THERE = ("Could not find", "not found", "NotFound", "NoSuch", "does not exist", "404")

# Its model takes a moment to load, so that the endpoint is seen while it is created.
INFERENCE = """
import time
def model_fn(model_dir):
    time.sleep(3)
def input_fn(body, content_type):
    return bytes(body).decode() if not isinstance(body, str) else body
def predict_fn(text, model):
    if text == "raise":
        raise ValueError("as it was asked to")
    return text
def output_fn(prediction, accept):
    return '[0.25, 0.75]'
"""
TRAINING = """
import os, pathlib
pathlib.Path(os.environ["SM_MODEL_DIR"], "model.txt").write_text("trained")
print("accuracy=0.5;")
"""
FUNCTION = """
def handler(event, context):
    print("called")
    if "raise" in event:
        raise ValueError(event["raise"])
    return {"size": len(str(event)), "text": "x" * event.get("bytes", 1)}
"""


@contextmanager
def embedded() -> Iterator[tuple[ClientOf, dict[str, Any]]]:
    """Clients and variables of an embedded AWS that is there for this run."""
    with tempfile.TemporaryDirectory() as folder, StandaloneAws(Path(folder)) as aws:
        yield aws.client, variables("provided.al2023", aws.client)


@contextmanager
def account() -> Iterator[tuple[ClientOf, dict[str, Any]]]:
    """The same of the account that the shell's credentials are of."""
    session: Any = boto3.Session()
    clients: dict[str, Any] = {}

    def client_of(service: str) -> Any:
        if service not in clients:
            clients[service] = session.client(service, config=Config(retries={"mode": "standard"}))
        return clients[service]

    yield client_of, variables("python3.13", client_of)


def variables(runtime: str, client_of: ClientOf) -> dict[str, Any]:
    """What calls.yaml names as ${...}: names, ARNs, images and the content of files."""
    prefix = f"conformance-{uuid.uuid4().hex[:8]}"
    region, number = client_of("sts").meta.region_name, client_of("sts").get_caller_identity()["Account"]

    def image(framework: str, scope: str, version: str, python: str | None) -> str:
        return image_uris.retrieve(
            framework, region=region, version=version, py_version=python, instance_type="ml.m5.large", image_scope=scope
        )

    return {
        "prefix": prefix,
        "region": region,
        "account": number,
        "bucket": f"{prefix}-{number}-{region}",
        # https://docs.aws.amazon.com/AmazonS3/latest/API/API_CreateBucket.html: not for us-east-1
        "location": None if region == "us-east-1" else {"LocationConstraint": region},
        "role": f"arn:aws:iam::{number}:role/{prefix}-role",
        "role_without_policy": f"arn:aws:iam::{number}:role/{prefix}-weak",
        "runtime": runtime,
        "training_image": image("pytorch-amzn2023", "training", "2.13", None),
        "inference_image": image("pytorch", "inference", "2.6.0", "py312"),
        "trust": _policy(
            {"Principal": {"Service": [f"{name}.amazonaws.com" for name in ("lambda", "states", "sagemaker")]}},
            "sts:AssumeRole",
        ),
        "may_all": _policy({"Resource": "*"}, "s3:*", "logs:*", "lambda:InvokeFunction", "states:*", "ecr:*"),
        "model": tar_gz({"code/inference.py": INFERENCE}),
        "source": tar_gz({"train.py": TRAINING}),
        "function": function_zip(FUNCTION),
        "large": json.dumps({"text": "x" * 262_144}),
    }


def teardown(client_of: ClientOf, prefix: str, region: str, number: str) -> list[str]:
    """Deletes all that has the prefix, whatever of it is there; returns what could not be deleted."""
    sagemaker, iam, s3 = client_of("sagemaker"), client_of("iam"), client_of("s3")
    left: list[str] = []

    def attempt(what: str, delete: Callable[..., object], *arguments: Any, **named: str) -> None:
        try:
            delete(*arguments, **named)
        except ClientError as error:
            if not any(text in str(error) for text in NOT_THERE):
                left.append(f"{what}: {error}")

    attempt("endpoint", _delete_endpoint, sagemaker, f"{prefix}-endpoint")
    attempt("training job", _stop_job, sagemaker, f"{prefix}-job")
    for suffix in ("config", "other", "next"):
        attempt(f"config {suffix}", sagemaker.delete_endpoint_config, EndpointConfigName=f"{prefix}-{suffix}")
    for suffix in ("model", "packaged"):
        attempt(f"model {suffix}", sagemaker.delete_model, ModelName=f"{prefix}-{suffix}")
    attempt("model packages", _delete_packages, sagemaker, f"{prefix}-group")
    for suffix in ("machine", "map", "denied"):
        arn = f"arn:aws:states:{region}:{number}:stateMachine:{prefix}-{suffix}"
        attempt(arn, client_of("stepfunctions").delete_state_machine, stateMachineArn=arn)
    attempt("function", client_of("lambda").delete_function, FunctionName=f"{prefix}-function")
    attempt("stack", client_of("cloudformation").delete_stack, StackName=f"{prefix}-stack")
    attempt("bucket", _delete_bucket, s3, f"{prefix}-{number}-{region}")
    for role in (f"{prefix}-role", f"{prefix}-weak"):
        attempt(f"policy of {role}", iam.delete_role_policy, RoleName=role, PolicyName="policy")
        attempt(f"role {role}", iam.delete_role, RoleName=role)
    for group in (f"/aws/lambda/{prefix}-function", f"/aws/sagemaker/Endpoints/{prefix}-endpoint"):
        attempt(group, client_of("logs").delete_log_group, logGroupName=group)
    return left


def _delete_endpoint(sagemaker: Any, name: str) -> None:
    """Waits for what is being done to it; AWS deletes only an endpoint that is settled."""
    deadline = time.monotonic() + SETTLING_SECONDS
    while sagemaker.describe_endpoint(EndpointName=name)["EndpointStatus"] in UNDER_WAY:
        if time.monotonic() > deadline:
            break
        time.sleep(1)
    sagemaker.delete_endpoint(EndpointName=name)


def _stop_job(sagemaker: Any, name: str) -> None:
    if sagemaker.describe_training_job(TrainingJobName=name)["TrainingJobStatus"] == "InProgress":
        sagemaker.stop_training_job(TrainingJobName=name)


def _delete_packages(sagemaker: Any, group: str) -> None:
    for package in sagemaker.list_model_packages(ModelPackageGroupName=group)["ModelPackageSummaryList"]:
        sagemaker.delete_model_package(ModelPackageName=package["ModelPackageArn"])
    sagemaker.delete_model_package_group(ModelPackageGroupName=group)


def _delete_bucket(s3: Any, bucket: str) -> None:
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for item in page.get("Contents", []):
            s3.delete_object(Bucket=bucket, Key=item["Key"])
    s3.delete_bucket(Bucket=bucket)


def _policy(about: dict[str, Any], *actions: str) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": {"Effect": "Allow", "Action": list(actions), **about}})
