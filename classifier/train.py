"""Trains the classifier: SageMaker's script mode runs this with hyperparameters as arguments.

Channels: `train` holds the images, `train_lst` a manifest of index, label and file name separated by tabs.

The images are dealt into folds and a network, a member, is fitted without each fold; what the members answer about the
images they were not fitted on gives the temperature, the limit of outliers, the recommended threshold and the figures
in metrics.json. Images that were chosen for review (below reviewed/) are trained on and do not count there. One more
network, of the same recipe and fitted to all images, serves; or all members do (--classifier). Writes the state dict,
its shape, the figures, these answers and the inference code to SM_MODEL_DIR.
"""

import argparse
import csv
import hashlib
import json
import multiprocessing
import os
import shutil
import tempfile
import time
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import calibration
import numpy as np
import thresholds
import torch
from checkpoints import Checkpoint, configured_folder, discard, file_of
from fitting import Work, fit
from network import Answers, Model, OutlierScale, Prediction, Shape, assign_folds
from PIL import Image
from torch import Tensor

HYPERPARAMETERS = (
    "image_shape",
    "epochs",
    "learning_rate",
    "mini_batch_size",
    "seed",
    "folds",
    "repeats",
    "classifier",
    "outlier_share",
)
# Code that decides how a network comes out; another version of it goes on from no checkpoint.
FITTING = ("train.py", "fitting.py", "network.py")
CODE = ("inference.py", "serving.py", "network.py", "out_of_fold.py", "requirements.txt")
# Of images that people reviewed, in the channel `train`.
REVIEWED_FOLDER = "reviewed/"
# Ray Serve looks for these at the root of the archive.
RAY_SERVE = ("config.yaml", "deployment.py")


def main() -> None:
    """Raises ValueError if images, manifest and hyperparameters do not fit: the job's failure reason, which the
    container's toolkit takes from tracebacks that name one of Python's own exceptions.
    """
    options = _options()
    with tempfile.TemporaryDirectory() as folder:
        _train(options, Path(folder) / "pixels.npy")


def _train(options: argparse.Namespace, file: Path) -> None:
    """file: where the images are put together; every process reads them from it."""
    pixels, labels, names = load(options.train, options.train_lst, options.image_shape, options.num_classes, file)
    if len(labels) != options.num_training_samples:
        raise ValueError(f"num_training_samples is {options.num_training_samples}, the manifest has {len(labels)}")
    model = cross_fit(pixels, labels, options, file)
    answered = model.out_of_fold(pixels)
    rows = nobody_selected(names)
    raw, judged = answered.of(rows), labels[rows].numpy()
    temperature = calibration.fit_temperature(raw.probabilities.numpy(), judged)
    outliers = outlier_scale(raw, options.outlier_share) if options.outlier_share else None
    model.shape = replace(model.shape, temperature=temperature, outliers=outliers)
    figures = evaluate(raw, model.predict(raw), temperature, judged, options)
    figures["reviewed_images"] = len(names) - len(judged)
    save(model, figures, options.model_dir)
    write_answers(options.model_dir / "out_of_fold.csv", names, labels.numpy(), answered, model.predict(answered))
    print_figures(figures)
    discard(options.checkpoints)


def load(
    images: Path, manifest_folder: Path, image_shape: tuple[int, int, int], num_classes: int, file: Path
) -> tuple[Tensor, Tensor, list[str]]:
    """Images (n, 3, height, width) uint8, labels (n,) and names. The images are written to `file`, and read from there
    as they are needed: they may be more than fit into memory.

    Raises ValueError with the bad file or line.
    """
    manifests = sorted(manifest_folder.glob("*.lst"))
    if len(manifests) != 1:
        raise ValueError(f"the channel train_lst must hold one .lst file, it has {len(manifests)}")
    lines = manifests[0].read_text().splitlines()
    if not lines:
        raise ValueError(f"{manifests[0].name} is empty")
    pixels = np.lib.format.open_memmap(file, "w+", np.uint8, (len(lines), *image_shape))
    labels, names = [], []
    for number, line in enumerate(lines, start=1):
        try:
            _, label, name = line.split("\t")
            labels.append(int(label))
            with Image.open(images / name, formats=("PNG", "JPEG")) as image:
                if (image.height, image.width) != image_shape[1:]:  # before anything of it is decoded
                    raise ValueError(f"it has {image.width} x {image.height} pixels")
                array = np.array(image.convert("RGB"))
        except (ValueError, OSError) as error:
            raise ValueError(f"{manifests[0].name}, line {number}: {error}") from error
        if array.shape != (*image_shape[1:], image_shape[0]):
            raise ValueError(f"{name} has shape {array.shape}, not image_shape {image_shape}")
        pixels[number - 1] = array.transpose(2, 0, 1)
        names.append(name)
    if min(labels) < 0 or max(labels) >= num_classes:
        raise ValueError(f"labels must be 0 to {num_classes - 1}; the manifest has {sorted(set(labels))}")
    missing = sorted(set(range(num_classes)) - set(labels))
    if missing:
        raise ValueError(f"the manifest has no image of label {', '.join(map(str, missing))}")
    pixels.flush()
    return read_pixels(file), torch.tensor(labels), names


