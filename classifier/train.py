"""Trains the classifier: SageMaker's script mode runs this with hyperparameters as arguments.

Channels: `train` holds the images, `train_lst` a manifest of index, label and file name separated by tabs.

The model is a cross-fitted ensemble: the images are dealt into folds, each member is fitted without one fold, and what
the members answer about the images they were not fitted on gives the temperature, the recommended threshold and the
figures in metrics.json. Writes the state dict, its shape, the figures, these answers and the inference code to
SM_MODEL_DIR.
"""

import argparse
import copy
import csv
import json
import math
import multiprocessing
import os
import shutil
import time
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import calibration
import numpy as np
import thresholds
import torch
from network import Classifier, Ensemble, Shape, assign_folds, normalize
from PIL import Image
from torch import Tensor, nn

WEIGHT_DECAY = 0.05
LABEL_SMOOTHING = 0.05
AVERAGING = 0.99
SHIFT = 3
HYPERPARAMETERS = ("image_shape", "epochs", "learning_rate", "mini_batch_size", "seed", "folds", "repeats")
CODE = ("inference.py", "serving.py", "network.py", "out_of_fold.py", "requirements.txt")
# Ray Serve looks for these at the root of the archive.
RAY_SERVE = ("config.yaml", "deployment.py")


def main() -> None:
    """Raises ValueError if images, manifest and hyperparameters do not fit: the job's failure reason, which the
    container's toolkit takes from tracebacks that name one of Python's own exceptions.
    """
    options = _options()
    pixels, labels, names = load(options.train, options.train_lst, options.image_shape, options.num_classes)
    if len(labels) != options.num_training_samples:
        raise ValueError(f"num_training_samples is {options.num_training_samples}, the manifest has {len(labels)}")
    model = cross_fit(pixels, labels, options)
    raw = model.out_of_fold(pixels).numpy()
    temperature = calibration.fit_temperature(raw, labels.numpy())
    calibrated = calibration.scale(raw, temperature)
    figures = evaluate(raw, calibrated, temperature, labels.numpy(), options)
    model.shape = replace(model.shape, temperature=temperature)
    save(model, figures, options.model_dir)
    write_answers(options.model_dir / "out_of_fold.csv", names, labels.numpy(), raw, calibrated)
    print_figures(figures)


def load(
    images: Path, manifest_folder: Path, image_shape: tuple[int, int, int], num_classes: int
) -> tuple[Tensor, Tensor, list[str]]:
    """Images (n, 3, height, width) uint8, labels (n,) and names; raises ValueError with the bad file or line."""
    manifests = sorted(manifest_folder.glob("*.lst"))
    if len(manifests) != 1:
        raise ValueError(f"the channel train_lst must hold one .lst file, it has {len(manifests)}")
    pixels, labels, names = [], [], []
    for number, line in enumerate(manifests[0].read_text().splitlines(), start=1):
        try:
            _, label, name = line.split("\t")
            labels.append(int(label))
            with Image.open(images / name) as image:
                array = np.array(image.convert("RGB"))
        except (ValueError, OSError) as error:
            raise ValueError(f"{manifests[0].name}, line {number}: {error}") from error
        if array.shape != (*image_shape[1:], image_shape[0]):
            raise ValueError(f"{name} has shape {array.shape}, not image_shape {image_shape}")
        pixels.append(array)
        names.append(name)
    if not labels or min(labels) < 0 or max(labels) >= num_classes:
        raise ValueError(f"labels must be 0 to {num_classes - 1}; the manifest has {sorted(set(labels))}")
    missing = sorted(set(range(num_classes)) - set(labels))
    if missing:
        raise ValueError(f"the manifest has no image of label {', '.join(map(str, missing))}")
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels), names


