"""Reviewed images on their way into the training set: which may enter, and why the others do not."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
from msgspec.structs import replace
from prefect import task
from prefect.logging import get_run_logger

from settings import MANIFESTS_PREFIX, TEST_PREFIX, TRAIN_PREFIX, Settings, settings
from tasks.aws import storage
from tasks.aws.errors import AwsError
from tasks.data.dataset import DatasetError, png
from tasks.data.images import REVIEWED_FOLDER, ReviewedImage, dataset_note, find_note, replace_reviewed, training_lines
from tasks.data.pictures import as_served
from tasks.installation import DatasetNote
from tasks.records import Record
from tasks.review.certificate import counts
from tasks.review.labels import Label, Outcome, Review, certifies, latest
from tasks.review.queue import Reason
from tasks.run import Log, utc_now

# A line per queued image that anybody said something about.
USES_KEY = f"{MANIFESTS_PREFIX}reviewed.jsonl"
# A line per training image.
PROVENANCE_KEY = f"{MANIFESTS_PREFIX}provenance.jsonl"
# Correlation of two pictures, of 16 x 16 points each, from which on they are taken for the same. Copies that were
# compressed, darkened, mirrored or moved by a pixel reach it; see docs/review.md for how many others do.
NEAR_DUPLICATE = 0.9
POINTS = 16


class Use(Record, frozen=True, kw_only=True):
    """A line of manifests/reviewed.jsonl: what becomes of the answers about one queued image.

    use: `training` (its name in train/ is `name`), `certification`, or `left_out` for the reason `why`. label: what
    people said, if they agreed on a class. reviewers, answered: of the answers that count, and when the last was given.
    """

    inference_id: str
    key: str
    sha256: str
    reason: Reason
    model_version: str
    use: Literal["training", "certification", "left_out"]
    why: str | None = None
    name: str | None = None
    label: str | None = None
    reviewers: tuple[str, ...] = ()
    answered: str | None = None


@dataclass(frozen=True)
class TrainingSet:
    """uses: of all images that anybody said something about. images: those that enter."""

    uses: list[Use]
    images: list[ReviewedImage]


def uses(
    review: Review,
    outcomes: Mapping[str, Outcome],
    chosen: Settings,
    classes: tuple[str, ...],
    trained_on: Collection[str] = (),
) -> list[Use]:
    """What becomes of each image of the queue that has an answer, in the order of the last answers, before anybody has
    looked at the images themselves.

    An image that was queued more than once is used once, and not at all if people said two things of it. If one of its
    copies is for certification all are, unless it is trained on already. trained_on: SHA-256 of such.
    """
    found, copies = [], defaultdict(list)
    for name, waiting in review.queue.items():
        copies[waiting.sha256].append(outcomes[name])
        if not review.labels.get(name):
            continue
        each = outcomes[name]
        why = _unusable(each, latest(review.labels[name]).values(), classes)
        found.append(
            Use(
                inference_id=name,
                key=waiting.key,
                sha256=waiting.sha256,
                reason=waiting.reason,
                model_version=waiting.model_version,
                use="left_out" if why else "training",
                why=why,
                label=each.answer.label if each.answer else None,
                reviewers=tuple(label.reviewer for label in each.answers),
                answered=max((label.time for label in each.answers), default=None),
            )
        )
    certifying = {
        waiting.sha256
        for waiting in review.queue.values()
        if waiting.reason == "audit"
        and waiting.sha256 not in trained_on
        and certifies(waiting.sha256, chosen.certification_share)
    }
    said = {sha256: {each.answer.label for each in of if each.answer} for sha256, of in copies.items()}
    ordered = sorted(found, key=lambda use: (use.answered or "", use.inference_id))
    first: dict[str, str] = {}
    result = []
    for use in ordered:
        if use.sha256 in certifying:
            waiting, each = review.queue[use.inference_id], outcomes[use.inference_id]
            use = (
                replace(use, use="certification", why=None)
                if use.reason == "audit" and counts(waiting, each)
                else replace(use, use="left_out", why=use.why or "a copy of it is kept for certification")
            )
        elif use.use == "training" and len(said[use.sha256]) > 1:
            use = replace(use, use="left_out", why="people said something else of a copy of it")
        elif use.use == "training" and first.setdefault(use.sha256, use.inference_id) != use.inference_id:
            use = replace(use, use="left_out", why=f"a copy of {first[use.sha256]}")
        result.append(use)
    return result


def _unusable(outcome: Outcome, of_people: Collection[Label], classes: tuple[str, ...]) -> str | None:
    """Why an image is not for training; None if it is."""
    if outcome.answer is not None:
        if outcome.answer.answer == "none_of_these":
            return "it is of no class"
        if outcome.answer.answer == "unreadable":
            return "nobody can tell what is in it"
        return None if outcome.answer.label in classes else f"{outcome.answer.label} is no class any more"
    if outcome.disputed:
        return "people disagree about it"
    if outcome.state == "expired":
        return "it is gone, or nobody answered in time"
    if outcome.answers:
        return "it waits for another answer"
    return "it was skipped" if any(label.answer == "skipped" for label in of_people) else "its answer was taken back"


def collect(bucket: str, chosen: Settings, classes: tuple[str, ...], progress: Log) -> TrainingSet:
    """What people have said until now, as images for training. Reads the queue, the answers, and these images."""
    review = Review()
    review.refresh(bucket)
    for key, problem in review.strange.items():
        progress(f"left out: s3://{bucket}/{key}: {problem}")
    listed = uses(review, review.outcomes(chosen, utc_now()), chosen, classes, trained_on(published(bucket)))
    test = test_images(bucket, chosen.image_size)
    # The ETag is the MD5, but not of what KMS encrypts; a training image is then found twice in the manifest.
    there = storage.list_etags(bucket, TRAIN_PREFIX)
    originals = {etag for key, etag in there.items() if not key.startswith(TRAIN_PREFIX + REVIEWED_FOLDER)}

    def look(use: Use) -> tuple[Use, ReviewedImage | None]:
        if use.use != "training":
            return use, None
        try:
            content = storage.get_image(bucket, use.key)
        except AwsError as error:  # such as of a key that this role may not read
            return replace(use, use="left_out", why=f"it can't be read: {error}"[:300]), None
        if content is None or hashlib.sha256(content).hexdigest() != use.sha256:
            return replace(use, use="left_out", why="it is gone, or another one by now"), None
        pixels = as_served(content, chosen.image_size)
        if pixels is None:
            return replace(use, use="left_out", why="it is no PNG, JPEG or WebP that can be decoded"), None
        picture = png(pixels)
        if hashlib.md5(picture, usedforsecurity=False).hexdigest() in originals:
            return replace(use, use="left_out", why="it is one of the training images"), None
        if is_near(pixels, test):
            return replace(use, use="left_out", why="it is a test image, or nearly one"), None
        image = ReviewedImage(use.inference_id, classes.index(str(use.label)), picture)
        return replace(use, name=image.name), image

    with ThreadPoolExecutor(storage.PARALLEL_REQUESTS) as threads:
        looked = list(threads.map(look, listed))
    images = sorted((image for _, image in looked if image), key=lambda image: image.name)
    return TrainingSet([use for use, _ in looked], images)


@task(task_run_name="include reviewed images")
def include(bucket: str, wanted: bool | None = None) -> DatasetNote:
    """Brings what people said into the training set, or takes it out again; returns the note about the images.

    wanted: None for as it was before. What was trained on stays in manifests/reviewed.jsonl, whatever is trained next.
    Raises DatasetError if nothing was prepared.
    """
    note, progress = dataset_note(bucket), get_run_logger().info
    if not (note.include_reviewed if wanted is None else wanted):
        if note.reviewed or (wanted is False and note.include_reviewed is not False):
            note = replace_reviewed(bucket, [], include=False, progress=progress)
            storage.put_json_lines(bucket, PROVENANCE_KEY, [])
        return note
    training_set = collect(bucket, settings(), note.classes, progress)
    note = replace_reviewed(bucket, training_set.images, include=True, progress=progress)
    storage.put_json_lines(bucket, USES_KEY, [use.to_json() for use in training_set.uses])
    write_provenance(bucket, training_set.uses)
    for (use, why), count in sorted(Counter((use.use, use.why or "") for use in training_set.uses).items()):
        progress(f"reviewed images, {use.replace('_', ' ')}{f' ({why})' if why else ''}: {count}")
    return note


class Provenance(Record, frozen=True, kw_only=True):
    """A line of manifests/provenance.jsonl: where a training image comes from.

    source: `original`, of the data set; `reviewed`, chosen for a person because the model did not accept it; `audit`,
    drawn at random from what it accepted. reviewers, answered: who said what it is, and when the last of them did.
    """

    name: str
    label: str
    source: Literal["original", "reviewed", "audit"]
    inference_id: str | None = None
    key: str | None = None
    reviewers: tuple[str, ...] = ()
    answered: str | None = None


def write_provenance(bucket: str, listed: list[Use]) -> None:
    """Writes manifests/provenance.jsonl, a line for each line of the training manifest."""
    classes = dataset_note(bucket).classes
    by_name = {use.name: use for use in listed if use.name}

    def line(label: int, name: str) -> Provenance:
        use = by_name.get(name)
        if use is None:
            return Provenance(name=name, label=classes[label], source="original")
        return Provenance(
            name=name,
            label=classes[label],
            source="audit" if use.reason == "audit" else "reviewed",
            inference_id=use.inference_id,
            key=use.key,
            reviewers=use.reviewers,
            answered=use.answered,
        )

    lines = [line(label, name).to_json() for label, name in training_lines(bucket)]
    storage.put_json_lines(bucket, PROVENANCE_KEY, lines)


def published(bucket: str) -> list[Use]:
    """What manifests/reviewed.jsonl says; nothing if there is none."""
    return storage.get_records(bucket, USES_KEY, Use)


def trained_on(standing: list[Use]) -> set[str]:
    """SHA-256 of the reviewed images that were trained on."""
    return {use.sha256 for use in standing if use.use == "training"}


def labels_needed(bucket: str, chosen: Settings) -> int:
    """With how many new labels a training starts by itself; 0 for never, also if reviewed images are to stay out."""
    note = find_note(bucket)
    return 0 if note is not None and note.include_reviewed is False else chosen.review_retrain_labels


def count_new_labels(bucket: str, chosen: Settings, classes: tuple[str, ...]) -> int:
    """`new_labels` of what is in the bucket now."""
    review, standing = Review(), published(bucket)
    review.refresh(bucket)
    outcomes = review.outcomes(chosen, utc_now())
    return new_labels(standing, uses(review, outcomes, chosen, classes, trained_on(standing)))


def new_labels(standing: list[Use], listed: list[Use]) -> int:
    """How many of the images that may be trained on were not looked at for the training set that stands."""
    there = {use.inference_id: use for use in standing}

    def is_new(use: Use) -> bool:
        before = there.get(use.inference_id)
        if use.use != "training":
            return False
        # One that was left out for what it shows is no news a second time.
        return before is None or before.label != use.label

    return sum(is_new(use) for use in listed)


def test_images(bucket: str, size: int) -> np.ndarray:
    """The test images, as vectors (m, n) of `vectors`. Raises DatasetError if one can't be read."""
    keys = sorted(storage.list_etags(bucket, TEST_PREFIX))
    with ThreadPoolExecutor(storage.PARALLEL_REQUESTS) as threads:
        pixels = list(threads.map(lambda key: as_served(storage.get_image(bucket, key) or b"", size), keys))
    unreadable = [key for key, found in zip(keys, pixels, strict=True) if found is None]
    if unreadable:
        raise DatasetError(f"s3://{bucket}/{unreadable[0]} can't be read", "run prepare-data, which uploads it again")
    return vectors(np.stack([found for found in pixels if found is not None])) if keys else np.empty((0, 1))


