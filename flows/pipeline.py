"""The whole way of an image: data, model, endpoint, evaluation, report."""

from prefect import flow

from flows.confidence_report import confidence_report
from flows.deploy_endpoint import deploy_endpoint, undo
from flows.ending import endings, evaluated
from flows.identity import run_name
from flows.nightly_evaluation import nightly_evaluation
from flows.preflight import preflight
from flows.prepare_data import prepare_data
from flows.report_place import report_place
from flows.train_model import train_model
from tasks.aws.clients import on_aws
from tasks.aws.stacks import installation
from tasks.evaluation.outcome import GateMissed
from tasks.evaluation.summary import EvaluationSummary
from tasks.model.registry import APPROVED


@flow(name="pipeline", flow_run_name=run_name, log_prints=True, **endings(on_crashed=[undo], on_cancellation=[undo]))
def pipeline(
    dataset: str | None = None,
    fall_back_to_generated: bool = False,
    retrain: bool = False,
    hyperparameters: dict[str, int | float | str] | None = None,
    include_reviewed: bool | None = None,
) -> EvaluationSummary:
    """retrain: train even if a model of the same data, code and hyperparameters is registered.

    hyperparameters: those that are to differ from the settings', such as {"epochs": 80}. include_reviewed: train on
    what people said about queued images too, or not any more; by default as before.
    Returns the evaluation's summary, and ends as the evaluation does.
    """
    if on_aws():  # an embedded AWS has no quotas, and was started just now
        preflight()
    prepare_data(dataset, fall_back_to_generated, include_reviewed)
    model = train_model(reuse=not retrain, hyperparameters=hyperparameters)
    # Where the gate rejected it, the newest approved version is deployed, which usually serves already.
    deploy_endpoint(model.number if model.status == APPROVED else None)
    summary = _evaluate()
    confidence_report(summary.date, summary.run)
    report = report_place(installation().bucket, summary.date, summary.run)
    returned: EvaluationSummary = evaluated(summary, report)  # callers get the data of a state
    return returned


def _evaluate() -> EvaluationSummary:
    """The evaluation's summary, whether its gates are passed or missed. Raises what else the evaluation failed with."""
    result = nightly_evaluation(return_state=True).result(raise_on_failure=False)
    if isinstance(result, GateMissed):
        return result.summary
    if isinstance(result, BaseException):
        raise result
    summary: EvaluationSummary = result
    return summary


if __name__ == "__main__":
    pipeline()
