"""The report's figures: python -m benchmarks.report.

Reads a million capture records from local files, beside the way that pandas alone offers; reads them again from what is
kept; takes ten million rows through metrics and charts; reads small objects from the local S3, beside a sequential
boto3 loop; reads poisoned files; and judges simulated nights in which nothing is wrong. What is timed runs in a process
of its own, so that neither pays for the other's imports or memory; seconds count from after the imports. Exits with 1
if a goal is missed.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil

from benchmarks.figure import HEADING, Figure

CLASSES = ("bicycle", "motorcycle")
START = datetime(2026, 11, 22, tzinfo=UTC)
# Of a 32x32 photo as PNG.
IMAGE_BYTES = 2500
ANSWER = '{{"probabilities": [{!r}, {!r}], "outlier_score": {!r}}}'
OBJECTS = 20_000
# As far as a region of AWS, and as many as a sequential loop gets in half a minute.
DISTANCE_SECONDS = 0.03
FEWER = 1000
ROWS = 10_000_000
# Nights in which nothing is wrong, their images, and images of the nights that they are compared with.
NIGHTS = 500
NIGHT_IMAGES = 200
BASELINE_IMAGES = (200, 1400)
# Of Beta distributions of the doubt, in turn: a model of today, and one that is hardly ever wrong.
CONFIDENCES = ((0.5, 4), (0.3, 30))
MEBIBYTE = 1 << 20


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("--files", type=int, default=2000, help="capture files of 500 records (default: 2000)")
    parser.add_argument("--objects", type=int, default=OBJECTS, help=f"small objects in S3 (default: {OBJECTS})")
    parser.add_argument("--rows", type=int, default=ROWS, help=f"rows for metrics and charts (default: {ROWS})")
    parser.add_argument("--rounds", type=int, default=3, help="readings that are compared (default: 3)")
    parser.add_argument("--nights", type=int, default=NIGHTS, help=f"healthy nights (default: {NIGHTS})")
    parser.add_argument("--part", choices=["files", "charts", "objects", "poison", "healthy"], help="only a part")
    arguments = parser.parse_args()
    parts: dict[str, Callable[[], Iterator[Figure]]] = {
        "files": lambda: _files(arguments.files, arguments.rounds),
        "charts": lambda: _charts(arguments.rows),
        "objects": lambda: _objects(arguments.objects),
        "poison": _poison,
        "healthy": lambda: healthy(arguments.nights),
    }
    print(HEADING, flush=True)
    missed = False
    for name, part in parts.items():
        if arguments.part in (None, name):
            for figure in part():
                print(figure, flush=True)
                missed = missed or figure.missed
    return int(missed)


@dataclass(frozen=True)
class Measured:
    """What a function gave in a process of its own, its seconds, and the most memory of it and its children (PSS)."""

    value: Any
    seconds: float
    peak_bytes: int


def _measure(function: Callable[..., Any], *arguments: Any) -> Measured:
    """`function` returns a value and its own seconds."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_call, args=(theirs, function, arguments))
    process.start()
    theirs.close()
    peak = 0
    while not ours.poll(0.05):
        if not process.is_alive():
            break
        peak = max(peak, _tree_pss(process.pid or 0))
    value, seconds = ours.recv()
    process.join()
    return Measured(value, seconds, peak)


def _call(pipe: Any, function: Callable[..., tuple[Any, float]], arguments: tuple[Any, ...]) -> None:
    pipe.send(function(*arguments))


def _tree_pss(process_id: int) -> int:
    total = 0
    try:
        root = psutil.Process(process_id)
        for process in [root, *root.children(recursive=True)]:
            total += process.memory_full_info().pss
    except psutil.Error:
        return total
    return total


# A million records in local files


