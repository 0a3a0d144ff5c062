"""The identity that a flow's work takes from its flow run, so that a retry finds what the first try began."""

from datetime import UTC
from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import State, StateType
from prefect.context import FlowRunContext
from prefect.runtime import flow_run
from prefect.states import Crashed

from settings import EVALUATIONS_PREFIX, run_id
from tasks.errors import SconesError
from tasks.run import Run

MOST_CRASHES = 5


class CrashedTooOften(SconesError):
    """The flow run dies whatever is done; the message says what to do."""


def this_run(root: str = EVALUATIONS_PREFIX) -> Run:
    """RUN: see settings.run_id. DATE: the UTC date of the flow run's original expected start.

    root: where runs of this kind are kept.
    """
    context = FlowRunContext.get()
    assert context is not None and context.flow_run is not None, "only within a flow"
    return run_of(context.flow_run, root)


def run_of(flow_run: Any, root: str = EVALUATIONS_PREFIX) -> Run:
    """The same for a flow run as hooks get it."""
    return Run(run_id(flow_run.id), flow_run.expected_start_time.astimezone(UTC).date().isoformat(), root)


def first_run() -> str:
    """The RUN that a deployment, or a person, began: this one's, unless another flow called it."""
    return run_id(flow_run.root_flow_run_id)


def close_interrupted() -> None:
    """Marks as Crashed the task runs that an earlier process of this flow run left Running.

    Raises CrashedTooOften if the run dies each time that it is started again.
    """
    if (flow_run.run_count or 0) < 2:
        return
    mine = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run.id]))
    running = TaskRunFilter(state=TaskRunFilterState(type=TaskRunFilterStateType(any_=[StateType.RUNNING])))
    with get_client(sync_client=True) as prefect:
        crashes = sum(state.is_crashed() for state in prefect.read_flow_run_states(flow_run.id))
        if crashes > MOST_CRASHES:
            raise CrashedTooOften(
                f"the run crashed {crashes} times", "look at the worker's log for why, then start a new run"
            )
        for task_run in prefect.read_task_runs(flow_run_filter=mine, task_run_filter=running):
            state: State[Any] = Crashed(message="Its process died; the flow run goes on in another one.")
            prefect.set_task_run_state(task_run.id, state, force=True)


def run_name() -> str:
    """A flow run's name in the run history: its date and the RUN that results, report and inference ids carry."""
    run = Run(run_id(flow_run.id), flow_run.scheduled_start_time.astimezone(UTC).date().isoformat())
    return f"{flow_run.flow_name} {run.date} {run.id}"
