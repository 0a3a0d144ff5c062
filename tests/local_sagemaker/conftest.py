"""The SageMaker server with ministack beside it and nothing else, started once for these tests."""

import copy
import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.exceptions import ClientError

from local_aws.environment import REGION
from local_aws.standalone import StandaloneAws
from testing.archives import tar_gz
from testing.waiting import eventually

BUCKET = "sagemaker-tests"
TRAINING_IMAGE = "763104351884.dkr.ecr.us-east-1.amazonaws.com/pytorch-training:2.10.0-cpu-py313"
INFERENCE_IMAGE = "763104351884.dkr.ecr.us-east-1.amazonaws.com/pytorch-inference:2.6.0-cpu-py312"
# A model whose body says what it is to do.
ACTOR = """
import json, os, time
def model_fn(model_dir):
    return os.environ.get("ANSWER", "")
def input_fn(body, content_type, context):
    return (body if isinstance(body, str) else bytes(body).decode(errors="replace"), content_type)
def predict_fn(data, model, context):
    body, content_type = data
    order, _, argument = body.partition(" ")
    began = time.time()
    if order == "sleep":
        time.sleep(float(argument))
    if order == "raise":
        raise ValueError(argument)
    if order == "die":
        os._exit(9)
    if order == "large":
        return "x" * int(argument)
    return {"body": body, "content_type": content_type, "model": model, "process": os.getpid(), "began": began,
            "ended": time.time()}
def output_fn(prediction, accept, context):
    attributes = context.get_request_header(0, "X-Amzn-SageMaker-Custom-Attributes")
    if attributes == "answer me":
        context.set_response_header(0, "X-Amzn-SageMaker-Custom-Attributes", "answered")
    if accept == "text/csv":
        return "1,2,3", "text/csv"
    return json.dumps(prediction), "application/json"
"""


