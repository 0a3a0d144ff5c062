"""Data capture: a record is on disk before its answer is sent, and in S3 within seconds.

Layout and fields follow AWS's: {DestinationS3Uri}/{endpoint}/{variant}/yyyy/mm/dd/hh/mm-ss-SSS-uuid.jsonl, in UTC. A
spool file carries its object's key from the start, so that an upload repeated after a crash overwrites itself. "On
disk" is the system's page cache: it outlives any kill of this server, not a loss of power.
"""

import base64
import json
import logging
import random
import threading
import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from local_sagemaker import account

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Exchange:
    """One answered request."""

    body: bytes
    content_type: str
    answer: bytes
    answer_content_type: str
    inference_id: str | None
    custom_attributes: str | None
    time: datetime


class CaptureSpool:
    """Keeps records in files below `folder` and uploads them every `interval` seconds, each at least `delay` old.

    BATCH.open is being written, BATCH.jsonl is to be uploaded, and BATCH.json says whereto: role, bucket and key. What
    can't be uploaded stays.
    """

    def __init__(self, folder: Path, interval: float = 2.0, delay: float = 0.0, loss: float = 0.0) -> None:
        self._folder = folder
        self._folder.mkdir(parents=True, exist_ok=True)
        self._interval = interval
        self._delay = delay
        self._loss = loss
        self._files: dict[tuple[str, str], IO[bytes]] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        for path in folder.glob("*.json"):
            if not path.with_suffix(".open").exists() and not path.with_suffix(".jsonl").exists():
                path.unlink()  # uploaded, or not begun, when the server died
        self._thread = threading.Thread(target=self._run, name="capture", daemon=True)
        self._thread.start()

    def record(self, config: dict[str, Any], role_arn: str, endpoint: str, variant: str, exchange: Exchange) -> None:
        """Writes the record of one exchange if the endpoint's DataCaptureConfig asks for it."""
        if not config["EnableCapture"] or random.random() * 100 >= config["InitialSamplingPercentage"]:
            return
        if random.random() < self._loss:
            return
        line = json.dumps(_record(config, exchange), separators=(",", ":")).encode() + b"\n"
        hour = exchange.time.strftime("%Y/%m/%d/%H")
        prefix = f"{config['DestinationS3Uri'].rstrip('/')}/{endpoint}/{variant}/{hour}"
        with self._lock:
            try:
                if self._file(role_arn, prefix, exchange.time).write(line) < len(line):
                    raise OSError("only a part of it could be written")
            except OSError:
                # A full disk costs this record, and the endpoint goes on answering.
                logger.exception("a capture record is lost")
                file = self._files.pop((role_arn, prefix), None)
                if file:
                    file.close()

    def flush(self) -> None:
        """Uploads everything that is old enough; what can't be uploaded stays for the next time."""
        with self._lock:
            for file in self._files.values():
                file.close()
            self._files.clear()
            for path in self._folder.glob("*.open"):  # those of a server that died among them
                _cut_unfinished_line(path)
                path.replace(path.with_suffix(".jsonl"))
        for path in sorted(self._folder.glob("*.jsonl"), key=lambda path: path.stat().st_mtime):
            if time.time() - path.stat().st_mtime < self._delay:
                continue
            try:
                target = json.loads(path.with_suffix(".json").read_text())
                if path.stat().st_size:
                    s3 = account.client_as(target["role"], "s3")
                    s3.upload_file(str(path), target["bucket"], target["key"])
            except Exception as error:
                logger.warning("%s stays spooled: %s", path.name, error)
                continue
            path.unlink()
            path.with_suffix(".json").unlink()

    def shutdown(self) -> None:
        """Uploads what is old enough; the rest is uploaded after the next start."""
        self._stop.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        last = False
        while not last:
            last = self._stop.wait(self._interval)
            try:
                self.flush()
            except OSError:
                logger.exception("capture stays spooled")

    def _file(self, role_arn: str, prefix: str, moment: datetime) -> IO[bytes]:
        if (role_arn, prefix) not in self._files:
            bucket, folder = account.split_uri(prefix)
            batch = str(uuid.uuid4())
            key = f"{folder}/{moment:%M-%S}-{moment.microsecond // 1000:03d}-{batch}.jsonl"
            target = {"role": role_arn, "bucket": bucket, "key": key}
            (self._folder / f"{batch}.json").write_text(json.dumps(target))
            # Unbuffered: a record is one write to the system.
            self._files[role_arn, prefix] = (self._folder / f"{batch}.open").open("ab", buffering=0)
        return self._files[role_arn, prefix]


def _cut_unfinished_line(path: Path) -> None:
    """Removes what follows the last line end: a record whose answer was never sent."""
    with path.open("r+b") as file:
        file.seek(max(path.stat().st_size - 1, 0))
        if file.read(1) not in (b"", b"\n"):
            file.truncate(path.read_bytes().rfind(b"\n") + 1)


def _record(config: dict[str, Any], exchange: Exchange) -> dict[str, Any]:
    modes = {option["CaptureMode"] for option in config["CaptureOptions"]}
    headers = config.get("CaptureContentTypeHeader", {})
    data: dict[str, Any] = {}
    if modes & {"Input", "InputAndOutput"}:
        data["endpointInput"] = _payload(headers, "INPUT", exchange.content_type, exchange.body)
    if modes & {"Output", "InputAndOutput"}:
        data["endpointOutput"] = _payload(headers, "OUTPUT", exchange.answer_content_type, exchange.answer)
    metadata: dict[str, Any] = {"eventId": str(uuid.uuid4())}
    if exchange.custom_attributes:
        metadata["customAttributes"] = [exchange.custom_attributes]
    if exchange.inference_id:
        metadata["inferenceId"] = exchange.inference_id
    metadata["inferenceTime"] = exchange.time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"captureData": data, "eventMetadata": metadata, "eventVersion": "0"}


def _payload(headers: dict[str, list[str]], mode: str, content_type: str, body: bytes) -> dict[str, str]:
    encoding, data = "BASE64", ""
    media_type = content_type.split(";")[0].strip().lower()
    for candidate, field in (("JSON", "JsonContentTypes"), ("CSV", "CsvContentTypes")):
        if media_type in (listed.lower() for listed in headers.get(field, [])):
            encoding = candidate
    if encoding != "BASE64":
        try:
            data = body.decode()
        except UnicodeDecodeError:  # not what it says it is; as text it would be lost
            encoding = "BASE64"
    if encoding == "BASE64":
        data = base64.b64encode(body).decode()
    return {"observedContentType": content_type, "mode": mode, "data": data, "encoding": encoding}
