"""Confidence thresholds from which on what is accepted is right at a target, with a stated probability.

An image is accepted if its confidence is at least the threshold. Pure functions of arrays: confidence (n,) of the
predicted class, correct (n,) bool, predicted (n,) indices of classes. Images are independent.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.stats import beta, binom

METHODS = ("monotone", "fixed-sequence")
# Of the images, between two thresholds that a fixed sequence tests.
STEP_SHARE = 0.02


@dataclass(frozen=True)
class Threshold:
    """A confidence threshold, and what it lets through. lower_bound: of the accuracy of what is accepted."""

    value: float
    coverage: float
    accepted_accuracy: float
    lower_bound: float


def recommend_threshold(
    confidence: np.ndarray,
    correct: np.ndarray,
    target: float = 0.99,
    level: float = 0.90,
    method: str = "monotone",
) -> Threshold | None:
    """The smallest threshold that is shown to accept at the target accuracy; None if none is.

    The probability that the accuracy of what the returned threshold accepts is below the target is at most 1 - level.

    monotone: looks at every rank, at one exact binomial level for all of them that is chosen so that crossing it
    anywhere has this probability (`simultaneous_error`). Assumes that errors are no likelier at higher confidence.

    fixed-sequence: assumes nothing about that. Tests thresholds at ranks that are fixed beforehand, from the smallest
    that an error may not spoil, each at the exact binomial level 1 - level, until one fails (Angelopoulos et al. 2021,
    Learn then Test, with fixed-sequence testing).
    """
    n = len(confidence)
    order = np.argsort(-confidence, kind="stable")
    ranked, errors = confidence[order], (~correct[order]).cumsum()
    # Equal confidences are accepted together.
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True)) if n else np.array([], int)
    if method == "monotone":
        allowed = simultaneous_error(n, target, level)
        passed = last[errors[last] <= allowed_errors(n, target, allowed)[last]]
    elif method == "fixed-sequence":
        allowed = 1 - level
        tested = last[np.searchsorted(last, _sequence(n, target, level))]
        failed = errors[tested] > allowed_errors(n, target, allowed)[tested]
        passed = tested[: int(failed.argmax()) if failed.any() else len(tested)]
    else:
        raise ValueError(f"{method!r} is none of {', '.join(METHODS)}")
    return _at(ranked, errors, int(passed[-1]), allowed) if len(passed) else None


def thresholds_by_class(
    confidence: np.ndarray,
    correct: np.ndarray,
    predicted: np.ndarray,
    num_classes: int,
    target: float = 0.99,
    level: float = 0.90,
    method: str = "monotone",
) -> list[Threshold | None]:
    """The same for what is accepted as each class; all of them hold together with probability `level` (Bonferroni)."""
    each = 1 - (1 - level) / num_classes
    return [
        recommend_threshold(confidence[predicted == index], correct[predicted == index], target, each, method)
        for index in range(num_classes)
    ]


def for_every_class(confidence: np.ndarray, correct: np.ndarray, by_class: list[Threshold | None]) -> Threshold | None:
    """The one threshold at which what is accepted as each class is right at the target; None if a class has none.

    It is the largest of `thresholds_by_class` by the method monotone: above its own threshold a class is no less
    accurate only if errors are no likelier at higher confidence. lower_bound: the smallest of the classes'.
    """
    found = [threshold for threshold in by_class if threshold is not None]
    if not found or len(found) < len(by_class):
        return None
    value = max(threshold.value for threshold in found)
    accepted = confidence >= value
    return Threshold(
        value=value,
        coverage=float(accepted.mean()),
        accepted_accuracy=float(correct[accepted].mean()),
        lower_bound=min(threshold.lower_bound for threshold in found),
    )


def simultaneous_error(n: int, target: float, level: float) -> float:
    """The pointwise error probability of exact binomial tests of all first k of n images that has 1 - level in all.

    That is the largest for which the number of errors of n images, each wrong with probability 1 - target, falls to
    what some test allows with probability 1 - level or less.
    """
    return _simultaneous_error(n, target, level)


@lru_cache(maxsize=64)
def _simultaneous_error(n: int, target: float, level: float) -> float:
    low, high = (1 - level) / 100, 1 - level
    if crossing_probability(allowed_errors(n, target, high), 1 - target) <= 1 - level:
        return high
    for _ in range(30):
        middle = float(np.sqrt(low * high))
        if crossing_probability(allowed_errors(n, target, middle), 1 - target) <= 1 - level:
            low = middle
        else:
            high = middle
    return low


def allowed_errors(n: int, target: float, error: float) -> np.ndarray:
    """The most errors (n,) among the first 1 to n images with which an exact test at `error` shows the target.

    -1 where not even none would show it.

    The test of Clopper and Pearson (1934): P(Binomial(k, 1 - target) <= errors) <= error.
    """
    return _allowed_errors(n, target, error)


@lru_cache(maxsize=256)
def _allowed_errors(n: int, target: float, error: float) -> np.ndarray:
    k = np.arange(1, n + 1)
    found = binom.ppf(error, k, 1 - target)
    allowed: np.ndarray = np.where(binom.cdf(found, k, 1 - target) <= error, found, found - 1).astype(int)
    return allowed


def crossing_probability(allowed: np.ndarray, error_rate: float) -> float:
    """That among the first k of n images, each wrong with probability error_rate, there are allowed[k - 1] errors or
    fewer for some k. Exact, by dynamic programming over k and the number of errors.
    """
    most = int(allowed.max(initial=-1))
    if most < 0:
        return 0.0
    # Of `errors` so far, without having crossed; more than `most` never cross.
    probability = np.zeros(most + 1)
    probability[0] = 1.0
    crossed = 0.0
    for limit in allowed:
        wrong = probability[:-1] * error_rate
        probability *= 1 - error_rate
        probability[1:] += wrong
        if limit >= 0:
            crossed += probability[: limit + 1].sum()
            probability[: limit + 1] = 0
    return float(crossed)


def labels_needed(errors: int, target: float, level: float) -> int:
    """The fewest labelled images of which so many errors show the target, at a threshold that was fixed beforehand."""
    low, high = errors, errors + 1
    while binom.cdf(errors, high, 1 - target) > 1 - level:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if binom.cdf(errors, middle, 1 - target) > 1 - level:
            low = middle
        else:
            high = middle
    return high


def _sequence(n: int, target: float, level: float) -> np.ndarray:
    """Indices of the ranks that are tested one after the other."""
    return np.arange(labels_needed(1, target, level) - 1, n, max(1, round(STEP_SHARE * n)))


def _at(ranked: np.ndarray, errors: np.ndarray, index: int, error: float) -> Threshold:
    accepted, wrong = index + 1, int(errors[index])
    return Threshold(
        value=float(ranked[index]),
        coverage=accepted / len(ranked),
        accepted_accuracy=1 - wrong / accepted,
        lower_bound=float(beta.ppf(error, accepted - wrong, wrong + 1)),
    )
