"""Removes what costs money: the endpoint."""

from prefect import flow
from prefect.logging import get_run_logger

from flows.identity import run_name
from tasks.endpoint import delete_endpoint
from tasks.infrastructure import installation


@flow(name="teardown", flow_run_name=run_name, log_prints=True)
def teardown() -> None:
    """Deletes the endpoint, which is billed by the hour. Bucket, functions and state machine cost what is stored."""
    logger = get_run_logger()
    name = installation().endpoint
    if delete_endpoint(name):
        logger.info("deleted endpoint %s; deploy-endpoint brings it back", name)
    else:
        logger.info("there is no endpoint %s", name)


if __name__ == "__main__":
    teardown()
