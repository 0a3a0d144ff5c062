"""Photographs as `scones classify` sends them."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tasks.serving.adhoc import MAX_BYTES, PhotoError, read_photo


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(("name", "kind"), [("a.png", "PNG"), ("a.jpg", "JPEG")])
def test_what_the_workflow_takes_is_sent_as_it_is(tmp_path: Path, name: str, kind: str) -> None:
    noise(40, 30).save(tmp_path / name, kind)
    photo = read_photo(tmp_path / name)
    assert photo.content == (tmp_path / name).read_bytes() and photo.note == ""


def test_a_photograph_of_a_phone_is_shrunk_upright_and_said_so(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    noise(2000, 1500).save(tmp_path / "IMG_1.jpg", "JPEG", quality=95, exif=exif)
    assert (tmp_path / "IMG_1.jpg").stat().st_size > 2_000_000
    photo = read_photo(tmp_path / "IMG_1.jpg")
    assert len(photo.content) <= MAX_BYTES and photo.note.startswith("JPEG of ")
    with Image.open(io.BytesIO(photo.content)) as sent:
        assert sent.format == "JPEG" and sent.height > sent.width
        assert f"sent as JPEG of {sent.width} x {sent.height}" in photo.note


@pytest.mark.parametrize("kind", ["WEBP", "GIF", "BMP", "TIFF"])
def test_other_kinds_are_sent_as_jpeg(tmp_path: Path, kind: str) -> None:
    noise(40, 30).save(tmp_path / "a.img", kind)
    photo = read_photo(tmp_path / "a.img")
    assert photo.content.startswith(b"\xff\xd8\xff") and photo.note.startswith(f"{kind} of 40 x 30")


def test_transparent_parts_are_white(tmp_path: Path) -> None:
    Image.new("RGBA", (32, 32), (0, 0, 0, 0)).save(tmp_path / "a.webp", "WEBP", lossless=True)
    with Image.open(io.BytesIO(read_photo(tmp_path / "a.webp").content)) as sent:
        assert sent.getpixel((5, 5)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "is no image"), (b"text", "is no image"), (None, "No such file"), (b"\xff\xd8\xff", "is ")],
)
def test_what_is_no_photograph_is_told(tmp_path: Path, content: bytes | None, says: str) -> None:
    if content is not None:
        (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(PhotoError, match=says):
        read_photo(tmp_path / "a.jpg")


def test_a_truncated_photograph_is_told(tmp_path: Path) -> None:
    noise(1000, 1000).save(tmp_path / "a.jpg", "JPEG", quality=95)
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:300_000])
    with pytest.raises(PhotoError, match="can't be read as an image"):
        read_photo(tmp_path / "a.jpg")


def test_an_image_of_too_many_pixels_is_not_decoded(tmp_path: Path) -> None:
    Image.new("1", (20_000, 15_000)).save(tmp_path / "a.png", "PNG")
    with pytest.raises(PhotoError, match="larger than anybody's photograph"):
        read_photo(tmp_path / "a.png")


def test_a_folder_is_no_photograph(tmp_path: Path) -> None:
    with pytest.raises(PhotoError):
        read_photo(tmp_path)
