"""The data set on its way to S3: chosen, checked, uploaded and described."""

import errno
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from msgspec.structs import replace
from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.logging import get_run_logger

from settings import MANIFESTS_PREFIX, TEST_PREFIX, TRAIN_PREFIX, settings
from tasks.aws import storage
from tasks.aws.stacks import find_outputs
from tasks.data import folder
from tasks.data.dataset import (
    Dataset,
    DatasetError,
    LeftOut,
    Split,
    download,
    from_archive,
    generated,
    manifest,
    png,
    resized,
)
from tasks.installation import DatasetNote, Installation
from tasks.run import Log, iso, utc_now

# Describes the images in the bucket.
NOTE_KEY = f"{MANIFESTS_PREFIX}dataset.json"
# Of images below train/ that people have looked at.
REVIEWED_FOLDER = "reviewed/"
# Files that the table of what is wrong names.
MOST_TOLD = 1000
# How long a demo waits for the real archive before it draws images instead.
FALLBACK_PATIENCE_SECONDS = 10.0


def classes_of(dataset: str | None) -> tuple[str, ...] | None:
    """What an installation is to tell apart for a data set: the folders' names of one's own images, else the setting's.

    None, which means as before, if no data set is named and the installation stands. Raises DatasetError.
    """
    if dataset is None:
        if find_outputs(settings().stack):
            return None
        dataset = settings().dataset
    if not folder.is_own(dataset):
        return settings().classes
    return folder.classes_of(_entries(dataset), dataset)


@task(task_run_name="load images")
def load_dataset(installed: Installation, dataset: str | None, fall_back_to_generated: bool) -> Dataset | None:
    """The named data set; by default the one that the installation was given before, and the setting's at first.

    fall_back_to_generated: draw images if the archive can't be had; only if nothing was prepared yet.
    None, which means that the images in the bucket stay, if those are of an archive that can't be had any more.
    """
    logger, chosen = get_run_logger(), settings()
    note = find_note(installed.bucket)
    name, kept = dataset or (_given(note) if note else chosen.dataset), note if dataset is None else None
    if kept and "dataset" in chosen.model_fields_set and _named(chosen.dataset) != name:
        logger.warning(
            "SCONES_DATASET is %s, and this installation keeps %s; run prepare-data with dataset=%s to change it",
            *(chosen.dataset, name, chosen.dataset),
        )
    try:
        return _load(name, installed.classes, FALLBACK_PATIENCE_SECONDS if fall_back_to_generated else None)
    except DatasetError as error:
        if kept and kept.classes == installed.classes:
            logger.warning("%s", error)
            logger.warning("the images in the bucket stay: %s", kept.source)
            return None
        if not fall_back_to_generated or kept or name != "cifar100":
            raise
        logger.warning("%s", error)
        logger.warning("using GENERATED images instead of photographs")
        return _load("generated", installed.classes, None)


def _load(name: str, classes: tuple[str, ...], patience: float | None) -> Dataset:
    """patience: seconds after which a download is given up; None waits. Raises DatasetError."""
    chosen, logger = settings(), get_run_logger()
    if name == "generated":
        counts = chosen.generated_per_class, chosen.generated_test_per_class
        return generated(classes, *counts, chosen.image_size)
    if name == "cifar100":
        archive = download(chosen.cifar_url, chosen.cifar_md5, chosen.cache, logger.info, patience)
        dataset = from_archive(archive, classes, official=True, given=name)
    elif folder.is_own(name):
        return _own(name, classes)
    else:
        dataset = from_archive(Path(_named(name)), classes)
    return resized(dataset, chosen.image_size)


def _own(name: str, classes: tuple[str, ...]) -> Dataset:
    """One's own images, with a table of what is wrong with them. Raises DatasetError."""
    logger = get_run_logger()
    checked = load_own(name, logger.info, classes)
    left_out = checked.dataset.left_out
    for line in (*checked.warnings, *folder.told(left_out)):
        logger.warning(line)
    counts = np.bincount(checked.dataset.train.labels), np.bincount(checked.dataset.test.labels)
    rows = [
        {"class": each, "to train": int(train), "to test": int(test)}
        for each, train, test in zip(classes, *counts, strict=True)
    ]
    create_table_artifact(rows, key="own-images", description=f"Images of {name} by class")
    create_table_artifact(
        [{"file": "(all)", "what is wrong": line} for line in checked.warnings]
        + [{"file": each.path, "what is wrong": each.why} for each in left_out[:MOST_TOLD]],
        key="own-images-left-out",
        description=f"{len(left_out)} files of {name} are left out",
    )
    return checked.dataset


