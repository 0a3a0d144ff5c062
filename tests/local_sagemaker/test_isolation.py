"""A container whose network is isolated reaches nothing, holds no credentials, and gets its data all the same."""

import json
from functools import partial
from typing import Any

from testing.archives import tar_gz
from testing.waiting import eventually
from tests.local_sagemaker.conftest import BUCKET, INFERENCE_IMAGE, Server, unique

ATTEMPTS = """
import json, os, socket, urllib.request
import boto3

def attempt(call):
    try:
        call()
    except OSError as error:
        return str(error)
    return "done"

own = socket.create_server(("127.0.0.1", 0))
found = {
    "credentials": boto3.Session().get_credentials() is not None,
    "variables": sorted(name for name in os.environ if name.startswith("AWS_") and os.environ[name]),
    "outside": attempt(lambda: socket.create_connection(("192.0.2.1", 80), timeout=0.2)),
    "name": attempt(lambda: socket.getaddrinfo("example.com", 443)),
    "account": attempt(lambda: urllib.request.urlopen(os.environ["ACCOUNT"], timeout=5)),
    "itself": attempt(lambda: socket.create_connection(own.getsockname(), timeout=5)),
}
"""
SCRIPT = f"""
import os, subprocess, sys
from pathlib import Path

if sys.argv[-1] != "again":
    Path(os.environ["SM_MODEL_DIR"], "data").write_bytes(Path(os.environ["SM_CHANNEL_TRAIN"], "one").read_bytes())
    subprocess.run([sys.executable, __file__, "again"], check=True)
{ATTEMPTS}
sys.stdout.write("found " + json.dumps(found) + chr(10))
"""
MODEL = f"""
{ATTEMPTS}
def model_fn(folder):
    return found

def transform_fn(model, body, content_type, accept):
    return json.dumps(model), "application/json"
"""
UNREACHED = "can't be reached from this container"


def isolated(found: dict[str, Any]) -> bool:
    """Whether that is what an isolated container finds. Fails if it is neither that nor what any other one finds."""
    assert found["itself"] == "done", found
    refused = [UNREACHED in found[name] for name in ("outside", "name", "account")]
    if not any(refused):
        assert found["credentials"], found
        return False
    assert all(refused) and not found["credentials"], found
    assert set(found["variables"]) <= {"AWS_REGION", "AWS_DEFAULT_REGION"}
    return True


def test_an_isolated_job_and_what_it_starts_reach_nothing_and_are_trained(server: Server) -> None:
    for isolation in (True, False):
        name = unique("job")
        code = server.put(f"code/{name}/source.tar.gz", tar_gz({"train.py": SCRIPT}))
        data = server.put(f"data/{name}/one", b"an image")
        channels = {"train": data.rpartition("/")[0] + "/", "code": code}
        server.job(
            "",
            TrainingJobName=name,
            EnableNetworkIsolation=isolation,
            Environment={"ACCOUNT": server.aws.config.aws_url},
            HyperParameters={
                "sagemaker_program": "train.py",
                "sagemaker_submit_directory": "/opt/ml/input/data/code/source.tar.gz",
                "sagemaker_container_log_level": "30",
            },
            InputDataConfig=[
                {"ChannelName": channel, "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": uri}}}
                for channel, uri in channels.items()
            ],
        )
        job = server.ended(name)
        assert job["TrainingJobStatus"] == "Completed", job
        assert job["EnableNetworkIsolation"] is isolation
        lines = server.log("/aws/sagemaker/TrainingJobs", f"{name}/")
        found = [json.loads(line.removeprefix("found ")) for line in lines if line.startswith("found ")]
        assert [isolated(each) for each in found] == [isolation] * 2
        assert server.get(job["ModelArtifacts"]["S3ModelArtifacts"])


def test_an_isolated_job_cannot_fetch_its_code_itself(server: Server) -> None:
    """As on AWS, where the toolkit asks S3 for it from within the container."""
    job = server.ended(server.job("", EnableNetworkIsolation=True))
    assert job["TrainingJobStatus"] == "Failed"


def test_an_isolated_model_serves_and_reaches_nothing(server: Server) -> None:
    for isolation in (True, False):
        model = unique("model")
        uri = server.put(f"models/{model}.tar.gz", tar_gz({"code/inference.py": MODEL}))
        environment = {"SAGEMAKER_PROGRAM": "inference.py", "ACCOUNT": server.aws.config.aws_url}
        server.sagemaker.create_model(
            ModelName=model,
            ExecutionRoleArn=server.role,
            EnableNetworkIsolation=isolation,
            PrimaryContainer={"Image": INFERENCE_IMAGE, "ModelDataUrl": uri, "Environment": environment},
        )
        capture = {
            "EnableCapture": True,
            "InitialSamplingPercentage": 100,
            "DestinationS3Uri": f"s3://{BUCKET}/{model}",
            "CaptureOptions": [{"CaptureMode": "Output"}],
        }
        name = server.endpoint(server.config({"ModelName": model}, DataCaptureConfig=capture))
        assert isolated(server.invoke(name)) is isolation
        server.delete(name)
        eventually(partial(server.keys, f"{model}/"))
