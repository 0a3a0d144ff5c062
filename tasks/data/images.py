"""The data set on its way to S3: chosen, checked, uploaded and described."""

import hashlib
from pathlib import Path

from prefect import task
from prefect.logging import get_run_logger

from settings import MANIFESTS_PREFIX, TEST_PREFIX, TRAIN_PREFIX, settings
from tasks.aws import storage
from tasks.data.dataset import Dataset, DatasetError, download, from_archive, generated, manifest, png, resized
from tasks.installation import DatasetNote
from tasks.run import iso, utc_now

# Describes the images in the bucket.
NOTE_KEY = f"{MANIFESTS_PREFIX}dataset.json"
# How long a demo waits for the real archive before it draws images instead.
FALLBACK_PATIENCE_SECONDS = 10.0


@task(task_run_name="load images")
def load_dataset(bucket: str, dataset: str | None, fall_back_to_generated: bool) -> Dataset | None:
    """The named data set; by default the one that the installation was given before, and the setting's at first.

    fall_back_to_generated: draw images if the archive can't be had; only if nothing was prepared yet.
    None, which means that the images in the bucket stay, if those are of an archive that can't be had any more.
    """
    logger, chosen = get_run_logger(), settings()
    note = find_note(bucket)
    name, kept = dataset or (_given(note) if note else chosen.dataset), note if dataset is None else None
    if kept and "dataset" in chosen.model_fields_set and _named(chosen.dataset) != name:
        logger.warning(
            "SCONES_DATASET is %s, and this installation keeps %s; run prepare-data with dataset=%s to change it",
            *(chosen.dataset, name, chosen.dataset),
        )
    try:
        return _load(name, FALLBACK_PATIENCE_SECONDS if fall_back_to_generated else None)
    except DatasetError as error:
        if kept and kept.classes == chosen.classes:
            logger.warning("%s", error)
            logger.warning("the images in the bucket stay: %s", kept.source)
            return None
        if not fall_back_to_generated or kept or name != "cifar100":
            raise
        logger.warning("%s", error)
        logger.warning("using GENERATED images instead of photographs")
        return _load("generated", None)


def _load(name: str, patience: float | None) -> Dataset:
    """patience: seconds after which a download is given up; None waits. Raises DatasetError."""
    chosen, logger = settings(), get_run_logger()
    if name == "generated":
        counts = chosen.generated_per_class, chosen.generated_test_per_class
        return generated(chosen.classes, *counts, chosen.image_size)
    if name == "cifar100":
        archive = download(chosen.cifar_url, chosen.cifar_md5, chosen.cache, logger.info, patience)
        dataset = from_archive(archive, chosen.classes, official=True, given=name)
    else:
        dataset = from_archive(Path(_named(name)), chosen.classes)
    return resized(dataset, chosen.image_size)


def _named(dataset: str) -> str:
    """A data set's name, or the whole path of an archive: relative ones mean something else in another folder."""
    return dataset if dataset in ("cifar100", "generated") else str(Path(dataset).expanduser().resolve())


def _given(note: DatasetNote) -> str:
    """What an installation was given. Notes of earlier versions do not say, so it is told by what came of it."""
    known = {"generated": "generated", "cifar-100-python.tar.gz": "cifar100"}
    return str(note.given or known.get(note.source, settings().dataset))


@task(task_run_name="upload images")
def upload_dataset(bucket: str, dataset: Dataset) -> DatasetNote:
    """Uploads images, then manifests, then the note that describes both; returns the note.

    Manifests come after the images that they name, so that a run that was interrupted leaves nothing half-written.
    """
    logger = get_run_logger()
    digest = hashlib.sha256()
    for prefix, split in ((TRAIN_PREFIX, dataset.train), (TEST_PREFIX, dataset.test)):
        images = {prefix + name: png(pixels) for name, pixels in zip(split.names, split.pixels, strict=True)}
        changed = storage.upload_changed(bucket, prefix, images)
        logger.info("%s%d images, %d of them uploaded, the rest were there", prefix, len(images), changed)
        text = manifest(split).encode()
        storage.put(bucket, f"{MANIFESTS_PREFIX}{prefix.rstrip('/')}.lst", text)
        storage.delete_others(bucket, prefix, images)
        digest.update(text)
        for content in images.values():
            digest.update(hashlib.sha256(content).digest())
    sha256 = digest.hexdigest()
    before = find_note(bucket)
    changed = before is None or before.manifests_sha256 != sha256
    if before is not None and changed:
        logger.warning("the images are others than before: %s after %s", dataset.source, before.source)
    note = DatasetNote(
        given=dataset.given,
        since=iso(utc_now()) if before is None or changed else before.since,
        source=dataset.source,
        synthetic=dataset.synthetic,
        classes=tuple(dataset.classes),
        train=len(dataset.train.names),
        test=len(dataset.test.names),
        manifests_sha256=sha256,
    )
    storage.put_json(bucket, NOTE_KEY, note.to_json())
    return note


def dataset_note(bucket: str) -> DatasetNote:
    """What the bucket's images are. Raises DatasetError if none were prepared."""
    note = find_note(bucket)
    if note is None:
        raise DatasetError("there are no images in the bucket", "run the prepare-data deployment first")
    return note


def find_note(bucket: str) -> DatasetNote | None:
    """The same; None if none were prepared."""
    return storage.get_record(bucket, NOTE_KEY, DatasetNote)
