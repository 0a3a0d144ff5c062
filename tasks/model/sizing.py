"""How a training suits the number and size of its images, how long it takes and what it costs, before it starts."""

import os
import re
from dataclasses import dataclass

from settings import Settings
from tasks.prices import INSTANCE_HOUR

# What data and classes do not decide: each is a setting of that name.
TUNABLE = (
    "epochs",
    "learning_rate",
    "mini_batch_size",
    "seed",
    "folds",
    "repeats",
    "classifier",
    "outlier_share",
    "threshold_target",
    "threshold_level",
    "threshold_method",
)
# Epochs and folds, each up to that many training images. Few images have to be seen more often, and fewer networks tell
# enough about many. 84 and 5 were tried out on 1,000 images (docs/model.md); the others keep the time in bounds.
EPOCHS = ((150, 160), (400, 120), (2_000, 84), (6_000, 48), (15_000, 32))
EPOCHS_OF_MORE = 20
FOLDS = ((200, 10), (10_000, 5))
FOLDS_OF_MORE = 3
# Images of 32 x 32 that a network is shown in a second on one core without bfloat16; others by their pixels. Measured
# with 1,000 images of 32 x 32 and 600 of 96 x 96.
SHOWN_PER_SECOND = 370
PIXELS = 32 * 32
# Reading the images, starting PyTorch, judging and packing the model.
START_SECONDS = 20
CORES = {"ml.m5.xlarge": 4, "ml.c5.2xlarge": 8, "ml.c5.4xlarge": 16}
# Above that an instance with more cores is suggested.
LONG_SECONDS = 1800
# Printed by classifier/fitting.py after the first epoch.
ESTIMATE = re.compile(r"\bestimated_seconds=(\d+) estimated_end=\S+T(\d\d:\d\d)\S*Z")


@dataclass(frozen=True)
class Sizing:
    """A training's size. images: of the training set. side: their width and height in pixels. networks: to be fitted.

    shown: images that all networks are shown together, those among them that are only answered. longest: those that the
    longest of them is.
    """

    images: int
    side: int
    epochs: int
    folds: int
    networks: int
    shown: float
    longest: int

    def seconds(self, cores: int) -> float:
        """About how long it takes; each network has a core of its own."""
        one = SHOWN_PER_SECOND * PIXELS / self.side**2
        return START_SECONDS + max(self.shown / min(cores, self.networks), self.longest) / one

    def dollars(self, instance_type: str) -> float | None:
        """By list price; None of a type whose price or cores are not known here."""
        if instance_type not in CORES or instance_type not in INSTANCE_HOUR:
            return None
        return self.seconds(CORES[instance_type]) / 3600 * INSTANCE_HOUR[instance_type]

    def suggested_instance(self) -> str:
        """The first type on which it does not take long; else the one on which it takes the shortest."""
        quick = [name for name, cores in CORES.items() if self.seconds(cores) <= LONG_SECONDS]
        return quick[0] if quick else min(CORES, key=lambda name: (self.seconds(CORES[name]), CORES[name]))


def suited(images: int, chosen: Settings) -> dict[str, int]:
    """Epochs and folds for that many training images, where the settings do not say."""
    epochs = next((count for most, count in EPOCHS if images <= most), EPOCHS_OF_MORE)
    folds = next((count for most, count in FOLDS if images <= most), FOLDS_OF_MORE)
    return {
        "epochs": chosen.epochs if "epochs" in chosen.model_fields_set else epochs,
        "folds": chosen.folds if "folds" in chosen.model_fields_set else folds,
    }


def hyperparameters_for(images: int, chosen: Settings) -> dict[str, str]:
    """All that the settings decide of a training with that many images, as its script takes them."""
    of_settings = {name: getattr(chosen, name) for name in TUNABLE}
    return {name: str(value) for name, value in (of_settings | suited(images, chosen)).items()}


def sizing(images: int, side: int, hyperparameters: dict[str, str]) -> Sizing:
    """Of a training with these hyperparameters: epochs, folds, repeats, classifier."""
    epochs, folds, repeats = (int(hyperparameters[name]) for name in ("epochs", "folds", "repeats"))
    final = hyperparameters["classifier"] == "single"
    of_folds = images * (folds - 1) / folds
    return Sizing(
        images=images,
        side=side,
        epochs=epochs,
        folds=folds,
        networks=folds * repeats + final,
        # Each network answers what it was fitted to, and in the end every image is answered once. That is of three
        # views, and without learning: it takes as long as an epoch does.
        shown=(epochs + 1) * (folds * repeats * of_folds + final * images) + images,
        longest=round((epochs + 1) * (images if final else of_folds) + images),
    )


def in_words(size: Sizing, instance_type: str, local: bool, max_seconds: int) -> list[str]:
    """Lines for people. local: it runs on this machine, whatever the instance type says.

    max_seconds: after which SageMaker stops the job.
    """
    cores = (os.cpu_count() or 1) if local else CORES.get(instance_type, 0)
    what = f"{size.images:,} images of {size.side} x {size.side} pixels, {size.epochs} epochs, {size.networks} networks"
    lines = [f"training: {what}"]
    if cores:
        where = f"{cores} cores of this machine" if local else instance_type
        lines[0] += f"; about {duration(size.seconds(cores))} on {where}"
        lines += _too_long(size.seconds(cores), max_seconds)
    suggested = size.suggested_instance()
    if local or instance_type != suggested:
        took, dollars = size.seconds(CORES[suggested]), size.dollars(suggested)
        price = "" if dollars is None else f" and ${dollars:.2f}"
        lines.append(f"on AWS about {duration(took)}{price} with SCONES_TRAINING_INSTANCE_TYPE={suggested}")
    elif (dollars := size.dollars(instance_type)) is not None:
        lines[0] += f", ${dollars:.2f}"
    if cores:
        lines[0] += ": a guess for such a machine, which the log corrects after the first epoch"
    return lines


def corrected(line: str, max_seconds: int) -> list[str]:
    """Lines for people from the line of a job's log that says how long it takes; none from any other line."""
    found = ESTIMATE.search(line)
    if not found:
        return []
    seconds = int(found[1])
    said = f"at the pace of its first epoch the training takes about {duration(seconds)}, until {found[2]} UTC"
    return [said, *_too_long(seconds, max_seconds)]


def _too_long(seconds: float, max_seconds: int) -> list[str]:
    if seconds <= max_seconds:
        return []
    return [
        f"SageMaker stops it after {duration(max_seconds)}: raise SCONES_TRAINING_MAX_SECONDS, or choose fewer "
        "epochs (SCONES_EPOCHS) or smaller images (SCONES_IMAGE_SIZE)"
    ]


def duration(seconds: float) -> str:
    """Seconds in the unit that people would say."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
