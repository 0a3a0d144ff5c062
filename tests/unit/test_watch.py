"""What the watch does and says, by the states that runs are in."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.states import AwaitingRetry, Cancelled, Completed, Crashed, Failed, Late, Pending, Running, Suspended

from watch import notices, recovery
from watch.pool import Pool

NOW = datetime(2026, 11, 29, 4, 0, tzinfo=UTC)
NIGHTLY, TRAINING, REPORT, PREFLIGHT = uuid4(), uuid4(), uuid4(), uuid4()
FLOWS = {NIGHTLY: "nightly-evaluation", TRAINING: "train-model", REPORT: "confidence-report", PREFLIGHT: "preflight"}


@dataclass
class Server:
    """Answers as Prefect's API does, with these states of a run. sent and labelled: what it was asked to keep."""

    states: list[State[Any]] = field(default_factory=list)
    heard: bool = False
    labelled: list[tuple[UUID, dict[str, str]]] = field(default_factory=list)

    def read_flow_run_states(self, run: UUID) -> list[State[Any]]:
        return self.states

    def read_events(self, wanted: Any, limit: int) -> Any:
        return SimpleNamespace(events=["heartbeat"] if self.heard else [])

    def update_flow_run_labels(self, run: UUID, labels: dict[str, str]) -> None:
        self.labelled.append((run, labels))


def run_in(state: State[Any], flow: UUID = NIGHTLY, ago: float = 10, **more: Any) -> FlowRun:
    """A run of a deployment that has been in the state for so many seconds."""
    state = state.model_copy(update={"timestamp": NOW - timedelta(seconds=ago), "id": uuid4()})
    known: dict[str, Any] = {"deployment_id": uuid4(), "name": "nightly-evaluation 2026-11-29 0123456789ab", **more}
    return FlowRun(id=uuid4(), flow_id=flow, state=state, state_id=state.id, state_type=state.type, **known)


def pool_of(*runs: FlowRun, kind: str = "process") -> Pool:
    return Pool("local", kind, list(runs), FLOWS)


def notice(run: FlowRun, server: Server | None = None) -> notices.Notice | None:
    return notices.notice_of(server or Server(), pool_of(run), run, NOW)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("run", "heard", "server_seconds", "kind", "is_dead"),
    [
        (run_in(Running(), ago=74), False, 1000, "process", False),
        (run_in(Running(), ago=76), False, 1000, "process", True),
        (run_in(Running(), ago=76), True, 1000, "process", False),
        (run_in(Running(), ago=7600), False, 20, "process", False),  # the server was restarted just now
        (run_in(Running(), ago=7600, deployment_id=None), False, 1000, "process", False),  # somebody's own process
        (run_in(Pending(), ago=119), False, 1000, "process", False),
        (run_in(Pending(), ago=121), False, 1000, "process", True),
        (run_in(Pending(), ago=121), False, 1000, "ecs", False),  # a container takes minutes to start
        (run_in(Pending(), ago=601), False, 1000, "ecs", True),
        (run_in(Completed(), ago=7600), False, 1000, "process", False),
        (run_in(Suspended(timeout_seconds=9), ago=7600), False, 1000, "process", False),
    ],
)
def test_a_run_is_dead_if_nothing_was_heard_of_it_although_it_could_have_been(
    run: FlowRun, heard: bool, server_seconds: float, kind: str, is_dead: bool
) -> None:
    server: Any = Server(heard=heard)
    assert bool(list(recovery.dead(server, pool_of(run, kind=kind), server_seconds, NOW))) is is_dead


def test_what_crashed_goes_on_three_times_and_only_what_can_go_on() -> None:
    crashed, server = run_in(Crashed()), Server(states=[Crashed()])
    is_resumed: Any = recovery.is_resumed
    assert is_resumed(server, pool_of(crashed), crashed)
    server.states = [Crashed(), Running()] * 3
    assert is_resumed(server, pool_of(crashed), crashed)
    server.states = [Crashed(), Running()] * 4
    assert not is_resumed(server, pool_of(crashed), crashed)
    server.states = [Crashed()]
    for other in (run_in(Failed()), run_in(Crashed(), flow=PREFLIGHT), run_in(Crashed(), deployment_id=None)):
        assert not is_resumed(server, pool_of(other), other)


