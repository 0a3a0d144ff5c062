"""Fits one network: the recipe of its training, and how images are varied for it."""

import argparse
import copy
import heapq
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch
from checkpoints import NOWHERE, Checkpoint
from network import Classifier, batches, features, normalize
from torch import Tensor, nn

WEIGHT_DECAY = 0.05
LABEL_SMOOTHING = 0.05
AVERAGING = 0.99
SHIFT = 3
# Turned images among those of a batch, as a share of the others, and the weight of telling them apart.
TURNED_SHARE = 0.5
TURNED_WEIGHT = 0.5
# Of as many pixels at most are patches looked at, a row of 27 numbers each.
WHITENED_PIXELS = 1_500_000
# A network is saved so often while it is trained, and at least as often as that many seconds say.
CHECKPOINTS = 4
CHECKPOINT_SECONDS = 300.0


@dataclass(frozen=True)
class Work:
    """All that a training has yet to do, of which the first epoch's pace tells how long it takes.

    left: images that each network is yet to be shown, in the order in which they are fitted. cores: how many are fitted
    at once. began: when the training did, in seconds since 1970.
    """

    left: tuple[int, ...]
    cores: int
    began: float

    def estimate(self, images: int, seconds: float) -> str:
        """A line with the estimate, after an epoch of that many images that took so long and has just ended."""
        waited = time.time() - seconds - self.began
        total = waited + seconds_of(self.left, self.cores, images / max(seconds, 1e-6))
        end = datetime.fromtimestamp(self.began + total, UTC)
        return f"estimated_seconds={total:.0f} estimated_end={end:%Y-%m-%dT%H:%M:%SZ}"


def seconds_of(left: Sequence[int], cores: int, images_per_second: float) -> float:
    """How long networks take that are fitted in this order, each on the core that is free first.

    left: images that each is to be shown. images_per_second: of one core.
    """
    free = [0.0] * cores
    for images in left:
        heapq.heapreplace(free, free[0] + images / images_per_second)
    return max(free)


def fit(
    pixels: Tensor,
    labels: Tensor,
    rows: Tensor,
    options: argparse.Namespace,
    member: str,
    checkpoint: Checkpoint = NOWHERE,
    work: Work | None = None,
) -> Classifier:
    """Trains a network on some of the images and returns the average of its weights over the last epochs.

    Besides the classes it learns to tell upright images from turned ones, as examples of what is of no class. pixels:
    (n, 3, height, width) uint8, which may be a file's; a batch at a time is in memory. labels: (n,). rows: indices of
    those to train on. member: how its lines of progress begin. checkpoint: where the network is saved, and from which
    it goes on as if it had never been interrupted. work: if an estimate is to be printed after the first epoch.
    """
    model = Classifier(options.num_classes, options.image_shape)
    model.whiten(normalize(pixels[_enough(rows, pixels)]))
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
    steps = math.ceil(len(rows) / options.mini_batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=options.learning_rate, total_steps=options.epochs * steps, pct_start=0.2
    )
    loss_function = nn.CrossEntropyLoss(label_smoothing=LABEL_SMOOTHING)
    half_precision = multiplies_bfloat16()
    parts = {"average": average, "model": model, "optimizer": optimizer, "schedule": schedule}
    state = checkpoint.load()
    done, step = state.get("epoch", 0), state.get("step", 0)
    if state:
        for name, part in parts.items():
            if name in state:
                part.load_state_dict(state[name])
        torch.set_rng_state(state["random"])
        print(f"member={member} goes on after epoch={done}/{options.epochs}\n", end="", flush=True)
    saved = time.monotonic()
    for epoch in range(done + 1, options.epochs + 1):
        started = time.monotonic()
        model.train()
        total_loss = correct = 0.0
        for batch in rows[torch.randperm(len(rows))].split(options.mini_batch_size):  # type: ignore[no-untyped-call]
            if len(batch) < 2:  # batch normalization needs two
                continue
            sample = rows[torch.randperm(len(rows))][: max(round(len(batch) * TURNED_SHARE), 1)]
            varied = torch.cat([augment(normalize(pixels[batch])), turned(augment(normalize(pixels[sample])))])
            with torch.autocast("cpu", torch.bfloat16, enabled=half_precision):
                outputs = model(varied.contiguous(memory_format=torch.channels_last)).float()
            logits, is_turned = outputs[: len(batch), :-1], (torch.arange(len(varied)) >= len(batch)).float()
            loss = loss_function(logits, labels[batch])
            loss += TURNED_WEIGHT * nn.functional.binary_cross_entropy_with_logits(outputs[:, -1], is_turned)
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
            f"member={member} epoch={epoch}/{options.epochs} "
            f"train_loss={total_loss / len(rows):.4f} "
            f"train_accuracy={correct / len(rows):.4f} seconds={time.monotonic() - started:.2f}\n",
            end="",  # the line end in the same write: other members print too
            flush=True,
        )
        if work and epoch == done + 1:
            print(f"{work.estimate(len(rows), time.monotonic() - started)}\n", end="", flush=True)
        due = epoch % math.ceil(options.epochs / CHECKPOINTS) == 0 or time.monotonic() - saved > CHECKPOINT_SECONDS
        if due or epoch == options.epochs:
            # Nothing but the average is needed of a network that is done.
            kept = parts if epoch < options.epochs else {"average": average}
            states = {name: part.state_dict() for name, part in kept.items()}
            checkpoint.save({"epoch": epoch, "step": step, "random": torch.get_rng_state(), **states})
            saved = time.monotonic()
    average.eval()
    total = torch.zeros(average.direction.shape, dtype=torch.float64)
    for part in batches(rows, pixels):
        total += features(average, normalize(pixels[part]), options.final).sum(0)
    average.direction.copy_(total / len(rows))
    return average


def _enough(rows: Tensor, pixels: Tensor) -> Tensor:
    """As many of the rows, drawn at random, as WHITENED_PIXELS allow."""
    most = WHITENED_PIXELS // (pixels.shape[2] * pixels.shape[3])
    return rows if len(rows) <= most else rows[torch.randperm(len(rows))[:most]]


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
    return images.masked_fill(hole.unsqueeze(1), 0)


def turned(images: Tensor) -> Tensor:
    """Images (n, channels, height, width) turned by a quarter, a half or three; by a half if they are not square.

    Whoever tells them from upright ones learns what upright ones of the classes look like, and so notices other things
    too (Hendrycks et al. 2019; Tack et al. 2020).
    """
    quarters = (
        torch.randint(1, 4, (len(images),)) if images.shape[2] == images.shape[3] else torch.full((len(images),), 2)
    )
    result = torch.empty_like(images)
    for count in (1, 2, 3):
        rows = quarters == count
        if rows.any():
            result[rows] = images[rows].rot90(count, (2, 3))
    return result


def _average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Moves the average of the weights a step towards the model's; buffers are taken as they are."""
    with torch.no_grad():
        for mean, value in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, 1 - decay)
            else:
                mean.copy_(value)
