"""`scones check`: own images and their training, told before anything starts."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from cli.app import app
from settings import settings
from tasks.data import dataset, folder
from tasks.data.images import EncodedImages
from tests.unit.test_folder import fill


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """40 images of two classes, of which one is broken."""
    for name in ("EPOCHS", "FOLDS"):
        monkeypatch.delenv(f"SCONES_{name}", raising=False)
    settings.cache_clear()
    root = fill(tmp_path / "my pictures", "cat", "dog", each=20)
    (root / "cat" / "broken.jpg").write_text("no image")
    return root


def test_classes_left_out_files_time_and_money_are_told(pictures: Path) -> None:
    done = CliRunner().invoke(app, ["check", str(pictures)])
    assert done.exit_code == 1, done.output
    assert "1 files would be left out:" in done.output and "cat/broken.jpg: is no PNG, JPEG or WebP" in done.output
    assert "160 epochs, 11 networks; about" in done.output and "With SCONES_IMAGE_SIZE=96:" in done.output
    assert done.output.count("on AWS about ") == 2 and " and $" in done.output
    (pictures / "cat" / "broken.jpg").unlink()
    assert CliRunner().invoke(app, ["check", str(pictures)]).exit_code == 0


def test_the_same_as_json(pictures: Path) -> None:
    told = json.loads(CliRunner().invoke(app, ["check", "--json", str(pictures)]).stdout)
    assert sum(told["classes"]["cat"].values()) == 20 and [each["path"] for each in told["left_out"]] == [
        "cat/broken.jpg"
    ]
    assert [each["image_size"] for each in told["training"]] == [32, 96]
    assert all(each["dollars"] > 0 for each in told["training"])


@pytest.mark.parametrize("wrong", ["no/such/folder", "lonely"])
def test_what_cannot_be_used_is_an_error_of_a_line(tmp_path: Path, wrong: str) -> None:
    (tmp_path / "lonely" / "cat").mkdir(parents=True)
    done = CliRunner().invoke(app, ["check", str(tmp_path / wrong)])
    assert done.exit_code == 2 and "error: " in done.output and "Traceback" not in done.output


def test_many_pixels_are_in_a_file_and_make_the_same_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = fill(tmp_path, "cat", "dog", each=20)

    def loaded() -> dataset.Dataset:
        entries, classes = folder.local_entries(root), ("cat", "dog")
        kinds = {"share": 0.2, "strict": False, "where": "w", "source": "s", "progress": lambda line: None}
        return folder.load(entries, classes, size=32, **kinds).dataset  # type: ignore[arg-type]

    in_memory = loaded()
    monkeypatch.setattr(dataset, "MOST_IN_MEMORY", 1000)
    in_file = loaded()
    assert isinstance(in_file.train.pixels, np.memmap) and not isinstance(in_memory.train.pixels, np.memmap)
    for one, other in ((in_memory.train, in_file.train), (in_memory.test, in_file.test)):
        assert one.names == other.names and np.array_equal(one.pixels, other.pixels)
    images = EncodedImages("train/", in_file.train)
    assert list(images) == [f"train/{name}" for name in in_file.train.names]
    assert list(images.values()) == [dataset.png(pixels) for pixels in in_memory.train.pixels]
    assert len(list(images.digests())) == len(images)
