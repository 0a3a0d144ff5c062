"""Submits every test image to the Step Functions workflow and accounts for each one."""

from typing import Any

from prefect import flow
from prefect.client.orchestration import get_client
from prefect.events import emit_event
from prefect.events.filters import EventFilter, EventNameFilter, EventResourceFilter
from prefect.logging import get_run_logger
from prefect.logging.loggers import flow_run_logger
from prefect.runtime import flow_run

from flows.ending import endings, evaluated
from flows.identity import close_interrupted, run_name, run_of, this_run
from settings import EVALUATION_EVENT, settings
from tasks.aws.stacks import installation
from tasks.data.images import dataset_note
from tasks.evaluation import evaluation, executions
from tasks.evaluation.outcome import verdict
from tasks.evaluation.summary import EvaluationSummary
from tasks.exclusive import exclusive
from tasks.serving import endpoint


def stop_executions(flow: Any, flow_run: Any, state: Any) -> None:
    """Hook: stops what a cancelled run left running because its process could not, and says how far it came."""
    installed, run = installation(), run_of(flow_run)
    stopped = executions.stop_named(installed.state_machine_arn, run.id, "the evaluation was cancelled")
    flow_run_logger(flow_run, flow).info("%d executions were still running and are stopped", stopped)
    summary = evaluation.newest_summary(installed.bucket, run)
    message = verdict(summary) if summary else "Cancelled before anything was judged; Retry goes on where it was"
    state.message = message  # for the hook that follows; Prefect then writes its own into the state


@flow(name="nightly-evaluation", flow_run_name=run_name, log_prints=True, **endings(on_cancellation=[stop_executions]))
def nightly_evaluation() -> EvaluationSummary:
    """Returns the evaluation's summary, which is in the bucket too; the flow run's message is the verdict.

    Ends in the state Passed, or Failed with GateMissed if the figures are not what the settings ask for (Missed) or
    images were left out (Incomplete), after everything is written. A run that is judged already only returns that.
    """
    close_interrupted()
    run, installed, logger = this_run(), installation(), get_run_logger()
    summary = evaluation.judged(installed.bucket, run)
    if summary is None:
        with exclusive(installed.endpoint):  # no deployment changes the model meanwhile
            serving = endpoint.serving(installed)
            planned = evaluation.plan(installed, serving, run)
            summary = evaluation.execute(installed, serving, run, planned, dataset_note(installed.bucket))
    else:
        logger.info("this run was judged before (%s), which stands", summary.judged or "by an earlier release")
    announce(summary)
    report = settings().reports / run.date / run.id / "report.html"
    logger.info("%s. The report follows at %s", verdict(summary), report)
    returned: EvaluationSummary = evaluated(summary, str(report))  # callers get the data of a state
    return returned


def announce(summary: EvaluationSummary) -> None:
    """Emits the event from which prefect.yaml starts the report, unless a parent flow reports itself. Once only."""
    name, revision = f"scones.evaluation.{summary.run}", str(summary.revision)
    if (flow_run.run_count or 0) > 1 and _announced(name, revision):
        return
    by = "flow" if flow_run.get_parent_flow_run_id() else "deployment"
    resource = {
        "prefect.resource.id": name,
        "scones.started-by": by,
        "scones.outcome": summary.outcome,
        "scones.revision": revision,
    }
    emit_event(EVALUATION_EVENT, resource=resource, payload={**summary.to_json(), "verdict": verdict(summary)})


def _announced(resource: str, revision: str) -> bool:
    """Whether an earlier process of this run has emitted the event, and the server knows it."""
    wanted = EventFilter(event=EventNameFilter(name=[EVALUATION_EVENT]), resource=EventResourceFilter(id=[resource]))
    with get_client(sync_client=True) as prefect:
        events = prefect.read_events(wanted, limit=50).events
    return any(event.resource.get("scones.revision", "1") == revision for event in events)


if __name__ == "__main__":
    nightly_evaluation()
