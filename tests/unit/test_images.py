"""What the note about the images in the bucket says of them, with a bucket in memory."""

import dataclasses
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from prefect.logging import disable_run_logger

from tasks.data import images
from tasks.data.dataset import Dataset, generated, png
from tasks.data.images import ReviewedImage, replace_reviewed, upload_dataset
from tasks.installation import DatasetNote

CLASSES = ("bicycle", "motorcycle")
PIXELS = np.zeros((32, 32, 3), dtype=np.uint8)


class MemoryBucket(dict[str, Any]):
    """The part of tasks.aws.storage that the note's making calls."""

    def storage(self) -> SimpleNamespace:
        return SimpleNamespace(
            get=lambda bucket, key: self.get(key),
            get_record=lambda bucket, key, kind: kind.from_json(self[key], key) if key in self else None,
            put=lambda bucket, key, content: self.update({key: content}),
            put_json=lambda bucket, key, value: self.update({key: value}),
            upload_changed=self._upload,
            delete_others=lambda bucket, prefix, keep: 0,
        )

    def _upload(self, bucket: str, prefix: str, objects: Mapping[str, bytes], progress: object = None) -> int:
        self.update(objects)
        return len(objects)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> MemoryBucket:
    made = MemoryBucket()
    monkeypatch.setattr(images, "storage", made.storage())
    return made


def uploaded(dataset: Dataset) -> DatasetNote:
    with disable_run_logger():
        return upload_dataset.fn("bucket", dataset)


def test_the_test_images_have_a_digest_that_no_training_image_changes(bucket: MemoryBucket) -> None:
    small = generated(CLASSES, 3, 2)
    first = uploaded(small)
    reviewed = replace_reviewed("bucket", [ReviewedImage("i-1", 0, png(PIXELS))], True, lambda line: None)
    assert reviewed.manifests_sha256 != first.manifests_sha256
    more_training = uploaded(generated(CLASSES, 4, 2))
    assert more_training.originals_sha256 != first.originals_sha256
    assert first.test_sha256 == reviewed.test_sha256 == more_training.test_sha256 is not None
    assert uploaded(generated(CLASSES, 3, 3)).test_sha256 != first.test_sha256
    renamed = dataclasses.replace(small, test=dataclasses.replace(small.test, names=small.test.names[::-1]))
    assert uploaded(renamed).test_sha256 != first.test_sha256


def test_notes_of_earlier_releases_are_told_apart_by_the_original_images() -> None:
    new = DatasetNote(
        source="a", synthetic=False, manifests_sha256="all", originals_sha256="originals", test_sha256="test"
    )
    before = replace(new, test_sha256=None, manifests_sha256="originals", originals_sha256=None)
    assert new.has_same_test_images(before) and before.has_same_test_images(new)
    assert not new.has_same_test_images(replace(before, manifests_sha256="others"))
    assert not new.has_same_test_images(replace(new, test_sha256="others"))
    unknown = DatasetNote(source="a", synthetic=False)
    assert unknown.has_same_test_images(unknown) and not unknown.has_same_test_images(new)
    assert not unknown.has_same_test_images(replace(unknown, source="b"))
