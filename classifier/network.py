"""A small convolutional network for 32x32 images, and the model that is trained and served: several of them.

Saved as a plain state dict with its shape beside it (model.json).
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

CHANNELS = (32, 64, 128)
# Of the training images of bicycles and motorcycles; any other images are near enough.
MEAN = (0.531, 0.516, 0.491)
STD = (0.260, 0.259, 0.269)
# Of the images that are answered at once: 256 of 32 x 32.
BATCH_PIXELS = 256 * 32 * 32


@dataclass(frozen=True)
class OutlierScale:
    """What makes one score of a network's two signs that a picture is of no class.

    The signs (see Answers) are standardized by their mean and deviation over training images, by networks that were not
    fitted to them, and added. median: of the sum over confident ones. limit: what counts as an outlier from there on.
    """

    logit_mean: float
    logit_deviation: float
    distance_mean: float
    distance_deviation: float
    median: float
    limit: float

    def score(self, logit: Tensor, distance: Tensor) -> Tensor:
        """Scores (n,): 1 at the limit, 1/e for the median of confident training images."""
        excess = (self.standardized(logit, distance) - self.limit) / max(self.limit - self.median, 1e-6)
        return excess.clamp(-50, 50).exp()

    def standardized(self, logit: Tensor, distance: Tensor) -> Tensor:
        """The sum (n,) of both signs in units of their deviations."""
        return (logit - self.logit_mean) / max(self.logit_deviation, 1e-6) + (distance - self.distance_mean) / max(
            self.distance_deviation, 1e-6
        )


@dataclass(frozen=True)
class Shape:
    """What a saved model is made of: folds * repeats members, and `final` if one network of all images serves.

    Each repeat deals the training images anew into folds, and each of its members was fitted without one fold.
    outliers: None if the model does not tell which pictures are of no class.
    """

    num_classes: int
    folds: int
    repeats: int
    final: bool
    image_shape: tuple[int, int, int] = (3, 32, 32)
    temperature: float = 1.0
    outliers: OutlierScale | None = None

    def to_json(self) -> dict[str, object]:
        return {"schema_version": 3, **asdict(self)}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Shape":
        """Raises ValueError for another schema."""
        fields = dict(content)
        if fields.pop("schema_version", None) != 3:
            raise ValueError(f"model.json has schema_version {content.get('schema_version')!r}, this code reads 3")
        fields["image_shape"] = tuple(fields["image_shape"])
        fields["outliers"] = OutlierScale(**fields["outliers"]) if fields["outliers"] else None
        return cls(**fields)


class Answers(NamedTuple):
    """What a network says of n pictures, averaged over their views; not calibrated.

    probabilities: (n, num_classes). outlier_logit (n,): of being like a training image that is turned by a quarter or a
    half, which the network has seen as examples of what is of no class. outlier_distance (n,): 1 - the mean cosine of
    its features and the training images' features.
    """

    probabilities: Tensor
    outlier_logit: Tensor
    outlier_distance: Tensor

    def of(self, rows: Tensor) -> "Answers":
        """The answers about some of the pictures. rows: (n,) bool."""
        return Answers(*(values[rows] for values in self))


class Prediction(NamedTuple):
    """probabilities: (n, num_classes), calibrated. outlier_scores: (n,), over 1 for a picture of no class; or None."""

    probabilities: Tensor
    outlier_scores: Tensor | None


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

    It has an output for each class, and one more for pictures of none. direction: mean of the training images'
    features, each of length 1.

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
        features = width * (image_shape[1] // 8) * (image_shape[2] // 8)
        self.head = nn.Linear(features, num_classes + 1)
        self.direction: Tensor
        self.register_buffer("direction", torch.zeros(features))

    def forward(self, images: Tensor) -> Tensor:
        """images: (n, channels, height, width) from `normalize`. Returns logits (n, num_classes + 1)."""
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


class Model(nn.Module):
    """What a training job leaves: the members of a cross-fit, and the network that serves if there is one.

    Without it all members serve, with the mean of their answers.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.members = nn.ModuleList(
            Classifier(shape.num_classes, shape.image_shape) for _ in range(shape.folds * shape.repeats)
        )
        self.final = Classifier(shape.num_classes, shape.image_shape) if shape.final else None

    def forward(self, images: Tensor) -> Prediction:
        """Answers normalized images (n, channels, height, width) as it serves."""
        networks = [self.final] if self.final is not None else list(self.members)
        every = [answers(network, images, shifted=self.shape.final) for network in networks]
        return self.predict(Answers(*(torch.stack(parts).mean(0) for parts in zip(*every, strict=True))))

    def out_of_fold(self, pixels: Tensor) -> Answers:
        """Answers (n, channels, height, width) uint8, each image by the members whose training left out its fold: none
        of them was fitted on it, whether or not it was among the training images.
        """
        n = len(pixels)
        found = Answers(torch.zeros(n, self.shape.num_classes), torch.zeros(n), torch.zeros(n))
        for repeat in range(self.shape.repeats):
            assigned = assign_folds(pixels.numpy(), self.shape.folds, repeat)
            for fold in range(self.shape.folds):
                member = self.members[repeat * self.shape.folds + fold]
                rows_of_fold = torch.from_numpy(np.flatnonzero(assigned == fold))
                for rows in batches(rows_of_fold, pixels):
                    of_member = answers(member, normalize(pixels[rows]), shifted=self.shape.final)
                    for total, part in zip(found, of_member, strict=True):
                        total[rows] += part / self.shape.repeats
        return found

    def predict(self, mean: Answers) -> Prediction:
        """Calibrates probabilities, and makes one score of the signs that a picture is of no class."""
        logarithms = mean.probabilities.clamp_min(1e-12).log() / self.shape.temperature
        scale = self.shape.outliers
        scores = None if scale is None else scale.score(mean.outlier_logit, mean.outlier_distance)
        return Prediction(functional.softmax(logarithms, dim=1), scores)

    def prepare(self) -> None:
        """Makes inference fast: channels last takes two thirds of the time that PyTorch's own order does."""
        self.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def assign_folds(pixels: np.ndarray, folds: int, repeat: int) -> np.ndarray:
    """Fold (n,) of each image (n, ...) uint8: a hash of its content, so that it stays where it is in every data set."""
    salt = f"{repeat}/".encode()
    digests = (hashlib.sha256(salt + image.tobytes()).digest() for image in pixels)
    return np.array([int.from_bytes(digest[:8], "big") % folds for digest in digests], dtype=int)


