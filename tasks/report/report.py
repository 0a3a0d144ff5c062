"""A report: captured confidences joined with the evaluations' labels, as charts, a page and a summary."""

import hashlib
import json
import math
import shutil
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from prefect import task
from prefect.artifacts import create_markdown_artifact

from settings import REPORTS_PREFIX, SCHEMA_VERSION, settings
from tasks.aws import storage
from tasks.capture.window import Captured
from tasks.evaluation.outcome import counts_table
from tasks.evaluation.results import results_of, summary_keys
from tasks.report.charts import Caption, draw_all, drift_of_confidence, save, trend
from tasks.report.drift import CoverageChange, Drift, coverage_change, drift, histogram
from tasks.report.history import executions_of
from tasks.report.metrics import (
    calibration_error,
    calibration_error_by_chance,
    estimated_accuracy,
    figures,
    wilson_interval,
)
from tasks.report.page import interesting, render, render_executions, render_index, rows_to_look_at
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
# Bars of the histogram in Prefect's artifact, and characters of the longest.
BARS = 10
BAR = 24
# Mermaid's own colours are pale.
PALETTE = """%%{init: {"theme": "base", "themeVariables": {"xyChart": {"plotColorPalette": "#0072B2, #E69F00"}}}}%%"""


@task(task_run_name="write report {subject.run.date} {subject.run.id}")
def write(bucket: str, subject: Subject, captured: Captured, before: Captured | None = None) -> dict[str, Any]:
    """Writes reports/DATE/RUN/ here and in the bucket, and returns the summary.

    before: what a window is compared with; an evaluation is, with those before it.
    """
    run, evaluation = subject.run, subject.evaluation
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
    folder = settings().reports / run.date / run.id
    caption = Caption(
        run=run.id,
        date=run.date,
        dataset=evaluation["dataset"]["source"],
        synthetic=evaluation["dataset"]["synthetic"],
        threshold=evaluation["threshold"],
        model_version=evaluation["model_version"],
        provisional=summary["provisional"],
    )
    files = draw_all(table, classes, caption, folder)
    files.append(save(trend(_trend_table(nights), caption), folder / "trend.png"))
    if drifted is not None:
        drawn = drift_of_confidence(histogram(baseline), histogram(current), drifted, caption)
        files.append(save(drawn, folder / "drift.png"))
    sheets = interesting(table)
    keys = [row["key"] for rows in sheets.values() for row in rows]
    images = {key: content for key in keys if (content := storage.get(bucket, key))}
    charts = {file.stem: file.read_bytes() for file in files}
    quarantined = [asdict(line) for line in captured.quarantined]
    page = render(summary, subject, sheets, charts, images, unmatched, quarantined)
    shown = [*(row for rows in sheets.values() for row in rows), *_needing(subject, summary)]
    files += [
        _text(folder / "report.html", page),
        _text(folder / "executions.html", render_executions(subject, executions_of(subject, shown))),
        _lines(folder / "quarantine.jsonl", quarantined),
        _lines(folder / "reconciliation.jsonl", unmatched),
        _parquet(folder / "inferences.parquet", inferences),
        _text(folder / "summary.json", json.dumps(summary, indent=2) + "\n"),
    ]
    _publish(bucket, subject, files)
    (settings().reports / "index.html").write_text(render_index(settings().reports, bucket))
    create_markdown_artifact(
        markdown(summary, subject.verdict, table, nights, folder, bucket),
        key="confidence-report",
        description=f"Report {run.date} {run.id}",
    )
    return summary


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


def _trend_table(nights: list[dict[str, Any]]) -> pd.DataFrame:
    columns = ["stopped", "accuracy", "coverage", "failed_share", "threshold", "model_version"]
    table = pd.DataFrame([{name: night.get(name) for name in columns} for night in nights], columns=columns)
    table["stopped"] = pd.to_datetime(table["stopped"], utc=True)
    return table.astype(dict.fromkeys(("accuracy", "coverage", "failed_share", "threshold"), float))


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
    """Why somebody should look at the report; empty where nothing is out of bounds, or n is too small to say so."""
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


