"""Figures of an evaluation's table: pure functions of columns, no AWS and no Prefect.

confidence is the probability of the predicted class, (n,) in [0, 1]; correct is (n,) bool; a threshold accepts
confidence >= itself, unless the outlier score says that the image is of no class. Shares are None, and arrays empty, if
there is nothing to divide by.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from tasks.answers import OUTLIER_LIMIT
from tasks.run import share

BINS = 15
# 97.5 % quantile of the normal distribution, for intervals of 95 %.
Z = 1.959964


@dataclass(frozen=True)
class Figures:
    """Counts and shares of captured images; accuracies of the labelled ones among them.

    above_threshold, below_threshold: of those that are of a class; not_a_class: the others. accepted_labelled: those
    that are accepted and whose label is known, of which accepted_accuracy is.
    """

    captured: int
    labelled: int
    above_threshold: int
    below_threshold: int
    not_a_class: int
    accepted_labelled: int
    coverage: float | None
    accuracy: float | None
    accepted_accuracy: float | None


@dataclass(frozen=True)
class Estimate:
    """A share with its 95 % interval."""

    value: float
    low: float
    high: float


def figures(table: pd.DataFrame, threshold: float) -> Figures:
    """table: columns confidence in [0, 1], outlier_score (null if the model tells none), label (null if unknown) and
    correct (bool). threshold in [0, 1].

    Raises ValueError for a confidence or threshold outside [0, 1].
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold {threshold} is outside [0, 1]")
    if len(table) and not table["confidence"].between(0, 1).all():
        raise ValueError("a confidence is outside [0, 1]")
    known, correct, outlier = table["label"].notna(), table["correct"], is_outlier(table)
    above = (table["confidence"] >= threshold) & ~outlier
    accepted, of_no_class = int(above.sum()), int(outlier.sum())
    return Figures(
        captured=len(table),
        labelled=int(known.sum()),
        above_threshold=accepted,
        below_threshold=len(table) - accepted - of_no_class,
        not_a_class=of_no_class,
        accepted_labelled=int((known & above).sum()),
        coverage=share(accepted, len(table)),
        accuracy=share(int((known & correct).sum()), int(known.sum())),
        accepted_accuracy=share(int((known & correct & above).sum()), int((known & above).sum())),
    )


def is_outlier(table: pd.DataFrame) -> "pd.Series[bool]":
    """Mask of the images of no class; none of those of a model that tells no outlier score."""
    return table["outlier_score"].astype(float).gt(OUTLIER_LIMIT)


def offered_confidence(table: pd.DataFrame) -> np.ndarray:
    """Confidences (n,) as a threshold sees them: -1 of what is of no class, which none accepts."""
    found: np.ndarray = table["confidence"].mask(is_outlier(table), -1.0).to_numpy(dtype=float)
    return found


