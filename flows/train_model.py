"""Trains a model on what prepare-data uploaded and makes it a version that the gate, or a person, decides about."""

from prefect import flow

from flows.approval import ask_a_person
from flows.ending import endings
from flows.identity import close_interrupted, run_name, this_run
from tasks.gate import pass_gate
from tasks.infrastructure import installation
from tasks.registry import PENDING, ModelVersion, find_trained, register, show_registry
from tasks.training import plan_training, train


@flow(name="train-model", flow_run_name=run_name, log_prints=True, **endings())
def train_model(reuse: bool = False, hyperparameters: dict[str, int | float] | None = None) -> ModelVersion:
    """reuse: take the newest model of the same data, code and hyperparameters, where there is one.

    hyperparameters: those that are to differ from the settings', such as {"epochs": 80}.
    Returns the version; its status says whether it may be deployed.
    """
    close_interrupted()
    run, installed = this_run().id, installation()
    plan = plan_training(installed, hyperparameters)
    trained = find_trained(plan) if reuse else None
    version = pass_gate(installed, trained or register(train(installed, plan, run), plan), run)
    if version.status == PENDING:
        version = ask_a_person(version)
    show_registry(installed)
    return version


if __name__ == "__main__":
    train_model()
