"""What S3 and CloudFormation do with buckets on AWS and not in ministack.

- CloudFormation deletes a bucket as DeleteBucket does. ministack's own handler forgets the bucket but leaves its
  objects on disk, from where they come back at the next start, and deletes buckets that are not empty, which AWS
  refuses (DELETE_FAILED).
- CloudFormation sets a bucket's encryption, and the ETag of an object that is encrypted with a KMS key is not the MD5
  of its content: https://docs.aws.amazon.com/AmazonS3/latest/API/API_Object.html
"""

import contextvars
import uuid
from collections.abc import Callable
from functools import wraps
from typing import Any

from ministack.services import s3
from ministack.services.cloudformation import provisioners

ENCRYPTION = (
    f'<ServerSideEncryptionConfiguration xmlns="{s3.S3_NS}"><Rule><ApplyServerSideEncryptionByDefault>'
    "<SSEAlgorithm>{algorithm}</SSEAlgorithm>{key}</ApplyServerSideEncryptionByDefault></Rule>"
    "</ServerSideEncryptionConfiguration>"
)

_bucket: contextvars.ContextVar[str] = contextvars.ContextVar("bucket", default="")


def install() -> None:
    """Puts these around ministack's functions, or in their place."""
    handlers = provisioners._RESOURCE_HANDLERS["AWS::S3::Bucket"]
    handlers["delete"] = _delete
    for name in ("create", "update"):
        handlers[name] = _with_encryption(handlers[name])
    s3._put_object = _with_bucket(s3._put_object)
    s3._build_object_record = _with_etag(s3._build_object_record)


def _delete(name: str, properties: dict[str, object]) -> None:
    status, _, body = s3._delete_bucket(name)
    if status not in (204, 404):
        raise ValueError(f"{body.decode(errors='replace')} (status {status})")


def _with_encryption(handle: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(handle)
    def handled(*arguments: Any) -> Any:
        name, attributes = handle(*arguments)
        *_, properties, _stack = arguments  # of create and update alike
        rules = properties.get("BucketEncryption", {}).get("ServerSideEncryptionConfiguration", [])
        for rule in rules:
            chosen = rule["ServerSideEncryptionByDefault"]
            key = chosen.get("KMSMasterKeyID")
            s3._bucket_encryption[name] = ENCRYPTION.format(
                algorithm=chosen["SSEAlgorithm"], key=f"<KMSMasterKeyID>{key}</KMSMasterKeyID>" if key else ""
            )
        return name, attributes

    return handled


def _with_bucket(put: Callable[..., Any]) -> Callable[..., Any]:
    """Remembers which bucket an object is put into."""

    @wraps(put)
    def remembered(bucket: str, *arguments: Any, **more: Any) -> Any:
        token = _bucket.set(bucket)
        try:
            return put(bucket, *arguments, **more)
        finally:
            _bucket.reset(token)

    return remembered


def _with_etag(build: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    @wraps(build)
    def built(body: bytes, headers: dict[str, str], *arguments: Any, **more: Any) -> dict[str, Any]:
        record = build(body, headers, *arguments, **more)
        encryption = headers.get("x-amz-server-side-encryption") or s3._bucket_encryption.get(_bucket.get()) or ""
        if "aws:kms" in encryption:
            record["etag"] = f'"{uuid.uuid4().hex}"'
        return record

    return built
