"""A report: captured confidences joined with the evaluation's labels, as charts and a summary."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from prefect import task
from prefect.artifacts import create_markdown_artifact

from settings import EVALUATIONS_PREFIX, REPORTS_PREFIX, SCHEMA_VERSION, settings
from tasks import storage
from tasks.capture import Captured
from tasks.charts import Caption, draw_all
from tasks.metrics import figures, wilson_interval
from tasks.results import Run

CLASSIFIED = ("accepted", "below_threshold")


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
    table = join(captured.records, results, tuple(evaluation["classes"]))
    summary = summarize(run, evaluation, results, captured, table)
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
    files = draw_all(table, tuple(evaluation["classes"]), caption, folder)
    summary_file = folder / "summary.json"
    summary_file.write_text(json.dumps(summary, indent=2) + "\n")
    _publish(bucket, run, [*files, summary_file])
    create_markdown_artifact(
        markdown(summary, folder, bucket), key="confidence-report", description=f"Report {run.date} {run.id}"
    )
    return summary


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
    run: Run, evaluation: dict[str, Any], results: list[dict[str, Any]], captured: Captured, table: pd.DataFrame
) -> dict[str, Any]:
    """The report's figures; accuracy carries a 95 % Wilson interval."""
    found = figures(table, evaluation["threshold"])
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
        "unreadable_lines": captured.unreadable,
        **asdict(found),
        "accuracy_interval_95": [low, high],
    }


def markdown(summary: dict[str, Any], folder: Path, bucket: str) -> str:
    """The report as a Prefect artifact."""
    counts = summary["evaluation"]
    accuracy = "no accuracy" if summary["accuracy"] is None else f"accuracy {summary['accuracy']:.1%}"
    lines = [
        f"# Confidence report {summary['date']}",
        "",
        f"Model {summary['model_version']}: {accuracy} of {summary['captured']} captured inferences; "
        f"{summary['above_threshold']} at or above the threshold {summary['threshold']:g}, "
        f"{summary['below_threshold']} below it.",
        "",
        "| planned | accepted | below threshold | failed | not submitted |",
        "|---:|---:|---:|---:|---:|",
        f"| {counts['planned']} | {counts['accepted']} | {counts['below_threshold']} | {counts['failed']} "
        f"| {counts['not_submitted']} |",
        "",
        "```mermaid",
        "pie showData",
        f'    "accepted" : {counts["accepted"]}',
        f'    "below threshold" : {counts["below_threshold"]}',
        f'    "failed" : {counts["failed"]}',
        "```",
        "",
        f"Charts: `{folder}` and `s3://{bucket}/{REPORTS_PREFIX}{summary['date']}/{summary['run']}/`",
    ]
    if summary["dataset"]["synthetic"]:
        lines.insert(2, "> **Synthetic data**: the images were drawn by the project.\n")
    if summary["provisional"]:
        lines.insert(2, f"> **Provisional**: {len(summary['missing_captures'])} capture records are missing.\n")
    return "\n".join(lines)


def _newest(bucket: str, date: str | None) -> tuple[str, str]:
    """Date and run of the evaluation that stopped last, of one day or of all."""
    summaries = [
        key
        for key in storage.list_etags(bucket, EVALUATIONS_PREFIX + (f"{date}/" if date else ""))
        if key.endswith("/summary.json")
    ]
    if not summaries:
        raise ReportError("there is no evaluation to report on; run the nightly-evaluation deployment first")
    newest_date = max(key.split("/")[1] for key in summaries)
    of_day = [storage.get_json(bucket, key) for key in summaries if key.split("/")[1] == newest_date]
    newest = max(of_day, key=lambda summary: summary["stopped"] or "")
    return newest["date"], newest["run"]


def _publish(bucket: str, run: Run, files: list[Path]) -> None:
    """Copies the files up to the day's folder, which holds the newest report, and both folders to the bucket."""
    objects = {}
    for file in files:
        shutil.copyfile(file, file.parent.parent / file.name)
        objects[f"{REPORTS_PREFIX}{run.date}/{run.id}/{file.name}"] = file.read_bytes()
        objects[f"{REPORTS_PREFIX}{run.date}/{file.name}"] = file.read_bytes()
    storage.upload_changed(bucket, f"{REPORTS_PREFIX}{run.date}/", objects)
