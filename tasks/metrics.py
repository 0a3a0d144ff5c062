"""Figures of an evaluation's table: pure functions of columns, no AWS and no Prefect."""

import math
from dataclasses import dataclass

import pandas as pd


@dataclass(frozen=True)
class Figures:
    """Counts and shares of captured inferences. Shares are None where there is nothing to divide by."""

    captured: int
    above_threshold: int
    below_threshold: int
    coverage: float | None
    accuracy: float | None
    accepted_accuracy: float | None


def figures(table: pd.DataFrame, threshold: float) -> Figures:
    """table: columns confidence in [0, 1] and correct (bool), one row an inference. threshold in [0, 1].

    Confidence >= threshold is accepted. Raises ValueError for a confidence or threshold outside [0, 1].
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold {threshold} is outside [0, 1]")
    if len(table) and not table["confidence"].between(0, 1).all():
        raise ValueError("a confidence is outside [0, 1]")
    accepted = table[table["confidence"] >= threshold]
    return Figures(
        captured=len(table),
        above_threshold=len(accepted),
        below_threshold=len(table) - len(accepted),
        coverage=_share(len(accepted), len(table)),
        accuracy=_share(int(table["correct"].sum()), len(table)),
        accepted_accuracy=_share(int(accepted["correct"].sum()), len(accepted)),
    )


def wilson_interval(successes: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Score interval of a share (Wilson 1927); (0, 1) for n = 0. z is the normal quantile, by default for 95 %."""
    if n == 0:
        return 0.0, 1.0
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return centre - half, centre + half


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
