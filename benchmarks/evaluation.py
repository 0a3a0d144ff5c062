"""The nightly evaluation's figures: python -m benchmarks.evaluation.

Starts a local stack of its own with Prefect, compares the flow with a bare loop over the same state machine, kills it
in the middle, and runs evaluations under each fault with as many seeds as it is told. The bare loop starts, waits for
and describes its executions as the flow does, with the same number in flight, and does nothing else. Exits with 1 if
a goal is missed.
"""

import argparse
import json
import logging
import os
import random
import signal
import sqlite3
import statistics
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from benchmarks.figure import HEADING, Figure
from local_aws import services
from local_aws.config import LocalConfig, free_port
from local_aws.environment import enter

IMAGES = 2000
FEW = 200
# A small model: it is the evaluation that is measured.
CHOSEN = {
    "GENERATED_PER_CLASS": "100",
    "GENERATED_TEST_PER_CLASS": str(IMAGES // 2),
    "EPOCHS": "12",
    "FOLDS": "2",
    "REPEATS": "1",
    "MINI_BATCH_SIZE": "16",
    "GATE_MIN_ACCURACY": "0",
    "SMOKE_MIN_ACCURACY": "0",
    "EVALUATION_MIN_ACCURACY": "0",
    "EVALUATION_MIN_COVERAGE": "0",
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evaluation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=20, help="evaluations under each fault (default: 20)")
    parser.add_argument("--rounds", type=int, default=8, help="pairs of flow and bare loop of 200 images (default: 8)")
    parser.add_argument("--waits", type=int, default=2, help="kills with nothing skipped, 3 minutes each (default: 2)")
    parser.add_argument("--part", choices=["figures", "faults"], help="only a part")
    parser.add_argument("--fault", nargs="*", help="only the faults of these names, with --part faults")
    arguments = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # also if the shell had the first ignored
        signal.signal(number, interrupt)
    missed = False
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        config = own_stack(Path(name))
        from deploy import bring_up

        try:
            bring_up(config)
            missed = _measure(config, arguments)
        finally:
            services.down(config)
    return int(missed)


def interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def own_stack(folder: Path, **more: str) -> LocalConfig:
    """Makes this process's environment that of a stack on free ports, before prefect and boto3 are imported."""
    for name in [name for name in os.environ if name.startswith("SCONES_")]:
        del os.environ[name]
    ports = {f"SCONES_{name}_PORT": str(free_port()) for name in ("PREFECT", "AWS", "SAGEMAKER")}
    chosen = {f"SCONES_{name}": value for name, value in {**CHOSEN, **more}.items()}
    folders = {"SCONES_STATE": str(folder / "state"), "SCONES_REPORTS": str(folder / "reports")}
    os.environ.update(ports | chosen | folders)
    config = LocalConfig()
    enter(config)
    logging.disable(logging.CRITICAL)
    return config


def _measure(config: LocalConfig, arguments: argparse.Namespace) -> bool:
    """Prints every figure; True if one misses its goal."""
    from testing.faults.nights import FAULTS, WAITED, Lab

    installed = prepare()
    figures: list[Figure] = []
    print(HEADING, flush=True)
    if arguments.part != "faults":
        for figure in _throughput(config, installed, arguments.rounds):
            print(figure, flush=True)
            figures.append(figure)
    with Lab(config, installed) as lab:
        if arguments.part != "faults":
            for figure in _recovery(lab):
                print(figure, flush=True)
                figures.append(figure)
        if arguments.part != "figures":
            figures += faults(lab, [*FAULTS, *([WAITED] if arguments.waits else [])], arguments)
    return any(figure.missed for figure in figures)


def prepare() -> Any:
    """Images, a model and an endpoint."""
    from flows.deploy_endpoint import deploy_endpoint
    from flows.prepare_data import prepare_data
    from flows.train_model import train_model
    from tasks.aws.stacks import installation

    prepare_data("generated")
    train_model()
    deploy_endpoint()
    return installation()


def _throughput(config: LocalConfig, installed: Any, rounds: int) -> Iterator[Figure]:
    """The flow against the bare loop; each pair in another order, so that neither always has the fresher machine."""
    from tasks.aws import clients as aws
    from tasks.aws import storage

    calls: Counter[str] = Counter()
    aws.client.cache_clear()
    aws.session().events.register("before-send", lambda request, **details: calls.update([request.method]))
    test = (storage.get(installed.bucket, "manifests/test.lst") or b"").decode().splitlines()
    database = config.state / "prefect" / "prefect.db"
    _warm_up(installed, test[:16])
    per_image: dict[int, tuple[float, float]] = {}
    for images, pairs in ((FEW, rounds), (IMAGES, 2)):
        rows = random.Random(1).sample(test, images)
        storage.put(installed.bucket, "manifests/test.lst", ("\n".join(rows) + "\n").encode())
        seconds: dict[str, list[float]] = {"flow": [], "bare": []}
        for pair in range(pairs):
            for which in ("flow", "bare")[:: -1 if pair % 2 else 1]:
                if which == "bare":
                    seconds["bare"].append(_bare_loop(installed, rows))
                    continue
                before, size_before = calls.total(), database_bytes(database)
                seconds["flow"].append(evaluate(images))
                requests, grown = calls.total() - before, database_bytes(database) - size_before
                per_image[images] = requests / images, grown / images
        ratio = sum(seconds["bare"]) / sum(seconds["flow"])
        n, runs = f"{pairs} pairs", f"{pairs} runs"
        yield Figure(f"throughput of the flow over the bare loop, {images} images", ratio, "", n, at_least=0.9)
        yield Figure(f"images a second, {images} images", images * pairs / sum(seconds["flow"]), "/s", runs)
    storage.put(installed.bucket, "manifests/test.lst", ("\n".join(test) + "\n").encode())
    for images, (calls_per_image, size) in per_image.items():
        yield Figure(f"API calls per image, {images} images", calls_per_image, "", "1 run")
        yield Figure(f"growth of Prefect's database per 1,000 images, {images} images", size, "kB", "1 run")


def _warm_up(installed: Any, rows: list[str]) -> None:
    """Both once with a few images, so that neither is charged with what the first one loads."""
    from tasks.aws import storage

    storage.put(installed.bucket, "manifests/test.lst", ("\n".join(rows) + "\n").encode())
    evaluate(len(rows))
    _bare_loop(installed, rows)


def evaluate(images: int) -> float:
    from flows.nightly_evaluation import nightly_evaluation
    from tasks.evaluation.summary import DECIDED

    began = time.monotonic()
    summary = nightly_evaluation()
    seconds = time.monotonic() - began
    assert sum(getattr(summary, status) for status in DECIDED) == images, summary
    return seconds


def _bare_loop(installed: Any, rows: list[str]) -> float:
    """Seconds to run an execution per row of the manifest: start, list those that run, describe those that ended."""
    from settings import settings
    from tasks.aws.clients import client
    from tasks.evaluation.executions import POLL_SECONDS

    states = client("stepfunctions")
    run = uuid.uuid4().hex[:12]
    began = time.monotonic()
    waiting = [
        (f"{run}-{number}", json.dumps({"bucket": installed.bucket, "key": "test/" + row.split("\t")[2]}))
        for number, row in enumerate(rows)
    ]
    running: set[str] = set()
    described = 0
    while waiting or running:
        while waiting and len(running) < settings().executions_in_flight:
            name, text = waiting.pop(0)
            started = states.start_execution(stateMachineArn=installed.state_machine_arn, name=name, input=text)
            running.add(started["executionArn"])
        pages = states.get_paginator("list_executions").paginate(
            stateMachineArn=installed.state_machine_arn, statusFilter="RUNNING", maxResults=1000
        )
        still = {execution["executionArn"] for page in pages for execution in page["executions"]}
        ended = running - still
        for arn in ended:
            assert states.describe_execution(executionArn=arn)["status"] in ("SUCCEEDED", "FAILED")
        described += len(ended)
        running &= still
        if not ended:
            time.sleep(POLL_SECONDS)
    assert described == len(rows)
    return time.monotonic() - began


def database_bytes(path: Path) -> int:
    """What the server's database holds, once its write-ahead log is in it."""
    time.sleep(3)  # events and logs come a little later
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        pages, unused, size = (
            database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size")
        )
    return int((pages - unused) * size)


def _recovery(lab: Any) -> Iterator[Figure]:
    """SIGKILL for the worker and the flow run at half of the images; what the resumed run does again."""
    lab.states.calls.clear()
    night = lab.night("worker killed", 0, images=IMAGES, at=IMAGES // 2)
    assert not night.verdict.violations, night.verdict.violations
    calls = lab.states.calls
    again = max(calls["StartExecution"], calls["DescribeExecution"]) - IMAGES
    yield Figure(f"work done again after SIGKILL at half of {IMAGES} images", again / IMAGES, "", "1 run", at_most=0.05)
    yield Figure(
        "seconds from the kill to the next decision, heartbeat skipped",
        night.verdict.recovery_seconds or 0,
        "s",
        "1 run",
    )


def faults(lab: Any, names: list[str], arguments: argparse.Namespace) -> list[Figure]:
    """Prints the table of faults, or the line of one, and returns its totals as figures."""
    from testing.faults.nights import WAITED

    unknown = set(arguments.fault or ()) - set(names)
    if unknown:
        raise SystemExit(f"there is no fault {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    row = "{:<36} {:>5} {:>6} {:>6} {:>11} {:>6} {:>16}"
    print("\n" + row.format("fault", "runs", "struck", "lost", "duplicated", "wrong", "median recovery"), flush=True)
    totals: Counter[str] = Counter()
    chosen = {
        fault: arguments.waits if fault == WAITED else arguments.seeds
        for fault in names
        if not arguments.fault or fault in arguments.fault
    }
    for fault, seeds in chosen.items():
        nights = [lab.night(fault, seed) for seed in range(seeds)]
        kinds = {
            kind: sum(len(getattr(night.verdict, kind)) for night in nights) for kind in ("lost", "duplicated", "wrong")
        }
        totals.update(kinds)
        recovered = [night.verdict.recovery_seconds for night in nights if night.verdict.recovery_seconds is not None]
        median = f"{statistics.median(recovered):.1f} s (n = {len(recovered)})" if recovered else "-"
        struck = sum(night.made.total() > 0 for night in nights)
        print(row.format(fault, len(nights), struck, *kinds.values(), median), flush=True)
        for night in nights:
            for violation in night.verdict.violations:
                print(f"  seed {night.seed}: {violation}", flush=True)
    print("\n" + HEADING)
    count = f"{sum(chosen.values())} runs"
    figures = [
        Figure(f"images {kind} under faults", totals[kind], "", count, at_most=0)
        for kind in ("lost", "duplicated", "wrong")
    ]
    for figure in figures:
        print(figure)
    return figures


if __name__ == "__main__":
    sys.exit(main())
