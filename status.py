"""What runs and waits, how the last night ended, which settings differ from the defaults, and the schedules.

Exit status of `make status`: 0 if the services are up, 3 if they are down, 1 if something is wrong.
"""

import argparse
import os
import sys
import textwrap
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from botocore.exceptions import BotoCoreError, ClientError

from local_aws import services
from local_aws.config import ConfigError, LocalConfig
from local_aws.credentials import credentials
from local_aws.environment import defaults_file, enter, machine_defaults, worker_settings
from local_aws.errors import print_error
from settings import PREFIX, ROOT, Settings, SettingsError, file_values, settings, settings_file
from tasks.aws.clients import client
from tasks.errors import SconesError
from tasks.exclusive import holder

NIGHTLY = "nightly-evaluation"
# What services say by it that do not run: https://refspecs.linuxbase.org/LSB_5.0.0/LSB-Core-generic/LSB-Core-generic/iniscrptact.html
DOWN = 3
# Settings that may hold a password or a token.
SECRETS = {"prefect_database", "heartbeat_url"}


def differing() -> list[tuple[str, str, str]]:
    """Name, value and source of each setting that is not the default's: environment, settings file, or this machine.

    Raises SettingsError if one is unknown or wrong.
    """
    chosen, in_file, rows = settings(), file_values(), []
    for name, field in [*Settings.model_fields.items(), *LocalConfig.model_fields.items()]:
        variable = PREFIX + name.upper()
        sources = {"environment": os.environ, settings_file().name: in_file, "this machine": machine_defaults()}
        source = next((source for source, names in sources.items() if variable in names), None)
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


class Prefect:
    """Prefect's API by HTTP: importing its client takes longer than all else that `make status` does."""

    def __init__(self, config: LocalConfig) -> None:
        login = credentials(config).prefect_login
        self._client = httpx.Client(base_url=f"{config.prefect_url}/api", auth=login, timeout=30, trust_env=False)

    def read(self, what: str, **asked: Any) -> list[dict[str, Any]]:
        """Returns what a filter route answers, such as of flow_runs."""
        found: list[dict[str, Any]] = self._client.post(f"/{what}/filter", json=asked).raise_for_status().json()
        return found


def night(prefect: Prefect) -> str:
    """Returns how the evaluation ended that ended last."""
    ended = {"state": {"type": {"any_": ["COMPLETED", "FAILED", "CRASHED", "CANCELLED"]}}}
    runs = prefect.read(
        "flow_runs", flows={"name": {"any_": [NIGHTLY]}}, flow_runs=ended, sort="END_TIME_DESC", limit=1
    )
    if not runs:
        return "no evaluation has ended yet"
    return f"{_time(runs[0]['end_time'])}  {runs[0]['state_name']}  {runs[0]['name']}"


def in_progress(prefect: Prefect, now: datetime) -> list[str]:
    """Returns a line for each run that is under way, or waits although its time has come."""
    under_way = {"type": {"any_": ["PENDING", "RUNNING", "CANCELLING", "PAUSED"]}}
    due = {"type": {"any_": ["SCHEDULED"]}}
    runs = prefect.read("flow_runs", flow_runs={"state": under_way}, sort="EXPECTED_START_TIME_ASC", limit=200)
    runs += prefect.read(
        "flow_runs",
        flow_runs={"state": due, "next_scheduled_start_time": {"before_": now.isoformat()}},
        sort="EXPECTED_START_TIME_ASC",
        limit=200,
    )
    flows = {flow["id"]: flow["name"] for flow in prefect.read("flows", limit=200)}
    lines = []
    for run in runs:
        # A run that has not begun has a name of Prefect's own.
        name = run["name"] if run["run_count"] else f"{flows.get(run['flow_id'], '')} {run['name']}"
        lines.append(f"{run['state_name']:<14} since {_time(run['state']['timestamp'])}  {name}")
    return lines


def holds(chosen: Settings) -> list[str]:
    """Returns who holds the endpoint and the training, if somebody does."""
    try:
        outputs = client("cloudformation").describe_stacks(StackName=chosen.storage_stack)["Stacks"][0]["Outputs"]
        bucket = next(output["OutputValue"] for output in outputs if output["OutputKey"] == "Bucket")
        held = {name: holder(bucket, name) for name in (chosen.endpoint, chosen.training_hold)}
    except (BotoCoreError, ClientError, SconesError, KeyError, StopIteration):
        return []  # nothing is installed, or AWS does not answer, which doctor tells more of
    return [f"{name} is held by {hold.owner} since {_time(hold.since)}" for name, hold in held.items() if hold]


def schedules(prefect: Prefect) -> list[str]:
    """Returns a line for each schedule: deployment, when, paused or the time of the next run."""
    flows = {flow["id"]: flow["name"] for flow in prefect.read("flows", limit=200)}
    coming: dict[str, str] = {}
    for run in prefect.read(
        "flow_runs",
        flow_runs={"state": {"type": {"any_": ["SCHEDULED"]}}},
        sort="EXPECTED_START_TIME_ASC",
        limit=200,
    ):
        coming.setdefault(run["deployment_id"], run["expected_start_time"])
    lines = []
    for deployment in prefect.read("deployments", limit=200):
        start = coming.get(deployment["id"])
        following = f"next {_time(start)} UTC" if start else "nothing scheduled yet"
        for each in deployment["schedules"]:
            what = each["schedule"]
            when = what.get("cron") or what.get("rrule") or f"every {what['interval']:g} s"
            if what.get("timezone", "UTC") != "UTC":
                when += f" {what['timezone']}"
            state = following if each["active"] else "paused"
            name = f"{flows[deployment['flow_id']]}/{deployment['name']}"
            lines.append(f"{name:<28} {when:<14} {state:<32} {each['id']}")
    return sorted(lines)


def _time(text: str) -> str:
    """A time of an API as people read it, in UTC."""
    return f"{datetime.fromisoformat(text).astimezone(UTC):%Y-%m-%d %H:%M}"


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


def _print(title: str, lines: list[str], otherwise: str) -> None:
    print(f"\n{title}")
    print("\n".join(f"  {line}" for line in lines or [otherwise]))


def main() -> int:
    parser = argparse.ArgumentParser(prog="make status", description=__doc__)
    parser.add_argument("--example", action="store_true", help="print scones.env.example instead")
    if parser.parse_args().example:
        print(example(), end="")
        return 0
    try:
        config = LocalConfig()
        current = services.mode(config)
        if current == "local":
            os.environ["SCONES_DEFAULTS"] = str(defaults_file(config))  # as the flow runs have it
        print(services.status(config))
        rows = differing()
        print(f"\nsettings        {settings_file()}{'' if settings_file().exists() else ' (there is none)'}")
        print("\n".join(f"  {name}={value}  ({source})" for name, value, source in rows) or "  all are the defaults")
        if lines := worker_differences(config):
            print("the worker was started with others; `make up` applies these:")
            print("\n".join(f"  {line}" for line in lines))
        if current is None:
            return DOWN
        started = config.model_copy(update=services.running_config(config))
        if not services.answers(started, "prefect-server"):
            print("\nthe Prefect server does not answer; its log is in", config.state / "logs")
            return DOWN
        enter(started, real_aws=current == "real")
        prefect = Prefect(started)
        print(f"\nlast night      {night(prefect)}")
        _print("in progress", in_progress(prefect, datetime.now(UTC)) + holds(settings()), "nothing")
        _print("schedules", schedules(prefect), "none")
    except (services.ServicesError, SettingsError, ConfigError) as error:
        return print_error(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
