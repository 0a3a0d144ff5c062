"""What a report finds out: captures joined with labels, figures, drift and alerts. Nothing is drawn or written here."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise

import numpy as np
import pandas as pd

from tasks.capture.window import Captured, Quarantined
from tasks.evaluation.results import Result, read_summary, results_of, summary_keys
from tasks.evaluation.summary import EvaluationSummary
from tasks.installation import DatasetNote
from tasks.report.drift import CoverageChange, Drift, coverage_change, drift, histogram
from tasks.report.metrics import (
    calibration_error,
    calibration_error_by_chance,
    estimated_accuracy,
    figures,
    wilson_interval,
)
from tasks.report.reconciliation import counts, reconcile
from tasks.report.subject import Subject
from tasks.report.summary import Calibration, Change, ReportSummary, Unmatched
from tasks.serving.threshold import ThresholdChange, threshold_changes

# Evaluations that the trend shows, and that the distribution of confidence is compared with.
NIGHTS = 30
BASELINE_NIGHTS = 7
# An inference id that this project made: RUN, 20 hex digits of the hash of the key, attempt.
INFERENCE_ID = r"[0-9a-f]{12}-[0-9a-f]{20}-a[0-9]+"
# How sure an alert is that it is not chance.
ALERT_LEVEL = 0.99


@dataclass(frozen=True)
class Analysis:
    """All that charts, page and files of a report are made of.

    summary: the content of summary.json. inferences: a row per captured inference. table: those of them that count, a
    row per image. nights: summaries of the last evaluations, the latest last. baseline: confidences (n,) that this
    report's are compared with. unmatched: lines of the reconciliation. quarantined: lines of capture files that are no
    records.
    """

    subject: Subject
    summary: ReportSummary
    inferences: pd.DataFrame
    table: pd.DataFrame
    nights: list[EvaluationSummary]
    baseline: np.ndarray
    unmatched: list[Unmatched]
    quarantined: tuple[Quarantined, ...]

    @property
    def confidence(self) -> np.ndarray:
        """Of the images that count, (n,)."""
        return self.table["confidence"].to_numpy()


def analyse(bucket: str, subject: Subject, captured: Captured, before: Captured | None = None) -> Analysis:
    """Reads the evaluations before this one and computes all figures of the report.

    before: what a window is compared with; an evaluation is compared with those before it.
    """
    inferences = join(captured.records, subject.results, subject.classes, only_known=not subject.is_window)
    table = once_per_image(inferences)
    nights = last_nights(bucket, subject)
    if before is None:
        baseline = baseline_of(bucket, subject, nights)
    else:
        baseline = once_per_image(before.records)["confidence"].to_numpy()
    unmatched = reconcile(subject.results, captured, subject.started, subject.stopped)
    current = table["confidence"].to_numpy()
    summary = summarize(
        subject,
        captured,
        table,
        counts(unmatched),
        bucket=bucket,
        inferences=len(inferences),
        changes=changes_between(nights, threshold_changes(bucket)),
        drifted=drift(histogram(baseline), histogram(current), ALERT_LEVEL),
        changed=coverage_change(baseline, current, subject.threshold, ALERT_LEVEL),
    )
    return Analysis(subject, summary, inferences, table, nights, baseline, unmatched, captured.quarantined)


def last_nights(bucket: str, subject: Subject) -> list[EvaluationSummary]:
    """Summaries of up to NIGHTS evaluations, the latest last, of which this one is that."""
    until = [key for key in sorted(summary_keys(bucket)) if key.split("/")[1] <= subject.run.date][-2 * NIGHTS :]
    read = [summary for key in until if (summary := read_summary(bucket, key)) and summary.stopped]
    earlier = [each for each in read if str(each.stopped) <= (subject.stopped or "")]
    return sorted(earlier, key=lambda each: str(each.stopped))[-NIGHTS:]


def baseline_of(bucket: str, subject: Subject, nights: list[EvaluationSummary]) -> np.ndarray:
    """Confidences of up to BASELINE_NIGHTS earlier evaluations of the same model and images; (n,), empty for none.

    Each image counts once, with its latest confidence: the same images night after night are not more images.
    """
    alike = [
        night
        for night in nights
        if night.run != subject.run.id
        and (night.model_version, night.endpoint) == (subject.model_version, subject.endpoint)
        and _images(night.dataset) == _images(subject.dataset)
    ]
    latest = {
        row.key: row.confidence
        for night in alike[-BASELINE_NIGHTS:]
        for row in results_of(bucket, night)
        if row.confidence is not None
    }
    return np.array(list(latest.values()), dtype=float)


def changes_between(nights: list[EvaluationSummary], thresholds: list[ThresholdChange]) -> tuple[Change, ...]:
    """What became another between one evaluation and the next, the first change first.

    nights: summaries in their order. thresholds: the recorded changes of the threshold, which say why.
    """
    found = []
    for before, after in pairwise(nights):
        if before.model_version != after.model_version:
            found.append(_change(after, "model", before.model_version, after.model_version))
        if before.threshold != after.threshold:
            why = [
                each.reason
                for each in thresholds
                if str(before.stopped) < each.time < str(after.stopped) and each.threshold == after.threshold
            ]
            found.append(_change(after, "threshold", before.threshold, after.threshold, why[-1] if why else ""))
        if _images(before.dataset) != _images(after.dataset):
            sources = before.dataset.source, after.dataset.source
            found.append(_change(after, "images", *sources, "prepare-data uploaded others"))
    return tuple(found)


def _change(
    first: EvaluationSummary, what: str, before: str | float | None, after: str | float | None, why: str = ""
) -> Change:
    return Change(time=first.started, what=what, before=before, after=after, why=why)


def _images(dataset: DatasetNote) -> object:
    """What tells one set of images from another."""
    return dataset.manifests_sha256 or dataset


def once_per_image(table: pd.DataFrame) -> pd.DataFrame:
    """The last row of each image, in the order of the table, which is by time.

    An image is known by its key, else by the part of an inference id of ours that stands for the key. Inferences that
    tell no image count each. Intervals and tests assume independent observations, and the same image twice is not.
    """
    ids = table["inference_id"].astype("str")
    image = ids.where(~ids.str.fullmatch(INFERENCE_ID).fillna(False).astype(bool), ids.str.slice(13, 33))
    if "key" in table:
        hashes = table["key"].dropna().drop_duplicates()
        known = {key: hashlib.sha256(key.encode()).hexdigest()[:20] for key in hashes}
        image = table["key"].map(known).astype("str").fillna(image)
    repeated = image.duplicated(keep="last") & image.notna()
    return table[~repeated].reset_index(drop=True)


def join(
    records: pd.DataFrame, results: Sequence[Result], classes: tuple[str, ...], only_known: bool = True
) -> pd.DataFrame:
    """One row a captured inference: COLUMNS of its record, and key, label, status and correct.

    only_known: leave out inferences of no execution. Otherwise theirs are null, and correct is False.
    """
    columns = ["inference_id", "key", "label", "status"]
    labels = pd.DataFrame({name: [getattr(row, name) for row in results] for name in columns}).astype(str)
    table = records.merge(labels, on="inference_id", how="inner" if only_known else "left")
    table["label"] = pd.Categorical(table["label"], categories=classes)
    table["predicted_class"] = table["predicted_class"].cat.set_categories(classes)
    table["correct"] = (table["predicted_class"] == table["label"]).astype(bool)
    return table


def summarize(
    subject: Subject,
    captured: Captured,
    table: pd.DataFrame,
    unmatched: dict[str, int],
    *,
    bucket: str,
    inferences: int,
    changes: tuple[Change, ...] = (),
    drifted: Drift | None = None,
    changed: CoverageChange | None = None,
) -> ReportSummary:
    """The report's figures; accuracy carries a 95 % Wilson interval.

    table: a row per image, each once, since intervals and tests assume that they are independent. unmatched: lines of
    the reconciliation by kind. inferences: how many there were before each image counted once.
    """
    labelled = table[table["label"].notna()]
    confidence, correct = labelled["confidence"].to_numpy(), labelled["correct"].to_numpy()
    calibration = Calibration(
        error=calibration_error(confidence, correct),
        by_chance=calibration_error_by_chance(confidence, ALERT_LEVEL),
        level=ALERT_LEVEL,
    )
    reasons = [
        *_alerts_of_calibration(calibration),
        *_alerts_of_drift(drifted, changed),
        *_alerts_of_captures(captured, unmatched),
    ]
    return ReportSummary(
        run=subject.run.id,
        date=subject.run.date,
        outcome=subject.outcome,
        verdict=subject.verdict,
        window=subject.is_window,
        started=subject.started,
        stopped=subject.stopped,
        provisional=bool(captured.missing),
        dataset=subject.dataset,
        model_version=subject.model_version,
        threshold=subject.threshold,
        classes=subject.classes,
        evaluation=subject.counts,
        expected_captures=len(subject.expected),
        missing_captures=captured.missing,
        reconciliation=unmatched,
        quarantined_lines=len(captured.quarantined),
        **asdict(figures(table, subject.threshold)),
        accuracy_interval_95=wilson_interval(int(correct.sum()), len(labelled)),
        calibration=calibration,
        estimated_accuracy=estimated_accuracy(table["confidence"].to_numpy()),
        drift=drifted,
        coverage_change=changed,
        alerts=tuple(reasons),
        bucket=bucket,
        inferences=inferences,
        changes=changes,
    )


# Alerts: why somebody should look at the report. None if nothing is out of bounds, or n is too small to say so.


def _alerts_of_calibration(found: Calibration) -> Iterator[str]:
    if found.error is not None and found.by_chance is not None and found.error > found.by_chance:
        yield (
            f"The confidence is not calibrated: its error is {found.error:.3f}, which chance exceeds at "
            f"{found.by_chance:.3f} in {1 - found.level:.0%} of cases only."
        )


def _alerts_of_drift(drifted: Drift | None, changed: CoverageChange | None) -> Iterator[str]:
    if drifted is not None and drifted.drifted:
        yield (
            f"The confidence has drifted: PSI {drifted.psi:.3f} (chance to {drifted.psi_by_chance:.3f}), KS "
            f"{drifted.ks:.3f} (chance to {drifted.ks_by_chance:.3f}), n = {drifted.n_current} against "
            f"{drifted.n_baseline}."
        )
    if changed is not None and changed.changed:
        yield (
            f"The coverage has changed: {changed.current:.1%} after {changed.baseline:.1%}, and chance moves it by "
            f"{changed.by_chance:.1%} at most in {changed.level:.0%} of cases."
        )


def _alerts_of_captures(captured: Captured, unmatched: dict[str, int]) -> Iterator[str]:
    for number, what in (
        (len(captured.missing), "Answered inferences that are not captured (yet)"),
        (unmatched["capture_without_output"], "Captured inferences without the model's answer"),
        (len(captured.quarantined), "Lines of capture files that are no records, in quarantine.jsonl"),
    ):
        if number:
            yield f"{what}: {number}."
