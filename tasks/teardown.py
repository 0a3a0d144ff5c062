"""Removes an installation: what is billed by the hour, or all of it. Can be called again where it was interrupted."""

import re
import time

from prefect import task
from prefect.logging import get_run_logger

from settings import settings
from tasks.aws import storage
from tasks.aws.clients import client, none_if_missing
from tasks.aws.errors import AwsError, translate_aws_errors
from tasks.aws.logs import ENDPOINT_LOGS, TRAINING_LOGS
from tasks.aws.stacks import delete_stack, find_outputs, protect
from tasks.errors import SconesError
from tasks.model import training
from tasks.model.registry import versions
from tasks.serving.endpoint import delete_endpoint
from tasks.serving.models import delete_model_and_config, owned_names
from tasks.waiting import look_until

FUNCTION_NAMES = ("serializeImageData", "classifyImage", "filterLowConfidence", "classifyBatch")

COSTS = """What costs money while it stands:
- the endpoint {endpoint} (and {candidate} while a deployment tries a model): each instance by the hour
- training jobs: by the second while they run
- the bucket of {storage_stack}: what is stored, with its old versions for 30 days, captures for 90
- functions, executions and logs: by use only
- models, endpoint configs, model packages and the stacks themselves: nothing"""


STOP_SECONDS = 600
LATE_SECONDS = 900
# What the name of the bucket of access logs ends with.
ACCESS_LOGS = "-logs"
TRY_AGAIN = "run it again: it goes on where it was"


class TeardownError(SconesError):
    """Something is left that could not be removed in time."""


class NotConfirmed(SconesError):
    """All of it was to be removed, but it was asked for only once."""


def costs() -> str:
    """What of this installation costs money."""
    chosen = settings()
    return COSTS.format(
        endpoint=chosen.endpoint, candidate=chosen.candidate_endpoint, storage_stack=chosen.storage_stack
    )


def confirm_everything(confirm: str | None) -> None:
    """Raises NotConfirmed, with all that would be lost, unless `confirm` is the installation's name."""
    chosen = settings()
    if chosen.protected:
        raise NotConfirmed(
            f"{chosen.stack!r} is protected: SCONES_PROTECTED is true",
            "set it to false first; this takes the protection off the stacks then",
        )
    if confirm == chosen.stack:
        return
    raise NotConfirmed(
        f"this would delete every image, model, capture record, evaluation and report of {chosen.stack!r} with its "
        f"bucket and both stacks, for good",
        f"run it again with confirm={chosen.stack!r} if that is what you want",
    )


@task(task_run_name="remove the endpoint")
def remove_endpoint() -> None:
    """Deletes the endpoint, and a candidate's that a killed deployment left."""
    chosen = settings()
    logger = get_run_logger()
    for name in (chosen.endpoint, chosen.candidate_endpoint):
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
    with translate_aws_errors("delete the model package group"):
        sagemaker = client("sagemaker")
        for version in registered:
            sagemaker.delete_model_package(ModelPackageName=version.arn)
        none_if_missing(
            lambda: sagemaker.delete_model_package_group(ModelPackageGroupName=settings().model_package_group)
        )
    logger.info("deleted %d models or endpoint configs and %d model versions", len(names), len(registered))


@task(task_run_name="stop training jobs")
def stop_jobs() -> None:
    """Stops every training job that runs, and waits until it has ended: it would write into the bucket."""
    names = running_jobs()
    for name in names:
        training.stop(name)
    left = look_until(lambda names: not names, running_jobs, seconds=STOP_SECONDS, every=1, at_most=10)
    if left:
        raise TeardownError(f"the training jobs {', '.join(left)} are being stopped for {STOP_SECONDS} s", TRY_AGAIN)
    get_run_logger().info("stopped %d training jobs", len(names))


def running_jobs() -> list[str]:
    """Names of this installation's training jobs that have not ended."""
    ours = job_pattern()
    pages = client("sagemaker").get_paginator("list_training_jobs")
    with translate_aws_errors("list training jobs"):
        found = [
            job["TrainingJobName"]
            for status in ("InProgress", "Stopping")
            for page in pages.paginate(NameContains=f"{settings().stack}-", StatusEquals=status)
            for job in page["TrainingJobSummaries"]
        ]
    return [name for name in found if ours.fullmatch(name)]


