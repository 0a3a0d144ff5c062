"""The lines of an evaluation's manifest and results: what is planned of an image, and what came of it."""

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from tasks.aws import storage
from tasks.evaluation.executions import DECISIONS, NOT_A_CLASS, Execution
from tasks.evaluation.summary import EvaluationSummary, Status
from tasks.records import Record
from tasks.run import iso


class Planned(Record, frozen=True, kw_only=True):
    """A line of manifest.jsonl: one image that is to be classified, by which model and threshold.

    planned: when, ISO 8601 in UTC.
    """

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


class Result(Record, frozen=True, kw_only=True):
    """A line of results.jsonl: what came of one planned image. Times are ISO 8601 in UTC.

    label: None if nobody knows it, in a bulk run. outlier_score: over 1 of an image of no class; None if the model
    tells none. probabilities: one per class; None in files of earlier releases. sent_as: what the workflow made of an
    image that was too large for it, or a WebP; None of one that it passed on as it is. error, cause, failed_state: of a
    failed one. previous_attempts: results of earlier executions, which do not count.
    """

    inference_id: str
    execution_arn: str | None
    key: str
    label: str | None
    attempt: int
    status: Status
    predicted_class: str | None
    confidence: float | None
    threshold: float
    model_version: str
    error: str | None
    cause: str | None
    failed_state: str | None
    started: str | None
    stopped: str | None
    outlier_score: float | None = None
    probabilities: tuple[float, ...] | None = None
    sent_as: str | None = None
    previous_attempts: tuple["Result", ...] = ()


def by_class(probabilities: Sequence[float] | None, classes: Sequence[str]) -> dict[str, float] | None:
    """Probabilities by the name of their class; None if there are none, or the classes have become others since."""
    if probabilities is None or len(probabilities) != len(classes):
        return None
    return dict(zip(classes, probabilities, strict=True))


def inference_id(run: str, key: str, attempt: int) -> str:
    """RUN-<20 hex of SHA-256 of the key>-a<attempt>: 36 characters while there are fewer than 10 attempts."""
    return f"{run}-{hashlib.sha256(key.encode()).hexdigest()[:20]}-a{attempt}"


def result(image: Planned, execution: Execution) -> Result:
    """Gives an execution's end its name: accepted, below_threshold, not_a_class or failed."""
    status: Status = "failed"
    decision: Decision | None = None
    error: str | None = execution.error or execution.status
    cause = execution.cause
    if execution.status == "SUCCEEDED" or execution.error in DECISIONS:
        try:
            decision = _decision(execution)
            rejected: Status = "not_a_class" if execution.error == NOT_A_CLASS else "below_threshold"
            status = "accepted" if execution.status == "SUCCEEDED" else rejected
            error = cause = None
        except ValueError as problem:
            error, cause = "UnknownDecision", f"{problem!r} in {execution.output or execution.cause!r}"[:1000]
    return Result(
        inference_id=image.inference_id,
        execution_arn=execution.arn,
        key=image.key,
        label=image.label,
        attempt=image.attempt,
        status=status,
        predicted_class=decision.predicted_class if decision else None,
        confidence=decision.confidence if decision else None,
        threshold=decision.threshold if decision else image.threshold,
        model_version=image.model_version,
        error=error,
        cause=cause,
        failed_state=execution.failed_state,
        started=iso(execution.started) if execution.started else None,
        stopped=iso(execution.stopped) if execution.stopped else None,
        outlier_score=decision.outlier_score if decision else None,
        probabilities=decision.inferences if decision else None,
        sent_as=decision.sent_as if decision else None,
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


class Decision(Struct, frozen=True):
    """What the workflow decided: its output, or the cause of LowConfidence and NotAClass."""

    predicted_class: str
    confidence: float
    threshold: float
    outlier_score: float | None = None
    inferences: tuple[float, ...] | None = None
    sent_as: str | None = None


def _decision(execution: Execution) -> Decision:
    """Raises ValueError, or msgspec's ValidationError, which is one, if it is something else."""
    if execution.status == "SUCCEEDED":
        return msgspec.convert(execution.output, Decision)
    return msgspec.json.decode(execution.cause or "", type=Decision)


def read_summary(bucket: str, key: str) -> EvaluationSummary | None:
    """A summary; None if there is none of that key. Raises RecordError for another file."""
    return storage.get_record(bucket, key, EvaluationSummary)


def results_of(bucket: str, summary: EvaluationSummary) -> list[Result]:
    """The results of the evaluation that a summary is of."""
    return list(iterate_results(bucket, summary))


def results_place(summary: EvaluationSummary) -> str:
    """Key of the results that a summary is of, or what the keys of a bulk run's begin with."""
    run = summary.identity
    return run.table_prefix(summary.revision) if summary.bulk else run.results_key(summary.revision)


def iterate_results(bucket: str, summary: EvaluationSummary) -> Iterator[Result]:
    """The same one by one: those of a bulk run may be more than fit into the memory."""
    if not summary.bulk:
        yield from storage.get_records(bucket, results_place(summary), Result)
        return
    from tasks.evaluation import table  # pyarrow takes its time

    with tempfile.TemporaryDirectory() as folder:
        yield from table.read(bucket, results_place(summary), Path(folder))
