"""Classifies the images of a prefix or a manifest in batches, from ten to tens of millions."""

from typing import Any

from prefect import flow
from prefect.logging import get_run_logger
from prefect.logging.loggers import flow_run_logger

from flows.ending import endings, evaluated
from flows.identity import close_interrupted, run_name, run_of, this_run
from flows.nightly_evaluation import announce
from settings import BULK_PREFIX, settings
from tasks.aws.stacks import installation
from tasks.evaluation import evaluation, executions
from tasks.evaluation.outcome import verdict
from tasks.evaluation.summary import EvaluationSummary
from tasks.exclusive import exclusive
from tasks.installation import DatasetNote
from tasks.serving import endpoint


def stop_map_runs(flow: Any, flow_run: Any, state: Any) -> None:
    """Hook: stops what a cancelled run left running because its process could not."""
    installed, run = installation(), run_of(flow_run, BULK_PREFIX)
    stopped = executions.stop_named(installed.batch_state_machine_arn, f"bulk-{run.id}", "the run was cancelled")
    flow_run_logger(flow_run, flow).info("%d executions were still running and are stopped", stopped)
    summary = evaluation.newest_summary(installed.bucket, run)
    message = verdict(summary) if summary else "Cancelled before anything was judged; Retry goes on where it was"
    state.message = message  # for the hook that follows; Prefect then writes its own into the state


@flow(name="classify-images", flow_run_name=run_name, log_prints=True, **endings(on_cancellation=[stop_map_runs]))
def classify_images(prefix: str | None = None, manifest: str | None = None) -> EvaluationSummary:
    """prefix: all objects below it in the installation's bucket, such as incoming/{date}/, the run's date. Or manifest:
    a JSONL, CSV or Parquet object with key and, if known, label and etag of each image.

    Returns the summary, which is in the bucket too, and ends as nightly-evaluation does. A run that is judged already
    only returns that.
    """
    from tasks.bulk import bulk  # pyarrow takes its time
    from tasks.bulk.manifest import Source

    close_interrupted()
    run, installed, logger = this_run(BULK_PREFIX), installation(), get_run_logger()
    source = Source.of(installed.bucket, prefix, manifest, run.date)
    summary = evaluation.judged(installed.bucket, run)
    if summary is None:
        note = DatasetNote(source=f"s3://{installed.bucket}/{source.key}", synthetic=False, classes=installed.classes)
        with exclusive(installed.endpoint):  # no deployment changes the model meanwhile
            summary = bulk.classify(installed, endpoint.serving(installed), run, source, note)
    else:
        logger.info("this run was judged before (%s), which stands", summary.judged)
    announce(summary)
    report = settings().reports / run.date / run.id / "report.html"
    logger.info("%s. The report follows at %s", verdict(summary), report)
    returned: EvaluationSummary = evaluated(summary, str(report))  # callers get the data of a state
    return returned


if __name__ == "__main__":
    classify_images()
