"""Bulk runs of the real local stack during which something breaks, by a schedule that a seed decides."""

import io
import json
import random
import signal
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any
from uuid import UUID

from botocore.exceptions import ClientError
from prefect.client.orchestration import get_client
from prefect.states import Cancelling

from flows.classify_images import classify_images
from settings import run_id, settings
from tasks.evaluation.outcome import GateMissed
from testing.faults.checker import BulkWorld, Verdict, World, check_bulk
from testing.faults.nights import (
    FAULTS as NIGHT_FAULTS,
)
from testing.faults.nights import (
    JUDGED,
    Course,
    Fault,
    Lab,
    kill_run,
    now,
    refusing,
    resume,
)
from testing.faults.proxy import Call
from testing.flow_runs import ended, function_processes, ministack, retried, started
from testing.waiting import eventually

BATCH = 4
# Of the function, where time runs out within seconds: until it is killed, and what it leaves of that for writing.
SHORT_TIMEOUT, SHORT_MARGIN = 4, 2.0


class BulkLab(Lab):
    """The same installation, with classify-images on a manifest of images of each run's own."""

    deployment = "classify-images/local"
    functions = ("classifyBatch",)
    root = "bulk/"

    _manifest = ""
    _prefix = ""

    @property
    def variables(self) -> dict[str, str]:
        return {**super().variables, "SCONES_BULK_BATCH_SIZE": str(BATCH), "SCONES_BULK_CONCURRENCY": "2"}

    def faults(self) -> dict[str, Fault]:
        return FAULTS

    def progress(self) -> int:
        return self.endpoint.calls["POST"]

    def plan(self, schedule: random.Random, images: int, bad: dict[str, bytes | None] | None = None) -> list[str]:
        """Uploads so many images and their manifest, with an empty line and a line that stands there twice."""
        self._prefix = f"incoming/{schedule.randbytes(6).hex()}{time.time_ns():x}/"
        names: dict[str, bytes | None] = dict(bad or {})
        for number in range(images - len(names)):
            names[f"{number:03}.png"] = self.read(schedule.choice(self._kept))
        order = schedule.sample(sorted(names), len(names))
        lines = []
        for name in order:
            key, content = f"{self._prefix}{name}", names[name]
            line: dict[str, Any] = {"key": key, "label": schedule.choice(self.installed.classes)}
            if content is not None:
                etag = self._direct["s3"].put_object(Bucket=self.installed.bucket, Key=key, Body=content)["ETag"]
                line["etag"] = etag
            lines.append(json.dumps(line))
        lines.insert(schedule.randrange(len(lines)), "")
        lines.append(next(line for line in lines if line))
        self._manifest = f"{self._prefix}manifest.jsonl"
        self.write(self._manifest, "\n".join(lines).encode())
        return [f"{self._prefix}{name}" for name in order]

    def evaluate(self) -> str:
        try:
            return classify_images(manifest=self._manifest).run
        except GateMissed as missed:
            return missed.summary.run

    def begin(self) -> UUID:
        return started(self.deployment, {"manifest": self._manifest}, self.variables)

    def check(self, world: World, course: Course) -> Verdict:
        assert isinstance(world, BulkWorld)
        return check_bulk(world, course.bad, since=course.over, lost_captures=course.lost_captures)

    def read(self, key: str) -> bytes:
        content: bytes = self._direct["s3"].get_object(Bucket=self.installed.bucket, Key=key)["Body"].read()
        return content

    def write(self, key: str, content: bytes) -> None:
        self._direct["s3"].put_object(Bucket=self.installed.bucket, Key=key, Body=content)

    def delete(self, key: str) -> None:
        self._direct["s3"].delete_object(Bucket=self.installed.bucket, Key=key)

    def invoke(self, world: BulkWorld, attempt: int = 1) -> None:
        """Runs the attempt's first batch once more, as Step Functions would."""
        plan = json.loads(self.read(f"{world.prefix}plan.json"))
        _, items = world.manifests()[attempt]
        shared = {"bucket": world.bucket, "prefix": world.prefix, "attempt": attempt}
        event = {
            "BatchInput": {**shared, "model_version": plan["model_version"], "threshold": plan["threshold"]},
            "Items": items[: plan["batch_size"]],
            "execution_arn": "arn:aws:states:us-east-1:000000000000:execution:again",
        }
        answer = self._direct["lambda"].invoke(FunctionName=self.function, Payload=json.dumps(event).encode())
        assert "FunctionError" not in answer, answer["Payload"].read()
        self.states.decided["batch again"] += 1

    @property
    def function(self) -> str:
        return self.installed.batch_state_machine_arn.rsplit(":", 1)[1].replace("-classify-batch", "-classifyBatch")

    @contextmanager
    def short_time(self) -> Iterator[None]:
        """The function has a few seconds, within the block."""
        functions = self._direct["lambda"]
        before = functions.get_function_configuration(FunctionName=self.function)["Timeout"]
        from tasks.aws.function_packages import function_package

        package = function_package("classify_batch", settings().lambda_runtime)
        functions.update_function_code(FunctionName=self.function, ZipFile=_with_margin(package, SHORT_MARGIN))
        functions.update_function_configuration(FunctionName=self.function, Timeout=SHORT_TIMEOUT)
        try:
            yield
        finally:
            functions.update_function_code(FunctionName=self.function, ZipFile=package)
            functions.update_function_configuration(FunctionName=self.function, Timeout=before)

    @contextmanager
    def throttled(self) -> Iterator[None]:
        """The function may run once at a time, within the block."""
        functions = self._direct["lambda"]
        functions.put_function_concurrency(FunctionName=self.function, ReservedConcurrentExecutions=1)
        self.states.decided["limited"] += 1
        try:
            yield
        finally:
            functions.delete_function_concurrency(FunctionName=self.function)

    def stop_execution(self, name: str) -> None:
        machine = self.installed.batch_state_machine_arn.replace(":stateMachine:", ":execution:")
        self._direct["stepfunctions"].stop_execution(executionArn=f"{machine}:{name}")

    def world(self, run: str) -> BulkWorld:
        world = super().world(run)
        assert isinstance(world, BulkWorld)
        return world

    def capture_files(self, world: BulkWorld) -> list[str]:
        """Where the endpoint's records since the run's begin are."""
        keys = []
        for page in (
            self._direct["s3"]
            .get_paginator("list_objects_v2")
            .paginate(Bucket=self.installed.bucket, Prefix=world.capture)
        ):
            keys += [each["Key"] for each in page.get("Contents", []) if each["LastModified"] >= world.begun()]
        return keys

    def newest_world(self) -> BulkWorld:
        """Of the run that was planned last."""
        found = max(
            (
                item
                for page in self._direct["s3"]
                .get_paginator("list_objects_v2")
                .paginate(Bucket=self.installed.bucket, Prefix=self.root)
                for item in page.get("Contents", [])
                if item["Key"].endswith("/plan.json")
            ),
            key=lambda item: item["LastModified"],
        )
        return self._world(found["Key"].removesuffix("plan.json"))

    def _world(self, prefix: str) -> BulkWorld:
        return BulkWorld(
            s3=self._direct["s3"],
            states=self._direct["stepfunctions"],
            bucket=self.installed.bucket,
            state_machine=self.installed.batch_state_machine_arn,
            prefix=prefix,
            capture="data-capture/",
        )


