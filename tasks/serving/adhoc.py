"""Photographs classified now: each is uploaded below adhoc/ and goes through the workflow by itself."""

import hashlib
import io
import re
import secrets
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from settings import ADHOC_PREFIX, settings
from tasks.aws import storage
from tasks.data.pictures import FORMATS, as_rgb, upright
from tasks.errors import SconesError
from tasks.evaluation.executions import Executions, Progress
from tasks.evaluation.results import Planned, Result, result
from tasks.installation import Installation
from tasks.run import iso, utc_now

# What the workflow takes: MAX_IMAGE_BYTES of lambdas/serialize_image_data.py.
MAX_BYTES = 180_000
MAX_FILE_BYTES = 200_000_000
# Longest sides and quality of the JPEG that a larger photograph is sent as; the first that is small enough.
SIDES = (1024, 768, 512, 384, 256)
QUALITY = 90


class PhotoError(SconesError):
    """A file that is no photograph, or none that can be read."""


@dataclass(frozen=True)
class Photo:
    """A file and what is sent of it. note: what was changed; empty if it is sent as it is."""

    path: Path
    content: bytes
    note: str = ""


def read_photo(path: Path) -> Photo:
    """A photograph as the workflow takes it: PNG or JPEG of at most MAX_BYTES, else shrunk to one, upright.

    The endpoint shrinks every image to a few pixels anyway. Raises PhotoError.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise PhotoError(f"{path} has more than {MAX_FILE_BYTES:,} bytes")
        content = path.read_bytes()
    except OSError as error:
        raise PhotoError(f"{path}: {error.strerror or error}") from error
    try:
        with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):
            return _photo(path, content)
    except PhotoError:
        raise
    except Image.DecompressionBombError as error:
        raise PhotoError(f"{path} is larger than anybody's photograph: {error}") from None
    except UnidentifiedImageError:
        raise PhotoError(f"{path} is no image that can be read") from None
    except Exception as error:  # a damaged file can make a decoder raise nearly anything
        raise PhotoError(f"{path} can't be read as an image: {error}") from error


def _photo(path: Path, content: bytes) -> Photo:
    with Image.open(io.BytesIO(content)) as image:
        kind, before = str(image.format), f"{image.width} x {image.height}"
        image.draft("RGB", (SIDES[0], SIDES[0]))
        image.load()
        if kind in FORMATS and len(content) <= MAX_BYTES:
            return Photo(path, content)
        picture = as_rgb(upright(image))
    for side in SIDES:
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=QUALITY)
        if buffer.tell() <= MAX_BYTES:
            break
    shown = f"{kind} of {before} and {len(content):,} bytes"
    return Photo(path, buffer.getvalue(), f"{shown} sent as JPEG of {picture.width} x {picture.height}")


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
    ending = "png" if photo.content.startswith(b"\x89PNG") else "jpg"
    return f"{ADHOC_PREFIX}{date}/{hashlib.sha256(photo.content).hexdigest()[:12]}-{name}.{ending}"
