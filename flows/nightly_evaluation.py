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
from settings import BULK_EVENT, BULK_PREFIX, EVALUATION_EVENT, settings
from tasks.aws import storage
from tasks.aws.stacks import installation
from tasks.data.images import dataset_note
from tasks.evaluation import evaluation, executions
from tasks.evaluation.outcome import verdict
from tasks.evaluation.results import Planned
from tasks.evaluation.summary import EvaluationSummary
from tasks.exclusive import exclusive
from tasks.installation import DatasetNote, Installation, ServingEndpoint
from tasks.run import Run
from tasks.serving import endpoint


def stop_executions(flow: Any, flow_run: Any, state: Any) -> None:
    """Hook: stops what a cancelled run left running because its process could not, and says how far it came."""
    installed, run = installation(), run_of(flow_run)
    reason = "the evaluation was cancelled"
    stopped = executions.stop_named(installed.state_machine_arn, run.id, reason)
    stopped += executions.stop_named(installed.batch_state_machine_arn, f"bulk-{run.id}", reason)
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
            note = dataset_note(installed.bucket)
            if len(planned) > settings().evaluation_bulk_images:
                summary = in_batches(installed, serving, run, planned, note)
            else:
                summary = evaluation.execute(installed, serving, run, planned, note)
    else:
        logger.info("this run was judged before (%s), which stands", summary.judged or "by an earlier release")
    announce(summary)
    report = settings().reports / run.date / run.id / "report.html"
    logger.info("%s. The report follows at %s", verdict(summary), report)
    returned: EvaluationSummary = evaluated(summary, str(report))  # callers get the data of a state
    return returned


def in_batches(
    installed: Installation, serving: ServingEndpoint, run: Run, planned: list[Planned], note: DatasetNote
) -> EvaluationSummary:
    """The evaluation as a bulk run of the same id; its summary is among the evaluations too."""
    from tasks.bulk import bulk  # pyarrow takes its time
    from tasks.bulk.manifest import Line, Source

    get_run_logger().info(
        "%d images are more than SCONES_EVALUATION_BULK_IMAGES=%d: they run in batches, not in an execution each",
        len(planned),
        settings().evaluation_bulk_images,
    )
    source = Source("manifests/test.lst", is_prefix=False, lines=tuple(Line(each.key, each.label) for each in planned))
    summary = bulk.classify(installed, serving, Run(run.id, run.date, BULK_PREFIX), source, note)
    storage.create_json(installed.bucket, run.summary_key(summary.revision), summary.to_json())
    return summary


def announce(summary: EvaluationSummary) -> None:
    """Emits the event from which prefect.yaml starts the report, unless a parent flow reports itself. Once only."""
    event = BULK_EVENT if summary.bulk else EVALUATION_EVENT
    name, revision = f"{event.removesuffix('completed')}{summary.run}", str(summary.revision)
    if (flow_run.run_count or 0) > 1 and _announced(event, name, revision):
        return
    by = "flow" if flow_run.get_parent_flow_run_id() else "deployment"
    resource = {
        "prefect.resource.id": name,
        "scones.started-by": by,
        "scones.outcome": summary.outcome,
        "scones.revision": revision,
    }
    emit_event(event, resource=resource, payload={**summary.to_json(), "verdict": verdict(summary)})


def _announced(event: str, resource: str, revision: str) -> bool:
    """Whether an earlier process of this run has emitted the event, and the server knows it."""
    wanted = EventFilter(event=EventNameFilter(name=[event]), resource=EventResourceFilter(id=[resource]))
    with get_client(sync_client=True) as prefect:
        events = prefect.read_events(wanted, limit=50).events
    return any(each.resource.get("scones.revision", "1") == revision for each in events)


if __name__ == "__main__":
    nightly_evaluation()
