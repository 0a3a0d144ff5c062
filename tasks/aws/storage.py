"""Objects in the bucket: many at once, and none that is already there with the same content."""

import base64
import hashlib
import io
import json
import mimetypes
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar
from urllib.parse import urlencode, urlsplit

from botocore.exceptions import ClientError
from obstore.store import S3Store

from settings import settings
from tasks.aws.clients import client, retry_transient, session
from tasks.aws.errors import AwsError, translate_aws_errors
from tasks.records import Record

if TYPE_CHECKING:
    from obstore.store import ClientConfig

PARALLEL_REQUESTS = 16
# That an image has at most. What has more is read so far and can't be decoded then.
IMAGE_BYTES = 50_000_000

# The console of each partition, by what the names of its services end with.
CONSOLES = {
    ".amazonaws.com.cn": "console.amazonaws.cn",
    ".amazonaws.com": "console.aws.amazon.com",
}

R = TypeVar("R", bound=Record)


def list_objects(bucket: str, prefix: str) -> dict[str, tuple[str, int]]:
    """ETag and size in bytes by key of every object below a prefix."""
    return {item["Key"]: (item["ETag"].strip('"'), item["Size"]) for item in _listed(bucket, prefix)}


def list_etags(bucket: str, prefix: str) -> dict[str, str]:
    """ETag by key of every object below a prefix."""
    return {key: etag for key, (etag, _) in list_objects(bucket, prefix).items()}


def iterate_etags(bucket: str, prefix: str) -> Iterator[tuple[str, str]]:
    """Key and ETag of every object below a prefix, a page at a time, for more than fit into the memory."""
    return ((item["Key"], item["ETag"].strip('"')) for item in _listed(bucket, prefix))


def list_times(bucket: str, prefix: str) -> dict[str, datetime]:
    """When each object below a prefix was written, by key."""
    return {item["Key"]: item["LastModified"] for item in _listed(bucket, prefix)}


def _listed(bucket: str, prefix: str) -> Iterator[dict[str, Any]]:
    """Every object below a prefix, a page at a time."""
    request: dict[str, Any] = {"Bucket": bucket, "Prefix": prefix}
    while True:
        page = retry_transient(f"list s3://{bucket}/{prefix}", lambda: client("s3").list_objects_v2(**request))
        yield from page.get("Contents", [])
        if not page.get("NextContinuationToken"):
            return
        request["ContinuationToken"] = page["NextContinuationToken"]


def list_folders(bucket: str, prefix: str) -> list[str]:
    """Names of the folders directly below a prefix."""
    paginator = client("s3").get_paginator("list_objects_v2")

    def read() -> list[str]:
        pages = paginator.paginate(Bucket=bucket, Prefix=prefix, Delimiter="/")
        found = [folder["Prefix"] for page in pages for folder in page.get("CommonPrefixes", [])]
        return [folder.removeprefix(prefix).rstrip("/") for folder in found]

    return retry_transient(f"list s3://{bucket}/{prefix}", read)


def object_store(bucket: str) -> S3Store:
    """The bucket for obstore, which reads many objects side by side; with the credentials of this moment."""
    s3 = client("s3")
    credentials = session().get_credentials()
    if credentials is None:
        raise AwsError(f"read s3://{bucket}: there are no AWS credentials; set them, or run `make up` for a local AWS")
    frozen = credentials.get_frozen_credentials()
    session_token: dict[str, Any] = {"session_token": frozen.token} if frozen.token else {}
    options: ClientConfig = {"allow_http": s3.meta.endpoint_url.startswith("http://")}
    if bundle := os.environ.get("AWS_CA_BUNDLE"):
        options["root_certificate"] = Path(bundle).read_bytes()
    return S3Store(
        bucket,
        endpoint=s3.meta.endpoint_url,
        region=s3.meta.region_name,
        access_key_id=frozen.access_key,
        secret_access_key=frozen.secret_key,
        **session_token,
        virtual_hosted_style_request=False,
        client_options=options,
        retry_config={"max_retries": 20, "retry_timeout": timedelta(seconds=settings().outage_max_seconds)},
    )


