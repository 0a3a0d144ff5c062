"""The classifier's figures: python -m benchmarks.model --dataset ARCHIVE --others FOLDER.

Runs classifier/train.py as a training job would, with the settings' hyperparameters: once per seed on all training
images, scored on the test images, and by repeated cross-validation, in which every job sees only the other folds. Each
job's members are also looked at as the ensemble that they are. Then: images of no class, changed images, how often
thresholds and alerts do what they say. Nothing is chosen here. Exits with 1 if a goal is missed; goals of accuracy hold
for CIFAR-100 only.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import model_charts
from benchmarks.figure import HEADING, Figure
from benchmarks.other_images import DEFAULT_THRESHOLD, accepted, changed_images, load_others, of_no_class, predict
from benchmarks.report import NIGHTS, healthy
from settings import ROOT, settings
from tasks.data.dataset import Dataset, DatasetError, Split, download, from_archive, generated, manifest, png
from tasks.model.sizing import TUNABLE
from tasks.report.metrics import wilson_interval

sys.path.insert(0, str(ROOT / "classifier"))
import inference
from calibration import (
    bootstrap_interval,
    brier_score,
    calibrated_errors,
    expected_calibration_error,
    scale,
)
from network import Model, normalize
from thresholds import METHODS, recommend_threshold

FOLDS = 5
DOWNLOAD_SECONDS = 20.0
# Of simulated data sets whose errors are a little likelier than the target allows.
SIMULATED = 1000


@dataclass(frozen=True)
class Trained:
    """A model as its job left it. figures: metrics.json; answers: out-of-fold probabilities (n, classes) and labels."""

    model: Model
    seconds: float
    figures: dict[str, Any]
    answers: np.ndarray
    labels: np.ndarray

    @property
    def threshold(self) -> float | None:
        recommended = self.figures["recommended_threshold"]
        return float(recommended["value"]) if recommended else None


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.model", description=__doc__)
    parser.add_argument("--dataset", help="'generated' or an archive; by default CIFAR-100 if it can be downloaded")
    parser.add_argument("--seeds", type=int, default=5, help="trainings on all training images (default: 5)")
    parser.add_argument("--repeats", type=int, default=2, help="repeats of the cross-validation (default: 2)")
    parser.add_argument(
        "--others", type=Path, help="folder with pictures of no class in near/ and far/ (see other_images.py)"
    )
    parser.add_argument("--nights", type=int, default=NIGHTS, help=f"healthy nights (default: {NIGHTS})")
    parser.add_argument("--calls", type=int, default=300, help="inferences that are timed (default: 300)")
    parser.add_argument("--charts", type=Path, help="folder to draw the charts of docs/model.md in")
    arguments = parser.parse_args()
    dataset = load(arguments.dataset)
    print(f"{dataset.source}: {len(dataset.train.labels)} training, {len(dataset.test.labels)} test images", flush=True)
    figures = measure(dataset, arguments)
    print(f"\n{HEADING}")
    for figure in figures:
        print(figure)
    return int(any(figure.missed for figure in figures))


def load(name: str | None) -> Dataset:
    """The archive or generated images; CIFAR-100 itself if it can be downloaded in a moment."""
    chosen = settings()
    if name not in (None, "generated"):
        return from_archive(Path(str(name)).expanduser(), chosen.classes)
    if name is None:
        try:
            archive = download(chosen.cifar_url, chosen.cifar_md5, chosen.cache, print, DOWNLOAD_SECONDS)
            return from_archive(archive, chosen.classes, official=True)
        except DatasetError as error:
            print(f"{error}\nusing GENERATED images instead of photographs")
    return generated(chosen.classes, chosen.generated_per_class, chosen.generated_test_per_class)


def measure(dataset: Dataset, arguments: argparse.Namespace) -> list[Figure]:
    """Trains all that is asked for, with a line of progress for each job."""
    real = not dataset.synthetic
    seeds = [train(dataset.train, len(dataset.classes), seed) for seed in range(1, arguments.seeds + 1)]
    figures = [
        Figure(
            "training job with all cross-fitting, slowest",
            max(t.seconds for t in seeds),
            "s",
            f"{len(seeds)} jobs",
            at_most=300,
        ),
    ]
    figures += on_test(seeds, dataset.test, real)
    if arguments.repeats:
        folds = cross_validated(dataset, arguments.repeats)
        figures += by_cross_validation(folds, real)
        if arguments.charts:
            model_charts.reliability(folds[0], arguments.charts / "reliability.png", dataset.source)
    if arguments.charts:
        first = seeds[0]
        threshold = recommend_threshold(first.answers.max(axis=1), first.answers.argmax(axis=1) == first.labels)
        model_charts.coverage(first.answers, first.labels, threshold, arguments.charts / "coverage.png", dataset.source)
    recommended = [seed.threshold for seed in seeds]
    others, source = load_others(arguments.others, dataset)
    if arguments.charts:
        kinds = {
            "test images of the classes": dataset.test.pixels,
            **{f"{kind} images": x for kind, x in others.items()},
        }
        scores = {name: predict(seeds[0].model, pixels)[1] for name, pixels in kinds.items()}
        model_charts.outliers(scores, arguments.charts / "outliers.png", f"{dataset.source}, other images: {source}")
    figures += of_no_class([seed.model for seed in seeds], recommended, others, dataset, source)
    figures += changed_images(seeds[0].model, dataset, recommended[0])
    figures += timings(seeds[0].model, dataset.test, arguments.calls)
    figures += simulated_thresholds()
    figures += healthy(arguments.nights)
    return figures


def train(split: Split, num_classes: int, seed: int) -> Trained:
    """Runs train.py on a split as a training job does."""
    chosen = settings()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("train", "train_lst", "model"):
            (folder / part).mkdir()
        for file, pixels in zip(split.names, split.pixels, strict=True):
            (folder / "train" / file).write_bytes(png(pixels))
        (folder / "train_lst" / "train.lst").write_text(manifest(split))
        values = {
            "num_classes": num_classes,
            "num_training_samples": len(split.names),
            **{name: getattr(chosen, name) for name in TUNABLE},
            "seed": seed,
            "train": folder / "train",
            "train_lst": folder / "train_lst",
            "model_dir": folder / "model",
        }
        command = [sys.executable, str(ROOT / "classifier" / "train.py")]
        for option, value in values.items():
            command += [f"--{option}", str(value)]
        started = time.monotonic()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.monotonic() - started
        answers = np.loadtxt(
            folder / "model" / "out_of_fold.csv", delimiter=",", skiprows=1, usecols=range(1, 2 + 2 * num_classes)
        )
        trained = Trained(
            model=inference.model_fn(str(folder / "model")),
            seconds=seconds,
            figures=json.loads((folder / "model" / "metrics.json").read_text()),
            answers=answers[:, 1 + num_classes :],
            labels=answers[:, 0].astype(int),
        )
    print(
        f"seed {seed}: {len(split.labels)} images in {seconds:.0f} s, out of fold {trained.figures['accuracy']:.3f}",
        flush=True,
    )
    return trained


def as_ensemble(model: Model) -> Model:
    """The same job's members, serving together with their mean."""
    ensemble = Model(replace(model.shape, final=False))
    ensemble.members.load_state_dict(model.members.state_dict())
    ensemble.prepare()
    return ensemble


