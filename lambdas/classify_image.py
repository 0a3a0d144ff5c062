"""Sends one image to the SageMaker endpoint and passes its inferences on, without the image.

Event: {"bucket", "key", "image_data", "sent_as", "inference_id"}. Result: {"bucket", "key", "sent_as", "inference_id",
"inferences", "outlier_score"}: how far the image is from the training images, over 1 for one of no class; null of a
model that tells none.
"""

import base64
import binascii
import json
import logging
import os
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectTimeoutError, EndpointConnectionError, HTTPClientError

MAX_INFERENCE_ID = 64
# As SageMaker's own k-NN is asked for more than its label
# (https://docs.aws.amazon.com/sagemaker/latest/dg/kNN-inference-formats.html); otherwise a model answers the list
# alone.
ACCEPT = "application/json; verbose=true"
# What may be gone a few seconds later; the state machine tries again.
PASSING = {
    "ServiceUnavailable",
    "InternalFailure",
    "InternalDependencyException",
    "ThrottlingException",
    "ModelNotReadyException",
}
# The container had no worker for the request, or gave no answer: an endpoint can be InService before its model is up.
NO_WORKER = {0, 503}

logger = logging.getLogger()
logger.setLevel(logging.INFO)

# A timed-out inference is billed and captured, so botocore tries again only once.
runtime = boto3.client(
    "sagemaker-runtime",
    config=Config(connect_timeout=2, read_timeout=10, retries={"mode": "standard", "total_max_attempts": 2}),
)


class InvalidInput(Exception):
    """The event lacks a field, or its image_data is not base64."""


class UnreadableImage(Exception):
    """The model could not read the image (a 4xx of the model's own)."""


class ModelError(Exception):
    """The model failed, or answered with something that is not a list of probabilities."""


class EndpointNotFound(Exception):
    """There is no such endpoint, or it is not in service."""


class EndpointUnavailable(Exception):
    """The endpoint refused for now, or could not be reached in time."""


def handler(event: Any, context: Any) -> dict[str, Any]:
    image, inference_id = _request(event)
    try:
        response = runtime.invoke_endpoint(
            EndpointName=os.environ["ENDPOINT_NAME"],
            ContentType="application/x-image",
            Accept=ACCEPT,
            InferenceId=inference_id,
            Body=image,
        )
    except runtime.exceptions.ModelError as error:
        status, message = error.response["OriginalStatusCode"], error.response["OriginalMessage"]
        if status in NO_WORKER:
            kind: type[Exception] = EndpointUnavailable
        else:
            kind = UnreadableImage if 400 <= status < 500 else ModelError
        # The model's own words are in its first line; what follows is the container's traceback.
        raise kind(f"the model answered {status}: {(message.splitlines() or [''])[0][:500]}") from None
    except ClientError as error:
        code, message = error.response["Error"]["Code"], error.response["Error"]["Message"]
        if code == "ValidationError":
            raise EndpointNotFound(message) from error
        if code in PASSING or error.response["ResponseMetadata"].get("HTTPStatusCode", 0) >= 500:
            raise EndpointUnavailable(f"{code}: {message}") from error
        raise
    except (HTTPClientError, EndpointConnectionError, ConnectTimeoutError) as error:
        raise EndpointUnavailable(str(error)) from error
    answer = _answer(response["Body"].read())
    logger.info("classified %s as %s", inference_id, answer)
    kept = {"bucket": event["bucket"], "key": event["key"], "sent_as": event.get("sent_as")}
    return {**kept, "inference_id": inference_id, **answer}


def _request(event: Any) -> tuple[bytes, str]:
    fields = ("bucket", "key", "image_data", "inference_id")
    if not isinstance(event, dict) or not all(isinstance(event.get(field), str) for field in fields):
        raise InvalidInput(f"expected an object with the strings {', '.join(fields)}")
    if not 1 <= len(event["inference_id"]) <= MAX_INFERENCE_ID:
        raise InvalidInput(f"inference_id must have 1 to {MAX_INFERENCE_ID} characters; it is the execution's name")
    try:
        return base64.b64decode(event["image_data"], validate=True), event["inference_id"]
    except binascii.Error as error:
        raise InvalidInput(f"image_data is not base64: {error}") from error


def _answer(body: bytes) -> dict[str, Any]:
    """inferences and outlier_score of a verbose answer, or of a plain list of probabilities."""
    try:
        answer = json.loads(body)
        verbose = isinstance(answer, dict)
        score = answer.get("outlier_score") if verbose else None
        return {
            "inferences": [float(probability) for probability in (answer["probabilities"] if verbose else answer)],
            "outlier_score": None if score is None else float(score),
        }
    except (ValueError, TypeError, KeyError) as error:
        raise ModelError(f"the model's answer is not a list of probabilities: {body[:200]!r}") from error