def is_near(pixels: np.ndarray, others: np.ndarray) -> bool:
    """Whether a picture (h, w, 3) is one of others (vectors), also mirrored or moved by a pixel, or nearly one."""
    if not len(others):
        return False
    turned = [pixels, pixels[:, ::-1]]
    moved = [np.roll(each, (down, right), (0, 1)) for each in turned for down in (-1, 0, 1) for right in (-1, 0, 1)]
    return bool((vectors(np.stack(moved)) @ others.T).max() >= NEAR_DUPLICATE)


def vectors(pixels: np.ndarray) -> np.ndarray:
    """Pictures (n, h, w, 3) as vectors (n, d) of length 1, whose products correlate POINTS x POINTS points."""
    n, height, width, channels = pixels.shape
    rows, columns = (np.linspace(0, length, POINTS + 1).astype(int)[:-1] for length in (height, width))
    sums = np.add.reduceat(np.add.reduceat(pixels.astype(np.float64), rows, axis=1), columns, axis=2)
    flat = sums.reshape(n, POINTS * POINTS * channels)
    centred = flat - flat.mean(axis=1, keepdims=True)
    # A picture of one colour is like no other.
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    vector: np.ndarray = np.divide(centred, lengths, out=np.zeros_like(centred), where=lengths > 0)
    return vector