def cross_fit(pixels: Tensor, labels: Tensor, options: argparse.Namespace) -> Ensemble:
    """An ensemble whose members are each trained without one fold, in a process and on a core of their own."""
    ensemble = Ensemble(Shape(options.num_classes, options.folds, options.repeats, options.image_shape))
    images = pixels.numpy()
    # numpy arrays: torch would share tensors through file descriptors, of which there may be too few.
    jobs: list[Future[Any]] = []
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__"])  # PyTorch is loaded once, not by every process
    with ProcessPoolExecutor(os.cpu_count() or 1, context) as pool:
        for repeat in range(options.repeats):
            assigned = assign_folds(images, options.folds, repeat)
            for fold in range(options.folds):
                rows = assigned != fold
                jobs.append(pool.submit(_fit_member, images[rows], labels.numpy()[rows], options, len(jobs) + 1))
        for member, job in zip(ensemble.members, jobs, strict=True):
            member.load_state_dict({name: torch.from_numpy(value) for name, value in job.result().items()})
    return ensemble.eval()


def _fit_member(
    pixels: np.ndarray, labels: np.ndarray, options: argparse.Namespace, member: int
) -> dict[str, np.ndarray]:
    torch.manual_seed(options.seed * 1000 + member)
    torch.set_num_threads(1)
    model = fit(torch.from_numpy(pixels), torch.from_numpy(labels), options, member)
    return {name: np.array(value) for name, value in model.state_dict().items()}


def fit(pixels: Tensor, labels: Tensor, options: argparse.Namespace, member: int) -> nn.Module:
    """Trains one member on what it is given and returns the average of its weights over the last epochs."""
    images = normalize(pixels)
    model = Classifier(options.num_classes, options.image_shape)
    model.whiten(images)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = copy.deepcopy(model)
    # Scales and offsets are not decayed: nothing is overfitted with so few of them.
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.ndim > 1]
    others = [parameter for parameter in trained if parameter.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": others, "weight_decay": 0.0}],
        lr=options.learning_rate,
        betas=(0.9, 0.99),
    )
    steps = math.ceil(len(labels) / options.mini_batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=options.learning_rate, total_steps=options.epochs * steps, pct_start=0.2
    )
    loss_function = nn.CrossEntropyLoss(label_smoothing=LABEL_SMOOTHING)
    half_precision = multiplies_bfloat16()
    step = 0
    for epoch in range(1, options.epochs + 1):
        started = time.monotonic()
        model.train()
        total_loss = correct = 0.0
        for batch in torch.randperm(len(labels)).split(options.mini_batch_size):  # type: ignore[no-untyped-call]
            if len(batch) < 2:  # batch normalization needs two
                continue
            varied = augment(images[batch])
            with torch.autocast("cpu", torch.bfloat16, enabled=half_precision):
                logits = model(varied)
            loss = loss_function(logits.float(), labels[batch])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            step += 1
            # Shorter memory at first, so that few epochs do not average over the untrained network.
            _average(average, model, min(AVERAGING, step / (step + 10)))
            total_loss += loss.item() * len(batch)
            correct += (logits.argmax(1) == labels[batch]).sum().item()
        print(
            f"member={member}/{options.folds * options.repeats} epoch={epoch}/{options.epochs} "
            f"train_loss={total_loss / len(labels):.4f} "
            f"train_accuracy={correct / len(labels):.4f} seconds={time.monotonic() - started:.2f}\n",
            end="",  # the line end in the same write: other members print too
            flush=True,
        )
    return average.eval()


