"""Step Functions executions: many, with a bounded number in flight, each followed to its end.

An execution is known by its name, so that nothing here is started twice: neither by a call whose response was lost, nor
by a process that goes on where another one was killed.
"""

import json
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from settings import Settings, settings
from tasks.aws.clients import client, retry_transient
from tasks.aws.errors import AwsError, translate_aws_errors
from tasks.errors import SconesError
from tasks.waiting import look_until

POLL_SECONDS = 0.1
MAX_POLL_SECONDS = 2.0
PROGRESS_SECONDS = 3.0
# AWS lets a burst of each call through before its rate counts; smaller than what it documents for any region.
BURST = 100
# Clocks differ a little.
SLACK = timedelta(minutes=5)
# StopExecution answers before the execution is stopped.
STOPPING_SECONDS = 3.0
# Errors of executions that ended in a decision, not in a failure: below the threshold, and of no class.
LOW_CONFIDENCE = "LowConfidence"
NOT_A_CLASS = "NotAClass"
DECISIONS = {LOW_CONFIDENCE, NOT_A_CLASS}

Progress = Callable[[int, int], None]


class ExecutionConflict(SconesError):
    """An execution of that name exists with other input."""


@dataclass(frozen=True)
class Execution:
    """One closed execution, as DescribeExecution tells it. failed_state: the task that it failed in."""

    arn: str
    status: str
    input: dict[str, Any]
    output: dict[str, Any] | None
    error: str | None
    cause: str | None
    started: datetime | None
    stopped: datetime | None
    failed_state: str | None = None


class Executions:
    """One execution per name of the state machine, started in the order of `payloads` (input by name).

    closed: those that have ended, by name. progress is told how many are closed and how many run, every few seconds.
    """

    def __init__(
        self, state_machine_arn: str, payloads: dict[str, dict[str, Any]], progress: Progress, chosen: Settings
    ) -> None:
        self.closed: dict[str, Execution] = {}
        self._state_machine_arn = state_machine_arn
        self._payloads = payloads
        self._progress = progress
        self._waiting = deque(payloads)
        self._running: dict[str, str] = {}  # names by ARN
        self._starts = _Pace(chosen.starts_per_second)
        self._describes = _Pace(chosen.describes_per_second)
        self._lists = _Pace(chosen.lists_per_second)
        self._in_flight = chosen.executions_in_flight
        self._max_seconds = chosen.execution_max_seconds
        self._last_close = self._reported = time.monotonic()

    def attach(self, since: datetime) -> int:
        """Finds those that were started after `since` by another process; returns how many."""
        waiting = set(self._waiting)
        for page in _pages(self._state_machine_arn, self._lists):
            for execution in page:
                if execution["name"] in waiting:
                    self._running[execution["executionArn"]] = execution["name"]
            # Running executions come by their start and closed ones by their end, the latest first.
            if page and (page[-1].get("stopDate") or page[-1]["startDate"]) < since - SLACK:
                break
        attached = set(self._running.values())
        self._waiting = deque(name for name in self._waiting if name not in attached)
        return len(attached)

    def run(self, names: Collection[str]) -> None:
        """Returns when all of these are closed. Others may be started meanwhile, so that no slot stands idle."""
        while any(name not in self.closed for name in names):
            before = len(self.closed)
            self._start_next()
            running = _running_arns(self._state_machine_arn, self._lists)
            for arn in [arn for arn in self._running if arn not in running]:
                self._close(arn)
                self._start_next()  # at once, so that its slot waits for no other's end
            self._report()
            if len(self.closed) > before:
                self._last_close = time.monotonic()
                continue
            idle = time.monotonic() - self._last_close
            if self._running and idle > self._max_seconds:
                stop(list(self._running), f"no execution closed for {self._max_seconds} s")
                self._last_close = time.monotonic()
            # Seldom if executions take long.
            time.sleep(min(max(POLL_SECONDS, idle / 10), MAX_POLL_SECONDS))

    def stop(self) -> None:
        """Stops what runs and sees how it ended; what was never started stays out of `closed`. Raises no AwsError."""
        if self._waiting:  # the interruption may have come between its start and our note of it
            first = self._waiting[0]
            arn = execution_arn(self._state_machine_arn, first)
            with suppress(AwsError):
                if describe(arn, once=True) is not None:
                    self._running[arn] = self._waiting.popleft()
        stop(list(self._running), "the evaluation was stopped")
        deadline = time.monotonic() + STOPPING_SECONDS
        for arn, name in self._running.items():
            execution = None
            with suppress(AwsError):
                execution = look_until(
                    lambda seen: seen is None or seen.status != "RUNNING",
                    lambda arn=arn: describe(arn, once=True),  # type: ignore[misc]
                    seconds=max(deadline - time.monotonic(), 0),
                    every=POLL_SECONDS,
                )
            if execution is None or execution.status == "RUNNING":
                cause = "it was told to stop, and its end could not be seen"
                execution = _unseen(arn, self._payloads[name], "ABORTED", "Stopped", cause)
            self.closed[name] = execution
        self._running.clear()

    def _start_next(self) -> None:
        while self._waiting and len(self._running) < self._in_flight:
            name = self._waiting[0]
            self._starts.wait()
            try:
                self._running[start(self._state_machine_arn, name, self._payloads[name])] = name
            except ExecutionConflict as error:
                arn = execution_arn(self._state_machine_arn, name)
                failed = _unseen(arn, self._payloads[name], "FAILED", "ExecutionConflict", str(error))
                self.closed[name] = failed
            # Only now: a start that is interrupted is a name that still waits.
            self._waiting.popleft()
            self._report()

    def _close(self, arn: str) -> None:
        self._describes.wait()
        execution = describe(arn)
        if execution is None:  # AWS lost it, and so it may be started under its name again
            self._waiting.appendleft(self._running.pop(arn))
        elif execution.status != "RUNNING":  # ListExecutions may lag behind
            self.closed[self._running.pop(arn)] = execution
            self._report()

    def _report(self) -> None:
        now = time.monotonic()
        if now - self._reported > PROGRESS_SECONDS:
            self._reported = now
            self._progress(len(self.closed), len(self._running))