class Server:
    """The servers, a bucket, a role that may use it, and what most tests begin with."""

    def __init__(self, aws: StandaloneAws) -> None:
        self.aws = aws
        self._use(aws.config.sagemaker_url)
        self.s3 = aws.client("s3")
        self.logs = aws.client("logs")
        self.s3.create_bucket(Bucket=BUCKET)
        self.role = aws.create_role("sagemaker")

    def _use(self, url: str) -> None:
        self.sagemaker = self.aws.client("sagemaker", url)
        self.unchecked = self.aws.client(
            "sagemaker", url, parameter_validation=False, retries={"total_max_attempts": 1}
        )
        self.runtime = self.aws.client(
            "sagemaker-runtime", url, max_pool_connections=32, retries={"mode": "standard", "total_max_attempts": 1}
        )

    def at(self, url: str) -> "Server":
        """The same with another SageMaker server in place of the own one."""
        other = copy.copy(self)
        other._use(url)
        return other

    def post(self, body: bytes, target: str, **changed: str) -> httpx.Response:
        """The answer to a request of the control plane as a client signs it; headers can be changed afterwards."""
        config, key = self.aws.config, self.aws.environment
        url = f"{config.sagemaker_url}/"
        request = AWSRequest("POST", url, {"X-Amz-Target": target, "Content-Type": "application/x-amz-json-1.1"}, body)
        credentials = Credentials(key["AWS_ACCESS_KEY_ID"], key["AWS_SECRET_ACCESS_KEY"])
        SigV4Auth(credentials, "sagemaker", REGION).add_auth(request)
        headers = {**request.headers, **{name.replace("_", "-"): value for name, value in changed.items()}}
        given = {name: str(value) for name, value in headers.items() if value}
        return httpx.post(url, content=body, headers=given, trust_env=False)

    def put(self, key: str, body: bytes) -> str:
        """The object's URI."""
        self.s3.put_object(Bucket=BUCKET, Key=key, Body=body)
        return f"s3://{BUCKET}/{key}"

    def get(self, uri: str) -> bytes:
        body: bytes = self.s3.get_object(Bucket=BUCKET, Key=uri.removeprefix(f"s3://{BUCKET}/"))["Body"].read()
        return body

    def keys(self, prefix: str) -> list[str]:
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return [item["Key"] for page in pages for item in page.get("Contents", [])]

    def model(self, code: str = ACTOR, **environment: str) -> str:
        """The name of a model with that code/inference.py."""
        name = unique("model")
        uri = self.put(f"models/{name}.tar.gz", tar_gz({"code/inference.py": code}))
        self.sagemaker.create_model(
            ModelName=name,
            ExecutionRoleArn=self.role,
            PrimaryContainer={"Image": INFERENCE_IMAGE, "ModelDataUrl": uri, "Environment": environment},
        )
        return name

    def config(self, *variants: dict[str, Any], **more: Any) -> str:
        """The name of an endpoint config; a variant is given as far as it differs from one instance of an actor."""
        name = unique("config")
        self.sagemaker.create_endpoint_config(
            EndpointConfigName=name,
            ProductionVariants=[
                {
                    "VariantName": "only",
                    "ModelName": variant.get("ModelName") or self.model(),
                    "InstanceType": "ml.m5.large",
                    "InitialInstanceCount": 1,
                    **variant,
                }
                for variant in variants or ({},)
            ],
            **more,
        )
        return name

    def answering(self, answer: str, code: str = ACTOR) -> str:
        """The name of an endpoint config of an actor that says so."""
        return self.config({"ModelName": self.model(code, ANSWER=answer)})

    def endpoint(self, config: str | None = None, wait: bool = True) -> str:
        """The name of an endpoint that is in service."""
        name = unique("endpoint")
        self.sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=config or self.config())
        if wait:
            assert self.settled(name)["EndpointStatus"] == "InService"
        return name

    def settled(self, name: str) -> dict[str, Any]:
        """The endpoint when nothing is in progress any more."""
        under_way = ("Creating", "Updating", "SystemUpdating", "RollingBack")
        described: dict[str, Any] = eventually(
            lambda: (
                (found := self.sagemaker.describe_endpoint(EndpointName=name))["EndpointStatus"] not in under_way
                and found
            )
        )
        return described

    def delete(self, name: str) -> None:
        """Deletes an endpoint and waits until it is gone."""
        self.sagemaker.delete_endpoint(EndpointName=name)
        self.sagemaker.get_waiter("endpoint_deleted").wait(EndpointName=name, WaiterConfig={"Delay": 1})

    def invoke(self, name: str, body: bytes = b"hello", **more: Any) -> Any:
        """The model's JSON answer."""
        return json.loads(self.runtime.invoke_endpoint(EndpointName=name, Body=body, **more)["Body"].read())

    def job(self, script: str, **changes: Any) -> str:
        """The name of a training job of that train.py; `changes` replace parts of its request."""
        name = changes.pop("TrainingJobName", None) or unique("job")
        source = self.put(f"code/{name}.tar.gz", tar_gz({"train.py": script}))
        request = {
            "TrainingJobName": name,
            "RoleArn": self.role,
            "AlgorithmSpecification": {"TrainingImage": TRAINING_IMAGE, "TrainingInputMode": "File"},
            "HyperParameters": {"sagemaker_program": "train.py", "sagemaker_submit_directory": source},
            "OutputDataConfig": {"S3OutputPath": f"s3://{BUCKET}/trained"},
            "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 1},
            "StoppingCondition": {"MaxRuntimeInSeconds": 300},
        }
        self.sagemaker.create_training_job(**{**request, **changes})
        return name

    def ended(self, job: str) -> dict[str, Any]:
        """The training job when it has ended."""
        described: dict[str, Any] = eventually(
            lambda: (
                (found := self.sagemaker.describe_training_job(TrainingJobName=job))["TrainingJobStatus"]
                not in ("InProgress", "Stopping")
                and found
            )
        )
        return described

    def training(self, job: str) -> None:
        """Returns when the job's script has said that it began."""
        eventually(lambda: "begun" in self.log("/aws/sagemaker/TrainingJobs", f"{job}/"))

    def log(self, group: str, prefix: str) -> list[str]:
        """The lines of all streams of that prefix; none if there is no such group yet."""
        try:
            streams = self.logs.describe_log_streams(logGroupName=group, logStreamNamePrefix=prefix)["logStreams"]
        except self.logs.exceptions.ResourceNotFoundException:
            return []
        events = [
            self.logs.get_log_events(logGroupName=group, logStreamName=stream["logStreamName"], startFromHead=True)
            for stream in streams
        ]
        return [event["message"] for answer in events for event in answer["events"]]


def unique(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex[:10]}"


def answer_or_none(server: Server, endpoint: str) -> Any:
    """An actor's answer; None while no instance can answer."""
    try:
        return server.invoke(endpoint)
    except ClientError as error:
        assert error.response["Error"]["Code"] in ("ServiceUnavailable", "ModelError")
        return None


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder: Path = tmp_path_factory.mktemp("sagemaker")
    quick = (
        "--scaling-period",
        "0.5",
        "--stop-grace",
        "2",
        "--model-seconds",
        "6",
        "--capture-interval",
        "0.3",
        "--instances",
        "12",
    )
    with StandaloneAws(folder, *quick, "--requests-per-instance", "6") as aws:
        yield Server(aws)


@pytest.fixture(scope="session")
def actor(server: Server) -> str:
    """An endpoint of one actor that every test may invoke, and none may change."""
    return server.endpoint()
