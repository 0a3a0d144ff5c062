"""A small convolutional network for 32x32 images, saved as a plain state dict with its shape beside it."""

import torch
from torch import Tensor, nn
from torch.nn import functional

CHANNELS = (32, 64, 128)
MEAN = (0.5, 0.5, 0.5)
STD = (0.25, 0.25, 0.25)


class Classifier(nn.Module):
    """Three convolution blocks that halve the image each, then a linear layer on what is left of it."""

    def __init__(self, num_classes: int, image_shape: tuple[int, int, int] = (3, 32, 32)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = image_shape[0]
        for channels in CHANNELS:
            layers += [
                nn.Conv2d(width, channels, 3, padding=1, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(inplace=True),
                nn.MaxPool2d(2),
            ]
            width = channels
        self.features = nn.Sequential(*layers)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(width * (image_shape[1] // 8) * (image_shape[2] // 8), num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """images: (n, channels, height, width) from `normalize`. Returns logits (n, num_classes)."""
        logits: Tensor = self.head(self.dropout(self.features(images).flatten(1)))
        return logits


class Ensemble(nn.Module):
    """Several classifiers that answer together, with the mean of their probabilities."""

    def __init__(self, members: int, num_classes: int, image_shape: tuple[int, int, int] = (3, 32, 32)) -> None:
        super().__init__()
        self.members = nn.ModuleList(Classifier(num_classes, image_shape) for _ in range(members))

    def forward(self, images: Tensor) -> Tensor:
        """images: (n, channels, height, width) from `normalize`. Returns logits (n, num_classes)."""
        each = torch.stack([functional.log_softmax(member(images), dim=1) for member in self.members])
        return torch.logsumexp(each, dim=0)


def normalize(pixels: Tensor) -> Tensor:
    """(n, 3, height, width) uint8 to float32 around 0."""
    mean = torch.tensor(MEAN).view(1, 3, 1, 1)
    std = torch.tensor(STD).view(1, 3, 1, 1)
    return (pixels.float() / 255 - mean) / std


def probabilities(model: nn.Module, images: Tensor) -> Tensor:
    """Class probabilities (n, num_classes) of normalized images, averaged over each image and its mirror image."""
    with torch.inference_mode():
        both = functional.softmax(model(torch.cat([images, images.flip(3)])), dim=1)
        first, mirrored = both.chunk(2)
        return (first + mirrored) / 2
