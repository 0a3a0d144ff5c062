"""Trains the classifier: SageMaker's script mode runs this with hyperparameters as arguments.

Channels: `train` holds the images, `train_lst` a manifest of index, label and file name separated by tabs. Writes the
state dict, its metadata and the inference code to SM_MODEL_DIR.
"""

import argparse
import copy
import json
import math
import multiprocessing
import os
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from network import Classifier, Ensemble, normalize
from PIL import Image
from torch import Tensor, nn

WEIGHT_DECAY = 0.02
LABEL_SMOOTHING = 0.02
AVERAGING = 0.99
SHIFT = 3
CODE = ("inference.py", "network.py", "requirements.txt")


def main() -> None:
    options = _options()
    channels, height, width = (int(size) for size in options.image_shape.split(","))
    pixels, labels = load(options.train, options.train_lst, (channels, height, width), options.num_classes)
    if len(labels) != options.num_training_samples:
        raise SystemExit(f"num_training_samples is {options.num_training_samples}, the manifest has {len(labels)}")
    save(fit_ensemble(pixels, labels, options), options)


def load(
    images: Path, manifest_folder: Path, image_shape: tuple[int, int, int], num_classes: int
) -> tuple[Tensor, Tensor]:
    """Images (n, 3, height, width) uint8 and labels (n,); raises SystemExit that names the bad file or line."""
    manifests = sorted(manifest_folder.glob("*.lst"))
    if len(manifests) != 1:
        raise SystemExit(f"the channel train_lst must hold one .lst file, it has {len(manifests)}")
    pixels, labels = [], []
    for number, line in enumerate(manifests[0].read_text().splitlines(), start=1):
        try:
            _, label, name = line.split("\t")
            labels.append(int(label))
            with Image.open(images / name) as image:
                array = np.array(image.convert("RGB"))
        except (ValueError, OSError) as error:
            raise SystemExit(f"{manifests[0].name}, line {number}: {error}") from error
        if array.shape != (*image_shape[1:], image_shape[0]):
            raise SystemExit(f"{name} has shape {array.shape}, not image_shape {image_shape}")
        pixels.append(array)
    if not labels or min(labels) < 0 or max(labels) >= num_classes:
        raise SystemExit(f"labels must be 0 to {num_classes - 1}; the manifest has {sorted(set(labels))}")
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels)


def fit_ensemble(pixels: Tensor, labels: Tensor, options: argparse.Namespace) -> Ensemble:
    """Trains each member in a process and on a core of its own, from a seed of its own."""
    ensemble = Ensemble(options.members, options.num_classes, tuple(pixels.shape[1:]))
    processes = min(options.members, os.cpu_count() or 1)
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        # numpy arrays: torch would share tensors through file descriptors, of which there may be too few.
        jobs = [
            pool.submit(_fit_member, pixels.numpy(), labels.numpy(), options, member)
            for member in range(1, options.members + 1)
        ]
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
    """Trains one member on everything and returns the average of its weights over the last epochs."""
    model = Classifier(options.num_classes, tuple(pixels.shape[1:])).to(memory_format=torch.channels_last)
    average = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, weight_decay=WEIGHT_DECAY)
    steps = math.ceil(len(labels) / options.mini_batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=options.learning_rate, total_steps=options.epochs * steps, pct_start=0.2
    )
    loss_function = nn.CrossEntropyLoss(label_smoothing=LABEL_SMOOTHING)
    images = normalize(pixels)
    step = 0
    for epoch in range(1, options.epochs + 1):
        started = time.monotonic()
        model.train()
        total_loss = correct = 0.0
        for batch in torch.randperm(len(labels)).split(options.mini_batch_size):
            if len(batch) < 2:  # batch normalization needs two
                continue
            logits = model(augment(images[batch]))
            loss = loss_function(logits, labels[batch])
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
            f"epoch={epoch} of={options.epochs} member={member} train_loss={total_loss / len(labels):.4f} "
            f"train_accuracy={correct / len(labels):.4f} seconds={time.monotonic() - started:.2f}",
            flush=True,
        )
    return average.eval()


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
    top, left = torch.randint(0, height - size, (n, 1, 1)), torch.randint(0, width - size, (n, 1, 1))
    rows, columns = torch.arange(height).view(1, -1, 1), torch.arange(width).view(1, 1, -1)
    hole = (rows >= top) & (rows < top + size) & (columns >= left) & (columns < left + size)
    return images.masked_fill(hole.unsqueeze(1), 0).contiguous(memory_format=torch.channels_last)


def save(model: nn.Module, options: argparse.Namespace) -> None:
    """Writes what inference.py reads, and inference.py itself."""
    folder: Path = options.model_dir
    torch.save(model.state_dict(), folder / "model.pt")
    metadata = {
        "schema_version": 1,
        "members": options.members,
        "num_classes": options.num_classes,
        "image_shape": options.image_shape,
    }
    (folder / "model.json").write_text(json.dumps(metadata))
    (folder / "code").mkdir(exist_ok=True)
    for name in CODE:
        shutil.copy(Path(__file__).with_name(name), folder / "code" / name)


def _average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Moves the average of the weights a step towards the model's; buffers are taken as they are."""
    with torch.no_grad():
        for mean, value in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, 1 - decay)
            else:
                mean.copy_(value)


def _options() -> argparse.Namespace:
    environment = os.environ
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image_shape", default="3,32,32", help="channels, height, width")
    parser.add_argument("--num_classes", type=int, required=True)
    parser.add_argument("--num_training_samples", type=int, required=True)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--learning_rate", type=float, default=0.002)
    parser.add_argument("--mini_batch_size", type=int, default=64)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--members", type=int, default=2, help="networks that answer together")
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
