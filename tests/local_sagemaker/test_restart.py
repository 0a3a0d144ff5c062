"""What a kill or a restart of the server leaves of jobs and endpoints: nothing that lies, and no process."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from botocore.exceptions import ClientError

from local_aws.config import ROOT
from local_aws.standalone import StandaloneAws
from testing.waiting import eventually
from tests.local_sagemaker.conftest import ACTOR, BUCKET, Server, unique

WAITING = "import time\nprint('begun', flush=True)\ntime.sleep(300)\n"
# Finds what an earlier start of it left, leaves its own, and only waits the first time.
RESUMING = """
import json, os, pathlib, time
config = json.loads(pathlib.Path(os.environ["SM_INPUT_CONFIG_DIR"], "checkpointconfig.json").read_text())
folder = pathlib.Path(config["LocalPath"])
kept = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
print("begun with " + json.dumps(kept), flush=True)
(folder / "deep").mkdir(exist_ok=True)
(folder / "deep" / f"{len(kept)}.txt").write_text("kept")
if not kept:
    (folder / "other.txt").write_text("kept")
    time.sleep(300)
(folder / "other.txt").unlink()
pathlib.Path(os.environ["SM_MODEL_DIR"], "model.txt").write_text(json.dumps(kept))
"""
ONCE = {"MaximumRetryAttempts": 1}
SLOW = "import time\ntime.sleep(4)\n" + ACTOR


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with StandaloneAws(tmp_path_factory.mktemp("restart"), "--training-jobs", "1") as aws:
        yield Server(aws)


def killed(server: Server) -> None:
    server.aws.kill("sagemaker")


def stopped(server: Server) -> None:
    server.aws.stop("sagemaker")


@pytest.mark.parametrize("end", [killed, stopped])
def test_jobs_and_endpoints_after_a_restart(own: Server, end: Callable[[Server], None]) -> None:
    serving = own.endpoint(own.answering("old"))
    updating = own.endpoint(own.answering("old"))
    new = own.answering("new", SLOW)
    running, queued = own.job(WAITING), own.job(WAITING)
    own.training(running)
    creating = own.endpoint(own.answering("created", SLOW), wait=False)
    own.sagemaker.update_endpoint(EndpointName=updating, EndpointConfigName=new)
    children = psutil.Process(own.aws.process_id("sagemaker")).children(recursive=True)
    assert len(children) >= 4

    end(own)
    psutil.wait_procs(children, timeout=20)
    assert [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE] == []
    own.aws.start("sagemaker")

    for name in (running, queued):
        job = own.sagemaker.describe_training_job(TrainingJobName=name)
        assert (job["TrainingJobStatus"], job["SecondaryStatus"]) == ("Failed", "Failed")
        assert "the server was restarted" in job["FailureReason"]
    assert own.sagemaker.describe_endpoint(EndpointName=serving)["EndpointStatus"] == "SystemUpdating"
    with pytest.raises(ClientError) as error:
        own.invoke(serving)
    assert error.value.response["Error"]["Code"] == "ServiceUnavailable"
    for name, model in ((serving, "old"), (updating, "new"), (creating, "created")):
        assert own.settled(name)["EndpointStatus"] == "InService"
        assert own.invoke(name)["model"] == model

    # A restart amid the deletion ends it.
    for name in (serving, updating, creating):
        own.sagemaker.delete_endpoint(EndpointName=name)
    end(own)
    own.aws.start("sagemaker")
    eventually(lambda: not own.sagemaker.list_endpoints()["Endpoints"])


@pytest.mark.parametrize("end", [killed, stopped])
@pytest.mark.parametrize("spot", [False, True])
def test_a_job_that_is_started_again_has_its_checkpoints(
    own: Server, end: Callable[[Server], None], spot: bool
) -> None:
    prefix = f"{unique('checkpoints')}/"
    wait = {"MaxWaitTimeInSeconds": 300} if spot else {}
    again: dict[str, Any] = {"EnableManagedSpotTraining": True} if spot else {"RetryStrategy": ONCE}
    name = own.job(
        RESUMING,
        CheckpointConfig={"S3Uri": f"s3://{BUCKET}/{prefix}"},
        StoppingCondition={"MaxRuntimeInSeconds": 300, **wait},
        **again,
    )
    eventually(lambda: len(own.keys(prefix)) == 2)
    end(own)
    own.aws.start("sagemaker")
    job = own.ended(name)
    assert job["TrainingJobStatus"] == "Completed", job.get("FailureReason")
    begun = ["Starting", "Downloading", "Training"]
    restarted = [*(["Interrupted"] if spot else []), *begun, "Uploading", "Completed"]
    assert [each["Status"] for each in job["SecondaryStatusTransitions"]] == [*begun, *restarted]
    assert 'begun with ["deep/0.txt", "other.txt"]' in own.log("/aws/sagemaker/TrainingJobs", f"{name}/")
    # What the script deleted is deleted, what it wrote last is there.
    assert own.keys(prefix) == [f"{prefix}deep/0.txt", f"{prefix}deep/2.txt"]


def test_all_attempts_of_a_job_share_its_time_and_are_counted(own: Server) -> None:
    name = own.job(WAITING, RetryStrategy=ONCE, StoppingCondition={"MaxRuntimeInSeconds": 12})
    own.training(name)
    time.sleep(6)
    killed(own)
    own.aws.start("sagemaker")
    job = own.ended(name)
    assert (job["TrainingJobStatus"], job["SecondaryStatus"]) == ("Stopped", "MaxRuntimeExceeded")
    last = job["SecondaryStatusTransitions"][-3]
    assert last["Status"] == "Training" and (last["EndTime"] - last["StartTime"]).total_seconds() < 10
    assert 12 <= job["TrainingTimeInSeconds"] < 16

    name = own.job(WAITING, RetryStrategy=ONCE)
    for _ in range(2):
        eventually(lambda: own.sagemaker.describe_training_job(TrainingJobName=name)["SecondaryStatus"] == "Training")
        killed(own)
        own.aws.start("sagemaker")
    job = own.sagemaker.describe_training_job(TrainingJobName=name)
    assert job["TrainingJobStatus"] == "Failed" and "the server was restarted" in job["FailureReason"]


def test_checkpoints_that_the_role_may_not_write_fail_the_job(own: Server) -> None:
    """On AWS as well that shows when they are written, not when the job is created."""
    iam, role = own.aws.client("iam"), own.aws.create_role("reader")
    statement = {"Effect": "Deny", "Action": "s3:PutObject", "Resource": f"arn:aws:s3:::{BUCKET}/forbidden/*"}
    document = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    iam.put_role_policy(RoleName="reader", PolicyName="no checkpoints", PolicyDocument=document)
    job = own.ended(own.job(RESUMING, RoleArn=role, CheckpointConfig={"S3Uri": f"s3://{BUCKET}/forbidden/"}))
    assert job["TrainingJobStatus"] == "Failed"
    assert job["FailureReason"].startswith("ClientError: Checkpoint upload failed: ")
    assert "AccessDenied" in job["FailureReason"]


def test_a_guarded_update_is_guarded_after_a_restart_as_well(own: Server) -> None:
    name = own.endpoint(own.answering("old"))
    canary = {"Type": "CAPACITY_PERCENT", "Value": 50}
    routing = {"Type": "CANARY", "CanarySize": canary, "WaitIntervalInSeconds": 600}
    own.sagemaker.update_endpoint(
        EndpointName=name,
        EndpointConfigName=own.answering("new"),
        DeploymentConfig={"BlueGreenUpdatePolicy": {"TrafficRoutingConfiguration": routing}},
    )
    for end in (killed, stopped):
        eventually(lambda: answering(own, name) == {"old", "new"})
        end(own)
        own.aws.start("sagemaker")
    eventually(lambda: answering(own, name) == {"old", "new"})
    new = eventually(lambda: (found := own.invoke(name)) and found["model"] == "new" and found)
    assert own.sagemaker.describe_endpoint(EndpointName=name)["EndpointStatus"] == "Updating"
    os.kill(new["process"], signal.SIGKILL)
    own.settled(name)
    assert answering(own, name) == {"old"}
    own.delete(name)


def answering(server: Server, endpoint: str) -> set[str]:
    """The models that answer; none while the endpoint is starting again."""
    try:
        return {server.invoke(endpoint)["model"] for _ in range(20)}
    except ClientError as error:
        assert error.response["Error"]["Code"] == "ServiceUnavailable"
        return set()


def test_two_servers_do_not_share_a_state(own: Server) -> None:
    state = own.aws.config.state / "sagemaker"
    command = [sys.executable, "-m", "local_sagemaker", "--port", "1", "--state", str(state)]
    done = subprocess.run(command, cwd=ROOT, env=own.aws.environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "another server runs" in done.stderr
    assert own.sagemaker.list_endpoints()


def test_a_server_without_its_aws_waits_for_it(own: Server) -> None:
    name = own.endpoint()
    own.aws.kill("sagemaker")
    own.aws.signal("ministack", signal.SIGSTOP)
    own.aws.start("sagemaker")
    with pytest.raises(ClientError, match="ServiceUnavailable"):
        own.unchecked.describe_endpoint(EndpointName=name)
    own.aws.signal("ministack", signal.SIGCONT)
    assert own.settled(name)["EndpointStatus"] == "InService"
    own.delete(name)


def test_a_parent_that_is_gone_takes_its_servers_along(tmp_path: Path) -> None:
    """The harness itself: a test or benchmark that is killed leaves nothing behind."""
    code = (
        "import sys, time; from pathlib import Path; from local_aws.standalone import StandaloneAws\n"
        "with StandaloneAws(Path(sys.argv[1])) as aws:\n"
        "    print('up', flush=True); time.sleep(300)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"up\n"
    children = psutil.Process(parent.pid).children(recursive=True)
    assert len(children) == 2
    parent.kill()
    parent.communicate()
    _, left = psutil.wait_procs(children, timeout=20)
    assert left == []
