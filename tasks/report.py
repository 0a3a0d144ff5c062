"""A report: captured confidences joined with the evaluation's labels, as charts and a summary."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from prefect import task
from prefect.artifacts import create_markdown_artifact

from settings import EVALUATIONS_PREFIX, REPORTS_PREFIX, SCHEMA_VERSION, settings
from tasks import storage
from tasks.capture import Captured
from tasks.charts import Caption, draw_all, drift_of_confidence, save, trend
from tasks.drift import Drift, drift, histogram
from tasks.metrics import (
    calibration_error,
    calibration_error_by_chance,
    estimated_accuracy,
    figures,
    wilson_interval,
)
from tasks.outcome import counts_table, verdict
from tasks.page import interesting, render, render_index
from tasks.results import Run

CLASSIFIED = ("accepted", "below_threshold")
# Evaluations that the trend shows, and that the distribution of confidence is compared with.
NIGHTS = 30
BASELINE_NIGHTS = 7
# How sure an alert is that it is not chance.
ALERT_LEVEL = 0.99


class ReportError(Exception):
    """There is nothing to report on; the message says what to do."""


@task(task_run_name="read the evaluation")
def read_evaluation(bucket: str, date: str | None, run: str | None) -> tuple[Run, dict[str, Any], list[dict[str, Any]]]:
    """The evaluation's identity, summary and results; the newest one where date or run is not given."""
    if date is None or run is None:
        date, run = _newest(bucket, date)
    chosen = Run(run, date)
    summary = storage.get_json(bucket, f"{chosen.prefix}summary.json")
    results = storage.get_json_lines(bucket, f"{chosen.prefix}results.jsonl")
    if summary is None or results is None:
        raise ReportError(f"there is no evaluation s3://{bucket}/{chosen.prefix}; run nightly-evaluation first")
    return chosen, summary, results


@task(task_run_name="write report {run.date} {run.id}")
def write(
    bucket: str, run: Run, evaluation: dict[str, Any], results: list[dict[str, Any]], captured: Captured
) -> dict[str, Any]:
    """Writes reports/DATE/RUN/ here and in the bucket, and returns the summary."""
    classes = tuple(evaluation["classes"])
    table = join(captured.records, results, classes)
    nights = last_nights(bucket, evaluation)
    baseline, current = baseline_of(bucket, evaluation, nights), histogram(table["confidence"].to_numpy())
    drifted = None if baseline is None else drift(baseline, current, ALERT_LEVEL)
    summary = summarize(run, evaluation, results, captured, table, drifted)
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
    if baseline is not None and drifted is not None:
        files.append(save(drift_of_confidence(baseline, current, drifted, caption), folder / "drift.png"))
    sheets = interesting(table)
    keys = [row["key"] for rows in sheets.values() for row in rows]
    images = {key: content for key in keys if (content := storage.get(bucket, key))}
    charts = {file.stem: file.read_bytes() for file in files}
    page = folder / "report.html"
    page.write_text(render(summary, evaluation, verdict(evaluation), results, sheets, charts, images))
    quarantine = folder / "quarantine.jsonl"
    quarantine.write_text("".join(json.dumps(asdict(line)) + "\n" for line in captured.quarantined))
    summary_file = folder / "summary.json"
    summary_file.write_text(json.dumps(summary, indent=2) + "\n")
    _publish(bucket, run, [*files, page, quarantine, summary_file])
    (settings().reports / "index.html").write_text(render_index(settings().reports))
    create_markdown_artifact(
        markdown(summary, verdict(evaluation), folder, bucket),
        key="confidence-report",
        description=f"Report {run.date} {run.id}",
    )
    return summary


