"""Holds an endpoint, or the training, for the present flow run, whose name says so while it waits for its turn."""

from collections.abc import Iterator
from contextlib import contextmanager

from prefect.context import FlowRunContext
from prefect.logging import get_run_logger

from flows.ending import say
from tasks.exclusive import Hold, Owner, exclusive


@contextmanager
def holding(bucket: str | None, name: str) -> Iterator[None]:
    """Waits for the hold on `name` and keeps it until the block is left. Without a bucket there is nothing to hold."""
    if bucket is None:
        yield
        return
    context = FlowRunContext.get()
    assert context is not None and context.flow_run is not None, "only within a flow"
    run = context.flow_run

    def waiting(hold: Hold | None) -> None:
        say(run, f"waits for {name}, held by {hold.owner.split(' | ')[0]}" if hold else "")

    with exclusive(bucket, name, Owner(str(run.id), run.name), get_run_logger().info, waiting):
        yield