class _Pace:
    """A token bucket: waits so that calls come in bursts of at most BURST and otherwise no faster than the rate."""

    def __init__(self, per_second: float) -> None:
        self._rate = per_second
        self._tokens = float(BURST)
        self._filled = time.monotonic()

    def wait(self) -> None:
        now = time.monotonic()
        self._tokens = min(self._tokens + (now - self._filled) * self._rate, BURST) - 1
        self._filled = now
        if self._tokens < 0:
            time.sleep(-self._tokens / self._rate)


def start(state_machine_arn: str, name: str, payload: dict[str, Any]) -> str:
    """Starts an execution, or finds the one of that name and input. Returns its ARN; raises ExecutionConflict."""
    states = client("stepfunctions")
    text = json.dumps(payload, sort_keys=True)

    def started() -> str | None:
        try:
            arn: str = states.start_execution(stateMachineArn=state_machine_arn, name=name, input=text)["executionArn"]
            return arn
        except states.exceptions.ExecutionAlreadyExists:
            return None

    arn = retry_transient(f"start execution {name}", started)
    if arn is None:
        arn = execution_arn(state_machine_arn, name)
        existing = describe(arn)
        if existing is not None and existing.input != payload:
            raise ExecutionConflict(f"{arn} exists with other input: {existing.input}")
    return arn


def execution_arn(state_machine_arn: str, name: str) -> str:
    return state_machine_arn.replace(":stateMachine:", ":execution:") + f":{name}"


def describe(arn: str, once: bool = False) -> Execution | None:
    """The execution, with the state that it failed in; None if there is none.

    once: do not wait for the end of an outage.
    """
    states = client("stepfunctions")

    def described() -> dict[str, Any] | None:
        try:
            answer: dict[str, Any] = states.describe_execution(executionArn=arn)
            return answer
        except states.exceptions.ExecutionDoesNotExist:
            return None

    doing = f"look at {arn}"
    if once:
        with translate_aws_errors(doing):
            answer = described()
    else:
        answer = retry_transient(doing, described)
    if answer is None:
        return None
    failed = answer["status"] not in ("RUNNING", "SUCCEEDED") and answer.get("error") not in DECISIONS
    return Execution(
        arn=arn,
        status=answer["status"],
        input=json.loads(answer["input"]),
        output=json.loads(answer["output"]) if answer.get("output") else None,
        error=answer.get("error"),
        cause=answer.get("cause"),
        started=answer["startDate"],
        stopped=answer.get("stopDate"),
        failed_state=_last_task(arn) if failed and not once else None,
    )


def stop(arns: list[str], reason: str) -> None:
    """Stops executions; they end as ABORTED. One that has ended, or can't be stopped, is left alone."""
    for arn in arns:
        with suppress(AwsError), translate_aws_errors(f"stop {arn}"):
            client("stepfunctions").stop_execution(executionArn=arn, error="Stopped", cause=reason)


def stop_named(state_machine_arn: str, prefix: str, reason: str) -> int:
    """Stops all that run and whose names begin with the prefix; returns how many."""
    running = _running_arns(state_machine_arn, _Pace(settings().lists_per_second))
    ours = [arn for arn in running if arn.rsplit(":", 1)[1].startswith(prefix)]
    stop(ours, reason)
    return len(ours)


def _running_arns(state_machine_arn: str, pace: _Pace) -> set[str]:
    return {execution["executionArn"] for page in _pages(state_machine_arn, pace, "RUNNING") for execution in page}


def _pages(state_machine_arn: str, pace: _Pace, status: str | None = None) -> Iterator[list[dict[str, Any]]]:
    """Pages of ListExecutions, the latest first, a thousand at most on each."""
    request: dict[str, Any] = {"stateMachineArn": state_machine_arn, "maxResults": 1000}
    if status:
        request["statusFilter"] = status
    while True:
        pace.wait()
        answer = retry_transient("list the executions", lambda: client("stepfunctions").list_executions(**request))
        yield answer["executions"]
        if "nextToken" not in answer:
            return
        request["nextToken"] = answer["nextToken"]


def _last_task(arn: str) -> str | None:
    """The task state that an execution was in last."""
    request = {"executionArn": arn, "reverseOrder": True, "maxResults": 100, "includeExecutionData": False}
    history = retry_transient(
        f"read the history of {arn}", lambda: client("stepfunctions").get_execution_history(**request)
    )
    entered = (event for event in history["events"] if event["type"] == "TaskStateEntered")
    return next((event["stateEnteredEventDetails"]["name"] for event in entered), None)


def _unseen(arn: str, payload: dict[str, Any], status: str, error: str, cause: str) -> Execution:
    """An end that AWS did not tell."""
    return Execution(arn, status, payload, None, error, cause, None, datetime.now(UTC))
