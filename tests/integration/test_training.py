"""The training tasks against real jobs: failure, stop, retry, cancel."""

import os
import subprocess
import sys
import time
import uuid
from typing import Any

import pytest
from sagemaker.core.resources import TrainingJob

from local_aws.config import ROOT
from tasks.aws import storage
from tasks.aws.clients import client, sdk
from tasks.installation import Installation
from tasks.model.training import JobPlan, TrainingError, start_or_attach, stop, training_channels, wait
from testing.archives import tar_gz
from testing.waiting import eventually


def plan_of(installed: Installation, script: str) -> JobPlan:
    key = f"code/test-{uuid.uuid4().hex}.tar.gz"
    storage.put(installed.bucket, key, tar_gz({"train.py": script}))
    channels = training_channels(installed.bucket)
    return JobPlan("train.py", f"s3://{installed.bucket}/{key}", {"epochs": "1"}, channels, ())


def test_a_failing_script_gives_its_exception_as_the_reason(installed: Any) -> None:
    lines: list[str] = []
    plan = plan_of(installed, 'print("hello from the script")\nraise RuntimeError("the kettle is empty")\n')
    name = start_or_attach(installed, plan, f"fail{uuid.uuid4().hex[:8]}", lines.append)
    with pytest.raises(TrainingError, match=r"(?s)is Failed: .*kettle is empty"):
        wait(name, lines.append)
    assert any("hello from the script" in line for line in lines)


def test_a_stopped_job_is_no_success_and_its_retry_is_a_new_job(installed: Any) -> None:
    lines: list[str] = []
    plan = plan_of(installed, "import time\nprint('begun', flush=True)\ntime.sleep(300)\n")
    run = f"stop{uuid.uuid4().hex[:8]}"
    name = start_or_attach(installed, plan, run, lines.append)
    assert start_or_attach(installed, plan, run, lines.append) == name
    assert "re-attached" in lines[-1]
    while TrainingJob.get(name, **sdk()).secondary_status != "Training":
        time.sleep(0.2)
    stop(name)
    with pytest.raises(TrainingError, match="is Stopped"):
        wait(name, lines.append)
    again = start_or_attach(installed, plan, run, lines.append)
    assert again == f"{name}-2"
    stop(again)


def test_cancelling_a_flow_run_stops_its_training_job(installed: Any) -> None:
    """A worker cancels with SIGTERM; the flow's main thread gets it while it waits for the job."""
    flow = subprocess.Popen(
        [sys.executable, "-c", "from flows.train_model import train_model; train_model()"],
        cwd=ROOT,
        env={**os.environ, "SCONES_EPOCHS": "5000"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )

    def described(name: str) -> dict[str, Any]:
        answer: dict[str, Any] = client("sagemaker").describe_training_job(TrainingJobName=name)
        return answer

    def training() -> str | None:
        assert flow.poll() is None
        running = client("sagemaker").list_training_jobs(StatusEquals="InProgress")["TrainingJobSummaries"]
        names = [each["TrainingJobName"] for each in running]
        return next((name for name in names if described(name)["SecondaryStatus"] == "Training"), None)

    name = eventually(training, seconds=180)
    flow.terminate()
    log = flow.communicate(timeout=60)[1]
    assert f"stopping training job {name}" in log
    # A script that does not end by itself is given 120 seconds.
    eventually(lambda: described(name)["TrainingJobStatus"] not in ("InProgress", "Stopping"), seconds=180)
    assert described(name)["TrainingJobStatus"] == "Stopped"
