"""train.py and inference.py as SageMaker runs them: in a process of their own, from a folder of their own."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from local_aws.config import ROOT
from tasks.data.dataset import generated, manifest, png
from tasks.data.generated import draw
from testing.waiting import eventually

CLASSES = ("bicycle", "motorcycle")


def run_training(
    folder: Path,
    *arguments: str,
    samples: int = 24,
    damage: str | None = None,
    classes: tuple[str, ...] = CLASSES,
    size: int = 32,
    reviewed: int = 0,
) -> subprocess.CompletedProcess[str]:
    """reviewed: of the first images, so many are below reviewed/."""
    command, environment = training(folder, *arguments, samples=samples, classes=classes, size=size, reviewed=reviewed)
    if damage:
        (folder / "train" / damage).write_bytes(b"not an image")
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def training(
    folder: Path,
    *arguments: str,
    samples: int = 24,
    classes: tuple[str, ...] = CLASSES,
    size: int = 32,
    reviewed: int = 0,
) -> tuple[list[str], dict[str, str]]:
    """The command of a training job and its environment, as for run_training."""
    dataset = generated(classes, 12, 1, size)
    names = tuple(f"reviewed/{name}" if n < reviewed else name for n, name in enumerate(dataset.train.names))
    dataset = replace(dataset, train=replace(dataset.train, names=names))
    (folder / "train" / "reviewed").mkdir(parents=True, exist_ok=True)
    for name in ("train", "train_lst", "model"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name, pixels in zip(dataset.train.names, dataset.train.pixels, strict=True):
        (folder / "train" / name).write_bytes(png(pixels))
    (folder / "train_lst" / "train.lst").write_text(manifest(dataset.train))
    defaults = ["--num_classes", "2", "--num_training_samples", str(samples), "--epochs", "2", "--seed", "3"]
    defaults += ["--folds", "2", "--repeats", "1"]
    environment = {
        **os.environ,
        "SM_CHANNEL_TRAIN": str(folder / "train"),
        "SM_CHANNEL_TRAIN_LST": str(folder / "train_lst"),
        "SM_MODEL_DIR": str(folder / "model"),
        "SM_INPUT_CONFIG_DIR": str(folder),
    }
    return [sys.executable, str(ROOT / "classifier" / "train.py"), *defaults, *arguments], environment


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    done = run_training(folder)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("member=")]
    epochs = sorted((line[0], line[1]) for line in lines)
    assert epochs == [(f"member={m}/3", f"epoch={e}/2") for m in (1, 2, 3) for e in (1, 2)]
    (estimate,) = [line for line in done.stdout.splitlines() if line.startswith("estimated_seconds=")]
    assert re.fullmatch(r"estimated_seconds=\d+ estimated_end=[0-9T:-]+Z", estimate)
    return folder / "model"


def test_the_artifact_has_weights_and_code(model: Path) -> None:
    names = {"model.pt", "model.json", "metrics.json", "out_of_fold.csv", "code", "config.yaml", "deployment.py"}
    assert {path.name for path in model.iterdir()} == names
    code = {"inference.py", "serving.py", "network.py", "out_of_fold.py", "requirements.txt"}
    assert {path.name for path in (model / "code").iterdir()} == code


def test_ray_serves_config_names_what_is_in_the_archive(model: Path) -> None:
    (application,) = yaml.safe_load((model / "config.yaml").read_text())["applications"]
    module, _, variable = application["import_path"].partition(":")
    source = (model / f"{module}.py").read_text()
    assert f"\n{variable} = " in source
    assert all(f"class {each['name']}:" in source for each in application["deployments"])


def test_a_seed_gives_the_same_weights_again(model: Path, tmp_path: Path) -> None:
    assert run_training(tmp_path).returncode == 0
    first, second = (torch.load(folder / "model.pt", weights_only=True) for folder in (model, tmp_path / "model"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_job_that_is_killed_and_started_again_leaves_the_same_model(model: Path, tmp_path: Path) -> None:
    kept = tmp_path / "checkpoints"
    (tmp_path / "checkpointconfig.json").write_text(json.dumps({"LocalPath": str(kept)}))
    command, environment = training(tmp_path)
    killed = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    eventually(lambda: killed.poll() is not None or list(kept.glob("*.pt")))
    os.killpg(killed.pid, signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    done = run_training(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "goes on after epoch=" in done.stdout
    first, second = (torch.load(folder / "model.pt", weights_only=True) for folder in (model, tmp_path / "model"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not list(kept.iterdir())


def test_wrong_data_ends_training_with_what_is_wrong(tmp_path: Path) -> None:
    assert "the manifest has 24" in run_training(tmp_path, samples=25).stderr
    done = run_training(tmp_path, damage="bicycle_00003.png")
    assert done.returncode != 0
    assert "train.lst, line 4" in done.stderr


def ask(model: Path, images: list[bytes], accept: str = "application/json") -> list[Any]:
    """Answers of inference.py, or the status and message with which it refuses."""
    code = """
