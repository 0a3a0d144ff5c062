"""The AWS around this server: the account's identity, and S3 and CloudWatch Logs as a service role sees them."""

import contextlib
import json
import logging
import os
import threading
import time
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.credentials import ReadOnlyCredentials
from botocore.exceptions import BotoCoreError, ClientError

logger = logging.getLogger(__name__)

CONFIG = Config(max_pool_connections=32, retries={"mode": "standard", "total_max_attempts": 5})
PARALLEL_DOWNLOADS = 16
# An assumed role's session lasts an hour.
CLIENT_SECONDS = 1800
# What AWS says of a session that it does not know any more, as after a restart of an emulator.
UNKNOWN_SESSION = {"InvalidAccessKeyId", "InvalidClientTokenId", "UnrecognizedClientException", "ExpiredToken"}
MAX_EVENT_BYTES = 200_000
MAX_BATCH_BYTES = 900_000
MAX_WAITING_EVENTS = 10_000


@cache
def account_id() -> str:
    # Whoever calls waits for it.
    config = Config(connect_timeout=3, read_timeout=5, retries={"mode": "standard", "total_max_attempts": 2})
    identity: str = boto3.client("sts", config=config).get_caller_identity()["Account"]
    return identity


def region() -> str:
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"


def arn(resource: str) -> str:
    return f"arn:aws:sagemaker:{region()}:{account_id()}:{resource}"


def credentials() -> ReadOnlyCredentials | None:
    """Returns the credentials with which this server runs, the account's own; None if it has none."""
    found = boto3.Session().get_credentials()
    return found.get_frozen_credentials() if found else None


def role_credentials(role_arn: str) -> dict[str, str]:
    """Credentials of a role as environment variables; raises ClientError if it can't be assumed."""
    credentials = boto3.client("sts", config=CONFIG).assume_role(RoleArn=role_arn, RoleSessionName="SageMaker")[
        "Credentials"
    ]
    logger.info("acting as %s with access key %s", role_arn, credentials["AccessKeyId"])
    return {
        "AWS_ACCESS_KEY_ID": credentials["AccessKeyId"],
        "AWS_SECRET_ACCESS_KEY": credentials["SecretAccessKey"],
        "AWS_SESSION_TOKEN": credentials["SessionToken"],
    }


_clients: dict[tuple[str, str], tuple[float, Any]] = {}
_clients_lock = threading.Lock()


def client_as(role_arn: str, service: str) -> Any:
    """A boto3 client that acts as the role, kept for less long than its session lasts.

    Where AWS does not know the session any more, the role is assumed anew and the call is made again.
    """
    with _clients_lock:
        made, client = _clients.get((role_arn, service), (0.0, None))
        if client is None or time.monotonic() - made > CLIENT_SECONDS:
            made_of: dict[str, Any] = {name.lower(): value for name, value in role_credentials(role_arn).items()}
            session: Any = boto3.Session(**made_of)
            client = session.client(service, config=CONFIG)

            def renew(response: Any, attempts: int, **details: Any) -> int | None:
                parsed = response[1] if response else {}
                if attempts > 1 or parsed.get("Error", {}).get("Code") not in UNKNOWN_SESSION:
                    return None
                held, fresh = session.get_credentials(), role_credentials(role_arn)
                held.access_key, held.secret_key = fresh["AWS_ACCESS_KEY_ID"], fresh["AWS_SECRET_ACCESS_KEY"]
                held.token = fresh["AWS_SESSION_TOKEN"]
                return 0  # seconds until botocore signs the request again and sends it

            client.meta.events.register("needs-retry", renew)
            _clients[role_arn, service] = (time.monotonic(), client)
        return client


def assumable(role_arn: str) -> bool:
    """Whether SageMaker can act as the role; raises ClientError if STS fails for another reason."""
    try:
        client_as(role_arn, "s3")
    except ClientError as error:
        if is_refusal(error):
            return False
        raise
    return True


def readable(role_arn: str, uri: str, as_prefix: bool = False) -> bool:
    """Whether the role can be assumed and finds an object at an S3 URI, or one whose key begins so."""
    bucket, key = split_uri(uri)
    try:
        s3 = client_as(role_arn, "s3")
        if as_prefix:
            return bool(s3.list_objects_v2(Bucket=bucket, Prefix=key, MaxKeys=1).get("Contents"))
        s3.head_object(Bucket=bucket, Key=key)
    except ClientError as error:
        if is_refusal(error):
            return False
        raise
    return True


