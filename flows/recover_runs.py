"""Goes on with flow runs that died: looks at their states in the Prefect server, not at events, which can get lost.

Triggers of prefect.yaml start it when a run has crashed or has not been heard of for a while. It may run at any time
and as often as one likes: a run that has ended, or that is alive, is left alone.
"""

from datetime import UTC, datetime, timedelta
from typing import Any

from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas import OrchestrationResult
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.responses import SetStateStatus
from prefect.events.filters import EventFilter, EventNameFilter, EventResourceFilter
from prefect.logging import get_run_logger
from prefect.states import Crashed, Scheduled

from flows.ending import endings
from flows.identity import run_name

# A running flow run sends a heartbeat every 30 seconds.
SILENT_SECONDS = 75
# From being handed to a worker until it runs: a process starts in seconds, a container in minutes.
PENDING_SECONDS = 600
# How often a run is started again; then a person has to look.
MOST_RESUMPTIONS = 3
# What finds by its run's id what it began. deploy-endpoint is undone instead, by its own hook.
RESUMABLE = ["nightly-evaluation", "classify-images", "confidence-report", "train-model"]
# Older ones are history.
DAYS = 7


@flow(name="recover-runs", flow_run_name=run_name, log_prints=True, **endings())
def recover_runs() -> dict[str, list[str]]:
    """Returns names of flow runs: `crashed` are those marked as Crashed, `resumed` those started again."""
    now, logger = datetime.now(UTC), get_run_logger()
    done: dict[str, list[str]] = {"crashed": [], "resumed": []}
    with get_client(sync_client=True) as prefect:
        for run in _runs(prefect, [StateType.RUNNING, StateType.PENDING], now):
            reason = _dead(prefect, run, now)
            if reason and _accepted(prefect.set_flow_run_state(run.id, Crashed(message=reason))):
                done["crashed"].append(run.name)
        for run in _runs(prefect, [StateType.CRASHED], now, RESUMABLE):
            crashes = sum(state.is_crashed() for state in prefect.read_flow_run_states(run.id))
            if run.deployment_id is None:
                continue  # nobody can start it again
            if crashes > MOST_RESUMPTIONS:
                logger.warning("%s crashed %d times and is left for a person", run.name, crashes)
                continue
            message = f"The flow run crashed and goes on where it was ({crashes} of {MOST_RESUMPTIONS} times)."
            if _accepted(prefect.set_flow_run_state(run.id, Scheduled(name="AwaitingRetry", message=message))):
                done["resumed"].append(run.name)
    for what, names in done.items():
        for name in names:
            logger.info("%s: %s", what, name)
    return done


def _runs(
    prefect: SyncPrefectClient, states: list[StateType], now: datetime, flows: list[str] | None = None
) -> list[FlowRun]:
    """Flow runs in these states by the API, which a worker started or is to start, of these flows or of all."""
    found: list[FlowRun] = []
    since: Any = now - timedelta(days=DAYS)
    while True:
        page = prefect.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=flows)) if flows else None,
            flow_run_filter=FlowRunFilter(
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=states)),
                expected_start_time=FlowRunFilterExpectedStartTime(after_=since),
            ),
            limit=200,
            offset=len(found),
        )
        found += page
        if len(page) < 200:
            return found


def _accepted(result: OrchestrationResult[Any]) -> bool:
    """False if the server refused because the run's state had changed meanwhile."""
    return result.status == SetStateStatus.ACCEPT


def _dead(prefect: SyncPrefectClient, run: FlowRun, now: datetime) -> str | None:
    """Why a run that is not over is taken for dead; None if it is not, or if nothing can be said."""
    since: Any = run.state.timestamp if run.state else None
    if since is None or run.parent_task_run_id is not None:  # a subflow lives and dies with its parent
        return None
    if run.state_type == StateType.PENDING:
        silent = (now - since).total_seconds() > PENDING_SECONDS
        return f"The flow run was handed to a worker and did not start within {PENDING_SECONDS} s." if silent else None
    heartbeats = EventFilter(
        event=EventNameFilter(name=["prefect.flow-run.heartbeat"]),
        resource=EventResourceFilter(id=[f"prefect.flow-run.{run.id}"]),
    )
    heard = prefect.read_events(heartbeats, limit=1).events  # the latest
    # Workers are told to send them (PREFECT_FLOWS_HEARTBEAT_FREQUENCY); a process that somebody started may not.
    if not heard and run.deployment_id is None:
        return None
    if (now - max([since, *(event.occurred for event in heard)])).total_seconds() <= SILENT_SECONDS:
        return None
    return f"The flow run was not heard of for {SILENT_SECONDS} s. Its worker or its machine died."


if __name__ == "__main__":
    recover_runs()
