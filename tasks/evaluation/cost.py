"""What an evaluation costs on AWS, by list price (tasks/prices.py): an estimate from above, without any free tier."""

from datetime import datetime

from tasks.evaluation.results import Result
from tasks.evaluation.summary import Cost
from tasks.prices import (
    GET_REQUEST,
    INSTANCE_HOUR,
    LAMBDA_GB_SECOND,
    LAMBDA_REQUEST,
    PUT_REQUEST,
    STATE_TRANSITION,
)

# Of the largest function; infrastructure/workflow.yaml sets it.
FUNCTION_GB = 0.5
FUNCTIONS = 3
# Five states on the way to a decision; AWS's example of the price counts start and end as well.
TRANSITIONS = 7

# Of classifyBatch.
BATCH_FUNCTION_GB = 0.5
# A child execution: one in the parent, its only state, start and end.
BATCH_TRANSITIONS = 4
LISTED_KEYS = 1000


def cost(results: list[Result], instance_type: str, instance_count: int) -> Cost:
    """US dollars of all executions of these results.

    Taken from above: each execution is counted with the whole way, and with a function that runs as long as it did. The
    endpoint is counted from the first start to the last end, although it is paid for as long as it stands; None if
    its instance type has no price here. Retries within an execution are not counted.
    """
    spans = [span for row in results for span in _spans(row)]
    seconds = sum((end - start).total_seconds() for start, end in spans)
    transitions = len(spans) * TRANSITIONS * STATE_TRANSITION
    functions = len(spans) * FUNCTIONS * LAMBDA_REQUEST + seconds * FUNCTION_GB * LAMBDA_GB_SECOND
    hour = INSTANCE_HOUR.get(instance_type)
    endpoint: float | None = 0.0 if spans else None
    if spans:
        hours = (max(end for _, end in spans) - min(start for start, _ in spans)).total_seconds() / 3600
        endpoint = None if hour is None else hours * hour * instance_count
    return Cost(
        state_transitions=round(transitions, 6),
        functions=round(functions, 6),
        endpoint=None if endpoint is None else round(endpoint, 6),
        total=None if endpoint is None else round(transitions + functions + endpoint, 6),
    )


def bulk_cost(
    images: int,
    batches: int,
    function_seconds: float,
    elapsed_seconds: float | None,
    instance_type: str,
    instance_count: int,
) -> Cost:
    """US dollars of a bulk run. function_seconds: of all batches together. elapsed_seconds: of the endpoint's use.

    Counted: a read of S3 for each image, three requests a batch (its part is looked for, written and read), and
    listings of images and parts. Not counted: the capture files that the endpoint writes, and retries.
    """
    transitions = batches * BATCH_TRANSITIONS * STATE_TRANSITION
    functions = batches * LAMBDA_REQUEST + function_seconds * BATCH_FUNCTION_GB * LAMBDA_GB_SECOND
    listings = (images + batches) / LISTED_KEYS + 2
    requests = (images + 2 * batches) * GET_REQUEST + (batches + listings) * PUT_REQUEST
    hour = INSTANCE_HOUR.get(instance_type)
    endpoint = None if hour is None or elapsed_seconds is None else elapsed_seconds / 3600 * hour * instance_count
    total = None if endpoint is None else transitions + functions + requests + endpoint
    return Cost(
        state_transitions=round(transitions, 6),
        functions=round(functions, 6),
        endpoint=None if endpoint is None else round(endpoint, 6),
        total=None if total is None else round(total, 6),
        requests=round(requests, 6),
    )


def _spans(row: Result) -> list[tuple[datetime, datetime]]:
    """Start and end of each of an image's executions."""
    return [
        (datetime.fromisoformat(each.started), datetime.fromisoformat(each.stopped))
        for each in (row, *row.previous_attempts)
        if each.started and each.stopped
    ]
