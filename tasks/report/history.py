"""What happened in executions, state by state, for a page that opens without the AWS console."""

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from tasks.aws.clients import client, retry_transient
from tasks.report.subject import Subject
from tasks.run import iso

# Executions of which the page shows the history, and characters of one input, output or cause.
SHOWN = 100
CHARACTERS = 400
# Members of events that tell something, by what they are called on the page.
DETAILS = ("input", "output", "error", "cause")


@dataclass(frozen=True)
class Step:
    """An event of an execution. time: ISO 8601 in UTC. state: the one that it belongs to, if any."""

    time: str
    event: str
    state: str
    detail: str


@dataclass(frozen=True)
class History:
    """An execution with its events; `missing` says why if there are none."""

    inference_id: str
    key: str
    arn: str
    attempt: int
    steps: tuple[Step, ...]

    @property
    def in_batch(self) -> bool:
        """Whether the execution is of a batch, a child of a Distributed Map: arn:...:execution:MACHINE/LABEL:NAME."""
        return "/" in self.arn

    @property
    def missing(self) -> str:
        """Why there is no step: AWS forgets after 90 days, and the embedded AWS a batch as soon as it succeeds."""
        if self.in_batch:
            return (
                "Step Functions has no history of this batch, and none of a single image of it: see the run's results"
            )
        return "Step Functions has no history of it any more"


def executions_of(subject: Subject, shown: Iterable[str]) -> list[History]:
    """Histories of the executions of the images with these inference ids, with earlier attempts; at most SHOWN."""
    by_id = {row.inference_id: row for row in subject.results}
    rows = [by_id[name] for name in shown if name in by_id]
    attempts = {
        attempt.inference_id: attempt
        for row in rows
        for attempt in (row, *reversed(row.previous_attempts))
        if attempt.execution_arn
    }
    return [
        history_of(row.inference_id, row.key, str(row.execution_arn), row.attempt)
        for row in list(attempts.values())[:SHOWN]
    ]


def history_of(inference_id: str, key: str, arn: str, attempt: int) -> History:
    """The history of one execution."""
    return History(inference_id, key, arn, attempt, _steps(arn))


def _steps(arn: str) -> tuple[Step, ...]:
    states = client("stepfunctions")

    def read() -> list[dict[str, Any]]:
        try:
            pages = states.get_paginator("get_execution_history").paginate(executionArn=arn)
            return [event for page in pages for event in page["events"]]
        except states.exceptions.ExecutionDoesNotExist:
            return []

    steps, state = [], ""
    for event in retry_transient(f"read the history of {arn}", read):
        details: dict[str, Any] = next((v for k, v in event.items() if k.endswith("EventDetails") and v), {})
        state = details.get("name", state) if event["type"].endswith("StateEntered") else state
        steps.append(Step(iso(event["timestamp"]), event["type"], state, _detail(details)))
        if event["type"].endswith("StateExited"):
            state = ""
    return tuple(steps)


def _detail(details: dict[str, Any]) -> str:
    """What tells something of an event, an image's base64 text aside."""
    found = []
    for name in DETAILS:
        if value := details.get(name):
            found.append(f"{name}: {_shortened(str(value))}")
    return "; ".join(found)


def _shortened(text: str) -> str:
    with suppress(ValueError):
        text = json.dumps(_cut(json.loads(text)), ensure_ascii=False)
    return text if len(text) <= CHARACTERS else f"{text[:CHARACTERS]}…"


def _cut(value: Any) -> Any:
    """A JSON value with its long strings cut, such as an image's."""
    if isinstance(value, dict):
        return {name: _cut(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_cut(each) for each in value]
    if isinstance(value, str) and len(value) > CHARACTERS // 2:
        return f"{value[:40]}… ({len(value)} characters)"
    return value
