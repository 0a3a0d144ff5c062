"""The content of the files that a report leaves: summary.json, reconciliation.jsonl, quarantine.jsonl."""

from typing import Protocol

from tasks.evaluation.summary import INCOMPLETE, PASSED, Counts, Outcome
from tasks.installation import DatasetNote
from tasks.records import Part, Record
from tasks.report.drift import CoverageChange, Drift
from tasks.report.inputs import InputDrift
from tasks.report.metrics import Estimate
from tasks.review.summary import ReviewSummary


class Calibration(Part, frozen=True, kw_only=True):
    """error: the expected calibration error. by_chance: what it stays under with probability `level` by chance.

    p: how likely a perfectly calibrated model is to show this error or a larger one.
    """

    error: float | None
    by_chance: float | None
    p: float | None
    level: float


class Judged(Part, frozen=True, kw_only=True):
    """A test of this report: its p-value, and the one that is adjusted for all of the report's tests (Holm 1979).

    alert: the adjusted one is 1 - level or less. A report in which nothing is wrong has any of these alerts with
    that probability at most.
    """

    name: str
    p: float
    adjusted_p: float
    alert: bool


class Shown(Part, frozen=True, kw_only=True):
    """What the accepted images with a label show of the accuracy of what is accepted.

    errors: of them. lower_bound: at `level`, one-sided and exact; None without a label. labels_needed: to show the
    target with so many errors; missing_labels: how many more than there are.
    """

    target: float
    level: float
    errors: int
    lower_bound: float | None
    labels_needed: int
    missing_labels: int


class Change(Part, frozen=True, kw_only=True):
    """What became another between two evaluations. time: the start of the first one with it, ISO 8601 in UTC."""

    time: str | None
    what: str
    before: str | float | None
    after: str | float | None
    why: str


class Unmatched(Part, frozen=True, kw_only=True):
    """A line of reconciliation.jsonl: something that executions and captures do not tell alike."""

    kind: str
    inference_id: str | None
    detail: str


class ReportSummary(Record, frozen=True, kw_only=True):
    """reports/DATE/RUN/summary.json.

    window: whether it is about a window of time, not one evaluation. evaluation: numbers of planned images. captured,
    labelled, above_threshold, below_threshold, not_a_class, accepted_labelled: numbers of images; accuracies are of
    those of them whose label is known. coverage: accepted images over submitted ones; in a window over captured ones.
    inferences: before each image counted once. reconciliation: lines by kind. provisional: capture records are missing,
    and running the report again completes it. feature_drift: of the outlier scores. inputs: how
    far the images are from those of the training. tests: of calibration and drift, judged together. alerts: what is out
    of bounds. review: the queue of images for people, when the report was written.
    """

    run: str
    date: str
    outcome: Outcome
    verdict: str
    window: bool
    started: str | None
    stopped: str | None
    provisional: bool
    dataset: DatasetNote
    model_version: str
    threshold: float
    classes: tuple[str, ...]
    evaluation: Counts
    expected_captures: int
    missing_captures: tuple[str, ...]
    reconciliation: dict[str, int]
    quarantined_lines: int
    captured: int
    labelled: int
    above_threshold: int
    below_threshold: int
    accepted_labelled: int
    coverage: float | None
    accuracy: float | None
    accepted_accuracy: float | None
    accuracy_interval_95: tuple[float, float]
    accepted_accuracy_shown: Shown
    calibration: Calibration
    estimated_accuracy: Estimate | None
    drift: Drift | None
    coverage_change: CoverageChange | None
    inputs: InputDrift | None
    tests: tuple[Judged, ...]
    alerts: tuple[str, ...]
    bucket: str
    inferences: int
    changes: tuple[Change, ...]
    not_a_class: int = 0
    feature_drift: Drift | None = None
    review: ReviewSummary | None = None


class Alert(Record, frozen=True, kw_only=True):
    """Payload of the event scones.report.alert: which report somebody should look at, and why."""

    date: str
    run: str
    alerts: tuple[str, ...]
    model_version: str


class IndexedReport(Record, frozen=True, kw_only=True):
    """What the index of all reports reads of a report's summary, which earlier releases may have written."""

    run: str
    date: str
    alerts: tuple[str, ...]
    model_version: str
    accuracy: float | None
    coverage: float | None
    provisional: bool
    dataset: DatasetNote
    verdict: str | None = None
    outcome: str | None = None
    stopped: str | None = None
    bucket: str | None = None
    window: bool = False


class OfModel(Protocol):
    """What has figures of a model on test images: an evaluation, or a report."""

    @property
    def model_version(self) -> str: ...
    @property
    def dataset(self) -> DatasetNote: ...


def are_comparable(one: OfModel, other: OfModel) -> bool:
    """Whether both are of the same model and the same test images, so that chance alone tells their figures apart."""
    return one.model_version == other.model_version and one.dataset.has_same_test_images(other.dataset)


def to_look_at(report: ReportSummary | IndexedReport) -> tuple[str, ...]:
    """Why somebody should look at a report: that something did not pass, and its alerts."""
    if report.outcome in (PASSED, None):
        return report.alerts
    if report.window:
        why = "An evaluation in this time did not pass."
    elif report.outcome == INCOMPLETE:
        why = "The evaluation is incomplete: not every image was submitted."
    else:
        why = "The evaluation missed a gate."
    return why, *report.alerts


def headline(report: ReportSummary | IndexedReport) -> str:
    """The report in a line: an evaluation's verdict, or a window's time, and how much there is to look at."""
    number = len(to_look_at(report))
    things = f"{number} thing{'s' if number > 1 else ''} to look at" if number else "Nothing to look at"
    verdict = report.verdict or report.run
    return f"{things}: {verdict}" if report.window else f"{verdict}. {things}"
