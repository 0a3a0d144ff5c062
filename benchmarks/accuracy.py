"""Test accuracy of the default training over several seeds: python -m benchmarks.accuracy --dataset ARCHIVE.

Runs classifier/train.py as a training job would, with the settings' hyperparameters, and scores it on the test images.
"""

import argparse
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from settings import ROOT, settings
from tasks.dataset import Dataset, from_archive, generated, manifest, png
from tasks.metrics import wilson_interval

sys.path.insert(0, str(ROOT / "classifier"))
from network import Ensemble, normalize, probabilities


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    parser.add_argument("--dataset", default="generated", help="'generated' or the path of an archive")
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    chosen = settings()
    if arguments.dataset == "generated":
        dataset = generated(chosen.classes, chosen.generated_per_class, chosen.generated_test_per_class)
    else:
        dataset = from_archive(Path(arguments.dataset), chosen.classes)
    accuracies = []
    for seed in range(1, arguments.seeds + 1):
        accuracy, seconds = train_and_score(dataset, seed)
        accuracies.append(accuracy)
        print(f"seed {seed}: accuracy {accuracy:.3f}, trained in {seconds:.0f} s", flush=True)
    n = len(dataset.test.labels)
    mean, deviation = float(np.mean(accuracies)), float(np.std(accuracies, ddof=1)) if len(accuracies) > 1 else math.nan
    low, high = wilson_interval(round(mean * n), n)
    print(f"mean {mean:.3f}, standard deviation {deviation:.3f} over {len(accuracies)} seeds")
    print(f"95 % Wilson interval of the mean at n = {n} test images: {low:.3f} to {high:.3f}")


def train_and_score(dataset: Dataset, seed: int) -> tuple[float, float]:
    """Accuracy on the test images and seconds of training."""
    chosen = settings()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("train", "train_lst", "model"):
            (folder / part).mkdir()
        for file, pixels in zip(dataset.train.names, dataset.train.pixels, strict=True):
            (folder / "train" / file).write_bytes(png(pixels))
        (folder / "train_lst" / "train.lst").write_text(manifest(dataset.train))
        values = {
            "num_classes": len(dataset.classes),
            "num_training_samples": len(dataset.train.names),
            "epochs": chosen.epochs,
            "learning_rate": chosen.learning_rate,
            "mini_batch_size": chosen.mini_batch_size,
            "seed": seed,
            "members": chosen.members,
            "train": folder / "train",
            "train_lst": folder / "train_lst",
            "model_dir": folder / "model",
        }
        command = [sys.executable, str(ROOT / "classifier" / "train.py")]
        for option, value in values.items():
            command += [f"--{option}", str(value)]
        started = time.monotonic()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.monotonic() - started
        model = Ensemble(chosen.members, len(dataset.classes))
        model.load_state_dict(torch.load(folder / "model" / "model.pt", weights_only=True))
    model.eval()
    images = normalize(torch.from_numpy(dataset.test.pixels).permute(0, 3, 1, 2))
    predicted = probabilities(model, images).argmax(1).numpy()
    return float((predicted == dataset.test.labels).mean()), seconds


if __name__ == "__main__":
    main()
