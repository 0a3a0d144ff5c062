"""What a report finds out: captures joined with labels, figures, drift and alerts. Nothing is drawn or written here."""

import hashlib
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from settings import SCHEMA_VERSION
from tasks.aws import storage
from tasks.capture.window import Captured
from tasks.evaluation.results import results_of, summary_keys
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
from tasks.serving.threshold import threshold_changes

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
    report's are compared with, and drifted what came of that, None if there are too few. unmatched: lines of the
    reconciliation. quarantined: lines of capture files that are no records.
    """

    subject: Subject
    summary: dict[str, Any]
    inferences: pd.DataFrame
    table: pd.DataFrame
    nights: list[dict[str, Any]]
    baseline: np.ndarray
    drifted: Drift | None
    unmatched: list[dict[str, Any]]
    quarantined: list[dict[str, Any]]

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.subject.evaluation["classes"])

    @property
    def confidence(self) -> np.ndarray:
        """Of the images that count, (n,)."""
        return self.table["confidence"].to_numpy()


def analyse(bucket: str, subject: Subject, captured: Captured, before: Captured | None = None) -> Analysis:
    """Reads the evaluations before this one and computes all figures of the report.

    before: what a window is compared with; an evaluation is compared with those before it.
    """
    evaluation = subject.evaluation
    classes = tuple(evaluation["classes"])
    inferences = join(captured.records, subject.results, classes, only_known=not subject.is_window)
    table = once_per_image(inferences)
    nights = last_nights(bucket, evaluation)
    if before is None:
        baseline = baseline_of(bucket, evaluation, nights)
    else:
        baseline = once_per_image(before.records)["confidence"].to_numpy()
    unmatched = reconcile(subject.results, captured, evaluation["started"], evaluation["stopped"])
    current = table["confidence"].to_numpy()
    drifted = drift(histogram(baseline), histogram(current), ALERT_LEVEL)
    changed = coverage_change(baseline, current, evaluation["threshold"], ALERT_LEVEL)
    summary = summarize(subject, captured, table, counts(unmatched), drifted, changed)
    summary |= {
        "bucket": bucket,
        "inferences": len(inferences),
        "changes": changes_between(nights, threshold_changes(bucket)),
    }
    quarantined = [asdict(line) for line in captured.quarantined]
    return Analysis(subject, summary, inferences, table, nights, baseline, drifted, unmatched, quarantined)


def last_nights(bucket: str, evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    """Summaries of up to NIGHTS evaluations, the latest last, of which this one is that."""
    until = [key for key in sorted(summary_keys(bucket)) if key.split("/")[1] <= evaluation["date"]][-2 * NIGHTS :]
    read = [summary for key in until if (summary := storage.get_json(bucket, key)) and summary["stopped"]]
    earlier = [each for each in read if each["stopped"] <= (evaluation["stopped"] or "")]
    return sorted(earlier, key=lambda each: str(each["stopped"]))[-NIGHTS:]


def baseline_of(bucket: str, evaluation: dict[str, Any], nights: list[dict[str, Any]]) -> np.ndarray:
    """Confidences of up to BASELINE_NIGHTS earlier evaluations of the same model and images; (n,), empty for none.

    Each image counts once, with its latest confidence: the same images night after night are not more images.
    """
    alike = [
        night
        for night in nights
        if night["run"] != evaluation["run"]
        and all(night[name] == evaluation[name] for name in ("model_version", "endpoint"))
        and _images(night) == _images(evaluation)
    ]
    latest = {
        row["key"]: row["confidence"]
        for night in alike[-BASELINE_NIGHTS:]
        for row in results_of(bucket, night)
        if row["confidence"] is not None
    }
    return np.array(list(latest.values()), dtype=float)


def changes_between(nights: list[dict[str, Any]], thresholds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What became another between one evaluation and the next, the first change first: time, what, before, after, why.

    nights: summaries in their order. thresholds: the recorded changes of the threshold, which say why.
    """
    found = []
    for before, after in pairwise(nights):
        times = before["stopped"], after["stopped"]
        pairs = [
            ("model", before["model_version"], after["model_version"]),
            ("threshold", before["threshold"], after["threshold"]),
            ("images", _images(before), _images(after)),
        ]
        for what, old, new in pairs:
            if old == new:
                continue
            why = ""
            if what == "threshold":
                between = [
                    each for each in thresholds if times[0] < each["time"] < times[1] and each["threshold"] == new
                ]
                why = between[-1]["reason"] if between else ""
            if what == "images":
                old, new = before["dataset"]["source"], after["dataset"]["source"]
                why = "prepare-data uploaded others"
            found.append({"time": after["started"], "what": what, "before": old, "after": new, "why": why})
    return found