@pytest.mark.parametrize(
    ("run", "subject"),
    [
        (run_in(Failed(name="Missed", message="Missed: accuracy")), "Missed: nightly-evaluation"),
        (run_in(Failed(name="Incomplete")), "Incomplete: nightly-evaluation"),
        (run_in(Cancelled()), "Cancelled: nightly-evaluation"),
        (run_in(Completed(name="Passed")), None),
        (run_in(Completed(name="Alerts"), flow=REPORT), "Alerts: confidence-report"),
        (run_in(Completed(), flow=REPORT), None),
        (run_in(Completed(name="Rejected"), flow=TRAINING), "Rejected: train-model"),
        (run_in(Completed(name="Approved"), flow=TRAINING), "Approved: train-model"),
        (run_in(Failed(), flow=PREFLIGHT), None),  # whoever runs it watches it
        (run_in(Failed(), ago=3 * 86_400), None),  # old news after days without a server
        (run_in(Failed(), deployment_id=None), None),
        (run_in(AwaitingRetry()), None),  # it goes on
        (run_in(Late(), expected_start_time=NOW - timedelta(seconds=200)), None),  # the services are starting
        (run_in(Late(), expected_start_time=NOW - timedelta(seconds=400)), "Late: nightly-evaluation"),
        (run_in(Suspended(timeout_seconds=9), flow=TRAINING, ago=80_000), None),
        (
            run_in(Suspended(timeout_seconds=9), flow=TRAINING, ago=90_000),
            "A model has waited for a decision for a day: train-model",
        ),
    ],
)
def test_who_is_told_of_what(run: FlowRun, subject: str | None) -> None:
    told = notice(run)
    assert (told.subject if told else None) == subject


def test_a_crash_is_told_only_if_nothing_goes_on() -> None:
    run = run_in(Crashed(message="SIGKILL"))
    assert notice(run, Server(states=[Crashed()])) is None
    told = notice(run, Server(states=[Crashed()] * 4))
    assert told is not None and told.subject == "Crashed: nightly-evaluation" and "SIGKILL" in told.body


def test_each_end_is_told_once_and_again_if_it_could_not_be_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    run, server, sent = run_in(Failed(name="Missed")), Server(), list[str]()
    down = True

    def send(document: Any, subject: str, body: str) -> None:
        if down:
            raise ConnectionError
        sent.append(subject)

    monkeypatch.setattr(notices, "find_block", lambda prefect: "a block")
    monkeypatch.setattr(notices, "send", send)
    monkeypatch.setattr(notices, "missing_night", lambda *about: None)
    pool, tell = pool_of(run), notices.tell
    tell(server, pool, NOW)  # type: ignore[arg-type]
    assert sent == [] and server.labelled == []
    down = False
    tell(server, pool, NOW)  # type: ignore[arg-type]
    assert sent == ["Missed: nightly-evaluation"]
    assert server.labelled == [(run.id, {notices.TOLD: str(run.state_id)})]
    known = run.model_copy(update={"labels": server.labelled[0][1]})
    tell(server, pool_of(known), NOW)  # type: ignore[arg-type]
    assert len(sent) == 1
    # It was tried again by hand, and missed again: another end.
    again = run_in(Failed(name="Missed"), labels=known.labels)
    tell(server, pool_of(again), NOW)  # type: ignore[arg-type]
    assert len(sent) == 2


@dataclass
class Nights:
    """A server with one nightly schedule, and one evaluation that ended so many hours ago."""

    hours: float | None
    active: bool = True
    changed_hours: float = 1000

    def read_deployments(self, **filters: Any) -> list[Any]:
        updated = NOW - timedelta(hours=self.changed_hours)
        return [SimpleNamespace(schedules=[SimpleNamespace(active=self.active, updated=updated)])]

    def read_flow_runs(self, **filters: Any) -> list[FlowRun]:
        if self.hours is None:
            return []
        return [run_in(Completed(name="Passed"), end_time=NOW - timedelta(hours=self.hours))]


@pytest.mark.parametrize(
    ("server", "told"),
    [
        (Nights(25), False),
        (Nights(27), True),
        (Nights(27, active=False), False),  # nobody wants it
        (Nights(27, changed_hours=3), False),  # it was resumed three hours ago
        (Nights(None), False),  # there never was one: its late runs are told
    ],
)
def test_somebody_is_told_of_a_night_without_an_evaluation(server: Any, told: bool) -> None:
    found = notices.missing_night(server, pool_of(), NOW)
    assert (found is not None) is told
    if found:
        assert found.subject == "No evaluation has ended in 26 hours" and found.run.state_type == StateType.COMPLETED
