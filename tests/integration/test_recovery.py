"""Which flow runs the watch starts again: those that died, and no others."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import State, StateType
from prefect.states import Cancelled, Cancelling, Completed, Crashed, Failed, Pending, Running, Scheduled

from local_aws.config import LocalConfig
from testing.waiting import eventually
from watch import recovery
from watch.pool import Pool

POOL = "local"


def run_in(prefect: SyncPrefectClient, *states: State[Any]) -> UUID:
    """A run of a deployment that has gone through these states, without a process."""
    deployment = prefect.read_deployment_by_name("confidence-report/local")
    later: State[Any] = Scheduled(scheduled_time=datetime.now(UTC) + timedelta(hours=1))
    run = prefect.create_flow_run_from_deployment(deployment.id, state=later)
    for state in states:
        prefect.set_flow_run_state(run.id, state, force=True)
    return run.id


def test_only_what_died_goes_on_and_not_for_ever(stack: LocalConfig) -> None:
    """The stack's own watch does it, whatever events the server lost."""
    with get_client(sync_client=True) as prefect:
        ends: list[State[Any]] = [Completed(), Failed(), Cancelled()]
        ended = [run_in(prefect, Running(), end) for end in ends]
        ended.append(run_in(prefect, Crashed(), Running(), Failed(name="Missed")))
        crashes: list[State[Any]] = [make() for _ in range(4) for make in (Running, Crashed)]
        hopeless = run_in(prefect, *crashes)
        before = {run: [each.id for each in prefect.read_flow_run_states(run)] for run in (*ended, hopeless)}
        died = run_in(prefect, Running(), Crashed())
        try:
            messages = eventually(
                lambda: [
                    str(each.message) for each in prefect.read_flow_run_states(died) if each.name == "AwaitingRetry"
                ],
                60,
            )
            assert messages == ["The flow run crashed and goes on where it was (1 of 3 times)."]
            eventually(lambda: prefect.read_flow_run(died).run_count >= 2, 60)
            for run, states in before.items():
                assert [each.id for each in prefect.read_flow_run_states(run)] == states
        finally:
            for run in (died, hopeless):
                prefect.delete_flow_run(run)


def test_what_is_silent_is_dead_once_the_server_could_have_heard_of_it(stack: LocalConfig) -> None:
    with get_client(sync_client=True) as prefect:
        running = run_in(prefect, Running())
        taken = run_in(prefect, Pending(name="Submitting"))
        cancelled = run_in(prefect, Running(), Cancelling())
        mine = {running, taken, cancelled}
        try:
            pool = Pool.read(prefect, POOL)
            assert mine <= {run.id for run in pool.runs} and pool.kind == "process"

            def dead(after: float, heard: float) -> set[UUID]:
                now = datetime.now(UTC) + timedelta(seconds=after)
                return {run.id for run, _ in recovery.dead(prefect, pool, heard, now)} & mine

            assert dead(0, 1000) == set()
            assert dead(80, 10) == set()  # the server has been up for ten seconds
            assert dead(80, 80) == {running, cancelled}
            assert dead(130, 130) == mine
            assert recovery.recover(prefect, pool, 1000, datetime.now(UTC) + timedelta(seconds=130))
            ended = prefect.read_flow_run(cancelled)
            assert ended.state_type == StateType.CANCELLED
            assert prefect.read_flow_run(running).state_name == "AwaitingRetry"
        finally:
            for run in mine:
                prefect.delete_flow_run(run)
