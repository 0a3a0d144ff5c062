"""How far two samples of confidences are apart: PSI, KS and coverage, each with what chance shows at this n.

Pure functions of histograms over [0, 1], so that the time does not depend on the number of confidences.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from tasks.report.metrics import bin_of, p_value, same_share_p

# For KS, fine enough that binning does not matter; PSI is taken over ten equally full bins of the baseline.
FINE = 1000
COARSE = 10
# Fewer in either sample say nothing.
LEAST = 30


@dataclass(frozen=True)
class Drift:
    """psi and ks, each with the value that chance stays under with probability `level`, and with its p-value."""

    n_baseline: int
    n_current: int
    psi: float
    psi_by_chance: float
    psi_p: float
    ks: float
    ks_by_chance: float
    ks_p: float
    level: float


@dataclass(frozen=True)
class CoverageChange:
    """Shares at or above the threshold, and the difference that chance stays under with probability `level`.

    p: how likely chance is to make a difference like this, or a larger one.
    """

    baseline: float
    current: float
    by_chance: float
    p: float
    level: float


def histogram(confidence: np.ndarray) -> np.ndarray:
    """Counts (FINE,) over equal bins of [0, 1]."""
    index = bin_of(confidence, FINE)
    return np.bincount(index, minlength=FINE)


def score_histogram(scores: np.ndarray) -> np.ndarray:
    """Counts (FINE,) of scores from 0 to infinity, such as outlier scores, with 1 in the middle."""
    return histogram(scores / (1 + scores))


def drift(
    baseline: np.ndarray, current: np.ndarray, level: float = 0.99, seed: int = 0, resamples: int = 3000
) -> Drift | None:
    """Compares two histograms; None if either has fewer than LEAST.

    By chance: all observations are dealt anew into two samples of these sizes (a permutation test). The edges of PSI's
    bins are those of both together and stay.
    """
    n, m = int(baseline.sum()), int(current.sum())
    if min(n, m) < LEAST:
        return None
    pooled = baseline + current
    edges = _edges(pooled)
    there = np.flatnonzero(pooled)
    dealt = np.zeros((resamples, FINE), dtype=pooled.dtype)
    dealt[:, there] = np.random.default_rng(seed).multivariate_hypergeometric(pooled[there], m, resamples)
    drawn = pooled - dealt, dealt
    psi, psi_drawn = float(_psi(baseline[None], current[None], edges)[0]), _psi(*drawn, edges)
    ks, ks_drawn = float(_ks(baseline[None], current[None])[0]), _ks(*drawn)
    return Drift(
        n_baseline=n,
        n_current=m,
        psi=psi,
        psi_by_chance=_quantile(psi_drawn, level),
        psi_p=p_value(psi, psi_drawn),
        ks=ks,
        ks_by_chance=_quantile(ks_drawn, level),
        ks_p=p_value(ks, ks_drawn),
        level=level,
    )


def coverage_change(
    baseline: np.ndarray, current: np.ndarray, threshold: float, level: float = 0.99
) -> CoverageChange | None:
    """Compares the shares of two samples of confidences that reach the threshold: p is that of Fisher's exact test.

    None if either sample has fewer than LEAST. by_chance is that of the two-proportion z-test.
    """
    n, m = len(baseline), len(current)
    if min(n, m) < LEAST:
        return None
    before, now = int((baseline >= threshold).sum()), int((current >= threshold).sum())
    together = (before + now) / (n + m)
    deviation = math.sqrt(together * (1 - together) * (1 / n + 1 / m))
    by_chance = NormalDist().inv_cdf((1 + level) / 2) * deviation
    return CoverageChange(before / n, now / m, by_chance, same_share_p(before, n, now, m), level)


def _quantile(values: np.ndarray, level: float) -> float:
    return float(np.quantile(values, level))


def _edges(counts: np.ndarray) -> np.ndarray:
    """First fine bins of at most COARSE groups with about as many each."""
    wanted = np.arange(1, COARSE) / COARSE * counts.sum()
    return np.unique(np.concatenate([[0], np.searchsorted(counts.cumsum(), wanted) + 1]).clip(max=FINE - 1))


def _psi(baseline: np.ndarray, current: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Population stability index of rows of histograms: sum of (q - p) log(q / p) over the bins.

    Half an observation is added to each bin, so that an empty one does not make it infinite.
    """
    p, q = (np.add.reduceat(counts, edges, axis=1) + 0.5 for counts in (baseline, current))
    p, q = p / p.sum(axis=1, keepdims=True), q / q.sum(axis=1, keepdims=True)
    value: np.ndarray = ((q - p) * np.log(q / p)).sum(axis=1)
    return value


def _ks(baseline: np.ndarray, current: np.ndarray) -> np.ndarray:
    """Largest distance between the distribution functions of rows of histograms (Kolmogorov-Smirnov)."""
    p, q = (counts.cumsum(axis=1) / counts.sum(axis=1, keepdims=True) for counts in (baseline, current))
    value: np.ndarray = np.abs(p - q).max(axis=1)
    return value
