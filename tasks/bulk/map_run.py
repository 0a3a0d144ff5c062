"""One execution of the state machine for many images: started or found, followed to its end, or stopped."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from prefect.logging import get_run_logger

from tasks.aws.clients import client, retry_transient
from tasks.cancellation import is_cancelled
from tasks.evaluation import executions

# Between two looks: this share of the time that has passed, but not less or more than so many seconds.
POLL_SHARE = 0.03
LEAST_POLL_SECONDS = 1.0
MOST_POLL_SECONDS = 5.0
# Batches that fail one after the other, before the rest is not tried for now.
FAILED_IN_A_ROW = 20

# Told images that are done, images in all, and batches that run.
Progress = Callable[[int, int, int], None]


@dataclass(frozen=True)
class Ended:
    """How a map run ended. status: the execution's, or LOST if AWS knows it no more. items: of its manifest, None if
    unknown. folder: below which ResultWriter wrote, None if it did not. refused: why nothing more may be started.
    """

    status: str
    error: str | None
    cause: str | None
    items: int | None
    failed_batches: int
    folder: str | None
    refused: str | None = None


def follow(
    state_machine_arn: str,
    name: str,
    payload: dict[str, Any],
    progress: Progress,
    refusal: Callable[[], str | None],
) -> Ended:
    """Returns when the execution of this name and input has ended; starts it if there is none.

    refusal: asked every few seconds whether, and why, the run must not go on; then it is stopped. Raises
    ExecutionConflict if an execution of that name has other input. An interruption stops the execution.
    """
    arn = executions.start(state_machine_arn, name, payload)
    logger = get_run_logger()
    refused = map_run = None
    began = time.monotonic()
    succeeded = failed = 0
    try:
        while True:
            execution = executions.describe(arn)
            map_run = map_run or _map_run(arn)
            counts = _counts(map_run) if map_run else None
            if counts is not None:
                items, batches = counts["itemCounts"], counts["executionCounts"]
                progress(items["succeeded"] + items["failed"], items["total"], batches["running"])
                if batches["succeeded"] > succeeded:
                    succeeded, failed = batches["succeeded"], batches["failed"]
            if execution is None:
                return Ended("LOST", None, None, None, 0, None, refused)
            if execution.status != "RUNNING":
                break
            if refused is None:
                refused = refusal()
                if refused is not None:
                    logger.error("stopping the run: %s", refused)
                    executions.stop([arn], refused)
                elif counts is not None and batches["failed"] - failed >= FAILED_IN_A_ROW:
                    logger.warning("%d batches failed one after the other: stopping for now", FAILED_IN_A_ROW)
                    executions.stop([arn], f"{FAILED_IN_A_ROW} batches failed one after the other")
            passed = time.monotonic() - began
            time.sleep(min(max(passed * POLL_SHARE, LEAST_POLL_SECONDS), MOST_POLL_SECONDS))
    except BaseException as error:
        # After a signal that stops the process the flow run goes on by itself; after an error it waits for a person.
        if isinstance(error, Exception) or is_cancelled():
            logger.warning("stopping the execution: %s", error or type(error).__name__)
            executions.stop([arn], "the run was stopped")
        raise
    details = (execution.output or {}).get("ResultWriterDetails", {})
    return Ended(
        status=execution.status,
        error=execution.error,
        cause=execution.cause,
        items=counts["itemCounts"]["total"] if counts else None,
        failed_batches=counts["executionCounts"]["failed"] if counts else 0,
        folder=details["Key"].removesuffix("manifest.json") if details else None,
        refused=refused,
    )


def exists(state_machine_arn: str, name: str) -> bool:
    return executions.describe(executions.execution_arn(state_machine_arn, name)) is not None


def _map_run(execution_arn: str) -> str | None:
    """The ARN of an execution's only map run; None if there is none yet."""
    states = client("stepfunctions")

    def look() -> list[dict[str, Any]]:
        try:
            runs: list[dict[str, Any]] = states.list_map_runs(executionArn=execution_arn)["mapRuns"]
            return runs
        except states.exceptions.ExecutionDoesNotExist:
            return []

    runs = retry_transient(f"look for the map run of {execution_arn}", look)
    return str(runs[0]["mapRunArn"]) if runs else None


def _counts(map_run_arn: str) -> dict[str, Any] | None:
    """What DescribeMapRun tells; None if AWS knows the map run no more."""
    states = client("stepfunctions")

    def look() -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = states.describe_map_run(mapRunArn=map_run_arn)
            return found
        except states.exceptions.ResourceNotFound:
            return None

    return retry_transient(f"look at the map run {map_run_arn}", look)
