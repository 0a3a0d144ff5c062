"""Starts the services and applies prefect.yaml and automations.yaml: `make up`."""

import argparse
import asyncio
import hashlib
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from local_aws import services
from local_aws.config import ROOT, ConfigError, LocalConfig
from local_aws.environment import enter, work_pool
from local_aws.errors import print_error
from settings import SettingsError, settings

if TYPE_CHECKING:
    from uuid import UUID

    from prefect.client.schemas.objects import DeploymentSchedule
    from prefect.client.schemas.responses import DeploymentResponse

FILES = ("prefect.yaml", "automations.yaml")
NOTIFICATION_BLOCK = "scones-notify"
# Added to the time after which recover-runs takes a run for dead.
MARGIN_SECONDS = 60
# Automations that earlier versions of automations.yaml had.
RETIRED_AUTOMATIONS = (
    "Mark flow runs without heartbeat as crashed",
    "Resume evaluations, reports and trainings that crashed",
    "Resume evaluations that nobody resumed",
)


EXPIRING = (
    "warning: the shell's AWS_SESSION_TOKEN is temporary, and scheduled runs fail when it has expired; set AWS_PROFILE "
    "to a profile that renews itself (SSO, an assumed role), or run the worker where it has a role"
)


class DeploymentError(Exception):
    """prefect.yaml could not be applied, or there are no credentials; the message says what to do."""


def bring_up(config: LocalConfig, real_aws: bool = False) -> None:
    """Services up, deployments and automations as the files say. What stands already is left alone."""
    settings()  # wrong ones are refused before anything starts
    if real_aws:
        services.refuse_local_shell(config)
    enter(config, real_aws)
    settings.cache_clear()
    if real_aws:
        _check_credentials()
        if os.environ.get("AWS_SESSION_TOKEN"):
            print(EXPIRING)
    for line in services.up(config, real_aws):
        print(line)
    marker = config.prefect_home(real_aws) / "deployed"
    block = asyncio.run(_notification_block())
    digest, name = f"{_digest(real_aws)} {block}", work_pool(real_aws)
    if not marker.exists() or marker.read_text() != digest:
        print("applying prefect.yaml")
        _apply_deployments(config, marker.parent, name)
        asyncio.run(_apply_automations(block))
        marker.write_text(digest)
    asyncio.run(_recover_later(name))


def _check_credentials() -> None:
    """Raises DeploymentError if there is no source of credentials, or no region. Does not ask if they are valid."""
    import boto3
    from botocore.exceptions import BotoCoreError

    try:
        session = boto3.Session()
        found, region = session.get_credentials(), session.region_name
    except BotoCoreError as error:
        raise DeploymentError(f"AWS=real: {error}") from error
    if found is None:
        raise DeploymentError("AWS=real, and there are no AWS credentials: set AWS_PROFILE, or run `aws configure`")
    if not region:
        raise DeploymentError("AWS=real, and there is no region: set AWS_REGION, or run `aws configure`")


def enter_installation(real_aws: bool) -> None:
    """This process's environment; raises ServicesError if the local services do not run."""
    config = LocalConfig()
    settings()  # wrong ones are refused before anything else
    if real_aws:
        services.refuse_local_shell(config)
    elif services.mode(config) != "local":
        raise services.ServicesError("the local services do not run; `make up` starts them")
    else:
        config = config.model_copy(update=services.running_config(config))
    enter(config, real_aws)
    settings.cache_clear()
    if real_aws:
        _check_credentials()


def _digest(real_aws: bool) -> str:
    """Of everything that decides what a deployment looks like in Prefect."""
    sources = [ROOT / name for name in (*FILES, "deploy.py")] + sorted((ROOT / "flows").glob("*.py"))
    content = b"".join(path.read_bytes() for path in sources) + str(ROOT).encode() + str(real_aws).encode()
    return hashlib.sha256(content).hexdigest()


def _apply_deployments(config: LocalConfig, home: Path, name: str) -> None:
    """Deploys prefect.yaml under that name. Schedules stay paused or resumed as they are, and added ones stay."""
    document = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    for deployment in document["deployments"]:
        deployment["name"] = deployment["work_pool"]["name"] = name
    apply_document(document, name, home / "prefect.yaml", config.state / "logs" / "deploy.log")


