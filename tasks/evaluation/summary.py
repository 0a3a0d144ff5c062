"""The content of an evaluation's summary.json."""

from typing import Literal, get_args

from settings import BULK_PREFIX
from tasks.installation import DatasetNote
from tasks.records import Part, Record
from tasks.run import Run

Outcome = Literal["passed", "missed", "incomplete"]
PASSED: Outcome = "passed"
MISSED: Outcome = "missed"
INCOMPLETE: Outcome = "incomplete"
Status = Literal["accepted", "below_threshold", "not_a_class", "failed", "not_submitted"]
STATUSES: tuple[Status, ...] = get_args(Status)
# Those of an image that the endpoint answered, so that it has a class, a confidence and a capture record.
DECIDED: tuple[Status, ...] = ("accepted", "below_threshold", "not_a_class")
# Counts by predicted class, by label.
Confusion = dict[str, dict[str, int]]


class GateFigure(Part, frozen=True, kw_only=True):
    """A figure that had to pass a limit. value: None if there was nothing to divide by, which is a miss."""

    name: str
    value: float | None
    limit: float


class ConfusionTables(Part, frozen=True, kw_only=True):
    """Of all classified images, and of the accepted ones."""

    classified: Confusion
    accepted: Confusion


class Latency(Part, frozen=True, kw_only=True):
    """Percentiles of the seconds from an execution's start to its end; None if no image was classified."""

    p50: float | None
    p90: float | None
    p99: float | None
    max: float | None


class Cost(Part, frozen=True, kw_only=True):
    """US dollars by list price; None if the endpoint's instance type has no price here. requests: S3's."""

    state_transitions: float
    functions: float
    endpoint: float | None
    total: float | None
    requests: float = 0.0


class Counts(Part, frozen=True, kw_only=True):
    """Numbers of planned images, of those that were submitted, and of those with each status."""

    planned: int
    submitted: int
    not_submitted: int
    accepted: int
    below_threshold: int
    failed: int
    not_a_class: int = 0


class EvaluationSummary(Record, frozen=True, kw_only=True):
    """evaluations/DATE/RUN/summary.json, or summary-N.json for the N-th judgement of a run that went on.

    Shares are None if there is nothing to divide by. Times are ISO 8601 in UTC. threshold, model_version: of the plan.
    confusion: counts by label and predicted class. retried: images with more than one execution. errors: failed
    images by error. latency_seconds: of classified images, from the start of the execution that counts to its end.
    revision: which judgement of the run this is, and supersedes the key of the one before. bulk: whether it ran in
    batches, and its results are Parquet files below bulk/DATE/RUN/.
    """

    run: str
    date: str
    outcome: Outcome
    gates_missed: tuple[str, ...]
    gates: tuple[GateFigure, ...] = ()
    dataset: DatasetNote
    endpoint: str
    model_version: str
    threshold: float | None
    classes: tuple[str, ...]
    planned: int
    submitted: int
    accepted: int
    below_threshold: int
    failed: int
    not_submitted: int
    failed_share: float | None
    coverage: float | None
    accuracy: float | None
    accepted_accuracy: float | None
    confusion: ConfusionTables
    executions: int
    retried: int
    errors: dict[str, int]
    latency_seconds: Latency
    cost_usd: Cost
    started: str | None
    stopped: str | None
    revision: int = 1
    supersedes: str | None = None
    judged: str | None = None
    bulk: bool = False
    not_a_class: int = 0

    @property
    def identity(self) -> Run:
        return Run(self.run, self.date, BULK_PREFIX) if self.bulk else Run(self.run, self.date)

    @property
    def counts(self) -> Counts:
        return Counts(**{name: getattr(self, name) for name in Counts.__struct_fields__})
