"""The endpoint's data-capture records of one evaluation, as a table."""

import base64
import json
import time
from collections.abc import Callable
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
COLUMNS = ["inference_id", "time", "model_version", "inferences"]

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Captured:
    """Records by inference id, columns COLUMNS; the ids that have none; how many lines were unreadable."""

    records: pd.DataFrame
    missing: tuple[str, ...]
    unreadable: int


@task(task_run_name="collect capture records")
def collect(bucket: str, prefix: str, wanted: list[str], evaluation: dict[str, Any]) -> Captured:
    """Waits until every wanted inference id of the evaluation is captured, or until the deadline setting is over."""
    logger = get_run_logger()
    deadline = time.monotonic() + settings().capture_max_seconds
    window = _window(evaluation)
    collector = _Collector(bucket, prefix, window)
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


def parse(line: str, model_version: str) -> dict[str, Any]:
    """A row of one record; raises ValueError, KeyError or TypeError where the line is not one."""
    record = json.loads(line)
    metadata, output = record["eventMetadata"], record["captureData"]["endpointOutput"]
    data = base64.b64decode(output["data"]) if output["encoding"] == "BASE64" else output["data"]
    return {
        "event_id": metadata["eventId"],
        "inference_id": metadata.get("inferenceId"),
        "time": pd.Timestamp(metadata["inferenceTime"]),
        "model_version": model_version,
        "inferences": [float(value) for value in json.loads(data)],
    }


class _Collector:
    """Reads each object of the window once, however often it is asked."""

    def __init__(self, bucket: str, prefix: str, window: tuple[datetime, datetime]) -> None:
        self._bucket = bucket
        self._prefix = prefix
        self._hours = _hours(*window)
        self._read: set[str] = set()
        self._rows: dict[str, dict[str, Any]] = {}
        self._unreadable = 0

    def read(self) -> None:
        for key in storage.list_etags(self._bucket, self._prefix):
            variant, hour = _variant_and_hour(key.removeprefix(self._prefix))
            if hour not in self._hours or key in self._read:
                continue
            for line in (storage.get(self._bucket, key) or b"").decode("utf-8", "replace").splitlines():
                try:
                    row = parse(line, variant)
                except (ValueError, KeyError, TypeError):
                    self._unreadable += 1
                    continue
                self._rows[row["event_id"]] = row
            self._read.add(key)

    def captured(self, wanted: list[str]) -> Captured:
        table = pd.DataFrame(list(self._rows.values()), columns=["event_id", *COLUMNS])
        table = table[table["inference_id"].isin(wanted)].sort_values(["time", "inference_id"])
        # A state that was retried has several records; the last one is what the execution saw.
        table = table.drop_duplicates("inference_id", keep="last")[COLUMNS].reset_index(drop=True)
        there = set(table["inference_id"])
        return Captured(table, tuple(name for name in wanted if name not in there), self._unreadable)


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


def _variant_and_hour(path: str) -> tuple[str, str]:
    """'v7' and '2026/11/22/08' of v7/2026/11/22/08/mm-ss-SSS-uuid.jsonl; empty where the path is another."""
    parts = path.split("/")
    return (parts[0], "/".join(parts[1:5])) if len(parts) == 6 else ("", "")
