"""Serves an approved model version from the endpoint, with data capture, or leaves what served before."""

from typing import Any

from prefect import flow
from prefect.logging.loggers import flow_run_logger

from flows.ending import endings
from flows.holding import holding
from flows.identity import first_run, run_name, this_run
from settings import run_id
from tasks.aws.stacks import installation
from tasks.installation import ServingEndpoint
from tasks.model import registry
from tasks.serving import endpoint, models, rollout, threshold


def undo(flow: Any, flow_run: Any, state: Any) -> None:
    """Hook: goes back to what served before if the flow run was killed in the middle of a rollout."""
    rollout.undo_interrupted(installation(), flow_run_logger(flow_run, flow).warning, run_id(flow_run.id))


@flow(
    name="deploy-endpoint",
    flow_run_name=run_name,
    log_prints=True,
    **endings(on_crashed=[undo], on_cancellation=[undo]),
)
def deploy_endpoint(version: int | None = None) -> ServingEndpoint:
    """version: number of a model version; by default the newest approved one.

    Leaves the endpoint alone if it serves that version already, and waits while an evaluation runs. The threshold of
    the workflow is applied here too, and nowhere else: SCONES_THRESHOLD, a number, "recommended" or
    "every-class".
    """
    installed = installation()
    with holding(installed.bucket, installed.endpoint):
        chosen = registry.approved_model(version)
        try:
            served = rollout.roll_out(installed, chosen, (this_run().id, first_run()))
            threshold.apply_threshold(installed, chosen, this_run().id)
            models.prune(installed)
        finally:
            registry.publish(endpoint.served_versions(installed.endpoint))
    return served


if __name__ == "__main__":
    deploy_endpoint()
