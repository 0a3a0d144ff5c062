"""Step Functions executions: many, with a bounded number in flight, each followed to its end."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tasks.aws import client, explained

POLL_SECONDS = 0.2
MAX_POLL_SECONDS = 2.0
PROGRESS_SECONDS = 3.0

Progress = Callable[[str], None]


class ExecutionConflict(Exception):
    """An execution of that name exists with other input."""


@dataclass(frozen=True)
class Execution:
    """One closed execution, as DescribeExecution tells it."""

    arn: str
    status: str
    input: dict[str, Any]
    output: dict[str, Any] | None
    error: str | None
    cause: str | None
    started: datetime
    stopped: datetime | None


def start(state_machine_arn: str, name: str, payload: dict[str, Any]) -> str:
    """Starts an execution, or finds the one of that name and input. Returns its ARN; raises ExecutionConflict."""
    states = client("stepfunctions")
    text = json.dumps(payload, sort_keys=True)
    with explained(f"start execution {name}"):
        try:
            arn: str = states.start_execution(stateMachineArn=state_machine_arn, name=name, input=text)["executionArn"]
            return arn
        except states.exceptions.ExecutionAlreadyExists:
            arn = execution_arn(state_machine_arn, name)
            existing = json.loads(states.describe_execution(executionArn=arn)["input"])
    if existing != payload:
        raise ExecutionConflict(f"{arn} exists with other input: {existing}")
    return arn


def execution_arn(state_machine_arn: str, name: str) -> str:
    return state_machine_arn.replace(":stateMachine:", ":execution:") + f":{name}"


def run_all(
    state_machine_arn: str,
    payloads: dict[str, dict[str, Any]],
    in_flight: int,
    max_seconds: float,
    closed: Callable[[str, Execution], None],
    progress: Progress,
) -> None:
    """Runs one execution per name and hands each with its end to `closed`, in the order in which they close.

    payloads: input by execution name. in_flight: how many run at the same time. max_seconds: how long nothing may close
    before what still runs is stopped. Where this is left by an exception (a cancelled flow run), what runs is stopped
    and handed to `closed` too; names that were never handed over were never started.
    """
    waiting = list(payloads)
    running: dict[str, str] = {}
    pause, last_close, reported = POLL_SECONDS, time.monotonic(), 0.0
    done = 0
    try:
        while waiting or running:
            while waiting and len(running) < in_flight:
                name = waiting.pop(0)
                running[start(state_machine_arn, name, payloads[name])] = name
            done_before = done
            for arn in sorted(set(running) - _running_arns(state_machine_arn)):
                execution = describe(arn)
                if execution.status == "RUNNING":  # ListExecutions lags behind
                    continue
                done += 1
                last_close, pause = time.monotonic(), POLL_SECONDS
                closed(running.pop(arn), execution)
            now = time.monotonic()
            if now - reported > PROGRESS_SECONDS:
                reported = now
                progress(f"{done} of {len(payloads)} executions closed, {len(running)} running")
            if running and now - last_close > max_seconds:
                progress(f"no execution closed for {max_seconds:.0f} s: stopping {len(running)}")
                stop(list(running), "it ran too long")
                last_close = now
            if done == done_before and running:
                time.sleep(pause)
                pause = min(pause * 1.2, MAX_POLL_SECONDS)
    except BaseException:
        progress(f"stopping {len(running)} executions")
        stop(list(running), "the evaluation was cancelled")
        for arn, name in running.items():
            closed(name, describe(arn))
        raise


def describe(arn: str) -> Execution:
    with explained(f"look at {arn}"):
        answer = client("stepfunctions").describe_execution(executionArn=arn)
    return Execution(
        arn=arn,
        status=answer["status"],
        input=json.loads(answer["input"]),
        output=json.loads(answer["output"]) if answer.get("output") else None,
        error=answer.get("error"),
        cause=answer.get("cause"),
        started=answer["startDate"],
        stopped=answer.get("stopDate"),
    )


def stop(arns: list[str], reason: str) -> None:
    """Stops executions; they end as ABORTED."""
    for arn in arns:
        with explained(f"stop {arn}"):
            client("stepfunctions").stop_execution(executionArn=arn, error="Stopped", cause=reason)


def _running_arns(state_machine_arn: str) -> set[str]:
    pages = client("stepfunctions").get_paginator("list_executions")
    with explained("list the running executions"):
        return {
            execution["executionArn"]
            for page in pages.paginate(
                stateMachineArn=state_machine_arn,
                statusFilter="RUNNING",
                PaginationConfig={"PageSize": 1000},
            )
            for execution in page["executions"]
        }
