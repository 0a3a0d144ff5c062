"""Trains a model on what prepare-data uploaded and makes it a version that the gate, or a person, decides about."""

from prefect import flow

from flows.approval import ask_a_person
from flows.ending import decided, endings
from flows.holding import holding
from flows.identity import close_interrupted, run_name, this_run
from settings import settings
from tasks.aws.stacks import installation
from tasks.model import gate, registry, training
from tasks.model.registry import PENDING, ModelVersion
from tasks.review import training_set
from tasks.serving import endpoint


@flow(name="train-model", flow_run_name=run_name, log_prints=True, **endings())
def train_model(
    reuse: bool = False,
    hyperparameters: dict[str, int | float | str] | None = None,
    include_reviewed: bool | None = None,
) -> ModelVersion:
    """reuse: take the newest model of the same data, code and hyperparameters, if there is one.

    hyperparameters: those that are to differ from the settings', such as {"epochs": 80}. include_reviewed: bring what
    people said about queued images until now into the training set first; by default it is as prepare-data left it.
    Returns the version; its status says whether it may be deployed.
    """
    close_interrupted()
    run, installed = this_run().id, installation()
    # One at a time: a second training of the same images then finds the version of the first.
    with holding(installed.bucket, settings().training_hold):
        if include_reviewed is not None:
            training_set.include(installed.bucket, include_reviewed)
        plan = training.plan_training(installed, hyperparameters)
        known = registry.find_trained(plan) if reuse else None
        version = known or registry.register(training.train(installed, plan, run), plan)
        version = gate.pass_gate(installed, version, run)
    if version.status == PENDING:
        version = ask_a_person(version)
    registry.publish(endpoint.served_versions(installed.endpoint))
    returned: ModelVersion = decided(version, trained=known is None)  # callers get the data of a state
    return returned


if __name__ == "__main__":
    train_model()