def _files(files: int, rounds: int) -> Iterator[Figure]:
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        folder = Path(name) / "captures"
        good = _write_captures(folder, files)
        ours: list[Measured] = []
        again: list[Measured] = []
        pandas: list[Measured] = []
        for number in range(rounds):
            cache = Path(name) / f"cache-{number}"
            for function, taken, arguments in (
                (read_archive, ours, (folder, cache)),
                (read_archive, again, (folder, cache)),
                (read_with_pandas, pandas, (folder,)),
            ):
                measured = _measure(function, *arguments)
                assert measured.value["records"] == good, (measured.value, good)
                taken.append(measured)
            assert ours[-1].value["quarantined"] == again[-1].value["quarantined"] == files // 100
        n = f"{rounds} runs of {files * 500 + files // 100:,} lines"
        usual = _median(ours)
        yield Figure("seconds to read the records, first time", usual, "s", n, at_most=5)
        yield Figure(
            "peak memory of it, all processes", max(one.peak_bytes for one in ours) / MEBIBYTE, "MiB", n, at_most=400
        )
        yield Figure("pandas.read_json's time over it", _median(pandas) / usual, "", n, at_least=4)
        yield Figure("peak memory of pandas.read_json", max(one.peak_bytes for one in pandas) / MEBIBYTE, "MiB", n)
        yield Figure("seconds to read them again", _median(again), "s", n, at_most=1)


def _median(measured: list[Measured]) -> float:
    return statistics.median(one.seconds for one in measured)


