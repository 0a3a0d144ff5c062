"""The AWS around this server: the account's identity, and S3 and CloudWatch Logs as a service role sees them."""

import contextlib
import logging
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

logger = logging.getLogger(__name__)

CONFIG = Config(max_pool_connections=32, retries={"mode": "standard", "total_max_attempts": 5})
PARALLEL_DOWNLOADS = 16


@cache
def account_id() -> str:
    identity: str = boto3.client("sts", config=CONFIG).get_caller_identity()["Account"]
    return identity


def region() -> str:
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"


def arn(resource: str) -> str:
    return f"arn:aws:sagemaker:{region()}:{account_id()}:{resource}"


def role_credentials(role_arn: str) -> dict[str, str]:
    """Credentials of a role as environment variables; raises ClientError where it can't be assumed."""
    credentials = boto3.client("sts", config=CONFIG).assume_role(RoleArn=role_arn, RoleSessionName="SageMaker")[
        "Credentials"
    ]
    logger.info("acting as %s with access key %s", role_arn, credentials["AccessKeyId"])
    return {
        "AWS_ACCESS_KEY_ID": credentials["AccessKeyId"],
        "AWS_SECRET_ACCESS_KEY": credentials["SecretAccessKey"],
        "AWS_SESSION_TOKEN": credentials["SessionToken"],
    }


def client_as(role_arn: str, service: str) -> Any:
    """A boto3 client that acts as the role."""
    credentials = role_credentials(role_arn)
    return boto3.client(service, config=CONFIG, **{name.lower(): value for name, value in credentials.items()})


def split_uri(uri: str) -> tuple[str, str]:
    """Bucket and key of an s3:// URI; raises ValueError for any other."""
    parsed = urlparse(uri)
    if parsed.scheme != "s3" or not parsed.netloc:
        raise ValueError(f"not an S3 URI: {uri!r}")
    return parsed.netloc, parsed.path.lstrip("/")


def download_prefix(s3: Any, uri: str, folder: Path) -> int:
    """Downloads every object below a prefix, or the one object of that key; returns how many there were."""
    bucket, prefix = split_uri(uri)
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    keys = [item["Key"] for page in pages for item in page.get("Contents", []) if not item["Key"].endswith("/")]

    def download(key: str) -> None:
        name = key.removeprefix(prefix).lstrip("/") if key != prefix else key.rsplit("/", 1)[-1]
        target = (folder / name).resolve()
        if not target.is_relative_to(folder.resolve()):
            raise ValueError(f"the key {key!r} leads out of its channel")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(s3.get_object(Bucket=bucket, Key=key)["Body"].read())

    with ThreadPoolExecutor(PARALLEL_DOWNLOADS) as threads:
        list(threads.map(download, keys))
    return len(keys)


class LogStream:
    """One CloudWatch Logs stream, written in batches once a second. A log that can't be delivered is dropped."""

    def __init__(self, role_arn: str, group: str, stream: str) -> None:
        self.role_arn = role_arn
        self.group = group
        self.stream = stream
        self._events: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._deliver, name=f"logs-{stream}", daemon=True)
        self._thread.start()

    def write(self, line: str) -> None:
        with self._lock:
            self._events.append({"timestamp": int(time.time() * 1000), "message": line or " "})

    def close(self) -> None:
        """Delivers what is left and returns."""
        self._closed.set()
        self._thread.join(timeout=10)

    def _deliver(self) -> None:
        logs: Any = None
        while True:
            last = self._closed.wait(1)
            with self._lock:
                events, self._events = self._events, []
            try:
                if logs is None:
                    logs = client_as(self.role_arn, "logs")
                    self._create(logs)
                for start in range(0, len(events), 1000):
                    logs.put_log_events(
                        logGroupName=self.group, logStreamName=self.stream, logEvents=events[start : start + 1000]
                    )
            except (BotoCoreError, ClientError) as error:
                logger.warning("lost %d log lines of %s: %s", len(events), self.stream, error)
            if last:
                return

    def _create(self, logs: Any) -> None:
        for call, names in (
            (logs.create_log_group, {"logGroupName": self.group}),
            (logs.create_log_stream, {"logGroupName": self.group, "logStreamName": self.stream}),
        ):
            with contextlib.suppress(logs.exceptions.ResourceAlreadyExistsException):
                call(**names)
