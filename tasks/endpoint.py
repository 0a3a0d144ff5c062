"""The SageMaker endpoint as it stands: found, waited for, asked known images, deleted. rollout.py changes it."""

import hashlib
import json
import time
from collections import Counter
from dataclasses import dataclass

from sagemaker.core.resources import Endpoint

from settings import CAPTURE_PREFIX, MANIFESTS_PREFIX, TRAIN_PREFIX, settings
from tasks import storage
from tasks.aws import client, explained, if_there, patiently, sdk, utc_now
from tasks.infrastructure import Installation
from tasks.logs import LogTail, Progress

LOG_GROUP = "/aws/sagemaker/Endpoints"
POLL_SECONDS = 1.0
# Nothing is in progress any more.
ENDED = ("InService", "Failed", "OutOfService", "UpdateRollbackFailed")


class EndpointError(Exception):
    """The endpoint does not serve; the message has AWS's reason."""


class EndpointNotFound(Exception):
    """There is no such endpoint; the message says what to do."""


class SmokeTestFailed(EndpointError):
    """The model is at fault: it can't be loaded, or does not answer as one worth serving does."""


@dataclass(frozen=True)
class ServingEndpoint:
    """An endpoint in service and the model version it serves."""

    name: str
    model_version: str


@dataclass(frozen=True)
class KnownImage:
    """A training image whose class is known."""

    key: str
    label: str
    content: bytes


def serving(installation: Installation) -> ServingEndpoint:
    """The endpoint's model version. Raises EndpointNotFound or EndpointError where it does not serve."""
    endpoint = find(installation.endpoint)
    if endpoint is None:
        raise EndpointNotFound(
            f"no endpoint {installation.endpoint!r} in {sdk()['region']}; run the deploy-endpoint deployment first"
        )
    if str(endpoint.endpoint_status) not in ("InService", "Updating"):
        raise EndpointError(f"endpoint {installation.endpoint} is {endpoint.endpoint_status}: {reason(endpoint)}")
    return ServingEndpoint(installation.endpoint, str(endpoint.production_variants[0].variant_name))


def known_images(installation: Installation) -> list[KnownImage]:
    """The same few training images of every class each time. Raises EndpointError where a class has none."""
    manifest = storage.get(installation.bucket, f"{MANIFESTS_PREFIX}train.lst")
    if not manifest:
        raise EndpointError("there is no training image to try an endpoint with; run the prepare-data deployment first")
    rows = [line.split("\t") for line in manifest.decode().splitlines()]
    # In the order of a hash: neighbours in the manifest may be alike.
    rows.sort(key=lambda row: hashlib.sha256(row[2].encode()).digest())
    images = []
    for label, name in enumerate(installation.classes):
        chosen = [row[2] for row in rows if int(row[1]) == label][: settings().smoke_images_per_class]
        if not chosen:
            raise EndpointError(f"the training images have none of {name} to try an endpoint with")
        for file in chosen:
            content = storage.get(installation.bucket, TRAIN_PREFIX + file)
            if content is None:
                raise EndpointError(f"s3://{installation.bucket}/{TRAIN_PREFIX}{file} is missing; run prepare-data")
            images.append(KnownImage(TRAIN_PREFIX + file, name, content))
    return images


def smoke_test(name: str, variant: str, images: list[KnownImage], classes: tuple[str, ...], run: str) -> list[str]:
    """Asks an endpoint about known images and returns the inference ids.

    Raises SmokeTestFailed unless every answer is one probability per class, given by that variant, every class is
    recognized at least once, and the share of right answers reaches the setting.
    """
    right: Counter[str] = Counter()
    ids = [f"smoke-{run}-{number}" for number in range(len(images))]
    for image, inference_id in zip(images, ids, strict=True):
        probabilities = _ask(name, variant, image, len(classes), inference_id)
        right[image.label] += classes[probabilities.index(max(probabilities))] == image.label
    accuracy = right.total() / len(images)
    unseen = [label for label in classes if not right[label]]
    if unseen or accuracy < settings().smoke_min_accuracy:
        detail = f"never recognizes {', '.join(unseen)}" if unseen else f"needs {settings().smoke_min_accuracy:g}"
        raise SmokeTestFailed(
            f"endpoint {name} gets {right.total()} of {len(images)} known training images right and {detail}"
        )
    return ids


