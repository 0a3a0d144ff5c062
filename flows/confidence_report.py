"""Turns capture records into charts, a page and a summary below reports/: of an evaluation, or of a window of time."""

from datetime import datetime
from typing import Any

from prefect import flow
from prefect.events import emit_event
from prefect.logging import get_run_logger
from prefect.states import Completed

from flows.ending import ALERTS, endings
from flows.identity import run_name
from flows.report_place import report_place
from settings import ALERT_EVENT, settings
from tasks.aws.stacks import installation
from tasks.report import subject
from tasks.report.summary import Alert, ReportSummary, headline
from tasks.run import utc_now

# That are compared with as many training images.
PICTURES = 500


@flow(name="confidence-report", flow_run_name=run_name, log_prints=True, **endings())
def confidence_report(
    date: str | None = None,
    run: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    endpoint: str | None = None,
    version: str | None = None,
) -> ReportSummary:
    """date (UTC, such as 2026-11-22) and run (12 hex digits) of an evaluation; by default the newest one's.

    Or since, and until (by default now): all that the endpoint answered meanwhile, or one of its versions, such as v7.
    """
    from tasks.capture import collect, freshness  # pandas and matplotlib take most of a second
    from tasks.report import report

    installed = installation()
    if since is None:
        about = subject.read_evaluation(installed.bucket, date, run)
    else:
        about = subject.read_window(installed, since, until or utc_now(), endpoint, version)
    bucket, classes = installed.bucket, about.classes
    before = collect.collect(bucket, about.window.before(), classes) if about.is_window else None
    captured = collect.collect(bucket, about.window, classes, about.expected)
    # A window is about whatever the endpoint was asked.
    pictures = collect.pictures(bucket, about.window, () if about.is_window else about.expected, PICTURES)
    if not about.is_window:
        freshness.publish_age(installed)
    summary = report.write(bucket, about, captured, before, pictures)
    announce(summary)
    page = report_place(bucket, summary.date, summary.run)
    message = "\n".join([f"{headline(summary)}. Report: {page}", *summary.alerts])
    get_run_logger().info(message)
    state: Any = Completed(name=ALERTS if summary.alerts else None, message=message, data=summary)
    returned: ReportSummary = state  # callers get the data of a state
    return returned


def announce(summary: ReportSummary) -> None:
    """Emits the event that says that somebody should look at the report, and why."""
    if summary.alerts:
        resource = {"prefect.resource.id": f"scones.report.{summary.run}", "scones.stack": settings().stack}
        alert = Alert(date=summary.date, run=summary.run, alerts=summary.alerts, model_version=summary.model_version)
        emit_event(ALERT_EVENT, resource=resource, payload=alert.to_json())


if __name__ == "__main__":
    confidence_report()
