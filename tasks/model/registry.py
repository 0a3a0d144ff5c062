"""The model package group: every trained model is a version in it, with its figures and what was decided about it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import ClientError
from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.logging import get_run_logger

from settings import settings
from tasks.aws import storage
from tasks.aws.clients import client, none_if_missing, sdk
from tasks.aws.errors import translate_aws_errors
from tasks.aws.images import inference_image
from tasks.aws.tags import sdk_tags
from tasks.errors import SconesError
from tasks.model.training import CompletedJob, TrainingPlan

# Metadata of a version: the SHA-256 of its archive when it was registered.
ARTIFACT_SHA256 = "artifact_sha256"
APPROVED, REJECTED, PENDING = "Approved", "Rejected", "PendingManualApproval"
MAX_DESCRIPTION = 1024
# What AWS's PyTorch image asks for; Ray Serve's finds its config.yaml by itself.
SERVING_ENVIRONMENT = {"SAGEMAKER_PROGRAM": "inference.py", "SAGEMAKER_SUBMIT_DIRECTORY": "/opt/ml/model/code"}
NO_REASON = "no reason given"
# What AWS does not take in a value of a version's metadata, and how long one may be: botocore's CustomerMetadataValue.
UNTAKEN = re.compile(r"[^\w .:/=+@-]")
MAX_METADATA = 256


class NoModel(SconesError):
    """There is no version that could be deployed; the message says what to do."""


class ArtifactChanged(SconesError):
    """A version's archive is gone, or is another one than was registered."""


@dataclass(frozen=True)
class ModelVersion:
    """A version of the model package group. status: Approved, Rejected or PendingManualApproval, for this `reason`."""

    number: int
    arn: str
    artifact_uri: str
    image: str
    status: str
    reason: str
    metadata: dict[str, str]

    @property
    def name(self) -> str:
        """Such as v7."""
        return f"v{self.number}"

    @property
    def threshold(self) -> float | None:
        """The confidence threshold that the model recommends; None if no threshold reached the target."""
        return self._figure("threshold")

    @property
    def threshold_every_class(self) -> float | None:
        """The one at which what is accepted as each class reached the target."""
        return self._figure("threshold_every_class")

    def _figure(self, name: str) -> float | None:
        value = self.metadata.get(name)
        return float(value) if value else None


@task(task_run_name="find a model of the same training")
def find_trained(plan: TrainingPlan) -> ModelVersion | None:
    """The newest version that was trained with the same data, code and hyperparameters, and was not rejected.

    Where the plan is the settings' own, a version counts too for which other hyperparameters were asked for while the
    settings were these: it is the model that stands.
    """
    usable = [version for version in versions() if version.status != REJECTED]
    for version in usable:
        if version.metadata.get("fingerprint") == plan.fingerprint:
            return version
    if plan.fingerprint != plan.settings_fingerprint:
        return None
    for version in usable:
        if version.metadata.get("settings_fingerprint") == plan.settings_fingerprint:
            get_run_logger().info(
                "%s stands, for which other hyperparameters were asked; retrain=true trains with the settings' own",
                version.name,
            )
            return version
    return None


@task(task_run_name="register {job.name}")
def register(job: CompletedJob, plan: TrainingPlan) -> ModelVersion:
    """Makes a trained model a version that awaits a decision; one that is registered already is found again."""
    logger = get_run_logger()
    for version in versions():
        if version.metadata.get("training_job") == job.name:
            return version
    version = _create(
        f"Trained by {job.name}",
        inference_image(settings()),
        job.artifact_uri,
        {
            "fingerprint": plan.fingerprint,
            "settings_fingerprint": plan.settings_fingerprint,
            "data_fingerprint": plan.data_fingerprint,
            "data": UNTAKEN.sub("_", plan.data)[:MAX_METADATA],
            "training_job": job.name,
            ARTIFACT_SHA256: _digest(job.artifact_uri),
            **{name.replace(":", "_"): f"{value:.6g}" for name, value in job.metrics.items()},
        },
    )
    logger.info("registered %s as %s of %s", job.name, version.name, settings().model_package_group)
    return version


def register_copy(source: ModelVersion, artifact_uri: str, lineage: dict[str, str]) -> ModelVersion:
    """Makes a copy of another group's version one of this group, which awaits a decision, with what is known of it."""
    return _create(f"Copy of {source.arn}", source.image, artifact_uri, {**source.metadata, **lineage})


def check_artifact(version: ModelVersion) -> None:
    """Raises ArtifactChanged if a version's archive is not the one any more that was registered.

    Whoever may write below models/ could replace it; the registry takes other rights.
    """
    if version.metadata.get(ARTIFACT_SHA256):
        check_digest(version, _digest(version.artifact_uri))


def check_digest(version: ModelVersion, found: str | None) -> None:
    """Raises ArtifactChanged if an archive with this SHA-256 is not the one that was registered as a version."""
    known = version.metadata.get(ARTIFACT_SHA256)
    if known and found != known:
        raise ArtifactChanged(
            f"{version.artifact_uri} is not the archive that was registered as {version.name}",
            "restore the object's version of that time, or train again",
        )


def _digest(artifact_uri: str) -> str:
    bucket, _, key = artifact_uri.removeprefix("s3://").partition("/")
    digest = storage.sha256(bucket, key)
    if digest is None:
        raise ArtifactChanged(f"there is no archive {artifact_uri}", "train again")
    return digest


