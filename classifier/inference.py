"""Serves the classifier: the functions that SageMaker's PyTorch containers call."""

import io
import json
from pathlib import Path

import numpy as np
import torch
from network import Ensemble, normalize, probabilities
from PIL import Image
from sagemaker_inference.errors import BaseInferenceToolkitError
from torch import Tensor, nn

SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")
MAX_PIXELS = 50_000_000

torch.set_num_threads(1)


class UnreadableImage(BaseInferenceToolkitError):
    """Answered as 400 with what is wrong with the image."""

    def __init__(self, message: str) -> None:
        super().__init__(400, message, "Bad Request")


def model_fn(model_dir: str) -> nn.Module:
    """Loads the state dict that train.py saved, ready for inference."""
    folder = Path(model_dir)
    metadata = json.loads((folder / "model.json").read_text())
    channels, height, width = (int(size) for size in metadata["image_shape"].split(","))
    model = Ensemble(metadata["members"], metadata["num_classes"], (channels, height, width))
    model.load_state_dict(torch.load(folder / "model.pt", map_location="cpu", weights_only=True))
    model.eval()
    probabilities(model, torch.zeros(1, channels, height, width))  # the first call is slow
    return model


def input_fn(body: bytes | bytearray, content_type: str) -> Tensor:
    """The bytes of a PNG or JPEG as a normalized (1, 3, 32, 32) tensor; the bytes decide, not the content type."""
    data = bytes(body)
    if not data.startswith(SIGNATURES):
        raise UnreadableImage(f"the body ({len(data)} bytes) is neither a PNG nor a JPEG")
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UnreadableImage(f"the image has {image.width} x {image.height} pixels, at most {MAX_PIXELS}")
            image.load()
            picture = image.convert("RGB").resize((32, 32), Image.Resampling.BILINEAR, reducing_gap=2)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UnreadableImage(f"the image can't be decoded: {error}") from error
    return normalize(torch.from_numpy(np.array(picture)).permute(2, 0, 1).unsqueeze(0))


def predict_fn(images: Tensor, model: nn.Module) -> Tensor:
    """Probabilities (n, num_classes)."""
    return probabilities(model, images)


def output_fn(prediction: Tensor, accept: str) -> str:
    """One probability per class as a JSON list, the shape of SageMaker's built-in image classification."""
    return json.dumps(prediction[0].tolist())
