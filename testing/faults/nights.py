"""Evaluations of the real local stack during which something breaks, by a schedule that a seed decides."""

import hashlib
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self
from uuid import UUID

import boto3
from prefect.client.orchestration import get_client
from prefect.states import Crashed

from flows.nightly_evaluation import nightly_evaluation
from local_aws.config import LocalConfig
from settings import run_id, settings
from tasks.aws import clients as aws
from tasks.data.dataset import png
from tasks.data.generated import draw
from tasks.evaluation.outcome import GateMissed
from tasks.exclusive import key_of
from tasks.installation import Installation
from testing.faults.checker import Verdict, World, check
from testing.faults.proxy import Call, FaultProxy
from testing.flow_runs import ended, ministack, model_servers, processes_of, started, worker_processes
from testing.pictures import huge_png

IMAGES = 24
# What can't be classified: content by name, None for an image that vanished after it was planned.
BAD_IMAGES: dict[str, bytes | None] = {
    "corrupt.png": b"\x89PNG\r\n\x1a\n" + b"x" * 100,
    "empty.png": b"",
    "oversized.png": huge_png(),
    "truncated.png": png(draw("bicycle", 1))[:60],
    "vanished.png": None,
}
# State names of a flow run that evaluated.
JUDGED = ("Passed", "Missed", "Incomplete")


@dataclass(frozen=True)
class Night:
    """One evaluation under a fault. made: how many calls were broken, by kind, or how often something was killed."""

    fault: str
    seed: int
    verdict: Verdict
    summary: dict[str, Any]
    made: Counter[str]
    seconds: float


@dataclass
class Course:
    """When a fault sets in, by the number of starts; and for the check: images that must fail, when it was over.

    lost_captures: inference ids of which there is no capture record any more.
    """

    at: int
    bad: set[str] = field(default_factory=set)
    lost_captures: set[str] = field(default_factory=set)
    over: datetime | None = None
    wrong: list[str] = field(default_factory=list)


