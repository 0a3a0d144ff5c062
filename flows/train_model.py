"""Trains a model on what prepare-data uploaded and makes it a version of the model package group."""

from prefect import flow

from flows.identity import run_name, this_run
from tasks.infrastructure import installation
from tasks.registry import ModelVersion, find_trained, register
from tasks.training import plan_training, train


@flow(name="train-model", flow_run_name=run_name, log_prints=True)
def train_model(reuse: bool = False) -> ModelVersion:
    """reuse: take the newest model of the same data, code and hyperparameters, where there is one."""
    installed = installation()
    plan = plan_training(installed)
    trained = find_trained(plan.fingerprint) if reuse else None
    return trained or register(train(installed, plan, this_run().id))


if __name__ == "__main__":
    train_model()
