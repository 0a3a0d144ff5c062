"""What a model makes of images that are of no class, or that have changed: the second half of benchmarks/model.py."""

import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter

from benchmarks.figure import Figure
from tasks.data.dataset import Dataset, DatasetError, official_test_images, png
from tasks.data.generated import FAR, NEAR, draw
from tasks.report.drift import drift, histogram, score_histogram
from tasks.report.inputs import input_drift, properties

# Of each drawn thing.
DRAWN = 100
# Where a job recommends no threshold.
DEFAULT_THRESHOLD = 0.93


def load_others(folder: Path | None, dataset: Dataset) -> tuple[dict[str, np.ndarray], str]:
    """Images (n, height, width, 3) uint8 of no class, `near` to the classes and `far` from them; and where from.

    folder: has subfolders near and far with pictures. Without it they are the other classes of the data set's archive,
    if that is CIFAR-100's own, and else drawn, which says little of a model that was trained on photographs. Raises
    ValueError if there are no pictures.
    """
    size = dataset.train.pixels.shape[1]
    if folder is None:
        try:
            by_class, source = official_test_images(Path(dataset.given)), "CIFAR-100"
            by_class = {
                name: np.stack([_resized(image, size) for image in images]) for name, images in by_class.items()
            }
        except DatasetError:
            by_class = {name: np.stack([draw(name, seed, size) for seed in range(DRAWN)]) for name in {**NEAR, **FAR}}
            source = "drawn"
        others = {name: images for name, images in by_class.items() if name not in dataset.classes}
        return {
            "near": np.concatenate([images for name, images in others.items() if name in NEAR]),
            "far": np.concatenate([images for name, images in others.items() if name not in NEAR]),
        }, source
    found = {}
    for kind in ("near", "far"):
        paths = sorted(path for path in (folder / kind).rglob("*") if path.suffix.lower() in (".png", ".jpg", ".jpeg"))
        if not paths:
            raise ValueError(f"{folder / kind} has no pictures")
        found[kind] = np.stack([_resized(np.array(Image.open(path).convert("RGB")), size) for path in paths])
    return found, folder.name


def _resized(image: np.ndarray, size: int) -> np.ndarray:
    return np.array(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))


def of_no_class(
    models: Sequence[Any],
    thresholds: Sequence[float | None],
    others: dict[str, np.ndarray],
    dataset: Dataset,
    source: str,
) -> Iterator[Figure]:
    """How many of them each model accepts at its threshold, and what the outlier score costs in coverage."""
    limits = {"near": 0.4, "far": 0.1}
    at = [DEFAULT_THRESHOLD if threshold is None else threshold for threshold in thresholds]
    for kind, pixels in others.items():
        n = f"{len(models)} models, {len(pixels)} {source} images"
        judged = [accepted(*predict(model, pixels), threshold) for model, threshold in zip(models, at, strict=True)]
        yield Figure(
            f"{kind} images of no class that are accepted",
            statistics.mean(j[1] for j in judged),
            "",
            n,
            at_most=limits[kind],
        )
        yield Figure("  if the outlier score were not looked at", statistics.mean(j[0] for j in judged), "", n)
    test = dataset.test.pixels
    judged = [accepted(*predict(model, test), threshold) for model, threshold in zip(models, at, strict=True)]
    n = f"{len(models)} models, {len(dataset.test.labels)} test images"
    yield Figure(
        "coverage of test images that the outlier score costs",
        statistics.mean(j[0] - j[1] for j in judged),
        "",
        n,
        at_most=0.03,
    )


def accepted(probabilities: np.ndarray, scores: np.ndarray, threshold: float) -> tuple[float, float]:
    """Share of images whose confidence reaches the threshold, and of those that are accepted.

    probabilities: (n, classes); scores: (n,), of outliers.
    """
    confident = probabilities.max(axis=1) >= threshold
    return float(confident.mean()), float((confident & (scores <= 1)).mean())


def predict(model: Any, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (n, classes) and outlier scores (n,) of (n, height, width, 3) uint8; 0 if the model tells none."""
    from network import normalize

    with torch.inference_mode():
        parts = [
            model(normalize(torch.from_numpy(part).permute(0, 3, 1, 2)))
            for part in np.array_split(pixels, len(pixels) // 256 + 1)
        ]
    probabilities = np.concatenate([part.probabilities.numpy() for part in parts])
    scores = [np.zeros(len(p.probabilities)) if p.outlier_scores is None else p.outlier_scores.numpy() for p in parts]
    return probabilities, np.concatenate(scores)


def changed_images(model: Any, dataset: Dataset, threshold: float | None) -> Iterator[Figure]:
    """Which tests notice that the images have changed: p-values of a night of changed test images.

    Confidences and outlier scores are compared with those of the same images before, properties with the training
    images'.
    """
    at, images = DEFAULT_THRESHOLD if threshold is None else threshold, dataset.test.pixels
    before = predict(model, images)
    training = properties(png(pixels) for pixels in dataset.train.pixels[:: max(len(dataset.train.pixels) // 500, 1)])
    n = f"{len(images)} test images"
    for name, change in CHANGES.items():
        pixels = np.stack([change(image) for image in images])
        now = predict(model, pixels)
        of_confidence = drift(histogram(before[0].max(axis=1)), histogram(now[0].max(axis=1)))
        of_scores = drift(score_histogram(before[1]), score_histogram(now[1]))
        inputs = input_drift(training, properties(png(image) for image in pixels))
        yield Figure(f"{name}: median confidence", float(np.median(now[0].max(axis=1))), "", n)
        yield Figure("  share accepted", accepted(*now, at)[1], "", n)
        limit = 0.01 / 6 if name in CAUGHT else None
        yield Figure("  p of the images' properties", inputs.p if inputs else float("nan"), "", n, at_most=limit)
        yield Figure("  p of outlier scores (KS)", of_scores.ks_p if of_scores else float("nan"), "", n)
        yield Figure("  p of confidences (KS)", of_confidence.ks_p if of_confidence else float("nan"), "", n)


def _blurred(pixels: np.ndarray) -> np.ndarray:
    return np.array(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(0.7)))


def _dark(pixels: np.ndarray) -> np.ndarray:
    return (pixels * 0.6).astype(np.uint8)


def _grey(pixels: np.ndarray) -> np.ndarray:
    return np.array(Image.fromarray(pixels).convert("L").convert("RGB"))


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "as they are": lambda pixels: pixels,
    "blurred (Gaussian, .7 pixels)": _blurred,
    "darkened to 60 %": _dark,
    "grey": _grey,
}
# What the images' properties must notice: .01 / 6 tests (Holm) is enough for an alert whatever the others show.
CAUGHT = set(CHANGES) - {"as they are"}