@task(task_run_name="remove stacks and bucket")
def remove_stacks() -> None:
    """Deletes the workflow stack, all that the bucket holds, the storage stack, and the logs of what is gone.

    Whatever an earlier try left is deleted: a stack whose creation or deletion failed, a bucket without its stack.
    """
    logger, chosen = get_run_logger(), settings()
    bucket = bucket_name()
    for stack in (chosen.alarms_stack, chosen.runner_stack):
        delete_stack(stack)
    for stack in (chosen.stack, chosen.storage_stack):
        protect(stack)
        if not delete_stack(stack):
            logger.info("there is no stack %s", stack)
    for name in (bucket, f"{bucket}{ACCESS_LOGS}"):
        if storage.bucket_exists(name):
            logger.info("deleted the bucket %s with %d objects and old versions", name, empty_and_delete(name))
    groups = [f"{ENDPOINT_LOGS}/{name}" for name in (chosen.endpoint, chosen.candidate_endpoint)]
    groups += [f"/aws/lambda/{chosen.stack}-{name}" for name in FUNCTION_NAMES]
    groups.append(f"/aws/vendedlogs/states/{chosen.stack}")
    logger.info("deleted %d log groups", sum(delete_log_group(name) for name in groups))
    # The group of all training jobs of the account is not this installation's.
    logger.info("deleted the logs of %d training jobs", delete_log_streams(TRAINING_LOGS))


def empty_and_delete(bucket: str) -> int:
    """Deletes a bucket with all that it holds; returns how many objects and old versions that were.

    Captures may be delivered minutes after the endpoint is gone: a bucket that is not empty any more is emptied again.
    """
    deadline, deleted = time.monotonic() + LATE_SECONDS, 0
    while True:
        deleted += storage.empty(bucket)
        try:
            storage.delete_bucket(bucket)
            return deleted
        except AwsError:
            if not storage.list_objects(bucket, "") or time.monotonic() > deadline:
                raise
            get_run_logger().warning("something was written to %s meanwhile; deleting that too", bucket)


def bucket_name() -> str:
    """The installation's bucket, whatever state its stack is in."""
    chosen = settings()
    name = (find_outputs(chosen.storage_stack) or {}).get("Bucket")
    if name is None:
        # Its creation failed, or the stack is gone already; the template's name for it is always the same.
        with translate_aws_errors("look for the bucket"):
            account = client("sts").get_caller_identity()["Account"]
        name = f"{chosen.stack}-{account}-{client('s3').meta.region_name}"
    return name


def standing_bucket() -> str | None:
    """Returns the installation's bucket; None if there is none, or none any more."""
    name = bucket_name()
    return name if storage.bucket_exists(name) else None


def delete_log_group(name: str) -> bool:
    """Deletes a log group; False if there is none."""
    logs = client("logs")
    with translate_aws_errors(f"delete the log group {name}"):
        try:
            logs.delete_log_group(logGroupName=name)
        except logs.exceptions.ResourceNotFoundException:
            return False
    return True


def delete_log_streams(group: str) -> int:
    """Deletes the streams of this installation's jobs from a log group; returns how many there were."""
    logs, stack, ours = client("logs"), settings().stack, job_pattern()
    pages = logs.get_paginator("describe_log_streams").paginate(logGroupName=group, logStreamNamePrefix=f"{stack}-")
    with translate_aws_errors(f"delete streams of the log group {group}"):
        try:
            names = [stream["logStreamName"] for page in pages for stream in page["logStreams"]]
        except logs.exceptions.ResourceNotFoundException:
            return 0
        owned = [name for name in names if ours.fullmatch(name.partition("/")[0])]
        for name in owned:
            logs.delete_log_stream(logGroupName=group, logStreamName=name)
    return len(owned)


def job_pattern() -> re.Pattern[str]:
    """Names of this installation's training jobs; the name of another installation may begin with this one's."""
    return re.compile(rf"{re.escape(settings().stack)}-(gate-)?[0-9a-f]{{12}}(-[0-9]+)?")
