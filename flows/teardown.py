"""Removes what costs money: the endpoint, or the whole installation."""

from prefect import flow
from prefect.logging import get_run_logger

from flows.ending import endings
from flows.holding import holding
from flows.identity import run_name
from settings import settings
from tasks import teardown as removal


@flow(name="teardown", flow_run_name=run_name, log_prints=True, **endings())
def teardown(everything: bool = False, confirm: str | None = None) -> None:
    """By default deletes the endpoint, which is billed by the hour; deploy-endpoint brings it back.

    everything: also models, the bucket with all in it, and both stacks; confirm then has to be the installation's name.
    """
    get_run_logger().info(removal.costs())
    if everything:
        removal.confirm_everything(confirm)
    with holding(removal.standing_bucket(), settings().endpoint):
        removal.remove_endpoint()
        if everything:
            removal.stop_jobs()
            removal.remove_models()
    if everything:  # with the bucket that the hold was in
        removal.remove_stacks()


if __name__ == "__main__":
    teardown()
