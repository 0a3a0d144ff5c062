"""What serving the classifier is, whichever container does it: a picture from bytes, probabilities, and their JSON.

inference.py and deployment.py hand these functions to AWS's PyTorch and Ray Serve images.
"""

import io
import json
import re
from pathlib import Path

import numpy as np
import torch
from network import Model, Prediction, load_model, normalize
from PIL import Image

SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")
VERBOSE = re.compile(r"application/json\s*(;[^,;]*)*;\s*verbose\s*=\s*\"?true\b", re.IGNORECASE)
MAX_PIXELS = 25_000_000
ORIENTATION = 0x0112
# How to turn a picture upright, by its EXIF orientation.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
WHITE = (255, 255, 255, 255)

torch.set_num_threads(1)


class UnreadableImage(ValueError):
    """The bytes are no picture; the message says why. To be answered with status 400."""


def load(folder: Path) -> Model:
    """Loads what train.py saved, and asks it once: the first answer is slow."""
    model = load_model(folder)
    with torch.inference_mode():
        model(torch.zeros(1, *model.shape.image_shape))
    return model


def read_picture(body: bytes | bytearray) -> Image.Image:
    """The picture in the bytes of a PNG or JPEG, upright and in RGB.

    Transparent parts become white. Raises UnreadableImage.
    """
    data = bytes(body)
    if not data.startswith(SIGNATURES):
        raise UnreadableImage(f"the body ({len(data)} bytes) is neither a PNG nor a JPEG")
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UnreadableImage(f"the image has {image.width} x {image.height} pixels, at most {MAX_PIXELS}")
            image.load()
            return _rgb(_upright(image))
    # A damaged file can make a decoder raise nearly anything.
    except UnreadableImage:
        raise
    except Exception as error:
        raise UnreadableImage(f"the image can't be decoded: {error}") from error


def classify(picture: Image.Image, model: Model) -> Prediction:
    """The model's answer (n = 1) about a picture of any size."""
    _, height, width = model.shape.image_shape
    pixels = np.array(picture.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2))
    with torch.inference_mode():
        prediction: Prediction = model(normalize(torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0)))
    return prediction


def to_json(prediction: Prediction, accept: str | None) -> str:
    """One probability per class as a JSON list, the shape of SageMaker's built-in image classification.

    Accept: application/json; verbose=true, which SageMaker's built-in k-NN has too, gets an object with these
    `probabilities` and the `outlier_score`, over 1 for a picture of no class; null of a model that tells none.
    """
    probabilities, scores = prediction.probabilities[0].tolist(), prediction.outlier_scores
    if not VERBOSE.search(accept or ""):
        return json.dumps(probabilities)
    return json.dumps({"probabilities": probabilities, "outlier_score": None if scores is None else scores[0].item()})


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(ORIENTATION)
    except Exception:  # damaged metadata says nothing about the picture
        return image
    turn = UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits of grey, which convert() would clip
        return Image.fromarray((np.array(image).clip(0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        picture = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, WHITE), picture).convert("RGB")
    return image.convert("RGB")
