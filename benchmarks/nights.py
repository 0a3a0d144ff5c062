"""What lies between runs: python -m benchmarks.nights.

A week of scheduled nights in fast motion. In a copy of the checkout the README's commands start a stack of its own, and
the nightly deployment is given a schedule of every 40 seconds, which is resumed. Between the nights models are trained
and rolled out, a worker is killed in the middle of a night, everything is stopped and started again, and `make up`
applies a changed flow file. Then every night is held against what was promised. A second part counts the messages that
Prefect's server loses.
Exits with 1 if a promise is broken.
"""

import argparse
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from benchmarks.figure import HEADING, Figure
from local_aws import services
from local_aws.config import ROOT, LocalConfig, free_port
from local_aws.environment import enter
from settings import run_id

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

# A small model and few images: it is the nights that are counted.
CHOSEN = {
    "GENERATED_PER_CLASS": "100",
    "GENERATED_TEST_PER_CLASS": "10",
    "EPOCHS": "12",
    "FOLDS": "2",
    "REPEATS": "1",
    "MINI_BATCH_SIZE": "16",
    "GATE_MIN_ACCURACY": "0",
    "GATE_MARGIN": "1",
    "SMOKE_MIN_ACCURACY": "0",
    "EVALUATION_MIN_ACCURACY": "0",
    "EVALUATION_MIN_COVERAGE": "0",
}
NIGHTLY = "nightly-evaluation/local"
# What happens after that share of the nights has ended.
TRAIN_AND_ROLL_OUT = (1 / 6, 4 / 5)
KILL_WORKER, RESTART, CHANGED_FLOW = 1 / 3, 1 / 2, 2 / 3
# From one night to the next.
INTERVAL_SECONDS = 40
NIGHT_SECONDS = 600
TERMINAL = {"COMPLETED", "FAILED", "CANCELLED"}
# Nights in the second part after which it waits for their reports.
BATCH = 20


@dataclass
class Week:
    """What was seen while the nights went by. verdicts: ETag of each summary when it was first there, by its key."""

    verdicts: dict[str, str] = field(default_factory=dict)
    done: dict[str, str] = field(default_factory=dict)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.nights", description=__doc__)
    parser.add_argument("--nights", type=int, default=30, help="scheduled nights (default: 30)")
    parser.add_argument("--messages", type=int, default=200, help="nights in which lost messages are counted")
    parser.add_argument("--part", choices=["week", "messages"], help="only a part")
    arguments = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        checkout = _copy_checkout(Path(name) / "checkout")
        config = _own_stack(Path(name), checkout)
        try:
            _make(checkout, "up")
            _run_to_the_end("prepare-data/local", {"dataset": "generated"})
            _run_to_the_end("train-model/local")
            _run_to_the_end("deploy-endpoint/local")
            figures: list[Figure] = []
            print(HEADING, flush=True)
            if arguments.part != "messages":
                figures += _week(config, checkout, arguments.nights)
            if arguments.part != "week":
                figures += _messages(arguments.messages)
        finally:
            services.down(config)
    return int(any(figure.missed for figure in figures))


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _copy_checkout(folder: Path) -> Path:
    """The files that git knows, so that one of them can be changed, with the environment that is set up here."""
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    for name in filter(None, names):
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    (folder / ".venv").symlink_to(ROOT / ".venv")
    return folder


def _own_stack(folder: Path, checkout: Path) -> LocalConfig:
    """Settings in a file of the copy, as a user has them; this process joins the stack."""
    for name in [name for name in os.environ if name.startswith("SCONES_")]:
        del os.environ[name]
    ports = {f"{name}_PORT": str(free_port()) for name in ("PREFECT", "AWS", "SAGEMAKER")}
    chosen = {**CHOSEN, **ports, "STATE": str(folder / "state"), "REPORTS": str(folder / "reports")}
    (checkout / "scones.env").write_text("".join(f"SCONES_{name}={value}\n" for name, value in chosen.items()))
    os.environ["SCONES_SETTINGS"] = str(checkout / "scones.env")
    config = LocalConfig()
    enter(config)
    return config


