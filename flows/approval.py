"""A person's decision about a model version: a form in the Prefect UI that the flow run waits for."""

from itertools import count
from typing import Literal

from prefect import pause_flow_run, suspend_flow_run
from prefect.context import FlowRunContext
from prefect.input import RunInput
from prefect.logging import get_run_logger

from settings import settings
from tasks.model import gate, registry
from tasks.model.registry import ModelVersion

POLL_SECONDS = 5


class Approval(RunInput):
    """The form. It decides nothing until a person changes the decision."""

    decision: Literal["undecided", "approve", "reject"] = "undecided"
    reason: str = ""


def ask_a_person(version: ModelVersion) -> ModelVersion:
    """Waits for the form and writes what it says into the registry; asks again while it says nothing.

    A deployment's flow run is suspended: its process ends, and a new one goes on from there. A subflow, or a flow
    without a deployment, can only be paused. A decision that was meanwhile made in the registry itself stands.
    """
    logger = get_run_logger()
    for asked in count(1):
        logger.info(
            "%s %s. Resume this flow run with a decision, or run the decide-model deployment with version=%d",
            *(version.name, version.reason, version.number),
        )
        answer = _wait_for_form(version, key=version.name if asked == 1 else f"{version.name}-{asked}")
        version = registry.look_again(version)
        if version.status != registry.PENDING:
            break
        if answer.decision != "undecided":
            return record_decision(version, answer.decision == "approve", answer.reason)
        logger.warning("the form was sent without a decision")
    return version


def record_decision(version: ModelVersion, approve: bool, reason: str) -> ModelVersion:
    """Writes a person's decision into the registry, with what the gate had advised."""
    verb, advice = "approved" if approve else "rejected", version.reason.removeprefix(gate.AWAITS)
    status = registry.APPROVED if approve else registry.REJECTED
    return registry.decide(version, status, f"{verb} by a person: {reason or registry.NO_REASON} ({advice})")


def _wait_for_form(version: ModelVersion, key: str) -> Approval:
    """key: names this question, so that a process that goes on after it finds its answer."""
    context = FlowRunContext.get()
    assert context is not None and context.flow_run is not None, "only within a flow"
    form = Approval.with_initial_data(description=f"## {version.name}\n\n{version.reason}", decision="undecided")
    seconds = settings().approval_max_seconds
    if context.flow_run.deployment_id and not context.flow_run.parent_task_run_id:
        answer = suspend_flow_run(wait_for_input=form, timeout=seconds, key=key)
    else:
        answer = pause_flow_run(wait_for_input=form, timeout=seconds, poll_interval=POLL_SECONDS, key=key)
    return answer
