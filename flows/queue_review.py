"""Queues images of bulk runs for a person: all that were not accepted, and a random share of those that were."""

from datetime import datetime
from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.logging import get_run_logger
from prefect.states import Completed

from flows.ending import BACKLOG, endings
from flows.identity import run_name
from settings import settings
from tasks.aws.stacks import installation
from tasks.review import queue, training_set
from tasks.review.announcement import announce, announce_backlog
from tasks.review.labels import Review, counted
from tasks.review.queue import Queued
from tasks.run import utc_now


@flow(name="queue-review", flow_run_name=run_name, log_prints=True, **endings())
def queue_review(
    date: str | None = None,
    run: str | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> Queued:
    """date and run (12 hex digits) of a bulk run; by default the newest one. Or since, and until (by default now): all
    that ended meanwhile.

    Twice the same changes nothing; what a day's limit left out comes on another day. Says as events how many answers
    no training has seen, from which prefect.yaml starts one if they are enough, and that too many images wait.
    """
    installed, chosen, logger = installation(), settings(), get_run_logger()
    queued = queue.queue(
        installed.bucket, queue.bulk_runs(installed.bucket, run, date, since, until), chosen, logger.info
    )
    logger.info(queue.told(queued))
    create_markdown_artifact(queue.markdown(queued, installed.bucket), key="queue-review")
    review = Review()
    review.refresh(installed.bucket)
    outcomes = review.outcomes(chosen, utc_now())
    standing = training_set.published(installed.bucket)
    trained = training_set.trained_on(standing)
    new = training_set.new_labels(standing, training_set.uses(review, outcomes, chosen, installed.classes, trained))
    told = announce(new, training_set.labels_needed(installed.bucket, chosen))
    logger.info("%d reviewed images that no training has seen; %d start one", told.new, told.needed)
    waiting = counted(outcomes)["open"]
    if announce_backlog(waiting, chosen.review_backlog) is None:
        return queued
    message = f"{waiting} images wait for a person, more than {chosen.review_backlog}; `make review` serves the page"
    logger.warning(message)
    state: Any = Completed(name=BACKLOG, message=message, data=queued)
    returned: Queued = state  # callers get the data of a state
    return returned


if __name__ == "__main__":
    queue_review()