def is_refusal(error: Exception) -> bool:
    """True if AWS answered that the caller may not, or asked for something that is not there."""
    if not isinstance(error, ClientError):
        return False
    return 400 <= error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500) < 500


def split_uri(uri: str) -> tuple[str, str]:
    """Bucket and key of an s3:// URI; raises ValueError for any other."""
    # Not urlparse: a key may have ? and # in it.
    scheme, _, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    if scheme != "s3" or not bucket[:1].isalnum():
        raise ValueError(f"not an S3 URI: {uri!r}")
    return bucket, key


def download_prefix(s3: Any, uri: str, folder: Path) -> int:
    """Downloads every object whose key begins with the URI's, into paths relative to it; returns how many.

    Raises ValueError for a key that would lead out of the folder, and for two that would be one file.
    """
    bucket, prefix = split_uri(uri)
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    keys = [item["Key"] for page in pages for item in page.get("Contents", []) if not item["Key"].endswith("/")]
    # The key of one object is a prefix as well; its file is named after its last part.
    names = {key: key.removeprefix(prefix).lstrip("/") or key.rsplit("/", 1)[-1] for key in keys}
    _download(s3, bucket, names, folder)
    return len(keys)


def download_manifest(s3: Any, uri: str, folder: Path) -> int:
    """Downloads what a manifest lists: `[{"prefix": "s3://BUCKET/PREFIX"}, "relative path", ...]`; returns how many.

    Raises ValueError if it is no such list.
    """
    bucket, key = split_uri(uri)
    try:
        first, *paths = json.loads(s3.get_object(Bucket=bucket, Key=key)["Body"].read())
        source, prefix = split_uri(first["prefix"])
        keys = {prefix + path: path.lstrip("/") for path in paths}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{uri} is no manifest: {error!r}") from error
    _download(s3, source, keys, folder)
    return len(keys)


def _download(s3: Any, bucket: str, names: dict[str, str], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    files = Counter(names.values())
    for key, name in names.items():
        if files[name] > 1:
            raise ValueError(f"the key {key!r} and another would both be the file {name!r}")

    def download(key: str) -> None:
        target = (folder / names[key]).resolve()
        if not target.is_relative_to(folder.resolve()):
            raise ValueError(f"the key {key!r} leads out of its channel")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(s3.get_object(Bucket=bucket, Key=key)["Body"].read())

    with ThreadPoolExecutor(PARALLEL_DOWNLOADS) as threads:
        list(threads.map(download, names))


class LogStream:
    """One CloudWatch Logs stream, written in batches once a second. While Logs is away, the last lines are kept."""

    def __init__(self, role_arn: str, group: str, stream: str) -> None:
        self.role_arn = role_arn
        self.group = group
        self.stream = stream
        self._events: deque[dict[str, Any]] = deque(maxlen=MAX_WAITING_EVENTS)
        self._created = False
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"logs-{stream}", daemon=True)
        self._thread.start()

    def write(self, line: str) -> None:
        # CloudWatch Logs refuses an empty event and one over 256 KiB.
        message = line.encode()[:MAX_EVENT_BYTES].decode(errors="ignore") or " "
        self._events.append({"timestamp": int(time.time() * 1000), "message": message})

    def close(self) -> None:
        """Delivers what is left and returns."""
        self._closed.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        while not self._closed.wait(1):
            self._deliver()
        self._deliver()

    def _deliver(self) -> None:
        try:
            logs = client_as(self.role_arn, "logs")
            if not self._created:
                self._create(logs)
            while self._events:
                batch: list[dict[str, Any]] = []
                size = 0
                while self._events and len(batch) < 1000 and size < MAX_BATCH_BYTES - MAX_EVENT_BYTES:
                    batch.append(self._events.popleft())
                    size += len(batch[-1]["message"].encode()) + 26
                try:
                    logs.put_log_events(logGroupName=self.group, logStreamName=self.stream, logEvents=batch)
                except (BotoCoreError, ClientError):
                    self._events.extendleft(reversed(batch))
                    raise
        except (BotoCoreError, ClientError) as error:
            logger.warning("%d log lines of %s wait: %s", len(self._events), self.stream, error)

    def _create(self, logs: Any) -> None:
        for call, names in (
            (logs.create_log_group, {"logGroupName": self.group}),
            (logs.create_log_stream, {"logGroupName": self.group, "logStreamName": self.stream}),
        ):
            with contextlib.suppress(logs.exceptions.ResourceAlreadyExistsException):
                call(**names)
        self._created = True