def load_own(name: str, progress: Log, classes: tuple[str, ...] | None = None) -> folder.Checked:
    """One's own images, checked. classes: those that they must be of; None for any. Raises DatasetError."""
    chosen, entries = settings(), _entries(name)
    found = folder.classes_of(entries, name)
    if classes not in (None, found):
        raise DatasetError(
            f"{name} has the classes {', '.join(found)}, and this installation tells {', '.join(classes or ())} apart",
            f"run prepare-data with dataset={name} to change that",
        )
    return folder.load(
        entries,
        found,
        size=chosen.image_size,
        share=chosen.dataset_test_share,
        strict=chosen.dataset_strict,
        where=_named(name),
        source=PurePosixPath(name.rstrip("/")).name,
        progress=progress,
    )


def _entries(name: str) -> list[folder.Entry]:
    """The files of one's own images, on this machine or below a prefix of S3. Raises DatasetError."""
    if not name.startswith("s3://"):
        return folder.local_entries(Path(_named(name)))
    bucket, _, prefix = name.removeprefix("s3://").partition("/")

    def read(key: str) -> bytes:
        content = storage.get_image(bucket, key)
        if content is None:
            raise FileNotFoundError(errno.ENOENT, "it is gone", key)
        return content

    if name.endswith(folder.LISTS):
        text = read(prefix).decode("utf-8-sig", "replace")
        root = prefix.rpartition("/")[0]
        return folder.listed(text, name, lambda path: lambda: read(f"{root}/{path}" if root else path))
    prefix = f"{prefix.rstrip('/')}/" if prefix else ""
    return folder.stored_entries(list(storage.list_etags(bucket, prefix)), prefix, read)


def _named(dataset: str) -> str:
    """A data set's name, or the whole path of an archive: relative ones mean something else in another folder."""
    if dataset.startswith("s3://"):
        return dataset
    return dataset if dataset in ("cifar100", "generated") else str(Path(dataset).expanduser().resolve())


def _given(note: DatasetNote) -> str:
    """What an installation was given. Notes of earlier versions do not say, so it is told by what came of it."""
    known = {"generated": "generated", "cifar-100-python.tar.gz": "cifar100"}
    return str(note.given or known.get(note.source, settings().dataset))


@dataclass(frozen=True)
class ReviewedImage:
    """An image that people looked at. label: index of the class. content: a PNG of the size of the training images."""

    inference_id: str
    label: int
    content: bytes

    @property
    def name(self) -> str:
        """Relative to the channel. The classifier's scripts know by the folder that nobody drew it at random."""
        return f"{REVIEWED_FOLDER}{self.inference_id}.png"


class EncodedImages(Mapping[str, bytes]):
    """The PNGs of a split by their keys, each made when it is asked for: all may be more than fit into memory."""

    def __init__(self, prefix: str, split: Split) -> None:
        self._rows = {prefix + name: row for row, name in enumerate(split.names)}
        self._pixels = split.pixels
        self._digests: dict[str, bytes] = {}

    def __getitem__(self, key: str) -> bytes:
        content = png(self._pixels[self._rows[key]])
        self._digests[key] = hashlib.sha256(content).digest()
        return content

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def digests(self) -> Iterator[bytes]:
        """SHA-256 of each, in their order."""
        for key in self:
            if key not in self._digests:
                self[key]
            yield self._digests[key]


@task(task_run_name="upload images")
def upload_dataset(bucket: str, dataset: Dataset) -> DatasetNote:
    """Uploads images, then manifests, then the note that describes both; returns the note.

    Manifests come after the images that they name, so that a run that was interrupted leaves nothing half-written.
    Reviewed images, and the manifest's lines about them, stay as they are while the classes do; `replace_reviewed`
    makes them others.
    """
    logger = get_run_logger()
    digest, test_digest = hashlib.sha256(), hashlib.sha256()
    before = find_note(bucket)
    reviewed = _reviewed_lines(bucket) if before is not None and before.classes == dataset.classes else []
    for prefix, split in ((TRAIN_PREFIX, dataset.train), (TEST_PREFIX, dataset.test)):
        images = EncodedImages(prefix, split)
        changed = storage.upload_changed(bucket, prefix, images, partial(_say_uploaded, logger.info, prefix))
        logger.info(f"{prefix}: {len(images):,} images, {changed:,} of them uploaded, the rest were there")
        text = manifest(split)
        kept = reviewed if prefix == TRAIN_PREFIX else []
        storage.put(bucket, _manifest_key(prefix), (text + _numbered(kept, len(images))).encode())
        storage.delete_others(bucket, prefix, {*images, *(prefix + name for _, name in kept)})
        for part in (text.encode(), *images.digests()):
            digest.update(part)
            if prefix == TEST_PREFIX:
                test_digest.update(part)
    sha256 = digest.hexdigest()
    same = before is not None and sha256 in (before.originals_sha256, before.manifests_sha256)
    if before is not None and not same:
        logger.warning("the images are others than before: %s after %s", dataset.source, before.source)
    note = DatasetNote(
        given=dataset.given,
        since=before.since if before is not None and same else iso(utc_now()),
        source=dataset.source,
        synthetic=dataset.synthetic,
        classes=tuple(dataset.classes),
        train=len(dataset.train.names) + len(reviewed),
        test=len(dataset.test.names),
        manifests_sha256=before.manifests_sha256 if before is not None and same else sha256,
        include_reviewed=before.include_reviewed if before is not None else None,
        reviewed=len(reviewed),
        originals_sha256=sha256,
        left_out=len(dataset.left_out),
        test_sha256=test_digest.hexdigest(),
    )
    if dataset.left_out:
        storage.put_json_lines(bucket, _left_out_key(note), (each.to_json() for each in dataset.left_out))
    storage.put_json(bucket, NOTE_KEY, note.to_json())
    return note


