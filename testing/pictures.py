"""Image files that the workflow has to shrink or refuse."""

import io
from functools import cache

import numpy as np
from PIL import Image


def noise_jpeg(side: int) -> bytes:
    """Noise of side x side pixels, about a byte each."""
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (side, side, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    noise.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


@cache
def huge_png() -> bytes:
    """More pixels than the workflow decodes, in a file that it would have to shrink."""
    buffer = io.BytesIO()
    Image.new("1", (9000, 9000)).save(buffer, "PNG")
    return buffer.getvalue() + b"0" * 200_000
