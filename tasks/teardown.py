"""Removes an installation: what is billed by the hour, or all of it. Can be called again where it was interrupted."""

from prefect import task
from prefect.logging import get_run_logger

from settings import settings
from tasks import storage
from tasks.aws import client, explained, if_there
from tasks.endpoint import delete_endpoint
from tasks.infrastructure import InfrastructureError, delete_stack, stack_outputs
from tasks.registry import versions
from tasks.rollout import delete_model_and_config, owned_names

COSTS = """What costs money while it stands:
- the endpoint {endpoint} (and {candidate} while a deployment tries a model): each instance by the hour
- training jobs: by the second while they run
- the bucket of {storage_stack}: what is stored, with its old versions for 30 days, captures for 90
- functions, executions and logs: by use only
- models, endpoint configs, model packages and the stacks themselves: nothing"""


class NotConfirmed(Exception):
    """All of it was to be removed, but it was asked for only once."""


def costs() -> str:
    """What of this installation costs money."""
    chosen = settings()
    return COSTS.format(
        endpoint=chosen.endpoint, candidate=chosen.candidate_endpoint, storage_stack=chosen.storage_stack
    )


def confirm_everything(confirm: str | None) -> None:
    """Raises NotConfirmed, with all that would be lost, unless `confirm` is the installation's name."""
    if confirm == settings().stack:
        return
    raise NotConfirmed(
        f"this would delete every image, model, capture record, evaluation and report of {settings().stack!r} with its "
        f"bucket and both stacks, for good; run it again with confirm={settings().stack!r} if that is what you want"
    )


@task(task_run_name="remove the endpoint")
def remove_endpoint() -> None:
    """Deletes the endpoint, and a candidate's that a killed deployment left."""
    logger = get_run_logger()
    for name in (settings().endpoint, settings().candidate_endpoint):
        if delete_endpoint(name):
            logger.info("deleted endpoint %s", name)


@task(task_run_name="remove models and endpoint configs")
def remove_models() -> None:
    """Deletes every model, endpoint config and version of the model package group, and the group."""
    logger = get_run_logger()
    names = owned_names()
    for name in names:
        delete_model_and_config(name)
    registered = list(versions())
    with explained("delete the model package group"):
        sagemaker = client("sagemaker")
        for version in registered:
            sagemaker.delete_model_package(ModelPackageName=version.arn)
        if_there(lambda: sagemaker.delete_model_package_group(ModelPackageGroupName=settings().model_package_group))
    logger.info("deleted %d models or endpoint configs and %d model versions", len(names), len(registered))


@task(task_run_name="remove stacks and bucket")
def remove_stacks() -> None:
    """Deletes the workflow stack, all that the bucket holds, and the storage stack."""
    logger = get_run_logger()
    delete_stack(settings().stack)
    logger.info("deleted stack %s", settings().stack)
    try:
        bucket = stack_outputs(settings().storage_stack)["Bucket"]
    except InfrastructureError:
        logger.info("there is no stack %s", settings().storage_stack)
        return
    logger.info("deleted %d objects and old versions in %s", storage.empty(bucket), bucket)
    delete_stack(settings().storage_stack)
    logger.info("deleted stack %s", settings().storage_stack)
