"""Serves an approved model version from the endpoint, with data capture."""

from prefect import flow

from flows.identity import run_name, this_run
from tasks.endpoint import ServingEndpoint, deploy, smoke_test
from tasks.infrastructure import installation
from tasks.registry import approved_model


@flow(name="deploy-endpoint", flow_run_name=run_name, log_prints=True)
def deploy_endpoint(version: int | None = None) -> ServingEndpoint:
    """version: number of a model version; by default the newest approved one.

    Does nothing but a smoke test where the endpoint serves that version already.
    """
    installed = installation()
    served = deploy(installed, approved_model(version))
    smoke_test(installed, this_run().id)
    return served


if __name__ == "__main__":
    deploy_endpoint()
