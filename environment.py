"""Environments of one project, such as dev and prod: `make deploy`, `drift`, `promote` and `remove`.

Each has its settings in environments/NAME.env and with them stacks of its own, in one account or in two.
"""

import argparse
import asyncio
import os
import shlex
import sys
from typing import Any

import yaml

from deploy import DeploymentError, apply_document, enter_installation
from local_aws import services
from local_aws.config import ConfigError, LocalConfig
from local_aws.errors import print_error
from settings import ROOT, SettingsError, file_values, settings
from tasks.errors import SconesError

FOLDER = ROOT / "environments"
# Where the image has the code: Dockerfile.
CODE = "/opt/scones"
PREFECT = ("PREFECT_API_URL", "PREFECT_API_KEY")


class EnvironmentRefused(SconesError):
    """There is no such environment, something is missing that it needs, or the shell contradicts it."""


def choose(name: str, real_aws: bool) -> None:
    """Makes the environment's settings those of this process; with AWS=real the Prefect server stays the shell's."""
    file = FOLDER / f"{name}.env"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in FOLDER.glob("*.env")))
        raise EnvironmentRefused(f"there is no environment {name!r}", f"environments/ has {known}")
    prefect = {variable: os.environ[variable] for variable in PREFECT if variable in os.environ}
    if real_aws and "PREFECT_API_URL" not in prefect:
        raise EnvironmentRefused("PREFECT_API_URL is not set", "set it to the API that workers on ECS can reach")
    os.environ["SCONES_SETTINGS"] = str(file)
    settings.cache_clear()
    differing = sorted(
        variable for variable, value in file_values().items() if os.environ.get(variable, value) != value
    )
    if differing:
        raise EnvironmentRefused(
            f"this shell exports {', '.join(differing)}, otherwise than environments/{name}.env", "unset them"
        )
    enter_installation(real_aws)
    if real_aws:
        os.environ.update(prefect)


def deployments(name: str, work_pool: str) -> dict[str, Any]:
    """prefect.yaml for an ECS work pool: the same deployments, called like the environment, with its settings.

    They hear only the events of this environment, which may share the Prefect server with others.
    """
    document: dict[str, Any] = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    variables = {variable: value for variable, value in file_values().items() if value is not None}
    document["pull"] = [{"prefect.deployments.steps.set_working_directory": {"directory": CODE}}]
    for deployment in document["deployments"]:
        deployment["name"] = name
        deployment["work_pool"] = {"name": work_pool, "job_variables": {"env": variables}}
        for trigger in deployment.get("triggers", []):
            if all(event.startswith("scones.") for event in trigger["expect"]):
                trigger["match"] = {**trigger["match"], "scones.stack": settings().stack}
    return document


def image_steps(image: str) -> dict[str, list[dict[str, Any]]]:
    """Prefect's steps that build the image of flow runs and push it, of one deployment. image: REPOSITORY:TAG."""
    shell, registry = "prefect.deployments.steps.run_shell_script", image.split("/")[0]
    # A step's script is no shell's, and the password goes from one program to the other.
    push = (
        f"aws ecr get-login-password | docker login --username AWS --password-stdin {registry} && docker push {image}"
    )
    where = {"directory": str(ROOT), "stream_output": True}
    return {
        "build": [{shell: {"script": f"make image IMAGE={image}", **where}}],
        "push": [{shell: {"script": f"sh -c {shlex.quote(push)}", **where}}],
    }


def job_template(outputs: dict[str, str]) -> dict[str, Any]:
    """Of the ECS work pool: the runner stack's cluster, task definition and network, as its defaults."""
    from prefect_aws.workers.ecs_worker import ECSWorker

    template: dict[str, Any] = ECSWorker.get_default_base_job_template()
    chosen = settings()
    defaults = {
        "cluster": outputs["ClusterArn"],
        "task_definition_arn": outputs["FlowRunTaskDefinitionArn"],
        "container_name": "prefect",
        "launch_type": "FARGATE",
        "vpc_id": chosen.runner_vpc,
        "network_configuration": {
            "subnets": list(chosen.runner_subnets),
            "securityGroups": [outputs["SecurityGroupId"]],
            "assignPublicIp": "ENABLED" if chosen.runner_public_ip else "DISABLED",
        },
        "labels": chosen.tags,
        # Without it the worker would write its own key, in clear text, into each request for a task.
        "prefect_api_key_secret_arn": chosen.runner_api_key_secret,
    }
    for variable, value in defaults.items():
        template["variables"]["properties"][variable]["default"] = value
    return template


