"""Photographs as `scones classify` sends them."""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from settings import ROOT
from tasks.serving.adhoc import MAX_BYTES, PhotoError, read_photo


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(("kind", "ending"), [("PNG", "png"), ("JPEG", "jpg"), ("WEBP", "webp")])
def test_a_file_is_sent_as_it_is_with_the_ending_of_its_content(tmp_path: Path, kind: str, ending: str) -> None:
    noise(1000, 700).save(tmp_path / "a.img", kind)
    photo = read_photo(tmp_path / "a.img")
    assert (photo.content, photo.ending) == ((tmp_path / "a.img").read_bytes(), ending)


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "is neither"), (b"text", "is neither"), (b"GIF89a", "is neither"), (None, "No such file")],
)
def test_what_is_no_photograph_is_told(tmp_path: Path, content: bytes | None, says: str) -> None:
    if content is not None:
        (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(PhotoError, match=says):
        read_photo(tmp_path / "a.jpg")


def test_a_file_that_the_workflow_would_not_read_is_not_uploaded(tmp_path: Path) -> None:
    with (tmp_path / "a.jpg").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(PhotoError, match="at most 25,000,000"):
        read_photo(tmp_path / "a.jpg")
    assert workflow().MAX_FILE_BYTES == MAX_BYTES


def test_a_folder_is_no_photograph(tmp_path: Path) -> None:
    with pytest.raises(PhotoError):
        read_photo(tmp_path)


def workflow() -> ModuleType:
    spec = importlib.util.spec_from_file_location("of_workflow", ROOT / "lambdas" / "serialize_image_data.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
