"""Flow runs that died: which they are, and which of them go on where they were."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas import OrchestrationResult
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.responses import SetStateStatus
from prefect.events.filters import EventFilter, EventNameFilter, EventOccurredFilter, EventResourceFilter
from prefect.logging import get_logger
from prefect.states import Cancelled, Crashed, Scheduled

from flows.ending import SEPARATOR
from watch.pool import Pool

# A running flow run sends a heartbeat every 30 seconds.
SILENT_SECONDS = 75
# From being handed to a worker until it runs: a process starts in seconds, a container in minutes.
PENDING_SECONDS = {"process": 120}
PENDING_SECONDS_ELSEWHERE = 600
# How often a run is started again; then a person has to look.
MOST_RESUMPTIONS = 3
# They find by their run's id what they began. deploy-endpoint is undone instead, by its own hook.
RESUMABLE = frozenset({"nightly-evaluation", "classify-images", "confidence-report", "queue-review", "train-model"})
HEARTBEAT = "prefect.flow-run.heartbeat"
logger = get_logger("watch")


def recover(prefect: SyncPrefectClient, pool: Pool, heard_seconds: float, now: datetime) -> bool:
    """Ends the runs that died, and starts those again that can go on. Returns whether there were any."""
    found = list(dead(prefect, pool, heard_seconds, now))
    for run, reason in found:
        end(prefect, run, reason)
    if found:
        pool = Pool.read(prefect, pool.name)
    crashed = [run for run in pool.runs if is_resumed(prefect, pool, run)]
    for run in crashed:
        resume(prefect, run)
    return bool(found or crashed)


def dead(prefect: SyncPrefectClient, pool: Pool, heard_seconds: float, now: datetime) -> Iterator[tuple[FlowRun, str]]:
    """Yields runs that are not over although nothing works on them any more, with how that shows.

    heard_seconds: for how long the server has answered. Before, it could not hear of runs that are well.
    """
    pending = PENDING_SECONDS.get(pool.kind, PENDING_SECONDS_ELSEWHERE)
    for run in pool.runs:
        since: Any = run.state.timestamp if run.state else None
        if since is None or run.deployment_id is None:
            continue
        seconds = (now - since).total_seconds()
        if run.state_type == StateType.PENDING and seconds > pending:
            yield run, f"The flow run was handed to a worker and did not start within {pending} s."
        if run.state_type in (StateType.RUNNING, StateType.CANCELLING):
            waited = min(seconds, heard_seconds) > SILENT_SECONDS
            if waited and not _heard_of(prefect, run, now):
                yield run, f"The flow run was not heard of for {SILENT_SECONDS} s. Its worker or its machine died."


def _heard_of(prefect: SyncPrefectClient, run: FlowRun, now: datetime) -> bool:
    since: Any = now - timedelta(seconds=SILENT_SECONDS)
    heartbeats = EventFilter(
        event=EventNameFilter(name=[HEARTBEAT]),
        resource=EventResourceFilter(id=[f"prefect.flow-run.{run.id}"]),
        occurred=EventOccurredFilter(since=since),
    )
    return bool(prefect.read_events(heartbeats, limit=1).events)


def end(prefect: SyncPrefectClient, run: FlowRun, reason: str) -> None:
    """Ends a dead run as Crashed, or as Cancelled if that is what a person wanted."""
    wanted = run.state_type == StateType.CANCELLING
    state: State[Any] = Cancelled(message=reason) if wanted else Crashed(message=reason)
    if _accepted(prefect.set_flow_run_state(run.id, state)):
        logger.warning("%s: %s", run.name, reason)


def is_resumed(prefect: SyncPrefectClient, pool: Pool, run: FlowRun) -> bool:
    """Returns whether a run has crashed, and will go on without a person."""
    if run.state_type != StateType.CRASHED or run.deployment_id is None or pool.flow_of(run) not in RESUMABLE:
        return False
    return _crashes(prefect, run) <= MOST_RESUMPTIONS


def resume(prefect: SyncPrefectClient, run: FlowRun) -> None:
    """Has a worker start the run again."""
    count = _crashes(prefect, run)
    message = f"The flow run crashed and goes on where it was ({count} of {MOST_RESUMPTIONS} times)."
    if _accepted(prefect.set_flow_run_state(run.id, Scheduled(name="AwaitingRetry", message=message))):
        plain = run.name.split(SEPARATOR)[0]
        prefect.update_flow_run(run.id, name=f"{plain}{SEPARATOR}goes on")
        logger.info("%s goes on", plain)


def _crashes(prefect: SyncPrefectClient, run: FlowRun) -> int:
    return sum(state.is_crashed() for state in prefect.read_flow_run_states(run.id))


def _accepted(result: OrchestrationResult[Any]) -> bool:
    """Returns False if the server refused because the run's state had changed meanwhile."""
    return result.status == SetStateStatus.ACCEPT
