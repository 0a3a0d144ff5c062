"""The lines of an evaluation's manifest and results: what is planned of an image, and what came of it."""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

from settings import EVALUATIONS_PREFIX, SCHEMA_VERSION
from tasks.aws import storage
from tasks.evaluation.executions import LOW_CONFIDENCE, Execution
from tasks.run import Run, iso

SUMMARY_KEY = re.compile(r"(?P<prefix>evaluations/[^/]+/[^/]+/)summary(-(?P<revision>[1-9][0-9]*))?\.json")


def newest_summaries(keys: Iterable[str]) -> list[str]:
    """Of keys below evaluations/, that of the newest summary of each run, in the order of their runs."""
    newest: dict[str, tuple[int, str]] = {}
    for key in keys:
        if found := SUMMARY_KEY.fullmatch(key):
            revision = int(found["revision"] or 1)
            newest[found["prefix"]] = max(newest.get(found["prefix"], (0, "")), (revision, key))
    return [key for _, (_, key) in sorted(newest.items())]


@dataclass(frozen=True)
class Line:
    """A line of JSON, with the schema's version."""

    def to_json(self) -> dict[str, Any]:
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, line: dict[str, Any]) -> Self:
        return cls(**{name: value for name, value in line.items() if name != "schema_version"})


@dataclass(frozen=True)
class Planned(Line):
    """One image that is to be classified, by which model and threshold. planned: when, ISO 8601 in UTC."""

    inference_id: str
    key: str
    label: str
    attempt: int
    model_version: str
    threshold: float
    planned: str

    def as_attempt(self, attempt: int) -> "Planned":
        """The same image for another execution."""
        run = self.inference_id.split("-")[0]
        return replace(self, inference_id=inference_id(run, self.key, attempt), attempt=attempt)


@dataclass(frozen=True)
class Result(Line):
    """What came of one planned image. Times are ISO 8601 in UTC.

    status: accepted, below_threshold, failed or not_submitted. error, cause, failed_state: of a failed one.
    previous_attempts: results of earlier executions, which do not count.
    """

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
    failed_state: str | None
    started: str | None
    stopped: str | None
    previous_attempts: list[dict[str, Any]] = field(default_factory=list)


def inference_id(run: str, key: str, attempt: int) -> str:
    """RUN-<20 hex of SHA-256 of the key>-a<attempt>: 36 characters while there are fewer than 10 attempts."""
    return f"{run}-{hashlib.sha256(key.encode()).hexdigest()[:20]}-a{attempt}"


def result(image: Planned, execution: Execution) -> Result:
    """Gives an execution's end its name: accepted, below_threshold or failed."""
    status = "failed"
    decision: dict[str, Any] = {}
    error: str | None = execution.error or execution.status
    cause = execution.cause
    if execution.status == "SUCCEEDED" or execution.error == LOW_CONFIDENCE:
        try:
            decision = _decision(execution)
            status = "accepted" if execution.status == "SUCCEEDED" else "below_threshold"
            error = cause = None
        except (ValueError, TypeError, KeyError) as problem:
            error, cause = "UnknownDecision", f"{problem!r} in {execution.output or execution.cause!r}"[:1000]
    return Result(
        inference_id=image.inference_id,
        execution_arn=execution.arn,
        key=image.key,
        label=image.label,
        attempt=image.attempt,
        status=status,
        predicted_class=decision.get("predicted_class"),
        confidence=decision.get("confidence"),
        threshold=decision.get("threshold", image.threshold),
        model_version=image.model_version,
        error=error,
        cause=cause,
        failed_state=execution.failed_state,
        started=iso(execution.started) if execution.started else None,
        stopped=iso(execution.stopped) if execution.stopped else None,
    )


def not_submitted(image: Planned) -> Result:
    """An image whose turn did not come."""
    return Result(
        inference_id=image.inference_id,
        execution_arn=None,
        key=image.key,
        label=image.label,
        attempt=image.attempt,
        status="not_submitted",
        predicted_class=None,
        confidence=None,
        threshold=image.threshold,
        model_version=image.model_version,
        error=None,
        cause=None,
        failed_state=None,
        started=None,
        stopped=None,
    )


def _decision(execution: Execution) -> dict[str, Any]:
    """predicted_class, confidence and threshold, from the output or from the cause of LowConfidence."""
    source = execution.output if execution.status == "SUCCEEDED" else json.loads(execution.cause or "")
    if not isinstance(source, dict):
        raise TypeError("it is no object")
    return {
        "predicted_class": str(source["predicted_class"]),
        "confidence": float(source["confidence"]),
        "threshold": float(source["threshold"]),
    }


def summary_keys(bucket: str, date: str | None = None) -> list[str]:
    """Keys of the newest summaries of all evaluations, or of one day's."""
    return newest_summaries(storage.list_etags(bucket, EVALUATIONS_PREFIX + (f"{date}/" if date else "")))


def results_of(bucket: str, summary: dict[str, Any]) -> list[dict[str, Any]]:
    """The results of the evaluation that a summary is of."""
    run = Run(summary["run"], summary["date"])
    return storage.get_json_lines(bucket, run.results_key(summary.get("revision", 1))) or []
