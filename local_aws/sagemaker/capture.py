"""Data capture: a record is on disk before its answer is sent, and in S3 within seconds.

Layout and fields follow AWS's: {DestinationS3Uri}/{endpoint}/{variant}/yyyy/mm/dd/hh/mm-ss-SSS-uuid.jsonl, in UTC. A
spool file carries its object's key from the start, so that an upload repeated after a crash overwrites itself.
"""

import base64
import json
import logging
import random
import threading
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, unquote

from botocore.exceptions import BotoCoreError, ClientError

from local_aws.sagemaker import account

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
    """Keeps records in files below `folder` and uploads them every `interval` seconds.

    Open files are in open/ROLE/BUCKET/KEY, finished ones in ready/ROLE/BUCKET/KEY.
    """

    def __init__(self, folder: Path, interval: float = 2.0) -> None:
        self._open = folder / "open"
        self._ready = folder / "ready"
        self._interval = interval
        self._files: dict[tuple[str, str, str], tuple[Path, IO[bytes]]] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        for path in self._open.glob("**/*.jsonl"):  # left by a server that died
            self._finish(path)
        self._thread = threading.Thread(target=self._run, name="capture", daemon=True)
        self._thread.start()

    def record(self, config: dict[str, Any], role_arn: str, endpoint: str, variant: str, exchange: Exchange) -> None:
        """Writes the record of one exchange where the endpoint's DataCaptureConfig asks for it."""
        if not config.get("EnableCapture") or random.random() * 100 >= config["InitialSamplingPercentage"]:
            return
        line = json.dumps(_record(config, exchange), separators=(",", ":")).encode() + b"\n"
        hour = exchange.time.strftime("%Y/%m/%d/%H")
        prefix = f"{config['DestinationS3Uri'].rstrip('/')}/{endpoint}/{variant}/{hour}"
        with self._lock:
            file = self._file(role_arn, prefix, exchange.time)
            file.write(line)
            file.flush()

    def flush(self) -> None:
        """Uploads everything that is there; what can't be uploaded stays for the next time."""
        with self._lock:
            for path, file in self._files.values():
                file.close()
                self._finish(path)
            self._files.clear()
        clients: dict[str, Any] = {}
        for path in sorted(self._ready.glob("**/*.jsonl")):
            role, bucket, *key = path.relative_to(self._ready).parts
            try:
                if role not in clients:
                    clients[role] = account.client_as(unquote(role), "s3")
                clients[role].put_object(Bucket=bucket, Key="/".join(key), Body=path.read_bytes())
                path.unlink()
            except (BotoCoreError, ClientError) as error:
                logger.warning("capture stays spooled: %s", error)
                return

    def shutdown(self) -> None:
        self._stop.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            self.flush()
        self.flush()

    def _file(self, role_arn: str, prefix: str, time: datetime) -> IO[bytes]:
        bucket, key = account.split_uri(prefix)
        identity = (role_arn, bucket, key)
        if identity not in self._files:
            name = f"{time:%M-%S}-{time.microsecond // 1000:03d}-{uuid.uuid4()}.jsonl"
            path = self._open / quote(role_arn, safe="") / bucket / key / name
            path.parent.mkdir(parents=True, exist_ok=True)
            self._files[identity] = (path, path.open("ab"))
        return self._files[identity][1]

    def _finish(self, path: Path) -> None:
        target = self._ready / path.relative_to(self._open)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)


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
    media_type = content_type.split(";")[0].strip()
    encoding = "BASE64"
    if media_type in headers.get("JsonContentTypes", []):
        encoding = "JSON"
    elif media_type in headers.get("CsvContentTypes", []):
        encoding = "CSV"
    data = base64.b64encode(body).decode() if encoding == "BASE64" else body.decode("utf-8", "replace")
    return {"observedContentType": content_type, "mode": mode, "data": data, "encoding": encoding}
