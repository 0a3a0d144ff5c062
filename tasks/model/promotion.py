"""A version that was approved in one environment becomes one of another, with its lineage."""

import hashlib
from urllib.parse import urlsplit

from settings import MODELS_PREFIX, settings
from tasks.aws import storage
from tasks.aws.clients import client, retry_transient
from tasks.errors import SconesError
from tasks.installation import Installation
from tasks.model.registry import APPROVED, ARTIFACT_SHA256, ModelVersion, decide, register_copy, versions
from tasks.run import Log

# Metadata of a promoted version: which one it is a copy of.
ORIGIN = "promoted_from"


class NotPromoted(SconesError):
    """A version that cannot be promoted; the message says why."""


def promote(source: ModelVersion, classes: tuple[str, ...], target: Installation, progress: Log) -> ModelVersion:
    """Copies an approved version's artifact into the target's bucket and registers it, unless it is there already.

    classes: of the installation it comes from. Raises NotPromoted if it is not approved, or tells other classes apart.
    The caller's credentials read the one bucket and write the other.
    """
    if source.status != APPROVED:
        raise NotPromoted(f"{source.arn} is {source.status}: only an approved version is promoted")
    if classes != target.classes:
        raise NotPromoted(f"{source.arn} tells {', '.join(classes)} apart, not {', '.join(target.classes)}")
    for version in versions():
        if version.metadata.get(ORIGIN) == source.arn:
            progress(f"{source.arn} is {version.name} here already, {version.status}")
            return version
    address = urlsplit(source.artifact_uri)
    key = f"{MODELS_PREFIX}promoted-{hashlib.sha256(source.arn.encode()).hexdigest()[:12]}/model.tar.gz"
    retry_transient(
        f"copy {source.artifact_uri} to s3://{target.bucket}/{key}",
        lambda: client("s3").copy_object(
            Bucket=target.bucket, Key=key, CopySource={"Bucket": address.netloc, "Key": address.path.lstrip("/")}
        ),
    )
    copied = storage.sha256(target.bucket, key)
    if copied != source.metadata.get(ARTIFACT_SHA256, copied):
        raise NotPromoted(f"{source.artifact_uri} is not the archive that was registered as {source.name}")
    made = register_copy(source, f"s3://{target.bucket}/{key}", {ORIGIN: source.arn})
    decided = decide(made, APPROVED, f"promoted from {source.arn}, which was approved: {source.reason}")
    progress(f"{source.arn} is {decided.name} of {settings().model_package_group}")
    return decided