def _create(description: str, image: str, artifact_uri: str, metadata: dict[str, str]) -> ModelVersion:
    _ensure_group()
    with translate_aws_errors("register the model"):
        # Not ModelPackage.create: for a version of a group it looks for a ModelPackageName that AWS does not answer.
        arn = client("sagemaker").create_model_package(
            ModelPackageGroupName=settings().model_package_group,
            ModelPackageDescription=description,
            InferenceSpecification={
                "Containers": [{"Image": image, "ModelDataUrl": artifact_uri, "Environment": SERVING_ENVIRONMENT}],
                "SupportedContentTypes": ["application/x-image"],
                "SupportedResponseMIMETypes": ["application/json"],
            },
            ModelApprovalStatus=PENDING,
            CustomerMetadataProperties=metadata,
        )["ModelPackageArn"]
    return _version(arn)


def look_again(version: ModelVersion) -> ModelVersion:
    """The version as the registry has it now."""
    return _version(version.arn)


def decide(version: ModelVersion, status: str, reason: str) -> ModelVersion:
    """Writes a decision and its reason into the registry and returns the version with them."""
    description = " ".join(reason.split())[:MAX_DESCRIPTION]  # AWS takes no line breaks
    with translate_aws_errors(f"decide on {version.name}"):
        client("sagemaker").update_model_package(
            ModelPackageArn=version.arn, ModelApprovalStatus=status, ApprovalDescription=description
        )
    return _version(version.arn)


@task(task_run_name="choose the model")
def approved_model(number: int | None = None) -> ModelVersion:
    """The approved version of that number, or the newest one. Raises NoModel if there is none."""
    for version in versions(APPROVED):
        if number in (None, version.number):
            return version
    group = settings().model_package_group
    if number is not None:
        found = find_version(number)
        raise NoModel(f"{found.name} of {group} is {found.status}, not Approved: {found.reason or NO_REASON}")
    newest = next(versions(), None)
    if newest is None:
        raise NoModel(f"the model package group {group} has no version", "run the train-model deployment first")
    raise NoModel(
        f"the model package group {group} has no approved version; the newest, {newest.name}, is {newest.status}: "
        f"{newest.reason or NO_REASON}"
    )


def find_version(number: int) -> ModelVersion:
    """The version of that number. Raises NoModel if there is none."""
    for version in versions():
        if version.number == number:
            return version
    raise NoModel(f"the model package group {settings().model_package_group} has no version {number}")


def versions(status: str | None = None) -> Iterator[ModelVersion]:
    """Versions of the group, newest first, each looked up when its turn comes; none if there is no group."""
    request: dict[str, Any] = {"ModelPackageGroupName": settings().model_package_group, "SortOrder": "Descending"}
    if status:
        request["ModelApprovalStatus"] = status
    pages = client("sagemaker").get_paginator("list_model_packages").paginate(**request)
    with translate_aws_errors("list the model packages"):
        try:
            for page in pages:
                for summary in page["ModelPackageSummaryList"]:
                    yield _version(summary["ModelPackageArn"])
        except ClientError as error:
            if error.response["Error"]["Code"] != "ValidationException":
                raise


@task(task_run_name="publish the registry")
def publish(serving: list[str]) -> None:
    """Leaves the versions, their figures and decisions as a table in the Prefect UI.

    serving: names of the versions on the endpoint.
    """
    champion = next(versions(APPROVED), None)
    rows = []
    for version in versions():
        roles = [
            *(["champion"] if champion and version.number == champion.number else []),
            *(["serving"] if version.name in serving else []),
        ]
        figures = version.metadata
        accuracy, error, threshold, coverage, every_class = (
            f"{float(figures[name]):.3f}" if name in figures else "none"
            for name in (
                "validation_accuracy",
                "validation_ece",
                "threshold",
                "threshold_coverage",
                "threshold_every_class",
            )
        )
        rows.append(
            {
                "version": version.name,
                "role": ", ".join(roles),
                "status": version.status,
                "accuracy": accuracy,
                "calibration error": error,
                "recommended threshold": threshold,
                "coverage": coverage,
                "for every class": every_class,
                "data": figures.get("data", ""),
                "manifest": figures.get("data_fingerprint", "")[:12],
                "training job": figures.get("training_job", ""),
                "decision": version.reason,  # last, as it may be long
            }
        )
    create_table_artifact(rows, key="model-registry", description=f"Versions of {settings().model_package_group}")


def _version(arn: str) -> ModelVersion:
    from sagemaker.core.resources import ModelPackage  # takes a second

    with translate_aws_errors(f"look at {arn}"):
        package = ModelPackage.get(arn, **sdk())
    container = package.inference_specification.containers[0]
    # What AWS leaves out of its answer is Unassigned, not None.
    metadata, reason = package.customer_metadata_properties, package.approval_description
    return ModelVersion(
        number=int(package.model_package_version),
        arn=arn,
        artifact_uri=str(container.model_data_url),
        image=str(container.image),
        status=str(package.model_approval_status),
        reason=reason if isinstance(reason, str) else "",
        metadata=metadata if isinstance(metadata, dict) else {},
    )


def _ensure_group() -> None:
    from sagemaker.core.resources import ModelPackageGroup  # takes a second

    name = settings().model_package_group
    with translate_aws_errors(f"create the model package group {name}"):
        if none_if_missing(lambda: ModelPackageGroup.get(name, **sdk())) is None:
            ModelPackageGroup.create(model_package_group_name=name, tags=sdk_tags(), **sdk())