def read_pixels(file: Path) -> Tensor:
    """What `load` put together, read as it is needed; what is written to it stays in memory."""
    return torch.from_numpy(np.load(file, mmap_mode="c"))


def nobody_selected(names: list[str]) -> Tensor:
    """Rows (n,) bool of images that were not chosen for review: figures, calibration and thresholds are of these.

    Reviewed images are those that a model was unsure of, and say nothing about the share of such images.
    """
    rows = torch.tensor([not name.startswith(REVIEWED_FOLDER) for name in names])
    if not rows.any():
        raise ValueError("the manifest has reviewed images only, which say nothing about images that nobody selected")
    return rows


def cross_fit(pixels: Tensor, labels: Tensor, options: argparse.Namespace, file: Path) -> Model:
    """A model whose networks are each trained in a process and on a core of their own. file: what has the pixels."""
    began = time.time()
    model = Model(Shape(options.num_classes, options.folds, options.repeats, options.final, options.image_shape))
    rows = [
        np.flatnonzero(assigned != fold)
        for repeat in range(options.repeats)
        for assigned in (assign_folds(pixels.numpy(), options.folds, repeat),)
        for fold in range(options.folds)
    ]
    numbered, networks = list(enumerate(rows, start=1)), list(model.members)
    if model.final is not None:  # which takes longest
        numbered.insert(0, (len(rows) + 1, np.arange(len(labels))))
        networks.insert(0, model.final)
    training = fingerprint(labels, options, file) if options.checkpoints else ""
    checkpoints = [Checkpoint(file_of(options.checkpoints, member), training) for member, _ in numbered]
    done = [checkpoint.load().get("epoch", 0) for checkpoint in checkpoints]
    # Each network answers once what it was fitted to, which takes as long as an epoch.
    left = [(options.epochs - epochs + 1) * len(chosen) for epochs, (_, chosen) in zip(done, numbered, strict=True)]
    cores = os.cpu_count() or 1
    work = Work(tuple(left), cores, began)
    first = next((number for number, epochs in enumerate(done) if epochs < options.epochs), None)
    # numpy arrays: torch would share tensors through file descriptors, of which there may be too few.
    jobs: list[Future[Any]] = []
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__"])  # PyTorch is loaded once, not by every process
    with ProcessPoolExecutor(cores, context) as pool:
        for number, ((member, chosen), checkpoint) in enumerate(zip(numbered, checkpoints, strict=True)):
            given = (file, labels.numpy(), chosen, options, member, len(networks), checkpoint)
            jobs.append(pool.submit(_fit_network, *given, work if number == first else None))
        for network, job in zip(networks, jobs, strict=True):
            network.load_state_dict({name: torch.from_numpy(value) for name, value in job.result().items()})
    return model.eval()


def fingerprint(labels: Tensor, options: argparse.Namespace, file: Path) -> str:
    """SHA-256 of the code, hyperparameters, images and labels of a training."""
    digest = hashlib.sha256(torch.__version__.encode())
    for name in FITTING:
        digest.update(Path(__file__).with_name(name).read_bytes())
    hyperparameters = {name: value for name, value in vars(options).items() if not isinstance(value, Path)}
    digest.update(json.dumps(hyperparameters, sort_keys=True).encode())
    digest.update(labels.numpy().tobytes())
    with file.open("rb") as images:
        digest.update(hashlib.file_digest(images, "sha256").digest())
    return digest.hexdigest()


def _fit_network(
    file: Path,
    labels: np.ndarray,
    rows: np.ndarray,
    options: argparse.Namespace,
    member: int,
    of: int,
    checkpoint: Checkpoint,
    work: Work | None,
) -> dict[str, np.ndarray]:
    torch.manual_seed(options.seed * 1000 + member)
    torch.set_num_threads(1)
    chosen = torch.from_numpy(rows)
    pixels = read_pixels(file)
    network = fit(pixels, torch.from_numpy(labels), chosen, options, f"{member}/{of}", checkpoint, work)
    return {name: np.array(value) for name, value in network.state_dict().items()}


