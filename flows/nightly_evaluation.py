"""Submits every test image to the Step Functions workflow and accounts for each one."""

from typing import Any

from prefect import flow
from prefect.events import emit_event
from prefect.logging.loggers import flow_run_logger
from prefect.runtime import flow_run
from prefect.states import Completed, Failed

from flows.identity import close_interrupted, run_name, this_run
from settings import EVALUATION_EVENT
from tasks.endpoint import serving
from tasks.evaluation import execute, plan
from tasks.exclusive import exclusive
from tasks.executions import stop_named
from tasks.images import dataset_note
from tasks.infrastructure import installation
from tasks.outcome import PASSED, GateMissed, verdict


def stop_executions(flow: Any, flow_run: Any, state: Any) -> None:
    """Hook: stops what a cancelled run left running because its process could not."""
    stopped = stop_named(installation().state_machine_arn, flow_run.id.hex[:12], "the evaluation was cancelled")
    flow_run_logger(flow_run, flow).info("%d executions were still running and are stopped", stopped)


@flow(name="nightly-evaluation", flow_run_name=run_name, log_prints=True, on_cancellation=[stop_executions])
def nightly_evaluation() -> dict[str, Any]:
    """Returns the evaluation's summary, which is in the bucket too; the flow run's message is the verdict.

    Ends Failed with GateMissed, after everything is written, where the figures are not what the settings ask for.
    """
    close_interrupted()
    run, installed = this_run(), installation()
    with exclusive(installed.endpoint):  # no deployment changes the model meanwhile
        endpoint = serving(installed)
        summary = execute(installed, endpoint, run, plan(installed, endpoint, run), dataset_note(installed.bucket))
    announce(summary)
    returned: dict[str, Any] = ending(summary)  # callers get the data of a state
    return returned


def ending(summary: dict[str, Any]) -> Any:
    """The flow run's final state, whose message the run history shows."""
    if summary["outcome"] == PASSED:
        return Completed(message=verdict(summary), data=summary)
    return Failed(message=verdict(summary), data=GateMissed(summary))


def announce(summary: dict[str, Any]) -> None:
    """Emits the event from which prefect.yaml starts the report, unless a parent flow reports itself."""
    by = "flow" if flow_run.get_parent_flow_run_id() else "deployment"
    resource = {
        "prefect.resource.id": f"scones.evaluation.{summary['run']}",
        "scones.started-by": by,
        "scones.outcome": summary["outcome"],
    }
    emit_event(EVALUATION_EVENT, resource=resource, payload={**summary, "verdict": verdict(summary)})


if __name__ == "__main__":
    nightly_evaluation()
