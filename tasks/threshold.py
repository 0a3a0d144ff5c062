"""The confidence threshold of the workflow stack, where it is to be the one that the served model recommends."""

from prefect import task
from prefect.logging import get_run_logger

from settings import settings
from tasks.infrastructure import Installation, change_threshold
from tasks.registry import ModelVersion


@task(task_run_name="adopt the threshold of {version.name}")
def adopt_threshold(installation: Installation, version: ModelVersion) -> float:
    """Gives the stack the version's recommended threshold if the setting says so; returns the stack's."""
    logger = get_run_logger()
    if settings().threshold != "recommended":
        return installation.threshold
    if version.threshold is None:
        logger.warning("%s recommends no threshold: the stack keeps %g", version.name, installation.threshold)
        return installation.threshold
    if version.threshold != installation.threshold:
        change_threshold(version.threshold, logger.info)
    return version.threshold
