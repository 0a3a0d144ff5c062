"""What the gate makes of a comparison's figures."""

from dataclasses import replace

import pytest
from prefect.logging import disable_run_logger

from settings import Settings
from tasks.model import registry
from tasks.model.gate import Comparison, not_worse_p, verdict
from tasks.model.registry import APPROVED, REJECTED, ModelVersion, find_trained
from tasks.model.training import JobPlan, TrainingPlan

GOOD = Comparison(images=1000, accuracy=0.92, ece=0.02, ece_limit=0.03)
DEFAULTS = Settings(gate_min_accuracy=0.85, gate_margin=0.03)


def against(champion_accuracy: float, only_challenger: int, only_champion: int) -> Comparison:
    accuracy = champion_accuracy + (only_challenger - only_champion) / 1000
    return replace(
        GOOD,
        accuracy=accuracy,
        champion="v3",
        champion_accuracy=champion_accuracy,
        only_challenger=only_challenger,
        only_champion=only_champion,
    )


def test_a_first_model_needs_the_floor_and_calibration() -> None:
    assert verdict(GOOD, DEFAULTS).approved
    assert "no champion" in verdict(GOOD, DEFAULTS).reason
    low = verdict(replace(GOOD, accuracy=0.84), DEFAULTS)
    assert not low.approved
    assert "0.840 is under the floor of 0.85" in low.reason
    uncalibrated = verdict(replace(GOOD, ece=0.05), DEFAULTS)
    assert not uncalibrated.approved
    assert "calibration error 0.050, by chance up to 0.030" in uncalibrated.reason


@pytest.mark.parametrize(
    ("only_challenger", "only_champion", "approved"),
    [(0, 0, True), (40, 20, True), (30, 30, True), (25, 30, True), (20, 50, False), (10, 60, False), (0, 100, False)],
)
def test_a_challenger_must_be_shown_not_to_be_worse_by_the_margin(
    only_challenger: int, only_champion: int, approved: bool
) -> None:
    judged = verdict(against(0.95, only_challenger, only_champion), DEFAULTS)
    assert judged.approved is approved
    assert "against v3 with 0.950" in judged.reason


def test_a_champion_that_could_not_be_asked_is_named() -> None:
    judged = verdict(replace(GOOD, champion="v3"), DEFAULTS)
    assert judged.approved
    assert "v3 could not be compared with" in judged.reason


def test_p_is_that_of_a_simulated_boundary() -> None:
    """At a difference of exactly the margin, p is under .05 in about one of twenty draws."""
    import numpy as np

    generator = np.random.default_rng(1)
    draws = generator.multinomial(1000, [0.03, 0.06, 0.91], size=4000)  # worse by .03
    rejected = np.mean([not_worse_p(1000, b, c, 0.03) < 0.05 for b, c, _ in draws])
    assert 0.03 < rejected < 0.07


def test_few_images_are_no_proof() -> None:
    assert not_worse_p(20, 0, 0, 0.03) > 0.05
    assert not_worse_p(1000, 0, 0, 0.03) < 0.001


def test_a_model_that_stands_is_taken_unless_other_hyperparameters_are_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def version(number: int, status: str, **metadata: str) -> ModelVersion:
        return ModelVersion(number, "arn", "uri", "image", status, "", metadata)

    def plan(fingerprint: str, of_settings: str) -> TrainingPlan:
        return TrainingPlan(JobPlan("train.py", "", {}, {}, ()), fingerprint, of_settings, "data", "1000 of generated")

    asked_for = version(2, APPROVED, fingerprint="quick", settings_fingerprint="mine")
    there = [version(3, REJECTED, fingerprint="mine"), asked_for, version(1, APPROVED, fingerprint="other")]
    monkeypatch.setattr(registry, "versions", lambda: iter(there))
    with disable_run_logger():
        assert find_trained.fn(plan("mine", "mine")) == asked_for  # what the demo trained in a hurry stands
    assert find_trained.fn(plan("quick", "mine")) == asked_for
    assert find_trained.fn(plan("slow", "mine")) is None
    assert find_trained.fn(plan("changed", "changed")) is None  # other settings
