"""Generated images without labels, as an installation's users would send them."""

from datetime import datetime

from tasks.aws import storage
from tasks.data.dataset import DatasetError, png
from tasks.data.generated import FAR, draw

# Seeds of which neither training nor test images are drawn.
FIRST_SEED = 1_000_000
# One image in so many shows none of the classes.
NONE_OF_THEM = 8


def upload_unlabelled(bucket: str, classes: tuple[str, ...], images: int, now: datetime, size: int) -> str:
    """Uploads images of the classes, and some of other things, below a prefix of this moment, and returns the prefix.

    Raises DatasetError if a class can't be drawn.
    """
    prefix = f"incoming/generated-{now:%Y%m%dT%H%M%S}/"
    first = FIRST_SEED + int(now.timestamp()) % 1_000_000 * 1000
    drawn = {}
    for number in range(images):
        others = number % NONE_OF_THEM == NONE_OF_THEM - 1
        what = tuple(FAR)[number // NONE_OF_THEM % len(FAR)] if others else classes[number % len(classes)]
        try:
            drawn[f"{prefix}{number:04}.png"] = png(draw(what, first + number, size))
        except ValueError as error:
            raise DatasetError(f"generated images: {error}") from error
    storage.upload_changed(bucket, prefix, drawn)
    return prefix
