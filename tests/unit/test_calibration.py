"""The classifier's calibration against values worked out by hand or by simulation."""

import sys

import numpy as np
import pytest

from local_aws.config import ROOT
from tasks.report.metrics import calibration_errors_by_chance

sys.path.insert(0, str(ROOT / "classifier"))
import calibration


def drawn(n: int, sharpness: float, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (n, 2) and labels that were drawn from them before their logits were multiplied by `sharpness`."""
    generator = np.random.default_rng(seed)
    truth = generator.uniform(0.5, 1, n)
    labels = (generator.random(n) > truth).astype(int)
    logits = np.log(truth / (1 - truth)) * sharpness
    first = 1 / (1 + np.exp(-logits))
    return np.stack([first, 1 - first], axis=1), labels


@pytest.mark.parametrize("sharpness", [0.5, 1, 3])
def test_the_temperature_undoes_over_and_underconfidence(sharpness: float) -> None:
    probabilities, labels = drawn(20_000, sharpness)
    assert calibration.fit_temperature(probabilities, labels) == pytest.approx(sharpness, rel=0.1)


def test_scaling_keeps_order_and_sum() -> None:
    probabilities = np.array([[0.7, 0.2, 0.1], [0.0, 1.0, 0.0]])
    scaled = calibration.scale(probabilities, 2)
    assert scaled.sum(axis=1) == pytest.approx([1, 1])
    assert (scaled.argsort(axis=1) == probabilities.argsort(axis=1)).all()
    assert scaled[0] == pytest.approx(np.sqrt(probabilities[0]) / np.sqrt(probabilities[0]).sum())


def test_calibration_error_by_hand() -> None:
    confidence = np.array([0.95, 0.95, 0.55, 0.55])
    correct = np.array([True, True, True, False])
    # Two bins of two: |1 - 0.95| and |0.5 - 0.55|, each with half of the weight.
    assert calibration.expected_calibration_error(confidence, correct) == pytest.approx(0.05)
    assert np.isnan(calibration.expected_calibration_error(np.array([]), np.array([])))
    assert calibration.expected_calibration_error(np.array([1.0]), np.array([True])) == 0


def test_brier_by_hand() -> None:
    probabilities = np.array([[0.8, 0.2], [0.5, 0.5]])
    assert calibration.brier_score(probabilities, np.array([0, 1])) == pytest.approx((0.08 + 0.5) / 2)


def test_a_calibrated_model_lies_within_what_chance_does() -> None:
    probabilities, labels = drawn(1000, 1)
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    by_chance = calibration.calibrated_errors(confidence)
    assert calibration.expected_calibration_error(confidence, correct) < np.percentile(by_chance, 99)
    sharp, _ = drawn(1000, 3)
    wrong = calibration.expected_calibration_error(sharp.max(axis=1), correct)
    assert wrong > np.percentile(calibration.calibrated_errors(sharp.max(axis=1)), 99)
    briers = calibration.calibrated_briers(probabilities)
    assert np.percentile(briers, 1) < calibration.brier_score(probabilities, labels) < np.percentile(briers, 99)


def test_the_bootstrap_interval_of_a_mean_is_the_known_one() -> None:
    values = np.random.default_rng(1).normal(size=400)
    low, high = calibration.bootstrap_interval(lambda column: float(column.mean()), values)
    assert high - low == pytest.approx(2 * 1.96 / 20, rel=0.15)


@pytest.mark.parametrize("n", [80, 1000])
def test_the_report_and_the_gate_agree_on_what_chance_does(n: int) -> None:
    """The gate runs where tasks/ is not and draws each answer; the report's time must not grow with n."""
    confidence = np.random.default_rng(2).uniform(0.5, 1, n)
    drawn_one_by_one = float(np.percentile(calibration.calibrated_errors(confidence), 99))
    by_chance = float(np.percentile(calibration_errors_by_chance(confidence), 99))
    assert by_chance == pytest.approx(drawn_one_by_one, rel=0.1)