def apply_document(document: dict[str, Any], name: str, file: Path, log: Path) -> None:
    """Has Prefect deploy the document, whose deployments all have this name; raises DeploymentError if it does not."""
    standing = asyncio.run(_read_deployments(name))
    for deployment in document["deployments"]:
        there = standing.get(deployment["entrypoint"])
        if there is not None:
            deployment["schedules"] = merge_schedules(deployment.get("schedules", []), there.schedules)
    file.write_text(yaml.safe_dump(document, sort_keys=False))
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(file)]
    with log.open("w") as output:
        done = subprocess.run(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
    if done.returncode:
        tail = "\n".join(log.read_text().splitlines()[-20:])
        raise DeploymentError(f"prefect deploy failed; the end of {log}:\n{tail}")


async def _read_deployments(name: str) -> "dict[str | None, DeploymentResponse]":
    """The deployments of that name, by entrypoint."""
    from prefect import get_client

    async with get_client() as client:
        return {each.entrypoint: each for each in await client.read_deployments() if each.name == name}


def merge_schedules(described: list[dict[str, Any]], standing: "list[DeploymentSchedule]") -> list[dict[str, Any]]:
    """Schedules of prefect.yaml, paused or resumed as those of the same slug stand, and those that a person added."""
    active = {schedule.slug: schedule.active for schedule in standing}
    merged = [{**schedule, "active": active.get(schedule["slug"], schedule["active"])} for schedule in described]
    for schedule in standing:
        # Prefect gives those that a person adds no slug; without one they would be taken for new each time.
        slug = schedule.slug or f"added-{schedule.id.hex[:8]}"
        if slug.startswith("added-"):
            fields = schedule.schedule.model_dump(mode="json", exclude_none=True)
            merged.append({**fields, "active": schedule.active, "slug": slug})
    return merged


async def _notification_block() -> "UUID | None":
    """The block that automations.yaml sends through; None if nobody has made it."""
    from prefect import get_client

    async with get_client() as client:
        found = [block.id for block in await client.read_block_documents() if block.name == NOTIFICATION_BLOCK]
    return found[0] if found else None


async def _recover_later(name: str) -> None:
    """Has recover-runs look again at the runs that seem to be under way now, when it can tell which of them died.

    Its own triggers may have missed them: they do not see what happens while the server is down, and forget what they
    wait for when prefect.yaml is applied.
    """
    from prefect import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
    from prefect.client.schemas.objects import StateType
    from prefect.states import Scheduled

    from flows.recover_runs import PENDING_SECONDS

    under_way = FlowRunFilterStateType(any_=[StateType.PENDING, StateType.RUNNING])
    async with get_client() as client:
        runs = await client.read_flow_runs(flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=under_way)))
        if not runs:
            return
        ids = "".join(sorted(f"{run.id} {run.state_id}" for run in runs))
        deployment = await client.read_deployment_by_name(f"recover-runs/{name}")
        await client.create_flow_run_from_deployment(
            deployment.id,
            state=Scheduled(scheduled_time=datetime.now(UTC) + timedelta(seconds=PENDING_SECONDS + MARGIN_SECONDS)),
            # Another `make up` asks for no second one.
            idempotency_key=hashlib.sha256(ids.encode()).hexdigest(),
        )


async def _apply_automations(block: "UUID | None") -> None:
    """Creates or updates what automations.yaml describes, and deletes what it no longer does."""
    from prefect import get_client
    from prefect.events.schemas.automations import AutomationCore

    async with get_client() as client:
        for name in RETIRED_AUTOMATIONS:
            for automation in await client.read_automations_by_name(name):
                await client.delete_automation(automation.id)
        for description in yaml.safe_load((ROOT / "automations.yaml").read_text())["automations"] if block else []:
            for action in description["actions"]:
                action["block_document_id"] = str(block)
            described = AutomationCore.model_validate(description)
            existing = await client.read_automations_by_name(described.name)
            if existing:
                # A person who disabled it wants it so.
                described.enabled = existing[0].enabled
                await client.update_automation(existing[0].id, described)
            else:
                await client.create_automation(described)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make up", description=__doc__)
    parser.add_argument(
        "--aws",
        choices=["local", "real"],
        default="local",
        help="real: only Prefect server and worker, which then use the shell's own AWS credentials",
    )
    real_aws = parser.parse_args().aws == "real"
    try:
        config = LocalConfig()
        bring_up(config, real_aws)
    except (services.ServicesError, DeploymentError, SettingsError, ConfigError) as error:
        return print_error(error)
    print(services.status(config))
    return 0


if __name__ == "__main__":
    sys.exit(main())
