"""Labelled images from CIFAR-100's archive or drawn by the project; nothing here knows AWS."""

import hashlib
import io
import re
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from tasks.archives import BoundedHeader
from tasks.data import cifar_pickle
from tasks.data.generated import SIZE, THINGS, draw
from tasks.errors import SconesError
from tasks.records import Record
from tasks.run import Log

ARCHIVE_FOLDER = "cifar-100-python"
MAX_MEMBER_BYTES = 512 * 1024 * 1024
OFFICIAL_PER_CLASS = {"train": 500, "test": 100}
# The classes of CIFAR-100, in the order of their labels: https://www.cs.toronto.edu/~kriz/cifar.html
FINE_LABELS = tuple(
    """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
    caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
    flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
    motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
    poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
    squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
    wardrobe whale willow_tree wolf woman worm""".split()  # noqa: SIM905
)
# More bytes of pixels than these are kept in a file.
MOST_IN_MEMORY = 256_000_000
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}")


class DatasetError(SconesError):
    """The data can't be used; the message says why and what to do."""


class LeftOut(Record, frozen=True, kw_only=True):
    """A line of manifests/left-out/SHA256.jsonl: a file of one's own images that could not be used, and why."""

    path: str
    why: str


@dataclass(frozen=True)
class Split:
    """Images of one split: pixels (n, height, width, 3) uint8, labels (n,) indices into the classes, and file names."""

    pixels: np.ndarray
    labels: np.ndarray
    names: tuple[str, ...]


@dataclass(frozen=True)
class Dataset:
    """Both splits, the class names in label order, and where they come from.

    source: for people. given: what to ask for to get them again: a name, or the path of an archive or folder. left_out:
    files that could not be used.
    """

    train: Split
    test: Split
    classes: tuple[str, ...]
    source: str
    synthetic: bool
    given: str
    left_out: tuple[LeftOut, ...] = ()


def generated(classes: Sequence[str], train_per_class: int, test_per_class: int, size: int = SIZE) -> Dataset:
    """Draws a data set of size x size pixels. Raises DatasetError if a class can't be drawn."""

    def split(first: int, per_class: int) -> Split:
        seeds = range(first, first + per_class)
        images = [
            (draw(name, seed, size), label, f"{name}_{seed:05d}.png")
            for label, name in enumerate(classes)
            for seed in seeds
        ]
        pixels, labels, names = zip(*images, strict=True)
        return Split(np.stack(pixels), np.array(labels), names)

    try:
        # Far apart, so that more training images never run into the test images.
        dataset = Dataset(
            split(0, train_per_class), split(50_000, test_per_class), tuple(classes), "generated", True, "generated"
        )
    except ValueError as error:
        raise DatasetError(f"generated data: {error}") from error
    check(dataset)
    return dataset


def from_archive(path: Path, classes: Sequence[str], official: bool = False, given: str | None = None) -> Dataset:
    """Reads an archive in CIFAR-100's layout and keeps the fine labels `classes`.

    `official` also asks for the published number of images. given: what it was asked for by, if not by its path.
    Raises DatasetError for a missing, truncated or other file.
    """
    if not path.is_file():
        raise DatasetError(f"no archive at {path}; give the path of a .tar.gz in CIFAR-100's layout, or 'generated'")
    with _opened(path) as archive:
        fine_labels = _fine_labels(archive, path)
        unknown = [name for name in classes if name not in fine_labels]
        if unknown:
            raise DatasetError(f"{path} has no class {', '.join(unknown)}; it has {', '.join(fine_labels)}")
        wanted = [fine_labels.index(name) for name in classes]
        splits = {split: _split(_member(archive, split), wanted, split) for split in ("train", "test")}
    dataset = Dataset(splits["train"], splits["test"], tuple(classes), path.name, False, given or str(path))
    check(dataset)
    if official:
        for name, split in splits.items():
            counts = np.bincount(split.labels, minlength=len(classes))
            if (counts != OFFICIAL_PER_CLASS[name]).any():
                raise DatasetError(f"{path}: expected {OFFICIAL_PER_CLASS[name]} {name} images a class, found {counts}")
    return dataset


