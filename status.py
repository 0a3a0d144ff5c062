"""What runs, where it listens, which settings differ from their defaults, and which schedules are on: `make status`."""

import argparse
import asyncio
import os
import sys
import textwrap
from pathlib import Path
from typing import Any

from local_aws import services
from local_aws.config import ConfigError, LocalConfig
from local_aws.environment import enter, worker_settings
from local_aws.errors import print_error
from settings import PREFIX, ROOT, Settings, SettingsError, file_values, settings, settings_file

# Settings that may hold a password or a token.
SECRETS = {"prefect_database", "heartbeat_url"}


def differing() -> list[tuple[str, str, str]]:
    """Name, value and source of each setting that is not the default's: of the settings file, or the environment.

    Raises SettingsError if one is unknown or wrong.
    """
    chosen, rows = settings(), []
    for name, field in [*Settings.model_fields.items(), *LocalConfig.model_fields.items()]:
        variable = PREFIX + name.upper()
        source = (
            "environment" if variable in os.environ else settings_file().name if variable in file_values() else None
        )
        value = getattr(chosen, name, None) if name in Settings.model_fields else getattr(LocalConfig(), name)
        if source and value != field.default:
            shown = ",".join(value) if isinstance(value, tuple) else str(value)
            if name in SECRETS:
                shown = "(set)"
            rows.append((variable, shown, source))
    return sorted(rows)


def worker_differences(config: LocalConfig) -> list[str]:
    """Settings with which the running worker was started and a new one would not be, or the other way round."""
    running = services.running_settings(config)
    if not running:
        return []
    wanted = worker_settings(config, real_aws=services.mode(config) == "real")
    names = sorted(name for name in running.keys() | wanted.keys() if running.get(name) != wanted.get(name))
    return [f"{name}: {running.get(name, 'not set')}, now {wanted.get(name, 'not set')}" for name in names]


async def schedules() -> list[str]:
    """A line for each schedule: deployment, when, paused or the time of the next run."""
    from prefect import get_client
    from prefect.client.schemas.filters import (
        DeploymentFilter,
        DeploymentFilterId,
        FlowRunFilter,
        FlowRunFilterState,
        FlowRunFilterStateType,
    )
    from prefect.client.schemas.objects import StateType
    from prefect.client.schemas.sorting import FlowRunSort

    lines = []
    scheduled = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])))
    async with get_client() as client:
        for deployment in await client.read_deployments():
            if not deployment.schedules:
                continue
            flow = await client.read_flow(deployment.flow_id)
            upcoming = await client.read_flow_runs(
                deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[deployment.id])),
                flow_run_filter=scheduled,
                sort=FlowRunSort.EXPECTED_START_TIME_ASC,
                limit=1,
            )
            start = upcoming[0].expected_start_time if upcoming else None
            following = f"next {start:%Y-%m-%d %H:%M} UTC" if start else "nothing scheduled yet"
            for each in deployment.schedules:
                what: Any = each.schedule
                when = getattr(what, "cron", None) or getattr(what, "rrule", None) or f"every {what.interval}"
                state = following if each.active else "paused"
                lines.append(f"{flow.name + '/' + deployment.name:<28} {when:<14} {state:<32} {each.id}")
    return lines


def example() -> str:
    """The content of scones.env.example: every setting with its meaning and its default, none of them set."""
    lines = [
        "# Settings of an installation. Copy this file to scones.env, which git ignores, and uncomment what to change.",
        "# Every command and every flow run reads it; a variable of the same name in the environment wins.",
    ]
    for model in (Settings, LocalConfig):
        for name, field in model.model_fields.items():
            text = " ".join((field.description or "").split())
            if isinstance(field.default, Path):
                default = os.path.relpath(field.default, ROOT)
            elif isinstance(field.default, tuple):
                default = ",".join(field.default)
            else:
                default = "" if field.default is None else str(field.default)
            comment = textwrap.wrap(text[:1].upper() + text[1:], 116) or [""]
            lines += ["", *(f"# {line}".rstrip() for line in comment if line), f"#{PREFIX}{name.upper()}={default}"]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(prog="make status", description=__doc__)
    parser.add_argument("--example", action="store_true", help="print scones.env.example instead")
    if parser.parse_args().example:
        print(example(), end="")
        return 0
    try:
        config = LocalConfig()
        print(services.status(config))
        rows = differing()
        print(f"\nsettings        {settings_file()}{'' if settings_file().exists() else ' (there is none)'}")
        print("\n".join(f"  {name}={value}  ({source})" for name, value, source in rows) or "  all are the defaults")
        if lines := worker_differences(config):
            print("the worker was started with others; `make up` applies these:")
            print("\n".join(f"  {line}" for line in lines))
        current = services.mode(config)
        if current and services.answers(config.model_copy(update=services.running_config(config)), "prefect-server"):
            enter(config.model_copy(update=services.running_config(config)), real_aws=current == "real")
            print("\nschedules")
            print("\n".join(f"  {line}" for line in asyncio.run(schedules())) or "  none")
    except (services.ServicesError, SettingsError, ConfigError) as error:
        return print_error(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