import json, sys, base64
from sagemaker_inference.errors import BaseInferenceToolkitError
import inference
model = inference.model_fn(sys.argv[1])
for line in sys.stdin:
    try:
        data = inference.input_fn(base64.b64decode(line), "application/x-image")
        body, content_type = inference.output_fn(inference.predict_fn(data, model), sys.argv[2])
        assert content_type == "application/json"
        print(body)
    except BaseInferenceToolkitError as error:
        print(json.dumps([error.status_code, error.message]))
"""
    import base64

    lines = "\n".join(base64.b64encode(image).decode() for image in images)
    done = subprocess.run(
        [sys.executable, "-c", code, str(model), accept],
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


def picture() -> Image.Image:
    """Halves and quarters of different colours: every turn and every inversion changes it."""
    pixels = np.zeros((48, 64, 3), dtype=np.uint8)
    pixels[:, :32] = (250, 40, 30)
    pixels[:20, 32:] = (20, 220, 60)
    pixels[20:, 32:] = (240, 240, 235)
    return Image.fromarray(pixels)


def test_inference_answers_one_probability_per_class(model: Path) -> None:
    sizes = [picture().resize(size) for size in ((1, 1), (32, 32), (300, 200), (5, 4000))]
    for answer in ask(model, [encoded(image, kind) for image in sizes for kind in ("PNG", "JPEG")]):
        assert isinstance(answer, list) and len(answer) == 2
        assert sum(answer) == pytest.approx(1, abs=1e-5)


def test_the_verbose_answer_has_the_same_probabilities_and_an_outlier_score(model: Path) -> None:
    images = [encoded(picture(), "PNG"), png(draw("bicycle", 1))]
    plain = ask(model, images)
    for accept in (
        "application/json; verbose=true",
        'Application/JSON;Verbose="TRUE"',
        "text/csv;q=0.1, application/json; charset=utf-8; verbose=true",
    ):
        for answer, probabilities in zip(ask(model, images, accept), plain, strict=True):
            assert answer["probabilities"] == probabilities
            assert answer["outlier_score"] > 0
    for accept in ("*/*", "application/json; verbose=false", "text/csv", "application/jsonlines; verbose=true"):
        assert ask(model, images, accept) == plain


def test_every_mode_of_an_image_is_answered_like_the_image_itself(model: Path) -> None:
    plain = picture()
    turned = plain.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 270 degrees
    buffer = io.BytesIO()
    turned.save(buffer, "PNG", exif=exif)
    broken_exif = io.BytesIO()
    plain.save(broken_exif, "PNG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    clear = Image.new("RGBA", plain.size, (0, 0, 255, 0))
    see_through = Image.new("P", plain.size, 1)
    see_through.putpalette([0, 0, 255, 0, 255, 0])
    palette = io.BytesIO()
    see_through.save(palette, "PNG", transparency=1)
    grey = np.array(plain.convert("L"))
    white = encoded(Image.new("RGB", plain.size, "white"), "PNG")
    alike = [
        (encoded(plain, "PNG"), encoded(plain.convert("RGBA"), "PNG")),
        (encoded(plain, "PNG"), encoded(plain.quantize(16), "PNG")),
        (encoded(plain, "PNG"), buffer.getvalue()),
        (encoded(plain, "PNG"), broken_exif.getvalue()),
        (encoded(plain, "JPEG"), encoded(plain.convert("CMYK"), "JPEG")),
        (encoded(plain.convert("L"), "PNG"), encoded(Image.fromarray(grey.astype(np.uint16) * 257), "PNG")),
        (encoded(plain.convert("L"), "PNG"), encoded(plain.convert("LA"), "PNG")),
        (white, encoded(clear, "PNG")),
        (white, palette.getvalue()),
        (white, encoded(Image.new("1", plain.size, 1), "PNG")),
    ]
    answers = ask(model, [image for pair in alike for image in pair])
    for first, second in zip(answers[::2], answers[1::2], strict=True):
        assert first == pytest.approx(second, abs=0.02)
    turned_without_exif = ask(model, [encoded(turned, "PNG")])[0]
    assert turned_without_exif != pytest.approx(answers[0], abs=1e-4)  # or the test would see no turn


def test_inference_refuses_what_is_no_image_with_400(model: Path) -> None:
    whole = encoded(Image.new("RGB", (32, 32), "red"), "PNG")
    photo = encoded(picture().resize((500, 500)), "JPEG")
    bomb = encoded(Image.new("1", (12_000, 9_000)), "PNG")
    wrong = [
        b"",
        b"text",
        whole[:8],
        whole[:40],
        photo[: len(photo) // 2],
        bomb,
        encoded(Image.new("RGB", (4, 4)), "BMP"),
    ]
    answers = ask(model, wrong)
    assert [answer[0] for answer in answers if isinstance(answer, list)] == [400] * len(wrong)
    assert "108000000 pixels" in str(answers[5]) or "12000 x 9000 pixels" in str(answers[5])


def test_out_of_fold_answers_come_from_members_that_were_not_fitted_on_the_image(model: Path, tmp_path: Path) -> None:
    """The artifact's own program gives what training wrote down."""
    dataset = generated(CLASSES, 12, 1)
    np.save(tmp_path / "images.npy", dataset.train.pixels.transpose(0, 3, 1, 2))
    command = [sys.executable, str(model / "code" / "out_of_fold.py"), str(model), str(tmp_path / "images.npy")]
    subprocess.run([*command, str(tmp_path / "answers.npy")], check=True)
    written = np.loadtxt(model / "out_of_fold.csv", delimiter=",", skiprows=1, usecols=(4, 5))
    assert np.load(tmp_path / "answers.npy") == pytest.approx(written, abs=1e-4)