class Lab:
    """An installation with proxies before Step Functions, S3 and the endpoint, for the flow and for the functions.

    deployment: which evaluates. functions: that go through the proxies. root: where the runs are.
    """

    deployment = "nightly-evaluation/local"
    functions: tuple[str, ...] = ("serializeImageData", "classifyImage")
    root = "evaluations/"

    def __init__(self, config: LocalConfig, installed: Installation) -> None:
        self.config = config
        self.installed = installed
        self.states = FaultProxy(config.aws_url, config.certificate)
        self.s3 = FaultProxy(config.aws_url, config.certificate)
        self.endpoint = FaultProxy(config.sagemaker_url, config.certificate)
        self._stack = ExitStack()
        # Clients that no fault reaches.
        self._direct = {
            name: boto3.client(name, endpoint_url=config.aws_url) for name in ("s3", "stepfunctions", "lambda")
        }
        self._kept = [name for name in self._keys("test/") if name.removeprefix("test/") not in BAD_IMAGES]

    def __enter__(self) -> Self:
        for proxy in (self.states, self.s3, self.endpoint):
            self._stack.enter_context(proxy)
        self._stack.callback(self._use_variables, dict.fromkeys(self.variables))
        self._use_variables(self.variables)
        functions = {"AWS_ENDPOINT_URL_S3": self.s3.url, "AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME": self.endpoint.url}
        self._stack.callback(self._configure_functions, dict.fromkeys(functions))
        self._configure_functions(functions)
        manifest = {"Bucket": self.installed.bucket, "Key": "manifests/test.lst"}
        before = self._direct["s3"].get_object(**manifest)["Body"].read()
        self._stack.callback(lambda: self._direct["s3"].put_object(**manifest, Body=before))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def variables(self) -> dict[str, str]:
        """What sends a flow through the proxies."""
        return {"AWS_ENDPOINT_URL_SFN": self.states.url, "AWS_ENDPOINT_URL_S3": self.s3.url}

    def night(self, fault: str, seed: int, images: int = IMAGES, at: int | None = None) -> Night:
        """Runs an evaluation of so many images under the fault of that name and has it checked.

        at: how many executions are started before it sets in, if that is not up to the seed.
        """
        schedule = self.schedule(f"{fault} {seed}")
        course = Course(at or schedule.randint(1, images - 1))
        for proxy in (self.states, self.s3, self.endpoint):
            proxy.decided.clear()
        began = time.monotonic()
        run = self.faults()[fault](self, schedule, images, course)
        seconds = time.monotonic() - began
        world = self.world(run)
        made = self.states.decided + self.s3.decided + self.endpoint.decided
        verdict = self.check(world, course)
        verdict.wrong += course.wrong
        return Night(fault, seed, verdict, world.summary(), made, seconds)

    def faults(self) -> "dict[str, Fault]":
        """All by their names."""
        return FAULTS | {WAITED: worker_killed_and_waited_for}

    def check(self, world: World, course: Course) -> Verdict:
        return check(world, course.bad, since=course.over)

    def progress(self) -> int:
        """How many images were begun, in all evaluations."""
        return self.states.calls["StartExecution"]

    @staticmethod
    def schedule(seed: str) -> random.Random:
        """The same choices for the same seed."""
        return random.Random(seed)

    def world(self, run: str) -> World:
        """What a run left, for the checker."""
        found = [name for name in self._keys(self.root) if name.endswith(f"/{run}/manifest.jsonl")]
        return self._world(found[0].removesuffix("manifest.jsonl"))

    def _world(self, prefix: str) -> World:
        return World(
            s3=self._direct["s3"],
            states=self._direct["stepfunctions"],
            bucket=self.installed.bucket,
            state_machine=self.installed.state_machine_arn,
            prefix=prefix,
            capture="data-capture/",
        )

    def plan(self, schedule: random.Random, images: int, bad: dict[str, bytes | None] | None = None) -> list[str]:
        """Makes these the test images, in an order of the schedule; returns their keys."""
        for name, content in (bad or {}).items():
            if content is not None:
                self._direct["s3"].put_object(Bucket=self.installed.bucket, Key=f"test/{name}", Body=content)
        good = (
            schedule.choices(self._kept, k=images) if images > len(self._kept) else schedule.sample(self._kept, images)
        )
        names = [key.removeprefix("test/") for key in good][: images - len(bad or {})] + list(bad or {})
        schedule.shuffle(names)
        lines = [f"{number}\t{int('motor' in name)}\t{name}" for number, name in enumerate(names)]
        self._direct["s3"].put_object(
            Bucket=self.installed.bucket, Key="manifests/test.lst", Body=("\n".join(lines) + "\n").encode()
        )
        return [f"test/{name}" for name in names]

    def evaluate(self) -> str:
        """Runs the flow in this process and returns its RUN."""
        try:
            summary = nightly_evaluation()
        except GateMissed as missed:
            summary = missed.summary
        return summary.run

    def begin(self) -> UUID:
        """Starts the deployment's flow run; returns its id."""
        return started(self.deployment, {}, self.variables)

    @contextmanager
    def after(self, count: int, act: Callable[[], None]) -> Iterator[None]:
        """Acts in a thread of its own once so many images were begun within the block; raises what that raised."""
        goal = self.progress() + count
        raised: list[BaseException] = []

        def wait_and_act() -> None:
            try:
                self.wait_for(goal)
                act()
            except BaseException as error:
                raised.append(error)

        thread = threading.Thread(target=wait_and_act, daemon=True)
        thread.start()
        yield
        thread.join(60)
        assert not thread.is_alive()
        if raised:
            raise raised[0]

    def release_hold(self) -> None:
        """Ends the hold on the endpoint, as a person would."""
        self._direct["s3"].delete_object(Bucket=self.installed.bucket, Key=key_of(self.installed.endpoint))

    def wait_for(self, goal: int) -> None:
        """Waits for so much progress in all."""
        deadline = time.monotonic() + 60
        while self.progress() < goal:
            assert time.monotonic() < deadline, f"{self.progress()} of {goal} images were begun"
            time.sleep(0.01)

    def _keys(self, prefix: str) -> list[str]:
        pages = self._direct["s3"].get_paginator("list_objects_v2")
        listed = pages.paginate(Bucket=self.installed.bucket, Prefix=prefix)
        return [item["Key"] for page in listed for item in page.get("Contents", [])]

    def _use_variables(self, variables: dict[str, Any]) -> None:
        for name, value in variables.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        for cached in (aws.client, aws.session, settings):
            cached.cache_clear()

    def _configure_functions(self, changed: dict[str, Any]) -> None:
        prefix = self.installed.state_machine_arn.rsplit(":", 1)[1].removesuffix("-classify-image")
        for function in self.functions:
            name = f"{prefix}-{function}"
            known = self._direct["lambda"].get_function_configuration(FunctionName=name)
            merged = known.get("Environment", {}).get("Variables", {}) | changed
            variables = {each: value for each, value in merged.items() if value is not None}
            self._direct["lambda"].update_function_configuration(
                FunctionName=name, Environment={"Variables": variables}
            )


def now() -> datetime:
    return datetime.now(UTC)


def worker_killed(lab: Lab, schedule: random.Random, images: int, course: Course) -> str:
    """SIGKILL for the worker and the flow run's process.

    That the heartbeat is missed, and that the hold on the endpoint expires, is done at once instead of waited for; the
    watch then has the run go on.
    """
    run = _kill(lab, schedule, images, course)
    resume(lab, run)
    ended(run, *JUDGED)
    return run_id(run)


