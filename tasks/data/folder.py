"""One's own images: a folder per class, a CSV or JSON Lines file of paths and labels, on this machine or in S3.

Every picture becomes one of the model's size as the endpoint makes it of what it is asked (pictures.as_served), so that
training and serving see the same.
"""

import csv
import hashlib
import io
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from tasks.data.dataset import Dataset, DatasetError, LeftOut, Split, check, room_for_pixels
from tasks.data.pictures import as_served
from tasks.run import Log

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
LISTS = (".csv", ".jsonl")
# What the folders of splits are called.
SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
CLASS_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_ -]{0,62}")
MOST_CLASSES = 100
# Below this many images of a class nothing can be learnt, or said about what was.
FEWEST_TRAIN, FEWEST_TEST = 10, 2
MOST_BYTES = 50_000_000
# One class a hundred times another.
IMBALANCE = 100
PROGRESS_IMAGES = 1000
# Bits of 128 of fingerprints, and levels of 255 of pixels on average, by which copies of one image differ at most.
NEAR_BITS, NEAR_LEVELS = 16, 8.0
SHOWN = 10


@dataclass(frozen=True)
class Entry:
    """An image file. path: relative, for people. split: None if its content decides."""

    path: str
    label: str
    split: str | None
    read: Callable[[], bytes]


@dataclass(frozen=True)
class Checked:
    """A data set, which names the files that are left out of it, and what else is to be said of the whole."""

    dataset: Dataset
    warnings: list[str]


@dataclass(frozen=True, eq=False)
class Row:
    """An image that is used. pixels (size, size, 3) uint8; label: index of the class; name: in the bucket; digest:
    SHA-256 of the file."""

    pixels: np.ndarray
    label: int
    name: str
    path: str
    digest: bytes


def is_own(dataset: str) -> bool:
    """Whether a data set's name leads to images of one's own, not to an archive or a set of the project's."""
    return dataset.startswith("s3://") or dataset.endswith(LISTS) or Path(dataset).expanduser().is_dir()


def classes_of(entries: list[Entry], where: str) -> tuple[str, ...]:
    """Names of the classes in their order. Raises DatasetError if they are too few, too many or can't be names."""
    found = sorted({entry.label for entry in entries})
    wrong = [name for name in found if not CLASS_NAME.fullmatch(name)]
    if wrong:
        raise DatasetError(
            f"{where}: {wrong[0][:80]!r} can't be the name of a class", "letters, digits, spaces, - and _, at most 63"
        )
    if not 2 <= len(found) <= MOST_CLASSES:
        raise DatasetError(
            f"{where} has images of {len(found)} classes ({', '.join(found[:SHOWN]) or 'none'}); 2 to {MOST_CLASSES} "
            "can be told apart",
            "a folder per class with PNG, JPEG or WebP files in it, with train/ and test/ above them or without",
        )
    return tuple(found)


def local_entries(path: Path) -> list[Entry]:
    """The image files of a folder, or of a CSV or JSON Lines file. Raises DatasetError."""
    path = path.expanduser()
    if path.is_dir():
        files = sorted(each for each in path.rglob("*") if each.is_file() and not _hidden(each.relative_to(path)))
        return _by_folder(
            [(each.relative_to(path).as_posix(), partial(_read, each)) for each in files if _is_image(each.name)],
            str(path),
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path} can't be read: {error}") from error

    def reader(name: str) -> Callable[[], bytes]:
        return lambda: _read(path.parent / name)

    return listed(text, path.name, reader)


def _read(path: Path) -> bytes:
    """Returns at most one byte more than an image may have. Raises OSError for what is no file, such as a device."""
    if not path.is_file():
        raise OSError("it is no file" if path.exists() else "there is no such file")
    with path.open("rb") as file:
        return file.read(MOST_BYTES + 1)


def stored_entries(keys: list[str], prefix: str, read: Callable[[str], bytes]) -> list[Entry]:
    """The image files below a prefix of S3. keys: all of it; read: an object's content."""

    def reader(key: str) -> Callable[[], bytes]:
        return lambda: read(key)

    images = [(key.removeprefix(prefix), reader(key)) for key in sorted(keys) if _is_image(key)]
    return _by_folder([(name, of_it) for name, of_it in images if not _hidden(PurePosixPath(name))], prefix)


def listed(text: str, where: str, reader: Callable[[str], Callable[[], bytes]]) -> list[Entry]:
    """The lines of a CSV file with a header, or of JSON Lines: path, label, and split if it is not to be drawn."""
    entries: list[Entry] = []
    for number, line in enumerate(_lines(text, where), start=1):
        path, label, split = line.get("path"), line.get("label"), line.get("split") or None
        if not (isinstance(path, str) and path and isinstance(label, str) and label):
            raise DatasetError(f"{where}: record {number} has no path and label", "path and label, and maybe split")
        if split is not None and split not in SPLITS:
            raise DatasetError(f"{where}: record {number} is of split {split!r}; there are train and test")
        entries.append(Entry(path, label, SPLITS[split] if split else None, reader(path)))
    return _whole_splits(entries, where)


