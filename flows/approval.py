"""A person's decision about a model version: a form in the Prefect UI that the flow run waits for."""

from prefect import pause_flow_run, suspend_flow_run
from prefect.context import FlowRunContext
from prefect.input import RunInput
from prefect.logging import get_run_logger

from settings import settings
from tasks.gate import AWAITS
from tasks.registry import APPROVED, NO_REASON, PENDING, REJECTED, ModelVersion, decide, look_again

POLL_SECONDS = 5


class Approval(RunInput):
    """The form."""

    approve: bool
    reason: str = ""


def ask_a_person(version: ModelVersion) -> ModelVersion:
    """Waits for the form and writes what it says into the registry.

    A deployment's flow run is suspended: its process ends, and a new one goes on from there. A subflow, or a flow
    without a deployment, can only be paused. A decision that was meanwhile made in the registry itself stands.
    """
    context = FlowRunContext.get()
    assert context is not None and context.flow_run is not None, "only within a flow"
    get_run_logger().info("%s %s. Resume this flow run with a decision", version.name, version.reason)
    form = Approval.with_initial_data(description=f"## {version.name}\n\n{version.reason}", approve=False)
    seconds, key = settings().approval_max_seconds, version.name
    if context.flow_run.deployment_id and not context.flow_run.parent_task_run_id:
        answer = suspend_flow_run(wait_for_input=form, timeout=seconds, key=key)
    else:
        answer = pause_flow_run(wait_for_input=form, timeout=seconds, poll_interval=POLL_SECONDS, key=key)
    current = look_again(version)
    if current.status != PENDING:
        return current
    verb = "approved" if answer.approve else "rejected"
    advice = version.reason.removeprefix(AWAITS)
    reason = f"{verb} by a person: {answer.reason or NO_REASON} ({advice})"
    return decide(version, APPROVED if answer.approve else REJECTED, reason)
