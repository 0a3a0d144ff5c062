"""The SageMaker endpoint: brought to a model version, watched until it serves, and asked a first question."""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass

from botocore.exceptions import ClientError
from prefect import task
from prefect.logging import get_run_logger
from sagemaker.core.resources import Endpoint, EndpointConfig, Model
from sagemaker.core.shapes import (
    CaptureContentTypeHeader,
    CaptureOption,
    ContainerDefinition,
    DataCaptureConfig,
    ProductionVariant,
)

from settings import CAPTURE_PREFIX, TEST_PREFIX, settings
from tasks import storage
from tasks.aws import client, explained, sdk
from tasks.infrastructure import Installation
from tasks.registry import ModelVersion
from tasks.training import ROLE_SECONDS, role_not_ready

POLL_SECONDS = 1.0
# Nothing is in progress any more.
ENDED = ("InService", "Failed", "OutOfService", "UpdateRollbackFailed")

Progress = Callable[[str], None]


class EndpointError(Exception):
    """The endpoint does not serve; the message has AWS's reason."""


class EndpointNotFound(Exception):
    """There is no such endpoint; the message says what to do."""


@dataclass(frozen=True)
class ServingEndpoint:
    """An endpoint in service and the model version it serves."""

    name: str
    model_version: str


@task(task_run_name="deploy {version.name}")
def deploy(installation: Installation, version: ModelVersion) -> ServingEndpoint:
    """Creates the endpoint or updates it to the version; does nothing where it serves that already."""
    logger = get_run_logger()
    model = f"{settings().stack}-{version.name}"
    config = _ensure_config(installation, version, model)
    endpoint = _find(installation.endpoint)
    if endpoint is not None and str(endpoint.endpoint_status) not in ENDED:
        endpoint = _wait(installation.endpoint, logger.info)  # somebody else's change, or an earlier attempt's
    if endpoint is not None and str(endpoint.endpoint_status) != "InService":
        # It serves nothing, and deleting is all that AWS allows.
        logger.warning("endpoint %s is %s: %s", installation.endpoint, endpoint.endpoint_status, _reason(endpoint))
        delete_endpoint(installation.endpoint)
        endpoint = None
    if endpoint is None:
        logger.info("creating endpoint %s", installation.endpoint)
        with explained(f"create endpoint {installation.endpoint}"):
            Endpoint.create(endpoint_name=installation.endpoint, endpoint_config_name=config, **sdk())
    elif str(endpoint.endpoint_config_name) != config:
        logger.info("updating endpoint %s to %s", installation.endpoint, version.name)
        with explained(f"update endpoint {installation.endpoint}"):
            client("sagemaker").update_endpoint(EndpointName=installation.endpoint, EndpointConfigName=config)
    else:
        logger.info("endpoint %s serves %s already", installation.endpoint, version.name)
    served = _wait(installation.endpoint, logger.info)
    if str(served.endpoint_config_name) != config:
        raise EndpointError(f"endpoint {installation.endpoint} kept its old model: {_reason(served)}")
    return serving(installation)


@task(task_run_name="smoke-test the endpoint")
def smoke_test(installation: Installation, run: str) -> list[float]:
    """Sends one test image; raises EndpointError unless the answer is one probability per class."""
    keys = sorted(storage.list_etags(installation.bucket, TEST_PREFIX))
    if not keys:
        raise EndpointError("there is no test image to try the endpoint with; run the prepare-data deployment first")
    image = storage.get(installation.bucket, keys[0])
    with explained(f"invoke endpoint {installation.endpoint}"):
        answer = client("sagemaker-runtime").invoke_endpoint(
            EndpointName=installation.endpoint,
            ContentType="application/x-image",
            Accept="application/json",
            InferenceId=f"smoke-{run}",
            Body=image,
        )
    body = answer["Body"].read()
    try:
        probabilities = [float(value) for value in json.loads(body)]
    except (ValueError, TypeError):
        probabilities = []
    if len(probabilities) != len(installation.classes) or abs(sum(probabilities) - 1) > 0.01:
        raise EndpointError(f"endpoint {installation.endpoint} answers nonsense: {body[:200]!r}")
    return probabilities


def serving(installation: Installation) -> ServingEndpoint:
    """The endpoint's model version. Raises EndpointNotFound or EndpointError where it does not serve."""
    endpoint = _find(installation.endpoint)
    if endpoint is None:
        raise EndpointNotFound(
            f"no endpoint {installation.endpoint!r} in {sdk()['region']}; run the deploy-endpoint deployment first"
        )
    if str(endpoint.endpoint_status) not in ("InService", "Updating"):
        raise EndpointError(f"endpoint {installation.endpoint} is {endpoint.endpoint_status}: {_reason(endpoint)}")
    return ServingEndpoint(installation.endpoint, str(endpoint.production_variants[0].variant_name))