def _with_margin(package: bytes, seconds: float) -> bytes:
    """The function's package, with another MARGIN_SECONDS."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(package)) as before, zipfile.ZipFile(buffer, "w") as changed:
        for info in before.infolist():
            text = before.read(info)
            if info.filename == "classify_batch.py":
                assert text.count(b"MARGIN_SECONDS = 50.0") == 1
                text = text.replace(b"MARGIN_SECONDS = 50.0", f"MARGIN_SECONDS = {seconds}".encode())
            changed.writestr(info, text)
    return buffer.getvalue()


def killed_at(proxy: str, operation: str, path: str, outcome: str) -> Fault:
    """SIGKILL for worker and flow run when they first make that call, and what becomes of the call."""

    def fault(lab: Lab, schedule: random.Random, images: int, course: Course) -> str:
        lab.plan(schedule, images)
        run: list[UUID] = []
        killed = threading.Event()

        def decide(call: Call) -> str | None:
            if killed.is_set() or not run or call.operation != operation or path not in call.path:
                return None
            killed.set()
            kill_run(lab, run[0])
            return outcome

        with getattr(lab, proxy).deciding(decide):
            run.append(lab.begin())
            assert killed.wait(60)
            time.sleep(0.5)
            course.over = now()
            resume(lab, run[0])
            ended(run[0], *JUDGED)
        return run_id(run[0])

    return fault


def killed_in_compaction(lab: Lab, schedule: random.Random, images: int, course: Course) -> str:
    """SIGKILL when the results or the summary are written; the call arrives, or does not."""
    path = schedule.choice(["/results/part-", "/summary.json"])
    run = killed_at("s3", "PUT", path, schedule.choice(["refuse", "lose"]))(lab, schedule, images, course)
    course.over = None  # nothing is left to classify
    return run


def function_killed(lab: Lab, schedule: random.Random, images: int, course: Course) -> str:
    """SIGKILL for the processes that the function runs in."""
    lab.plan(schedule, images)

    def kill() -> None:
        for process in function_processes(lab.config, "classify_batch"):
            process.kill()
            lab.states.decided["killed"] += 1
        course.over = now()

    with lab.after(course.at, kill):
        return lab.evaluate()


def function_timed_out(lab: Lab, schedule: random.Random, images: int, course: Course) -> str:
    """A process of the function stands still until Lambda ends it."""
    assert isinstance(lab, BulkLab)
    lab.plan(schedule, images)

    def suspend() -> None:
        for process in function_processes(lab.config, "classify_batch")[:1]:
            process.suspend()
            lab.states.decided["suspended"] += 1
        course.over = now()

    with lab.short_time(), lab.after(course.at, suspend):
        return lab.evaluate()


def function_near_deadline(lab: Lab, schedule: random.Random, images: int, course: Course) -> str:
    """The endpoint is so slow that batches do not end in the function's time."""
    assert isinstance(lab, BulkLab)
    lab.plan(schedule, images)
    share = schedule.uniform(0.5, 1)

    def decide(call: Call) -> str | None:
        return "slow" if schedule.random() < share else None

    with lab.short_time(), lab.endpoint.deciding(decide), _batches_of(lab, images):
        return lab.evaluate()


