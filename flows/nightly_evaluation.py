"""Submits every test image to the Step Functions workflow and accounts for each one."""

from typing import Any

from prefect import flow
from prefect.events import emit_event
from prefect.runtime import flow_run

from flows.identity import run_name, this_run
from settings import EVALUATION_EVENT
from tasks.endpoint import serving
from tasks.evaluation import execute, plan
from tasks.exclusive import exclusive
from tasks.images import dataset_note
from tasks.infrastructure import installation


@flow(name="nightly-evaluation", flow_run_name=run_name, log_prints=True)
def nightly_evaluation() -> dict[str, Any]:
    """Returns the evaluation's summary, which is in the bucket too."""
    run, installed = this_run(), installation()
    with exclusive(installed.endpoint):  # no deployment changes the model meanwhile
        endpoint = serving(installed)
        note = dataset_note(installed.bucket)
        summary = execute(installed, endpoint, run, plan(installed, run), note)
    announce(summary)
    return summary


def announce(summary: dict[str, Any]) -> None:
    """Emits the event from which prefect.yaml starts the report, unless a parent flow reports itself."""
    by = "flow" if flow_run.get_parent_flow_run_id() else "deployment"
    resource = {"prefect.resource.id": f"scones.evaluation.{summary['run']}", "scones.started-by": by}
    emit_event(EVALUATION_EVENT, resource=resource, payload=summary)


if __name__ == "__main__":
    nightly_evaluation()
