"""What lies between runs: python -m benchmarks.nights.

Thirty scheduled nights in fast motion, most of them interrupted in the middle, as a seed draws it. In a copy of the
checkout the README's commands start a stack of its own, and the nightly deployment is given a schedule of every
INTERVAL_SECONDS. While a night evaluates, everything is stopped and started again, or parts are killed, or all of it
as by a reboot, or a flow file, a schedule, a setting or the training set is changed. A webhook notes every message.
In the end each night is held against what was promised. Exits with 1 if a promise is broken.
"""

import argparse
import http.server
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from uuid import UUID

import httpx
import psutil

from benchmarks.figure import HEADING, Figure
from local_aws import services
from local_aws.config import ROOT, LocalConfig, free_port
from local_aws.environment import enter
from settings import run_id, settings

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

# A small model, few images and one execution at a time: it is the nights that are counted, and they have a middle.
CHOSEN = {
    "GENERATED_PER_CLASS": "60",
    "GENERATED_TEST_PER_CLASS": "20",
    "EPOCHS": "10",
    "FOLDS": "2",
    "MINI_BATCH_SIZE": "16",
    "GATE_MIN_ACCURACY": "0",
    "GATE_MARGIN": "1",
    "SMOKE_MIN_ACCURACY": "0",
    "EVALUATION_MIN_ACCURACY": "0",
    "EVALUATION_MIN_COVERAGE": "0",
    "EXECUTIONS_IN_FLIGHT": "1",
    "REVIEW_RETRAIN_LABELS": "0",
}
NIGHTLY, FLOW = "nightly-evaluation/local", "nightly-evaluation"
# From one night to the next.
INTERVAL_SECONDS = 90
# How long a night has worked when it is interrupted, of the 15 seconds or so that it takes.
EARLIEST_SECONDS, LATEST_SECONDS = 2.0, 8.0
RUN_SECONDS = 900
# Promises: how much longer a night may wait than the one before it runs, and how late somebody may be told.
MOST_WAIT_SECONDS = MOST_LATE_SECONDS = 120
TERMINAL = {"COMPLETED", "FAILED", "CANCELLED"}
LABELLED = 12
UNREACHED = (httpx.HTTPError, OSError)


@dataclass
class Day:
    """What was seen.

    disturbed: what was done in the middle of a night, by the night's id. in_the_middle: how many of these nights were
    not over by then. verdicts: ETag of each summary when it was first there, by its key. failed: what was done and did
    not do what it should. broken: a line for each promise that a run broke.
    """

    disturbed: dict[str, str] = field(default_factory=dict)
    verdicts: dict[str, str] = field(default_factory=dict)
    in_the_middle: int = 0
    failed: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)


class Webhook:
    """Notes every message, with when it came."""

    def __init__(self) -> None:
        self.heard: list[tuple[datetime, str]] = []
        hook = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                text = self.rfile.read(int(self.headers["Content-Length"])).decode()
                hook.heard.append((datetime.now(UTC), text))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *details: Any) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *about: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.nights")
    parser.add_argument("--nights", type=int, default=30, help="scheduled nights (default: 30)")
    parser.add_argument("--quiet-nights", type=int, default=6, help="of them, those that nothing interrupts")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", help="folder to copy the logs to")
    arguments = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name, Webhook() as hook:
        checkout = _copy_checkout(Path(name) / "checkout")
        config = _own_stack(Path(name), checkout)
        try:
            make(checkout, "up")
            _make_block(hook.url)
            make(checkout, "up")
            for deployment, parameters in (
                ("prepare-data/local", {"dataset": "generated"}),
                ("train-model/local", {}),
                ("deploy-endpoint/local", {}),
            ):
                run_to_the_end(deployment, parameters)
            stack = Stack(config, checkout, random.Random(arguments.seed))
            stack.queue_images()
            day = live(stack, arguments.nights, arguments.quiet_nights)
            figures = check(stack, day, hook)
        finally:
            services.down(config)
            if arguments.keep:
                shutil.copytree(config.state / "logs", arguments.keep, dirs_exist_ok=True)
    print(HEADING)
    for figure in figures:
        print(figure)
    for line in [*day.failed, *day.broken]:
        print(f"  broken: {line}")
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
    for name in ("requirements.lock", "torch.lock", "local_sagemaker/pyproject.toml"):
        os.utime(folder / name, (0, 0))  # else make would install the copy's packages into the environment of both
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
    settings.cache_clear()
    return config


