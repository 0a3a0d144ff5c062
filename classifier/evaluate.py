"""Compares a challenger with a champion, each on training images that it was not fitted on and nobody selected.

SageMaker's script mode runs this for the gate. Channels: `train` and `train_lst` as for train.py, `challenger` and,
if there is one, `champion`, each a model.tar.gz. Every model brings the code that answers for it (out_of_fold.py). That
may be anybody's: it gets the images alone, in no order that tells a label, and runs as an account of its own if the job
may change accounts, as it may in SageMaker's containers.
Prints the figures of both. SM_MODEL_DIR gets comparison.json, which the gate reads, and each image's answers. A model
that can't be asked is a result of the comparison, not a failure of the job.
"""

import argparse
import csv
import hashlib
import io
import json
import os
import stat
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from calibration import calibrated_errors, expected_calibration_error
from train import image_shape, load, nobody_selected

# That a model may take to answer for all images.
SECONDS = 1800
# The account that each model's code runs as: numbers that no image gives to anybody else.
ACCOUNTS = {"challenger": 64_001, "champion": 64_002}
# Of a file of answers, beyond the numbers themselves.
HEADER_BYTES = 10_000


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
    keep_to_this_account((options.train, options.train_lst, options.challenger, options.champion, options.model_dir))
    comparison: dict[str, object] = {"schema_version": 1}
    answered: dict[str, np.ndarray | None] = {"challenger": None, "champion": None}
    # The champion first: what the challenger's code does to this container can't keep it from being compared with.
    for role, channel in (("champion", options.champion), ("challenger", options.challenger)):
        if channel is None:
            continue
        try:
            with _archive(channel).open("rb") as archive:
                comparison[f"{role}_sha256"] = hashlib.file_digest(archive, "sha256").hexdigest()
            answered[role] = answers(channel, images, options.num_classes, ACCOUNTS[role])
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


def keep_to_this_account(folders: tuple[Path | None, ...]) -> None:
    """Closes folders to the accounts of models: labels, archives, and what this job writes."""
    if os.geteuid() == 0:
        for folder in filter(None, folders):
            folder.chmod(0o700)


def answers(channel: Path, images: np.ndarray, num_classes: int, account: int) -> np.ndarray:
    """Returns a model's probabilities (n, num_classes) of images (n, 3, height, width) uint8. Raises ModelFailed."""
    archive_file = _archive(channel)
    # Images are often sorted by their class.
    order = np.random.default_rng().permutation(len(images))
    with tempfile.TemporaryDirectory() as name:
        # Within a folder of the judge's, so that a model can't put another one in the place of its own.
        Path(name).chmod(0o711)
        folder = Path(name) / "asked"
        folder.mkdir()
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
        shown = np.lib.format.open_memmap(folder / "images.npy", "w+", images.dtype, images.shape)
        for row, image in enumerate(order):  # one by one, as they may be more than fit into memory
            shown[row] = images[image]
        shown.flush()
        del shown
        command = [sys.executable, str(program), str(folder / "model"), str(folder / "images.npy")]
        # It is not told where the labels are.
        told = {name: value for name, value in os.environ.items() if not name.startswith("SM_")} | {"HOME": str(folder)}
        become = as_account(account, folder)
        with (folder / "log.txt").open("wb+") as log:
            try:
                subprocess.run(
                    [*command, str(folder / "answers.npy")],
                    stdout=log,
                    stderr=log,
                    env=told,
                    timeout=SECONDS,
                    check=True,
                    **become,
                )
            except subprocess.TimeoutExpired as error:
                raise ModelFailed(f"it did not answer within {SECONDS} seconds") from error
            except subprocess.CalledProcessError as error:
                # From its end, wherever the model left the file's position.
                end = os.pread(log.fileno(), 2000, max(0, os.fstat(log.fileno()).st_size - 2000))
                last = (end.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
                raise ModelFailed(
                    f"it can't be loaded and asked (exit code {error.returncode}): {last[:300]}"
                ) from error
            finally:
                if become:  # what it started and left running
                    subprocess.run([sys.executable, "-c", "import os; os.kill(-1, 9)"], **become)
        given = read_answers(folder / "answers.npy", len(images) * num_classes)
    if given.shape != (len(images), num_classes) or given.dtype.kind != "f":
        raise ModelFailed(f"it answers {given.shape} of {given.dtype}, not {(len(images), num_classes)} of float")
    if not np.isfinite(given).all() or given.min() < 0 or np.abs(given.sum(axis=1) - 1).max() > 0.01:
        raise ModelFailed("its answers are not probabilities")
    probabilities = np.empty_like(given)
    probabilities[order] = given
    return probabilities


def as_account(account: int, folder: Path) -> dict[str, Any]:
    """Returns what has subprocess run a program as an account to which the folder is given.

    Nothing if this job may not change accounts, or that account could not run Python there, as below a home folder.
    """
    if os.geteuid() != 0:
        return {}
    become: dict[str, Any] = {"user": account, "group": account, "extra_groups": []}
    for path in (folder, *folder.rglob("*")):
        os.chown(path, account, account)
    program = f"import numpy; numpy.load({str(folder / 'images.npy')!r}, mmap_mode='r')"
    try:
        subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, **become)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"models answer as this job's own account, as another can't run Python here: {error}", file=sys.stderr)
        return {}
    return become


def read_answers(file: Path, numbers: int) -> np.ndarray:
    """Reads an array of so many numbers that a model left: a plain file of no more than these take."""
    try:
        with open(os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as opened:
            found = os.fstat(opened.fileno())
            if not stat.S_ISREG(found.st_mode) or found.st_size > numbers * 8 + HEADER_BYTES:
                raise ModelFailed(f"its answers are no file of {numbers} numbers")
            array: np.ndarray = np.load(io.BytesIO(opened.read(numbers * 8 + HEADER_BYTES)))
            return array
    except (OSError, ValueError, EOFError, MemoryError) as error:
        raise ModelFailed(f"its answers can't be read: {error}") from error


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