def test_the_figures_of_a_job_are_those_of_its_artifact(model: Path) -> None:
    figures = json.loads((model / "metrics.json").read_text())
    answers = np.loadtxt(model / "out_of_fold.csv", delimiter=",", skiprows=1, usecols=(1, 4, 5))
    labels, probabilities = answers[:, 0].astype(int), answers[:, 1:]
    assert figures["accuracy"] == pytest.approx((probabilities.argmax(axis=1) == labels).mean())
    assert figures["images"] == 24
    assert figures["recommended_threshold"] is None  # 24 images prove nothing
    assert json.loads((model / "model.json").read_text())["temperature"] == figures["temperature"]


def test_reviewed_images_are_trained_on_and_nothing_is_judged_by_them(model: Path, tmp_path: Path) -> None:
    """Ten of the twelve bicycles were selected: figures, calibration and the gate are of the other fourteen images."""
    done = run_training(tmp_path, reviewed=10)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "model" / "metrics.json").read_text())
    assert (figures["images"], figures["reviewed_images"]) == (14, 10)
    answers = np.loadtxt(tmp_path / "model" / "out_of_fold.csv", delimiter=",", skiprows=1, usecols=(1, 4, 5))
    assert len(answers) == 24
    right = answers[:, 1:].argmax(axis=1) == answers[:, 0]
    assert figures["accuracy"] == pytest.approx(right[10:].mean())
    # The networks are fitted to the same images, whatever these are called.
    alike = [(folder / "model.pt").read_bytes() for folder in (model, tmp_path / "model")]
    weights = [torch.load(io.BytesIO(each), weights_only=True) for each in alike]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    nobody_chose = run_training(tmp_path / "all", reviewed=24)
    assert nobody_chose.returncode != 0 and "reviewed images only" in nobody_chose.stderr


