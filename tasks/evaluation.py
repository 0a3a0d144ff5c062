"""One evaluation: what is planned, what came of each image, and the figures of the whole."""

import hashlib
import json
from collections import Counter
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.logging import get_run_logger

from settings import EVALUATIONS_PREFIX, MANIFESTS_PREFIX, SCHEMA_VERSION, TEST_PREFIX, settings
from tasks import storage
from tasks.endpoint import ServingEndpoint
from tasks.executions import Execution, run_all
from tasks.infrastructure import Installation


class EvaluationError(Exception):
    """The evaluation can't be run; the message says what to do."""


@dataclass(frozen=True)
class Run:
    """The identity of an evaluation: a flow run's, so that a retry of it resumes."""

    id: str
    date: str

    @property
    def prefix(self) -> str:
        return f"{EVALUATIONS_PREFIX}{self.date}/{self.id}/"


@dataclass(frozen=True)
class Planned:
    """One image that is to be classified."""

    inference_id: str
    key: str
    label: str
    attempt: int


@dataclass(frozen=True)
class Result:
    """What came of one planned image. Times are ISO 8601 in UTC."""

    inference_id: str
    execution_arn: str | None
    key: str
    label: str
    attempt: int
    status: str
    predicted_class: str | None
    confidence: float | None
    threshold: float
    model_version: str
    error: str | None
    cause: str | None
    started: str | None
    stopped: str | None


@task(task_run_name="plan {run.id}")
def plan(installation: Installation, run: Run) -> list[Planned]:
    """Reads the test manifest and writes the evaluation's own. Raises EvaluationError for an empty test set."""
    content = storage.get(installation.bucket, f"{MANIFESTS_PREFIX}test.lst")
    if not content:
        raise EvaluationError("there is no test image to evaluate; run the prepare-data deployment first")
    planned = planned_images(content.decode(), installation.classes, run.id)
    storage.put_json_lines(
        installation.bucket,
        f"{run.prefix}manifest.jsonl",
        ({"schema_version": SCHEMA_VERSION, **asdict(image)} for image in planned),
    )
    return planned


@task(task_run_name="execute {run.id}")
def execute(
    installation: Installation, endpoint: ServingEndpoint, run: Run, planned: list[Planned], note: dict[str, Any]
) -> dict[str, Any]:
    """Runs one execution per image, writes results.jsonl and summary.json, and returns the summary.

    What was not submitted, because the flow was cancelled, is in the results as not_submitted.
    """
    logger = get_run_logger()
    by_id = {image.inference_id: image for image in planned}
    payloads = {image.inference_id: {"bucket": installation.bucket, "key": image.key} for image in planned}
    results: dict[str, Result] = {}

    def closed(name: str, execution: Execution) -> None:
        results[name] = result(by_id[name], execution, installation.threshold, endpoint.model_version)

    try:
        run_all(
            installation.state_machine_arn,
            payloads,
            settings().executions_in_flight,
            settings().execution_max_seconds,
            closed,
            logger.info,
        )
    finally:
        complete = [
            results.get(image.inference_id) or not_submitted(image, installation.threshold, endpoint.model_version)
            for image in planned
        ]
        summary = summarize(complete, run, endpoint, installation, note)
        storage.put_json_lines(
            installation.bucket,
            f"{run.prefix}results.jsonl",
            ({"schema_version": SCHEMA_VERSION, **asdict(row)} for row in complete),
        )
        storage.put_json(installation.bucket, f"{run.prefix}summary.json", summary)
    _leave_artifact(run, complete)
    return summary


def planned_images(manifest: str, classes: tuple[str, ...], run: str) -> list[Planned]:
    """The images of a .lst manifest. inference_id: RUN-<20 hex of SHA-256 of the key>-a<attempt>, 36 characters."""
    planned = []
    for line in manifest.splitlines():
        _, label, name = line.split("\t")
        key = TEST_PREFIX + name
        digest = hashlib.sha256(key.encode()).hexdigest()[:20]
        planned.append(Planned(f"{run}-{digest}-a1", key, classes[int(label)], 1))
    return planned


def result(image: Planned, execution: Execution, threshold: float, model_version: str) -> Result:
    """Gives an execution's end its name: accepted, below_threshold or failed."""
    status, decision = "failed", {}
    if execution.status == "SUCCEEDED" and execution.output:
        status, decision = "accepted", execution.output
    elif execution.status == "FAILED" and execution.error == "LowConfidence":
        status, decision = "below_threshold", json.loads(execution.cause or "{}")
    failed = status == "failed"
    return Result(
        inference_id=image.inference_id,
        execution_arn=execution.arn,
        key=image.key,
        label=image.label,
        attempt=image.attempt,
        status=status,
        predicted_class=decision.get("predicted_class"),
        confidence=decision.get("confidence"),
        threshold=decision.get("threshold", threshold),
        model_version=model_version,
        error=(execution.error or execution.status) if failed else None,
        cause=execution.cause if failed else None,
        started=_iso(execution.started),
        stopped=_iso(execution.stopped) if execution.stopped else None,
    )


def not_submitted(image: Planned, threshold: float, model_version: str) -> Result:
    """An image whose turn did not come."""
    return Result(
        image.inference_id,
        None,
        image.key,
        image.label,
        image.attempt,
        "not_submitted",
        None,
        None,
        threshold,
        model_version,
        None,
        None,
        None,
        None,
    )


def summarize(
    results: list[Result], run: Run, endpoint: ServingEndpoint, installation: Installation, note: dict[str, Any]
) -> dict[str, Any]:
    """The evaluation's figures. Shares are None where there is nothing to divide by."""
    counts = Counter(row.status for row in results)
    classified = [row for row in results if row.predicted_class is not None]
    accepted = [row for row in results if row.status == "accepted"]
    submitted = len(results) - counts["not_submitted"]
    return {
        "schema_version": SCHEMA_VERSION,
        "run": run.id,
        "date": run.date,
        "dataset": note,
        "endpoint": endpoint.name,
        "model_version": endpoint.model_version,
        "threshold": installation.threshold,
        "classes": list(installation.classes),
        "planned": len(results),
        "submitted": submitted,
        "not_submitted": counts["not_submitted"],
        "accepted": counts["accepted"],
        "below_threshold": counts["below_threshold"],
        "failed": counts["failed"],
        "coverage": _share(len(accepted), submitted),
        "accuracy": _share(sum(row.predicted_class == row.label for row in classified), len(classified)),
        "accepted_accuracy": _share(sum(row.predicted_class == row.label for row in accepted), len(accepted)),
        "errors": dict(Counter(row.error for row in results if row.error)),
        "started": min((row.started for row in results if row.started), default=None),
        "stopped": max((row.stopped for row in results if row.stopped), default=None),
    }


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _iso(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="milliseconds")


def _leave_artifact(run: Run, results: list[Result]) -> None:
    rows = [
        {
            "image": row.key,
            "label": row.label,
            "status": row.status,
            "predicted": row.predicted_class,
            "confidence": row.confidence,
            "error": row.error,
            "inference id": row.inference_id,
        }
        for row in sorted(results, key=lambda row: (row.status, row.key))
    ]
    create_table_artifact(rows, key="evaluation-results", description=f"Evaluation {run.date} {run.id}")