@contextmanager
def _batches_of(lab: BulkLab, images: int) -> Iterator[None]:
    """One batch for all images of the run, which takes the function more than one go."""
    lab._use_variables({**lab.variables, "SCONES_BULK_BATCH_SIZE": str(images)})
    try:
        yield
    finally:
        lab._use_variables(lab.variables)


def function_throttled(lab: Lab, schedule: random.Random, images: int, course: Course) -> str:
    """Lambda runs the function once at a time, and refuses what comes meanwhile."""
    assert isinstance(lab, BulkLab)
    lab.plan(schedule, images)
    with lab.throttled():
        return lab.evaluate()


def batch_twice_at_once(lab: Lab, schedule: random.Random, images: int, course: Course) -> str:
    """The first batch runs a second time beside itself."""
    assert isinstance(lab, BulkLab)
    lab.plan(schedule, images)
    with ThreadPoolExecutor(1) as thread:
        again: list[Future[None]] = []

        def decide(call: Call) -> str | None:
            if call.operation == "StartExecution" and not again:
                again.append(thread.submit(lambda: lab.invoke(lab.newest_world())))
            return None

        with lab.states.deciding(decide):
            run = lab.evaluate()
        again[0].result(60)
    return run


def batch_twice_in_turn(lab: Lab, schedule: random.Random, images: int, course: Course) -> str:
    """The first batch runs again when others are under way, after its part was written."""
    assert isinstance(lab, BulkLab)
    lab.plan(schedule, images)

    def again() -> None:
        world = lab.newest_world()
        eventually(lambda: world.keys("parts/"), 30)
        lab.invoke(world)

    with lab.after(BATCH + 1, again):
        return lab.evaluate()


def part_written_then_failed(lab: Lab, schedule: random.Random, images: int, course: Course) -> str:
    """The part arrives in S3, the function does not hear of it and fails."""
    lab.plan(schedule, images)
    share = schedule.uniform(0.3, 0.9)

    def decide(call: Call) -> str | None:
        lost = call.operation == "PUT" and "/parts/" in call.path and schedule.random() < share
        return "lose" if lost else None

    with lab.s3.deciding(decide):
        return lab.evaluate()


def endpoint_down(lab: Lab, schedule: random.Random, images: int, course: Course) -> str:
    """Nobody answers at the endpoint for some seconds."""
    return refusing("endpoint", 1.0)(lab, schedule, images, course)