def test_images_that_are_not_square_are_turned_by_a_half() -> None:
    code = (
        "import torch; from fitting import turned; images = torch.rand(5, 3, 32, 64); "
        "assert torch.equal(turned(images), images.rot90(2, (2, 3)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "classifier")}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_a_share_of_the_confident_images_is_over_the_limit(model: Path) -> None:
    answers = np.loadtxt(model / "out_of_fold.csv", delimiter=",", skiprows=1, usecols=(2, 3, 6))
    confidence, scores = answers[:, :2].max(axis=1), answers[:, 2]
    confident = scores[confidence >= np.sort(confidence)[11]]
    # 3 % of 12 or 13 images: the limit is between the two highest scores.
    assert np.sort(confident)[-2] < 1 < confident.max()
    assert json.loads((model / "metrics.json").read_text())["outlier_share"] == pytest.approx((scores > 1).mean())


def test_an_ensemble_without_outlier_scores_is_trained_and_served(tmp_path: Path) -> None:
    done = run_training(tmp_path, "--classifier", "ensemble", "--outlier_share", "0", "--epochs", "1")
    assert done.returncode == 0, done.stderr
    assert "member=2/2" in done.stdout and "member=3" not in done.stdout
    (answer,) = ask(tmp_path / "model", [png(draw("bicycle", 1))], "application/json; verbose=true")
    assert sum(answer["probabilities"]) == pytest.approx(1, abs=1e-5) and answer["outlier_score"] is None
    figures = json.loads((tmp_path / "model" / "metrics.json").read_text())
    assert figures["outlier_share"] == 0 and figures["hyperparameters"]["classifier"] == "ensemble"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image_shape", "1,28,28"], "is not 3,height,width with multiples of 8"),
        (["--num_classes", "3"], "no image of label 2"),
        (["--repeats", "2"], "--repeats is 1 where a single network serves"),
    ],
)
def test_hyperparameters_that_do_not_fit_the_images_are_explained(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    done = run_training(tmp_path, *arguments)
    assert done.returncode != 0
    assert message in done.stderr


def test_larger_images_are_trained_on_compared_and_served(tmp_path: Path) -> None:
    done = run_training(tmp_path, "--image_shape", "3,64,64", "--epochs", "1", size=64)
    assert done.returncode == 0, done.stderr
    (tmp_path / "challenger").mkdir()
    with tarfile.open(tmp_path / "challenger" / "model.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "model", arcname=".")
    (tmp_path / "output").mkdir()
    channels = {"train": "train", "train_lst": "train_lst", "challenger": "challenger", "model_dir": "output"}
    command = [sys.executable, str(ROOT / "classifier" / "evaluate.py"), "--num_classes", "2"]
    command += ["--image_shape", "3,64,64"]
    for channel, folder in channels.items():
        command += [f"--{channel}", str(tmp_path / folder)]
    compared = subprocess.run(command, capture_output=True, text=True)
    assert compared.returncode == 0 and "challenger_images=24" in compared.stdout, compared.stderr
    for answer in ask(tmp_path / "model", [png(draw("bicycle", 1, size)) for size in (32, 64)]):
        assert isinstance(answer, list) and len(answer) == 2 and sum(answer) == pytest.approx(1)


def test_the_comparison_of_two_models_and_of_one_that_cannot_be_loaded(model: Path, tmp_path: Path) -> None:
    data = model.parent
    for name in ("challenger", "champion", "broken", "output"):
        (tmp_path / name).mkdir()
    for name in ("challenger", "champion"):
        with tarfile.open(tmp_path / name / "model.tar.gz", "w:gz") as archive:
            archive.add(model, arcname=".")
    (tmp_path / "broken" / "model.tar.gz").write_bytes(b"\x1f\x8b no archive")

    # It is in AWS's inference images, and not in its training images, where this runs.
    (tmp_path / "absent").mkdir()
    (tmp_path / "absent" / "sagemaker_inference.py").write_text("raise ModuleNotFoundError(__name__)")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "absent")}

    def compare(challenger: str, champion: str) -> subprocess.CompletedProcess[str]:
        channels = {"train": data / "train", "train_lst": data / "train_lst", "model_dir": tmp_path / "output"}
        channels |= {"challenger": tmp_path / challenger, "champion": tmp_path / champion}
        command = [sys.executable, str(ROOT / "classifier" / "evaluate.py"), "--num_classes", "2"]
        for channel, folder in channels.items():
            command += [f"--{channel}", str(folder)]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    same = compare("challenger", "champion")
    assert same.returncode == 0, same.stderr
    figures = dict(line.split("=") for line in same.stdout.splitlines())
    assert figures["challenger_images"] == "24"
    assert figures["challenger_accuracy"] == figures["champion_accuracy"]
    assert figures["paired_only_challenger"] == figures["paired_only_champion"] == "0"
    assert len((tmp_path / "output" / "answers.csv").read_text().splitlines()) == 25
    lines = (data / "train_lst" / "train.lst").read_text()
    (data / "train" / "reviewed").mkdir(exist_ok=True)
    for name in ("bicycle_00000.png", "motorcycle_00003.png"):
        (data / "train" / "reviewed" / name).write_bytes((data / "train" / name).read_bytes())
        (data / "train_lst" / "train.lst").write_text(lines := lines.replace(f"\t{name}", f"\treviewed/{name}"))
    judged = dict(line.split("=") for line in compare("challenger", "champion").stdout.splitlines())
    assert judged["challenger_images"] == "22"
    assert len((tmp_path / "output" / "answers.csv").read_text().splitlines()) == 23
    lonely = compare("challenger", "broken")
    assert "the champion can't be compared" in lonely.stdout
    assert "champion_accuracy" not in lonely.stdout
    refused = compare("broken", "champion")
    assert refused.returncode == 0, refused.stderr
    written = json.loads((tmp_path / "output" / "comparison.json").read_text())
    assert written["challenger_failure"].startswith("its artifact can't be unpacked")
    assert "figures" not in written
