"""Reads one image from S3 and passes it on as base64 text.

Event: {"bucket", "key"}, and "etag" if the object must still be the one of that ETag. Result: {"bucket", "key",
"image_data"}.
"""

import base64
import logging
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
MAX_IMAGE_BYTES = 180_000
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
    """The image would not fit into a state's payload."""


class StorageUnavailable(Exception):
    """S3 refused for now, or could not be reached in time."""


class UnreadableImage(Exception):
    """The object is empty or is neither PNG nor JPEG."""


def handler(event: Any, context: Any) -> dict[str, str]:
    bucket, key = _location(event)
    condition = {"IfMatch": f'"{event["etag"]}"'} if event.get("etag") else {}
    try:
        response = s3.get_object(Bucket=bucket, Key=key, **condition)
        if response["ContentLength"] > MAX_IMAGE_BYTES:
            raise ImageTooLarge(
                f"s3://{bucket}/{key} has {response['ContentLength']} bytes; the workflow takes at most "
                f"{MAX_IMAGE_BYTES}"
            )
        image = response["Body"].read()
    except ClientError as error:
        raise _typed(error, bucket, key) from error
    except (HTTPClientError, EndpointConnectionError, ConnectTimeoutError, IncompleteReadError) as error:
        raise StorageUnavailable(f"s3://{bucket}/{key}: {error}") from error
    if not image.startswith(SIGNATURES):
        raise UnreadableImage(f"s3://{bucket}/{key} is neither a PNG nor a JPEG ({len(image)} bytes)")
    logger.info("serialized s3://%s/%s, %d bytes", bucket, key, len(image))
    return {"bucket": bucket, "key": key, "image_data": base64.b64encode(image).decode("ascii")}


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