def official_test_images(path: Path) -> dict[str, np.ndarray]:
    """Test images (100, 32, 32, 3) uint8 of all of CIFAR-100's classes, by class; DatasetError for another archive."""
    with _opened(path) as archive:
        names = _fine_labels(archive, path)
        split = _split(_member(archive, "test"), list(range(len(names))), "test")
    if (np.bincount(split.labels, minlength=len(names)) != OFFICIAL_PER_CLASS["test"]).any():
        raise DatasetError(f"{path}: not every class has {OFFICIAL_PER_CLASS['test']} test images")
    return {name: split.pixels[split.labels == label] for label, name in enumerate(names)}


def resized(dataset: Dataset, size: int) -> Dataset:
    """The data set with images of size x size pixels; as it is if they are so already."""

    def resize(split: Split) -> Split:
        pixels = [Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC) for image in split.pixels]
        return replace(split, pixels=np.stack([np.asarray(image) for image in pixels]))

    if dataset.train.pixels.shape[1:3] == (size, size):
        return dataset
    return replace(dataset, train=resize(dataset.train), test=resize(dataset.test))


def room_for_pixels(count: int, size: int) -> np.ndarray:
    """An array (count, size, size, 3) uint8 to fill. If it is large, it is of a file that nobody else sees.

    What is not needed at the moment is then not in memory, and the file is gone with the array.
    """
    shape = (count, size, size, 3)
    if count * size * size * 3 <= MOST_IN_MEMORY:
        return np.empty(shape, np.uint8)
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, np.uint8, "w+", shape=shape)


def check(dataset: Dataset) -> None:
    """Raises DatasetError if a class is missing, a name is unsafe or twice, or an image is in both splits."""
    digests = {}
    for name, split in (("training", dataset.train), ("test", dataset.test)):
        counts = np.bincount(split.labels, minlength=len(dataset.classes))
        missing = [dataset.classes[label] for label in np.flatnonzero(counts == 0)]
        if missing:
            raise DatasetError(f"the {name} set of {dataset.source} has no image of {', '.join(missing)}")
        if len(set(split.names)) != len(split.names):
            raise DatasetError(f"the {name} set of {dataset.source} uses a file name twice")
        unsafe = [file for file in split.names if not SAFE_NAME.fullmatch(file)]
        if unsafe:
            raise DatasetError(f"the {name} set of {dataset.source} has an unusable file name: {unsafe[0]!r}")
        digests[name] = {hashlib.sha256(image.tobytes()).digest() for image in split.pixels}
    shared = len(digests["training"] & digests["test"])
    if shared:
        raise DatasetError(f"{shared} images of {dataset.source} are in both splits")


