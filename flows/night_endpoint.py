"""An endpoint that stands for the length of an evaluation only: SCONES_ENDPOINT_SCHEDULE=night."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from prefect.logging import get_run_logger
from prefect.logging.loggers import flow_run_logger

from settings import settings
from tasks.installation import Installation, ServingEndpoint
from tasks.model import registry
from tasks.run import Run
from tasks.serving import endpoint, rollout


@contextmanager
def endpoint_of_the_night(installed: Installation, run: Run) -> Iterator[ServingEndpoint]:
    """The endpoint that serves; by the setting one that is made for this, and deleted when the block is left.

    A process that dies in the block leaves it standing, for the one that goes on with the run. The caller holds the
    lock on the endpoint.
    """
    if settings().endpoint_schedule == "always":
        yield endpoint.serving(installed)
        return
    logger = get_run_logger()
    try:
        # A rollout leaves an endpoint alone that serves the version already.
        yield rollout.roll_out(installed, registry.approved_model(), (run.id, run.id))
        wait = settings().endpoint_linger_seconds
        logger.info("endpoint %s stands for %d s more, for capture records that come late", installed.endpoint, wait)
        time.sleep(wait)
    finally:
        if endpoint.delete_endpoint(installed.endpoint):
            logger.info("deleted endpoint %s until the next evaluation", installed.endpoint)


def remove_endpoint_of_the_night(flow: Any, flow_run: Any, state: Any) -> None:
    """Hook: deletes it if the run was cancelled and its process could not."""
    if settings().endpoint_schedule == "night" and endpoint.delete_endpoint(settings().endpoint):
        flow_run_logger(flow_run, flow).info("deleted endpoint %s until the next evaluation", settings().endpoint)