def on_test(seeds: list[Trained], test: Split, real: bool) -> list[Figure]:
    """Accuracy and calibration on the test images, and what the recommended threshold does to them."""
    n = len(test.labels)
    served = [predict(trained.model, test.pixels)[0] for trained in seeds]
    accuracies = [accuracy(p, test.labels) for p in served]
    mean = statistics.mean(accuracies)
    low, high = wilson_interval(round(mean * n), n)
    runs = f"{len(seeds)} seeds, {n} images"
    figures = [
        Figure(
            "test accuracy, mean of the seeds",
            mean,
            "",
            runs,
            at_least=0.945 if real else None,
            hoped=0.96 if real else None,
        ),
        Figure("  95 % Wilson interval, low", low, "", f"{n} images"),
        Figure("  95 % Wilson interval, high", high, "", f"{n} images"),
        Figure(
            "  standard deviation between seeds",
            statistics.stdev(accuracies) if len(seeds) > 1 else float("nan"),
            "",
            runs,
        ),
        Figure(
            "  more than the ensemble of each job's members",
            mean - statistics.mean(accuracy(predict(as_ensemble(t.model), test.pixels)[0], test.labels) for t in seeds),
            "",
            runs,
            at_least=-0.005,
        ),
        Figure(
            "out-of-fold accuracy of the networks not fitted on the image",
            statistics.mean(t.figures["accuracy"] for t in seeds),
            "",
            f"{len(seeds)} seeds",
        ),
        Figure("temperature", statistics.mean(t.model.shape.temperature for t in seeds), "", f"{len(seeds)} seeds"),
    ]
    recommended = [t.figures["recommended_threshold"] for t in seeds]
    found = [(r, p) for r, p in zip(recommended, served, strict=True) if r]
    figures.append(
        Figure("seeds whose job recommends a threshold (.99 at 90 %)", len(found), "", f"{len(seeds)} seeds")
    )
    if found:
        above = [p.max(axis=1) >= r["value"] for r, p in found]
        right = sum(int((p.argmax(axis=1) == test.labels)[a].sum()) for (_, p), a in zip(found, above, strict=True))
        total = sum(int(a.sum()) for a in above)
        figures += [
            Figure(
                "  recommended threshold, mean",
                statistics.mean(r["value"] for r, _ in found),
                "",
                f"{len(found)} seeds",
            ),
            Figure(
                "  its coverage out of fold, mean",
                statistics.mean(r["coverage"] for r, _ in found),
                "",
                f"{len(found)} seeds",
            ),
            Figure("  its coverage of the test images", total / (n * len(found)), "", f"{len(found)} x {n} images"),
            Figure("  accuracy of the test images it accepts", right / max(total, 1), "", f"{total} accepted"),
        ]
    return figures


