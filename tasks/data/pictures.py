"""Pictures as the model is given them. classifier/serving.py does the same where it serves; a test compares them."""

import io

import numpy as np
from PIL import Image, ImageOps

# Pictures of more pixels are not decoded whole; a JPEG can be decoded at half, a quarter or an eighth of its width.
MAX_PIXELS = 25_000_000
# The workflow makes JPEGs of WebP before the endpoint sees them.
FORMATS = ("PNG", "JPEG", "WEBP")
# Longest side in pixels of a picture on a page, and how many bytes are small enough for one as it is.
THUMBNAIL_SIDE, SMALL_BYTES = 256, 60_000


def read_rgb(content: bytes) -> Image.Image | None:
    """The picture of a file in RGB: 16 bits scaled, transparent parts white; None if it can't be decoded."""
    try:
        return as_rgb(_decoded(content))
    except Exception:  # a damaged file can make a decoder raise nearly anything
        return None


def as_served(content: bytes, size: int) -> np.ndarray | None:
    """Pixels (size, size, 3) uint8 of a PNG, JPEG or WebP as the endpoint sees them; None if it can't be decoded."""
    try:
        picture = as_rgb(upright(_decoded(content, 4 * size)))
    except Exception:  # as above
        return None
    return np.array(picture.resize((size, size), Image.Resampling.BILINEAR, reducing_gap=2))


def thumbnail(content: bytes, side: int = THUMBNAIL_SIDE, small_bytes: int = SMALL_BYTES) -> bytes | None:
    """A PNG or JPEG to show on a page: as it is if it is small, else of at most that side; None if the picture can't be
    decoded.
    """
    try:
        image = _decoded(content, side, above=0)
        if len(content) <= small_bytes and image.format != "WEBP":
            return content
        picture = as_rgb(upright(image))
        picture.thumbnail((side, side))
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=90)
        return buffer.getvalue()
    except Exception:  # as above
        return None


def _decoded(content: bytes, side: int | None = None, above: int = MAX_PIXELS) -> Image.Image:
    """The picture as it is in the file. A JPEG of more pixels than `above` is decoded smaller, but not below `side`.

    Raises ValueError for too many pixels, and whatever a decoder raises.
    """
    image = Image.open(io.BytesIO(content), formats=FORMATS)
    if side is not None and image.width * image.height > above:
        image.draft("RGB", (side, side))
    if image.width * image.height > MAX_PIXELS:
        raise ValueError("too many pixels")
    image.load()
    return image


def upright(image: Image.Image) -> Image.Image:
    """The picture turned as its EXIF data says."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged metadata says nothing about the picture
        return image


def as_rgb(image: Image.Image) -> Image.Image:
    """The picture in RGB: 16 bits scaled, transparent parts white."""
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8)).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        picture = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, (255, 255, 255, 255)), picture).convert("RGB")
    return image.convert("RGB")
