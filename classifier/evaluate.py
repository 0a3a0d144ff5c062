"""Compares a challenger with a champion, each on training images that it was not fitted on and nobody selected.

SageMaker's script mode runs this for the gate. Channels: `train` and `train_lst` as for train.py, `challenger` and,
if there is one, `champion`, each a model.tar.gz. Every model brings the code that answers for it (out_of_fold.py).
Prints the figures of both. SM_MODEL_DIR gets comparison.json, which the gate reads, and each image's answers. A model
that can't be asked is a result of the comparison, not a failure of the job.
"""

import argparse
import csv
import hashlib
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from calibration import calibrated_errors, expected_calibration_error
from train import image_shape, load, nobody_selected

# That a model may take to answer for all images.
SECONDS = 1800


class ModelFailed(Exception):
    """A model can't be loaded, or answers with something that is not one probability per class."""


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory() as folder:
        _evaluate(options, Path(folder) / "pixels.npy")


def _evaluate(options: argparse.Namespace, file: Path) -> None:
    """file: where the images are put together."""
    pixels, labels, names = load(options.train, options.train_lst, options.image_shape, options.num_classes, file)
    rows = nobody_selected(names)
    if not rows.all():
        pixels, labels = pixels[rows], labels[rows]
        names = [name for name, kept in zip(names, rows, strict=True) if kept]
    images = pixels.numpy()
    comparison: dict[str, object] = {"schema_version": 1}
    answered: dict[str, np.ndarray | None] = {"challenger": None, "champion": None}
    for role, channel in (("challenger", options.challenger), ("champion", options.champion)):
        if channel is None:
            continue
        try:
            with _archive(channel).open("rb") as archive:
                comparison[f"{role}_sha256"] = hashlib.file_digest(archive, "sha256").hexdigest()
            answered[role] = answers(channel, images, options.num_classes)
        except ModelFailed as error:
            comparison[f"{role}_failure"] = str(error)
            print(f"the {role} can't be compared: {error}", flush=True)
    challenger, champion = answered["challenger"], answered["champion"]
    if challenger is not None:
        found = figures(challenger, champion, labels.numpy())
        comparison["figures"] = found
        for name, value in found.items():
            print(f"{name}={value:.6g}", flush=True)
        _write(options.model_dir / "answers.csv", names, labels.numpy(), challenger, champion)
    (options.model_dir / "comparison.json").write_text(json.dumps(comparison, indent=2) + "\n")


def answers(channel: Path, images: np.ndarray, num_classes: int) -> np.ndarray:
    """A model's probabilities (n, num_classes) of images (n, 3, height, width) uint8. Raises ModelFailed."""
    archive_file = _archive(channel)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            with tarfile.open(archive_file) as archive:
                archive.extractall(folder / "model", filter=_plain)  # noqa: S202 it calls data_filter
        except (OSError, tarfile.TarError, EOFError, ValueError) as error:
            raise ModelFailed(f"its artifact can't be unpacked: {error}") from error
        trained_on = _image_shape(folder / "model" / "model.json")
        if trained_on != images.shape[1:]:
            raise ModelFailed(f"it was trained on images of {trained_on}, and these are of {images.shape[1:]}")
        program = folder / "model" / "code" / "out_of_fold.py"
        if not program.exists():
            raise ModelFailed("its artifact has no code/out_of_fold.py")
        np.save(folder / "images.npy", images)
        command = [sys.executable, str(program), str(folder / "model"), str(folder / "images.npy")]
        # It is anybody's code: it is not told where the labels are.
        told = {name: value for name, value in os.environ.items() if not name.startswith("SM_")}
        with (folder / "log.txt").open("wb+") as log:
            try:
                subprocess.run(
                    [*command, str(folder / "answers.npy")],
                    stdout=log,
                    stderr=log,
                    env=told,
                    timeout=SECONDS,
                    check=True,
                )
            except subprocess.TimeoutExpired as error:
                raise ModelFailed(f"it did not answer within {SECONDS} seconds") from error
            except subprocess.CalledProcessError as error:
                log.seek(max(0, log.tell() - 2000))
                last = (log.read().decode(errors="replace").strip().splitlines() or ["no message"])[-1]
                raise ModelFailed(
                    f"it can't be loaded and asked (exit code {error.returncode}): {last[:300]}"
                ) from error
        try:
            probabilities: np.ndarray = np.load(folder / "answers.npy")
        except (OSError, ValueError, EOFError, MemoryError) as error:
            raise ModelFailed(f"its answers can't be read: {error}") from error
    if probabilities.shape != (len(images), num_classes):
        raise ModelFailed(f"it answers {probabilities.shape}, not {(len(images), num_classes)}")
    if not np.isfinite(probabilities).all() or np.abs(probabilities.sum(axis=1) - 1).max() > 0.01:
        raise ModelFailed("its answers are not probabilities")
    return probabilities