def _make(checkout: Path, target: str) -> None:
    """A README command, from the shell of somebody who has nothing set."""
    own = ("SCONES_", "PREFECT_", "AWS_", "SAGEMAKER_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    subprocess.run(["make", target], cwd=checkout, env=environment, check=True, stdout=subprocess.DEVNULL)


def _week(config: LocalConfig, checkout: Path, nights: int) -> list[Figure]:
    """Lets the schedule run until so many nights have ended, disturbs them, and checks all of them."""
    week = Week()
    _resume_added_schedule()
    began, paused = time.monotonic(), False
    while True:
        with _client() as prefect:
            runs = _scheduled_nights(prefect)
            ended = [run for run in runs if str(run.state_type.value if run.state_type else "") in TERMINAL]
            waiting = [run for run in runs if run not in ended]
        _note_verdicts(week)
        for moment in TRAIN_AND_ROLL_OUT:
            if len(ended) >= moment * nights and f"model {moment}" not in week.done:
                week.done[f"model {moment}"] = "trained and rolled out"
                _train_and_roll_out(seed=round(moment * nights))
        if len(ended) >= KILL_WORKER * nights and "kill" not in week.done and _kill_worker(config):
            week.done["kill"] = "worker and flow run killed"
        if len(ended) >= RESTART * nights and "restart" not in week.done:
            _make(checkout, "down")
            _make(checkout, "up")
            week.done["restart"] = "make down && make up"
        if len(ended) >= CHANGED_FLOW * nights and "changed" not in week.done:
            flow = checkout / "flows" / "nightly_evaluation.py"
            flow.write_text(flow.read_text() + "\n# changed\n")
            _make(checkout, "up")
            week.done["changed"] = "make up after a changed flow file"
        if len(ended) >= nights and not paused:
            _pause_schedules()
            paused = True
        if paused and not waiting and not _unfinished():
            break
        if time.monotonic() - began > nights * 60 + 3600:
            break
        time.sleep(3)
    time.sleep(5)
    _note_verdicts(week)
    for what in week.done.values():
        print(f"  done meanwhile: {what}", flush=True)
    return _checked(week, (time.monotonic() - began) / 60)


def _checked(week: Week, minutes: float) -> list[Figure]:
    """Every promise, as a count of the nights that broke it."""
    with _client() as prefect:
        runs = _scheduled_nights(prefect)
        histories = {run.id: prefect.read_flow_run_states(run.id) for run in runs}
        reports = _reports(prefect)
    n = f"{len(runs)} nights"
    broken: Counter[str] = Counter()
    names = Counter(run_id(run.id) for run in runs)
    for run in runs:
        states = histories[run.id]
        ends = [state for state in states if state.type.value in TERMINAL]
        verdict = next((key for key in week.verdicts if f"/{run_id(run.id)}/" in key), None)
        broken["not started by their schedule"] += not run.auto_scheduled
        broken["with the RUN of another night"] += names[run_id(run.id)] > 1
        broken["that did not end, or more than once"] += len(ends) != 1
        broken["without a verdict"] += verdict is None
        broken["without a report, or with more than one"] += reports[run_id(run.id)] != 1
        broken["whose name or state lacks the verdict"] += " | " not in run.name or run.state_name == "Completed"
    broken["whose verdict changed"] = sum(tag != _etag(key) for key, tag in week.verdicts.items())
    broken["still waiting"] = len(_unfinished())
    late = [
        (run.start_time - run.expected_start_time).total_seconds()
        for run in runs
        if run.start_time and run.expected_start_time
    ]
    resumed = sum(any(state.type.value == "CRASHED" for state in histories[run.id]) for run in runs)
    figures = [Figure(f"nights {what}", count, "", n, at_most=0) for what, count in broken.items()]
    figures += [
        Figure("nights started by a schedule", len(runs), "", "in one go"),
        Figure("nights that crashed and were resumed by themselves", resumed, "", n, at_least=1),
        Figure("longest wait for a night's turn", max(late, default=0) / 60, "min", n),
        Figure("tracebacks in the server's log", _tracebacks(), "", n, at_most=0),
        Figure("minutes in all", minutes, "min", "1 run"),
    ]
    for figure in figures:
        print(figure, flush=True)
    return figures


def _messages(nights: int) -> list[Figure]:
    """Runs nights one after the other and counts those of which the server does not have every message.

    In this process, so that they follow each other closely; the reports that their events start run meanwhile.
    """
    lost, runs = 0, 0
    print(f"  counting the messages of {nights} nights", flush=True)
    logging.disable(logging.CRITICAL)
    while runs < nights:
        began = datetime.now(UTC)
        batch = [_evaluate() for _ in range(min(BATCH, nights - runs))]
        _wait_for_reports(len(batch), began)
        with _client() as prefect:
            lost += sum(not _all_messages(prefect, run) for run in batch)
        runs += len(batch)
        print(f"  {runs} nights, {lost} with a lost message", flush=True)
    figures = [
        Figure(f"of {nights} nights, those of which a message was lost", lost, "", f"{nights} nights", at_most=1)
    ]
    print(figures[0], flush=True)
    return figures


def _evaluate() -> UUID:
    """Runs a night here and returns its flow run's id."""
    from flows.nightly_evaluation import nightly_evaluation

    state = nightly_evaluation(return_state=True)
    identifier = state.state_details.flow_run_id
    assert identifier is not None
    return identifier


def _wait_for_reports(count: int, since: datetime) -> None:
    """Until so many reports have ended that were started since then, or none comes any more."""
    deadline = time.monotonic() + NIGHT_SECONDS
    while time.monotonic() < deadline:
        with _client() as prefect:
            deployment = prefect.read_deployment_by_name("confidence-report/local")
            reports = [
                run
                for run in _all_runs(prefect)
                if run.deployment_id == deployment.id and run.created and run.created >= since
            ]
        ended = [run for run in reports if run.state_type and run.state_type.value in TERMINAL]
        if len(ended) >= count:
            return
        if len(ended) == len(reports) and time.monotonic() > deadline - NIGHT_SECONDS + 60:
            return
        time.sleep(3)


def _all_messages(prefect: "SyncPrefectClient", run: UUID) -> bool:
    """Whether the server has the run's start and end and the evaluation's event, and started its report."""
    from prefect.events.filters import EventFilter, EventResourceFilter

    wanted = [f"prefect.flow-run.{run}", f"scones.evaluation.{run_id(run)}"]
    page = prefect.read_events(EventFilter(resource=EventResourceFilter(id=wanted)), limit=50)
    names = {event.event.rsplit(".", 1)[1] for event in page.events}
    return {"Running", "completed"} <= names and bool({"Passed", "Missed"} & names) and _reported(prefect, run)


def _reported(prefect: "SyncPrefectClient", run: UUID) -> bool:
    return _reports(prefect)[run_id(run)] > 0


def _client() -> "SyncPrefectClient":
    from prefect.client.orchestration import get_client

    return get_client(sync_client=True)


def _resume_added_schedule() -> None:
    """A schedule of many nights an hour, added paused and then resumed as the README says."""
    interval = ["--interval", str(INTERVAL_SECONDS), "--no-active"]
    subprocess.run(
        ["prefect", "deployment", "schedule", "create", NIGHTLY, *interval],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    with _client() as prefect:
        schedules = prefect.read_deployment_by_name(NIGHTLY).schedules
    added = next(each for each in schedules if hasattr(each.schedule, "interval"))
    subprocess.run(
        ["prefect", "deployment", "schedule", "resume", NIGHTLY, str(added.id)], check=True, stdout=subprocess.DEVNULL
    )


def _pause_schedules() -> None:
    with _client() as prefect:
        for each in prefect.read_deployment_by_name(NIGHTLY).schedules:
            if each.active:
                subprocess.run(
                    ["prefect", "deployment", "schedule", "pause", NIGHTLY, str(each.id)],
                    check=True,
                    stdout=subprocess.DEVNULL,
                )


def _scheduled_nights(prefect: "SyncPrefectClient") -> "list[FlowRun]":
    """Runs of the nightly deployment whose time has come."""
    deployment = prefect.read_deployment_by_name(NIGHTLY)
    now = datetime.now(UTC)
    runs = [run for run in _all_runs(prefect) if run.deployment_id == deployment.id]
    return [run for run in runs if run.auto_scheduled and run.expected_start_time and run.expected_start_time <= now]


def _all_runs(prefect: "SyncPrefectClient") -> "list[FlowRun]":
    runs: list[FlowRun] = []
    while page := prefect.read_flow_runs(limit=200, offset=len(runs)):
        runs += page
    return runs


def _unfinished() -> "list[FlowRun]":
    """Runs of any deployment that are under way, or whose time has come and that wait."""
    now = datetime.now(UTC)
    with _client() as prefect:
        return [
            run
            for run in _all_runs(prefect)
            if run.state_type is not None
            and run.state_type.value not in TERMINAL
            and not (run.expected_start_time and run.expected_start_time > now)
        ]


def _reports(prefect: "SyncPrefectClient") -> Counter[str]:
    """How many runs of confidence-report completed for each evaluation's RUN."""
    deployment = prefect.read_deployment_by_name("confidence-report/local")
    runs = [run for run in _all_runs(prefect) if run.deployment_id == deployment.id]
    return Counter(str(run.parameters.get("run")) for run in runs)


def _wait_for_end(prefect: "SyncPrefectClient", run: UUID) -> None:
    deadline = time.monotonic() + NIGHT_SECONDS
    while True:
        state = prefect.read_flow_run(run).state
        if state is not None and state.type.value in TERMINAL:
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"flow run {run} is {state} after {NIGHT_SECONDS} s")
        time.sleep(0.5)


def _run_to_the_end(deployment: str, parameters: dict[str, Any] | None = None) -> None:
    with _client() as prefect:
        found = prefect.read_deployment_by_name(deployment)
        run = prefect.create_flow_run_from_deployment(found.id, parameters=parameters or {}).id
        _wait_for_end(prefect, run)
        state = prefect.read_flow_run(run).state
        assert state is not None and state.is_completed(), state


def _train_and_roll_out(seed: int) -> None:
    _run_to_the_end("train-model/local", {"hyperparameters": {"seed": seed}})
    _run_to_the_end("deploy-endpoint/local")


def _kill_worker(config: LocalConfig) -> bool:
    """SIGKILL for the worker and for the process of the next night as soon as it runs; False if none did."""
    from testing.flow_runs import processes_of, worker_processes

    deadline = time.monotonic() + 90
    with _client() as prefect:
        while time.monotonic() < deadline:
            running = [run for run in _scheduled_nights(prefect) if run.state_name == "Running"]
            if running and (processes := processes_of(running[0].id)):
                for process in [*worker_processes(config), *processes]:
                    process.kill()
                state = prefect.read_flow_run(running[0].id).state_name
                if state == "Running":
                    return True
            time.sleep(0.1)
    return False


def _note_verdicts(week: Week) -> None:
    """Remembers each summary as it was when it was first seen."""
    for page in _s3().get_paginator("list_objects_v2").paginate(Bucket=_bucket(), Prefix="evaluations/"):
        for item in page.get("Contents", []):
            if "/summary" in item["Key"]:
                week.verdicts.setdefault(item["Key"], item["ETag"])


def _etag(key: str) -> str:
    found: str = _s3().head_object(Bucket=_bucket(), Key=key)["ETag"]
    return found


def _s3() -> Any:
    import boto3

    return boto3.client("s3")


def _bucket() -> str:
    name: str = _s3().list_buckets()["Buckets"][0]["Name"]
    return name


def _tracebacks() -> int:
    log = Path(os.environ["SCONES_STATE"]) / "logs" / "prefect-server.log"
    return log.read_text(errors="replace").count("Traceback (most recent call last)")


if __name__ == "__main__":
    sys.exit(main())