def wilson_interval(successes: int, n: int, z: float = Z) -> tuple[float, float]:
    """Score interval of a share (Wilson 1927); (0, 1) for n = 0. z is the normal quantile, by default for 95 %."""
    if n == 0:
        return 0.0, 1.0
    observed = successes / n
    centre = (observed + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(observed * (1 - observed) / n + z * z / (4 * n * n))
    return centre - half, centre + half


def accuracy_lower_bound(errors: int, n: int, level: float) -> float | None:
    """One-sided exact lower bound of an accuracy (Clopper and Pearson 1934); None for n = 0.

    The smallest accuracy at which so few errors of n would be seen with more than probability 1 - level.
    """
    if n == 0:
        return None
    low, high = 0.0, 1 - errors / n
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if _at_most(errors, n, 1 - middle) <= 1 - level else (low, middle)
    return low


def labels_needed(errors: int, target: float, level: float) -> int:
    """The fewest labelled images of which so many errors show the target accuracy, by the same bound."""
    low, high = errors, errors + 1
    while _at_most(errors, high, 1 - target) > 1 - level:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _at_most(errors, middle, 1 - target) > 1 - level else (low, middle)
    return high


def _at_most(errors: int, n: int, error_rate: float) -> float:
    """P(Binomial(n, error_rate) <= errors)."""
    if not 0 < error_rate < 1 or errors >= n:
        return float(error_rate <= 0 or errors >= n)
    counts = np.arange(1, errors + 1)
    steps = np.log((n - counts + 1) / counts) + math.log(error_rate / (1 - error_rate))
    logarithms = n * math.log1p(-error_rate) + np.concatenate([[0.0], steps.cumsum()])
    return float(np.exp(logarithms).sum())


def bin_of(confidence: np.ndarray, bins: int = BINS) -> np.ndarray:
    """Number (n,) of the equal-width bin of [0, 1] that each confidence is in; 1 is in the last one."""
    index: np.ndarray = np.minimum((confidence * bins).astype(int), bins - 1)
    return index


def reliability(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> pd.DataFrame:
    """A row per equal-width bin of confidence that has any: low, high, n, confidence (mean), accuracy, its interval.

    accuracy_low and accuracy_high are Wilson's at 95 %.
    """
    index = bin_of(confidence, bins)
    n = np.bincount(index, minlength=bins)
    right = np.bincount(index, weights=correct, minlength=bins)
    total = np.bincount(index, weights=confidence, minlength=bins)
    rows = []
    for number in np.flatnonzero(n):
        low, high = wilson_interval(int(right[number]), int(n[number]))
        rows.append(
            {
                "low": number / bins,
                "high": (number + 1) / bins,
                "n": int(n[number]),
                "confidence": float(total[number] / n[number]),
                "accuracy": float(right[number] / n[number]),
                "accuracy_low": low,
                "accuracy_high": high,
            }
        )
    columns = ["low", "high", "n", "confidence", "accuracy", "accuracy_low", "accuracy_high"]
    return pd.DataFrame(rows, columns=columns)


def calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> float | None:
    """Gap between confidence and accuracy, averaged over equal-width bins of confidence (Guo et al. 2017, eq. 5)."""
    if not len(confidence):
        return None
    index = bin_of(confidence, bins)
    gap = np.bincount(index, weights=confidence - correct, minlength=bins)
    return float(np.abs(gap).sum() / len(confidence))


def calibration_errors_by_chance(
    confidence: np.ndarray, seed: int = 0, resamples: int = 10_000, bins: int = BINS
) -> np.ndarray:
    """Calibration errors (resamples,) that a perfectly calibrated model shows at these confidences; none for n = 0.

    By simulation: the number of right answers in a bin is drawn as a binomial of its mean confidence, which varies a
    little more than the sum of its confidences' Bernoulli trials; so the time does not depend on n.
    """
    if not len(confidence):
        return np.array([])
    index = bin_of(confidence, bins)
    n = np.bincount(index, minlength=bins)
    expected = np.bincount(index, weights=confidence, minlength=bins)
    rate = np.clip(expected / np.maximum(n, 1), 0, 1)
    right = np.random.default_rng(seed).binomial(n, rate, (resamples, bins))
    errors: np.ndarray = np.abs(right - expected).sum(axis=1) / len(confidence)
    return errors


def p_value(observed: float, by_chance: np.ndarray) -> float:
    """How likely chance is to show what was observed or more, by values (n,) that it showed.

    (1 + those at least as large) / (1 + n), which is never 0 (Phipson and Smyth 2010). Equal values may differ in their
    last bits if they were added up in another order.
    """
    return float((1 + (by_chance >= observed * (1 - 1e-9)).sum()) / (1 + len(by_chance)))


def same_share_p(first: int, n: int, second: int, m: int) -> float:
    """Fisher's exact test, two-sided: how likely shares as far apart as first of n and second of m are if they are one.

    The sum of the probabilities of all tables that are no likelier than this one.
    """
    together = first + second
    low, high = max(0, together - m), min(n, together)
    if low == high:
        return 1.0
    counts = np.arange(low, high)
    steps = np.log((together - counts) / (counts + 1)) + np.log((n - counts) / (m - together + counts + 1))
    logarithms = np.concatenate([[0.0], steps.cumsum()])
    probability = np.exp(logarithms - logarithms.max())
    likely = probability <= probability[first - low] * (1 + 1e-7)
    return float(probability[likely].sum() / probability.sum())


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values such that rejecting those under a level has that probability of any false rejection (Holm 1979)."""
    n, adjusted, largest = len(p_values), [0.0] * len(p_values), 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (n - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def coverage_curve(confidence: np.ndarray, correct: np.ndarray) -> pd.DataFrame:
    """threshold, coverage and accuracy of what is accepted: a row per confidence that occurs, the highest first."""
    order = np.argsort(-confidence, kind="stable")
    ranked, right = confidence[order], correct[order].cumsum()
    accepted = np.arange(1, len(ranked) + 1)
    # Equal confidences are accepted together.
    last = np.append(ranked[1:] != ranked[:-1], True) if len(ranked) else np.zeros(0, dtype=bool)
    return pd.DataFrame(
        {
            "threshold": ranked[last],
            "coverage": accepted[last] / max(len(ranked), 1),
            "accuracy": right[last] / accepted[last],
        }
    )


def threshold_sweep(confidence: np.ndarray, correct: np.ndarray, thresholds: np.ndarray) -> pd.DataFrame:
    """A row per threshold: accepted (n), coverage, accuracy of what is accepted, and errors per 1,000 inferences.

    errors_per_1000 counts wrong ones that are accepted, of all inferences. nan if nothing is accepted.
    """
    order = np.argsort(confidence, kind="stable")
    ranked, n = confidence[order], len(confidence)
    right_from = np.append(correct[order][::-1].cumsum()[::-1], 0)
    first = np.searchsorted(ranked, thresholds, side="left")
    accepted, right = n - first, right_from[first]
    with np.errstate(invalid="ignore", divide="ignore"):
        return pd.DataFrame(
            {
                "threshold": thresholds,
                "accepted": accepted,
                "coverage": accepted / n if n else np.full(len(thresholds), np.nan),
                "accuracy": right / accepted,
                "errors_per_1000": 1000 * (accepted - right) / n if n else np.full(len(thresholds), np.nan),
            }
        )


def confusion(label: pd.Series, predicted: pd.Series, classes: tuple[str, ...]) -> pd.DataFrame:
    """Counts, a row per label and a column per predicted class, in the order of the classes; others are left out."""
    rows, columns = (
        pd.Categorical(series, categories=list(classes)).codes.astype(int) for series in (label, predicted)
    )
    known = (rows >= 0) & (columns >= 0)
    counts = np.bincount(rows[known] * len(classes) + columns[known], minlength=len(classes) ** 2)
    return pd.DataFrame(counts.reshape(len(classes), -1), index=list(classes), columns=list(classes))


def estimated_accuracy(confidence: np.ndarray) -> Estimate | None:
    """Accuracy as confidence alone expects it, if it is calibrated; the interval is what chance does at this n.

    The mean confidence of the predicted class: what NannyML calls confidence-based performance estimation. No label is
    looked at, so a gap to the true accuracy says that the calibration no longer holds.
    """
    if not len(confidence):
        return None
    value = float(confidence.mean())
    half = Z * math.sqrt(float((confidence * (1 - confidence)).sum())) / len(confidence)
    return Estimate(value, max(0.0, value - half), min(1.0, value + half))
