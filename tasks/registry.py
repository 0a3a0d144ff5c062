"""The model package group: every trained model is a version in it."""

from dataclasses import dataclass
from typing import Any

from botocore.exceptions import ClientError
from prefect import task
from prefect.logging import get_run_logger
from sagemaker.core import image_uris
from sagemaker.core.resources import ModelPackage, ModelPackageGroup

from settings import settings
from tasks.aws import client, explained, sdk
from tasks.training import TrainedModel


class NoModel(Exception):
    """There is no version that could be deployed; the message says what to do."""


@dataclass(frozen=True)
class ModelVersion:
    """A version of the model package group."""

    number: int
    arn: str
    artifact_uri: str
    image: str
    fingerprint: str
    training_job: str

    @property
    def name(self) -> str:
        """The variant's name on the endpoint, such as v7."""
        return f"v{self.number}"


@task(task_run_name="find a model of the same training")
def find_trained(fingerprint: str) -> ModelVersion | None:
    """The newest version that was trained with the same data, code and hyperparameters."""
    return next((version for version in versions() if version.fingerprint == fingerprint), None)


@task(task_run_name="register {model.job_name}")
def register(model: TrainedModel) -> ModelVersion:
    """Makes a trained model a version; one that is registered already is found again."""
    logger = get_run_logger()
    for version in versions():
        if version.training_job == model.job_name:
            return version
    _ensure_group()
    with explained("register the model"):
        # Not ModelPackage.create: for a version of a group it looks for a ModelPackageName that AWS does not answer.
        arn = client("sagemaker").create_model_package(
            ModelPackageGroupName=settings().model_package_group,
            ModelPackageDescription=f"Trained by {model.job_name}",
            InferenceSpecification={
                "Containers": [{"Image": inference_image(), "ModelDataUrl": model.artifact_uri}],
                "SupportedContentTypes": ["application/x-image"],
                "SupportedResponseMIMETypes": ["application/json"],
            },
            ModelApprovalStatus="Approved",
            CustomerMetadataProperties={
                "fingerprint": model.fingerprint,
                "training_job": model.job_name,
                **{name.replace(":", "_"): f"{value:.4f}" for name, value in model.metrics.items()},
            },
        )["ModelPackageArn"]
    version = _version(arn)
    logger.info("registered %s as %s of %s", model.job_name, version.name, settings().model_package_group)
    return version


@task(task_run_name="choose the model")
def approved_model(number: int | None = None) -> ModelVersion:
    """The approved version of that number, or the newest one. Raises NoModel where there is none."""
    for version in versions(approved=True):
        if number in (None, version.number):
            return version
    wanted = "approved version" if number is None else f"approved version {number}"
    group = settings().model_package_group
    raise NoModel(f"the model package group {group} has no {wanted}; run the train-model deployment first")


def versions(approved: bool = False) -> list[ModelVersion]:
    """Versions of the group, newest first; empty where there is no group."""
    request: dict[str, Any] = {"ModelPackageGroupName": settings().model_package_group, "SortOrder": "Descending"}
    if approved:
        request["ModelApprovalStatus"] = "Approved"
    with explained("list the model packages"):
        try:
            page = client("sagemaker").list_model_packages(MaxResults=100, **request)
        except ClientError as error:
            if error.response["Error"]["Code"] == "ValidationException":
                return []
            raise
        return [_version(summary["ModelPackageArn"]) for summary in page["ModelPackageSummaryList"]]


def inference_image() -> str:
    """The image that serves: the setting's, else AWS's PyTorch inference image."""
    chosen = settings()
    if chosen.inference_image:
        return chosen.inference_image
    return image_uris.retrieve(
        "pytorch",
        region=sdk()["region"],
        version=chosen.inference_pytorch,
        py_version=chosen.inference_python,
        instance_type=chosen.endpoint_instance_type,
        image_scope="inference",
    )


def _version(arn: str) -> ModelVersion:
    with explained(f"look at {arn}"):
        package = ModelPackage.get(arn, **sdk())
    container = package.inference_specification.containers[0]
    metadata = package.customer_metadata_properties
    metadata = metadata if isinstance(metadata, dict) else {}
    return ModelVersion(
        number=int(package.model_package_version),
        arn=arn,
        artifact_uri=str(container.model_data_url),
        image=str(container.image),
        fingerprint=metadata.get("fingerprint", ""),
        training_job=metadata.get("training_job", ""),
    )


def _ensure_group() -> None:
    name = settings().model_package_group
    with explained(f"create the model package group {name}"):
        try:
            ModelPackageGroup.get(name, **sdk())
        except ClientError as error:
            if error.response["Error"]["Code"] != "ValidationException":
                raise
            ModelPackageGroup.create(model_package_group_name=name, **sdk())
