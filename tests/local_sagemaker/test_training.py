"""Training jobs: channels, outputs, metrics, logs, failures, stopping, queueing."""

import io
import json
import re
import tarfile
from typing import Any

import pytest
from botocore.exceptions import ClientError

from testing.waiting import eventually
from tests.local_sagemaker.conftest import BUCKET, TRAINING_IMAGE, Server, unique

WAITING = "import time\nprint('begun', flush=True)\ntime.sleep(300)\n"


def channel(name: str, uri: str, kind: str = "S3Prefix") -> dict[str, Any]:
    return {"ChannelName": name, "DataSource": {"S3DataSource": {"S3DataType": kind, "S3Uri": uri}}}


def names_in(server: Server, uri: str) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(server.get(uri))) as tar:
        return sorted(tar.getnames())


def statuses(job: dict[str, Any]) -> list[str]:
    return [transition["Status"] for transition in job["SecondaryStatusTransitions"]]


def test_a_job_gets_its_channels_and_leaves_model_data_metrics_and_log(server: Server) -> None:
    prefix = unique("input")
    server.put(f"{prefix}/a.txt", b"A")
    server.put(f"{prefix}/deep/b.txt", b"B")
    server.put(f"{prefix}-manifest", json.dumps([{"prefix": f"s3://{BUCKET}/{prefix}/"}, "deep/b.txt"]).encode())
    # One string a line: the toolkit reads in chunks, and a line that is written in parts may become several.
    script = """
import json, os, pathlib, sys
data = pathlib.Path(os.environ["SM_INPUT_DIR"]) / "data"
found = sorted(str(path.relative_to(data)) for path in data.rglob("*") if path.is_file())
print("found " + json.dumps(found))
print("setting " + os.environ["KETTLE"])
print("loss=0.5;")
print("loss=not a number;")
print("loss=0.25; " + "x" * 100000)
pathlib.Path(os.environ["SM_MODEL_DIR"], "model.txt").write_text("a model")
pathlib.Path(os.environ["SM_OUTPUT_DATA_DIR"], "notes.txt").write_text("notes")
"""
    name = server.job(
        script,
        InputDataConfig=[
            channel("prefix", f"s3://{BUCKET}/{prefix}/"),
            channel("manifest", f"s3://{BUCKET}/{prefix}-manifest", "ManifestFile"),
            channel("object", f"s3://{BUCKET}/{prefix}/a.txt"),
        ],
        Environment={"KETTLE": "full"},
        AlgorithmSpecification={
            "TrainingImage": TRAINING_IMAGE,
            "TrainingInputMode": "File",
            "MetricDefinitions": [
                {"Name": "loss", "Regex": "loss=([0-9.]+|not a number);"},
                {"Name": "never", "Regex": "never=([0-9.]+)"},
            ],
        },
    )
    job = server.ended(name)
    assert job["TrainingJobStatus"] == "Completed", job.get("FailureReason")
    assert statuses(job) == ["Starting", "Downloading", "Training", "Uploading", "Completed"]
    assert all(
        transition["EndTime"] >= transition["StartTime"] for transition in job["SecondaryStatusTransitions"][:-1]
    )
    assert job["TrainingStartTime"] < job["TrainingEndTime"]
    assert [(metric["MetricName"], metric["Value"]) for metric in job["FinalMetricDataList"]] == [("loss", 0.25)]
    assert job["ModelArtifacts"]["S3ModelArtifacts"] == f"s3://{BUCKET}/trained/{name}/output/model.tar.gz"
    assert names_in(server, job["ModelArtifacts"]["S3ModelArtifacts"]) == ["model.txt"]
    assert names_in(server, f"s3://{BUCKET}/trained/{name}/output/output.tar.gz") == ["notes.txt"]
    log = server.log("/aws/sagemaker/TrainingJobs", f"{name}/algo-1-")
    found = next(json.loads(line.removeprefix("found ")) for line in log if line.startswith("found "))
    assert found == ["manifest/deep/b.txt", "object/a.txt", "prefix/a.txt", "prefix/deep/b.txt"]
    assert "setting full" in log


def test_an_uncompressed_output_is_a_folder(server: Server) -> None:
    script = "import os, pathlib\npathlib.Path(os.environ['SM_MODEL_DIR'], 'model.txt').write_text('a model')\n"
    output = {"S3OutputPath": f"s3://{BUCKET}/trained/", "CompressionType": "NONE"}
    job = server.ended(server.job(script, OutputDataConfig=output))
    assert job["ModelArtifacts"]["S3ModelArtifacts"] == f"s3://{BUCKET}/trained/{job['TrainingJobName']}/output/model/"
    assert server.get(job["ModelArtifacts"]["S3ModelArtifacts"] + "model.txt") == b"a model"


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        # The toolkit reads stderr in pieces and may break a line between them.
        ("raise RuntimeError('the kettle is empty')\n", r"RuntimeError\W+the kettle is empty"),
        ("import sys\nsys.exit(7)\n", "ExitCode 7"),
        ("def broken(:\n", "SyntaxError"),
    ],
)
def test_a_failing_script_gives_its_reason(server: Server, script: str, reason: str) -> None:
    job = server.ended(server.job(script))
    assert job["TrainingJobStatus"] == job["SecondaryStatus"] == "Failed"
    assert job["FailureReason"].startswith("AlgorithmError")
    assert re.search(reason, job["FailureReason"])
    assert "exit code: 1" in job["FailureReason"]