def upload_changed(
    bucket: str, prefix: str, contents: Mapping[str, bytes], progress: Callable[[int], None] | None = None
) -> int:
    """Uploads objects below `prefix` (full keys) whose content differs from what is there; returns how many.

    progress: is told after each how many have been uploaded.
    """
    there = list_etags(bucket, prefix)
    with ThreadPoolExecutor(PARALLEL_REQUESTS) as threads:
        same = threads.map(lambda key: key in there and _has_content(bucket, key, there[key], contents[key]), contents)
        changed = [key for key, unchanged in zip(contents, same, strict=True) if not unchanged]
        for uploaded, _ in enumerate(threads.map(lambda key: put(bucket, key, contents[key]), changed), 1):
            if progress is not None:
                progress(uploaded)
    return len(changed)


def _has_content(bucket: str, key: str, etag: str, content: bytes) -> bool:
    """Whether an object has this content.

    Its ETag is the MD5 unless it is encrypted with KMS; then its checksum is looked at, which S3 has compared with the
    content when it was written, so that nobody can claim another.
    https://docs.aws.amazon.com/AmazonS3/latest/API/API_Object.html
    https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity.html
    """
    if etag == hashlib.md5(content, usedforsecurity=False).hexdigest():
        return True
    head = retry_transient(
        f"look at s3://{bucket}/{key}",
        lambda: client("s3").head_object(Bucket=bucket, Key=key, ChecksumMode="ENABLED"),
    )
    return "aws:kms" in head.get("ServerSideEncryption", "") and head.get("ChecksumSHA256") == _checksum(content)


def _checksum(content: bytes) -> str:
    """SHA-256 as S3 writes it."""
    return base64.b64encode(hashlib.sha256(content).digest()).decode()


def delete_others(bucket: str, prefix: str, keep: Iterable[str]) -> int:
    """Deletes objects below `prefix` whose keys are not in `keep`; the bucket's versioning still has them."""
    others = sorted(set(list_etags(bucket, prefix)) - set(keep))
    with translate_aws_errors(f"delete below s3://{bucket}/{prefix}"):
        for start in range(0, len(others), 1000):
            keys = [{"Key": key} for key in others[start : start + 1000]]
            client("s3").delete_objects(Bucket=bucket, Delete={"Objects": keys, "Quiet": True})
    return len(others)


def empty(bucket: str) -> int:
    """Deletes every object of a bucket with all its versions, for good; returns how many there were."""
    deleted = 0
    with translate_aws_errors(f"empty the bucket {bucket}"):
        for page in client("s3").get_paginator("list_object_versions").paginate(Bucket=bucket):
            there = [*page.get("Versions", []), *page.get("DeleteMarkers", [])]
            objects = [{"Key": item["Key"], "VersionId": item["VersionId"]} for item in there]
            if objects:
                answer = client("s3").delete_objects(Bucket=bucket, Delete={"Objects": objects, "Quiet": True})
                if answer.get("Errors"):
                    raise AwsError(f"empty the bucket {bucket}: {answer['Errors'][0]}")
            deleted += len(objects)
    return deleted


def bucket_exists(bucket: str) -> bool:
    """Whether there is such a bucket of this account."""
    s3 = client("s3")

    def look() -> bool:
        try:
            s3.head_bucket(Bucket=bucket)
        except ClientError as error:
            if error.response["Error"]["Code"] in ("404", "NoSuchBucket"):
                return False
            raise
        return True

    return retry_transient(f"look for the bucket {bucket}", look)


def delete_bucket(bucket: str) -> bool:
    """Deletes an empty bucket; False if there is none."""
    if not bucket_exists(bucket):
        return False
    with translate_aws_errors(f"delete the bucket {bucket}"):
        client("s3").delete_bucket(Bucket=bucket)
    return True


