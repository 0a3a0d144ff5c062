"""Starts the services and applies prefect.yaml and automations.yaml: `make up`."""

import argparse
import asyncio
import hashlib
import subprocess
import sys
from pathlib import Path

import yaml

from local_aws import services
from local_aws.config import ROOT, LocalConfig
from local_aws.environment import enter

FILES = ("prefect.yaml", "automations.yaml")


class DeploymentError(Exception):
    """prefect.yaml could not be applied; the message has Prefect's words."""


def bring_up(config: LocalConfig, real_aws: bool = False) -> None:
    """Services up, deployments and automations as the files say. What stands already is left alone."""
    enter(config, real_aws)
    services.up(config, real_aws)
    marker = config.state / "prefect" / "deployed"
    digest = _digest()
    if marker.exists() and marker.read_text() == digest:
        return
    print("applying prefect.yaml")
    _apply_deployments(config.state / "logs" / "deploy.log")
    asyncio.run(_apply_automations())
    marker.write_text(digest)


def _digest() -> str:
    """Of everything that decides what a deployment looks like in Prefect."""
    sources = [ROOT / name for name in FILES] + sorted((ROOT / "flows").glob("*.py"))
    content = b"".join(path.read_bytes() for path in sources) + str(ROOT).encode()
    return hashlib.sha256(content).hexdigest()


def _apply_deployments(log: Path) -> None:
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    with log.open("w") as file:
        done = subprocess.run(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
    if done.returncode:
        tail = "\n".join(log.read_text().splitlines()[-20:])
        raise DeploymentError(f"prefect deploy failed; the end of {log}:\n{tail}")


async def _apply_automations() -> None:
    from prefect import get_client
    from prefect.events.schemas.automations import AutomationCore

    async with get_client() as client:
        for description in yaml.safe_load((ROOT / "automations.yaml").read_text())["automations"]:
            automation = AutomationCore.model_validate(description)
            existing = await client.read_automations_by_name(automation.name)
            if existing:
                await client.update_automation(existing[0].id, automation)
            else:
                await client.create_automation(automation)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--aws",
        choices=["local", "real"],
        default="local",
        help="real: only Prefect server and worker, which then use the shell's own AWS credentials",
    )
    real_aws = parser.parse_args().aws == "real"
    config = LocalConfig()
    try:
        bring_up(config, real_aws)
    except (services.ServicesError, DeploymentError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(services.status(config))
    return 0


if __name__ == "__main__":
    sys.exit(main())