def _archive(channel: Path) -> Path:
    """A channel's one archive. Its prefix may hold more objects, which whoever may write below models/ can add."""
    archives = [file for file in sorted(channel.iterdir()) if file.name.endswith(".tar.gz") and file.is_file()]
    if len(archives) != 1:
        raise ModelFailed(f"the channel holds {len(archives)} archives, not one")
    return archives[0]


def _plain(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
    """Python's own filter, and no links: by chains of them some releases of Python are led out of the folder."""
    if not (member.isreg() or member.isdir()):
        raise ModelFailed(f"its artifact holds {member.name[:100]}, which is no file")
    return tarfile.data_filter(member, folder)


def _image_shape(file: Path) -> tuple[int, ...]:
    try:
        return tuple(json.loads(file.read_text())["image_shape"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelFailed(f"its model.json can't be read: {error}") from error


def figures(challenger: np.ndarray, champion: np.ndarray | None, labels: np.ndarray) -> dict[str, float]:
    """What the gate reads, by the name it is printed with."""
    confidence, correct = challenger.max(axis=1), challenger.argmax(axis=1) == labels
    values = {
        "challenger_images": len(labels),
        "challenger_accuracy": float(correct.mean()),
        "challenger_ece": expected_calibration_error(confidence, correct),
        "challenger_ece_limit": float(np.percentile(calibrated_errors(confidence), 99)),
    }
    if champion is not None:
        champion_correct = champion.argmax(axis=1) == labels
        values |= {
            "champion_accuracy": float(champion_correct.mean()),
            "paired_only_challenger": int((correct & ~champion_correct).sum()),
            "paired_only_champion": int((~correct & champion_correct).sum()),
        }
    return values


def _write(
    path: Path, names: list[str], labels: np.ndarray, challenger: np.ndarray, champion: np.ndarray | None
) -> None:
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "label", "challenger", "champion"])
        for row, name in enumerate(names):
            other = "" if champion is None else json.dumps(champion[row].tolist())
            rows.writerow([name, labels[row], json.dumps(challenger[row].tolist()), other])


def _options() -> argparse.Namespace:
    environment = os.environ
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image_shape", type=image_shape, default="3,32,32", help="channels, height, width")
    parser.add_argument("--num_classes", type=int, required=True)
    parser.add_argument("--train", type=Path, default=environment.get("SM_CHANNEL_TRAIN"))
    parser.add_argument("--train_lst", type=Path, default=environment.get("SM_CHANNEL_TRAIN_LST"))
    parser.add_argument("--challenger", type=Path, default=environment.get("SM_CHANNEL_CHALLENGER"))
    parser.add_argument("--champion", type=Path, default=environment.get("SM_CHANNEL_CHAMPION"))
    parser.add_argument("--model_dir", type=Path, default=environment.get("SM_MODEL_DIR"))
    options = parser.parse_args()
    for name in ("train", "train_lst", "challenger", "model_dir"):
        if getattr(options, name) is None:
            parser.error(f"--{name} is needed outside SageMaker")
    return options


if __name__ == "__main__":
    main()
