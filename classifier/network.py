"""A small convolutional network for 32x32 images, and the cross-fitted ensemble of it that is trained and served.

Saved as a plain state dict with its shape beside it (model.json).
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

CHANNELS = (32, 64, 128)
# Of the training images of bicycles and motorcycles; any other images are near enough.
MEAN = (0.531, 0.516, 0.491)
STD = (0.260, 0.259, 0.269)


@dataclass(frozen=True)
class Shape:
    """What a saved ensemble is made of. It has folds * repeats members.

    Each repeat deals the training images anew into folds, and each of its members was fitted without one fold.
    """

    num_classes: int
    folds: int
    repeats: int
    image_shape: tuple[int, int, int] = (3, 32, 32)
    temperature: float = 1.0

    def to_json(self) -> dict[str, object]:
        return {"schema_version": 2, **asdict(self)}

    @classmethod
    def from_json(cls, content: dict[str, object]) -> "Shape":
        """Raises ValueError for another schema."""
        fields = dict(content)
        if fields.pop("schema_version", None) != 2:
            raise ValueError(f"model.json has schema_version {content.get('schema_version')!r}, this code reads 2")
        fields["image_shape"] = tuple(fields["image_shape"])  # type: ignore[arg-type]
        return cls(**fields)  # type: ignore[arg-type]


class Residual(nn.Module):
    """Adds a convolution of what it is given to it; at first it adds nothing."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        last = nn.BatchNorm2d(channels)
        nn.init.zeros_(last.weight)
        self.branch = nn.Sequential(nn.GELU(), nn.Conv2d(channels, channels, 3, padding=1, bias=False), last)

    def forward(self, features: Tensor) -> Tensor:
        """(n, channels, height, width) to the same."""
        result: Tensor = features + self.branch(features)
        return result


class Classifier(nn.Module):
    """Three convolutions that halve the image each, residual ones after the last two, and a linear layer.

    Pooling comes right after a convolution: what follows works on a quarter of the values.
    """

    def __init__(self, num_classes: int, image_shape: tuple[int, int, int] = (3, 32, 32)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = image_shape[0]
        for block, channels in enumerate(CHANNELS):
            layers += [
                nn.Conv2d(width, channels, 3, padding=1, bias=False),
                nn.MaxPool2d(2),
                nn.BatchNorm2d(channels),
                nn.GELU(),
                *([Residual(channels)] if block else []),
            ]
            width = channels
        self.features = nn.Sequential(*layers)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(width * (image_shape[1] // 8) * (image_shape[2] // 8), num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """images: (n, channels, height, width) from `normalize`. Returns logits (n, num_classes)."""
        logits: Tensor = self.head(self.dropout(self.features(images).flatten(1)))
        return logits

    def whiten(self, images: Tensor) -> None:
        """Fixes the first convolution to the whitened principal components of the images' 3x3 patches.

        Each component is there twice, with both signs, because pooling keeps the larger values. What is left over of
        the filters stays random. (Whitened patches as features: Coates and Ng 2012.)
        """
        first = self.features[0]
        assert isinstance(first, nn.Conv2d)
        weight = first.weight
        patches = functional.unfold(images, 3).transpose(1, 2).reshape(-1, weight[0].numel())
        patches = patches[torch.randperm(len(patches))[:20_000]]
        values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        count = min(len(weight) // 2, len(values))
        filters = (vectors / torch.sqrt(values + 1e-2)).T.flip(0)[:count].reshape(count, *weight.shape[1:])
        size = weight.detach().flatten(1).norm(dim=1).mean()  # as large as they were
        filters = filters / filters.flatten(1).norm(dim=1).mean() * size
        weight.requires_grad_(False)
        weight[: 2 * count] = torch.cat([filters, -filters])


class Ensemble(nn.Module):
    """The members of a cross-fit, which answer together with the mean of their probabilities, calibrated."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.members = nn.ModuleList(
            Classifier(shape.num_classes, shape.image_shape) for _ in range(shape.folds * shape.repeats)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Probabilities (n, num_classes) of normalized images (n, channels, height, width)."""
        return self._calibrated(torch.stack([probabilities(member, images) for member in self.members]).mean(0))

    def out_of_fold(self, pixels: Tensor) -> Tensor:
        """Probabilities (n, num_classes) of (n, channels, height, width) uint8, each image by the members whose
        training left out its fold: none of them was fitted on it, whether or not it was among the training images.
        """
        answers = torch.zeros(len(pixels), self.shape.num_classes)
        images = normalize(pixels)
        for repeat in range(self.shape.repeats):
            assigned = assign_folds(pixels.numpy(), self.shape.folds, repeat)
            for fold in range(self.shape.folds):
                rows = torch.from_numpy(np.flatnonzero(assigned == fold))
                if len(rows):
                    member = self.members[repeat * self.shape.folds + fold]
                    answers[rows] += probabilities(member, images[rows]) / self.shape.repeats
        return self._calibrated(answers)

    def prepare(self) -> None:
        """Makes inference fast: channels last takes two thirds of the time that PyTorch's own order does."""
        self.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _calibrated(self, mean: Tensor) -> Tensor:
        return functional.softmax(mean.clamp_min(1e-12).log() / self.shape.temperature, dim=1)


def assign_folds(pixels: np.ndarray, folds: int, repeat: int) -> np.ndarray:
    """Fold (n,) of each image (n, ...) uint8: a hash of its content, so that it stays where it is in every data set."""
    salt = f"{repeat}/".encode()
    digests = (hashlib.sha256(salt + image.tobytes()).digest() for image in pixels)
    return np.array([int.from_bytes(digest[:8], "big") % folds for digest in digests], dtype=int)


def normalize(pixels: Tensor) -> Tensor:
    """(n, 3, height, width) uint8 to float32 around 0."""
    mean = torch.tensor(MEAN).view(1, 3, 1, 1)
    std = torch.tensor(STD).view(1, 3, 1, 1)
    return (pixels.float() / 255 - mean) / std


def probabilities(member: nn.Module, images: Tensor) -> Tensor:
    """Class probabilities (n, num_classes) of normalized images, averaged over each image and its mirror image."""
    with torch.inference_mode():
        pairs = torch.cat([images, images.flip(3)]).contiguous(memory_format=torch.channels_last)
        both = functional.softmax(member(pairs), dim=1)
        first, mirrored = both.chunk(2)
        return (first + mirrored) / 2


def load_ensemble(folder: Path) -> Ensemble:
    """What train.py saved in a model folder, ready to answer."""
    model = Ensemble(Shape.from_json(json.loads((folder / "model.json").read_text())))
    model.load_state_dict(torch.load(folder / "model.pt", map_location="cpu", weights_only=True))
    model.prepare()
    return model