def load(
    entries: list[Entry],
    classes: tuple[str, ...],
    *,
    size: int,
    share: float,
    strict: bool,
    where: str,
    source: str,
    progress: Log,
) -> Checked:
    """Reads, checks and shrinks the images. What is wrong with single files is left out and told.

    where: as it was asked for. source: what it is called for people. share: of the images without a split, by their
    content, that are for testing. strict: refuse if anything is wrong. Raises DatasetError.
    """
    left_out: list[LeftOut] = []

    def leave_out(path: str, why: str) -> None:
        left_out.append(LeftOut(path=path, why=why))

    rows: dict[str, list[Row]] = {"train": [], "test": []}
    # By what the model sees: its label, split and path.
    seen: dict[bytes, tuple[str, str, str]] = {}
    room, used = room_for_pixels(len(entries), size), 0
    # Images for testing first: where one is in both splits, the other is left out.
    for number, entry in enumerate(sorted(entries, key=lambda entry: entry.split != "test"), start=1):
        if number % PROGRESS_IMAGES == 0:
            progress(f"read {number:,} of {len(entries):,} images")
        pixels, content, problem = _pixels(entry, size)
        if pixels is None:
            leave_out(entry.path, problem)
            continue
        digest = hashlib.sha256(content).digest()
        split = entry.split or ("test" if int.from_bytes(digest[:4]) / 2**32 < share else "train")
        image = hashlib.sha256(pixels.tobytes()).digest()
        if image in seen:
            label, other, path = seen[image]
            if label != entry.label:
                leave_out(entry.path, f"the same image as {path}, which is labelled {label}")
            elif other != split:
                leave_out(entry.path, f"the same image as {path}, which is in the other split")
            else:
                leave_out(entry.path, f"the same image as {path}")
            continue
        seen[image] = entry.label, split, entry.path
        room[used] = pixels
        rows[split].append(Row(room[used], classes.index(entry.label), _name(entry, digest), entry.path, digest))
        used += 1
    if any(entry.split is None for entry in entries):
        _draw_enough(rows, len(classes))
    near = dict(_near_copies(rows["train"], rows["test"]))
    for index, path in near.items():
        leave_out(rows["train"][index].path, f"nearly the same image as {path}, which is in the other split")
    rows["train"] = [row for index, row in enumerate(rows["train"]) if index not in near]
    warnings = _about_the_whole(rows, classes, where)
    if strict and (left_out or warnings):
        raise DatasetError(
            f"{where}: {len(left_out)} files and {len(warnings)} things are wrong, and SCONES_DATASET_STRICT is set\n"
            + "\n".join([*warnings, *told(left_out)])
        )
    dataset = Dataset(_split(rows["train"]), _split(rows["test"]), classes, source, False, where, tuple(left_out))
    check(dataset)
    return Checked(dataset, warnings)


def told(left_out: Sequence[LeftOut], most: int = SHOWN) -> Iterator[str]:
    """A line for each of the first files, and how many more there are."""
    for each in left_out[:most]:
        yield f"{each.path}: {each.why}"
    if len(left_out) > most:
        yield f"and {len(left_out) - most} more"


def _by_folder(files: list[tuple[str, Callable[[], bytes]]], where: str) -> list[Entry]:
    entries = []
    for name, read in files:
        parts = PurePosixPath(name).parts
        split = SPLITS.get(parts[0].lower()) if len(parts) > 2 else None
        label = parts[1] if split else parts[0]
        if len(parts) < 2:
            raise DatasetError(f"{where}: {name} is in no class's folder", "a folder per class with its images in it")
        entries.append(Entry(name, label, split, read))
    return _whole_splits(entries, where)


def _whole_splits(entries: list[Entry], where: str) -> list[Entry]:
    """Raises DatasetError if some entries say their split and others do not, or only one split is there."""
    counts = Counter(entry.split for entry in entries)
    if set(counts) not in ({None}, {"train", "test"}, set()):
        said = ", ".join(f"{count} {split or 'without a split'}" for split, count in counts.items())
        raise DatasetError(f"{where}: {said}", "train/ and test/ above all classes, or above none")
    return entries


def _lines(text: str, where: str) -> Iterator[dict[str, object]]:
    if where.endswith(".csv"):
        yield from csv.DictReader(io.StringIO(text))
        return
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DatasetError(f"{where}: line {number} is not JSON: {error}") from error
        if not isinstance(record, dict):
            raise DatasetError(f"{where}: line {number} is not a JSON object")
        yield record