def delete(bucket: str, key: str) -> None:
    """Deletes an object; one that is not there is no error."""
    retry_transient(f"delete s3://{bucket}/{key}", lambda: client("s3").delete_object(Bucket=bucket, Key=key))


def put(bucket: str, key: str, content: bytes) -> None:
    """Writes an object, which a browser takes for what the ending of its key says."""
    kind = mimetypes.guess_type(key)[0] or "application/octet-stream"
    retry_transient(
        f"write s3://{bucket}/{key}",
        lambda: client("s3").put_object(
            Bucket=bucket, Key=key, Body=content, ContentType=kind, ChecksumSHA256=_checksum(content)
        ),
    )


def web_address(bucket: str, key: str) -> str:
    """Where a person opens an object in a browser.

    On AWS it is in the console, to which one signs in: a presigned address would let everybody in who sees it, and ends
    with the credentials that signed it, those of an ECS task within hours. The embedded AWS has no console, so there it
    is presigned, for a week.
    """
    if console := console_address(bucket, key):
        return console
    address: str = client("s3").generate_presigned_url(
        "get_object", Params={"Bucket": bucket, "Key": key}, ExpiresIn=604_800
    )
    return address


def console_address(bucket: str, key: str) -> str | None:
    """An object's page in AWS's console; None with another AWS than that."""
    s3 = client("s3")
    region, host = s3.meta.region_name, urlsplit(s3.meta.endpoint_url).hostname or ""
    for suffix, console in CONSOLES.items():
        if host.endswith(suffix):
            return f"https://{region}.{console}/s3/object/{bucket}?{urlencode({'region': region, 'prefix': key})}"
    return None


def create_json(bucket: str, key: str, value: Any) -> bool:
    """Writes an object unless there is one of that key, which stays as it is; returns whether it was written.

    One of the same content counts as written: the response of an earlier try may have been lost.
    """
    content = (json.dumps(value, indent=2) + "\n").encode()
    return _create(bucket, key, lambda: io.BytesIO(content)) or get(bucket, key) == content


def replace_json(bucket: str, key: str, value: Any, etag: str) -> bool:
    """Writes an object if it still is the one of that ETag; returns whether it was written."""
    content = (json.dumps(value, indent=2) + "\n").encode()
    return _put_if(bucket, key, lambda: io.BytesIO(content), {"IfMatch": etag})


def create_file(bucket: str, key: str, file: Path) -> bool:
    """The same for a file of at most 5 GB, which is not held in memory; False if there is an object of that key."""
    return _create(bucket, key, lambda: file.open("rb"))


def _create(bucket: str, key: str, opened: Callable[[], BinaryIO]) -> bool:
    """Writes what is opened, for each try anew, unless there is an object of that key; returns whether it did."""
    return _put_if(bucket, key, opened, {"IfNoneMatch": "*"})


def _put_if(bucket: str, key: str, opened: Callable[[], BinaryIO], condition: dict[str, Any]) -> bool:
    """Writes what is opened, for each try anew, if the condition holds; returns whether it did."""

    def write() -> bool:
        try:
            with opened() as body:
                client("s3").put_object(Bucket=bucket, Key=key, Body=body, **condition)
        except ClientError as error:
            # NoSuchKey: IfMatch, and the object is gone.
            # https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html
            if error.response["Error"]["Code"] in ("PreconditionFailed", "NoSuchKey"):
                return False
            raise
        return True

    return retry_transient(f"write s3://{bucket}/{key}", write)


def put_file(bucket: str, key: str, file: Path) -> None:
    """Uploads a file, which is not held in memory."""
    retry_transient(f"write s3://{bucket}/{key}", lambda: client("s3").upload_file(str(file), bucket, key))


def download(bucket: str, key: str, file: Path) -> bool:
    """Writes an object to a file, which is not held in memory; False if there is none."""
    s3 = client("s3")

    def read() -> bool:
        try:
            body = s3.get_object(Bucket=bucket, Key=key)["Body"]
        except s3.exceptions.NoSuchKey:
            return False
        with file.open("wb") as target:
            for block in body.iter_chunks(1 << 20):
                target.write(block)
        return True

    return retry_transient(f"read s3://{bucket}/{key}", read)


