"""What a report finds out: captures joined with labels, figures, drift and alerts. Nothing is drawn or written here."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import islice, pairwise

import numpy as np
import pandas as pd

from settings import TRAIN_PREFIX, settings
from tasks.aws import storage
from tasks.capture.window import Captured, Quarantined
from tasks.data.images import REVIEWED_FOLDER
from tasks.evaluation.catalogue import newest_first
from tasks.evaluation.results import Result, results_of
from tasks.evaluation.summary import EvaluationSummary
from tasks.installation import DatasetNote
from tasks.report.drift import CoverageChange, Drift, coverage_change, drift, histogram, score_histogram
from tasks.report.inputs import InputDrift, input_drift, properties
from tasks.report.metrics import (
    Figures,
    accuracy_lower_bound,
    calibration_error,
    calibration_errors_by_chance,
    estimated_accuracy,
    figures,
    holm,
    labels_needed,
    offered_confidence,
    p_value,
    wilson_interval,
)
from tasks.report.reconciliation import counts, reconcile
from tasks.report.subject import Subject
from tasks.report.summary import Calibration, Change, Judged, ReportSummary, Shown, Unmatched, are_comparable
from tasks.review import summary as review
from tasks.review.summary import ReviewSummary
from tasks.run import share
from tasks.serving.threshold import ThresholdChange, threshold_changes

# Evaluations that the trend shows, and that the distribution of confidence is compared with.
NIGHTS = 30
BASELINE_NIGHTS = 7
# An inference id that this project made: RUN, 20 hex digits of the hash of the key, attempt.
INFERENCE_ID = r"[0-9a-f]{12}-[0-9a-f]{20}-a[0-9]+"
# That the night's images are compared with.
TRAINING_IMAGES = 500
# What drift is judged by.
JUDGED = ["confidence", "outlier_score", "model_version"]
# How sure a report's alerts are, all together, that none of them is chance.
ALERT_LEVEL = 0.99


@dataclass(frozen=True)
class Analysis:
    """All that charts, page and files of a report are made of.

    summary: the content of summary.json. inferences: a row per captured inference. table: those of them that count, a
    row per image. nights: summaries of the last evaluations, the latest last. baseline: columns confidence and
    outlier_score of the images that this report's are compared with. unmatched: lines of the reconciliation.
    quarantined: lines of capture files that are no records.
    """

    subject: Subject
    summary: ReportSummary
    inferences: pd.DataFrame
    table: pd.DataFrame
    nights: list[EvaluationSummary]
    baseline: pd.DataFrame
    unmatched: list[Unmatched]
    quarantined: tuple[Quarantined, ...]

    @property
    def confidence(self) -> np.ndarray:
        """Of the images that count, (n,)."""
        return self.table["confidence"].to_numpy()


def analyse(
    bucket: str,
    subject: Subject,
    captured: Captured,
    before: Captured | None = None,
    pictures: Sequence[bytes] = (),
) -> Analysis:
    """Reads the evaluations before this one and computes all figures of the report.

    before: what a window is compared with; an evaluation is compared with those before it. pictures: a sample of those
    that the endpoint was sent, which are compared with the training images.
    """
    inferences = join(captured.records, subject.results, subject.classes, only_known=not subject.is_window)
    table = once_per_image(inferences)
    nights = last_nights(bucket, subject)
    baseline = baseline_of(bucket, subject, nights) if before is None else once_per_image(before.records)[JUDGED]
    unmatched = reconcile(subject.results, captured, subject.started, subject.stopped)
    summary = summarize(
        subject,
        captured,
        table,
        counts(unmatched),
        bucket=bucket,
        inferences=len(inferences),
        changes=changes_between(nights, threshold_changes(bucket)),
        drifted=drift(_confidences(baseline), _confidences(table), ALERT_LEVEL),
        changed=coverage_change(
            offered_confidence(baseline), offered_confidence(table), subject.threshold, ALERT_LEVEL
        ),
        features=drift(_outlier_scores(baseline, table), _outlier_scores(table, baseline), ALERT_LEVEL),
        inputs=input_drift(training_properties(bucket), properties(pictures)) if pictures else None,
        shown_at=(settings().threshold_target, settings().threshold_level),
        reviewed=review.summarize(bucket, set(subject.model_version.split(", ")), settings()),
    )
    return Analysis(subject, summary, inferences, table, nights, baseline, unmatched, captured.quarantined)


def _confidences(table: pd.DataFrame) -> np.ndarray:
    return histogram(table["confidence"].to_numpy(dtype=float))


def _outlier_scores(table: pd.DataFrame, other: pd.DataFrame) -> np.ndarray:
    """Their histogram, empty if there are none.

    Of the model versions that both tables have scores of: each tells them in units of its own limit.
    """
    told, of_other = (each[each["outlier_score"].notna()] for each in (table, other))
    scores = told["outlier_score"][told["model_version"].isin(of_other["model_version"].unique())].to_numpy(dtype=float)
    return score_histogram(scores)


def training_properties(bucket: str) -> np.ndarray:
    """Properties (n, 5) of a sample of the training images, kept on this machine until one of these is another."""
    there = storage.list_etags(bucket, TRAIN_PREFIX)
    # Reviewed ones were selected, and would hide that images have changed.
    etags = {key: etag for key, etag in there.items() if not key.startswith(TRAIN_PREFIX + REVIEWED_FOLDER)}
    chosen = sorted(etags, key=lambda key: hashlib.sha256(key.encode()).digest())[:TRAINING_IMAGES]
    identity = "".join(f"{key} {etags[key]}\n" for key in chosen)
    kept = settings().cache / "training-images" / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.npy"
    if kept.is_file():
        loaded: np.ndarray = np.load(kept, allow_pickle=False)
        return loaded
    with ThreadPoolExecutor(storage.PARALLEL_REQUESTS) as threads:
        contents = list(threads.map(lambda key: storage.get_image(bucket, key), chosen))
    read = [content for content in contents if content is not None]
    found = properties(read)
    if len(read) == len(chosen):
        kept.parent.mkdir(parents=True, exist_ok=True)
        new = kept.with_suffix(f".{os.getpid()}.npy")
        np.save(new, found)
        new.replace(kept)
    return found


def last_nights(bucket: str, subject: Subject) -> list[EvaluationSummary]:
    """Returns summaries of up to NIGHTS evaluations, the oldest first, ending with this one."""
    if subject.stopped is None:
        return []
    runs = newest_first(bucket, until=subject.stopped[:10])
    earlier = (each for each in runs if each.stopped and each.stopped <= str(subject.stopped))
    return list(islice(earlier, NIGHTS))[::-1]


def baseline_of(bucket: str, subject: Subject, nights: list[EvaluationSummary]) -> pd.DataFrame:
    """Columns JUDGED of the comparable nights; no row if there is none.

    Each image counts once, with its latest answer: the same images night after night are not more images.
    """
    latest = {
        row.key: (row.confidence, row.outlier_score, row.model_version)
        for night in comparable_nights(nights, subject)
        for row in results_of(bucket, night)
        if row.confidence is not None
    }
    table = pd.DataFrame(list(latest.values()), columns=JUDGED)
    return table.astype({"confidence": float, "outlier_score": float})


def comparable_nights(nights: list[EvaluationSummary], subject: Subject) -> list[EvaluationSummary]:
    """Up to BASELINE_NIGHTS earlier evaluations of the same model, endpoint and test images."""
    alike = [
        night
        for night in nights
        if night.run != subject.run.id and night.endpoint == subject.endpoint and are_comparable(night, subject)
    ]
    return alike[-BASELINE_NIGHTS:]


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
        if not after.dataset.has_same_test_images(before.dataset):
            names = _names(before.dataset, after.dataset)
            found.append(_change(after, "test images", *names, "prepare-data uploaded others"))
    return tuple(found)


def _change(
    first: EvaluationSummary, what: str, before: str | float | None, after: str | float | None, why: str = ""
) -> Change:
    return Change(time=first.started, what=what, before=before, after=after, why=why)


def _names(before: DatasetNote, after: DatasetNote) -> tuple[str, str]:
    """Sources of the images, with a part of their digests if both are called alike."""

    def name(note: DatasetNote) -> str:
        digest = note.test_sha256 or note.originals_sha256 or note.manifests_sha256 or "unknown"
        return note.source if before.source != after.source else f"{note.source} ({digest[:8]})"

    return name(before), name(after)


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
    features: Drift | None = None,
    inputs: InputDrift | None = None,
    shown_at: tuple[float, float] = (0.99, 0.90),
    reviewed: ReviewSummary | None = None,
) -> ReportSummary:
    """The report's figures; accuracy carries a 95 % Wilson interval.

    shown_at: accuracy that what is accepted should have, and how sure that has to be.

    table: a row per image, each once, since intervals and tests assume that they are independent. unmatched: lines of
    the reconciliation by kind. inferences: how many there were before each image counted once.
    """
    labelled = table[table["label"].notna()]
    confidence, correct = labelled["confidence"].to_numpy(), labelled["correct"].to_numpy()
    calibration = calibrated(confidence, correct)
    tests = judge(calibration, drifted, changed, features, inputs)
    reasons = [
        *_alerts_of_tests(tests, calibration, drifted, changed, features, inputs),
        *_alerts_of_captures(captured, unmatched),
        *_alerts_of_review(reviewed),
    ]
    found = figures(table, subject.threshold)
    if not subject.is_window:  # as the evaluation's verdict and gate have it
        found = replace(found, coverage=share(subject.counts.accepted, subject.counts.submitted))
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
        **asdict(found),
        accuracy_interval_95=wilson_interval(int(correct.sum()), len(labelled)),
        accepted_accuracy_shown=shown(found, *shown_at),
        calibration=calibration,
        estimated_accuracy=estimated_accuracy(table["confidence"].to_numpy()),
        drift=drifted,
        coverage_change=changed,
        feature_drift=features,
        inputs=inputs,
        tests=tests,
        alerts=tuple(reasons),
        bucket=bucket,
        inferences=inferences,
        changes=changes,
        review=reviewed,
    )


def calibrated(confidence: np.ndarray, correct: np.ndarray) -> Calibration:
    """The calibration error, and what chance makes of it at this n."""
    error, drawn = calibration_error(confidence, correct), calibration_errors_by_chance(confidence)
    return Calibration(
        error=error,
        by_chance=None if error is None else float(np.quantile(drawn, ALERT_LEVEL)),
        p=None if error is None else p_value(error, drawn),
        level=ALERT_LEVEL,
    )


def shown(found: Figures, target: float, level: float) -> Shown:
    """What the labels of accepted images show, and how many are missing for the target."""
    errors = round(found.accepted_labelled * (1 - (found.accepted_accuracy or 0))) if found.accepted_labelled else 0
    needed = labels_needed(errors, target, level)
    return Shown(
        target=target,
        level=level,
        errors=errors,
        lower_bound=accuracy_lower_bound(errors, found.accepted_labelled, level),
        labels_needed=needed,
        missing_labels=max(0, needed - found.accepted_labelled),
    )


def judge(
    calibration: Calibration,
    drifted: Drift | None,
    changed: CoverageChange | None,
    features: Drift | None = None,
    inputs: InputDrift | None = None,
) -> tuple[Judged, ...]:
    """Every test that could be made, all at one level: 1 - ALERT_LEVEL of reports with nothing wrong have an alert."""
    p_values = {
        "calibration error": calibration.p,
        "PSI of confidence": None if drifted is None else drifted.psi_p,
        "KS of confidence": None if drifted is None else drifted.ks_p,
        "coverage": None if changed is None else changed.p,
        "KS of outlier scores": None if features is None else features.ks_p,
        "images": None if inputs is None else inputs.p,
    }
    made = {name: p for name, p in p_values.items() if p is not None}
    return tuple(
        Judged(name=name, p=p, adjusted_p=adjusted, alert=adjusted <= 1 - ALERT_LEVEL)
        for (name, p), adjusted in zip(made.items(), holm(list(made.values())), strict=True)
    )


# Alerts: why somebody should look at the report. None if nothing is out of bounds, or n is too small to say so.


def _alerts_of_tests(
    tests: tuple[Judged, ...],
    calibration: Calibration,
    drifted: Drift | None,
    changed: CoverageChange | None,
    features: Drift | None,
    inputs: InputDrift | None,
) -> Iterator[str]:
    moved = {test.name: f"adjusted p = {test.adjusted_p:.2g}" for test in tests if test.alert}
    if why := moved.get("calibration error"):
        yield f"The confidence is not calibrated: its error is {calibration.error:.3f} ({why})."
    if drifted is not None and (why := moved.get("PSI of confidence") or moved.get("KS of confidence")):
        yield (
            f"The confidence has drifted: PSI {drifted.psi:.3f}, KS {drifted.ks:.3f}, n = {drifted.n_current} against "
            f"{drifted.n_baseline} ({why})."
        )
    if changed is not None and (why := moved.get("coverage")):
        yield (f"The coverage has changed: {changed.current:.1%} after {changed.baseline:.1%} of the answers ({why}).")
    if features is not None and (why := moved.get("KS of outlier scores")):
        yield (
            f"The images' distance from the training images in the model's features has drifted: KS {features.ks:.3f}, "
            f"n = {features.n_current} against {features.n_baseline} ({why})."
        )
    if inputs is not None and (why := moved.get("images")):
        most = inputs.largest
        yield (
            f"The images do not look like the training images: {most.name} is {most.now:.3g} at the median, and "
            f"{most.before:.3g} in training (KS {most.ks:.2f}, {why})."
        )


def _alerts_of_captures(captured: Captured, unmatched: dict[str, int]) -> Iterator[str]:
    for number, what in (
        (len(captured.missing), "Answered inferences that are not captured (yet)"),
        (unmatched["capture_without_output"], "Captured inferences without the model's answer"),
        (len(captured.quarantined), "Lines of capture files that are no records, in quarantine.jsonl"),
    ):
        if number:
            yield f"{what}: {number}."


def _alerts_of_review(reviewed: ReviewSummary | None) -> Iterator[str]:
    certificate = reviewed.certificate if reviewed else None
    if certificate is not None and certificate.contradicts:
        yield (
            f"Less of what {certificate.model_version} accepted is right than the target of {certificate.target:g}: at "
            f"most {certificate.upper_bound:.3f}, at {certificate.level:.0%} ({certificate.errors:,} of "
            f"{certificate.labels:,} reviewed images of a random sample are wrong)."
        )
