"""What own images take, from a folder of JPEGs to a trained model: python -m benchmarks.own_images.

For each number and size of images: time and memory of reading, checking and shrinking them, and of a training with
fewer epochs and folds than are meant to be used, beside what `scones check` would say of that training. Memory is of
all processes and counts what no file backs: the kernel can drop the rest at any time.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from local_aws.config import ROOT
from tasks.data.generated import draw
from tasks.model.sizing import sizing

CLASSES = ("bicycle", "motorcycle")
# Pictures are of that many pixels a side, so that both sizes of training images are made by shrinking.
DRAWN = 128
EPOCHS, FOLDS = 1, 2
SAMPLE_SECONDS = 0.5
LOADS = """
import json, sys, time
from pathlib import Path
from tasks.data import folder
from tasks.data.images import EncodedImages
root, size, out = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
started = time.monotonic()
entries = folder.local_entries(root)
classes = folder.classes_of(entries, str(root))
kinds = {"share": 0.2, "strict": False, "where": "", "source": "", "progress": lambda line: None}
checked = folder.load(entries, classes, size=size, **kinds)
seconds = time.monotonic() - started
train = checked.dataset.train
(out / "train").mkdir()
(out / "lst").mkdir()
for name, content in EncodedImages("", train).items():
    (out / "train" / name).write_bytes(content)
lines = (f"{row}\\t{label}\\t{name}\\n" for row, (label, name) in enumerate(zip(train.labels, train.names)))
(out / "lst" / "train.lst").write_text("".join(lines))
print(json.dumps({"seconds": seconds, "train": len(train.names), "left_out": len(checked.dataset.left_out)}))
"""


@dataclass
class Peak:
    """The most memory, in MB, that a process and its children had together."""

    megabytes: float = 0.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.own_images", description=__doc__)
    parser.add_argument("--images", default="50,1000,20000", help="numbers of images (default: 50,1000,20000)")
    parser.add_argument("--sizes", default="32,96", help="their width and height (default: 32,96)")
    arguments = parser.parse_args()
    print(f"{EPOCHS} epoch, {FOLDS} folds, {os.cpu_count()} cores")
    print(f"{'images':>8} {'size':>5} {'read s':>8} {'MB':>7} {'trained s':>10} {'MB':>7} {'of estimate':>12}")
    for count in map(int, arguments.images.split(",")):
        with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
            pictures = Path(name) / "pictures"
            _draw(pictures, count)
            for size in map(int, arguments.sizes.split(",")):
                print(_measured(pictures, size, Path(name) / f"{size}"), flush=True)
    return 0


def _draw(folder: Path, count: int) -> None:
    for number in range(count):
        name = CLASSES[number % len(CLASSES)]
        buffer = io.BytesIO()
        Image.fromarray(draw(name, number, DRAWN)).save(buffer, "JPEG", quality=90)
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / f"{number:06}.jpg").write_bytes(buffer.getvalue())


def _measured(pictures: Path, size: int, out: Path) -> str:
    out.mkdir()
    read, read_peak, _ = _run([sys.executable, "-c", LOADS, str(pictures), str(size), str(out)], ROOT)
    told = json.loads(read)
    (out / "model").mkdir()
    command = [sys.executable, "train.py", "--num_classes", "2", "--num_training_samples", str(told["train"])]
    command += ["--image_shape", f"3,{size},{size}", "--epochs", str(EPOCHS), "--folds", str(FOLDS)]
    command += ["--train", str(out / "train"), "--train_lst", str(out / "lst"), "--model_dir", str(out / "model")]
    _, trained_peak, trained = _run(command, ROOT / "classifier")
    recipe = {"epochs": str(EPOCHS), "folds": str(FOLDS), "repeats": "1", "classifier": "single"}
    estimate = sizing(told["train"], size, recipe).seconds(os.cpu_count() or 1)
    count = told["train"] + told["left_out"]
    return (
        f"{told['train']:>8,} {size:>5} {told['seconds']:>8.1f} {read_peak:>7.0f} {trained:>10.1f} "
        f"{trained_peak:>7.0f} {trained / estimate:>12.2f}   of {count:,} to train with"
    )


def _run(command: list[str], folder: Path) -> tuple[str, float, float]:
    """Standard output, the peak of memory in MB, and the seconds it took."""
    started = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
    with _watched(process.pid) as peak:
        output = process.communicate()[0]
    if process.returncode:
        raise SystemExit(f"{command[1]} ended with {process.returncode}")
    return output, peak.megabytes, time.monotonic() - started


@contextmanager
def _watched(root: int) -> Iterator[Peak]:
    peak, ended = Peak(), threading.Event()

    def watch() -> None:
        while not ended.wait(SAMPLE_SECONDS):
            peak.megabytes = max(peak.megabytes, sum(_anonymous(pid) for pid in _tree(root)) / 1000)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()


def _tree(root: int) -> list[int]:
    found = [root]
    for pid in found:
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            try:
                found += [int(child) for child in task.read_text().split()]
            except OSError:
                continue
    return found


def _anonymous(pid: int) -> float:
    """Of a process, in kB."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return float(next((line.split()[1] for line in lines if line.startswith("RssAnon:")), 0))


if __name__ == "__main__":
    sys.exit(main())
