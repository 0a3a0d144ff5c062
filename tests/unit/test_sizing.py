"""The size of a training by its images, and what is said of it beforehand."""

import pytest

from settings import Settings
from tasks.model.sizing import CORES, corrected, duration, in_words, sizing, suited
from tasks.prices import INSTANCE_HOUR


def chosen(monkeypatch: pytest.MonkeyPatch, **given: str) -> Settings:
    for name in ("EPOCHS", "FOLDS"):
        monkeypatch.delenv(f"SCONES_{name}", raising=False)
    for name, value in given.items():
        monkeypatch.setenv(f"SCONES_{name}", value)
    return Settings()


def hyperparameters(epochs: int, folds: int, **other: str) -> dict[str, str]:
    return {"epochs": str(epochs), "folds": str(folds), "repeats": "1", "classifier": "single", **other}


@pytest.mark.parametrize(
    ("images", "epochs", "folds"),
    [(20, 160, 10), (150, 160, 10), (151, 120, 10), (300, 120, 5), (1000, 84, 5), (10_000, 32, 5), (20_000, 20, 3)],
)
def test_few_images_are_seen_often_and_many_by_few_networks(
    monkeypatch: pytest.MonkeyPatch, images: int, epochs: int, folds: int
) -> None:
    assert suited(images, chosen(monkeypatch)) == {"epochs": epochs, "folds": folds}


def test_the_defaults_are_what_suits_the_images_that_they_were_tried_out_on(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = chosen(monkeypatch)
    assert suited(1000, settings) == {"epochs": settings.epochs, "folds": settings.folds}


def test_settings_come_before_suggestions(monkeypatch: pytest.MonkeyPatch) -> None:
    assert suited(20_000, chosen(monkeypatch, EPOCHS="7"))["epochs"] == 7
    assert suited(20, chosen(monkeypatch, FOLDS="2")) == {"epochs": 160, "folds": 2}


def test_time_goes_with_images_pixels_and_epochs_and_ends_with_cores_that_have_no_network() -> None:
    size = sizing(1000, 32, hyperparameters(10, 5))
    # Each of 5 networks is shown four fifths of the images, and one all of them.
    assert (size.networks, size.shown, size.longest) == (6, 11 * 5000 + 1000, 11 * 1000 + 1000)

    def work(images: int, side: int, epochs: int, cores: int) -> float:
        return sizing(images, side, hyperparameters(epochs, 5)).seconds(cores) - 20

    assert work(2000, 32, 10, 1) == pytest.approx(2 * work(1000, 32, 10, 1))
    assert work(1000, 96, 10, 1) == pytest.approx(9 * work(1000, 32, 10, 1))
    assert work(1000, 32, 10, 2) == pytest.approx(work(1000, 32, 10, 1) / 2)
    assert size.seconds(6) == size.seconds(600)
    ensemble = sizing(1000, 32, hyperparameters(10, 5, repeats="2", classifier="ensemble"))
    assert (ensemble.networks, ensemble.shown) == (10, 11 * 8000 + 1000)


def test_an_instance_is_suggested_by_time_and_its_price_is_told() -> None:
    small, large = sizing(1000, 32, hyperparameters(84, 5)), sizing(20_000, 96, hyperparameters(20, 3))
    assert (small.suggested_instance(), large.suggested_instance()) == ("ml.m5.xlarge", "ml.m5.xlarge")
    middle = sizing(9000, 32, hyperparameters(60, 5))
    assert middle.suggested_instance() == "ml.c5.2xlarge"
    assert small.dollars("ml.m5.xlarge") == pytest.approx(small.seconds(4) / 3600 * 0.23)
    assert small.dollars("ml.p9.huge") is None
    assert set(CORES) <= set(INSTANCE_HOUR)


def test_what_is_said_names_time_place_and_price() -> None:
    size = sizing(1000, 32, hyperparameters(84, 5))
    (line,) = in_words(size, "ml.m5.xlarge", False, 3600)
    assert line.startswith("training: 1,000 images of 32 x 32 pixels, 84 epochs, 6 networks; about ")
    told = (
        f"{duration(size.seconds(4))} on ml.m5.xlarge, ${size.dollars('ml.m5.xlarge'):.2f}: a guess for such a machine"
    )
    assert line.endswith(f"{told}, which the log corrects after the first epoch")
    here, there = in_words(size, "ml.m5.xlarge", True, 3600)
    assert "cores of this machine: a guess" in here and there.endswith("SCONES_TRAINING_INSTANCE_TYPE=ml.m5.xlarge")
    lines = in_words(sizing(20_000, 96, hyperparameters(20, 3)), "ml.m5.xlarge", False, 3600)
    assert any("SageMaker stops it after 60 min" in line for line in lines)
    assert in_words(size, "ml.p9.huge", False, 3600)[0].endswith("6 networks")


def test_the_jobs_own_estimate_is_told_in_words_and_so_is_a_limit_that_it_exceeds() -> None:
    line = "estimated_seconds=2412 estimated_end=2026-11-29T19:20:31Z"
    told = "at the pace of its first epoch the training takes about 40 min, until 19:20 UTC"
    assert corrected(line, 3600) == [told]
    first, second = corrected(line, 1800)
    assert first == told and second.startswith("SageMaker stops it after 30 min: raise SCONES_TRAINING_MAX_SECONDS")
    for other in ("member=1/6 epoch=1/84 train_loss=0.7 seconds=9.86", "estimated_seconds=soon", ""):
        assert corrected(other, 3600) == []


@pytest.mark.parametrize(("seconds", "says"), [(12, "12 s"), (90, "2 min"), (3600, "60 min"), (9000, "2.5 hours")])
def test_durations_are_told_in_the_unit_that_fits(seconds: float, says: str) -> None:
    assert duration(seconds) == says