def _write_captures(folder: Path, files: int, per_file: int = 500) -> int:
    """Writes a day's files; one in a hundred has a bad line, one in ten repeats another's records. Returns how many
    different records there are.
    """
    from testing.captures import record

    chance = random.Random(1)
    image = '"data": "' + "x" * (IMAGE_BYTES * 4 // 3)
    template = record("EVENT", "ANSWER", inference="INFERENCE", time="TIME").decode()
    head, _, tail = template.partition('"data": "')
    template = head + image + tail[tail.index('"') :] + "\n"
    good = 0
    lines: list[str] = []
    for number in range(files):
        moment = START + timedelta(seconds=86_399 * number / files)
        if number % 10 != 9 or not lines:
            lines = []
            for index in range(per_file):
                first = chance.random()
                values = {
                    "EVENT": f"{chance.getrandbits(128):032x}"[:8]
                    + f"-0000-4000-8000-{number * per_file + index:012x}",
                    "INFERENCE": f"5b52074c57ed-{number * per_file + index:020x}-a1",
                    "ANSWER": ANSWER.format(first, 1 - first, 1 / (0.5 + chance.random())).replace('"', '\\"'),
                    "TIME": moment.strftime("%Y-%m-%dT%H:%M:%SZ"),
                }
                line = template
                for placeholder, value in values.items():
                    line = line.replace(placeholder, value, 1)
                lines.append(line)
            good += per_file
        path = folder / "v1" / moment.strftime("%Y/%m/%d/%H") / f"{moment:%M-%S}-{number % 1000:03}-{number:08x}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        bad = ["{\n"] if number % 100 == 50 else []
        path.write_text("".join([*lines, *bad]))
    return good


def read_archive(folder: Path, cache: Path) -> tuple[dict[str, int], float]:
    """This project's way."""
    from testing.captures import CaptureFolder

    captures = CaptureFolder(folder, cache)
    began = time.perf_counter()
    captured = captures.read()
    seconds = time.perf_counter() - began
    return {"records": len(captured.records), "quarantined": len(captured.quarantined)}, seconds


def read_with_pandas(folder: Path) -> tuple[dict[str, int], float]:
    """What one would write with pandas alone; if read_json refuses a file, without the lines that json refuses."""
    from io import StringIO

    import pandas as pd

    began = time.perf_counter()
    pieces = []
    for path in sorted(folder.rglob("*.jsonl")):
        try:
            frame = pd.read_json(path, lines=True)
        except ValueError:
            frame = pd.read_json(StringIO("".join(filter(_is_json, path.read_text().splitlines(True)))), lines=True)
        metadata = frame["eventMetadata"]
        answers = frame["captureData"].map(lambda data: json.loads(data["endpointOutput"]["data"])["probabilities"])
        pieces.append(
            pd.DataFrame(
                {
                    "event_id": metadata.map(lambda each: each["eventId"]),
                    "inference_id": metadata.map(lambda each: each["inferenceId"]),
                    "time": pd.to_datetime(metadata.map(lambda each: each["inferenceTime"]), utc=True),
                    "confidence": answers.map(max),
                    "predicted_class": answers.map(lambda answer: CLASSES[answer.index(max(answer))]),
                }
            )
        )
    table = pd.concat(pieces).drop_duplicates("event_id").sort_values("time")
    return {"records": len(table)}, time.perf_counter() - began


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


# Ten million rows through metrics and charts


def _charts(rows: int) -> Iterator[Figure]:
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        measured = _measure(draw, rows, Path(name))
    n = f"1 run of {rows:,} rows"
    yield Figure("seconds of metrics and charts", measured.seconds, "s", n, at_most=30)
    yield Figure("peak memory of them", measured.peak_bytes / (1 << 30), "GiB", n, at_most=3)


def draw(rows: int, folder: Path) -> tuple[int, float]:
    """Every metric of a summary, and every chart."""
    import numpy as np
    import pandas as pd

    from tasks.report.charts import Caption, draw_all, drift_of_confidence, save
    from tasks.report.drift import coverage_change, drift, histogram
    from tasks.report.metrics import (
        calibration_error,
        calibration_errors_by_chance,
        estimated_accuracy,
        figures,
        wilson_interval,
    )

    generator = np.random.default_rng(1)
    confidence = 1 - generator.beta(0.5, 4, rows) / 2
    codes = generator.integers(0, 2, rows, dtype=np.int8)
    correct = generator.random(rows) < confidence
    labels = np.where(correct, codes, 1 - codes).astype(np.int8)
    table = pd.DataFrame(
        {
            "time": pd.Timestamp(START) + pd.to_timedelta(np.arange(rows) * (86_400_000_000 // rows), unit="us"),
            "confidence": confidence,
            "outlier_score": 1 / generator.beta(8, 4, rows) - 1,
            "predicted_class": pd.Categorical.from_codes(codes, list(CLASSES)),  # type: ignore[call-overload]
            "label": pd.Categorical.from_codes(labels, list(CLASSES)),  # type: ignore[call-overload]
            "correct": correct,
        }
    )
    began = time.perf_counter()
    found = figures(table, 0.93)
    calibration_error(confidence, correct)
    calibration_errors_by_chance(confidence)
    estimated_accuracy(confidence)
    wilson_interval(int(correct.sum()), rows)
    half = rows // 2
    drifted = drift(histogram(confidence[:half]), histogram(confidence[half:]))
    coverage_change(confidence[:half], confidence[half:], 0.93)
    caption = Caption("0123456789ab", "2026-11-22", "drawn numbers", True, 0.93, "v1", False)
    draw_all(table, CLASSES, caption, folder)
    assert drifted is not None
    save(
        drift_of_confidence(histogram(confidence[:half]), histogram(confidence[half:]), drifted, caption),
        folder / "drift.png",
    )
    return found.captured, time.perf_counter() - began


# Small objects in the local S3


def _objects(objects: int) -> Iterator[Figure]:
    from local_aws.standalone import StandaloneAws
    from testing.captures import records

    with tempfile.TemporaryDirectory(prefix="benchmark-") as name, StandaloneAws(Path(name) / "aws") as aws:
        s3 = aws.client("s3", max_pool_connections=16)
        s3.create_bucket(Bucket="captures")
        with ThreadPoolExecutor(16) as threads:
            list(
                threads.map(
                    lambda number: s3.put_object(
                        Bucket="captures",
                        Key=f"data-capture/v1/e/primary/2026/11/22/{number % 24:02}/{number:08}.jsonl",
                        Body=records(2 * number, 2 * number + 2),
                    ),
                    range(objects),
                )
            )
        os.environ.update(aws.environment | {"SCONES_CACHE": str(Path(name) / "cache")})
        ours, loop = _measure(read_bucket), _measure(read_with_boto3)
        assert ours.value == loop.value == 2 * objects, (ours.value, loop.value)
        with Relay(aws.config.aws_port, DISTANCE_SECONDS) as relay:
            os.environ.update({"AWS_ENDPOINT_URL": relay.url, "SCONES_CACHE": str(Path(name) / "another-cache")})
            far, far_loop = _measure(read_bucket), _measure(read_with_boto3, FEWER)
        assert far.value == 2 * objects and far_loop.value == 2 * FEWER, (far.value, far_loop.value)
    n = f"1 run of {objects:,} objects"
    yield Figure("objects a second from the local S3, decoded and kept", objects / ours.seconds, "/s", n)
    yield Figure("a sequential boto3 loop's time over it", loop.seconds / ours.seconds, "", n, at_least=5)
    ratio = far_loop.seconds / FEWER * objects / far.seconds
    yield Figure(
        "the same with S3 30 ms away, per object", ratio, "", f"{objects:,}, and {FEWER:,} for the loop", at_least=5
    )


class Relay:
    """A port of 127.0.0.1 from which everything goes to another one and back, each way half of `seconds` later."""

    def __init__(self, port: int, seconds: float) -> None:
        self._port = port
        self._seconds = seconds
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> "Relay":
        self._thread.start()
        server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._connected, "127.0.0.1", 0), self._loop
        ).result(10)
        self.url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        theirs = await asyncio.open_connection("127.0.0.1", self._port)
        await asyncio.gather(self._pipe(reader, theirs[1]), self._pipe(theirs[0], writer))

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):  # one that was closed by the other side
            while content := await reader.read(1 << 16):
                self._loop.call_later(self._seconds / 2, writer.write, content)
        self._loop.call_later(self._seconds / 2, writer.close)


def read_bucket() -> tuple[int, float]:
    """This project's way: list, read side by side, decode and keep."""
    from tasks.capture.collect import archives
    from tasks.capture.window import read
    from testing.captures import DAY

    began = time.perf_counter()
    there = archives("captures", DAY, lambda done, total: None)
    captured = read(there, DAY, CLASSES)
    return len(captured.records), time.perf_counter() - began


def read_with_boto3(most: int | None = None) -> tuple[int, float]:
    """List, get one after the other (`most` at most), and count the lines."""
    import boto3

    s3 = boto3.client("s3")
    began = time.perf_counter()
    lines = 0
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket="captures", Prefix="data-capture/v1/e/primary/")
    for key in [item["Key"] for page in pages for item in page["Contents"]][:most]:
        lines += len(s3.get_object(Bucket="captures", Key=key)["Body"].read().splitlines())
    return lines, time.perf_counter() - began