def multiplies_bfloat16() -> bool:
    """Whether this processor does, which nearly halves the time; no if PyTorch is too old to tell."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def augment(images: Tensor) -> Tensor:
    """Random mirror image, shift, saturation, contrast, brightness and cutout of normalized images (n, 3, h, w)."""
    n, _, height, width = images.shape
    # Whole pixels and nearest neighbours: 32x32 images have no detail to lose to interpolation.
    shift = torch.randint(-SHIFT, SHIFT + 1, (n, 2)) * 2 / torch.tensor([width, height])
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = torch.where(torch.rand(n) < 0.5, -1.0, 1.0)
    theta[:, 1, 1] = 1
    theta[:, :, 2] = shift
    grid = nn.functional.affine_grid(theta, [n, 3, height, width], align_corners=False)
    images = nn.functional.grid_sample(images, grid, "nearest", "reflection", align_corners=False)
    grey = images.mean(1, keepdim=True)
    images = grey + (images - grey) * torch.empty(n, 1, 1, 1).uniform_(0.7, 1.3)
    images = images * torch.empty(n, 1, 1, 1).uniform_(0.8, 1.2) + torch.empty(n, 1, 1, 1).uniform_(-0.2, 0.2)
    size = height // 4
    # The hole may stick out of the image.
    top, left = (torch.randint(-size // 2, side - size // 2, (n, 1, 1)) for side in (height, width))
    rows, columns = torch.arange(height).view(1, -1, 1), torch.arange(width).view(1, 1, -1)
    hole = (rows >= top) & (rows < top + size) & (columns >= left) & (columns < left + size)
    return images.masked_fill(hole.unsqueeze(1), 0).contiguous(memory_format=torch.channels_last)


def evaluate(
    raw: np.ndarray, after: np.ndarray, temperature: float, labels: np.ndarray, options: argparse.Namespace
) -> dict[str, Any]:
    """The content of metrics.json, from the out-of-fold probabilities before and after calibration.

    Each figure of calibration comes with a bootstrap interval and with what a perfectly calibrated model would show.
    """
    correct = after.argmax(axis=1) == labels

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

    confidence, asked = after.max(axis=1), (options.threshold_target, options.threshold_level, options.threshold_method)
    threshold = thresholds.recommend_threshold(confidence, correct, *asked)
    by_class = thresholds.thresholds_by_class(confidence, correct, after.argmax(axis=1), after.shape[1], *asked)
    # Which takes that errors are no likelier at higher confidence.
    monotone = options.threshold_method == "monotone"
    every_class = thresholds.for_every_class(confidence, correct, by_class) if monotone else None
    return {
        "schema_version": 1,
        "images": len(labels),
        "accuracy": float(correct.mean()),
        "temperature": temperature,
        "before_calibration": calibrated(raw),
        "after_calibration": calibrated(after),
        "recommended_threshold": None if threshold is None else asdict(threshold),
        "recommended_threshold_every_class": None if every_class is None else asdict(every_class),
        "recommended_thresholds_by_class": [None if each is None else asdict(each) for each in by_class],
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


def save(model: Ensemble, figures: dict[str, Any], folder: Path) -> None:
    """Writes the model, its figures, and what serves it in AWS's PyTorch and Ray Serve images."""
    torch.save(model.state_dict(), folder / "model.pt")
    (folder / "model.json").write_text(json.dumps(model.shape.to_json()))
    (folder / "metrics.json").write_text(json.dumps(figures, indent=2))
    (folder / "code").mkdir(exist_ok=True)
    for name in CODE:
        shutil.copy(Path(__file__).with_name(name), folder / "code" / name)
    for name in RAY_SERVE:
        shutil.copy(Path(__file__).with_name(name), folder / name)


def write_answers(path: Path, names: list[str], labels: np.ndarray, raw: np.ndarray, calibrated: np.ndarray) -> None:
    """A line per training image with what the members not fitted on it answered, before and after calibration."""
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        classes = range(raw.shape[1])
        rows.writerow(["image", "label", *(f"raw_{c}" for c in classes), *(f"calibrated_{c}" for c in classes)])
        for name, label, before, after in zip(names, labels, raw, calibrated, strict=True):
            rows.writerow([name, label, *(f"{value:.6g}" for value in (*before, *after))])


def _average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Moves the average of the weights a step towards the model's; buffers are taken as they are."""
    with torch.no_grad():
        for mean, value in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, 1 - decay)
            else:
                mean.copy_(value)


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
    parser.add_argument("--epochs", type=int, default=42)
    parser.add_argument("--learning_rate", type=float, default=0.004)
    parser.add_argument("--mini_batch_size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folds", type=int, default=5, help="parts that the images are dealt into")
    parser.add_argument("--repeats", type=int, default=2, help="how often they are dealt anew")
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
    return options


if __name__ == "__main__":
    main()
