"""The figures of bulk runs: python -m benchmarks.bulk.

Starts a local stack of its own with Prefect and an ensemble of ten networks. Compares classify-images with a bare
client that sends images from memory to the same endpoint from as many threads, and with the nightly evaluation's
execution for each image. Then runs as many manifest lines as it is told through a function that asks no endpoint. With
--part faults it runs under each fault with as many seeds as it is told instead. Exits with 1 if a goal is missed.
"""

import argparse
import io
import json
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil

from benchmarks.evaluation import database_bytes, interrupt, own_stack, prepare
from benchmarks.figure import HEADING, Figure
from local_aws import services
from local_aws.config import ROOT, LocalConfig

THREADS = 16  # 2 batches at a time with 8 threads each
NIGHT = 200
KILLED_IMAGES = 200
ENSEMBLE = {"CLASSIFIER": "ensemble", "FOLDS": "5", "REPEATS": "2", "EPOCHS": "6"}
# Reports do not wait for captures that a fault has lost.
FAULTY = {"CAPTURE_MAX_SECONDS": "5"}
# In the place of the functions that read and classify.
READS = """
import boto3
s3 = boto3.client("s3")
class StorageUnavailable(Exception): ...
def handler(event, context): return event
"""
ANSWERS = "def handler(event, context): return {**event, 'inferences': [0.02, 0.98]}\n"
# A bulk run in a process of its own, whose memory is looked at.
FLOW = """
import json, resource, sys
from flows.classify_images import classify_images
summary = classify_images(**json.loads(sys.argv[1]), return_state=True).result(raise_on_failure=False)
summary = getattr(summary, "summary", summary)
memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print("SUMMARY", json.dumps({"memory": memory, **summary.to_json()}))
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bulk", description=__doc__)
    parser.add_argument("--images", type=int, nargs="*", default=[2_000, 20_000], help="images (default: 2000 20000)")
    parser.add_argument("--lines", type=int, default=1_000_000, help="manifest lines without a model; 0 for none")
    parser.add_argument("--part", choices=["figures", "faults"], help="only a part")
    parser.add_argument("--seeds", type=int, default=20, help="runs under each fault (default: 20)")
    parser.add_argument("--fault", nargs="*", help="only the faults of these names, with --part faults")
    arguments = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        config = own_stack(Path(name), **FAULTY, **({} if arguments.part == "faults" else ENSEMBLE))
        from deploy import bring_up

        try:
            bring_up(config)
            installed = prepare()
            if arguments.part != "faults":
                print(HEADING, flush=True)
                for figure in _measure(config, installed, arguments.images, arguments.lines):
                    print(figure, flush=True)
                    figures.append(figure)
            if arguments.part != "figures":
                figures += _under_faults(config, installed, arguments)
        finally:
            services.down(config)
    return int(any(figure.missed for figure in figures))


def _under_faults(config: LocalConfig, installed: Any, arguments: argparse.Namespace) -> list[Figure]:
    from benchmarks.evaluation import faults
    from testing.faults.bulk_runs import FAULTS, BulkLab

    with BulkLab(config, installed) as lab:
        return faults(lab, list(FAULTS), arguments)


def _measure(config: LocalConfig, installed: Any, counts: list[int], lines: int) -> Iterator[Figure]:
    contents = _contents(installed)
    night = _night(installed)
    _run(prefix=_upload(installed, contents, 200))  # what the first run loads is not measured
    for images in counts:
        prefix = _upload(installed, contents, images)
        bare = _bare_client(installed, contents, min(images, 2_000))
        began = time.monotonic()
        summary = _run(prefix=prefix)
        seconds = time.monotonic() - began
        assert summary["planned"] == images and not summary["failed"] + summary["not_submitted"], summary
        yield Figure(
            f"throughput over the bare client's, {images} images", images / seconds / bare, "", "1", at_least=0.8
        )
        yield Figure(f"images a second, {images} images", images / seconds, "/s", "1")
        against = images / seconds / night
        yield Figure(f"throughput over an execution for each, {images} images", against, "", "1", at_least=5)
        price = f"list price of 1,000,000 images without the endpoint, from {images}"
        yield Figure(price, _dollars(summary, images), "$", "1", at_most=2)
    yield _done_again(config, installed)
    if lines:
        yield from _many_lines(config, installed, lines)


def _done_again(config: LocalConfig, installed: Any) -> Figure:
    """What is classified a second time after SIGKILL for the worker and the flow run at half of the images."""
    from testing.faults.bulk_runs import BATCH, BulkLab

    with BulkLab(config, installed) as lab:
        before = lab.progress()
        night = lab.night("worker killed in mid-run", 0, images=KILLED_IMAGES, at=KILLED_IMAGES // 2)
        assert not night.verdict.violations, night.verdict.violations
        again = lab.progress() - before - KILLED_IMAGES
    name = f"batches done again after SIGKILL at half of {KILLED_IMAGES} images"
    return Figure(name, again / BATCH, "", "1", at_most=2)


def _many_lines(config: LocalConfig, installed: Any, lines: int) -> Iterator[Figure]:
    from settings import settings
    from tasks.aws import storage
    from tasks.aws.clients import client
    from tasks.aws.function_packages import function_package

    name, package = f"{settings().stack}-classifyBatch", function_package("classify_batch", settings().lambda_runtime)
    client("lambda").update_function_code(FunctionName=name, ZipFile=_without_model(package))
    manifest = "".join(json.dumps({"key": f"incoming/{number:08}.png"}) + "\n" for number in range(lines))
    storage.put(installed.bucket, "incoming/many.jsonl", manifest.encode())
    database = config.state / "prefect" / "prefect.db"
    before, began = database_bytes(database), time.monotonic()
    summary = _run(manifest="incoming/many.jsonl")
    seconds, grown = time.monotonic() - began, database_bytes(database) - before
    client("lambda").update_function_code(FunctionName=name, ZipFile=package)
    assert summary["accepted"] == lines, summary
    of = f"{lines:,} lines"
    yield Figure(f"seconds, {of} without a model", seconds, "s", "1")
    yield Figure(f"peak memory of the flow, {of}", summary["memory"] / 1000, "MB", "1", at_most=300)
    yield Figure(f"memory of the embedded AWS afterwards, {of}", _emulator_megabytes(config), "MB", "1")
    yield Figure(f"growth of Prefect's database, {of}", grown / 1e6, "MB", "1", at_most=1)


def _dollars(summary: dict[str, Any], images: int) -> float:
    """Of a million images, by what this run counted, without the endpoint."""
    cost = summary["cost_usd"]
    total: float = (cost["state_transitions"] + cost["functions"] + cost["requests"]) * 1e6 / images
    return total


def _run(**parameters: str) -> dict[str, Any]:
    """The summary of a bulk run, with the peak memory of its process in kB."""
    command = [sys.executable, "-c", FLOW, json.dumps(parameters)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    shown = [line for line in done.stdout.splitlines() if line.startswith("SUMMARY ")]
    assert shown, done.stdout[-2000:] + done.stderr[-3000:]
    summary: dict[str, Any] = json.loads(shown[0].removeprefix("SUMMARY "))
    return summary


def _night(installed: Any) -> float:
    """Images a second of the nightly evaluation."""
    from benchmarks.evaluation import evaluate
    from tasks.aws import storage

    rows = (storage.get(installed.bucket, "manifests/test.lst") or b"").decode().splitlines()[:NIGHT]
    storage.put(installed.bucket, "manifests/test.lst", ("\n".join(rows) + "\n").encode())
    evaluate(NIGHT)
    return NIGHT / evaluate(NIGHT)


def _contents(installed: Any) -> list[bytes]:
    from tasks.aws import storage

    keys = list(storage.list_etags(installed.bucket, "test/"))[:500]
    return [content for key in keys if (content := storage.get(installed.bucket, key)) is not None]


def _upload(installed: Any, contents: list[bytes], images: int) -> str:
    """The prefix of so many objects."""
    from tasks.aws import storage

    prefix = f"incoming/{images}/"
    objects = {f"{prefix}{number:06}.png": contents[number % len(contents)] for number in range(images)}
    storage.upload_changed(installed.bucket, prefix, objects)
    return prefix


def _bare_client(installed: Any, contents: list[bytes], images: int) -> float:
    """Images a second of threads that do nothing but ask the endpoint."""
    from tasks.aws.clients import session

    made: Any = session()
    runtime = made.client("sagemaker-runtime", config=_pool())

    def ask(number: int) -> None:
        answer = runtime.invoke_endpoint(
            EndpointName=installed.endpoint,
            ContentType="application/x-image",
            InferenceId=f"bare-{number}",
            Body=contents[number % len(contents)],
        )
        answer["Body"].read()

    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(ask, range(THREADS * 4)))
        began = time.monotonic()
        list(threads.map(ask, range(images)))
    return images / (time.monotonic() - began)


def _pool() -> Any:
    from botocore.config import Config

    return Config(max_pool_connections=THREADS)


def _without_model(package: bytes) -> bytes:
    """classifyBatch as it is, with functions that read nothing and ask no endpoint."""
    buffer = io.BytesIO()
    stubs = {"serialize_image_data.py": READS, "classify_image.py": ANSWERS}
    with (
        zipfile.ZipFile(io.BytesIO(package)) as before,
        zipfile.ZipFile(buffer, "w") as changed,
    ):
        for info in before.infolist():
            changed.writestr(info, stubs.get(info.filename, before.read(info)))
    return buffer.getvalue()


def _emulator_megabytes(config: LocalConfig) -> float:
    found = [
        process.memory_info().rss
        for process in psutil.process_iter()
        if "local_aws.ministack" in process.cmdline()
        and str(config.state) in str(process.environ().get("SCONES_STATE"))
    ]
    return max(found, default=0) / 1e6


if __name__ == "__main__":
    sys.exit(main())