def capture_prefix(endpoint: str) -> str:
    """Where the capture records of an endpoint are in the bucket."""
    return f"{CAPTURE_PREFIX}{endpoint}/"


def delete_endpoint(name: str) -> bool:
    """Deletes an endpoint and waits until it is gone; False where there was none."""
    if settled(name, lambda line: None) is None:
        return False
    with explained(f"delete endpoint {name}"):
        client("sagemaker").delete_endpoint(EndpointName=name)
    while find(name) is not None:
        time.sleep(POLL_SECONDS)
    return True


def wait_in_service(name: str, progress: Progress) -> Endpoint:
    """Waits until nothing is in progress and returns the endpoint in service. Raises EndpointError otherwise."""
    endpoint = settled(name, progress)
    if endpoint is None:
        raise EndpointError(f"endpoint {name} is gone")
    if str(endpoint.endpoint_status) != "InService":
        raise EndpointError(f"endpoint {name} is {endpoint.endpoint_status}: {reason(endpoint)}")
    return endpoint


def settled(name: str, progress: Progress, with_log: bool = False) -> Endpoint | None:
    """The endpoint once nothing is in progress; None where there is none. Raises EndpointError after a long wait.

    with_log: hands on what the containers log meanwhile, such as why a model can't be loaded.
    """
    deadline = time.monotonic() + settings().endpoint_max_seconds
    log = LogTail(f"{LOG_GROUP}/{name}", "", progress, since=utc_now()) if with_log else None
    reported = ""
    while True:
        endpoint = find(name)
        if endpoint is None:
            return None
        status = str(endpoint.endpoint_status)
        if log:
            log.read()
        if status != reported:
            reported = status
            progress(f"endpoint {name}: {status}")
        if status in ENDED:
            return endpoint
        if time.monotonic() > deadline:
            raise EndpointError(f"endpoint {name} is {status} for {settings().endpoint_max_seconds} s")
        time.sleep(POLL_SECONDS)


def find(name: str) -> Endpoint | None:
    """The endpoint as AWS describes it; None where there is none."""
    return patiently(f"look at endpoint {name}", lambda: if_there(lambda: Endpoint.get(name, **sdk())))


def reason(endpoint: Endpoint) -> str:
    """Why AWS says that an endpoint failed."""
    given = endpoint.failure_reason
    return given if isinstance(given, str) else "AWS gives no reason"


def _ask(name: str, variant: str, image: KnownImage, classes: int, inference_id: str) -> list[float]:
    runtime = client("sagemaker-runtime")
    try:
        with explained(f"invoke endpoint {name}"):
            try:
                answer = runtime.invoke_endpoint(
                    EndpointName=name,
                    ContentType="application/x-image",
                    Accept="application/json",
                    InferenceId=inference_id,
                    Body=image.content,
                )
            except runtime.exceptions.ModelError as error:
                status, lines = error.response["OriginalStatusCode"], error.response["OriginalMessage"].splitlines()
                message = (
                    f"endpoint {name} fails on {image.key}: the model answered {status}: {lines[0] if lines else ''}"
                )
                raise SmokeTestFailed(message) from error
        body = answer["Body"].read()
        probabilities = [float(value) for value in json.loads(body)]
    except (ValueError, TypeError) as error:
        raise SmokeTestFailed(f"endpoint {name} answers nonsense to {image.key}: {body[:200]!r}") from error
    if answer["InvokedProductionVariant"] != variant:
        raise SmokeTestFailed(f"endpoint {name} answers with {answer['InvokedProductionVariant']}, not {variant}")
    if len(probabilities) != classes or not abs(sum(probabilities) - 1) < 0.01 or min(probabilities) < 0:
        raise SmokeTestFailed(f"endpoint {name} answers nonsense to {image.key}: {body[:200]!r}")
    return probabilities