def _images(summary: dict[str, Any]) -> Any:
    """What tells one set of images from another."""
    return summary["dataset"].get("manifests_sha256", summary["dataset"])


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
    records: pd.DataFrame, results: list[dict[str, Any]], classes: tuple[str, ...], only_known: bool = True
) -> pd.DataFrame:
    """One row a captured inference: COLUMNS of its record, and key, label, status and correct.

    only_known: leave out inferences of no execution. Otherwise theirs are null, and correct is False.
    """
    labels = pd.DataFrame(results, columns=["inference_id", "key", "label", "status"]).astype(str)
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
    drifted: Drift | None = None,
    changed: CoverageChange | None = None,
) -> dict[str, Any]:
    """The report's figures; accuracy carries a 95 % Wilson interval.

    table: a row per image, each once, since intervals and tests assume that they are independent. unmatched: lines of
    the reconciliation by kind.
    """
    evaluation, threshold = subject.evaluation, subject.evaluation["threshold"]
    labelled = table[table["label"].notna()]
    found = figures(table, threshold)
    confidence, correct = labelled["confidence"].to_numpy(), labelled["correct"].to_numpy()
    error, by_chance = calibration_error(confidence, correct), calibration_error_by_chance(confidence, ALERT_LEVEL)
    expected = estimated_accuracy(table["confidence"].to_numpy())
    low, high = wilson_interval(int(correct.sum()), len(labelled))
    summary = {
        "schema_version": SCHEMA_VERSION,
        "run": subject.run.id,
        "date": subject.run.date,
        "outcome": evaluation["outcome"],
        "verdict": subject.verdict,
        "window": subject.is_window,
        "started": evaluation["started"],
        "stopped": evaluation["stopped"],
        "provisional": bool(captured.missing),
        "dataset": evaluation["dataset"],
        "model_version": evaluation["model_version"],
        "threshold": threshold,
        "classes": evaluation["classes"],
        "evaluation": {
            name: evaluation[name]
            for name in ("planned", "submitted", "not_submitted", "accepted", "below_threshold", "failed")
        },
        "expected_captures": len(subject.expected),
        "missing_captures": list(captured.missing),
        "reconciliation": unmatched,
        "quarantined_lines": len(captured.quarantined),
        **asdict(found),
        "accuracy_interval_95": [low, high],
        "calibration": {"error": error, "by_chance": by_chance, "level": ALERT_LEVEL},
        "estimated_accuracy": None if expected is None else asdict(expected),
        "drift": None if drifted is None else {**asdict(drifted), "drifted": drifted.drifted},
        "coverage_change": None if changed is None else {**asdict(changed), "changed": changed.changed},
    }
    return {**summary, "alerts": alerts(summary, drifted, changed)}


def alerts(summary: dict[str, Any], drifted: Drift | None, changed: CoverageChange | None) -> list[str]:
    """Why somebody should look at the report; empty if nothing is out of bounds, or n is too small to say so."""
    reasons = []
    error, by_chance = summary["calibration"]["error"], summary["calibration"]["by_chance"]
    if error is not None and error > by_chance:
        reasons.append(
            f"The confidence is not calibrated: its error is {error:.3f}, which chance exceeds at {by_chance:.3f} in "
            f"{1 - ALERT_LEVEL:.0%} of cases only."
        )
    if drifted is not None and drifted.drifted:
        reasons.append(
            f"The confidence has drifted: PSI {drifted.psi:.3f} (chance to {drifted.psi_by_chance:.3f}), KS "
            f"{drifted.ks:.3f} (chance to {drifted.ks_by_chance:.3f}), n = {drifted.n_current} against "
            f"{drifted.n_baseline}."
        )
    if changed is not None and changed.changed:
        reasons.append(
            f"The coverage has changed: {changed.current:.1%} after {changed.baseline:.1%}, and chance moves it by "
            f"{changed.by_chance:.1%} at most in {changed.level:.0%} of cases."
        )
    unmatched = summary["reconciliation"]
    for number, what in (
        (len(summary["missing_captures"]), "Answered inferences that are not captured (yet)"),
        (unmatched["capture_without_output"], "Captured inferences without the model's answer"),
        (summary["quarantined_lines"], "Lines of capture files that are no records, in quarantine.jsonl"),
    ):
        if number:
            reasons.append(f"{what}: {number}.")
    return reasons