def capture_prefix(endpoint: str) -> str:
    """Where the capture records of an endpoint are in the bucket."""
    return f"{CAPTURE_PREFIX}{endpoint}/"


def delete_endpoint(name: str) -> bool:
    """Deletes an endpoint and waits until it is gone; False where there was none."""
    endpoint = _find(name)
    if endpoint is None:
        return False
    if str(endpoint.endpoint_status) not in ENDED:
        _wait(name, lambda line: None)
    with explained(f"delete endpoint {name}"):
        client("sagemaker").delete_endpoint(EndpointName=name)
    while _find(name) is not None:
        time.sleep(POLL_SECONDS)
    return True


def _ensure_config(installation: Installation, version: ModelVersion, model: str) -> str:
    """Creates model and endpoint config unless they exist; the config's name carries a hash of its content."""
    chosen = settings()
    destination = f"s3://{installation.bucket}/{CAPTURE_PREFIX}"
    content = [model, chosen.endpoint_instance_type, chosen.endpoint_instance_count, destination, version.image]
    config = f"{model}-{hashlib.sha256(json.dumps(content).encode()).hexdigest()[:8]}"
    container = ContainerDefinition(
        image=version.image,
        model_data_url=version.artifact_uri,
        environment={"SAGEMAKER_PROGRAM": "inference.py", "SAGEMAKER_SUBMIT_DIRECTORY": "/opt/ml/model/code"},
    )
    if not _exists(lambda: Model.get(model, **sdk())):
        deadline = time.monotonic() + ROLE_SECONDS
        while True:
            with explained(f"create model {model}"):
                try:
                    Model.create(
                        model_name=model,
                        primary_container=container,
                        execution_role_arn=installation.hosting_role_arn,
                        **sdk(),
                    )
                    break
                except ClientError as error:
                    if not role_not_ready(error) or time.monotonic() > deadline:
                        raise
            time.sleep(5)
    if not _exists(lambda: EndpointConfig.get(config, **sdk())):
        with explained(f"create endpoint config {config}"):
            EndpointConfig.create(
                endpoint_config_name=config,
                production_variants=[
                    ProductionVariant(
                        variant_name=version.name,
                        model_name=model,
                        instance_type=chosen.endpoint_instance_type,
                        initial_instance_count=chosen.endpoint_instance_count,
                        initial_variant_weight=1.0,
                    )
                ],
                data_capture_config=DataCaptureConfig(
                    enable_capture=True,
                    initial_sampling_percentage=100,
                    destination_s3_uri=destination,
                    capture_options=[CaptureOption(capture_mode="Input"), CaptureOption(capture_mode="Output")],
                    capture_content_type_header=CaptureContentTypeHeader(json_content_types=["application/json"]),
                ),
                **sdk(),
            )
    return config


def _wait(name: str, progress: Progress) -> Endpoint:
    """Waits until nothing is in progress and returns the endpoint in service. Raises EndpointError otherwise."""
    deadline = time.monotonic() + settings().endpoint_max_seconds
    reported = ""
    while True:
        endpoint = _find(name)
        if endpoint is None:
            raise EndpointError(f"endpoint {name} is gone")
        status = str(endpoint.endpoint_status)
        if status != reported:
            reported = status
            progress(f"endpoint {name}: {status}")
        if status == "InService":
            return endpoint
        if status in ENDED:
            raise EndpointError(f"endpoint {name} is {status}: {_reason(endpoint)}")
        if time.monotonic() > deadline:
            raise EndpointError(f"endpoint {name} is {status} for {settings().endpoint_max_seconds} s")
        time.sleep(POLL_SECONDS)


def _find(name: str) -> Endpoint | None:
    with explained(f"look at endpoint {name}"):
        try:
            return Endpoint.get(name, **sdk())
        except ClientError as error:
            if error.response["Error"]["Code"] == "ValidationException":
                return None
            raise


def _exists(get: Callable[[], object]) -> bool:
    with explained("look for models and endpoint configs"):
        try:
            get()
            return True
        except ClientError as error:
            if error.response["Error"]["Code"] == "ValidationException":
                return False
            raise


def _reason(endpoint: Endpoint) -> str:
    reason = endpoint.failure_reason
    return reason if isinstance(reason, str) else "AWS gives no reason"
