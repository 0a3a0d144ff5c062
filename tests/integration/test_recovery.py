"""Which flow runs recover-runs starts again: those that died, and no others."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from flows.recover_runs import _dead, recover_runs
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterId,
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.states import Cancelled, Completed, Crashed, Failed, Pending, Running, Scheduled

from deploy import bring_up
from local_aws.config import LocalConfig
from testing.waiting import eventually


def run_in(prefect: SyncPrefectClient, *states: State[Any]) -> UUID:
    """A run of a deployment that has gone through these states, without a process."""
    deployment = prefect.read_deployment_by_name("confidence-report/local")
    later: State[Any] = Scheduled(scheduled_time=datetime.now(UTC) + timedelta(hours=1))
    run = prefect.create_flow_run_from_deployment(deployment.id, state=later)
    for state in states:
        prefect.set_flow_run_state(run.id, state, force=True)
    return run.id


def test_only_what_died_is_started_again_and_not_for_ever(stack: LocalConfig) -> None:
    with get_client(sync_client=True) as prefect:
        ends: list[State[Any]] = [Completed(), Failed(), Cancelled()]
        ended = [run_in(prefect, Running(), end) for end in ends]
        resumed_then_ended = run_in(prefect, Crashed(), Running(), Failed(name="Missed"))
        crashes: list[State[Any]] = [make() for _ in range(4) for make in (Running, Crashed)]
        hopeless = run_in(prefect, *crashes)
        alive = run_in(prefect, Running())  # since a moment ago, and no heartbeat yet
        died = run_in(prefect, Running(), Crashed())
        before = {run: [each.id for each in prefect.read_flow_run_states(run)] for run in (*ended, resumed_then_ended)}
        try:
            name = prefect.read_flow_run(died).name
            done = recover_runs()
            # Once, by this call or by the one that the event of the crash has started.
            assert done["crashed"] == [] and set(done["resumed"]) <= {name}
            messages = [str(each.message) for each in prefect.read_flow_run_states(died)]
            assert sum("1 of 3 times" in message for message in messages) == 1
            assert prefect.read_flow_run(hopeless).state_type == StateType.CRASHED
            # Two minutes later the one that runs would be taken for dead, although it died before its first heartbeat.
            living, now = prefect.read_flow_run(alive), datetime.now(UTC)
            assert living.state_type == StateType.RUNNING and _dead(prefect, living, now) is None
            assert "not heard of" in str(_dead(prefect, living, now + timedelta(minutes=2)))
            for run, states in before.items():
                assert [each.id for each in prefect.read_flow_run_states(run)] == states
            assert name not in recover_runs()["resumed"]  # it waits for the worker already
        finally:
            for run in (died, hopeless, alive):
                prefect.delete_flow_run(run)


def test_make_up_has_a_run_looked_at_that_the_triggers_missed(stack: LocalConfig) -> None:
    """A worker had taken it when everything was stopped: the server has no trigger that still waits for its start."""
    with get_client(sync_client=True) as prefect:
        taken = run_in(prefect, Pending(name="Submitting"))
        recovery = prefect.read_deployment_by_name("recover-runs/local").id
        of_recovery = DeploymentFilter(id=DeploymentFilterId(any_=[recovery]))

        def waiting_ones() -> list[FlowRun]:
            """Those that start later; triggers start theirs at once."""
            found = prefect.read_flow_runs(
                deployment_filter=of_recovery, sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=50
            )
            soon = datetime.now(UTC) + timedelta(seconds=30)
            return [run for run in found if run.expected_start_time and run.expected_start_time > soon]

        types = FlowRunFilterStateType(any_=[StateType.PENDING, StateType.RUNNING])
        filter_ = FlowRunFilter(state=FlowRunFilterState(type=types))

        def under_way() -> set[tuple[UUID, UUID | None]]:
            """What the two calls have to find alike. Runs that other tests left at work may come and go."""
            return {(run.id, run.state_id) for run in prefect.read_flow_runs(flow_run_filter=filter_)}

        def looked_at_twice() -> FlowRun | None:
            """The one run that two calls had scheduled; None if other runs began or ended between them."""
            known, before = {run.id for run in waiting_ones()}, under_way()
            bring_up(stack)
            bring_up(stack)
            found = [run for run in waiting_ones() if run.id not in known]
            if under_way() == before:
                assert len(found) == 1
                return found[0]
            for run in found:
                prefect.delete_flow_run(run.id)
            return None

        later = eventually(looked_at_twice, seconds=240)
        try:
            start, now = later.expected_start_time, datetime.now(UTC)
            waiting = prefect.read_flow_run(taken)
            assert start is not None and _dead(prefect, waiting, now) is None
            assert "did not start" in str(_dead(prefect, waiting, start))
        finally:
            for run in (taken, later.id):
                prefect.delete_flow_run(run)