def outlier_scale(raw: Answers, share: float) -> OutlierScale:
    """What makes a score of the out-of-fold answers' signs, and the limit that `share` of confident images exceed.

    Confident is the half of the images with the higher confidence: among the others, most of those over the limit would
    be below the threshold anyway. No label is looked at, and no image but the training images.
    """
    logit, distance = raw.outlier_logit, raw.outlier_distance
    moments = (float(value) for sign in (logit, distance) for value in (sign.mean(), sign.std()))
    scale = OutlierScale(*moments, median=0.0, limit=1.0)  # type: ignore[misc]
    excess = scale.standardized(logit, distance)
    confidence = raw.probabilities.max(dim=1).values
    confident = excess[confidence >= confidence.median()]
    return replace(scale, median=float(confident.median()), limit=float(confident.quantile(1 - share)))


def evaluate(
    raw: Answers, predicted: Prediction, temperature: float, labels: np.ndarray, options: argparse.Namespace
) -> dict[str, Any]:
    """The content of metrics.json, from the out-of-fold answers before and after calibration.

    Each figure of calibration comes with a bootstrap interval and with what a perfectly calibrated model would show.
    Thresholds are of the images that are no outliers, and their coverage is of all.
    """
    before, after = raw.probabilities.numpy(), predicted.probabilities.numpy()
    correct = after.argmax(axis=1) == labels
    scores = predicted.outlier_scores
    kept = np.ones(len(labels), bool) if scores is None else scores.numpy() <= 1

    def calibrated(probabilities: np.ndarray) -> dict[str, Any]:
        confidence = probabilities.max(axis=1)
        by_chance = {
            "ece": calibration.calibrated_errors(confidence),
            "brier": calibration.calibrated_briers(probabilities),
        }
        return {
            "nll": calibration.negative_log_likelihood(probabilities, labels),
            "ece": calibration.expected_calibration_error(confidence, correct),
            "ece_interval_95": calibration.bootstrap_interval(
                calibration.expected_calibration_error, confidence, correct
            ),
            "brier": calibration.brier_score(probabilities, labels),
            "brier_interval_95": calibration.bootstrap_interval(calibration.brier_score, probabilities, labels),
            "if_perfectly_calibrated": {
                name: {"mean": float(values.mean()), "percentile_95": float(np.percentile(values, 95))}
                for name, values in by_chance.items()
            },
        }

    confidence, right, index = after.max(axis=1)[kept], correct[kept], after.argmax(axis=1)[kept]
    asked = (options.threshold_target, options.threshold_level, options.threshold_method)
    threshold = thresholds.recommend_threshold(confidence, right, *asked)
    by_class = thresholds.thresholds_by_class(confidence, right, index, after.shape[1], *asked)
    # Which takes that errors are no likelier at higher confidence.
    monotone = options.threshold_method == "monotone"
    every_class = thresholds.for_every_class(confidence, right, by_class) if monotone else None

    def of_all(found: thresholds.Threshold | None) -> dict[str, float] | None:
        return None if found is None else asdict(replace(found, coverage=found.coverage * float(kept.mean())))

    return {
        "schema_version": 1,
        "images": len(labels),
        "accuracy": float(correct.mean()),
        "temperature": temperature,
        "before_calibration": calibrated(before),
        "after_calibration": calibrated(after),
        "outlier_share": float(1 - kept.mean()),
        "recommended_threshold": of_all(threshold),
        "recommended_threshold_every_class": of_all(every_class),
        "recommended_thresholds_by_class": [
            None if each is None else asdict(each)
            for each in by_class  # coverage: of those it predicts to be of it
        ],
        "threshold_method": options.threshold_method,
        "threshold_target": options.threshold_target,
        "threshold_level": options.threshold_level,
        "hyperparameters": {name: getattr(options, name) for name in HYPERPARAMETERS},
    }


