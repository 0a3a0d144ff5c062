"""Drift of the images themselves, on drawn images that are darkened, blurred, made grey or scaled."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from tasks.data.dataset import png
from tasks.data.generated import draw
from tasks.report.inputs import LEAST, PROPERTIES, input_drift, properties

CHANGES: dict[str, tuple[str, Callable[[Image.Image], Image.Image]]] = {
    "blurred": ("sharpness", lambda image: image.filter(ImageFilter.GaussianBlur(1))),
    "darkened": ("brightness", lambda image: ImageEnhance.Brightness(image).enhance(0.6)),
    "grey": ("colour", lambda image: ImageOps.grayscale(image).convert("RGB")),
    "twice as large": ("size", lambda image: image.resize((64, 64))),
}


def drawn(first: int, n: int) -> list[bytes]:
    return [png(draw(("bicycle", "motorcycle")[number % 2], number)) for number in range(first, first + n)]


def changed(content: bytes, change: Callable[[Image.Image], Image.Image]) -> bytes:
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(content)) as image:
        change(image).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def training() -> np.ndarray:
    return properties(drawn(0, 300))


@pytest.mark.parametrize("name", CHANGES)
def test_what_changes_images_is_seen_and_named(training: np.ndarray, name: str) -> None:
    expected, change = CHANGES[name]
    found = input_drift(training, properties(changed(content, change) for content in drawn(1000, 100)))
    assert found is not None and found.p < 0.001
    moved = {each.name: each for each in found.properties}
    assert moved[expected].ks == found.largest.ks > 0.3
    assert moved[expected].now != pytest.approx(moved[expected].before, rel=0.1)


def test_images_of_the_same_kind_do_not_drift_more_often_than_chance(training: np.ndarray) -> None:
    few = 0
    for seed in range(40):
        found = input_drift(training, properties(drawn(2000 + 60 * seed, 60)), seed, permutations=400)
        assert found is not None
        few += found.p <= 0.1
    assert few / 40 < 0.25


def test_a_permutation_p_value_is_uniform_if_nothing_moved() -> None:
    generator = np.random.default_rng(1)
    values = []
    for seed in range(200):
        first, second = (generator.normal(size=(n, len(PROPERTIES))) for n in (80, 50))
        found = input_drift(first, second, seed=seed, permutations=200)
        assert found is not None
        values.append(found.p)
    assert 0.05 < np.mean(np.array(values) <= 0.1) < 0.16


def test_properties_are_what_is_worked_out_by_hand() -> None:
    black = np.zeros((4, 4, 3), np.uint8)
    half = black.copy()
    half[:, 2:] = (255, 0, 0)
    rows = properties([png(black), png(half)])
    assert rows[0].tolist() == [0, 0, 0, 0, 4]
    brightness, contrast, sharpness, colour, size = rows[1]
    assert (brightness, contrast) == (pytest.approx(0.299 / 2), pytest.approx(0.299 / 2))
    assert sharpness == pytest.approx(0.299 / 2)  # half of the pixels have one neighbour of the other colour
    assert (colour, size) == (0.5, 4)


def test_what_is_no_picture_is_left_out_and_few_say_nothing() -> None:
    assert properties([b"", b"no picture", drawn(0, 1)[0][:60]]).shape == (0, len(PROPERTIES))
    few, many = np.zeros((LEAST - 1, len(PROPERTIES))), np.zeros((LEAST, len(PROPERTIES)))
    assert input_drift(few, many) is None and input_drift(many, few) is None
    alike = input_drift(many, many)
    assert alike is not None and (alike.p, alike.largest.ks) == (1, 0)