def _say_uploaded(progress: Log, prefix: str, uploaded: int) -> None:
    if uploaded % folder.PROGRESS_IMAGES == 0:
        progress(f"{prefix}: uploaded {uploaded:,} images")


def replace_reviewed(bucket: str, images: list[ReviewedImage], include: bool, progress: Log) -> DatasetNote:
    """Makes these the reviewed images of the training set, which keeps its others; returns the note.

    include: whether later runs of prepare-data are to do the same. Images come before the manifest that names them,
    and what it does not name any more is deleted after it. Raises DatasetError if nothing was prepared.
    """
    note = dataset_note(bucket)
    lines = training_lines(bucket)
    originals = [(label, name) for label, name in lines if not name.startswith(REVIEWED_FOLDER)]
    added = [(image.label, image.name) for image in images]
    prefix = TRAIN_PREFIX + REVIEWED_FOLDER
    named = {TRAIN_PREFIX + image.name: image.content for image in images}
    uploaded = storage.upload_changed(bucket, prefix, named)
    progress(f"{prefix}: {len(images)} reviewed images, {uploaded} of them uploaded")
    storage.put(
        bucket, _manifest_key(TRAIN_PREFIX), (_numbered(originals, 0) + _numbered(added, len(originals))).encode()
    )
    storage.delete_others(bucket, prefix, named)
    sha256 = note.originals_sha256 or note.manifests_sha256
    digest = hashlib.sha256(f"{sha256}\n{_numbered(added, 0)}".encode())
    for image in images:
        digest.update(hashlib.sha256(image.content).digest())
    changed = replace(
        note,
        train=len(originals) + len(images),
        manifests_sha256=digest.hexdigest() if images else sha256,
        include_reviewed=include,
        reviewed=len(images),
        originals_sha256=sha256,
    )
    if changed.manifests_sha256 != note.manifests_sha256:
        changed = replace(changed, since=iso(utc_now()))
    storage.put_json(bucket, NOTE_KEY, changed.to_json())
    return changed


def left_out_files(bucket: str, note: DatasetNote) -> list[LeftOut]:
    """The files of one's own images that could not be used, of the data set that a note describes."""
    return storage.get_records(bucket, _left_out_key(note), LeftOut) if note.left_out else []


def _left_out_key(note: DatasetNote) -> str:
    """Of each data set its own, since reports of earlier ones are made again."""
    return f"{MANIFESTS_PREFIX}left-out/{note.originals_sha256 or note.manifests_sha256}.jsonl"


def _manifest_key(prefix: str) -> str:
    """Of the manifest of the images below a prefix."""
    return f"{MANIFESTS_PREFIX}{prefix.rstrip('/')}.lst"


def training_lines(bucket: str) -> list[tuple[int, str]]:
    """Label and name of each line of the training manifest; none if there is none."""
    text = (storage.get(bucket, _manifest_key(TRAIN_PREFIX)) or b"").decode()
    return [(int(label), name) for _, label, name in (line.split("\t") for line in text.splitlines())]


def _reviewed_lines(bucket: str) -> list[tuple[int, str]]:
    return [(label, name) for label, name in training_lines(bucket) if name.startswith(REVIEWED_FOLDER)]


def _numbered(lines: list[tuple[int, str]], first: int) -> str:
    """Lines of a manifest, of which the first has that index."""
    return "".join(f"{index}\t{label}\t{name}\n" for index, (label, name) in enumerate(lines, first))


def dataset_note(bucket: str) -> DatasetNote:
    """What the bucket's images are. Raises DatasetError if none were prepared."""
    note = find_note(bucket)
    if note is None:
        raise DatasetError("there are no images in the bucket", "run the prepare-data deployment first")
    return note


def find_note(bucket: str) -> DatasetNote | None:
    """The same; None if none were prepared."""
    return storage.get_record(bucket, NOTE_KEY, DatasetNote)
