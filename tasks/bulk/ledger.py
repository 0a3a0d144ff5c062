"""The rows that a run's batches have written, on disk and by image, so that millions need no memory."""

import json
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import msgspec
from msgspec.structs import replace

from tasks.aws import storage
from tasks.bulk.manifest import BulkImage
from tasks.errors import SconesError
from tasks.evaluation.results import Result

# Parts that are read at once, and held in memory.
PARTS = 32
TABLES = """
PRAGMA journal_mode = OFF;
PRAGMA synchronous = OFF;
CREATE TABLE rows (image BLOB, attempt INTEGER, row BLOB, PRIMARY KEY (image, attempt)) WITHOUT ROWID;
CREATE TABLE failures (image BLOB PRIMARY KEY, failure BLOB) WITHOUT ROWID;
"""


class LedgerError(SconesError):
    """What batches have written is not what they should have; the message names the object."""


class Failure(msgspec.Struct, frozen=True):
    """A batch that failed, of which an image has no row."""

    execution_arn: str
    error: str
    cause: str
    started: str
    stopped: str


@dataclass
class Work:
    """What batches did: how many parts they wrote, and how long they took together, in seconds."""

    batches: int = 0
    seconds: float = 0.0


class Ledger:
    """Rows of the parts below a prefix, in a database file that is made anew."""

    def __init__(self, file: Path, bucket: str, prefix: str) -> None:
        self.work = Work()
        self._bucket = bucket
        self._prefix = f"{prefix}parts/"
        self._parts: dict[str, str] = {}  # ETags by key
        # Tasks and hooks of the same run may be in other threads, one after the other.
        self._database = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
        self._database.executescript(TABLES)

    def close(self) -> None:
        self._database.close()

    def refresh(self) -> int:
        """Reads the parts that are new or another than before; returns how many rows there are."""
        there = storage.list_etags(self._bucket, self._prefix)
        new = [key for key, etag in there.items() if self._parts.get(key) != etag]
        with ThreadPoolExecutor(storage.PARALLEL_REQUESTS) as threads:
            for first in range(0, len(new), PARTS):
                keys = new[first : first + PARTS]
                for key, content in zip(
                    keys, threads.map(lambda key: storage.get(self._bucket, key), keys), strict=True
                ):
                    if content is not None:
                        self._add(key, content)
        self._parts = there
        return self._count("SELECT count(*) FROM rows")

    def images(self) -> int:
        """How many images have a row."""
        return self._count("SELECT count(DISTINCT image) FROM rows")

    def has_attempt(self, attempt: int) -> bool:
        return bool(self._database.execute("SELECT 1 FROM rows WHERE attempt = ? LIMIT 1", (attempt,)).fetchone())

    def add_failures(self, prefix: str) -> None:
        """Reads what ResultWriter says of batches that failed. prefix: the map run's folder, map/UUID/."""
        for key in storage.list_etags(self._bucket, f"{prefix}FAILED_"):
            for line in (storage.get(self._bucket, key) or b"").splitlines():
                entry = json.loads(line)
                failure = msgspec.json.encode(
                    Failure(
                        entry["ExecutionArn"],
                        entry.get("Error") or entry["Status"],
                        entry.get("Cause", ""),
                        entry["StartDate"],
                        entry["StopDate"],
                    )
                )
                images = [(_image(item["inference_id"]), failure) for item in json.loads(entry["Input"])["Items"]]
                self._database.executemany("INSERT OR REPLACE INTO failures VALUES (?, ?)", images)

    def rows(self, image: BulkImage) -> list[Result]:
        """What came of an image, a row per attempt; the last one counts.

        They are in the order of attempts, but a decision follows what failed: a batch that was thought lost may have
        come to one while the next attempt began.
        """
        found = self._database.execute(
            "SELECT row FROM rows WHERE image = ? ORDER BY attempt", (_image(image.inference_id),)
        )
        return sorted((_decode(row) for (row,) in found), key=lambda row: row.status != "failed")

    def failure(self, image: BulkImage) -> Failure | None:
        """Why an image without a row has none, if its batch failed."""
        query = "SELECT failure FROM failures WHERE image = ?"
        found = self._database.execute(query, (_image(image.inference_id),)).fetchone()
        return msgspec.json.decode(found[0], type=Failure) if found else None

    def _add(self, key: str, content: bytes) -> None:
        rows, times = [], []
        for number, line in enumerate(content.splitlines(), 1):
            try:
                known = _known(line)
                rows.append((_image(known.inference_id), known.attempt, line))
                times += [known.started, known.stopped]
            except (msgspec.MsgspecError, ValueError) as error:
                raise LedgerError(f"line {number} of s3://{self._bucket}/{key} is no row: {error}") from error
        self._database.execute("BEGIN")
        self._database.executemany("INSERT OR REPLACE INTO rows VALUES (?, ?, ?)", rows)
        self._database.execute("COMMIT")
        if times:
            self.work.batches += 1
            self.work.seconds += (
                datetime.fromisoformat(max(times)) - datetime.fromisoformat(min(times))
            ).total_seconds()

    def _count(self, query: str) -> int:
        (count,) = self._database.execute(query).fetchone()
        return int(count)


class _Known(msgspec.Struct, frozen=True):
    """The members of a row that the ledger looks at."""

    inference_id: str
    attempt: int
    started: str
    stopped: str


_known = msgspec.json.Decoder(_Known).decode
_decode = msgspec.json.Decoder(Result).decode


def _image(inference_id: str) -> bytes:
    """The part of an inference id that stands for the image's key, as bytes."""
    return bytes.fromhex(inference_id.split("-")[1])


def outcome(image: BulkImage, ledger: Ledger, model_version: str, threshold: float) -> Result:
    """The result that counts for an image, with its earlier attempts."""
    rows = ledger.rows(image)
    if rows:
        *earlier, last = rows
        return replace(last, previous_attempts=tuple(earlier)) if earlier else last
    failure = ledger.failure(image)
    return Result(
        inference_id=image.inference_id,
        execution_arn=failure.execution_arn if failure else None,
        key=image.key,
        label=image.label,
        attempt=1,
        status="failed" if failure else "not_submitted",
        predicted_class=None,
        confidence=None,
        threshold=threshold,
        model_version=model_version,
        error=failure.error if failure else None,
        cause=failure.cause if failure else None,
        failed_state="ClassifyBatch" if failure else None,
        started=failure.started if failure else None,
        stopped=failure.stopped if failure else None,
    )
