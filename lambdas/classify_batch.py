"""Classifies a batch of images with the code of the three functions, and writes a row for each to the bucket.

Event: {"BatchInput": {"bucket", "prefix", "attempt", "model_version", "threshold"}, "Items": [{"inference_id", "key",
"etag" or null, "label" or null}, ...], "execution_arn"}, as Step Functions' ItemBatcher makes it. Result: counts of
rows by status.

The rows are in PREFIXparts/<SHA-256 of the batch's first inference_id>.jsonl, with the members of a line of an
evaluation's results.jsonl. A batch that is run again goes on with what its part lacks. If it runs twice at once, each
adds to the part what the other has not written: a part is only ever replaced by one with all of its rows.
"""

import hashlib
import json
import logging
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import classify_image
import filter_low_confidence
import serialize_image_data
from botocore.exceptions import BotoCoreError, ClientError

SCHEMA_VERSION = 1
# As many as the clients keep connections (botocore's default is 10).
THREADS = 8
# An image is not begun if this is left of the function's time: two tries of both calls, and the part's upload.
MARGIN_SECONDS = 50.0
TRIES = 4
# What may be gone a few seconds later, by its name; every image of the batch would meet it.
PASSING = ("StorageUnavailable", "EndpointUnavailable")
# What no image is to blame for: the batch fails, and not each of its images.
OF_ALL = (*PASSING, "EndpointNotFound")
# Another run of the batch wrote the part meanwhile.
OVERTAKEN = ("PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey")
FIELDS = {"bucket": str, "prefix": str, "attempt": int, "model_version": str, "threshold": float}

# The three functions write a line per image, which is too much for a million.
logging.getLogger().setLevel(logging.WARNING)
logger = logging.getLogger("classify_batch")
logger.setLevel(logging.INFO)


class InvalidInput(Exception):
    """The event is not a batch."""


class ThresholdChanged(Exception):
    """The function has another threshold than the run was planned with."""


class BatchUnfinished(Exception):
    """Time ran out; the message says which images are left, and another run of the batch goes on with them."""


def handler(event: Any, context: Any) -> dict[str, int]:
    batch, items = _checked(event)
    deadline = time.monotonic() + context.get_remaining_time_in_millis() / 1000 - MARGIN_SECONDS
    part = f"{batch['prefix']}parts/{hashlib.sha256(items[0]['inference_id'].encode()).hexdigest()}.jsonl"
    rows, etag = _existing(batch["bucket"], part)
    work = _Batch(batch, event["execution_arn"], deadline)
    todo = [item for item in items if item["inference_id"] not in rows]
    with ThreadPoolExecutor(THREADS) as threads:
        found = list(threads.map(work.row, todo))
    new = {item["inference_id"]: row for item, row in zip(todo, found, strict=True) if row is not None}
    rows = _added(batch["bucket"], part, items, rows, etag, new)
    counts = Counter(row["status"] for row in rows.values())
    logger.info("%s: %d rows of %d images, %s", part, len(rows), len(items), dict(counts))
    if work.failure is not None:
        raise work.failure
    left = [item["inference_id"] for item in items if item["inference_id"] not in rows]
    if left:
        raise BatchUnfinished(f"{len(left)} of {len(items)} images are left: {', '.join(left[:20])}")
    return {"rows": len(rows), **counts}


class _Batch:
    """What the images of a batch share. failure: what ended it before its time."""

    def __init__(self, batch: dict[str, Any], execution_arn: str, deadline: float) -> None:
        self._batch = batch
        self._execution_arn = execution_arn
        self._deadline = deadline
        self._ended = threading.Event()
        self.failure: Exception | None = None

    def row(self, item: dict[str, Any]) -> dict[str, Any] | None:
        """What came of one image; None if the batch ended before."""
        if self._ended.is_set() or time.monotonic() > self._deadline:
            return None
        row: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "inference_id": item["inference_id"],
            "execution_arn": self._execution_arn,
            "key": item["key"],
            "label": item["label"],
            "attempt": self._batch["attempt"],
            "status": "failed",
            "predicted_class": None,
            "confidence": None,
            "outlier_score": None,
            "probabilities": None,
            "sent_as": None,
            "threshold": self._batch["threshold"],
            "model_version": self._batch["model_version"],
            "error": None,
            "cause": None,
            "failed_state": None,
            "started": _now(),
        }
        event: Any = {"bucket": self._batch["bucket"], "key": item["key"], "etag": item["etag"]}
        for state, function in (
            ("SerializeImageData", serialize_image_data.handler),
            ("ClassifyImage", classify_image.handler),
            ("FilterLowConfidence", filter_low_confidence.handler),
        ):
            try:
                event = self._tried(function, {**event, "inference_id": item["inference_id"]})
            except Exception as error:  # its name is the row's error, as Lambda would make it
                if type(error).__name__ in OF_ALL:
                    self.failure = error
                    self._ended.set()
                    return None
                return {
                    **row,
                    "error": type(error).__name__,
                    "cause": str(error)[:1000],
                    "failed_state": state,
                    "stopped": _now(),
                }
        return {
            **row,
            "status": _status(event),
            "predicted_class": event["predicted_class"],
            "confidence": event["confidence"],
            "outlier_score": event["outlier_score"],
            "probabilities": event["inferences"],
            "sent_as": event["sent_as"],
            "stopped": _now(),
        }

    def _tried(self, function: Callable[[Any, Any], dict[str, Any]], event: dict[str, Any]) -> dict[str, Any]:
        """Calls one of the functions, and again for a while if what it raises may pass."""
        for tries in range(1, TRIES + 1):
            try:
                return function(event, None)
            except Exception as error:
                pause = random.uniform(0.5, 1) * 2**tries
                late = time.monotonic() + pause > self._deadline or self._ended.is_set()
                if type(error).__name__ not in PASSING or tries == TRIES or late:
                    raise
                time.sleep(pause)
        raise AssertionError("the last try returns or raises")


