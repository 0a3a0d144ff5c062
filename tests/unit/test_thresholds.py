"""The recommended threshold against values worked out by hand, and against simulated models whose errors are known."""

import json
import sys
from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import binom

from local_aws.config import ROOT
from tasks.report import metrics

sys.path.insert(0, str(ROOT / "classifier"))
import thresholds

# Errors' probability by rank, the highest confidence first, from n and a generator.
PROFILES: dict[str, Callable[[int, np.random.Generator, float], np.ndarray]] = {
    "flat, a little under the target": lambda n, _, rate: np.full(n, rate * 1.001),
    "steep": lambda n, _, rate: np.minimum(rate / 20 * np.exp(7 * np.arange(n) / n), 0.5),
    "a step": lambda n, _, rate: np.where(np.arange(n) < 0.8 * n, rate * 0.99, 0.3),
    "random": lambda n, generator, rate: np.sort(generator.beta(0.3, generator.uniform(2, 30), n)).clip(0, 0.6),
}


def violations(
    profile: Callable[[int, np.random.Generator, float], np.ndarray], n: int, target: float, method: str, runs: int
) -> float:
    """How often what a recommended threshold accepts is less accurate than the target, of so many data sets."""
    generator = np.random.default_rng(n)
    confidence = np.linspace(1, 0.5, n)
    violated = 0
    for _ in range(runs):
        rates = profile(n, generator, 1 - target)
        found = thresholds.recommend_threshold(confidence, generator.random(n) >= rates, target, 0.9, method)
        if found is not None:
            violated += rates[: round(found.coverage * n)].mean() > 1 - target
    return violated / runs


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES.keys())
@pytest.mark.parametrize(("n", "target"), [(200, 0.95), (1000, 0.99), (5000, 0.99)])
@pytest.mark.parametrize("method", thresholds.METHODS)
def test_the_level_holds(
    profile: Callable[[int, np.random.Generator, float], np.ndarray], n: int, target: float, method: str
) -> None:
    runs = 400
    # Three standard deviations above the level.
    assert violations(profile, n, target, method, runs) <= 0.1 + 3 * np.sqrt(0.1 * 0.9 / runs)


def test_a_fixed_sequence_holds_its_level_where_errors_are_likelier_at_higher_confidence() -> None:
    """A little worse than the target to the end of the ranks, and much better just before it."""

    def worse_at_the_top(n: int, _: np.random.Generator, rate: float) -> np.ndarray:
        return np.where(np.arange(n) < n // 2, rate * 2.02, 0.0005)

    assert violations(worse_at_the_top, 1000, 0.99, "fixed-sequence", 400) <= 0.1 + 3 * np.sqrt(0.1 * 0.9 / 400)


def test_looking_at_every_rank_at_the_level_itself_would_not_hold_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thresholds, "simultaneous_error", lambda n, target, level: 1 - level)
    assert violations(PROFILES["flat, a little under the target"], 1000, 0.99, "monotone", 400) > 0.18


def test_the_level_of_all_ranks_is_exact() -> None:
    # By simulation, beside the recursion.
    error = thresholds.simultaneous_error(1000, 0.99, 0.9)
    assert 1 - error == pytest.approx(0.9586, abs=5e-4)
    allowed = thresholds.allowed_errors(1000, 0.99, error)
    wrong = (np.random.default_rng(1).random((20_000, 1000)) < 0.01).cumsum(axis=1, dtype=np.int32)
    crossed = float((wrong <= allowed).any(axis=1).mean())
    assert thresholds.crossing_probability(allowed, 0.01) == pytest.approx(crossed, abs=0.007)
    assert 0.095 < thresholds.crossing_probability(allowed, 0.01) <= 0.1
    assert thresholds.crossing_probability(np.full(10, -1), 0.01) == 0
    # One rank only is the binomial distribution itself.
    one = np.full(50, -1)
    one[-1] = 2
    assert thresholds.crossing_probability(one, 0.1) == pytest.approx(binom.cdf(2, 50, 0.1))


def test_without_errors_everything_is_accepted_from_as_many_as_it_takes() -> None:
    confidence = np.linspace(1, 0.7, 400)
    found = thresholds.recommend_threshold(confidence, np.ones(400, bool))
    assert found is not None
    assert found.value == pytest.approx(0.7) and (found.coverage, found.accepted_accuracy) == (1, 1)
    assert found.lower_bound > 0.99
    correct = np.ones(400, bool)
    correct[350:] = False
    found = thresholds.recommend_threshold(confidence, correct)
    assert found is not None and found.coverage == pytest.approx(350 / 400)
    for none in (np.zeros(400, bool), np.arange(400) % 2 == 0):
        assert thresholds.recommend_threshold(confidence, none) is None
    for n in (0, 1, 229):
        for method in thresholds.METHODS:
            assert thresholds.recommend_threshold(confidence[:n], np.ones(n, bool), method=method) is None


