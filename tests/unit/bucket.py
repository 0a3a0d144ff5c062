"""A bucket in memory, in place of S3 below tasks/aws/storage.py."""

import hashlib
import io
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.response import StreamingBody

from tasks.aws import storage


class NoSuchKey(Exception):
    pass


class MemoryBucket:
    """The calls of a boto3 client that read and list, over the objects by key. read: keys, as they were read."""

    exceptions = SimpleNamespace(NoSuchKey=NoSuchKey)
    meta = SimpleNamespace(endpoint_url="https://s3.eu-west-1.amazonaws.com", region_name="eu-west-1")

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.objects: dict[str, bytes] = {}
        self.written: dict[str, datetime] = {}
        self.read: list[str] = []
        monkeypatch.setattr(storage, "client", lambda service: self)

    def put_object(self, Key: str, Body: bytes, **other: Any) -> None:  # noqa: N803, botocore's names
        self.objects[Key] = Body
        self.written.setdefault(Key, datetime.now(UTC))

    def get_object(self, Bucket: str, Key: str) -> dict[str, Any]:  # noqa: N803
        self.read.append(Key)
        if Key not in self.objects:
            raise NoSuchKey
        content = self.objects[Key]
        return {"Body": StreamingBody(io.BytesIO(content), len(content)), "ETag": _etag(content)}

    def list_objects_v2(self, Bucket: str, Prefix: str, Delimiter: str = "") -> dict[str, Any]:  # noqa: N803
        contents, folders = [], set()
        for key, content in sorted(self.objects.items()):
            if not key.startswith(Prefix):
                continue
            head, found, _ = key.removeprefix(Prefix).partition(Delimiter or "\0")
            if found:
                folders.add(f"{Prefix}{head}{Delimiter}")
            else:
                time = self.written[key]
                contents.append({"Key": key, "ETag": _etag(content), "Size": len(content), "LastModified": time})
        return {"Contents": contents, "CommonPrefixes": [{"Prefix": folder} for folder in sorted(folders)]}

    def get_paginator(self, name: str) -> Any:
        return SimpleNamespace(paginate=lambda **request: [getattr(self, name)(**request)])


def _etag(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()