@dataclass(frozen=True)
class Fold:
    """One repeat of the cross-validation: what models answer about images that their jobs never saw."""

    served: np.ndarray
    raw: np.ndarray
    labels: np.ndarray
    ensemble: np.ndarray
    outlier_cost: float


def cross_validated(dataset: Dataset, repeats: int) -> list[Fold]:
    """Whole jobs, each on four of five folds, asked about the fifth."""
    split = dataset.train
    results = []
    for repeat in range(1, repeats + 1):
        generator = np.random.default_rng(repeat)
        assigned = np.empty(len(split.labels), int)
        for label in range(len(dataset.classes)):
            rows = generator.permutation(np.flatnonzero(split.labels == label))
            assigned[rows] = np.arange(len(rows)) % FOLDS
        served, raw, ensemble = np.empty((3, len(split.labels), len(dataset.classes)))
        costs = []
        for fold in range(FOLDS):
            rows = np.flatnonzero(assigned != fold)
            part = Split(split.pixels[rows], split.labels[rows], tuple(split.names[row] for row in rows))
            trained = train(part, len(dataset.classes), 100 * repeat + fold)
            left_out = assigned == fold
            predicted = predict(trained.model, split.pixels[left_out])
            served[left_out] = predicted[0]
            raw[left_out] = scale(predicted[0], 1 / trained.model.shape.temperature)
            ensemble[left_out], _ = predict(as_ensemble(trained.model), split.pixels[left_out])
            confident, kept = accepted(*predicted, trained.threshold or DEFAULT_THRESHOLD)
            costs.append(confident - kept)
        results.append(Fold(served, raw, split.labels, ensemble, statistics.mean(costs)))
    return results


def accuracy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    return float((probabilities.argmax(axis=1) == labels).mean())


