"""Compares confidence and outlier score with their limits; the state machine acts on the result.

Event: {"bucket", "key", "sent_as", "inference_id", "inferences", "outlier_score"}, sent_as a text or null, the last a
number or null. Result: the event with predicted_class, confidence, threshold, is_a_class (no outlier_score over 1) and
meets_threshold (confidence >= threshold).
"""

import json
import logging
import math
import os
from typing import Any

# Models tell outlier scores in units of their own limit.
OUTLIER_LIMIT = 1.0

logger = logging.getLogger()
logger.setLevel(logging.INFO)


class InvalidInput(Exception):
    """The event lacks a field."""


class InvalidInferences(Exception):
    """The inferences are not one probability per class, or the outlier score is no number of 0 or more."""


def handler(event: Any, context: Any) -> dict[str, Any]:
    classes: list[str] = os.environ["CLASSES"].split(",")
    threshold = float(os.environ["THRESHOLD"])
    inferences, outlier_score = _checked(event, len(classes))
    confidence = max(inferences)
    result = {
        "bucket": event["bucket"],
        "key": event["key"],
        "sent_as": event.get("sent_as"),
        "inference_id": event["inference_id"],
        "inferences": inferences,
        "outlier_score": outlier_score,
        "predicted_class": classes[inferences.index(confidence)],
        "confidence": confidence,
        "threshold": threshold,
        "is_a_class": outlier_score is None or outlier_score <= OUTLIER_LIMIT,
        "meets_threshold": confidence >= threshold,
    }
    logger.info(json.dumps(result))
    return result


def _checked(event: Any, classes: int) -> tuple[list[float], float | None]:
    fields = ("bucket", "key", "inference_id")
    if not isinstance(event, dict) or not all(isinstance(event.get(field), str) for field in fields):
        raise InvalidInput(f"expected an object with the strings {', '.join(fields)} and the list inferences")
    inferences = event.get("inferences")
    if not isinstance(inferences, list) or len(inferences) != classes:
        raise InvalidInferences(f"expected {classes} probabilities, one per class, got {inferences!r}")
    for probability in inferences:
        if not _is_number(probability) or not 0 <= probability <= 1:
            raise InvalidInferences(f"{probability!r} is not a probability")
    score = event.get("outlier_score")
    if score is not None and (not _is_number(score) or score < 0):
        raise InvalidInferences(f"{score!r} is not an outlier score")
    return inferences, score


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