def _status(decision: dict[str, Any]) -> str:
    """By the rules of the state machine's state Decide."""
    if not decision["is_a_class"]:
        return "not_a_class"
    return "accepted" if decision["meets_threshold"] else "below_threshold"


def _checked(event: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    batch = event.get("BatchInput") if isinstance(event, dict) else None
    items = event.get("Items") if isinstance(event, dict) else None
    if not isinstance(batch, dict) or not isinstance(items, list) or not items:
        raise InvalidInput(
            'expected {"BatchInput": {...}, "Items": [...], "execution_arn": "ARN"} with an item or more'
        )
    for field, kind in FIELDS.items():
        if not isinstance(batch.get(field), (kind, int) if kind is float else kind):
            raise InvalidInput(f"BatchInput has no {field} ({kind.__name__})")
    if not isinstance(event.get("execution_arn"), str):
        raise InvalidInput("the event has no execution_arn")
    for item in items:
        texts = isinstance(item, dict) and all(isinstance(item.get(name), str) for name in ("inference_id", "key"))
        if not texts or not all(isinstance(item.get(name), str | None) for name in ("etag", "label")):
            raise InvalidInput(f"an item is no image with inference_id, key, etag and label: {str(item)[:200]}")
    if float(os.environ["THRESHOLD"]) != batch["threshold"]:
        raise ThresholdChanged(
            f"the run was planned with the threshold {batch['threshold']}, and it is {os.environ['THRESHOLD']} now"
        )
    return batch, [{"etag": None, "label": None, **item} for item in items]


def _existing(bucket: str, part: str) -> tuple[dict[str, dict[str, Any]], str | None]:
    """Rows that an earlier run of the batch has written, by inference id, and the part's ETag."""
    s3 = serialize_image_data.s3
    try:
        answer = s3.get_object(Bucket=bucket, Key=part)
        content = answer["Body"].read()
    except s3.exceptions.NoSuchKey:
        return {}, None
    except (ClientError, BotoCoreError) as error:
        raise serialize_image_data.StorageUnavailable(f"s3://{bucket}/{part}: {error}") from error
    rows = [json.loads(line) for line in content.splitlines()]
    return {row["inference_id"]: row for row in rows}, answer["ETag"]


def _added(
    bucket: str,
    part: str,
    items: list[dict[str, Any]],
    rows: dict[str, dict[str, Any]],
    etag: str | None,
    new: dict[str, dict[str, Any]],
) -> dict[str, dict[str, Any]]:
    """Writes the part with what it has (rows) and the new ones; returns all. Of two rows of an image the first stands.

    The conditions of the upload are those of docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html.
    """
    s3 = serialize_image_data.s3
    while not new.keys() <= rows.keys():
        together = new | rows
        lines = [json.dumps(together[name]) for item in items if (name := item["inference_id"]) in together]
        text = "\n".join([*lines, ""])
        condition = {"IfMatch": etag} if etag else {"IfNoneMatch": "*"}
        try:
            s3.put_object(Bucket=bucket, Key=part, Body=text.encode(), **condition)
            return together
        except (ClientError, BotoCoreError) as error:
            code = error.response["Error"]["Code"] if isinstance(error, ClientError) else ""
            if code not in OVERTAKEN:
                raise serialize_image_data.StorageUnavailable(f"s3://{bucket}/{part}: {error}") from error
        rows, etag = _existing(bucket, part)
    return rows


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
