"""Whether images look like those that the model was trained on: properties of pictures, judged by permutation.

Confidence may stay high while images turn dark, grey or blurred; their properties do not. Pure functions, no AWS.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from tasks.data.pictures import read_rgb
from tasks.report.metrics import p_value

PROPERTIES = ("brightness", "contrast", "sharpness", "colour", "size")
# Luma of red, green and blue (ITU-R BT.601).
LUMA = (0.299, 0.587, 0.114)
# Fewer images on either side say nothing.
LEAST = 30
# Permutations that are in memory at once.
CHUNK = 200


@dataclass(frozen=True)
class Moved:
    """One property: medians before and now, and the largest distance between the distribution functions (KS)."""

    name: str
    before: float
    now: float
    ks: float


@dataclass(frozen=True)
class InputDrift:
    """n_training and n_current images. p: how likely chance is to make the largest KS of all properties as large."""

    n_training: int
    n_current: int
    properties: tuple[Moved, ...]
    p: float

    @property
    def largest(self) -> Moved:
        return max(self.properties, key=lambda moved: moved.ks)


def properties(pictures: Iterable[bytes]) -> np.ndarray:
    """PROPERTIES (n, 5) of pictures in PNG or JPEG; what can't be decoded is left out.

    brightness: mean luma in [0, 1]; contrast: its standard deviation; sharpness: mean absolute Laplacian of luma, over
    the four neighbours; colour: mean difference of the largest and smallest of red, green and blue; size: square root
    of the number of pixels.
    """
    rows = [row for content in pictures if (row := _properties(content)) is not None]
    return np.array(rows, dtype=float).reshape(len(rows), len(PROPERTIES))


def input_drift(
    training: np.ndarray, current: np.ndarray, seed: int = 0, permutations: int = 2000
) -> InputDrift | None:
    """Compares properties (n, 5) with those of training images (m, 5); None if either has fewer than LEAST.

    The statistic is the largest KS distance of all properties. By chance: images are dealt anew into the two groups,
    which keeps how properties go together.
    """
    n, m = len(training), len(current)
    if min(n, m) < LEAST:
        return None
    pooled = np.concatenate([training, current])
    order = pooled.argsort(axis=0, kind="stable")
    ranked = np.take_along_axis(pooled, order, axis=0)
    # Equal values are passed together.
    last = np.concatenate([ranked[1:] != ranked[:-1], np.ones((1, len(PROPERTIES)), bool)])
    is_current = np.arange(n + m) >= n
    observed = _distances(is_current[None], order, last)[0]
    generator = np.random.default_rng(seed)
    drawn = [
        _distances(generator.permuted(np.tile(is_current, (min(CHUNK, permutations - first), 1)), axis=1), order, last)
        for first in range(0, permutations, CHUNK)
    ]
    moved = tuple(
        Moved(name, float(before), float(now), float(ks))
        for name, before, now, ks in zip(
            PROPERTIES, np.median(training, axis=0), np.median(current, axis=0), observed, strict=True
        )
    )
    return InputDrift(n, m, moved, p_value(float(observed.max()), np.concatenate(drawn).max(axis=1)))


def _properties(content: bytes) -> tuple[float, ...] | None:
    picture = read_rgb(content)
    if picture is None:
        return None
    rgb = np.asarray(picture, dtype=np.float32) / 255
    luma = rgb @ np.array(LUMA, dtype=np.float32)
    edged = np.pad(luma, 1, mode="edge")
    laplacian = edged[:-2, 1:-1] + edged[2:, 1:-1] + edged[1:-1, :-2] + edged[1:-1, 2:] - 4 * luma
    return (
        float(luma.mean()),
        float(luma.std()),
        float(np.abs(laplacian).mean()),
        float((rgb.max(axis=2) - rgb.min(axis=2)).mean()),
        float(np.sqrt(luma.size)),
    )


def _distances(is_current: np.ndarray, order: np.ndarray, last: np.ndarray) -> np.ndarray:
    """KS distances (k, 5) of k ways to deal the images (k, n + m) into two groups."""
    current = int(is_current[0].sum())
    training = is_current.shape[1] - current
    found = np.empty((len(is_current), order.shape[1]))
    for column in range(order.shape[1]):
        counts = is_current[:, order[:, column]].cumsum(axis=1, dtype=np.int32)
        others = np.arange(1, is_current.shape[1] + 1) - counts
        gaps = np.abs(counts / current - others / training)
        found[:, column] = gaps[:, last[:, column]].max(axis=1)
    return found