async def _create_or_update_pool(name: str, template: dict[str, Any]) -> None:
    from prefect import get_client
    from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
    from prefect.exceptions import ObjectAlreadyExists

    async with get_client() as client:
        try:
            await client.create_work_pool(WorkPoolCreate(name=name, type="ecs", base_job_template=template))
        except ObjectAlreadyExists:
            await client.update_work_pool(name, WorkPoolUpdate(base_job_template=template))


def deploy(name: str, config: LocalConfig, build: bool = False) -> None:
    """Stacks, and if they run on ECS the work pool and the deployments. What is as it should be is left alone.

    build: build the image of flow runs too, and push it, which takes Docker.
    """
    from tasks.aws.stacks import deploy_runner_stack, deploy_stacks

    deploy_stacks(print)
    chosen = settings()
    if not chosen.runner_vpc:
        print(f"SCONES_RUNNER_VPC is not set in environments/{name}.env: no cluster, work pool or deployment is made")
        return
    pool = chosen.stack
    outputs = deploy_runner_stack(os.environ["PREFECT_API_URL"], pool, print)
    asyncio.run(_create_or_update_pool(pool, job_template(outputs)))
    print(f"work pool {pool}: type ecs")
    folder = config.state / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    document = deployments(name, pool)
    if build:
        # Once: steps above all deployments would run for each of them.
        document["deployments"][0] |= image_steps(f"{outputs['RepositoryUri']}:{chosen.runner_image_tag}")
    apply_document(document, name, folder / f"prefect-{name}.yaml", folder / f"deploy-{name}.log")
    print(f"deployments: applied, such as pipeline/{name}")
    if not chosen.runner_workers:
        print(
            f"no worker runs yet: have {outputs['RepositoryUri']}:{chosen.runner_image_tag} built and pushed "
            "(BUILD=yes), then set SCONES_RUNNER_WORKERS=1 and run this again"
        )


def show_drift() -> int:
    """Prints what is not as the templates say; returns the number of such resources."""
    from tasks.aws.drift import drift

    chosen, found = settings(), 0
    for stack in (chosen.storage_stack, chosen.stack, chosen.alarms_stack, chosen.runner_stack):
        lines = drift(stack)
        if lines is None:
            continue
        print(f"stack {stack}: {'as its template says' if not lines else f'{len(lines)} changed by hand'}")
        for line in lines:
            print(f"  {line}")
        found += len(lines)
    return found


def remove(confirm: str | None) -> None:
    """Deletes everything that the environment has in AWS, for good, if `confirm` is its stack's name."""
    from flows.teardown import teardown

    teardown(everything=True, confirm=confirm)


def promote(number: int, source: str, target: str, real_aws: bool) -> None:
    """Makes a version that is approved in one environment an approved one of another."""
    from tasks.aws.stacks import installation
    from tasks.model import promotion
    from tasks.model.registry import find_version

    choose(source, real_aws)
    version, classes = find_version(number), installation().classes
    choose(target, real_aws)
    promotion.promote(version, classes, installation(), print)
    print(f"deploy it: prefect deployment run 'deploy-endpoint/{target}'")


def main() -> int:
    parser = argparse.ArgumentParser(prog="environment.py", description=__doc__)
    parser.add_argument("--aws", choices=["local", "real"], default="local", help="real: the shell's AWS and Prefect")
    commands = parser.add_subparsers(dest="command", required=True)
    for command, explained in (("deploy", deploy.__doc__), ("drift", show_drift.__doc__)):
        one = commands.add_parser(command, help=str(explained).split(".")[0])
        one.add_argument("environment", help="a file of environments/, without .env")
        if command == "deploy":
            one.add_argument("--build", action="store_true", help="build the image of flow runs and push it, by Docker")
    two = commands.add_parser("promote", help=str(promote.__doc__))
    two.add_argument("version", type=int, help="its number, such as 7")
    two.add_argument("--source", required=True)
    two.add_argument("--target", required=True)
    three = commands.add_parser("remove", help=str(remove.__doc__))
    three.add_argument("environment")
    three.add_argument("--confirm", help="the name of its stack")
    chosen = parser.parse_args()
    real_aws = chosen.aws == "real"
    try:
        if chosen.command == "promote":
            promote(chosen.version, chosen.source, chosen.target, real_aws)
            return 0
        choose(chosen.environment, real_aws)
        if chosen.command == "drift":
            return 1 if show_drift() else 0
        if chosen.command == "remove":
            remove(chosen.confirm)
            return 0
        deploy(chosen.environment, LocalConfig(), chosen.build)
    except (services.ServicesError, DeploymentError, SettingsError, ConfigError, SconesError) as error:
        return print_error(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
