"""Reads one image from S3 and passes it on as base64 text, shrunk if it is too large for that.

Event: {"bucket", "key"}, and "etag" if the object must still be the one of that ETag. Result: {"bucket", "key",
"image_data", "sent_as"}. sent_as: null of a PNG or JPEG that is passed on as it is. One of more than MAX_SENT_BYTES,
and every WebP, which the endpoint does not take, is passed on as a JPEG, upright, and sent_as says so.
"""

import base64
import contextlib
import io
import logging
import threading
import warnings
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import (
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    HTTPClientError,
    IncompleteReadError,
)

# Base64 makes 4 characters of 3 bytes, and a state's payload may have 262,144 bytes in all.
MAX_SENT_BYTES = 180_000
MAX_FILE_BYTES = 25_000_000
# Of a file, and of what is decoded of it: a JPEG can be decoded at an eighth of its width.
MAX_FILE_PIXELS, MAX_PIXELS = 64_000_000, 16_000_000
# Longest sides and quality of the JPEG that a larger image is passed on as; the first that is small enough.
SIDES = (1024, 768, 512, 384, 256)
QUALITY = 90
# What may be gone a few seconds later; the state machine tries again.
PASSING = {
    "SlowDown",
    "ServiceUnavailable",
    "InternalError",
    "RequestTimeout",
    "Throttling",
    "ThrottlingException",
    "503",
}
SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")
# One large image is read and decoded at a time, also where a batch's are read side by side: it may take 300 MB.
one_at_a_time = threading.RLock()

logger = logging.getLogger()
logger.setLevel(logging.INFO)

s3 = boto3.client(
    "s3",
    config=Config(connect_timeout=2, read_timeout=5, retries={"mode": "standard", "total_max_attempts": 2}),
)


class InvalidInput(Exception):
    """The event is not {"bucket": text, "key": text}."""


class ImageNotFound(Exception):
    """There is no such object."""


class ImageChanged(Exception):
    """The object is another one than the event's ETag says."""


class ImageAccessDenied(Exception):
    """S3 refused to read the object."""


class ImageTooLarge(Exception):
    """The image has more bytes or pixels than can be decoded here."""


class StorageUnavailable(Exception):
    """S3 refused for now, or could not be reached in time."""


class UnreadableImage(Exception):
    """The object is empty, is neither PNG, JPEG nor WebP, or can't be decoded where it has to be shrunk."""


def handler(event: Any, context: Any) -> dict[str, str | None]:
    bucket, key = _location(event)
    where = f"s3://{bucket}/{key}"
    condition = {"IfMatch": f'"{event["etag"]}"'} if event.get("etag") else {}
    try:
        response = s3.get_object(Bucket=bucket, Key=key, **condition)
        if response["ContentLength"] > MAX_FILE_BYTES:
            raise ImageTooLarge(
                f"{where} has {response['ContentLength']} bytes; the workflow takes at most {MAX_FILE_BYTES}"
            )
        with one_at_a_time if response["ContentLength"] > MAX_SENT_BYTES else contextlib.nullcontext():
            image = response["Body"].read()
            sent, sent_as = _sent(image, where)
    except ClientError as error:
        raise _typed(error, bucket, key) from error
    except (HTTPClientError, EndpointConnectionError, ConnectTimeoutError, IncompleteReadError) as error:
        raise StorageUnavailable(f"{where}: {error}") from error
    logger.info("serialized %s, %d bytes%s", where, len(image), f", as {sent_as}" if sent_as else "")
    return {"bucket": bucket, "key": key, "image_data": base64.b64encode(sent).decode("ascii"), "sent_as": sent_as}


def _sent(image: bytes, where: str) -> tuple[bytes, str | None]:
    if image[:4] == b"RIFF" and image[8:12] == b"WEBP":
        with one_at_a_time:
            return shrink(image, where)
    if not image.startswith(SIGNATURES):
        raise UnreadableImage(f"{where} is neither a PNG, a JPEG nor a WebP ({len(image)} bytes)")
    return shrink(image, where) if len(image) > MAX_SENT_BYTES else (image, None)


def shrink(image: bytes, where: str) -> tuple[bytes, str]:
    """A JPEG of at most MAX_SENT_BYTES of a PNG, JPEG or WebP, and what became of which image in words.

    Raises UnreadableImage and ImageTooLarge.
    """
    from PIL import Image  # only images of this kind need it

    try:
        with (
            warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning),
            Image.open(io.BytesIO(image), formats=("PNG", "JPEG", "WEBP")) as opened,
        ):
            before = f"{opened.format} of {opened.width} x {opened.height} and {len(image):,} bytes"
            _check_pixels(opened.width * opened.height, MAX_FILE_PIXELS, where, before)
            opened.draft("RGB", (SIDES[0], SIDES[0]))
            _check_pixels(opened.width * opened.height, MAX_PIXELS, where, before)
            picture = _upright_rgb(opened)
    except ImageTooLarge:
        raise
    except Image.DecompressionBombError as error:
        raise ImageTooLarge(f"{where}: {error}") from error
    except Exception as error:  # a damaged file can make a decoder raise nearly anything
        raise UnreadableImage(f"{where} can't be decoded: {error}") from error
    for side in SIDES:
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
        jpeg = io.BytesIO()
        picture.save(jpeg, "JPEG", quality=QUALITY)
        if jpeg.tell() <= MAX_SENT_BYTES:
            break
    return jpeg.getvalue(), f"JPEG of {picture.width} x {picture.height}, made of a {before}"


def _check_pixels(pixels: int, most: int, where: str, described: str) -> None:
    if pixels > most:
        raise ImageTooLarge(f"{where} is a {described}; the workflow decodes at most {most} pixels")


def _upright_rgb(image: Any) -> Any:
    """The picture as the endpoint makes it of a file: turned as EXIF says, 16 bits scaled, transparent parts white."""
    from PIL import Image, ImageOps

    image.load()
    if image.mode == "RGBA":  # decoded at full size; what follows would make more of it
        image.thumbnail((2 * SIDES[0], 2 * SIDES[0]), Image.Resampling.BOX)
    try:
        image = ImageOps.exif_transpose(image)
    except Exception:  # damaged metadata says nothing about the picture
        logger.warning("the image's EXIF data can't be read")
    if image.mode.startswith("I"):
        return image.point(lambda value: value / 256).convert("L").convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        layers = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layers.size, (255, 255, 255, 255)), layers).convert("RGB")
    return image.convert("RGB")


def _location(event: Any) -> tuple[str, str]:
    bucket, key = (event.get("bucket"), event.get("key")) if isinstance(event, dict) else (None, None)
    if not (isinstance(bucket, str) and bucket and isinstance(key, str) and key):
        raise InvalidInput('expected {"bucket": "NAME", "key": "KEY"} with two non-empty strings')
    if not isinstance(event.get("etag"), str | None):
        raise InvalidInput("etag is no string")
    return bucket, key


def _typed(error: ClientError, bucket: str, key: str) -> Exception:
    code = error.response["Error"]["Code"]
    where = f"s3://{bucket}/{key}"
    if code in ("NoSuchKey", "NoSuchBucket", "404"):
        return ImageNotFound(f"{where} does not exist ({code})")
    if code in ("PreconditionFailed", "412"):
        return ImageChanged(f"{where} is not the object that was planned: its ETag is another one")
    if code in ("AccessDenied", "403"):
        return ImageAccessDenied(f"{where} may not be read: it lies outside the prefixes of the function's role")
    if code in PASSING or error.response["ResponseMetadata"].get("HTTPStatusCode", 0) >= 500:
        return StorageUnavailable(f"{where}: {code}")
    return error
