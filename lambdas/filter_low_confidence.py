"""Compares the confidence of the predicted class with the threshold; the state machine acts on the result.

Event: {"bucket", "key", "inference_id", "inferences"}. Result: the event with predicted_class, confidence, threshold
and meets_threshold (confidence >= threshold).
"""

import json
import logging
import math
import os
from typing import Any

logger = logging.getLogger()
logger.setLevel(logging.INFO)


class InvalidInput(Exception):
    """The event lacks a field."""


class InvalidInferences(Exception):
    """The inferences are not one probability per class."""


def handler(event: Any, context: Any) -> dict[str, Any]:
    classes: list[str] = os.environ["CLASSES"].split(",")
    threshold = float(os.environ["THRESHOLD"])
    inferences = _checked(event, len(classes))
    confidence = max(inferences)
    result = {
        "bucket": event["bucket"],
        "key": event["key"],
        "inference_id": event["inference_id"],
        "inferences": inferences,
        "predicted_class": classes[inferences.index(confidence)],
        "confidence": confidence,
        "threshold": threshold,
        "meets_threshold": confidence >= threshold,
    }
    logger.info(json.dumps(result))
    return result


def _checked(event: Any, classes: int) -> list[float]:
    fields = ("bucket", "key", "inference_id")
    if not isinstance(event, dict) or not all(isinstance(event.get(field), str) for field in fields):
        raise InvalidInput(f"expected an object with the strings {', '.join(fields)} and the list inferences")
    inferences = event.get("inferences")
    if not isinstance(inferences, list) or len(inferences) != classes:
        raise InvalidInferences(f"expected {classes} probabilities, one per class, got {inferences!r}")
    for probability in inferences:
        is_number = isinstance(probability, int | float) and not isinstance(probability, bool)
        if not is_number or not math.isfinite(probability) or not 0 <= probability <= 1:
            raise InvalidInferences(f"{probability!r} is not a probability")
    return inferences
