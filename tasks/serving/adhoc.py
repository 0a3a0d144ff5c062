"""Photographs classified now: each is uploaded below adhoc/ and goes through the workflow by itself."""

import hashlib
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from settings import ADHOC_PREFIX, settings
from tasks.aws import storage
from tasks.errors import SconesError
from tasks.evaluation.executions import Executions, Progress
from tasks.evaluation.results import Planned, Result, result
from tasks.installation import Installation
from tasks.run import iso, utc_now

# What the workflow reads: MAX_FILE_BYTES of lambdas/serialize_image_data.py.
MAX_BYTES = 25_000_000
# Endings of keys, by the files' first bytes, as the workflow knows them.
KINDS = ((re.compile(rb"\x89PNG\r\n\x1a\n"), "png"), (re.compile(rb"\xff\xd8\xff"), "jpg"),
         (re.compile(rb"RIFF....WEBP", re.DOTALL), "webp"))  # fmt: skip


class PhotoError(SconesError):
    """A file that is no photograph, or none that can be read."""


@dataclass(frozen=True)
class Photo:
    """A file, its content, and the ending that its key gets."""

    path: Path
    content: bytes
    ending: str


def read_photo(path: Path) -> Photo:
    """A file that the workflow takes for a PNG, JPEG or WebP. Whether it can be decoded is seen there.

    Raises PhotoError.
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise PhotoError(f"{path} has {size:,} bytes; the workflow takes at most {MAX_BYTES:,}")
        content = path.read_bytes()
    except OSError as error:
        raise PhotoError(f"{path}: {error.strerror or error}") from error
    for first_bytes, ending in KINDS:
        if first_bytes.match(content):
            return Photo(path, content, ending)
    raise PhotoError(f"{path} is neither a PNG, a JPEG nor a WebP")


def classify(
    installation: Installation, model_version: str, photos: Sequence[Photo], progress: Progress
) -> list[Result]:
    """Uploads photographs, runs the workflow for each and waits; a result for each, in their order.

    model_version: that the endpoint serves. The execution's name is the inference id.
    """
    now, token = utc_now(), secrets.token_hex(6)
    planned: dict[str, Planned] = {}
    for number, photo in enumerate(photos):
        key = _key(photo, f"{now:%Y-%m-%d}")
        storage.put(installation.bucket, key, photo.content)
        name = f"adhoc-{token}-{number:04}"
        planned[name] = Planned(
            inference_id=name,
            key=key,
            label="",
            attempt=1,
            model_version=model_version,
            threshold=installation.threshold,
            planned=iso(now),
        )
    payloads = {name: {"bucket": installation.bucket, "key": each.key} for name, each in planned.items()}
    executions = Executions(installation.state_machine_arn, payloads, progress, settings())
    try:
        executions.run(list(payloads))
    except BaseException:
        executions.stop()
        raise
    return [result(each, executions.closed[name]) for name, each in planned.items()]


def _key(photo: Photo, date: str) -> str:
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", photo.path.stem).strip("-.")[:60] or "photo"
    return f"{ADHOC_PREFIX}{date}/{hashlib.sha256(photo.content).hexdigest()[:12]}-{name}.{photo.ending}"
