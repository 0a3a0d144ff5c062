"""A person's decision about a model version from a shell: writes it, and has the flow runs go on that wait for it."""

from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.logging import get_run_logger

from flows.approval import record_decision
from flows.ending import endings
from flows.identity import run_name
from tasks.aws.stacks import installation
from tasks.model import registry
from tasks.model.registry import PENDING
from tasks.serving import endpoint

WAITING_FLOWS = ["train-model", "pipeline"]


@flow(name="decide-model", flow_run_name=run_name, log_prints=True, **endings())
def decide_model(version: int, approve: bool | None = None, reason: str = "") -> str:
    """version: number of a version that awaits a decision. approve: true or false, with a reason for the registry.

    Without approve a decision stands that was made elsewhere, such as with the AWS CLI, and runs that wait go on.
    Returns the version's status.
    """
    logger = get_run_logger()
    found = registry.find_version(version)
    if found.status == PENDING and approve is not None:
        found = record_decision(found, approve, reason)
    elif approve is not None:
        logger.warning("%s is %s already: %s", found.name, found.status, found.reason)
    logger.info("%s is %s: %s", found.name, found.status, found.reason)
    if found.status != PENDING:
        _resume_waiting(found.name)
    registry.publish(endpoint.served_versions(installation().endpoint))
    return found.status


def _resume_waiting(version: str) -> None:
    """Resumes the flow runs that wait for a decision about this version; each finds it in the registry."""
    paused = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.PAUSED])))
    with get_client(sync_client=True) as prefect:
        named = FlowFilter(name=FlowFilterName(any_=WAITING_FLOWS))
        for run in prefect.read_flow_runs(flow_filter=named, flow_run_filter=paused):
            key = run.state.state_details.pause_key if run.state else None
            if key == version or (key or "").startswith(f"{version}-"):
                prefect.resume_flow_run(run.id, run_input={"decision": "undecided", "reason": ""})
                get_run_logger().info("%s goes on", run.name)


if __name__ == "__main__":
    decide_model(1)
