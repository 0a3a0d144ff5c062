"""`scones classify`: photographs through the workflow, and what it says of each."""

from pathlib import Path
from typing import Any

from cli.output import FAILED, TOLD, progress, show_json, show_line, show_table
from tasks.aws.stacks import installation
from tasks.evaluation.outcome import message_of
from tasks.evaluation.results import Result, by_class
from tasks.serving.adhoc import Photo, PhotoError, classify, read_photo
from tasks.serving.endpoint import serving


def run(paths: list[Path], as_json: bool) -> int:
    """0 if all were accepted, 1 if one was not, 2 if one failed or could not be read."""
    photos: list[Photo] = []
    unread: dict[Path, str] = {}
    for path in paths:
        try:
            photos.append(read_photo(path))
        except PhotoError as error:
            unread[path] = str(error)
            progress(f"error: {error}")
    results: list[Result] = []
    classes: tuple[str, ...] = ()
    if photos:
        installed = installation()
        classes = installed.classes
        version = serving(installed).model_version
        results = classify(
            installed, version, photos, lambda closed, running: progress(f"{closed} of {len(photos)} are classified")
        )
    if as_json:
        told = [_document(photo, row, classes) for photo, row in zip(photos, results, strict=True)]
        show_json(told + _unread(unread))
    elif results:
        rows = [_row(photo, row) for photo, row in zip(photos, results, strict=True)]
        show_table(("file", "class", "confidence", "threshold", "decision", "inference id"), rows)
        for photo, row in zip(photos, results, strict=True):
            if row.status == "failed":
                show_line(f"{photo.path} failed: {row.error}: {message_of(row.cause or 'no cause')}")
            if row.sent_as:
                progress(f"{photo.path} was classified as a {row.sent_as}")
        progress("`scones why INFERENCE-ID` tells more of one")
    if unread or any(row.status == "failed" for row in results):
        return FAILED
    return int(any(row.status != "accepted" for row in results))


def _row(photo: Photo, row: Result) -> tuple[str, ...]:
    confidence = "-" if row.confidence is None else f"{row.confidence:.3f}"
    return (
        f"{photo.path}",
        row.predicted_class or "-",
        confidence,
        f"{row.threshold:g}",
        TOLD[row.status],
        row.inference_id,
    )


def _document(photo: Photo, row: Result, classes: tuple[str, ...]) -> dict[str, Any]:
    return {
        "file": f"{photo.path}",
        "status": row.status,
        "predicted_class": row.predicted_class,
        "confidence": row.confidence,
        "threshold": row.threshold,
        "probabilities": by_class(row.probabilities, classes),
        "outlier_score": row.outlier_score,
        "sent_as": row.sent_as,
        "model_version": row.model_version,
        "inference_id": row.inference_id,
        "execution_arn": row.execution_arn,
        "key": row.key,
        "error": row.error,
        "cause": row.cause,
    }


def _unread(unread: dict[Path, str]) -> list[dict[str, Any]]:
    return [{"file": f"{path}", "status": "unread", "error": error} for path, error in unread.items()]