def png(pixels: np.ndarray) -> bytes:
    """A PNG of (h, w, 3) uint8, the same bytes for the same pixels."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def manifest(split: Split) -> str:
    """The .lst of a split: index, label and path relative to the channel, separated by tabs."""
    rows = zip(split.labels, split.names, strict=True)
    return "".join(f"{index}\t{label}\t{name}\n" for index, (label, name) in enumerate(rows))


def download(url: str, md5: str, folder: Path, progress: Log, patience: float | None = None) -> Path:
    """Fetches an archive, resuming an earlier attempt, and checks its MD5.

    patience: seconds after which to give up, keeping what came so far; None waits. Raises DatasetError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / url.rsplit("/", 1)[-1]
    if target.exists():
        return target
    partial = target.with_name(target.name + ".part")
    started = reported = time.monotonic()
    try:
        have = partial.stat().st_size if partial.exists() else 0
        headers = {"Range": f"bytes={have}-"} if have else {}
        with httpx.stream("GET", url, headers=headers, follow_redirects=True, timeout=patience or 30) as response:
            if response.status_code != httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:  # else it is all there
                response.raise_for_status()
                resumed = response.status_code == httpx.codes.PARTIAL_CONTENT
                have = have if resumed else 0
                total = have + int(response.headers.get("content-length", 0))
                with partial.open("ab" if resumed else "wb") as file:
                    for chunk in response.iter_bytes():
                        file.write(chunk)
                        have += len(chunk)
                        now = time.monotonic()
                        if now - reported > 5:
                            reported = now
                            progress(f"downloaded {have / 1e6:.0f} of {total / 1e6:.0f} MB")
                        if patience is not None and now - started > patience:
                            raise DatasetError(
                                f"{url} is too slow to wait for ({have / 1e6:.0f} MB in {patience:.0f} s); what came "
                                "is kept and the next attempt goes on from there"
                            )
    except httpx.HTTPError as error:
        raise DatasetError(
            f"can't download {url}: {error or type(error).__name__}; set SCONES_CIFAR_URL to a mirror, or give the "
            "path of the archive as the data set"
        ) from error
    digest = hashlib.md5(usedforsecurity=False)
    with partial.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != md5:
        partial.unlink()
        raise DatasetError(f"{url} has MD5 {digest.hexdigest()}, expected {md5}; the download was discarded")
    partial.rename(target)
    return target


def check_classes(dataset: str, classes: Sequence[str]) -> None:
    """Raises DatasetError for classes that the data set of that name does not have; own images have their folders'."""
    known = {"generated": tuple(THINGS), "cifar100": FINE_LABELS}.get(dataset)
    if known is None:
        path = Path(dataset).expanduser()
        if not path.is_file() or not tarfile.is_tarfile(path):
            return
        with _opened(path) as archive:
            known = tuple(_fine_labels(archive, path))
    if unknown := [name for name in classes if name not in known]:
        raise DatasetError(
            f"the data set {dataset} has no class {', '.join(unknown)}", f"SCONES_CLASSES may name {', '.join(known)}"
        )


@contextmanager
def _opened(path: Path) -> Iterator[tarfile.TarFile]:
    """An archive to read from; whatever goes wrong with that is a DatasetError."""
    try:
        with tarfile.open(path, tarinfo=BoundedHeader) as archive:
            yield archive
    except DatasetError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise DatasetError(f"{path} is not a readable archive in CIFAR-100's layout (truncated?): {error}") from error


def _fine_labels(archive: tarfile.TarFile, path: Path) -> list[str]:
    meta = _member(archive, "meta")
    if b"fine_label_names" not in meta:
        raise DatasetError(f"{path}: meta has no fine_label_names")
    return cifar_pickle.names(meta[b"fine_label_names"])


def _member(archive: tarfile.TarFile, name: str) -> dict[bytes, Any]:
    """One of the archive's pickles; tar may have written the folder with ./ before it."""
    wanted = (f"{ARCHIVE_FOLDER}/{name}", f"./{ARCHIVE_FOLDER}/{name}")
    info = next((each for each in archive if each.name in wanted), None)
    file = archive.extractfile(info) if info is not None else None
    if info is None or file is None or info.size > MAX_MEMBER_BYTES:
        raise ValueError(f"there is no file {wanted[0]} of at most {MAX_MEMBER_BYTES} bytes")
    try:
        return cifar_pickle.load(file.read())
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _split(content: dict[bytes, Any], wanted: list[int], name: str) -> Split:
    labels, data = cifar_pickle.whole_numbers(content[b"fine_labels"]), content[b"data"]
    if not (isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.shape == (len(labels), 3072)):
        raise ValueError(f"{name} does not hold 32x32 RGB images")
    rows = np.flatnonzero(np.isin(labels, wanted))
    pixels = data[rows].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    renumbered = np.array([wanted.index(label) for label in labels[rows]], dtype=int)
    files = cifar_pickle.names(content[b"filenames"])
    return Split(np.ascontiguousarray(pixels), renumbered, tuple(files[row] for row in rows))
