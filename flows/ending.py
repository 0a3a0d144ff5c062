"""How flow runs end, said where lists of runs show it: in the state's name, its message and the run's name.

The states' types stay Prefect's own, so that whatever looks at types (`--watch`, automations, filters) needs to know
nothing of this project.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import httpx
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.exceptions import PrefectException
from prefect.states import Completed, Failed

from tasks.evaluation.outcome import GateMissed, heading, verdict
from tasks.evaluation.summary import INCOMPLETE, MISSED, PASSED, EvaluationSummary
from tasks.model.registry import APPROVED, REJECTED, ModelVersion

# Called with a flow, its run and the state that it ended in.
Hook = Callable[[Any, Any, Any], None]
# State names by outcome.
NAMES = {PASSED: "Passed", MISSED: "Missed", INCOMPLETE: "Incomplete"}
# The same of trainings, by the version's status.
VERSION_NAMES = {APPROVED: "Approved", REJECTED: "Rejected"}
# Of a report with something to look at, and of a queue with more images than people get through.
ALERTS, BACKLOG = "Alerts", "Backlog"
SEPARATOR = " | "
MAX_NAME = 200
# How Prefect begins the message of a flow run that raised.
RAISED = "Flow run encountered an exception: "


def evaluated(summary: EvaluationSummary, report: str) -> Any:
    """The final state of a run that evaluated, with the verdict in its name. report: where its report is to be."""
    message = f"{verdict(summary)}. Report: {report}"
    name = NAMES[summary.outcome]
    if summary.outcome == PASSED:
        state: Any = Completed(name=name, message=message, data=summary)
    else:
        state = Failed(name=name, message=message, data=GateMissed(summary))
    context = FlowRunContext.get()
    assert context is not None and context.flow_run is not None, "only within a flow"
    # Not by a hook: a process that dies after the run has ended runs none.
    passed = summary.outcome == PASSED
    say(context.flow_run, _uncapitalized(verdict(summary) if passed else heading(summary)))
    return state


def decided(version: ModelVersion, trained: bool) -> Any:
    """Returns the final state of a training, which is named Approved, Rejected or Undecided after its version.

    trained: whether a model was trained; a version that was there before leaves the state's plain name.
    """
    message = f"{version.name} is {version.status}: {version.reason}"
    context = FlowRunContext.get()
    assert context is not None and context.flow_run is not None, "only within a flow"
    name = VERSION_NAMES.get(version.status, "Undecided") if trained else None
    say(context.flow_run, f"{_uncapitalized(name or 'reused')}: {version.name}, {version.reason}")
    return Completed(name=name, message=message, data=version)


class _WithoutMissedGates(logging.Filter):
    """Leaves out the traceback that Prefect logs for each run that ends Failed if that is a decision, no fault."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], GateMissed))


for _name in ("prefect.flow_runs", "prefect.engine"):
    logging.getLogger(_name).addFilter(_WithoutMissedGates())


def endings(on_crashed: Sequence[Hook] = (), on_cancellation: Sequence[Hook] = ()) -> dict[str, Any]:
    """Arguments of @flow that have every end of its runs said in their names, after hooks of its own."""
    return {
        "on_failure": [rename],
        "on_crashed": [*on_crashed, rename],
        "on_cancellation": [*on_cancellation, rename],
    }


def rename(flow: Any, flow_run: Any, state: Any) -> None:
    """Hook for ends of a flow run other than Completed: adds to its name how it ended."""
    if state.name not in NAMES.values():  # their verdict stands in the name already
        say(flow_run, _ending(state))


def say(flow_run: Any, text: str) -> None:
    """Has the flow run's name end with the text; with an empty one it is the plain name again."""
    plain = flow_run.name.split(SEPARATOR)[0]
    name = f"{plain}{SEPARATOR}{text}"[:MAX_NAME] if text else plain
    # A name is a convenience: nothing fails because the server does not answer.
    with suppress(httpx.HTTPError, PrefectException), get_client(sync_client=True) as prefect:
        prefect.update_flow_run(flow_run.id, name=name)


def _ending(state: Any) -> str:
    # The worker's hook for a cancelled run gets the state before the last.
    name = "Cancelled" if state.is_cancelling() else state.name
    reason = str(state.message or "").removeprefix(RAISED).split("\n")[0]
    return _uncapitalized(f"{name}: {reason}" if reason else name)


def _uncapitalized(text: str) -> str:
    return text[:1].lower() + text[1:]
