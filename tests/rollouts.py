"""Model versions with other files, clients of an endpoint, and what a rollout must not leave."""

import io
import tarfile
import uuid

from settings import ROOT, settings
from tasks.aws import storage
from tasks.aws.clients import client, none_if_missing
from tasks.installation import Installation
from tasks.model.registry import APPROVED, ModelVersion, versions
from tasks.serving.endpoint import find
from tasks.serving.models import owned_names
from testing.load import Load


def clients_of(installed: Installation) -> Load:
    """Two clients that ask the endpoint about a test image."""
    image = storage.get(installed.bucket, next(iter(storage.list_etags(installed.bucket, "test/"))))
    runtime, kind = client("sagemaker-runtime"), "application/x-image"
    return Load(runtime, clients=2, pause=0.01, EndpointName=installed.endpoint, ContentType=kind, Body=image)


def changed_artifact(
    installed: Installation, version: ModelVersion, replaced: dict[str, bytes] | None = None
) -> ModelVersion:
    """An approved version like another one, with other content of the files named in `replaced`."""
    files = replaced or {}
    source = storage.get(installed.bucket, version.artifact_uri.split("/", 3)[3])
    assert source is not None
    buffer = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(source)) as old, tarfile.open(fileobj=buffer, mode="w:gz") as new:
        for member in old.getmembers():
            name = member.name.removeprefix("./")
            file = old.extractfile(member)
            content = files[name] if name in files else file.read() if file else b""
            member.size = len(content)
            new.addfile(member, io.BytesIO(content))
    key = f"models/changed-{uuid.uuid4().hex}/model.tar.gz"
    storage.put(installed.bucket, key, buffer.getvalue())
    register_artifact(version.image, f"s3://{installed.bucket}/{key}")
    return next(versions())


def register_artifact(image: str, uri: str) -> None:
    """Makes an artifact an approved version of the installation that the settings are of."""
    group = settings().model_package_group
    sagemaker = client("sagemaker")
    if none_if_missing(lambda: sagemaker.describe_model_package_group(ModelPackageGroupName=group)) is None:
        sagemaker.create_model_package_group(ModelPackageGroupName=group)
    sagemaker.create_model_package(
        ModelPackageGroupName=group,
        InferenceSpecification={
            "Containers": [{"Image": image, "ModelDataUrl": uri}],
            "SupportedContentTypes": ["application/x-image"],
            "SupportedResponseMIMETypes": ["application/json"],
        },
        ModelApprovalStatus=APPROVED,
    )


def slow_artifact(installed: Installation, version: ModelVersion) -> ModelVersion:
    """The same that takes seconds to load, so that something can happen meanwhile."""
    source = (ROOT / "classifier" / "inference.py").read_bytes()
    return changed_artifact(installed, version, {"code/inference.py": source + b"\nimport time\ntime.sleep(3)\n"})


def captured_versions(installed: Installation) -> set[str]:
    """Model versions that have answered on the endpoint, by the folders of its capture records."""
    keys = storage.list_etags(installed.bucket, "data-capture/")
    return {key.split("/")[1] for key in keys if key.split("/")[2] == installed.endpoint}


def version_named(name: str) -> ModelVersion:
    return next(version for version in versions() if version.name == name)


def leftovers(installed: Installation) -> list[str]:
    """What a rollout that failed must not leave."""
    candidate = [settings().candidate_endpoint] if find(settings().candidate_endpoint) else []
    record = list(storage.list_etags(installed.bucket, "rollouts/"))
    return [*candidate, *record, *(name for name in owned_names() if name.endswith("-candidate"))]
