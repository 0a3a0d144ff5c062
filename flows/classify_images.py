"""Classifies the images of a prefix or a manifest in batches, from ten to tens of millions."""

from prefect import flow
from prefect.logging import get_run_logger

from flows.ending import endings
from flows.evaluating import conclude, stop_executions
from flows.holding import holding
from flows.identity import close_interrupted, run_name, this_run
from settings import BULK_PREFIX
from tasks.aws.stacks import installation
from tasks.evaluation import evaluation
from tasks.evaluation.summary import EvaluationSummary
from tasks.installation import DatasetNote
from tasks.serving import endpoint


@flow(
    name="classify-images",
    flow_run_name=run_name,
    log_prints=True,
    **endings(on_cancellation=[stop_executions(BULK_PREFIX)]),
)
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
        with holding(installed.bucket, installed.endpoint):  # no deployment changes the model meanwhile
            summary = bulk.classify(installed, endpoint.serving(installed), run, source, note)
    else:
        logger.info("this run was judged before (%s), which stands", summary.judged)
    return conclude(summary, run, installed.bucket)


if __name__ == "__main__":
    classify_images()
