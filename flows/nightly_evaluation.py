"""Submits every test image to the Step Functions workflow and accounts for each one."""

from prefect import flow
from prefect.logging import get_run_logger

from flows.ending import endings
from flows.evaluating import conclude, stop_executions
from flows.holding import holding
from flows.identity import close_interrupted, run_name, this_run
from flows.night_endpoint import endpoint_of_the_night, remove_endpoint_of_the_night
from settings import BULK_PREFIX, EVALUATIONS_PREFIX, settings
from tasks.aws import storage
from tasks.aws.stacks import installation
from tasks.data.images import dataset_note
from tasks.evaluation import evaluation
from tasks.evaluation.results import Planned
from tasks.evaluation.summary import EvaluationSummary
from tasks.installation import DatasetNote, Installation, ServingEndpoint
from tasks.run import Run


@flow(
    name="nightly-evaluation",
    flow_run_name=run_name,
    log_prints=True,
    **endings(on_cancellation=[stop_executions(EVALUATIONS_PREFIX), remove_endpoint_of_the_night]),
)
def nightly_evaluation() -> EvaluationSummary:
    """Returns the evaluation's summary, which is in the bucket too; the flow run's message is the verdict.

    Ends in the state Passed, or Failed with GateMissed if the figures are not what the settings ask for (Missed) or
    images were left out (Incomplete), after everything is written. A run that is judged already only returns that.
    With SCONES_ENDPOINT_SCHEDULE=night it brings the endpoint up before, and deletes it afterwards.
    """
    close_interrupted()
    run, installed, logger = this_run(), installation(), get_run_logger()
    summary = evaluation.judged(installed.bucket, run)
    if summary is None:
        # No deployment changes the model meanwhile.
        with holding(installed.bucket, installed.endpoint), endpoint_of_the_night(installed, run) as serving:
            planned = evaluation.plan(installed, serving, run)
            note = dataset_note(installed.bucket)
            if len(planned) > settings().evaluation_bulk_images:
                summary = in_batches(installed, serving, run, planned, note)
            else:
                summary = evaluation.execute(installed, serving, run, planned, note)
    else:
        logger.info("this run was judged before (%s), which stands", summary.judged)
    return conclude(summary, run, installed.bucket)


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
    in_bulk = Run(run.id, run.date, BULK_PREFIX)
    # Judged already if an earlier process of this run died just after that.
    summary = evaluation.judged(installed.bucket, in_bulk) or bulk.classify(installed, serving, in_bulk, source, note)
    storage.create_json(installed.bucket, run.summary_key(summary.revision), summary.to_json())
    return summary


if __name__ == "__main__":
    nightly_evaluation()