def batches(rows: Tensor, pixels: Tensor) -> tuple[Tensor, ...]:
    """Indices of images, parted so that what a network makes of a part fits into memory."""
    parts: tuple[Tensor, ...] = rows.split(max(BATCH_PIXELS // (pixels.shape[2] * pixels.shape[3]), 1))  # type: ignore[no-untyped-call]
    return parts


def normalize(pixels: Tensor) -> Tensor:
    """(n, 3, height, width) uint8 to float32 around 0."""
    mean = torch.tensor(MEAN).view(1, 3, 1, 1)
    std = torch.tensor(STD).view(1, 3, 1, 1)
    return (pixels.float() / 255 - mean) / std


def answers(network: nn.Module, images: Tensor, shifted: bool) -> Answers:
    """What a Classifier says of normalized images, averaged over each image's views.

    Views are the image and its mirror image; with `shifted` the mirror image is moved by a pixel along the diagonal,
    and the image itself, moved the other way, is a third. Nothing is learned from one image about another.
    """
    assert isinstance(network, Classifier)
    with torch.inference_mode():
        found = _of_views(network, images, shifted)
        logits = network.head(found)
        probabilities, logit = functional.softmax(logits[..., :-1], dim=2).mean(0), logits[..., -1].mean(0)
        return Answers(probabilities, logit, 1 - _directions(found) @ network.direction)


def features(network: Classifier, images: Tensor, shifted: bool) -> Tensor:
    """The features (n, features) of normalized images, averaged over each image's views, of length 1."""
    with torch.inference_mode():
        return _directions(_of_views(network, images, shifted))


def _directions(of_views: Tensor) -> Tensor:
    return functional.normalize(of_views.mean(0), dim=1)


def _of_views(network: Classifier, images: Tensor, shifted: bool) -> Tensor:
    """Features (views, n, features)."""
    mirrored = images.flip(3)
    views = [images, _moved(mirrored, 1), _moved(images, -1)] if shifted else [images, mirrored]
    batch = torch.cat(views).contiguous(memory_format=torch.channels_last)
    found: Tensor = network.features(batch).flatten(1).unflatten(0, (len(views), len(images)))
    return found


def _moved(images: Tensor, pixels: int) -> Tensor:
    """Images moved down and to the right; what comes in at the edges is the image's mirror image."""
    height, width = images.shape[2:]
    padded = functional.pad(images, (1, 1, 1, 1), mode="reflect")
    return padded[:, :, 1 - pixels : 1 - pixels + height, 1 - pixels : 1 - pixels + width]


def load_model(folder: Path) -> Model:
    """What train.py saved in a model folder, ready to answer."""
    model = Model(Shape.from_json(json.loads((folder / "model.json").read_text())))
    model.load_state_dict(torch.load(folder / "model.pt", map_location="cpu", weights_only=True))
    model.prepare()
    return model
