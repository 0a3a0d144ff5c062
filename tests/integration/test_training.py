"""The training tasks against real jobs: failure, stop, retry, cancel."""

import time
import uuid
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.states import Cancelling
from sagemaker.core.resources import TrainingJob

from settings import run_id
from tasks.aws import storage
from tasks.aws.clients import client, sdk
from tasks.installation import Installation
from tasks.model.training import JobPlan, TrainingError, start_or_attach, stop, training_channels, wait
from testing.archives import tar_gz
from testing.flow_runs import ended, started
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


def test_a_person_who_cancels_a_flow_run_stops_its_training_job(installed: Any) -> None:
    """Through the worker, which sends the run's process a signal."""
    run = started("train-model/local", {"hyperparameters": {"epochs": 5000}}, {})
    name = f"scones-unlimited-{run_id(run)}"

    def status(member: str) -> str:
        found = client("sagemaker").list_training_jobs(NameContains=name)["TrainingJobSummaries"]
        return client("sagemaker").describe_training_job(TrainingJobName=name)[member] if found else ""

    eventually(lambda: status("SecondaryStatus") == "Training", seconds=180)
    with get_client(sync_client=True) as prefect:
        prefect.set_flow_run_state(run, Cancelling())
    ended(run, "Cancelled")
    # A script that does not end by itself is given 120 seconds.
    eventually(lambda: status("TrainingJobStatus") not in ("InProgress", "Stopping"), seconds=180)
    assert status("TrainingJobStatus") == "Stopped"
