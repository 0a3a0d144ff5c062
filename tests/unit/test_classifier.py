"""train.py and inference.py as SageMaker runs them: in a process of their own, from a folder of their own."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from local_aws.config import ROOT
from tasks.dataset import generated, manifest, png

CLASSES = ("bicycle", "motorcycle")


def run_training(
    folder: Path, *arguments: str, samples: int = 24, damage: str | None = None
) -> subprocess.CompletedProcess[str]:
    dataset = generated(CLASSES, 12, 1)
    for name in ("train", "train_lst", "model"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name, pixels in zip(dataset.train.names, dataset.train.pixels, strict=True):
        (folder / "train" / name).write_bytes(png(pixels))
    if damage:
        (folder / "train" / damage).write_bytes(b"not an image")
    (folder / "train_lst" / "train.lst").write_text(manifest(dataset.train))
    defaults = ["--num_classes", "2", "--num_training_samples", str(samples), "--epochs", "2", "--seed", "3"]
    defaults += ["--folds", "2", "--repeats", "2"]
    environment = {
        **os.environ,
        "SM_CHANNEL_TRAIN": str(folder / "train"),
        "SM_CHANNEL_TRAIN_LST": str(folder / "train_lst"),
        "SM_MODEL_DIR": str(folder / "model"),
    }
    command = [sys.executable, str(ROOT / "classifier" / "train.py"), *defaults, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    done = run_training(folder)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("member=")]
    epochs = sorted((line[0], line[1]) for line in lines)
    assert epochs == [(f"member={m}/4", f"epoch={e}/2") for m in (1, 2, 3, 4) for e in (1, 2)]
    return folder / "model"


def test_the_artifact_has_weights_and_code(model: Path) -> None:
    names = {"model.pt", "model.json", "metrics.json", "out_of_fold.csv", "code"}
    assert {path.name for path in model.iterdir()} == names
    code = {"inference.py", "network.py", "out_of_fold.py", "requirements.txt"}
    assert {path.name for path in (model / "code").iterdir()} == code


def test_a_seed_gives_the_same_weights_again(model: Path, tmp_path: Path) -> None:
    import torch

    assert run_training(tmp_path).returncode == 0
    first, second = (torch.load(folder / "model.pt", weights_only=True) for folder in (model, tmp_path / "model"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_wrong_data_ends_training_with_what_is_wrong(tmp_path: Path) -> None:
    assert "the manifest has 24" in run_training(tmp_path, samples=25).stderr
    done = run_training(tmp_path, damage="bicycle_00003.png")
    assert done.returncode != 0
    assert "train.lst, line 4" in done.stderr


def ask(model: Path, images: list[bytes]) -> list[object]:
    """Answers of inference.py, or the status and message with which it refuses."""
    code = """
import json, sys, base64
from sagemaker_inference.errors import BaseInferenceToolkitError
import inference
model = inference.model_fn(sys.argv[1])
for line in sys.stdin:
    try:
        data = inference.input_fn(base64.b64decode(line), "application/x-image")
        print(inference.output_fn(inference.predict_fn(data, model), "application/json"))
    except BaseInferenceToolkitError as error:
        print(json.dumps([error.status_code, error.message]))
"""
    import base64

    lines = "\n".join(base64.b64encode(image).decode() for image in images)
    done = subprocess.run(
        [sys.executable, "-c", code, str(model)],
        input=lines + "\n",
        env={**os.environ, "PYTHONPATH": str(model / "code")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def test_inference_answers_one_probability_per_class(model: Path) -> None:
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    images = [
        encoded(picture, "PNG"),
        encoded(picture, "JPEG"),
        encoded(picture.convert("L"), "PNG"),
        encoded(picture.convert("RGBA"), "PNG"),
        encoded(picture.resize((300, 200)), "JPEG"),
    ]
    for answer in ask(model, images):
        assert isinstance(answer, list) and len(answer) == 2
        assert sum(answer) == pytest.approx(1, abs=1e-5)


def test_inference_refuses_what_is_no_image_with_400(model: Path) -> None:
    whole = encoded(Image.new("RGB", (32, 32), "red"), "PNG")
    bomb = encoded(Image.new("1", (12_000, 9_000)), "PNG")
    answers = ask(model, [b"text", whole[:40], bomb, encoded(Image.new("RGB", (4, 4)), "BMP")])
    assert [answer[0] for answer in answers if isinstance(answer, list)] == [400, 400, 400, 400]
