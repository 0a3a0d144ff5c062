"""What nightly-evaluation and classify-images have in common: how they end, and what a cancelled one leaves running."""

from typing import Any
from uuid import NAMESPACE_URL, uuid5

from prefect.events import emit_event
from prefect.logging import get_run_logger
from prefect.logging.loggers import flow_run_logger
from prefect.runtime import flow_run

from flows import following
from flows.ending import Hook, evaluated
from flows.identity import run_of
from flows.report_place import report_place
from settings import BULK_EVENT, BULK_PREFIX, EVALUATION_EVENT, EVALUATIONS_PREFIX, settings
from tasks import heartbeat
from tasks.aws.stacks import installation
from tasks.evaluation import evaluation, executions
from tasks.evaluation.outcome import verdict
from tasks.evaluation.summary import EvaluationSummary
from tasks.run import Run


def stop_executions(root: str) -> Hook:
    """A hook that stops what a cancelled run left running because its process could not, and says how far it came.

    root: where runs of this kind are kept.
    """

    def hook(flow: Any, flow_run: Any, state: Any) -> None:
        installed, run = installation(), run_of(flow_run, root)
        reason = "the run was cancelled"
        stopped = executions.stop_named(installed.state_machine_arn, run.id, reason)
        stopped += executions.stop_named(installed.batch_state_machine_arn, f"bulk-{run.id}", reason)
        flow_run_logger(flow_run, flow).info("%d executions were still running and are stopped", stopped)
        summary = evaluation.newest_summary(installed.bucket, run)
        message = verdict(summary) if summary else "Cancelled before anything was judged; Retry goes on where it was"
        state.message = message  # for the hook that follows; Prefect then writes its own into the state

    return hook


def conclude(summary: EvaluationSummary, run: Run, bucket: str) -> EvaluationSummary:
    """Announces the summary, and is what a flow returns: its final state, with the verdict in its name."""
    announce(summary)
    _follow(summary, run)
    if run.root == EVALUATIONS_PREFIX:  # not of a bulk run
        heartbeat.beat(settings().heartbeat_url, get_run_logger().warning)
    report = report_place(bucket, run.date, run.id)
    get_run_logger().info("%s. The report follows at %s", verdict(summary), report)
    returned: EvaluationSummary = evaluated(summary, report)  # callers get the data of a state
    return returned


def announce(summary: EvaluationSummary) -> None:
    """Emits an event for whoever listens. One that is emitted again, by a later process, has the same id."""
    event = BULK_EVENT if summary.bulk else EVALUATION_EVENT
    name, revision = f"{event.removesuffix('completed')}{summary.run}", str(summary.revision)
    by = "flow" if flow_run.get_parent_flow_run_id() else "deployment"
    resource = {
        "prefect.resource.id": name,
        "scones.started-by": by,
        "scones.stack": settings().stack,
        "scones.outcome": summary.outcome,
        "scones.revision": revision,
    }
    payload = {**summary.to_json(), "verdict": verdict(summary)}
    emit_event(event, resource=resource, payload=payload, id=uuid5(NAMESPACE_URL, f"{event} {name} {revision}"))


def _follow(summary: EvaluationSummary, run: Run) -> None:
    """Starts the report of this judgement, and the queue of people's images after a bulk run."""
    parameters = {"date": run.date, "run": run.id}
    flows = ["confidence-report", "queue-review"] if run.root == BULK_PREFIX else ["confidence-report"]
    for flow in flows:
        following.start(flow, parameters, f"{flow} of {run.id}, judgement {summary.revision}")
