"""What serializeImageData makes of images that are too large for a state's payload, and of WebP."""

import io
import random
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from settings import ROOT
from tasks.data.generated import draw
from tasks.data.pictures import as_served
from testing.pictures import huge_png, noise_jpeg


class Bucket:
    """Answers get_object with one image."""

    def __init__(self, image: bytes) -> None:
        self._image = image

    def get_object(self, **_: Any) -> dict[str, Any]:
        return {"ContentLength": len(self._image), "Body": io.BytesIO(self._image)}


@pytest.fixture
def function(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "lambdas"))
    monkeypatch.delitem(sys.modules, "serialize_image_data", raising=False)
    import serialize_image_data

    return serialize_image_data


def sent(function: ModuleType, image: bytes, monkeypatch: pytest.MonkeyPatch) -> tuple[bytes, str | None]:
    import base64

    monkeypatch.setattr(function, "s3", Bucket(image))
    answer = function.handler({"bucket": "b", "key": "k"}, None)
    return base64.b64decode(answer["image_data"]), answer["sent_as"]


def photograph(kind: str, side: int = 1600, mode: str = "RGB", **options: Any) -> bytes:
    """A generated bicycle, enlarged, with the grain that makes a file of a photograph's size."""
    enlarged = Image.fromarray(draw("bicycle", 3)).resize((side, side * 3 // 4), Image.Resampling.BICUBIC)
    grain = np.random.default_rng(1).integers(-12, 13, (side * 3 // 4, side, 3))
    image = Image.fromarray((np.asarray(enlarged) + grain).clip(0, 255).astype(np.uint8)).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_small_png_or_jpeg_is_passed_on_as_it_is(
    function: ModuleType, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    image = photograph(kind, 200)
    assert sent(function, image, monkeypatch) == (image, None)


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("JPEG", "RGB", {"quality": 95}),
        ("JPEG", "RGB", {"quality": 95, "progressive": True}),
        ("JPEG", "L", {"quality": 95}),
        ("JPEG", "CMYK", {"quality": 95}),
        ("PNG", "RGB", {}),
        ("PNG", "RGBA", {}),
        ("PNG", "P", {}),
        ("WEBP", "RGB", {"quality": 95}),
        ("WEBP", "RGB", {"lossless": True}),
    ],
)
def test_a_photograph_is_shrunk_and_the_model_sees_nearly_the_same(
    function: ModuleType, monkeypatch: pytest.MonkeyPatch, kind: str, mode: str, options: dict[str, Any]
) -> None:
    image = photograph(kind, mode=mode, **options)
    assert len(image) > function.MAX_SENT_BYTES
    jpeg, said = sent(function, image, monkeypatch)
    with Image.open(io.BytesIO(jpeg)) as made:
        assert (made.format, said) == (
            "JPEG",
            f"JPEG of {made.width} x {made.height}, made of a {kind} of 1600 x 1200 and {len(image):,} bytes",
        )
        assert made.width >= 256
    assert len(jpeg) <= function.MAX_SENT_BYTES
    with Image.open(io.BytesIO(image)) as opened:
        buffer = io.BytesIO()
        opened.convert("RGB").save(buffer, "PNG")
    for size in (32, 96):
        served, seen = as_served(buffer.getvalue(), size), as_served(jpeg, size)
        assert served is not None and seen is not None
        assert np.abs(served.astype(int) - seen).mean() < 3


def test_a_small_webp_becomes_what_the_endpoint_takes(function: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    jpeg, said = sent(function, photograph("WEBP", 64), monkeypatch)
    assert jpeg.startswith(b"\xff\xd8\xff") and said is not None
    assert said.startswith("JPEG of 64 x 48, made of a WEBP of 64 x 48 and ")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_it_is_turned_upright(function: ModuleType, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    jpeg, _ = sent(function, photograph(kind, exif=exif), monkeypatch)
    with Image.open(io.BytesIO(jpeg)) as made:
        assert made.height > made.width and 0x0112 not in made.getexif()


def test_transparent_parts_are_white_and_16_bits_are_scaled(
    function: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = io.BytesIO()
    Image.new("RGBA", (64, 64), (0, 0, 0, 0)).save(buffer, "WEBP", lossless=True)
    with Image.open(io.BytesIO(sent(function, buffer.getvalue(), monkeypatch)[0])) as made:
        assert made.getpixel((5, 5)) == (255, 255, 255)
    deep = np.random.default_rng(1).integers(29_000, 31_000, (700, 700), dtype=np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(deep).save(buffer, "PNG")
    with Image.open(io.BytesIO(sent(function, buffer.getvalue(), monkeypatch)[0])) as made:
        assert np.abs(np.asarray(made).astype(int) - 30_000 // 256).mean() < 4


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_whatever_is_broken_has_the_name_of_a_broken_image(
    function: ModuleType, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    whole, chosen = photograph(kind), random.Random(1)
    assert len(whole) > function.MAX_SENT_BYTES
    for _ in range(20):
        damaged = bytearray(whole)
        for _ in range(40):
            damaged[chosen.randrange(20, 4000)] = chosen.randrange(256)
        for image in (bytes(damaged), bytes(damaged) + b"\xff" * 1000, whole[: chosen.randrange(190_000, len(whole))]):
            try:
                jpeg, _ = sent(function, image, monkeypatch)
                assert len(jpeg) <= function.MAX_SENT_BYTES
            except (function.UnreadableImage, function.ImageTooLarge) as error:
                assert "s3://b/k" in str(error)


@pytest.mark.parametrize(
    ("image", "says"),
    [(huge_png(), "decodes at most"), (noise_jpeg(64) + b"0" * 25_000_000, "takes at most 25000000")],
    ids=["pixels", "bytes"],
)
def test_what_is_too_large_to_decode_says_so(
    function: ModuleType, monkeypatch: pytest.MonkeyPatch, image: bytes, says: str
) -> None:
    with pytest.raises(function.ImageTooLarge, match=says):
        sent(function, image, monkeypatch)


def test_a_jpeg_of_more_pixels_than_are_decoded_is_decoded_at_an_eighth(
    function: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    buffer = io.BytesIO()
    Image.effect_mandelbrot((7000, 7000), (-2, -1, 1, 1), 9).convert("RGB").save(buffer, "JPEG", quality=90)
    jpeg, said = sent(function, buffer.getvalue() + b"\0" * 200_000, monkeypatch)
    assert said is not None and "made of a JPEG of 7000 x 7000" in said and len(jpeg) <= function.MAX_SENT_BYTES
