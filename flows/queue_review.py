"""Queues images of bulk runs for a person: all that were not accepted, and a random share of those that were."""

from datetime import datetime

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.logging import get_run_logger

from flows.ending import endings
from flows.identity import run_name
from settings import settings
from tasks.aws.stacks import installation
from tasks.review import queue
from tasks.review.queue import Queued


@flow(name="queue-review", flow_run_name=run_name, log_prints=True, **endings())
def queue_review(
    date: str | None = None,
    run: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> Queued:
    """date and run (12 hex digits) of a bulk run; by default the newest one. Or since, and until (by default now): all
    that ended meanwhile.

    Twice the same changes nothing; what a day's limit left out comes on another day.
    """
    installed, logger = installation(), get_run_logger()
    queued = queue.queue(
        installed.bucket, queue.bulk_runs(installed.bucket, run, date, since, until), settings(), logger.info
    )
    logger.info(queue.told(queued))
    create_markdown_artifact(queue.markdown(queued, installed.bucket), key="queue-review")
    return queued


if __name__ == "__main__":
    queue_review()
