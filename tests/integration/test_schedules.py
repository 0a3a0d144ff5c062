"""A schedule, resumed as the README says: its run starts by itself, ends, and its report follows."""

import re
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.schedules import CronSchedule

from local_aws.config import ROOT, LocalConfig
from settings import run_id
from tasks.aws import storage
from tasks.run import Run

DEPLOYMENT = "nightly-evaluation/local"
WAIT_SECONDS = 180


@pytest.fixture
def every_minute(installed: Any) -> Iterator[str]:
    """The id of a schedule of every minute that somebody added and that is paused."""
    with get_client(sync_client=True) as prefect:
        deployment = prefect.read_deployment_by_name(DEPLOYMENT)
        minutely = DeploymentScheduleCreate(schedule=CronSchedule(cron="* * * * *", timezone="UTC"), active=False)
        (created,) = prefect.create_deployment_schedules(deployment.id, [(minutely.schedule, False)])
        try:
            yield str(created.id)
        finally:
            for schedule in prefect.read_deployment(deployment.id).schedules:
                if getattr(schedule.schedule, "cron", "") == "* * * * *":
                    prefect.delete_deployment_schedule(deployment.id, schedule.id)


def runs_of(prefect: SyncPrefectClient, deployment: str) -> list[FlowRun]:
    found = prefect.read_deployment_by_name(deployment).id
    return [run for run in prefect.read_flow_runs(limit=200) if run.deployment_id == found]


def test_a_resumed_schedule_starts_runs_by_itself_and_stays_resumed(
    every_minute: str, installed: Any, stack: LocalConfig
) -> None:
    section = (ROOT / "README.md").read_text().split("Schedules are paused at first.")[1]
    command = re.search(r"^prefect deployment schedule resume .*$", section, re.MULTILINE)
    assert command
    resume = command[0].replace("SCHEDULE_ID", every_minute)
    resumed = datetime.now(UTC)
    done = subprocess.run(["sh", "-ec", f'. "$SCONES_STATE/env.sh"\n{resume}'], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr

    with get_client(sync_client=True) as prefect:
        deadline = time.monotonic() + WAIT_SECONDS
        upcoming: list[FlowRun] = []
        ended: list[FlowRun] = []
        while not ended:
            assert time.monotonic() < deadline, "no scheduled run has ended"
            mine = [run for run in runs_of(prefect, DEPLOYMENT) if run.auto_scheduled]
            upcoming = upcoming or [run for run in mine if run.state and run.state.is_scheduled()]
            ended = [run for run in mine if run.state and run.state.is_final()]
            time.sleep(1)
        assert len(upcoming) >= 2 and all(
            run.expected_start_time and run.expected_start_time > resumed.replace(second=0, microsecond=0)
            for run in upcoming
        )
        assert len({run_id(run.id) for run in mine}) == len(mine)
        assert ended[0].state and ended[0].state.name == "Passed"

        # `make up` after a changed flow file: what a person resumed stays resumed.
        from deploy import bring_up

        (stack.state / "prefect" / "deployed").unlink()
        bring_up(stack)
        schedules = prefect.read_deployment_by_name(DEPLOYMENT).schedules
        assert {getattr(each.schedule, "cron", ""): each.active for each in schedules} == {
            "30 3 * * *": False,
            "* * * * *": True,
        }
        for schedule in schedules:
            assert ended[0].deployment_id is not None
            prefect.update_deployment_schedule(ended[0].deployment_id, schedule.id, active=False)

        name, start = run_id(ended[0].id), ended[0].expected_start_time
        assert start is not None
        while not (
            reports := [run for run in runs_of(prefect, "confidence-report/local") if run.parameters.get("run") == name]
        ):
            assert time.monotonic() < deadline, "no report was started"
            time.sleep(0.5)
        while not (state := prefect.read_flow_run(reports[0].id).state) or not state.is_final():
            assert time.monotonic() < deadline
            time.sleep(0.5)
        assert state.is_completed() and "report.html" in str(state.message)
    evaluated = Run(name, start.astimezone(UTC).date().isoformat())
    assert f"{evaluated.prefix}summary.json" in storage.list_etags(installed.bucket, evaluated.prefix)
