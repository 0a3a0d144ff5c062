"""How far a model's confidence can be believed: temperature scaling, calibration error and Brier score.

Pure functions of arrays. Probabilities are (n, num_classes), labels (n,) indices of classes, confidence (n,) the
probability of the predicted class, correct (n,) bool.
"""

from collections.abc import Callable

import numpy as np
from scipy.optimize import minimize_scalar

BINS = 15
RESAMPLES = 1000


def scale(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Softmax of the log-probabilities over the temperature (Guo et al. 2017, eq. 9); the order of classes stays."""
    logits = np.log(np.clip(probabilities.astype(float), 1e-12, 1)) / temperature
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    scaled: np.ndarray = exponents / exponents.sum(axis=1, keepdims=True)
    return scaled


def fit_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The temperature in [0.1, 10] with the smallest negative log-likelihood; 1 for n = 0."""
    if not len(labels):
        return 1.0

    def loss(log_temperature: float) -> float:
        return negative_log_likelihood(scale(probabilities, float(np.exp(log_temperature))), labels)

    return float(np.exp(minimize_scalar(loss, bounds=(np.log(0.1), np.log(10)), method="bounded").x))


def negative_log_likelihood(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean of -log of the probability that the right class was given."""
    return float(-np.log(np.clip(probabilities[np.arange(len(labels)), labels], 1e-12, 1)).mean())


def brier_score(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean squared distance between probabilities and the one-hot label, summed over classes (Brier 1950): 0 to 2."""
    return float(((probabilities - np.eye(probabilities.shape[1])[labels]) ** 2).sum(axis=1).mean())


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> float:
    """Gap between confidence and accuracy, averaged over equal-width bins of confidence (Guo et al. 2017, eq. 5).

    In [0, 1]; nan for n = 0.
    """
    if not len(confidence):
        return float("nan")
    index = np.minimum((confidence * bins).astype(int), bins - 1)
    gap = np.bincount(index, weights=confidence - correct, minlength=bins)
    return float(np.abs(gap).sum() / len(confidence))


def calibrated_errors(confidence: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> np.ndarray:
    """Calibration errors (resamples,) that a perfectly calibrated model shows by chance at these confidences."""
    generator = np.random.default_rng(seed)
    return np.array(
        [
            expected_calibration_error(confidence, generator.random(len(confidence)) < confidence)
            for _ in range(resamples)
        ]
    )


def calibrated_briers(probabilities: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> np.ndarray:
    """Brier scores (resamples,) if each label were drawn from the model's own probabilities."""
    generator = np.random.default_rng(seed)
    edges = probabilities.cumsum(axis=1)[:, :-1]
    return np.array(
        [brier_score(probabilities, (generator.random((len(edges), 1)) > edges).sum(axis=1)) for _ in range(resamples)]
    )


def bootstrap_interval(
    statistic: Callable[..., float], *columns: np.ndarray, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """95 % percentile interval of a statistic of columns that are resampled together (Efron 1979)."""
    generator = np.random.default_rng(seed)
    n = len(columns[0])
    values = []
    for _ in range(resamples):
        rows = generator.integers(0, n, n)
        values.append(statistic(*(column[rows] for column in columns)))
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
