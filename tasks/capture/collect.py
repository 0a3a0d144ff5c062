"""Collects the endpoint's data-capture records, and waits for those that must come."""

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from obstore.exceptions import BaseError
from prefect import task
from prefect.logging import get_run_logger

from settings import CAPTURE_PREFIX, settings
from tasks.aws import storage
from tasks.aws.errors import AwsError
from tasks.capture.archive import CaptureArchive, Decoded, StoreReader
from tasks.capture.images import sample
from tasks.capture.window import Captured, Window, read
from tasks.installation import capture_prefix, legacy_capture_prefix
from tasks.waiting import look_until

POLL_SECONDS = 1.0
MAX_POLL_SECONDS = 30.0
PROGRESS_SECONDS = 3.0


@task(task_run_name="collect captures from {window.first:%Y-%m-%d %H:%M}")
def collect(bucket: str, window: Window, classes: tuple[str, ...], wanted: Sequence[str] = ()) -> Captured:
    """Waits until every wanted inference id is captured, or until the deadline setting is over."""
    logger = get_run_logger()
    there = archives(bucket, window, _logged())

    def look() -> Captured:
        with _translate_store_errors(bucket):
            try:
                captured = read(there, window, classes, wanted)
            except FileNotFoundError:  # another report has just made one file of several
                captured = read(there, window, classes, wanted)
        if captured.missing:
            logger.info("waiting for %d of %d capture records", len(captured.missing), len(wanted))
        return captured

    captured = look_until(
        lambda seen: not seen.missing,
        look,
        seconds=settings().capture_max_seconds,
        every=POLL_SECONDS,
        at_most=MAX_POLL_SECONDS,
    )
    if captured.missing:
        logger.warning("%d of %d inferences are not captured yet", len(captured.missing), len(wanted))
    else:
        logger.info("%d inferences are captured, %d of them waited for", len(captured.records), len(wanted))
    return captured


@task(task_run_name="look at the images from {window.first:%Y-%m-%d %H:%M}")
def pictures(bucket: str, window: Window, wanted: Sequence[str], most: int) -> list[bytes]:
    """A sample of the pictures that the endpoint was sent; see images.sample."""
    with _translate_store_errors(bucket):
        return sample(archives(bucket, window, _logged()), window, wanted, most)


def archives(bucket: str, window: Window, progress: Decoded) -> list[tuple[str, CaptureArchive]]:
    """An archive for each place where the window's records may be, with the model version that they are of."""
    made = []
    for version in window.versions or model_versions(bucket, window.endpoint):
        for prefix in (capture_prefix(window.endpoint, version), legacy_capture_prefix(window.endpoint, version)):
            archive = CaptureArchive(
                listing=partial(storage.list_objects, bucket),
                reader=lambda: StoreReader(storage.object_store(bucket)),
                prefix=prefix,
                folder=settings().cache / "capture" / bucket / prefix.removeprefix(CAPTURE_PREFIX),
                progress=progress,
            )
            made.append((version, archive))
    return made


def model_versions(bucket: str, endpoint: str) -> list[str]:
    """Model versions of which there are captures of the endpoint."""
    of_versions = [name for name in storage.list_folders(bucket, CAPTURE_PREFIX) if re.fullmatch(r"v[0-9]+", name)]
    # Until November 2026: data-capture/ENDPOINT/VERSION/.
    return sorted({*of_versions, *storage.list_folders(bucket, f"{CAPTURE_PREFIX}{endpoint}/")})


def _logged() -> Decoded:
    """A line in the log every few seconds."""
    logger = get_run_logger()
    reported = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal reported
        if time.monotonic() - reported > PROGRESS_SECONDS:
            reported = time.monotonic()
            logger.info("%d of %d capture files decoded", done, total)

    return progress


@contextmanager
def _translate_store_errors(bucket: str) -> Iterator[None]:
    try:
        yield
    except (BaseError, OSError) as error:
        raise AwsError(f"read the captures in s3://{bucket}/{CAPTURE_PREFIX}: {str(error).splitlines()[0]}") from error
