"""One at a time on an endpoint: deployments, evaluations and removal wait for each other, across flow runs."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from prefect.client.orchestration import get_client
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
from prefect.logging import get_run_logger

# How long the endpoint stays taken when a flow run is killed.
LEASE_SECONDS = 60
# Prefect's server still records the start of the run. On SQLite a limit that is asked for meanwhile is refused as often
# as not, and Prefect's client then waits for two seconds.
SETTLE_SECONDS = 0.15


@contextmanager
def exclusive(endpoint: str) -> Iterator[None]:
    """Waits until no other flow run works on the endpoint and holds it until the block is left.

    It is held by a global concurrency limit of the Prefect server, which is made if there is none.
    """
    limit = f"endpoint-{endpoint}"
    time.sleep(SETTLE_SECONDS)
    with get_client(sync_client=True) as client:
        try:
            taken = client.read_global_concurrency_limit_by_name(limit).active_slots
        except ObjectNotFound:
            taken = 0
            with suppress(ObjectAlreadyExists):  # another flow run made it just now
                client.upsert_global_concurrency_limit_by_name(limit, 1)
    if taken:
        get_run_logger().info("another flow run works on endpoint %s: waiting for it", endpoint)
    with concurrency(limit, lease_duration=LEASE_SECONDS, strict=True, raise_on_lease_renewal_failure=False):
        yield
