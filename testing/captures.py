"""Capture files as an endpoint writes them, and a folder of them in place of a bucket."""

import base64
import gzip
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tasks.capture.archive import CaptureArchive, Objects
from tasks.capture.decoding import MOST_BYTES
from tasks.capture.window import Captured, Window, read

CLASSES = ("bicycle", "motorcycle")
HOUR = "2026/11/22/17"
DAY = Window("e", ("v1",), datetime(2026, 11, 22, tzinfo=UTC), datetime(2026, 11, 22, 23, 59, 59, 999_999, tzinfo=UTC))


def record(
    event: str = "e",
    data: str = "[0.1, 0.9]",
    encoding: str = "JSON",
    inference: str | None = "i",
    time: str = "2026-11-22T17:25:49Z",
    content_type: str = "application/json; charset=utf-8",
) -> bytes:
    """A line, with an input that nobody reads."""
    image = base64.b64encode(os.urandom(300)).decode()
    output = {"observedContentType": content_type, "mode": "OUTPUT", "data": data, "encoding": encoding}
    metadata: dict[str, Any] = {"eventId": event, "inferenceTime": time}
    if inference is not None:
        metadata["inferenceId"] = inference
    exchange = {"endpointInput": {"mode": "INPUT", "data": image, "encoding": "BASE64"}, "endpointOutput": output}
    return json.dumps({"captureData": exchange, "eventMetadata": metadata, "eventVersion": "0"}).encode()


def records(first: int, last: int) -> bytes:
    """Lines of events `first` to `last` - 1, each with an inference id of its own."""
    return b"".join(record(f"e{number}", inference=f"i{number}") + b"\n" for number in range(first, last))


def _torn(first: int, last: int) -> bytes:
    return records(first, last) + record("torn", inference="torn")[:-30]


# Files with the good records `first` to `last` - 1 and something bad, by what it is.
POISON: dict[str, Callable[[int, int], bytes]] = {
    "torn last line": _torn,
    "binary line": lambda first, last: bytes(range(256)) + b"\n" + records(first, last),
    "torn gzip": lambda first, last: gzip.compress(records(first, last) + os.urandom(5000))[:-2000],
    "gzip bomb": lambda first, last: gzip.compress(records(first, last) + b" " * (MOST_BYTES + 1), 1),
    "delivered twice": lambda first, last: records(first, last) + records(first, last),
    "another model's answers": lambda first, last: record("m", "[0.2, 0.3, 0.5]") + b"\n" + records(first, last),
    "no probabilities": lambda first, last: record("p", "[NaN, 7]") + b"\n" + records(first, last),
    "no JSON of records": lambda first, last: b'null\n[]\n{}\n"x"\n' + records(first, last),
    "endless nesting": lambda first, last: b'{"captureData":' * 50_000 + b"\n" + records(first, last),
    "byte order mark, blank lines, carriage returns": lambda first, last: (
        b"\xef\xbb\xbf\r\n" + records(first, last).replace(b"\n", b"\r\n\r\n")
    ),
    "line of 50 MB": lambda first, last: b"x" * 50_000_000 + b"\n" + records(first, last),
    "UTF-16 line": lambda first, last: "\u20ac wrong".encode("utf-16") + b"\n" + records(first, last),
}


@dataclass(frozen=True)
class FolderReader:
    """Reads files in place of objects; as S3, it knows no folders, and no name with an empty part."""

    folder: Path

    def __call__(self, key: str) -> bytes:
        if "//" in key:
            raise ValueError(f"{key} has an empty part")
        return (self.folder / key).read_bytes()


class CaptureFolder:
    """Files below a model version's prefix, and the archive of them. decoded: how many objects, by read."""

    def __init__(self, folder: Path, cache: Path | None = None) -> None:
        self.folder = folder
        self.cache = cache or folder.with_name(f"{folder.name}-cache")
        self.decoded: list[int] = []
        self.archive = CaptureArchive(
            self.listing,
            lambda: FolderReader(folder),
            "v1/",
            self.cache,
            lambda done, total: self.decoded.append(done),
        )

    def put(self, name: str, content: bytes, hour: str = HOUR) -> Path:
        path = self.folder / "v1" / hour / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def listing(self, prefix: str) -> Objects:
        """As S3 lists: every file below a prefix; an ETag changes with the file."""
        found: Objects = {}
        for path in sorted(path for path in (self.folder / prefix).rglob("*") if path.is_file()):
            status = path.stat()
            key = path.relative_to(self.folder).as_posix()
            found[key] = (f"{status.st_mtime_ns}-{status.st_size}", status.st_size)
        return found

    def read(self, window: Window = DAY, wanted: tuple[str, ...] = ()) -> Captured:
        self.decoded.clear()
        return read([("v1", self.archive)], window, CLASSES, wanted)