@pytest.mark.parametrize("method", thresholds.METHODS)
def test_equal_confidences_are_accepted_together(method: str) -> None:
    confidence = np.array([0.9] * 500 + [0.8] * 100)
    correct = np.array([True] * 500 + [True] * 50 + [False] * 50)
    found = thresholds.recommend_threshold(confidence, correct, method=method)
    assert found is not None and found.value == 0.9 and found.coverage == pytest.approx(5 / 6)


def test_an_independent_implementation_of_learn_then_test_agrees() -> None:
    """MAPIE's risk control of the same answers: its p-values are exact, or larger where it rounds counts up."""
    cases = json.loads((ROOT / "tests" / "fixtures" / "mapie_risk_control.json").read_text())["cases"]
    equal = 0
    for case in cases:
        n, target = case["n"], case["target"]
        confidence, correct = 1 - np.arange(n) / (2 * n), np.ones(n, bool)
        correct[case["errors"]] = False
        ranks = np.array(case["ranks"])
        assert (thresholds._sequence(n, target, 0.9) + 1 == ranks).all()
        errors = (~correct).cumsum()[ranks - 1]
        exact, theirs = binom.cdf(errors, ranks, 1 - target), np.array(case["p_values"])
        assert (theirs >= exact * (1 - 1e-5)).all()
        same = np.isclose(theirs, exact, rtol=1e-5)
        equal += same.sum()
        # What they find valid there, our table of allowed errors allows, and nothing else.
        allowed = errors <= thresholds.allowed_errors(n, target, 1 - 0.9)[ranks - 1]
        assert (allowed == (theirs <= 1 - 0.9))[same].all()
        found = thresholds.recommend_threshold(confidence, correct, target, 0.9, "fixed-sequence")
        accepted = 0 if found is None else round(found.coverage * n)
        assert accepted >= (ranks[case["valid"] - 1] if case["valid"] else 0)
    assert equal > 0.5 * sum(len(case["ranks"]) for case in cases)
    assert sum(case["valid"] > 0 for case in cases) >= 2


def test_a_fixed_sequence_stops_where_it_fails_and_does_not_go_on() -> None:
    confidence, correct = np.linspace(1, 0.5, 2000), np.ones(2000, bool)
    correct[600:640] = False
    stopped = thresholds.recommend_threshold(confidence, correct, method="fixed-sequence")
    assert stopped is not None and 0.28 < stopped.coverage <= 0.31
    with pytest.raises(ValueError, match="'other' is none of monotone, fixed-sequence"):
        thresholds.recommend_threshold(confidence, correct, method="other")


def test_each_class_has_its_own_threshold_and_one_holds_for_all() -> None:
    n = 3000
    confidence, predicted = np.linspace(1, 0.5, n), np.arange(n) % 2
    correct = np.ones(n, bool)
    correct[(predicted == 1) & (confidence < 0.75)] = False
    by_class = thresholds.thresholds_by_class(confidence, correct, predicted, 2)
    first, second = by_class
    assert first is not None and second is not None
    assert first.value < 0.51 and 0.74 < second.value < 0.76
    together = thresholds.for_every_class(confidence, correct, by_class)
    assert together is not None and together.value == second.value
    assert together.coverage == pytest.approx((confidence >= second.value).mean())
    # The classes share the error that is allowed: each alone is certain enough at a smaller coverage.
    alone = thresholds.recommend_threshold(confidence[predicted == 1], correct[predicted == 1])
    assert alone is not None and alone.value <= second.value
    assert thresholds.for_every_class(confidence, correct, [first, None]) is None
    assert thresholds.thresholds_by_class(confidence, correct, np.zeros(n, int), 2)[1] is None


def test_the_report_and_the_training_agree_on_the_labels_that_are_needed() -> None:
    """The training runs where tasks/ is not."""
    for errors in (0, 1, 5):
        for target, level in ((0.99, 0.9), (0.95, 0.8)):
            assert thresholds.labels_needed(errors, target, level) == metrics.labels_needed(errors, target, level)
