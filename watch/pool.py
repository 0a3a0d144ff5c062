"""The flow runs of a work pool that something may have to be done about, as Prefect's API shows them."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Self
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterId,
    FlowRunFilter,
    FlowRunFilterEndTime,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateName,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort

from flows.ending import ALERTS, BACKLOG, VERSION_NAMES

# Older ones are history.
DAYS = 7
PAGE = 200
UNDER_WAY = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING, StateType.PAUSED]
BAD = [StateType.FAILED, StateType.CRASHED, StateType.CANCELLED]
# Names of states that somebody is told of although the runs completed, or have not begun.
TOLD_NAMES = [ALERTS, BACKLOG, *VERSION_NAMES.values(), "Late"]


@dataclass(frozen=True)
class Pool:
    """name, and kind such as process or ecs. runs: those under way and those that may have ended badly. flows: names of
    their flows by id.
    """

    name: str
    kind: str
    runs: list[FlowRun]
    flows: dict[UUID, str]

    @classmethod
    def read(cls, prefect: SyncPrefectClient, name: str) -> Self:
        """Raises ObjectNotFound if there is no such pool."""
        kind = prefect.read_work_pool(name).type
        since: Any = datetime.now(UTC) - timedelta(days=DAYS)
        recent = FlowRunFilterEndTime(after_=since)
        filters = [
            FlowRunFilter(
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=UNDER_WAY)),
                expected_start_time=FlowRunFilterExpectedStartTime(after_=since),
            ),
            FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=BAD)), end_time=recent),
            FlowRunFilter(
                state=FlowRunFilterState(name=FlowRunFilterStateName(any_=TOLD_NAMES)),
                expected_start_time=FlowRunFilterExpectedStartTime(after_=since),
            ),
        ]
        runs = {run.id: run for chosen in filters for run in _all(prefect, name, chosen)}
        return cls(name, kind, list(runs.values()), _flows(prefect, {run.flow_id for run in runs.values()}))

    def flow_of(self, run: FlowRun) -> str:
        return self.flows.get(run.flow_id, "")


def _flows(prefect: SyncPrefectClient, ids: set[UUID]) -> dict[UUID, str]:
    """Names by id; a server may have many more flows than this project's."""
    found = prefect.read_flows(flow_filter=FlowFilter(id=FlowFilterId(any_=list(ids)))) if ids else []
    return {flow.id: flow.name for flow in found}


def _all(prefect: SyncPrefectClient, pool: str, chosen: FlowRunFilter) -> list[FlowRun]:
    found: list[FlowRun] = []
    while True:
        page = prefect.read_flow_runs(
            flow_run_filter=chosen,
            work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[pool])),
            sort=FlowRunSort.EXPECTED_START_TIME_ASC,
            limit=PAGE,
            offset=len(found),
        )
        found += page
        if len(page) < PAGE:
            return found