def markdown(
    summary: dict[str, Any],
    verdict: str,
    table: pd.DataFrame,
    nights: list[dict[str, Any]],
    folder: Path,
    bucket: str,
) -> str:
    """The report as a Prefect artifact, with charts that Prefect draws itself."""
    evaluated = summary["evaluation"]
    accuracy = "no accuracy" if summary["accuracy"] is None else f"accuracy {summary['accuracy']:.1%}"
    lines = [
        f"# Confidence report {summary['date']}",
        "",
        verdict,
        "",
        *(f"> {reason}\n" for reason in summary["alerts"]),
        f"Model {summary['model_version']}: {accuracy} of {summary['labelled']} labelled images; of "
        f"{summary['captured']} captured, {summary['above_threshold']} at or above the threshold "
        f"{summary['threshold']:g} and {summary['below_threshold']} below it.",
        "",
        *counts_table(evaluated),
        *_bars(table["confidence"].to_numpy(), summary["threshold"]),
        *_nights_lines(nights),
        f"`report.html` and charts: `{folder}` and `s3://{bucket}/{REPORTS_PREFIX}{summary['date']}/{summary['run']}/`",
    ]
    if summary["dataset"]["synthetic"]:
        lines.insert(2, "> **Synthetic data**: the images were drawn by the project.\n")
    if summary["provisional"]:
        lines.insert(2, f"> **Provisional**: {len(summary['missing_captures'])} capture records are missing.\n")
    return "\n".join(lines)


def _bars(confidence: np.ndarray, threshold: float) -> list[str]:
    """A table of inferences by confidence with bars of text, which every version of Prefect's UI shows."""
    if not len(confidence):
        return []
    low = min(int(confidence.min() * BARS) / BARS, 1 - 1 / BARS)
    counts, edges = np.histogram(confidence, bins=BARS, range=(low, 1))
    longest = max(counts)
    rows = [
        f"| {first:.2f} to {last:.2f} | {count} | {'█' * math.ceil(BAR * count / longest)} |"
        for first, last, count in zip(edges, edges[1:], counts, strict=False)
    ]
    return [f"| confidence (threshold {threshold:g}) | inferences | |", "|---|---:|---|", *rows, ""]


def _nights_lines(nights: list[dict[str, Any]]) -> list[str]:
    """Accuracy and coverage of the last evaluations."""
    known = [night for night in nights if night["accuracy"] is not None and night["coverage"] is not None]
    if len(known) < 2:
        return []
    return [
        "```mermaid",
        PALETTE,
        "xychart-beta",
        '    title "The last evaluations: accuracy (blue) and coverage (orange)"',
        f"    x-axis [{', '.join(str(number) for number in range(1 - len(known), 1))}]",
        '    y-axis "share" 0 --> 1',
        *(f"    line [{', '.join(f'{night[name]:.3f}' for night in known)}]" for name in ("accuracy", "coverage")),
        "```",
        "",
    ]


def _needing(subject: Subject, summary: dict[str, Any]) -> list[dict[str, Any]]:
    return rows_to_look_at(subject.results, set(summary["missing_captures"]))


def _text(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def _lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    return _text(path, "".join(json.dumps(row) + "\n" for row in rows))


def _parquet(path: Path, table: pd.DataFrame) -> Path:
    """The report's inferences, for questions of one's own; without pandas' own notes, which name its version."""
    arrow = pa.Table.from_pandas(table, preserve_index=False).replace_schema_metadata()
    pq.write_table(arrow, path, compression="zstd")
    return path


def _publish(bucket: str, subject: Subject, files: list[Path]) -> None:
    """Copies the files to the bucket, and an evaluation's up to the day's folder too, which holds the newest report."""
    day = f"{REPORTS_PREFIX}{subject.run.date}/"
    objects = {f"{day}{subject.run.id}/{file.name}": file.read_bytes() for file in files}
    if not subject.is_window:
        for file in files:
            shutil.copyfile(file, file.parent.parent / file.name)
            objects[f"{day}{file.name}"] = file.read_bytes()
    storage.upload_changed(bucket, day, objects)
