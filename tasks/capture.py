"""The endpoint's data-capture records of one evaluation, as a table."""

import base64
import gzip
import json
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd
from prefect import task
from prefect.logging import get_run_logger

from settings import settings
from tasks import storage

POLL_SECONDS = 1.0
MAX_POLL_SECONDS = 30.0
# Clocks differ a little, and an hour's folder is named after the time of the inference.
SLACK = timedelta(minutes=5)
GZIP = b"\x1f\x8b"
COLUMNS = ["inference_id", "time", "model_version", "inferences"]


@dataclass(frozen=True)
class Quarantined:
    """A line that is no record of an inference. line: from 1, or 0 where the object can't be read at all."""

    key: str
    line: int
    reason: str


@dataclass(frozen=True)
class Captured:
    """Records by inference id, columns COLUMNS; the ids that have none; lines that could not be read."""

    records: pd.DataFrame
    missing: tuple[str, ...]
    quarantined: tuple[Quarantined, ...] = ()


@task(task_run_name="collect capture records")
def collect(bucket: str, prefix: str, wanted: list[str], evaluation: dict[str, Any]) -> Captured:
    """Waits until every wanted inference id of the evaluation is captured, or until the deadline setting is over."""
    logger = get_run_logger()
    deadline = time.monotonic() + settings().capture_max_seconds
    collector = _Collector(bucket, prefix, evaluation["model_version"], _window(evaluation))
    pause = POLL_SECONDS
    while True:
        collector.read()
        captured = collector.captured(wanted)
        if not captured.missing:
            logger.info("all %d inferences are captured", len(wanted))
            return captured
        if time.monotonic() > deadline:
            logger.warning("%d of %d inferences are not captured yet", len(captured.missing), len(wanted))
            return captured
        logger.info("waiting for %d of %d capture records", len(captured.missing), len(wanted))
        time.sleep(pause)
        pause = min(pause * 1.5, MAX_POLL_SECONDS)


def find_record(bucket: str, prefix: str, inference_id: str, since: datetime) -> bool:
    """Whether a variant's capture files of the hours since then mention an inference id. prefix: the variant's."""
    needle = json.dumps(inference_id).encode()
    for hour in sorted(_hours(since, datetime.now(UTC)), reverse=True):
        for key in storage.list_etags(bucket, f"{prefix}{hour}/"):
            if needle in (storage.get(bucket, key) or b""):
                return True
    return False


def parse(line: bytes, model_version: str) -> dict[str, Any]:
    """A row of one record; raises ValueError, KeyError or TypeError where the line is not one."""
    record = json.loads(line)
    metadata, output = record["eventMetadata"], record["captureData"]["endpointOutput"]
    data = (
        base64.b64decode(output["data"], validate=True).decode() if output["encoding"] == "BASE64" else output["data"]
    )
    # AWS gives CSV where the content type is listed as such; a list of numbers is both.
    values = json.loads(f"[{data}]" if output["encoding"] == "CSV" else data)
    inferences = [float(value) for value in values]
    if not inferences or not all(0 <= value <= 1 for value in inferences):
        raise ValueError(f"not probabilities: {str(inferences)[:100]}")
    return {
        "event_id": str(metadata["eventId"]),
        "inference_id": metadata.get("inferenceId"),
        "time": pd.Timestamp(metadata["inferenceTime"]).tz_convert(UTC),
        "model_version": model_version,
        "inferences": inferences,
    }


class _Collector:
    """Reads each object of the window once, however often it is asked, and again where it has changed."""

    def __init__(self, bucket: str, prefix: str, variant: str, window: tuple[datetime, datetime]) -> None:
        self._bucket = bucket
        self._variant = variant
        self._folders = [f"{prefix}{variant}/{hour}/" for hour in sorted(_hours(*window))]
        self._read: dict[str, str] = {}  # ETags by key
        self._rows: dict[str, dict[str, Any]] = {}
        self._quarantined: dict[str, list[Quarantined]] = {}

    def read(self) -> None:
        """Downloads what is new, many objects side by side."""
        there = {
            key: etag for folder in self._folders for key, etag in storage.list_etags(self._bucket, folder).items()
        }
        new = [key for key, etag in sorted(there.items()) if self._read.get(key) != etag]
        with ThreadPoolExecutor(storage.PARALLEL_REQUESTS) as threads:
            contents = threads.map(lambda key: storage.get(self._bucket, key), new)
            for key, content in zip(new, contents, strict=True):
                self._take(key, content or b"")
                self._read[key] = there[key]

    def captured(self, wanted: list[str]) -> Captured:
        table = pd.DataFrame(list(self._rows.values()), columns=["event_id", *COLUMNS])
        table = table[table["inference_id"].isin(wanted)].sort_values(["time", "inference_id", "event_id"])
        # A state that was retried has several records; the last one is what the execution saw.
        table = table.drop_duplicates("inference_id", keep="last")[COLUMNS].reset_index(drop=True)
        there = set(table["inference_id"])
        lines = tuple(line for key in sorted(self._quarantined) for line in self._quarantined[key])
        return Captured(table, tuple(name for name in wanted if name not in there), lines)

    def _take(self, key: str, content: bytes) -> None:
        """A bad line costs that line."""
        bad = self._quarantined[key] = []
        if content.startswith(GZIP):
            try:
                content = gzip.decompress(content)
            except (OSError, EOFError, zlib.error) as error:
                bad.append(Quarantined(key, 0, f"broken gzip: {error}"))
                return
        for number, line in enumerate(content.split(b"\n"), 1):
            if not line.strip():
                continue
            try:
                row = parse(line, self._variant)
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                bad.append(Quarantined(key, number, f"{type(error).__name__}: {error}"[:200]))
            else:
                self._rows[row["event_id"]] = row


def _window(evaluation: dict[str, Any]) -> tuple[datetime, datetime]:
    """From a little before the first execution to a little after the last."""
    if not evaluation["started"]:  # nothing was submitted
        return datetime.now(UTC), datetime.now(UTC)
    first, last = evaluation["started"], evaluation["stopped"] or evaluation["started"]
    return datetime.fromisoformat(first) - SLACK, datetime.fromisoformat(last) + SLACK


def _hours(first: datetime, last: datetime) -> set[str]:
    hour = first.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    hours = set()
    while hour <= last:
        hours.add(f"{hour:%Y/%m/%d/%H}")
        hour += timedelta(hours=1)
    return hours