def last_nights(bucket: str, evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    """Summaries of up to NIGHTS evaluations, the latest last, of which this one is that."""
    until = [key for key in sorted(_summary_keys(bucket)) if key.split("/")[1] <= evaluation["date"]][-2 * NIGHTS :]
    read = [summary for key in until if (summary := storage.get_json(bucket, key)) and summary["stopped"]]
    earlier = [each for each in read if each["stopped"] <= (evaluation["stopped"] or "")]
    return sorted(earlier, key=lambda each: str(each["stopped"]))[-NIGHTS:]


def baseline_of(bucket: str, evaluation: dict[str, Any], nights: list[dict[str, Any]]) -> np.ndarray | None:
    """Histogram of the confidences of up to BASELINE_NIGHTS earlier evaluations of the same model and images."""
    same = ("model_version", "endpoint", "dataset")
    alike = [
        night
        for night in nights
        if night["run"] != evaluation["run"] and all(night[name] == evaluation[name] for name in same)
    ]
    if not alike:
        return None
    confidences = [
        row["confidence"]
        for night in alike[-BASELINE_NIGHTS:]
        for row in storage.get_json_lines(bucket, f"{Run(night['run'], night['date']).prefix}results.jsonl") or []
        if row["confidence"] is not None
    ]
    return histogram(np.array(confidences, dtype=float))


def _trend_table(nights: list[dict[str, Any]]) -> pd.DataFrame:
    columns = ["stopped", "accuracy", "coverage", "failed_share", "model_version"]
    table = pd.DataFrame([{name: night.get(name) for name in columns} for night in nights], columns=columns)
    table["stopped"] = pd.to_datetime(table["stopped"], utc=True)
    return table.astype({"accuracy": float, "coverage": float, "failed_share": float})


def expected_captures(results: list[dict[str, Any]]) -> list[str]:
    """Inference ids that the endpoint answered, so that a capture record must exist."""
    return [row["inference_id"] for row in results if row["status"] in CLASSIFIED]


def join(records: pd.DataFrame, results: list[dict[str, Any]], classes: tuple[str, ...]) -> pd.DataFrame:
    """One row a captured inference: time, model_version, predicted_class, confidence, label, correct, key, status."""
    labels = pd.DataFrame(results, columns=["inference_id", "key", "label", "status"])
    table = records.merge(labels, on="inference_id", how="inner")
    inferences = table.pop("inferences")
    table["confidence"] = inferences.map(max).astype(float)
    table["predicted_class"] = inferences.map(lambda values: classes[values.index(max(values))]).astype(str)
    table["correct"] = (table["predicted_class"] == table["label"]).astype(bool)
    return table


def summarize(
    run: Run,
    evaluation: dict[str, Any],
    results: list[dict[str, Any]],
    captured: Captured,
    table: pd.DataFrame,
    drifted: Drift | None = None,
) -> dict[str, Any]:
    """The report's figures; accuracy carries a 95 % Wilson interval."""
    found = figures(table, evaluation["threshold"])
    confidence, correct = table["confidence"].to_numpy(), table["correct"].to_numpy()
    error, by_chance = calibration_error(confidence, correct), calibration_error_by_chance(confidence, ALERT_LEVEL)
    expected = estimated_accuracy(confidence)
    low, high = wilson_interval(int(table["correct"].sum()), len(table))
    return {
        "schema_version": SCHEMA_VERSION,
        "run": run.id,
        "date": run.date,
        "provisional": bool(captured.missing),
        "dataset": evaluation["dataset"],
        "model_version": evaluation["model_version"],
        "threshold": evaluation["threshold"],
        "classes": evaluation["classes"],
        "evaluation": {
            name: evaluation[name]
            for name in ("planned", "submitted", "not_submitted", "accepted", "below_threshold", "failed")
        },
        "expected_captures": len(expected_captures(results)),
        "missing_captures": list(captured.missing),
        "quarantined_lines": len(captured.quarantined),
        **asdict(found),
        "accuracy_interval_95": [low, high],
        "calibration": {"error": error, "by_chance": by_chance, "level": ALERT_LEVEL},
        "estimated_accuracy": None if expected is None else asdict(expected),
        "drift": None if drifted is None else {**asdict(drifted), "drifted": drifted.drifted},
        "alerts": alerts(error, by_chance, drifted, captured),
    }


def alerts(error: float | None, by_chance: float | None, drifted: Drift | None, captured: Captured) -> list[str]:
    """Why somebody should look at the report; empty where nothing is out of bounds, or n is too small to say so."""
    reasons = []
    if error is not None and by_chance is not None and error > by_chance:
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
    if captured.quarantined:
        reasons.append(f"Lines of capture files that are no records: {len(captured.quarantined)}, in quarantine.jsonl.")
    if captured.missing:
        reasons.append(f"Answered inferences that are not captured (yet): {len(captured.missing)}.")
    return reasons


def markdown(summary: dict[str, Any], verdict: str, folder: Path, bucket: str) -> str:
    """The report as a Prefect artifact."""
    counts = summary["evaluation"]
    accuracy = "no accuracy" if summary["accuracy"] is None else f"accuracy {summary['accuracy']:.1%}"
    lines = [
        f"# Confidence report {summary['date']}",
        "",
        verdict,
        "",
        *(f"> {reason}\n" for reason in summary["alerts"]),
        f"Model {summary['model_version']}: {accuracy} of {summary['captured']} captured inferences; "
        f"{summary['above_threshold']} at or above the threshold {summary['threshold']:g}, "
        f"{summary['below_threshold']} below it.",
        "",
        *counts_table(counts),
        "```mermaid",
        "pie showData",
        f'    "accepted" : {counts["accepted"]}',
        f'    "below threshold" : {counts["below_threshold"]}',
        f'    "failed" : {counts["failed"]}',
        "```",
        "",
        f"`report.html` and charts: `{folder}` and `s3://{bucket}/{REPORTS_PREFIX}{summary['date']}/{summary['run']}/`",
    ]
    if summary["dataset"]["synthetic"]:
        lines.insert(2, "> **Synthetic data**: the images were drawn by the project.\n")
    if summary["provisional"]:
        lines.insert(2, f"> **Provisional**: {len(summary['missing_captures'])} capture records are missing.\n")
    return "\n".join(lines)


def _newest(bucket: str, date: str | None) -> tuple[str, str]:
    """Date and run of the evaluation that stopped last, of one day or of all."""
    summaries = _summary_keys(bucket, date)
    if not summaries:
        raise ReportError("there is no evaluation to report on; run the nightly-evaluation deployment first")
    newest_date = max(key.split("/")[1] for key in summaries)
    of_day = [storage.get_json(bucket, key) for key in summaries if key.split("/")[1] == newest_date]
    newest = max(of_day, key=lambda summary: summary["stopped"] or "")
    return newest["date"], newest["run"]


def _summary_keys(bucket: str, date: str | None = None) -> list[str]:
    """Keys of the summaries of all evaluations, or of one day's."""
    prefix = EVALUATIONS_PREFIX + (f"{date}/" if date else "")
    return [key for key in storage.list_etags(bucket, prefix) if key.endswith("/summary.json")]


def _publish(bucket: str, run: Run, files: list[Path]) -> None:
    """Copies the files up to the day's folder, which holds the newest report, and both folders to the bucket."""
    objects = {}
    for file in files:
        shutil.copyfile(file, file.parent.parent / file.name)
        objects[f"{REPORTS_PREFIX}{run.date}/{run.id}/{file.name}"] = file.read_bytes()
        objects[f"{REPORTS_PREFIX}{run.date}/{file.name}"] = file.read_bytes()
    storage.upload_changed(bucket, f"{REPORTS_PREFIX}{run.date}/", objects)
