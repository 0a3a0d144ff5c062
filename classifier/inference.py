"""Serves the classifier in SageMaker's PyTorch inference containers: the functions that their toolkit calls.

sagemaker_inference is in AWS's inference images only, so nothing that runs in a training container imports this module.
"""

from pathlib import Path

from network import Model, Prediction
from PIL import Image
from sagemaker_inference.errors import BaseInferenceToolkitError
from serving import UnreadableImage, classify, load, read_picture, to_json


def model_fn(model_dir: str) -> Model:
    return load(Path(model_dir))


def input_fn(body: bytes | bytearray, content_type: str) -> Image.Image:
    """The bytes decide what they are, not the content type. Raises what the toolkit answers as 400."""
    try:
        return read_picture(body)
    except UnreadableImage as error:
        raise BaseInferenceToolkitError(400, str(error), "Bad Request") from error


def predict_fn(picture: Image.Image, model: Model) -> Prediction:
    return classify(picture, model)


def output_fn(prediction: Prediction, accept: str) -> tuple[str, str]:
    """The body and its content type: without parameters, so that data capture knows it for JSON."""
    return to_json(prediction, accept), "application/json"
