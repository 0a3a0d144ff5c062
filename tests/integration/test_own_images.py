"""Own images all the way into an installation of their own: classes, images, and what stays when nothing is named."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.prepare_data import prepare_data
from flows.teardown import teardown
from local_aws.config import LocalConfig
from settings import settings
from tasks.aws import storage
from tasks.aws.clients import client
from tasks.aws.stacks import installation
from tasks.data import folder as checked_folder
from tasks.data.images import left_out_files
from tests.unit.test_folder import fill, picture

STACK = "pets"


@pytest.fixture
def folder(stack: LocalConfig, tmp_path: Path) -> Iterator[Path]:
    """Images of three classes, with one file that is none. The installation goes with the test."""
    before = dict(os.environ)
    os.environ |= {"SCONES_STACK": STACK}
    settings.cache_clear()
    try:
        made = fill(tmp_path / "my pets", "cat", "dog", "guinea pig", each=20)
        (made / "cat" / "broken.png").write_bytes(b"no image")
        yield made
        teardown(everything=True, confirm=STACK)
    finally:
        os.environ.clear()
        os.environ.update(before)
        settings.cache_clear()


def test_classes_come_from_the_folders_and_stay(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(checked_folder, "PROGRESS_IMAGES", 40)
    note = prepare_data(str(folder))
    assert "read 40 of 61 images" in caplog.messages and "train/: uploaded 40 images" in caplog.messages
    assert note.classes == installation().classes == ("cat", "dog", "guinea pig")
    assert note.given == str(folder) and note.left_out == 1 and note.train + note.test == 60
    bucket = installation().bucket
    assert len(storage.list_etags(bucket, "train/")) == note.train
    assert [each.path for each in left_out_files(bucket, note)] == ["cat/broken.png"]
    # Nothing is named: the same again, and the setting's classes do not win.
    again = prepare_data()
    assert again == note and installation().classes == note.classes
    # With a class more the images stay as they are, unless the folder is named again.
    fill(folder, "parrot", first=50_000, each=20)
    assert prepare_data() == note and installation().classes == note.classes
    assert prepare_data(str(folder)).classes == installation().classes == ("cat", "dog", "guinea pig", "parrot")


def test_a_prefix_of_s3_and_a_list_in_it(folder: Path) -> None:
    s3, bucket = client("s3"), "somebodys-pictures"
    s3.create_bucket(Bucket=bucket)
    try:
        lines = ["path,label"]
        for label, name in enumerate(("cat", "dog")):
            for index in range(16):
                s3.put_object(Bucket=bucket, Key=f"pets/{name}/{index}.png", Body=picture(100 * label + index))
                lines.append(f"{name}/{index}.png,{name}")
        s3.put_object(Bucket=bucket, Key="pets/list.csv", Body="\n".join(lines).encode())
        note = prepare_data(f"s3://{bucket}/pets")
        assert note.classes == ("cat", "dog") and note.train + note.test == 32
        listed = prepare_data(f"s3://{bucket}/pets/list.csv")
        assert listed.manifests_sha256 is not None
        assert (listed.train, listed.test, listed.classes) == (note.train, note.test, note.classes)
        with pytest.raises(Exception, match="images of 0 classes"):
            prepare_data(f"s3://{bucket}/none")
    finally:
        storage.empty(bucket)
        s3.delete_bucket(Bucket=bucket)
