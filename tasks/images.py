"""The data set on its way to S3: chosen, checked, uploaded and described."""

import hashlib
from pathlib import Path
from typing import Any

from prefect import task
from prefect.logging import get_run_logger

from settings import MANIFESTS_PREFIX, SCHEMA_VERSION, TEST_PREFIX, TRAIN_PREFIX, settings
from tasks import storage
from tasks.dataset import Dataset, DatasetError, download, from_archive, generated, manifest, png

# How long a demo waits for the real archive before it draws images instead.
FALLBACK_PATIENCE_SECONDS = 10.0


@task(task_run_name="load images")
def load_dataset(dataset: str | None, fall_back_to_generated: bool) -> Dataset:
    """The named data set, by default the setting's; generated images where that can't be had and may be replaced."""
    logger = get_run_logger()
    chosen = settings()
    name = dataset or chosen.dataset
    if name == "generated":
        return _generated()
    if name != "cifar100":
        return from_archive(Path(name).expanduser(), chosen.classes)
    patience = FALLBACK_PATIENCE_SECONDS if fall_back_to_generated else None
    try:
        archive = download(chosen.cifar_url, chosen.cifar_md5, chosen.cache, logger.info, patience)
        return from_archive(archive, chosen.classes, official=True)
    except DatasetError as error:
        if not fall_back_to_generated:
            raise
        logger.warning("%s", error)
        logger.warning("using GENERATED images instead of photographs")
        return _generated()


@task(task_run_name="upload images")
def upload_dataset(bucket: str, dataset: Dataset) -> dict[str, Any]:
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
    note = {
        "schema_version": SCHEMA_VERSION,
        "source": dataset.source,
        "synthetic": dataset.synthetic,
        "classes": list(dataset.classes),
        "train": len(dataset.train.names),
        "test": len(dataset.test.names),
        "manifests_sha256": digest.hexdigest(),
    }
    storage.put_json(bucket, f"{MANIFESTS_PREFIX}dataset.json", note)
    return note


def dataset_note(bucket: str) -> dict[str, Any]:
    """What the bucket's images are. Raises DatasetError where none were prepared."""
    note: dict[str, Any] | None = storage.get_json(bucket, f"{MANIFESTS_PREFIX}dataset.json")
    if note is None:
        raise DatasetError("there are no images in the bucket; run the prepare-data deployment first")
    return note


def _generated() -> Dataset:
    chosen = settings()
    return generated(chosen.classes, chosen.generated_per_class, chosen.generated_test_per_class)
