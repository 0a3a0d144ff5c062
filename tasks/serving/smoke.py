"""Asks an endpoint about images whose class is known, and checks that the answers are captured."""

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from settings import MANIFESTS_PREFIX, TRAIN_PREFIX, settings
from tasks import answers
from tasks.answers import ACCEPT, OUTLIER_LIMIT, Answer
from tasks.aws import storage
from tasks.aws.clients import client
from tasks.aws.errors import translate_aws_errors
from tasks.installation import Installation, capture_prefix
from tasks.model.registry import ModelVersion
from tasks.run import Log, utc_now
from tasks.serving.endpoint import EndpointError
from tasks.waiting import look_until

CAPTURE_POLL_SECONDS = 1.0
# Statuses of a container that has no worker for a request, or gives no answer; neither tells anything about the model.
NO_WORKER = {0, 503}
START_SECONDS = 120
START_POLL_SECONDS = 2


class SmokeTestFailed(EndpointError):
    """The model is at fault: it can't be loaded, or does not answer as one worth serving does."""


@dataclass(frozen=True)
class KnownImage:
    """A training image whose class is known."""

    key: str
    label: str
    content: bytes


def known_images(installation: Installation) -> list[KnownImage]:
    """The same few training images of every class each time. Raises EndpointError if a class has none."""
    manifest = storage.get(installation.bucket, f"{MANIFESTS_PREFIX}train.lst")
    if not manifest:
        raise EndpointError(
            "there is no training image to try an endpoint with", "run the prepare-data deployment first"
        )
    rows = [line.split("\t") for line in manifest.decode().splitlines()]
    # In the order of a hash: neighbours in the manifest may be alike.
    rows.sort(key=lambda row: hashlib.sha256(row[2].encode()).digest())
    images = []
    for label, name in enumerate(installation.classes):
        chosen = [row[2] for row in rows if int(row[1]) == label][: settings().smoke_images_per_class]
        if not chosen:
            raise EndpointError(f"the training images have none of {name} to try an endpoint with")
        for file in chosen:
            content = storage.get_image(installation.bucket, TRAIN_PREFIX + file)
            if content is None:
                raise EndpointError(f"s3://{installation.bucket}/{TRAIN_PREFIX}{file} is missing", "run prepare-data")
            images.append(KnownImage(TRAIN_PREFIX + file, name, content))
    return images


def smoke_test(name: str, images: list[KnownImage], classes: tuple[str, ...], run: str) -> list[str]:
    """Asks an endpoint about known images and returns the inference ids.

    Raises SmokeTestFailed unless every answer is one probability per class, every class is recognized at least once,
    and the share of right answers reaches the setting. An image that is taken for one of no class is not right.
    """
    right: Counter[str] = Counter()
    ids = [f"smoke-{run}-{number}" for number in range(len(images))]
    for image, inference_id in zip(images, ids, strict=True):
        answer = _ask(name, image, len(classes), inference_id)
        predicted = classes[answer.probabilities.index(max(answer.probabilities))]
        right[image.label] += predicted == image.label and (answer.outlier_score or 0) <= OUTLIER_LIMIT
    accuracy = right.total() / len(images)
    unseen = [label for label in classes if not right[label]]
    if unseen or accuracy < settings().smoke_min_accuracy:
        detail = f"never recognizes {', '.join(unseen)}" if unseen else f"needs {settings().smoke_min_accuracy:g}"
        raise SmokeTestFailed(
            f"endpoint {name} gets {right.total()} of {len(images)} known training images right and {detail}"
        )
    return ids


class _NotUpYet(EndpointError):
    """The container had no worker for the request. An endpoint can be InService before its model answers."""


def _ask(name: str, image: KnownImage, classes: int, inference_id: str) -> Answer:
    """Raises SmokeTestFailed, or EndpointError if there was no worker for START_SECONDS."""
    retrying = Retrying(
        retry=retry_if_exception_type(_NotUpYet),
        wait=wait_fixed(START_POLL_SECONDS),
        stop=stop_after_delay(START_SECONDS),
        reraise=True,
    )
    return retrying(_ask_once, name, image, classes, inference_id)


def _ask_once(name: str, image: KnownImage, classes: int, inference_id: str) -> Answer:
    runtime = client("sagemaker-runtime")
    try:
        with translate_aws_errors(f"invoke endpoint {name}"):
            try:
                response = runtime.invoke_endpoint(
                    EndpointName=name,
                    ContentType="application/x-image",
                    Accept=ACCEPT,
                    InferenceId=inference_id,
                    Body=image.content,
                )
            except runtime.exceptions.ModelError as error:
                status, lines = error.response["OriginalStatusCode"], error.response["OriginalMessage"].splitlines()
                message = (
                    f"endpoint {name} fails on {image.key}: the model answered {status}: {lines[0] if lines else ''}"
                )
                if status in NO_WORKER:
                    raise _NotUpYet(message) from error
                raise SmokeTestFailed(message) from error
            except runtime.exceptions.ModelNotReadyException as error:
                raise _NotUpYet(f"endpoint {name} is not ready: {error}") from error
        body = response["Body"].read()
        answer = answers.decode(body)
    except ValueError as error:
        raise SmokeTestFailed(
            f"endpoint {name} returned an invalid response for {image.key}: {body[:200]!r}"
        ) from error
    if len(answer.probabilities) != classes or not abs(sum(answer.probabilities) - 1) < 0.01:
        raise SmokeTestFailed(f"endpoint {name} returned an invalid response for {image.key}: {body[:200]!r}")
    return answer


def check_capture(
    installation: Installation, version: ModelVersion, inference_id: str, progress: Log, warn: Log
) -> None:
    """Looks for the capture record of a smoke test. One that comes late is a warning: on AWS it takes minutes."""
    prefix = capture_prefix(installation.endpoint, version.name)
    since = utc_now() - timedelta(seconds=settings().endpoint_max_seconds)
    captured = look_until(
        bool,
        lambda: find_record(installation.bucket, prefix, inference_id, since),
        seconds=settings().smoke_capture_seconds,
        every=CAPTURE_POLL_SECONDS,
    )
    if captured:
        progress(f"the inferences of {version.name} are captured")
    else:
        warn(f"no capture record of {inference_id} yet; look below s3://{installation.bucket}/{prefix}")


def find_record(bucket: str, prefix: str, inference_id: str, since: datetime) -> bool:
    """Whether capture files of the hours since then, below a version's prefix, mention an inference id."""
    needle = json.dumps(inference_id).encode()
    hour = datetime.now(UTC)
    while hour >= since.replace(minute=0, second=0, microsecond=0):
        for key in storage.list_etags(bucket, f"{prefix}{hour:%Y/%m/%d/%H}/"):
            if needle in (storage.get(bucket, key) or b""):
                return True
        hour -= timedelta(hours=1)
    return False