def ministack_killed(lab: Lab, schedule: random.Random, images: int, course: Course) -> str:
    """SIGKILL: what S3 and Step Functions had not saved is gone; the supervisor starts it again."""
    lab.plan(schedule, images)
    time.sleep(12)  # what was uploaded is in a snapshot

    def kill() -> None:
        for process in ministack(lab.config):
            process.send_signal(signal.SIGKILL)
            lab.states.decided["killed"] += 1
        course.over = now()

    with lab.after(course.at, kill):
        return lab.evaluate()


def cancelled_and_resumed(lab: Lab, schedule: random.Random, images: int, course: Course) -> str:
    """Cancelled in Prefect, and then retried by hand."""
    lab.plan(schedule, images)
    goal = lab.progress() + min(course.at, images - 3 * BATCH)
    run = lab.begin()
    lab.wait_for(goal)
    with get_client(sync_client=True) as prefect:
        prefect.set_flow_run_state(run, Cancelling())
        ended(run, "Cancelled", *JUDGED)
        lab.states.decided["cancelled"] += 1
        course.over = now()
    retried(run, "Passed", "Missed")
    return run_id(run)


def execution_stopped(lab: Lab, schedule: random.Random, images: int, course: Course) -> str:
    """Somebody stops the execution in Step Functions."""
    assert isinstance(lab, BulkLab)
    lab.plan(schedule, images)

    def stop() -> None:
        with suppress(ClientError):  # it has just ended
            lab.stop_execution(f"bulk-{lab.newest_world().run}-a1")
            lab.states.decided["stopped"] += 1
            course.over = now()

    with lab.after(min(course.at, images - 3 * BATCH), stop):
        return lab.evaluate()


def manifest_changed(lab: Lab, schedule: random.Random, images: int, course: Course) -> str:
    """The worker is killed and the run's own manifest changed, which is refused; with the right one the run goes on.

    The manifest that the run was made from changes too, which must not matter.
    """
    assert isinstance(lab, BulkLab)
    lab.plan(schedule, images)
    goal = lab.progress() + course.at
    run = lab.begin()
    lab.wait_for(goal)
    kill_run(lab, run)
    world = lab.world(run_id(run))
    key = f"{world.prefix}manifest.jsonl"
    content = lab.read(key)
    lab.write(key, b"".join(content.splitlines(keepends=True)[:-1]))
    lab.write(lab._manifest, b'{"key": "incoming/another.png"}\n')
    lab.s3.decided["changed"] += 2
    resume(lab, run)
    message = ended(run, *JUDGED, "Failed")
    if "is not the manifest that the run was planned with" not in message:
        course.wrong.append(f"a changed manifest was not refused: {message}")
    if world.keys("summary"):
        course.wrong.append("a run with a changed manifest was judged")
    lab.write(key, content)
    course.over = now()
    retried(run, "Passed", "Missed")
    return run_id(run)


def manifest_malformed(lab: Lab, schedule: random.Random, images: int, course: Course) -> str:
    """A line of the manifest is no image: refused, and nothing runs. The next run has a good manifest."""
    assert isinstance(lab, BulkLab)
    lab.plan(schedule, images)
    lines = lab.read(lab._manifest).splitlines()
    broken = schedule.choice(
        [b'{"key": ', b"[]", b'{"label": "bicycle"}', b'{"key": 5}', b"\xff\xfe", b'{"key": "a", "label": "boat"}']
    )
    good, before = lab._manifest, lab.progress()
    lab._manifest = f"{lab._prefix}malformed.jsonl"
    lab.write(lab._manifest, b"\n".join([*lines[: course.at], broken, *lines[course.at :]]))
    lab.s3.decided["malformed"] += 1
    refused = ""
    with suppress(GateMissed):
        try:
            lab.evaluate()
        except Exception as error:
            refused = str(error)
    if "malformed.jsonl" not in refused or not refused.startswith(f"line {course.at + 1} "):
        course.wrong.append(f"line {course.at + 1} was {broken!r} and the run ended with {refused!r}")
    if lab.progress() != before:
        course.wrong.append("images of a malformed manifest were classified")
    lab._manifest = good
    return lab.evaluate()