def make(checkout: Path, target: str) -> None:
    """A README command, from the shell of somebody who has nothing set."""
    own = ("SCONES_", "PREFECT_", "AWS_", "SAGEMAKER_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    subprocess.run(["make", target], cwd=checkout, env=environment, check=True, stdout=subprocess.DEVNULL)


def _make_block(url: str) -> None:
    from prefect.blocks.notifications import CustomWebhookNotificationBlock

    from watch.notices import BLOCK

    json_data = {"text": "{{subject}}: {{body}}"}
    block = CustomWebhookNotificationBlock(name="nights", url=url, json_data=json_data)  # type: ignore[call-arg]
    block.save(BLOCK)


class Stack:
    """The running stack, and what can be done to it. chance: decides when and what, the same for the same seed."""

    def __init__(self, config: LocalConfig, checkout: Path, chance: random.Random) -> None:
        self.config, self.checkout, self.chance = config, checkout, chance
        self.bucket: str = _s3().list_buckets()["Buckets"][0]["Name"]
        self._changes = 0

    def queue_images(self) -> None:
        """Has images wait for a person, whose answers a training is given later."""
        from tasks.aws import storage
        from tasks.data.dataset import png
        from tasks.data.generated import draw

        for number in range(LABELLED):
            label = ("bicycle", "motorcycle")[number % 2]
            storage.put(self.bucket, f"incoming/new/{label}-{number}.png", png(draw(label, 90_000 + number)))
        run_to_the_end("classify-images/local", {"prefix": "incoming/new/"})
        deadline = time.monotonic() + RUN_SECONDS
        while not storage.list_etags(self.bucket, "review/queue/"):
            assert time.monotonic() < deadline, "no image waits for a person"
            time.sleep(1)

    def disturbances(self) -> dict[str, Callable[[], object]]:
        return {
            "make down && make up": self.down_and_up,
            "reboot": self.reboot,
            "Prefect server killed": lambda: self.kill("prefect.*server.*start|prefect server"),
            "worker killed": lambda: self.kill(r"prefect.*worker.*start|local_aws\.worker"),
            "worker and flow run killed": self.kill_worker_and_run,
            "model server killed": self.kill_model_servers,
            "emulator killed": lambda: self.kill(r"local_aws\.ministack"),
            "flow file changed, make up": self.change_flow,
            "schedule changed by hand, make up": self.change_schedule,
            "setting changed": self.change_setting,
            "retraining from labels": self.retrain,
        }

    def down_and_up(self) -> None:
        make(self.checkout, "down")
        make(self.checkout, "up")

    def reboot(self) -> None:
        """SIGKILL for every process at once, with the supervisor."""
        for process in services.supervised_processes(self.config):
            process.kill()
        make(self.checkout, "up")

    def kill(self, pattern: str) -> int:
        """SIGKILL for the service whose command line has the pattern, not for its children."""
        found = []
        for process in services.supervised_processes(self.config):
            try:
                if re.search(pattern, " ".join(process.cmdline())) and services.FLOW_RUN not in process.environ():
                    found.append(process)
            except psutil.Error:
                continue
        assert found, f"nothing runs that is {pattern}"
        for process in found:
            process.kill()
        return len(found)

    def kill_worker_and_run(self) -> None:
        processes = services.flow_run_processes(self.config)
        self.kill(r"prefect.*worker.*start|local_aws\.worker")
        for process in processes:
            for each in [*process.children(recursive=True), process]:
                each.kill()

    def kill_model_servers(self) -> None:
        from testing.flow_runs import model_servers

        for process in model_servers(self.config):
            process.kill()

    def change_flow(self) -> None:
        flow = self.checkout / "flows" / "nightly_evaluation.py"
        flow.write_text(flow.read_text() + f"\n# change {self._number()}\n")
        make(self.checkout, "up")

    def change_schedule(self) -> None:
        """A person gives the weekly training another time; what applies the file afterwards has to keep it."""
        from prefect.client.schemas.schedules import CronSchedule

        cron = f"{self._number()} 4 * * 0"
        with client() as prefect:
            deployment = prefect.read_deployment_by_name("train-model/local")
            weekly = next(each for each in deployment.schedules if each.slug == "weekly")
            prefect.update_deployment_schedule(
                deployment.id, weekly.id, schedule=CronSchedule(cron=cron, timezone="Europe/Berlin")
            )
        self.change_flow()
        with client() as prefect:
            stands = prefect.read_deployment_by_name("train-model/local").schedules[0].schedule
        assert getattr(stands, "cron", "") == cron, f"the schedule is {stands}, and a person had set {cron}"

    def change_setting(self) -> None:
        """For the next night: an accuracy that it misses, or again one that it reaches."""
        file = self.checkout / "scones.env"
        low, high = "SCONES_EVALUATION_MIN_ACCURACY=0\n", "SCONES_EVALUATION_MIN_ACCURACY=1\n"
        text = file.read_text()
        file.write_text(text.replace(low, high) if low in text else text.replace(high, low))

    def retrain(self) -> None:
        """People answer, and a training with their answers runs beside the night."""
        from tasks.aws import storage
        from tasks.review import labels
        from tasks.review.queue import Waiting
        from tasks.run import utc_now

        reviewer = f"reviewer{self._number()}"
        for key in storage.list_etags(self.bucket, "review/queue/"):
            waiting = storage.get_record(self.bucket, key, Waiting)
            assert waiting is not None
            label = "bicycle" if "bicycle" in waiting.key else "motorcycle"
            time_ = utc_now().isoformat(timespec="microseconds")
            labels.write(
                self.bucket, labels.Label(inference_id=waiting.inference_id, sha256=waiting.sha256, reviewer=reviewer,
                                          answer="class", label=label, time=time_)
            )  # fmt: skip
        start_run("train-model/local", {"include_reviewed": True, "hyperparameters": {"seed": self._number()}})

    def _number(self) -> int:
        self._changes += 1
        return self._changes


def live(stack: Stack, nights: int, quiet: int) -> Day:
    """Lets the schedule start so many nights, and interrupts all but the quiet ones."""
    from tasks.exclusive import holder

    day, kinds = Day(), stack.disturbances()
    # Every kind as often as any other.
    plan: list[str | None] = [list(kinds)[number % len(kinds)] for number in range(nights - quiet)]
    plan += [None] * quiet
    stack.chance.shuffle(plan)
    seen: list[str] = []
    _add_schedule()
    paused, began = False, time.monotonic()
    while time.monotonic() - began < nights * INTERVAL_SECONDS + 3600:
        time.sleep(0.3)
        try:
            _note_verdicts(stack.bucket, day)
            if not paused and len(scheduled_nights()) >= nights:
                _pause()
                paused = True
            hold = holder(stack.bucket, settings().endpoint)
            if hold is not None and hold.flow_run not in seen and FLOW in hold.owner:
                seen.append(hold.flow_run)
                what = plan[len(seen) - 1] if len(seen) <= nights else None
                if what is not None:
                    time.sleep(stack.chance.uniform(EARLIEST_SECONDS, LATEST_SECONDS))
                    _disturb(stack, day, hold.flow_run, what, kinds[what])
            if paused and not unfinished():
                break
        except UNREACHED:
            continue  # the server is on its way up
    time.sleep(2 * 10 + 5)  # two looks of the watch
    _note_verdicts(stack.bucket, day)
    return day


def _disturb(stack: Stack, day: Day, night: str, what: str, act: Callable[[], object]) -> None:
    middle = not any(run_id(night) in key for key in day.verdicts) and not _is_over(UUID(night))
    day.in_the_middle += middle
    day.disturbed[night] = what
    print(f"{datetime.now(UTC):%H:%M:%S} {run_id(night)} {what}{'' if middle else ' (it was over)'}", flush=True)
    try:
        act()
    except (AssertionError, subprocess.CalledProcessError) as error:
        day.failed.append(f"{what}: {error}")


def check(stack: Stack, day: Day, hook: Webhook) -> list[Figure]:
    """Every promise, as a count of the nights that broke it."""
    from tasks.evaluation.evaluation import newest_summary
    from tasks.evaluation.summary import INCOMPLETE, EvaluationSummary
    from tasks.exclusive import holder
    from tasks.run import Run

    with client() as prefect:
        runs = scheduled_nights()
        histories = {run.id: prefect.read_flow_run_states(run.id) for run in runs}
        everything = all_runs(prefect)
        reported = Counter(
            str(run.parameters.get("run"))
            for run in everything
            if run.deployment_id == prefect.read_deployment_by_name("confidence-report/local").id
            and run.state_type
            and run.state_type.value == "COMPLETED"
        )
    broken: Counter[str] = Counter()
    judged: dict[UUID, EvaluationSummary] = {}

    def wrong(what: str, is_wrong: bool, run: "FlowRun") -> None:
        broken[what] += is_wrong
        if is_wrong:
            done = day.disturbed.get(str(run.id), "nothing")
            day.broken.append(f"{run.name} ({run.state_name}; {done} in its middle): {what}")

    for run in runs:
        assert run.expected_start_time is not None
        ends = [state for state in histories[run.id] if state.type.value in TERMINAL]
        name, date = run_id(run.id), f"{run.expected_start_time:%Y-%m-%d}"
        summary = newest_summary(stack.bucket, Run(name, date))
        keys = [key for key in day.verdicts if f"/{name}/" in key]
        wrong("not started by their schedule", not run.auto_scheduled, run)
        wrong("that did not end, or more than once", len(ends) != 1, run)
        wrong("not judged, or more than once", len(keys) != 1, run)
        complete = summary is not None and summary.outcome != INCOMPLETE and summary.planned == summary.submitted
        wrong("not judged completely", not complete, run)
        wrong("with failed images", summary is not None and summary.failed > 0, run)
        wrong("whose name or state lacks the verdict", " | " not in run.name or run.state_name == "Completed", run)
        wrong("without a report, or with more than one", reported[name] != 1, run)
        if summary is not None and summary.started and summary.stopped:
            judged[run.id] = summary
    broken["whose verdict changed"] = sum(tag != _etag(stack.bucket, key) for key, tag in day.verdicts.items())
    broken["still waiting"] = len(unfinished()) + (holder(stack.bucket, settings().endpoint) is not None)
    waits = _waits([run for run in runs if run.id in judged], judged)
    for run, seconds in waits:
        wrong("that waited more than two minutes longer than the one before ran", seconds > MOST_WAIT_SECONDS, run)
    told, late = _told(day, everything, hook)
    resumed = sum(any(state.type.value == "CRASHED" for state in histories[run.id]) for run in runs)
    n = f"{len(runs)} nights"
    kinds = Counter(day.disturbed.values())
    figures = [Figure(f"nights {what}", count, "", n, at_most=0) for what, count in broken.items()]
    figures += [
        Figure("interruptions in the middle of a night", day.in_the_middle, "", n, at_least=len(runs) * 2 // 3),
        *(Figure(f"  {kind}", count, "", "of them") for kind, count in sorted(kinds.items())),
        Figure("nights that crashed and went on by themselves", resumed, "", n, at_least=1),
        Figure("longest wait after the night before", max((wait for _, wait in waits), default=0), "s", n),
        Figure("messages", len(hook.heard), "", n),
        Figure("messages missing, doubled or untrue", told, "", f"{len(everything)} runs", at_most=0),
        Figure("longest time until somebody was told", late, "s", n, at_most=MOST_LATE_SECONDS),
        Figure("changes by a person that were undone, or commands that failed", len(day.failed), "", n, at_most=0),
        Figure("tracebacks in the server's log", _tracebacks(stack.config), "", n),
    ]
    return figures


def _waits(runs: "list[FlowRun]", judged: dict[UUID, Any]) -> "list[tuple[FlowRun, float]]":
    """Seconds that each night waited although its time had come and the one before it was over."""
    before: datetime | None = None
    waits = []
    for run in sorted(runs, key=lambda run: str(judged[run.id].started)):
        assert run.expected_start_time is not None
        due = max(run.expected_start_time, before) if before else run.expected_start_time
        waits.append((run, (datetime.fromisoformat(judged[run.id].started) - due).total_seconds()))
        before = datetime.fromisoformat(judged[run.id].stopped)
    return waits


def _told(day: Day, runs: "list[FlowRun]", hook: Webhook) -> tuple[int, float]:
    """Returns how many messages are missing, doubled or untrue, and the longest time that one took in seconds."""
    told_states = {"Missed", "Incomplete", "Failed", "Crashed", "Cancelled", "Alerts", "Approved", "Rejected"}
    wrong, late = 0, 0.0
    for run in runs:
        heard = [(when, text) for when, text in hook.heard if str(run.id) in text]
        due = run.deployment_id is not None and run.state_name in told_states
        if len(heard) != due:
            wrong += 1
            day.broken.append(f"{run.name} ({run.state_name}): told {len(heard)} times: {[text for _, text in heard]}")
        for when, text in heard:
            if f"{run.state_name}: " not in text:
                wrong += 1
                day.broken.append(f"{run.name} is {run.state_name}, and somebody was told: {text}")
            if run.end_time:
                late = max(late, (when - run.end_time).total_seconds())
    return wrong, late


def client() -> "SyncPrefectClient":
    from prefect.client.orchestration import get_client

    return get_client(sync_client=True)


def _add_schedule() -> None:
    """A schedule of many nights an hour, added paused and then resumed as the README says."""
    interval = ["--interval", str(INTERVAL_SECONDS), "--no-active"]
    _prefect("schedule", "create", NIGHTLY, *interval)
    with client() as prefect:
        schedules = prefect.read_deployment_by_name(NIGHTLY).schedules
    added = next(str(each.id) for each in schedules if hasattr(each.schedule, "interval"))
    _prefect("schedule", "resume", NIGHTLY, added)


def _pause() -> None:
    """Pauses what is active; applying a file gives schedules new ids."""
    with client() as prefect:
        for each in prefect.read_deployment_by_name(NIGHTLY).schedules:
            if each.active:
                _prefect("schedule", "pause", NIGHTLY, str(each.id))


def _prefect(*command: str) -> None:
    subprocess.run(["prefect", "deployment", *command], check=True, stdout=subprocess.DEVNULL)


def scheduled_nights() -> "list[FlowRun]":
    """Runs that a schedule of the nightly deployment made, whose time has come."""
    now = datetime.now(UTC)
    with client() as prefect:
        deployment = prefect.read_deployment_by_name(NIGHTLY).id
        runs = [run for run in all_runs(prefect) if run.deployment_id == deployment]
    return [run for run in runs if run.auto_scheduled and run.expected_start_time and run.expected_start_time <= now]


def all_runs(prefect: "SyncPrefectClient") -> "list[FlowRun]":
    runs: list[FlowRun] = []
    while page := prefect.read_flow_runs(limit=200, offset=len(runs)):
        runs += page
    return runs


def unfinished() -> "list[FlowRun]":
    """Runs of any deployment that are under way, or whose time has come and that wait."""
    now = datetime.now(UTC)
    with client() as prefect:
        return [
            run
            for run in all_runs(prefect)
            if run.state_type is not None
            and run.state_type.value not in TERMINAL
            and not (run.expected_start_time and run.expected_start_time > now)
        ]


def _is_over(run: UUID) -> bool:
    with client() as prefect:
        state = prefect.read_flow_run(run).state
    return state is not None and state.type.value in TERMINAL


def start_run(deployment: str, parameters: dict[str, Any]) -> UUID:
    with client() as prefect:
        found = prefect.read_deployment_by_name(deployment)
        return prefect.create_flow_run_from_deployment(found.id, parameters=parameters).id


def run_to_the_end(deployment: str, parameters: dict[str, Any]) -> None:
    run = start_run(deployment, parameters)
    deadline = time.monotonic() + RUN_SECONDS
    while not _is_over(run):
        assert time.monotonic() < deadline, f"{deployment} is not over after {RUN_SECONDS} s"
        time.sleep(0.5)
    with client() as prefect:
        state = prefect.read_flow_run(run).state
    assert state is not None and state.is_completed(), state


def _note_verdicts(bucket: str, day: Day) -> None:
    """Remembers each summary as it was when it was first seen."""
    for page in _s3().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix="evaluations/"):
        for item in page.get("Contents", []):
            if "/summary" in item["Key"]:
                day.verdicts.setdefault(item["Key"], item["ETag"])


def _etag(bucket: str, key: str) -> str:
    found: str = _s3().head_object(Bucket=bucket, Key=key)["ETag"]
    return found


def _s3() -> Any:
    from tasks.aws.clients import client

    return client("s3")


def _tracebacks(config: LocalConfig) -> int:
    log = config.state / "logs" / "prefect-server.log"
    return log.read_text(errors="replace").count("Traceback (most recent call last)")


if __name__ == "__main__":
    sys.exit(main())