def by_cross_validation(folds: list[Fold], real: bool) -> list[Figure]:
    """Accuracy, and calibration before and after, of models on images that their jobs never saw."""
    n = len(folds[0].labels)
    runs = f"{len(folds)} x {n} images"
    accuracies = [accuracy(fold.served, fold.labels) for fold in folds]
    of_ensembles = [accuracy(fold.ensemble, fold.labels) for fold in folds]
    figures = [
        Figure("cross-validated accuracy (jobs on 4 of 5 folds)", statistics.mean(accuracies), "", runs),
        Figure(
            "  standard deviation between repeats",
            statistics.stdev(accuracies) if len(folds) > 1 else float("nan"),
            "",
            runs,
        ),
        Figure(
            "  more than the ensemble of each job's members",
            round(statistics.mean(accuracies) - statistics.mean(of_ensembles), 9),  # or the last bit may miss
            "",
            runs,
            at_least=-0.005,
        ),
        Figure(
            "  coverage that the outlier score costs",
            statistics.mean(fold.outlier_cost for fold in folds),
            "",
            runs,
            at_most=0.03 if real else None,
        ),
    ]
    first = folds[0]
    correct = first.served.argmax(axis=1) == first.labels
    for name, probabilities in (("before", first.raw), ("after", first.served)):
        confidence = probabilities.max(axis=1)
        ece = expected_calibration_error(confidence, correct)
        low, high = bootstrap_interval(expected_calibration_error, confidence, correct)
        chance = calibrated_errors(confidence)
        brier = brier_score(probabilities, first.labels)
        brier_low, brier_high = bootstrap_interval(brier_score, probabilities, first.labels)
        limit = float(np.percentile(chance, 95))
        figures += [
            Figure(
                f"calibration error {name} temperature scaling",
                ece,
                "",
                f"{n} images",
                at_most=limit if name == "after" else None,
            ),
            Figure("  95 % bootstrap interval, low", low, "", f"{n} images"),
            Figure("  95 % bootstrap interval, high", high, "", f"{n} images"),
            Figure("  of a perfectly calibrated model, mean", float(chance.mean()), "", f"{n} images"),
            Figure("  of a perfectly calibrated model, 95th percentile", limit, "", f"{n} images"),
            Figure(f"Brier score {name} temperature scaling", brier, "", f"{n} images"),
            Figure("  95 % bootstrap interval, low", brier_low, "", f"{n} images"),
            Figure("  95 % bootstrap interval, high", brier_high, "", f"{n} images"),
        ]
    return figures


def timings(model: Model, test: Split, calls: int) -> list[Figure]:
    """Medians on one thread: from an image's bytes to the answer's, and the networks alone on one and eight images."""
    bodies = [png(pixels) for pixels in test.pixels[: min(len(test.pixels), 50)]]
    images = normalize(torch.from_numpy(test.pixels[:8]).permute(0, 3, 1, 2))

    def served(call: int) -> None:
        picture = inference.input_fn(bodies[call % len(bodies)], "application/x-image")
        inference.output_fn(inference.predict_fn(picture, model), "application/json; verbose=true")

    def asked(batch: torch.Tensor) -> None:
        with torch.inference_mode():
            model(batch)

    cores = os.cpu_count()
    return [
        Figure(
            "inference, one PNG to its JSON answer",
            _median_ms(served, calls),
            "ms",
            f"{calls} calls, 1 of {cores} cores",
            at_most=3 if model.shape.final else None,
        ),
        Figure("  networks alone, one image", _median_ms(lambda _: asked(images[:1]), calls), "ms", f"{calls} calls"),
        Figure(
            "  networks alone, eight images, each",
            _median_ms(lambda _: asked(images), calls) / len(images),
            "ms",
            f"{calls} calls",
        ),
    ]


def simulated_thresholds(n: int = 1000, target: float = 0.99, level: float = 0.90) -> list[Figure]:
    """How often a threshold is recommended although what each accepts is a little less accurate than that."""
    generator = np.random.default_rng(1)
    confidence = np.linspace(1, 0.5, n)
    wrong = [
        [
            recommend_threshold(confidence, generator.random(n) > 1.001 * (1 - target), target, level, method)
            is not None
            for _ in range(SIMULATED)
        ]
        for method in METHODS
    ]
    # Three standard deviations over what is allowed: the simulation tells no more.
    limit = 1 - level + 3 * ((1 - level) * level / SIMULATED) ** 0.5
    return [
        Figure(
            f"thresholds below the target, errors at every rank ({method})",
            float(np.mean(found)),
            "",
            f"{SIMULATED} sets of {n}",
            at_most=round(limit, 3),
        )
        for method, found in zip(METHODS, wrong, strict=True)
    ]


def _median_ms(call: Any, calls: int) -> float:
    times = []
    for number in range(calls + 10):
        started = time.perf_counter()
        call(number)
        times.append(time.perf_counter() - started)
    return statistics.median(times[10:]) * 1000


if __name__ == "__main__":
    sys.exit(main())