def _pixels(entry: Entry, size: int) -> tuple[np.ndarray | None, bytes, str]:
    """Pixels and content; or None and what is wrong."""
    try:
        content = entry.read()
    except OSError as error:
        return None, b"", f"can't be read: {error.strerror or error}"
    if len(content) > MOST_BYTES:
        return None, b"", f"has more than {MOST_BYTES:,} bytes"
    pixels = as_served(content, size)
    return pixels, content, "" if pixels is not None else "is no PNG, JPEG or WebP that can be decoded"


def _draw_enough(rows: dict[str, list[Row]], classes: int) -> None:
    """Has as many images of each class for testing as are needed, where chance drew fewer of a small class."""
    for label in range(classes):
        missing = FEWEST_TEST - sum(row.label == label for row in rows["test"])
        drawn = sorted((row for row in rows["train"] if row.label == label), key=lambda row: row.digest)
        for row in drawn[: max(missing, 0)]:
            rows["train"].remove(row)
            rows["test"].append(row)


def _near_copies(train: list[Row], test: list[Row]) -> Iterator[tuple[int, str]]:
    """Training images that are copies of one for testing, compressed or shrunk otherwise: index, and path of the other.

    Candidates have nearly the same fingerprint, and copies among them nearly the same pixels.
    """
    if not (train and test):
        return
    looks = np.stack([_look(row.pixels) for row in test])
    for index, row in enumerate(train):
        differing = np.bitwise_count(looks ^ _look(row.pixels)).sum(axis=1)
        for candidate in np.flatnonzero(differing <= NEAR_BITS):
            other = test[candidate]
            if np.abs(row.pixels.astype(int) - other.pixels).mean() <= NEAR_LEVELS:
                yield index, other.path
                break


def _look(pixels: np.ndarray) -> np.ndarray:
    """A fingerprint (16,) uint8 that changes little if an image is compressed or shrunk otherwise.

    Which of 8 x 17 squares are brighter than their right neighbour (the difference hash of N. Krawetz, 2013, of twice
    its columns).
    """
    grey = pixels.mean(axis=2)
    rows, columns = (np.linspace(0, len(grey), count + 1).astype(int)[:-1] for count in (8, 17))
    cells = np.add.reduceat(np.add.reduceat(grey, rows, axis=0), columns, axis=1)
    areas = np.outer(np.diff([*rows, len(grey)]), np.diff([*columns, len(grey)]))
    return np.packbits(np.diff(cells / areas, axis=1) > 0)


def _about_the_whole(rows: dict[str, list[Row]], classes: tuple[str, ...], where: str) -> list[str]:
    """Warnings. Raises DatasetError if a class has too few images to go on."""
    counts: dict[str, Counter[int]] = defaultdict(Counter)
    for split, images in rows.items():
        counts[split].update(row.label for row in images)
    for split, fewest in (("train", FEWEST_TRAIN), ("test", FEWEST_TEST)):
        few = [
            f"{name} ({counts[split][label]})" for label, name in enumerate(classes) if counts[split][label] < fewest
        ]
        if few:
            raise DatasetError(
                f"{where}: too few images to {split} with: {', '.join(few[:SHOWN])}; {fewest} of each class are needed",
                "more images, or another SCONES_DATASET_TEST_SHARE",
            )
    most, least = max(counts["train"].values()), min(counts["train"].values())
    if most >= IMBALANCE * least:
        return [f"one class has {most} training images, another one {least}"]
    return []


def _split(rows: list[Row]) -> Split:
    rows = sorted(rows, key=lambda row: (row.label, row.name))
    pixels = room_for_pixels(len(rows), len(rows[0].pixels))
    for number, row in enumerate(rows):
        pixels[number] = row.pixels
    return Split(
        pixels,
        np.array([row.label for row in rows], dtype=int),
        tuple(row.name for row in rows),
    )


def _name(entry: Entry, digest: bytes) -> str:
    """What the image is called in the bucket: its class, its own name, and its content."""
    label = re.sub(r"[^A-Za-z0-9]+", "-", entry.label).strip("-")
    return f"{label}_{plain_stem(entry.path)}_{digest.hex()[:8]}.png"


def plain_stem(path: str) -> str:
    """A file's name without its folder and ending, as it is part of the name of an image in the bucket."""
    return re.sub(r"[^A-Za-z0-9.-]+", "-", PurePosixPath(path).stem).strip("-.")[:80] or "image"


def _is_image(name: str) -> bool:
    return name.lower().endswith(ENDINGS)


def _hidden(path: Path | PurePosixPath) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in path.parts)