# Poisoned files


# Nights in which nothing is wrong


def healthy(nights: int) -> Iterator[Figure]:
    """How often a report alerts although the model is calibrated and stays, and the images are as they were."""
    import numpy as np

    from tasks.report.analysis import ALERT_LEVEL, calibrated, judge
    from tasks.report.drift import coverage_change, drift, histogram
    from tasks.report.inputs import PROPERTIES, input_drift

    generator = np.random.default_rng(1)
    together = alone = 0
    for night in range(nights):
        spread = CONFIDENCES[night // 2 % len(CONFIDENCES)]
        before, now = (
            1 - generator.beta(*spread, n) / 2 for n in (BASELINE_IMAGES[night % len(BASELINE_IMAGES)], NIGHT_IMAGES)
        )
        tests = judge(
            calibrated(now, generator.random(len(now)) < now),
            drift(histogram(before), histogram(now), ALERT_LEVEL, seed=night),
            coverage_change(before, now, 0.93, ALERT_LEVEL),
            drift(
                histogram(generator.beta(4, 8, len(before))),
                histogram(generator.beta(4, 8, len(now))),
                ALERT_LEVEL,
                seed=night,
            ),
            input_drift(
                generator.normal(size=(500, len(PROPERTIES))),
                generator.normal(size=(NIGHT_IMAGES, len(PROPERTIES))),
                seed=night,
            ),
        )
        together += any(test.alert for test in tests)
        alone += any(test.p <= 1 - ALERT_LEVEL for test in tests)
    n = f"{nights} nights of {NIGHT_IMAGES}"
    yield Figure("healthy nights that alert, all tests judged together", together / nights, "", n, at_most=0.01)
    yield Figure("the same if each test were judged alone at 99 %", alone / nights, "", n)


def _poison() -> Iterator[Figure]:
    from testing.captures import POISON, CaptureFolder, records

    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        captures = CaptureFolder(Path(name) / "captures")
        expected: set[str] = set()
        for number, (_, poison) in enumerate(POISON.items()):
            first = number * 100
            captures.put(f"{number:02}-before.jsonl", records(first, first + 10))
            captures.put(f"{number:02}-poison", poison(first + 10, first + 20))
            captures.put(f"{number:02}-z-after.jsonl", records(first + 20, first + 30))
            expected |= {f"i{index}" for index in range(first, first + 30)}
        captured = captures.read()
    there = list(captured.records["inference_id"])
    n = f"{len(POISON)} kinds of file, {len(expected)} good records"
    yield Figure("good records lost to poisoned files", len(expected - set(there)), "", n, at_most=0)
    yield Figure("records counted twice", len(there) - len(set(there)), "", n, at_most=0)
    yield Figure("lines and files set aside, each with its reason", len(captured.quarantined), "", n)


if __name__ == "__main__":
    sys.exit(main())
