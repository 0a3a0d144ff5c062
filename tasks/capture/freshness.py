"""How old the endpoint's newest capture record is: a metric, for the alarm that a day has passed without one."""

from datetime import datetime

from prefect import task
from prefect.logging import get_run_logger

from settings import METRICS_NAMESPACE, settings
from tasks.aws import storage
from tasks.aws.clients import client, retry_transient
from tasks.capture.collect import model_versions
from tasks.installation import Installation, capture_prefix
from tasks.run import utc_now

METRIC = "CaptureAge"
# Below the variant, records are in YEAR/MONTH/DAY/HOUR/.
LEVELS = 4


@task(task_run_name="publish the age of the newest capture")
def publish_age(installation: Installation) -> None:
    """Puts the metric CaptureAge, in seconds, into CloudWatch; nothing if SCONES_ALARMS is off or nothing is captured.

    What was never captured has no age: the report of the evaluation says that records are missing.
    """
    if not settings().alarms:
        return
    newest = newest_capture(installation.bucket, installation.endpoint)
    if newest is None:
        get_run_logger().warning("endpoint %s has captured nothing yet", installation.endpoint)
        return
    age = max((utc_now() - newest).total_seconds(), 0.0)
    datum = {
        "MetricName": METRIC,
        "Dimensions": [{"Name": "Stack", "Value": settings().stack}],
        "Value": age,
        "Unit": "Seconds",
    }
    retry_transient(
        f"put metric {METRIC}",
        lambda: client("cloudwatch").put_metric_data(Namespace=METRICS_NAMESPACE, MetricData=[datum]),
    )


def newest_capture(bucket: str, endpoint: str) -> datetime | None:
    """When the endpoint's newest file of capture records was written; None if there is none."""
    of_versions = [_newest_below(bucket, capture_prefix(endpoint, name)) for name in model_versions(bucket, endpoint)]
    return max((time for time in of_versions if time), default=None)


def _newest_below(bucket: str, prefix: str) -> datetime | None:
    for _ in range(LEVELS):
        folders = storage.list_folders(bucket, prefix)
        if not folders:
            return None
        prefix = f"{prefix}{max(folders)}/"
    return max(storage.list_times(bucket, prefix).values(), default=None)
