"""Starts the deployments that follow a run, such as the report of an evaluation."""

from typing import Any

import httpx
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound
from prefect.logging import get_run_logger
from prefect.runtime import deployment, flow_run
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_random_exponential

# A server that is being restarted is waited for.
SERVER_SECONDS = 300


def start(flow: str, parameters: dict[str, Any], key: str) -> None:
    """Starts the deployment of a flow that has the same name as this run's own, such as confidence-report/local.

    key: names what is followed; Prefect creates one run for it, however often this is called. A flow run without a
    deployment, such as a part of the pipeline, starts nothing.
    """
    if not deployment.id or flow_run.get_parent_flow_run_id():
        return
    name, logger = f"{flow}/{deployment.name}", get_run_logger()
    retrying = Retrying(
        retry=retry_if_exception_type(httpx.TransportError),
        wait=wait_random_exponential(multiplier=0.5, max=10),
        stop=stop_after_delay(SERVER_SECONDS),
        reraise=True,
    )

    def create() -> None:
        with get_client(sync_client=True) as prefect:
            found = prefect.read_deployment_by_name(name)
            prefect.create_flow_run_from_deployment(found.id, parameters=parameters, idempotency_key=key)

    try:
        retrying(create)
    except ObjectNotFound:
        logger.warning("there is no deployment %s, so nothing follows", name)