def get_image(bucket: str, key: str) -> bytes | None:
    """Returns what is to be decoded as an image, up to a byte more than one may have; None if there is no object."""
    found = get_with_etag(bucket, key, IMAGE_BYTES + 1)
    return None if found is None else found[0]


def get(bucket: str, key: str) -> bytes | None:
    """An object's content; None if there is none."""
    found = get_with_etag(bucket, key)
    return None if found is None else found[0]


def sha256(bucket: str, key: str) -> str | None:
    """Returns the SHA-256 of an object's content in hex, which is not held in memory; None if there is no object."""
    s3 = client("s3")

    def read() -> str | None:
        try:
            body = s3.get_object(Bucket=bucket, Key=key)["Body"]
        except s3.exceptions.NoSuchKey:
            return None
        digest = hashlib.sha256()
        for block in body.iter_chunks(1 << 20):
            digest.update(block)
        return digest.hexdigest()

    return retry_transient(f"read s3://{bucket}/{key}", read)


def get_with_etag(bucket: str, key: str, most_bytes: int | None = None) -> tuple[bytes, str] | None:
    """An object's content and ETag; None if there is none. most_bytes: read no more than these of it."""
    s3 = client("s3")

    def read() -> tuple[bytes, str] | None:
        try:
            answer = s3.get_object(Bucket=bucket, Key=key)
            return answer["Body"].read(most_bytes), answer["ETag"].strip('"')
        except s3.exceptions.NoSuchKey:
            return None

    return retry_transient(f"read s3://{bucket}/{key}", read)


@dataclass(frozen=True)
class Aged:
    """An object, and the seconds since it was written by S3's own clock."""

    content: bytes
    etag: str
    age_seconds: float


def get_with_age(bucket: str, key: str) -> Aged | None:
    """Returns an object with its age; None if there is none.

    The age is the difference of two headers of one response, Date and Last-Modified, so that the clock of this machine
    does not matter. Both are whole seconds:
    https://docs.aws.amazon.com/AmazonS3/latest/API/RESTCommonResponseHeaders.html
    """
    s3 = client("s3")

    def read() -> Aged | None:
        try:
            answer = s3.get_object(Bucket=bucket, Key=key)
        except s3.exceptions.NoSuchKey:
            return None
        now = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
        age = (now - answer["LastModified"]).total_seconds()
        return Aged(answer["Body"].read(), answer["ETag"].strip('"'), age)

    return retry_transient(f"read s3://{bucket}/{key}", read)


def put_json(bucket: str, key: str, value: Any) -> None:
    put(bucket, key, (json.dumps(value, indent=2) + "\n").encode())


def put_json_lines(bucket: str, key: str, rows: Iterable[Any]) -> None:
    put(bucket, key, "".join(json.dumps(row) + "\n" for row in rows).encode())


def get_record(bucket: str, key: str, kind: type[R]) -> R | None:
    """The record in an object; None if there is none. Raises RecordError for another file."""
    content = get(bucket, key)
    return None if content is None else kind.parse(content, f"s3://{bucket}/{key}")


def get_records(bucket: str, key: str, kind: type[R]) -> list[R]:
    """A record per line of an object; none if there is no such object. Raises RecordError for another file."""
    lines = get_json_lines(bucket, key) or []
    return [kind.from_json(line, f"s3://{bucket}/{key}, line {number}") for number, line in enumerate(lines, 1)]


def get_json(bucket: str, key: str) -> Any:
    """The JSON value of an object; None if there is none."""
    content = get(bucket, key)
    return None if content is None else json.loads(content)


def get_json_lines(bucket: str, key: str) -> list[Any] | None:
    """A value per line of an object; None if there is none."""
    content = get(bucket, key)
    return None if content is None else [json.loads(line) for line in content.splitlines()]