def print_figures(figures: dict[str, Any]) -> None:
    """The figures that become the job's metrics, one to a line; none for a threshold that none reached."""
    before, after = figures["before_calibration"], figures["after_calibration"]
    lines = {
        "validation_accuracy": figures["accuracy"],
        "validation_ece_before": before["ece"],
        "validation_ece": after["ece"],
        "validation_brier_before": before["brier"],
        "validation_brier": after["brier"],
        "temperature": figures["temperature"],
        "validation_outliers": figures["outlier_share"],
    }
    recommended = figures["recommended_threshold"]
    if recommended is None:
        print(f"no threshold reaches an accepted accuracy of {figures['threshold_target']:g}", flush=True)
    else:
        lines |= {
            "threshold": recommended["value"],
            "threshold_coverage": recommended["coverage"],
            "threshold_accuracy": recommended["accepted_accuracy"],
            "threshold_lower_bound": recommended["lower_bound"],
        }
    every_class = figures["recommended_threshold_every_class"]
    if every_class is not None:
        lines |= {
            "threshold_every_class": every_class["value"],
            "threshold_every_class_coverage": every_class["coverage"],
        }
    for name, value in lines.items():
        print(f"{name}={value:.6g}", flush=True)


def save(model: Model, figures: dict[str, Any], folder: Path) -> None:
    """Writes the model, its figures, and what serves it in AWS's PyTorch and Ray Serve images."""
    torch.save(model.state_dict(), folder / "model.pt")
    (folder / "model.json").write_text(json.dumps(model.shape.to_json()))
    (folder / "metrics.json").write_text(json.dumps(figures, indent=2))
    (folder / "code").mkdir(exist_ok=True)
    for name in CODE:
        shutil.copy(Path(__file__).with_name(name), folder / "code" / name)
    for name in RAY_SERVE:
        shutil.copy(Path(__file__).with_name(name), folder / name)


def write_answers(path: Path, names: list[str], labels: np.ndarray, raw: Answers, predicted: Prediction) -> None:
    """A line per training image with what the members not fitted on it answered, before and after calibration."""
    before, after = raw.probabilities.numpy(), predicted.probabilities.numpy()
    scores = None if predicted.outlier_scores is None else predicted.outlier_scores.numpy()
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        classes = range(before.shape[1])
        probabilities = [f"{kind}_{number}" for kind in ("raw", "calibrated") for number in classes]
        rows.writerow(["image", "label", *probabilities, "outlier_score"])
        for row, (name, label) in enumerate(zip(names, labels, strict=True)):
            score = "" if scores is None else f"{scores[row]:.6g}"
            rows.writerow([name, label, *(f"{value:.6g}" for value in (*before[row], *after[row])), score])


def image_shape(text: str) -> tuple[int, int, int]:
    shape = tuple(int(size) for size in text.split(","))
    if len(shape) != 3 or shape[0] != 3 or any(size < 8 or size % 8 for size in shape[1:]):
        raise argparse.ArgumentTypeError(f"{text!r} is not 3,height,width with multiples of 8")
    return shape


def _options() -> argparse.Namespace:
    environment = os.environ
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image_shape", type=image_shape, default="3,32,32", help="channels, height, width")
    parser.add_argument("--num_classes", type=int, required=True)
    parser.add_argument("--num_training_samples", type=int, required=True)
    parser.add_argument("--epochs", type=int, default=84)
    parser.add_argument("--learning_rate", type=float, default=0.004)
    parser.add_argument("--mini_batch_size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folds", type=int, default=5, help="parts that the images are dealt into")
    parser.add_argument("--repeats", type=int, default=1, help="how often they are dealt anew")
    parser.add_argument("--classifier", choices=("single", "ensemble"), default="single", help="what serves")
    parser.add_argument(
        "--outlier_share", type=float, default=0.02, help="confident images over the limit; 0: no score"
    )
    parser.add_argument("--threshold_target", type=float, default=0.99, help="accuracy of what is accepted")
    parser.add_argument("--threshold_level", type=float, default=0.90, help="confidence of its lower bound")
    parser.add_argument("--threshold_method", choices=thresholds.METHODS, default="monotone", help="how it is shown")
    parser.add_argument("--train", type=Path, default=environment.get("SM_CHANNEL_TRAIN"))
    parser.add_argument("--train_lst", type=Path, default=environment.get("SM_CHANNEL_TRAIN_LST"))
    parser.add_argument("--model_dir", type=Path, default=environment.get("SM_MODEL_DIR"))
    options = parser.parse_args()
    for name in ("train", "train_lst", "model_dir"):
        if getattr(options, name) is None:
            parser.error(f"--{name} is needed outside SageMaker")
    options.checkpoints = configured_folder(environment.get("SM_INPUT_CONFIG_DIR"))
    options.final = options.classifier == "single"
    if options.final and options.repeats != 1:
        parser.error("--repeats is 1 where a single network serves: the mean of several tells nothing about one")
    return options


if __name__ == "__main__":
    main()
