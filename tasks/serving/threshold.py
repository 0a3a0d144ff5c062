"""The confidence threshold of the workflow stack. deploy-endpoint is the one place that changes it, with the model."""

from prefect import task
from prefect.logging import get_run_logger

from settings import THRESHOLDS_PREFIX, settings
from tasks.aws import storage
from tasks.aws.stacks import change_threshold
from tasks.installation import Installation
from tasks.model.registry import ModelVersion
from tasks.records import Record
from tasks.run import iso, utc_now


class ThresholdChange(Record, frozen=True, kw_only=True):
    """thresholds/TIME.json. time: when, ISO 8601 in UTC. run: of the flow run that changed it."""

    time: str
    threshold: float
    before: float
    reason: str
    run: str


@task(task_run_name="apply the threshold with {version.name}")
def apply_threshold(installation: Installation, version: ModelVersion, run: str) -> float:
    """Gives the stack the threshold that the setting asks for, and records the change; returns the stack's.

    The setting is a number, or "recommended" or "every-class" for one of the version's own; without it the stack keeps
    what it has.
    """
    logger = get_run_logger()
    wanted, reason = _wanted(version)
    if wanted is None:
        if reason:
            logger.warning("%s: the threshold stays at %g", reason, installation.threshold)
        return installation.threshold
    if wanted != installation.threshold:
        change_threshold(wanted, logger.info)
        now = iso(utc_now())
        change = ThresholdChange(time=now, threshold=wanted, before=installation.threshold, reason=reason, run=run)
        storage.create_json(installation.bucket, f"{THRESHOLDS_PREFIX}{now}.json", change.to_json())
    return wanted


def threshold_changes(bucket: str) -> list[ThresholdChange]:
    """Every recorded change, the first one first."""
    keys = sorted(storage.list_etags(bucket, THRESHOLDS_PREFIX))
    return [change for key in keys if (change := storage.get_record(bucket, key, ThresholdChange)) is not None]


def _wanted(version: ModelVersion) -> tuple[float | None, str]:
    """The threshold, or None to keep the stack's, and why."""
    chosen = settings().threshold
    if chosen is None:
        return None, ""
    if not isinstance(chosen, str):
        return chosen, "SCONES_THRESHOLD"
    if chosen == "recommended":
        value, of = version.threshold, ""
    else:
        value, of = version.threshold_every_class, " for every class"
    if value is None:
        return None, f"{version.name} recommends no threshold{of}"
    return value, f"recommended{of} by {version.name}"
