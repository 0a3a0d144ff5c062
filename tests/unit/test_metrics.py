"""The report's figures against those of scikit-learn and scipy, on random input."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import beta, binomtest, fisher_exact, ks_2samp
from sklearn.calibration import calibration_curve
from sklearn.metrics import confusion_matrix

from tasks.report.drift import FINE, LEAST, drift, histogram
from tasks.report.metrics import (
    accuracy_lower_bound,
    calibration_error,
    calibration_errors_by_chance,
    confusion,
    coverage_curve,
    estimated_accuracy,
    figures,
    holm,
    labels_needed,
    p_value,
    reliability,
    same_share_p,
    threshold_sweep,
    wilson_interval,
)

SEEDS = range(5)


def sample(seed: int, n: int = 3000) -> tuple[np.ndarray, np.ndarray]:
    """Confidences with ties, and whether each was right, as a calibrated model's would be."""
    generator = np.random.default_rng(seed)
    confidence = np.round(0.5 + 0.5 * generator.beta(3, 1, n), 3)
    return confidence, generator.random(n) < confidence


@pytest.mark.parametrize("seed", SEEDS)
def test_reliability_is_that_of_scikit_learn(seed: int) -> None:
    confidence, correct = sample(seed)
    confidence = confidence - 0.0003  # none on the edge of a bin, which belongs to either
    bins = reliability(confidence, correct, bins=10)
    accuracy, mean = calibration_curve(correct, confidence, n_bins=10)
    np.testing.assert_allclose(bins["accuracy"], accuracy)
    np.testing.assert_allclose(bins["confidence"], mean)
    assert bins["n"].sum() == len(confidence)


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (3, 10), (97, 100), (99_999, 100_000)])
def test_the_interval_is_that_of_scipy(successes: int, n: int) -> None:
    expected = binomtest(successes, n).proportion_ci(method="wilson")
    assert wilson_interval(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_confusion_is_that_of_scikit_learn(seed: int) -> None:
    classes = ("bicycle", "motorcycle", "pickup_truck")
    generator = np.random.default_rng(seed)
    label, predicted = (pd.Series(generator.choice(classes, 500)) for _ in range(2))
    expected = confusion_matrix(label, predicted, labels=list(classes))
    np.testing.assert_array_equal(confusion(label, predicted, classes).to_numpy(), expected)


def test_a_class_that_nobody_saw_has_a_row_and_a_column() -> None:
    counts = confusion(pd.Series(["a"]), pd.Series(["a"]), ("a", "b"))
    assert counts.to_numpy().tolist() == [[1, 0], [0, 0]]


@pytest.mark.parametrize("seed", SEEDS)
def test_curve_and_sweep_are_the_figures_at_each_threshold(seed: int) -> None:
    confidence, correct = sample(seed, 400)
    table = pd.DataFrame({"confidence": confidence, "outlier_score": None, "correct": correct, "label": "bicycle"})
    curve = coverage_curve(confidence, correct)
    assert curve["threshold"].is_monotonic_decreasing
    sweep = threshold_sweep(confidence, correct, curve["threshold"].to_numpy())
    for position in range(0, len(curve), 17):
        found = figures(table, float(curve["threshold"][position]))
        assert (
            curve["coverage"][position] == pytest.approx(found.coverage) == pytest.approx(sweep["coverage"][position])
        )
        assert curve["accuracy"][position] == pytest.approx(found.accepted_accuracy)
        assert sweep["accuracy"][position] == pytest.approx(found.accepted_accuracy)
        wrong = ((confidence >= curve["threshold"][position]) & ~correct).sum()
        assert sweep["errors_per_1000"][position] == pytest.approx(1000 * wrong / len(confidence))


def test_a_calibrated_model_is_within_chance_about_as_often_as_it_says() -> None:
    within = 0
    for seed in range(200):
        confidence, correct = sample(seed, 500)
        error = calibration_error(confidence, correct)
        assert error is not None
        within += p_value(error, calibration_errors_by_chance(confidence)) > 0.1
    assert 0.82 < within / 200 < 0.97


def test_an_overconfident_model_is_beyond_chance() -> None:
    confidence, correct = sample(1)
    higher = np.sqrt(confidence)
    error = calibration_error(higher, correct)
    assert error is not None
    assert p_value(error, calibration_errors_by_chance(higher)) < 0.01


def test_holm_is_what_is_worked_out_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


@pytest.mark.parametrize(
    ("errors", "n", "level"), [(0, 230, 0.9), (3, 500, 0.95), (0, 1, 0.9), (50, 50, 0.9), (700, 40_000, 0.99)]
)
def test_the_lower_bound_is_that_of_the_beta_distribution(errors: int, n: int, level: float) -> None:
    expected = beta.ppf(1 - level, n - errors, errors + 1) if errors < n else 0
    assert accuracy_lower_bound(errors, n, level) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("first", "n", "second", "m"),
    [(0, 30, 0, 30), (1395, 1400, 196, 200), (3, 40, 30, 60), (50, 50, 0, 40), (5, 9, 7, 8)],
)
def test_the_comparison_of_shares_is_fishers(first: int, n: int, second: int, m: int) -> None:
    expected = fisher_exact([[first, n - first], [second, m - second]]).pvalue
    assert same_share_p(first, n, second, m) == pytest.approx(expected, rel=1e-6)