def objects_changed(lab: Lab, schedule: random.Random, images: int, course: Course) -> str:
    """Objects are replaced and deleted after the manifest was made."""
    assert isinstance(lab, BulkLab)
    keys = lab.plan(schedule, images)
    chosen = schedule.sample(keys, 6)
    course.bad = set(chosen)
    done: list[str] = []

    def decide(call: Call) -> str | None:
        if call.operation == "StartExecution" and not done:
            for key in chosen[:3]:
                lab.write(key, lab.read(schedule.choice(lab._kept)) + b"another")
            for key in chosen[3:]:
                lab.delete(key)
            done.extend(chosen)
            lab.s3.decided["changed"] += len(chosen)
        return None

    with lab.states.deciding(decide):
        run = lab.evaluate()
    expected = dict.fromkeys(chosen[:3], "ImageChanged") | dict.fromkeys(chosen[3:], "ImageNotFound")
    for row in lab.world(run).lines("results.jsonl"):
        if row["error"] != expected.get(row["key"]):
            course.wrong.append(f"{row['key']} has the error {row['error']}, not {expected.get(row['key'])}")
    return run


def captures_lost_late_and_repeated(lab: Lab, schedule: random.Random, images: int, course: Course) -> str:
    """Capture records are lost, come while the report waits, and stand there twice; it has to say which are missing."""
    from flows.confidence_report import confidence_report

    assert isinstance(lab, BulkLab)
    lab.plan(schedule, images)
    run = lab.evaluate()
    world = lab.world(run)
    decided = {row["inference_id"] for row in world.lines("results.jsonl") if row["status"] != "failed"}
    eventually(lambda: decided <= world.captured(world.begun()).keys(), 30)
    late = []
    for key in lab.capture_files(world):
        content = lab.read(key)
        lines = content.splitlines(keepends=True)
        mine = [line for line in lines if json.loads(line)["eventMetadata"].get("inferenceId") in decided]
        lost = [line for line in mine if schedule.random() < 0.2]
        course.lost_captures |= {json.loads(line)["eventMetadata"]["inferenceId"] for line in lost}
        left = [line for line in lines if line not in lost]
        if schedule.random() < 0.5:
            late.append((key, b"".join(left)))
            left = [line for line in left if line not in mine]
        repeated = [line for line in mine if line not in lost and schedule.random() < 0.2]
        lab.write(key, b"".join([*left, *repeated[:1]]))
        lab.write(key.replace(".jsonl", "-again.jsonl"), b"".join(repeated))

    def arrive() -> None:
        for key, content in late:
            lab.write(key, content)

    timer = threading.Timer(1.5, arrive)
    timer.start()
    report = confidence_report(date=world.prefix.split("/")[1], run=run)
    timer.join()
    lab.endpoint.decided["captures lost"] += len(course.lost_captures)
    if set(report.missing_captures) != course.lost_captures:
        course.wrong.append(f"missing are {course.lost_captures}, and the report says {report.missing_captures}")
    if report.captured != len(decided) - len(course.lost_captures):
        course.wrong.append(f"the report counts {report.captured} captures of {len(decided)}")
    return run


FAULTS: dict[str, Fault] = {
    "worker killed before StartExecution": killed_at("states", "StartExecution", "", "refuse"),
    "worker killed after StartExecution": killed_at("states", "StartExecution", "", "lose"),
    "worker killed in mid-run": NIGHT_FAULTS["worker killed"],
    "worker killed in compaction": killed_in_compaction,
    "function killed": function_killed,
    "function timed out": function_timed_out,
    "function near its deadline": function_near_deadline,
    "function throttled": function_throttled,
    "batch twice at once": batch_twice_at_once,
    "batch twice in turn": batch_twice_in_turn,
    "part written, function fails": part_written_then_failed,
    "endpoint down": endpoint_down,
    "model killed": NIGHT_FAULTS["model killed"],
    "model errors": NIGHT_FAULTS["model errors"],
    "bad images": NIGHT_FAULTS["bad images"],
    "S3 refuses 50 %": refusing("s3", 0.5),
    "ministack restarted": NIGHT_FAULTS["ministack restarted"],
    "ministack killed": ministack_killed,
    "cancelled and resumed": cancelled_and_resumed,
    "execution stopped": execution_stopped,
    "manifest changed": manifest_changed,
    "manifest malformed": manifest_malformed,
    "objects replaced and deleted": objects_changed,
    "captures lost, late and repeated": captures_lost_late_and_repeated,
}
