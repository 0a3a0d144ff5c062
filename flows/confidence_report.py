"""Turns the capture records of an evaluation into charts and a summary below reports/."""

from typing import Any

from prefect import flow
from prefect.events import emit_event

from flows.identity import run_name
from settings import ALERT_EVENT
from tasks.capture import collect
from tasks.endpoint import capture_prefix
from tasks.infrastructure import installation
from tasks.report import expected_captures, read_evaluation, write


@flow(name="confidence-report", flow_run_name=run_name, log_prints=True)
def confidence_report(date: str | None = None, run: str | None = None) -> dict[str, Any]:
    """date (UTC, such as 2026-11-22) and run (12 hex digits) of an evaluation; by default the newest one's."""
    bucket = installation().bucket
    evaluated, evaluation, results = read_evaluation(bucket, date, run)
    captured = collect(bucket, capture_prefix(evaluation["endpoint"]), expected_captures(results), evaluation)
    summary = write(bucket, evaluated, evaluation, results, captured)
    if summary["alerts"]:
        resource = {"prefect.resource.id": f"scones.report.{evaluated.id}"}
        names = ("date", "run", "alerts", "model_version")
        emit_event(ALERT_EVENT, resource=resource, payload={name: summary[name] for name in names})
    return summary


if __name__ == "__main__":
    confidence_report()
