"""When traffic is sent, and what images are made to."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tasks.data.generated import draw
from tasks.serving.traffic import Plan, TrafficError, changed


def png(seed: int = 1) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(draw("bicycle", seed)).save(buffer, "PNG")
    return buffer.getvalue()


def pixels(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB")).astype(float)


def test_steady_traffic_is_even() -> None:
    moments = Plan(per_minute=30, minutes=2).moments()
    assert len(moments) == 60 and np.allclose(np.diff(moments), 2) and 0 < moments[0] < moments[-1] < 120


def test_a_days_rhythm_has_as_many_images_more_of_them_in_the_first_half() -> None:
    moments = Plan(per_minute=600, minutes=10, rhythm="day").moments()
    assert len(moments) == 6000 and (np.diff(moments) > 0).all() and moments[-1] <= 600
    assert (moments < 300).sum() > 4000
    peak = ((moments > 120) & (moments < 180)).sum()
    low = ((moments > 420) & (moments < 480)).sum()
    assert peak > 4 * low


@pytest.mark.parametrize(
    "wrong",
    [
        {"per_minute": 0},
        {"per_minute": -1},
        {"minutes": 0},
        {"per_minute": float("nan")},
        {"minutes": float("inf")},
        {"per_minute": 1e6, "minutes": 60},
        {"per_minute": 0.1, "minutes": 1},
    ],
)
def test_traffic_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(TrafficError):
        Plan(**{"per_minute": 60, "minutes": 1, **wrong})


def test_a_drift_changes_the_image_as_it_says() -> None:
    before = pixels(png())
    blurred, dark, other = (pixels(changed(png(), drift, 3)) for drift in ("blur", "darkness", "another-class"))
    assert blurred.shape == dark.shape == other.shape == before.shape
    edges = [np.abs(np.diff(image, axis=1)).mean() for image in (before, blurred)]
    assert edges[1] < 0.6 * edges[0]
    assert abs(dark.mean() / before.mean() - 0.3) < 0.05
    assert np.abs(other - before).mean() > 10
    assert changed(png(), "none", 3) == png()
    # The same each time, and another thing each time.
    assert changed(png(), "another-class", 3) == changed(png(2), "another-class", 3)
    assert changed(png(), "another-class", 3) != changed(png(), "another-class", 4)