def test_a_confident_calibrated_model_is_within_chance_too() -> None:
    """Where few errors are expected, two of them are no rarity."""
    confidence, generator = np.full(200, 0.999), np.random.default_rng(1)
    drawn = calibration_errors_by_chance(confidence)
    beyond = 0
    for _ in range(2000):
        error = calibration_error(confidence, generator.random(200) < confidence)
        assert error is not None
        beyond += p_value(error, drawn) <= 0.005
    assert beyond / 2000 <= 0.006


def test_how_many_labels_show_a_target() -> None:
    assert [labels_needed(errors, 0.99, 0.9) for errors in (0, 1, 2)] == [230, 388, 531]
    for errors in (0, 1, 7):
        enough = labels_needed(errors, 0.95, 0.8)
        bounds = [accuracy_lower_bound(errors, n, 0.8) or 0 for n in (enough - 1, enough)]
        assert bounds[0] < 0.95 <= bounds[1] + 1e-12
    assert accuracy_lower_bound(0, 0, 0.9) is None


def test_estimated_accuracy_holds_the_true_one() -> None:
    confidence, correct = sample(3)
    estimate = estimated_accuracy(confidence)
    assert estimate is not None
    assert estimate.low < correct.mean() < estimate.high


def test_nothing_has_no_figures() -> None:
    none = np.array([])
    assert calibration_error(none, none) is None and not len(calibration_errors_by_chance(none))
    assert estimated_accuracy(none) is None
    assert reliability(none, none).empty
    assert coverage_curve(none, none).empty
    assert threshold_sweep(none, none, np.array([0.5]))["accepted"].tolist() == [0]


@pytest.mark.parametrize("seed", SEEDS)
def test_ks_is_that_of_scipy(seed: int) -> None:
    first, second = sample(seed)[0], sample(seed + 100)[0] ** 1.1
    found = drift(histogram(first), histogram(second))
    assert found is not None
    assert found.ks == pytest.approx(ks_2samp(first, second).statistic, abs=2 / FINE)


def test_chance_drifts_as_seldom_as_it_says_and_a_change_is_seen() -> None:
    drifted = 0
    for seed in range(200):
        found = drift(
            histogram(sample(seed, 300)[0]), histogram(sample(seed + 1000, 200)[0]), level=0.95, resamples=400
        )
        assert found is not None
        drifted += min(found.psi_p, found.ks_p) <= 0.05
    assert 0.02 < drifted / 200 < 0.15  # two tests at 5 % each
    found = drift(histogram(sample(1)[0]), histogram(sample(2)[0] ** 2))
    assert found is not None and max(found.psi_p, found.ks_p) < 0.001


def test_few_confidences_say_nothing() -> None:
    assert drift(histogram(np.full(LEAST - 1, 0.9)), histogram(np.full(1000, 0.1))) is None


def test_confidences_that_are_all_alike_do_not_drift() -> None:
    found = drift(histogram(np.ones(100)), histogram(np.ones(50)))
    assert found is not None
    assert found.psi == pytest.approx(0, abs=0.05)
    assert (found.ks, found.ks_p) == (0.0, 1.0) and found.psi_p > 0.05