@pytest.mark.parametrize(
    ("uri", "kind", "reason"),
    [
        (f"s3://{BUCKET}/broken-manifest", "ManifestFile", "is no manifest"),
        (f"s3://{BUCKET}/climbing-manifest", "ManifestFile", "leads out of its channel"),
        (f"s3://{BUCKET}/twice", "S3Prefix", "would both be the file"),
    ],
)
def test_data_that_cannot_be_had_is_the_reason(server: Server, uri: str, kind: str, reason: str) -> None:
    server.put("broken-manifest", b"{}")
    server.put("a.txt", b"A")
    server.put("twice/x.csv", b"1")
    server.put("twicex.csv", b"2")
    server.put("climbing-manifest", json.dumps([{"prefix": f"s3://{BUCKET}/"}, "../../a.txt"]).encode())
    job = server.ended(server.job("print(1)", InputDataConfig=[channel("train", uri, kind)]))
    assert job["TrainingJobStatus"] == "Failed"
    assert reason in job["FailureReason"]


@pytest.mark.parametrize(
    "uri",
    [
        f"s3://{BUCKET}/no-such-prefix/",
        "s3://somebody-elses/data/",
        # Not a fragment: the prefix twice/ would be there.
        f"s3://{BUCKET}/twice#1/",
    ],
)
def test_a_channel_without_objects_is_refused_at_once(server: Server, uri: str) -> None:
    server.put("twice/x.csv", b"1")
    with pytest.raises(ClientError, match=f'ValidationException.* No S3 objects found under S3 URL "{uri}" given in'):
        server.job("print(1)", InputDataConfig=[channel("train", uri)])


def test_a_role_that_can_not_be_assumed_is_refused_at_once(server: Server) -> None:
    nobody = "arn:aws:iam::000000000000:role/nobody"
    with pytest.raises(ClientError, match=f"ValidationException.* Could not assume role {nobody}. Please ensure"):
        server.job("print(1)", RoleArn=nobody)


def test_an_image_that_cannot_be_used_is_the_reason(server: Server) -> None:
    other = {"TrainingImage": "763104351884.dkr.ecr.us-east-1.amazonaws.com/xgboost:1", "TrainingInputMode": "File"}
    job = server.ended(server.job("print(1)", AlgorithmSpecification=other))
    assert "PyTorch training images only" in job["FailureReason"]


def test_stopping_queueing_and_what_is_kept(server: Server) -> None:
    """Two jobs run at once here; the third waits as Starting and can be stopped without ever having run."""
    graceful = server.job(
        "import os, pathlib, signal, sys, time\n"
        "def end(number, frame):\n"
        "    pathlib.Path(os.environ['SM_MODEL_DIR'], 'last.txt').write_text('saved in time')\n"
        "    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\n" + WAITING
    )
    stubborn = server.job(
        "import os, pathlib, signal\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "pathlib.Path(os.environ['SM_MODEL_DIR'], 'early.txt').write_text('written before')\n" + WAITING
    )
    queued, next_in_line = server.job(WAITING), server.job(WAITING)
    server.training(graceful)
    server.training(stubborn)
    assert server.sagemaker.describe_training_job(TrainingJobName=queued)["SecondaryStatus"] == "Starting"
    server.sagemaker.stop_training_job(TrainingJobName=queued)
    job = server.sagemaker.describe_training_job(TrainingJobName=queued)
    assert (job["TrainingJobStatus"], statuses(job)) == ("Stopped", ["Starting", "Stopping", "Stopped"])
    for name in (graceful, stubborn):
        server.sagemaker.stop_training_job(TrainingJobName=name)
    for name, kept in ((graceful, "last.txt"), (stubborn, "early.txt")):
        job = server.ended(name)
        assert job["TrainingJobStatus"] == "Stopped"
        assert statuses(job)[-3:] == ["Stopping", "Uploading", "Stopped"]
        assert names_in(server, job["ModelArtifacts"]["S3ModelArtifacts"]) == [kept]
    with pytest.raises(ClientError, match="is in status Stopped"):
        server.sagemaker.stop_training_job(TrainingJobName=graceful)
    server.training(next_in_line)
    server.sagemaker.stop_training_job(TrainingJobName=next_in_line)
    assert server.ended(next_in_line)["TrainingJobStatus"] == "Stopped"


def test_a_job_over_its_time_is_stopped(server: Server) -> None:
    job = server.ended(server.job(WAITING, StoppingCondition={"MaxRuntimeInSeconds": 1}))
    assert (job["TrainingJobStatus"], job["SecondaryStatus"]) == ("Stopped", "MaxRuntimeExceeded")


def test_the_log_is_there_while_the_job_runs(server: Server) -> None:
    name = server.job(WAITING)
    server.training(name)
    assert server.sagemaker.describe_training_job(TrainingJobName=name)["TrainingJobStatus"] == "InProgress"
    server.sagemaker.stop_training_job(TrainingJobName=name)
    eventually(lambda: server.ended(name))
