"""Who is told of what: a message through the notification block scones-notify for each run that ended badly, once.

The state that somebody was told of is a label of the flow run, so that it is remembered wherever this process runs.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import prefect.blocks.notifications  # noqa: F401  # so that Prefect knows these types
from prefect.blocks.core import Block
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import BlockDocument, FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.logging import get_logger
from prefect.settings import get_current_settings

from flows.ending import ALERTS, BACKLOG, VERSION_NAMES
from watch import recovery
from watch.pool import BAD, Pool

BLOCK = "scones-notify"
TOLD = "scones.told"
# Flows whose runs a person watches anyway.
WATCHED_BY_HAND = frozenset({"preflight", "decide-model", "generate-traffic", "teardown"})
# A run that nobody has begun for so long after its time.
LATE_SECONDS = 300
# A model that waits for a person's decision.
UNDECIDED_SECONDS = 86_400
# A bad end that is older is not told any more, as after a week without a server.
OLDEST_SECONDS = 2 * 86_400
NIGHT = "nightly-evaluation"
NIGHT_HOURS = 26
logger = get_logger("watch")


class NotABlockForMessages(Exception):
    """The block scones-notify is of a type that can't send messages; the text says what to do."""


@dataclass(frozen=True)
class Notice:
    """A message. mark: what it is about, so that it is sent once: the value of the label TOLD of `run`."""

    run: FlowRun
    mark: str
    subject: str
    body: str


def tell(prefect: SyncPrefectClient, pool: Pool, now: datetime) -> None:
    """Sends what nobody was told yet. What could not be sent is tried again at the next look."""
    try:
        document = find_block(prefect)
    except NotABlockForMessages as error:
        logger.warning("nobody is told of anything: %s", error)
        return
    if document is None:
        return
    notices = [notice for run in pool.runs if (notice := notice_of(prefect, pool, run, now))]
    notices += [notice for notice in [missing_night(prefect, pool, now)] if notice]
    for notice in notices:
        if notice.run.labels.get(_label(notice)) == notice.mark:
            continue
        try:
            send(document, notice.subject, f"{notice.body}\n\n{_address(notice.run)}")
        except Exception as error:  # whatever a service outside, or a block of somebody's own, raises
            logger.warning("%s could not be sent through the block %s: %s", notice.subject, BLOCK, error)
            return
        prefect.update_flow_run_labels(notice.run.id, {_label(notice): notice.mark})
        logger.info("told: %s", notice.subject)


def notice_of(prefect: SyncPrefectClient, pool: Pool, run: FlowRun, now: datetime) -> Notice | None:
    """Returns what is to be said of a run in its present state; None if there is nothing."""
    state, flow = run.state, pool.flow_of(run)
    if state is None or run.deployment_id is None or flow in WATCHED_BY_HAND:
        return None
    seconds = (now - state.timestamp).total_seconds()
    name, message = state.name or state.type.value.capitalize(), state.message or ""
    if state.type in BAD:
        if seconds > OLDEST_SECONDS or recovery.is_resumed(prefect, pool, run):
            return None
        return _notice(run, f"{name}: {flow}", f"{run.name}\n{message}")
    if name in (ALERTS, BACKLOG, *VERSION_NAMES.values()) and seconds <= OLDEST_SECONDS:
        return _notice(run, f"{name}: {flow}", f"{run.name}\n{message}")
    if name == "Late" and run.expected_start_time and now - run.expected_start_time > timedelta(seconds=LATE_SECONDS):
        return _notice(run, f"Late: {flow}", f"{run.name} should have begun. `make status` tells what is down.")
    if state.type == StateType.PAUSED and seconds > UNDECIDED_SECONDS:
        return _notice(run, f"A model has waited for a decision for a day: {flow}", f"{run.name}\n{message}")
    return None


def _notice(run: FlowRun, subject: str, body: str) -> Notice:
    return Notice(run, str(run.state_id), subject, body)


def missing_night(prefect: SyncPrefectClient, pool: Pool, now: datetime) -> Notice | None:
    """Returns a notice if the nightly schedule is active and no evaluation has ended in 26 hours.

    It is about the last evaluation that has ended; without any, late runs are told.
    """
    limit: Any = now - timedelta(hours=NIGHT_HOURS)
    flow = FlowFilter(name=FlowFilterName(any_=[NIGHT]))
    of_pool = WorkPoolFilter(name=WorkPoolFilterName(any_=[pool.name]))
    deployments = prefect.read_deployments(flow_filter=flow, work_pool_filter=of_pool)
    schedules = [schedule for deployment in deployments for schedule in deployment.schedules if schedule.active]
    if not any(schedule.updated and schedule.updated < limit for schedule in schedules):
        return None
    ended = FlowRunFilterStateType(any_=[StateType.COMPLETED, *BAD])
    newest = prefect.read_flow_runs(
        flow_filter=flow,
        work_pool_filter=of_pool,
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=ended)),
        sort=FlowRunSort.END_TIME_DESC,
        limit=1,
    )
    if not newest or newest[0].end_time is None or newest[0].end_time > limit:
        return None
    return Notice(
        newest[0],
        f"none after {newest[0].end_time:%Y-%m-%dT%H:%M}",
        f"No evaluation has ended in {NIGHT_HOURS} hours",
        f"The last one was {newest[0].name}. `make status` tells what is down, and what waits.",
    )


def _label(notice: Notice) -> str:
    return TOLD if notice.mark == str(notice.run.state_id) else f"{TOLD}.missing"


def find_block(prefect: SyncPrefectClient) -> BlockDocument | None:
    """Returns the block that messages are sent through; None if nobody has made it.

    Raises NotABlockForMessages if it is of a type that sends none.
    """
    found = [block for block in prefect.read_block_documents() if block.name == BLOCK]
    if not found:
        return None
    kind, schema = found[0].block_type, found[0].block_schema
    if schema is None or "notify" not in schema.capabilities:
        raise NotABlockForMessages(
            f"the block {BLOCK} is of the type {kind.name if kind else 'unknown'}, which sends no messages: delete it "
            "and make one of a type that does, such as Custom Webhook, Slack Webhook or Email (docs/operating.md)"
        )
    return found[0]


def send(document: BlockDocument, subject: str, body: str) -> None:
    """Sends a message; raises what the block raises if it can't."""
    assert document.block_type is not None, "find_block has looked"
    block: Any = Block.load(f"{document.block_type.slug}/{document.name}")
    with block.raise_on_failure():
        block.notify(body, subject)


def _address(run: FlowRun) -> str:
    ui = get_current_settings().ui_url or ""
    return f"{ui}/runs/flow-run/{run.id}" if ui else f"flow run {run.id}"