def resume(lab: Lab, run: UUID) -> None:
    """As if the heartbeat of a killed run had been missed, and its hold on the endpoint had expired."""
    with get_client(sync_client=True) as prefect:
        lab.release_hold()
        prefect.set_flow_run_state(run, Crashed(message="killed"), force=True)


def worker_killed_and_waited_for(lab: Lab, schedule: random.Random, images: int, course: Course) -> str:
    """The same with nothing skipped: the watch marks the run Crashed once its heartbeats stay away."""
    run = _kill(lab, schedule, images, course)
    ended(run, *JUDGED)
    return run_id(run)


def _kill(lab: Lab, schedule: random.Random, images: int, course: Course) -> UUID:
    lab.plan(schedule, images)
    goal = lab.progress() + course.at
    run = lab.begin()
    lab.wait_for(goal)
    kill_run(lab, run)
    time.sleep(0.5)  # a start that was still on its way is no recovery
    course.over = now()
    return run


def kill_run(lab: Lab, run: UUID) -> None:
    """SIGKILL for the worker and the flow run's process."""
    for process in [*worker_processes(lab.config), *processes_of(run)]:
        process.kill()
        lab.states.decided["killed"] += 1


def start_lost(lab: Lab, schedule: random.Random, images: int, course: Course) -> str:
    """StartExecution is answered, and the response never arrives."""
    lab.plan(schedule, images)
    share = schedule.uniform(0.05, 0.3)

    def decide(call: Call) -> str | None:
        return "lose" if call.operation == "StartExecution" and schedule.random() < share else None

    with lab.states.deciding(decide):
        return lab.evaluate()


def refusing(service: str, share: float) -> "Fault":
    """A service refuses or throttles that share of the calls for a while."""

    def fault(lab: Lab, schedule: random.Random, images: int, course: Course) -> str:
        lab.plan(schedule, images)
        proxy: FaultProxy = getattr(lab, service)
        seconds = schedule.uniform(1, 4)

        def decide(call: Call) -> str | None:
            return schedule.choice(["refuse", "throttle"]) if schedule.random() < share else None

        def window() -> None:
            with proxy.deciding(decide):
                time.sleep(seconds)
            course.over = now()

        with lab.after(course.at, window):
            return lab.evaluate()

    return fault


def model_errors(lab: Lab, schedule: random.Random, images: int, course: Course) -> str:
    """The model fails on some images always, and on others in their first execution only."""
    keys = lab.plan(schedule, images)
    chosen = schedule.sample(keys, images // 5)
    course.bad = set(chosen[::2])
    digests = {hashlib.sha256(key.encode()).hexdigest()[:20]: key in course.bad for key in chosen}

    def decide(call: Call) -> str | None:
        _, digest, attempt = call.inference_id.split("-")
        return "model_error" if digest in digests and (digests[digest] or attempt == "a1") else None

    with lab.endpoint.deciding(decide):
        return lab.evaluate()


def bad_images(lab: Lab, schedule: random.Random, images: int, course: Course) -> str:
    """Corrupt, empty, oversized and vanished images among good ones."""
    keys = lab.plan(schedule, images, BAD_IMAGES)
    course.bad = {key for key in keys if key.rsplit("/", 1)[1] in BAD_IMAGES}
    return lab.evaluate()


def model_killed(lab: Lab, schedule: random.Random, images: int, course: Course) -> str:
    """SIGKILL for the process that the model runs in."""
    lab.plan(schedule, images)

    def kill() -> None:
        for process in model_servers(lab.config):
            process.kill()
            lab.endpoint.decided["killed"] += 1
        course.over = now()

    with lab.after(course.at, kill):
        return lab.evaluate()


def ministack_restarted(lab: Lab, schedule: random.Random, images: int, course: Course) -> str:
    """Step Functions, Lambda and S3 go down and come up again; executions that ran are over."""
    lab.plan(schedule, images)

    def restart() -> None:
        for process in ministack(lab.config):
            process.send_signal(signal.SIGTERM)  # the supervisor starts it again
            lab.states.decided["restarted"] += 1
        course.over = now()

    with lab.after(course.at, restart):
        return lab.evaluate()


Fault = Callable[[Lab, random.Random, int, Course], str]
FAULTS: dict[str, Fault] = {
    "worker killed": worker_killed,
    "response of StartExecution lost": start_lost,
    "Step Functions refuses 10 %": refusing("states", 0.1),
    "Step Functions refuses 50 %": refusing("states", 0.5),
    "S3 refuses 10 %": refusing("s3", 0.1),
    "S3 refuses 50 %": refusing("s3", 0.5),
    "endpoint refuses 10 %": refusing("endpoint", 0.1),
    "endpoint refuses 50 %": refusing("endpoint", 0.5),
    "model errors": model_errors,
    "bad images": bad_images,
    "model killed": model_killed,
    "ministack restarted": ministack_restarted,
}
# Takes two minutes, nearly all of it waiting.
WAITED = "worker killed, heartbeat waited for"
