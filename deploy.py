"""Starts the services and applies prefect.yaml: `make up`."""

import argparse
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import yaml

import schedules
from local_aws import services
from local_aws.config import ROOT, ConfigError, LocalConfig
from local_aws.credentials import credentials
from local_aws.environment import enter, work_pool
from local_aws.errors import print_error
from settings import SettingsError, settings
from tasks.errors import SconesError

if TYPE_CHECKING:
    from prefect.client.schemas.responses import DeploymentResponse

NOTIFICATION_BLOCK = "scones-notify"
EXPIRING = (
    "warning: the shell's AWS_SESSION_TOKEN is temporary, and scheduled runs fail when it has expired; set AWS_PROFILE "
    "to a profile that renews itself (SSO, an assumed role), or run the worker where it has a role"
)


class DeploymentError(Exception):
    """prefect.yaml could not be applied, or there are no credentials; the message says what to do."""


def bring_up(config: LocalConfig, real_aws: bool = False) -> None:
    """Services up, and deployments as prefect.yaml says. What stands already is left alone."""
    settings()  # wrong ones are refused before anything starts
    if real_aws:
        services.refuse_local_shell(config)
    enter(config, real_aws)
    settings.cache_clear()
    if real_aws:
        _check_credentials()
        if os.environ.get("AWS_SESSION_TOKEN"):
            print(EXPIRING)
    if "classes" in settings().model_fields_set:
        from tasks.data.dataset import check_classes  # numpy takes its time

        check_classes(settings().dataset, settings().classes)
    for line in services.up(config, real_aws):
        print(line)
    marker = config.prefect_home(real_aws) / "deployed"
    digest, name = _digest(real_aws), work_pool(real_aws)
    if not marker.exists() or marker.read_text() != digest:
        print("applying prefect.yaml")
        _apply_deployments(config, marker.parent, name)
        marker.write_text(digest)
    _try_notifications(config, marker.parent / "notified")


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
    sources = [ROOT / name for name in ("prefect.yaml", "deploy.py", "schedules.py")]
    sources += sorted((ROOT / "flows").glob("*.py"))
    times = [getattr(settings(), name) for name in ("schedule_timezone", *schedules.TIMES.values())]
    content = b"".join(path.read_bytes() for path in sources) + f"{ROOT} {real_aws} {times}".encode()
    return hashlib.sha256(content).hexdigest()


def _apply_deployments(config: LocalConfig, home: Path, name: str) -> None:
    document = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    for deployment in document["deployments"]:
        deployment["name"] = deployment["work_pool"]["name"] = name
    apply_document(document, name, home / "prefect.yaml", config.state / "logs" / "deploy.log")


def apply_document(document: dict[str, Any], name: str, file: Path, log: Path) -> None:
    """Has Prefect deploy the document, whose deployments all have this name; raises DeploymentError if it does not.

    What a person changed in schedules and parameters stays, and is said in a line.
    """
    for deployment in document["deployments"]:
        schedules.with_settings(deployment, settings())
    described = {each["entrypoint"]: schedules.applied(each) for each in document["deployments"]}
    standing, before = _read_standing(name)
    document["deployments"] = [
        schedules.merge(each, before.get(each["entrypoint"]), standing[each["entrypoint"]], print)
        if each["entrypoint"] in standing
        else each
        for each in document["deployments"]
    ]
    file.write_text(yaml.safe_dump(document, sort_keys=False))
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(file)]
    with log.open("w") as output:
        done = subprocess.run(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
    if done.returncode:
        tail = "\n".join(log.read_text().splitlines()[-20:])
        raise DeploymentError(f"prefect deploy failed; the end of {log}:\n{tail}")
    _remember_applied(name, described)


def _read_standing(name: str) -> "tuple[dict[str | None, DeploymentResponse], dict[str, Any]]":
    """Returns the deployments of that name and what was applied last, both by entrypoint."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        standing = {each.entrypoint: each for each in client.read_deployments() if each.name == name}
        variable = client.read_variable_by_name(_applied_variable(name))
    before: Any = variable.value if variable is not None and standing else {}
    return standing, before


def _remember_applied(name: str, described: dict[str, Any]) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import VariableCreate, VariableUpdate

    variable = _applied_variable(name)
    with get_client(sync_client=True) as client:
        if client.read_variable_by_name(variable) is None:
            client.create_variable(VariableCreate(name=variable, value=described))
        else:
            client.update_variable(VariableUpdate(name=variable, value=described))


def _applied_variable(name: str) -> str:
    """The Prefect variable that keeps what was applied, so that another machine can tell a person's changes too."""
    return f"scones_applied_{name.replace('-', '_')}"


def _try_notifications(config: LocalConfig, marker: Path) -> None:
    """Sends a message once through a notification block that is new or changed, so that a wrong one shows at once.

    Raises DeploymentError if the block can't send it.
    """
    state = _block_state(config)
    if state is None or (marker.exists() and marker.read_text() == state):
        return
    from prefect.client.orchestration import get_client

    from watch import notices

    try:
        with get_client(sync_client=True) as client:
            document = notices.find_block(client)
        assert document is not None, "it was just there"
        notices.send(document, "Scones Unlimited", "Messages about its runs will come here.")
    except Exception as error:  # whatever a service outside, or a block of somebody's own, raises
        raise DeploymentError(f"no message can be sent through the block {notices.BLOCK}: {error}") from error
    marker.write_text(state)
    print(f"sent a first message through the block {notices.BLOCK}")


def _block_state(config: LocalConfig) -> str | None:
    """Returns what tells one notification block, and one state of it, from another; None if there is none.

    Asks by HTTP, as importing Prefect takes longer than all else that `make up` does when everything is up.
    """
    asked = {"block_documents": {"name": {"any_": [NOTIFICATION_BLOCK]}}}
    url = f"{config.prefect_url}/api/block_documents/filter"
    login = credentials(config).prefect_login
    found = httpx.post(url, json=asked, auth=login, timeout=30, trust_env=False).raise_for_status().json()
    return f"{found[0]['id']} {found[0]['updated']}" if found else None


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
    except (services.ServicesError, DeploymentError, SettingsError, ConfigError, SconesError) as error:
        return print_error(error)
    print(services.status(config))
    return 0


if __name__ == "__main__":
    sys.exit(main())
