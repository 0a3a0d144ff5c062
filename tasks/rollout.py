"""Brings the endpoint to another model version so that it can't hurt.

A version is tried on an endpoint of its own first, and what served before serves again when anything fails. Until it is
over a rollout is on record in the bucket, so that one that was killed can be undone by another process.
"""

import hashlib
import json
import re
import time
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

from prefect import task
from prefect.logging import get_run_logger
from sagemaker.core.resources import Endpoint

from settings import CAPTURE_PREFIX, ROLLOUTS_PREFIX, SCHEMA_VERSION, settings
from tasks import storage
from tasks.aws import client, explained, if_there, sdk, unless_there, utc_now, with_fresh_role
from tasks.capture import find_record
from tasks.endpoint import (
    EndpointError,
    KnownImage,
    ServingEndpoint,
    SmokeTestFailed,
    capture_prefix,
    delete_endpoint,
    find,
    known_images,
    reason,
    serving,
    settled,
    smoke_test,
    wait_in_service,
)
from tasks.infrastructure import Installation
from tasks.logs import Progress
from tasks.registry import REJECTED, ModelVersion, decide

CAPTURE_POLL_SECONDS = 1.0
# After a rollback that failed, AWS serves with a mix of both configs.
SERVING = ("InService", "UpdateRollbackFailed")
# What AWS says where a model can not be loaded; anything else, such as a lack of instances, says nothing about it.
MODEL_FAULTS = ("health check", "model data")


class RolloutFailed(EndpointError):
    """The version does not serve; the message says why, and what does instead."""


@dataclass(frozen=True)
class Rollout:
    """One change of the endpoint. model and endpoint config share the name `config`; `previous` served before, if any.

    runs: the flow run that does it and the one that all began with. made: whether this rollout created model and
    endpoint config, so that going back deletes them.
    """

    runs: tuple[str, ...]
    endpoint: str
    version: str
    config: str
    previous: str | None
    made: bool


@task(task_run_name="roll out {version.name}")
def roll_out(installation: Installation, version: ModelVersion, runs: tuple[str, ...]) -> ServingEndpoint:
    """Has the endpoint serve the version; does nothing where it serves that already.

    runs: this flow run and the one that all began with; the smoke test's inference ids carry the first.
    Raises RolloutFailed, with what served before serving again. A version whose model is at fault becomes Rejected.
    """
    logger = get_run_logger()
    undo_interrupted(installation, logger.info)
    config = config_name(installation, version)
    endpoint = settled(installation.endpoint, logger.info)
    status = None if endpoint is None else str(endpoint.endpoint_status)
    previous = str(endpoint.endpoint_config_name) if endpoint is not None and status in SERVING else None
    if previous == config and status == "InService":
        logger.info("endpoint %s serves %s already", installation.endpoint, version.name)
        return serving(installation)
    images = known_images(installation)
    rollout = Rollout(runs, installation.endpoint, version.name, config, previous, made=not _config_exists(config))
    record = {"schema_version": SCHEMA_VERSION, **asdict(rollout)}
    storage.put_json(installation.bucket, _record_key(installation), record)
    try:
        create_model(installation, version, config)
        create_config(installation, version, config, model=config)
        try_candidate(installation, version, rollout, images, logger.info)
        if endpoint is not None and previous is None:
            # It serves nothing, and deleting is all that AWS allows.
            logger.warning("endpoint %s is %s: %s", installation.endpoint, endpoint.endpoint_status, reason(endpoint))
            delete_endpoint(installation.endpoint)
        switch(rollout, logger.info)
        ids = smoke_test(installation.endpoint, version.name, images, installation.classes, runs[0])
    except BaseException as error:
        logger.warning("rolling back: %s", error or type(error).__name__)
        kept = roll_back(installation, rollout, logger.info)
        if isinstance(error, SmokeTestFailed):
            decide(version, REJECTED, f"failed its deployment: {error}")
        if not isinstance(error, Exception):
            raise
        raise RolloutFailed(f"{version.name} does not serve: {error}; {kept}") from error
    storage.delete(installation.bucket, _record_key(installation))
    check_capture(installation, version, ids[-1], logger.info, logger.warning)
    return serving(installation)


def try_candidate(
    installation: Installation, version: ModelVersion, rollout: Rollout, images: list[KnownImage], progress: Progress
) -> None:
    """Asks the version about known images on an endpoint of its own, which is deleted whatever comes of it."""
    name, config = settings().candidate_endpoint, f"{rollout.config}-candidate"
    progress(f"trying {version.name} on endpoint {name}")
    try:
        create_config(installation, version, config, model=rollout.config, candidate=True)
        with explained(f"create endpoint {name}"):
            unless_there(lambda: Endpoint.create(endpoint_name=name, endpoint_config_name=config, **sdk()))
        candidate = settled(name, progress, with_log=True)
        if candidate is None or str(candidate.endpoint_status) != "InService":
            why = "it is gone" if candidate is None else reason(candidate)
            kind = SmokeTestFailed if any(text in why for text in MODEL_FAULTS) else EndpointError
            raise kind(f"endpoint {name} did not come up: {why}")
        smoke_test(name, version.name, images, installation.classes, rollout.runs[0])
        progress(f"{version.name} knows {len(images)} images as it should")
    finally:
        delete_candidate(rollout.config)


def delete_candidate(config: str) -> None:
    """Deletes the candidate's endpoint and its config; what is not there is no error."""
    delete_endpoint(settings().candidate_endpoint)
    _delete_config(f"{config}-candidate")


def switch(rollout: Rollout, progress: Progress) -> None:
    """Creates the endpoint, or updates it under AWS's guardrails. Raises EndpointError where it kept its old model."""
    if rollout.previous is None:
        progress(f"creating endpoint {rollout.endpoint}")
        with explained(f"create endpoint {rollout.endpoint}"):
            names = {"endpoint_name": rollout.endpoint, "endpoint_config_name": rollout.config}
            unless_there(lambda: Endpoint.create(**names, **sdk()))
    else:
        progress(f"updating endpoint {rollout.endpoint} to {rollout.version}")
        with explained(f"update endpoint {rollout.endpoint}"):
            client("sagemaker").update_endpoint(
                EndpointName=rollout.endpoint,
                EndpointConfigName=rollout.config,
                DeploymentConfig=deployment_config(),
            )
    endpoint = wait_in_service(rollout.endpoint, progress)
    if str(endpoint.endpoint_config_name) != rollout.config:
        raise EndpointError(f"endpoint {rollout.endpoint} kept its old model: {reason(endpoint)}")


def roll_back(installation: Installation, rollout: Rollout, progress: Progress) -> str:
    """Has the endpoint serve what it served before, deletes what the rollout made, and says what serves now.

    Can be called again, and by another process, after it was interrupted.
    """
    delete_candidate(rollout.config)
    endpoint = settled(rollout.endpoint, progress)
    if rollout.previous is None:
        if endpoint is not None and str(endpoint.endpoint_config_name) == rollout.config:
            delete_endpoint(rollout.endpoint)
        kept = f"there was no model before, so there is no endpoint {rollout.endpoint}"
    else:
        if endpoint is None or str(endpoint.endpoint_config_name) != rollout.previous:
            progress(f"going back to {rollout.previous}")
            _restore(endpoint, rollout)
            wait_in_service(rollout.endpoint, progress)
        kept = f"{serving(installation).model_version} serves as before"
    if rollout.made:
        delete_model_and_config(rollout.config)
    storage.delete(installation.bucket, _record_key(installation))
    progress(kept)
    return kept


def _restore(endpoint: Endpoint | None, rollout: Rollout) -> None:
    if endpoint is not None and str(endpoint.endpoint_status) == "Failed":
        delete_endpoint(rollout.endpoint)
        endpoint = None
    with explained(f"restore endpoint {rollout.endpoint}"):
        if endpoint is None:
            Endpoint.create(endpoint_name=rollout.endpoint, endpoint_config_name=rollout.previous, **sdk())
        else:
            client("sagemaker").update_endpoint(EndpointName=rollout.endpoint, EndpointConfigName=rollout.previous)


def undo_interrupted(installation: Installation, progress: Progress, run: str | None = None) -> None:
    """Rolls back what a rollout that was killed left behind; does nothing where there is none.

    run: only if it was this flow run's, or one's that this began. Without it the caller has the endpoint for itself.
    """
    rollout = _recorded(installation)
    if rollout is None or (run is not None and run not in rollout.runs):
        return
    progress(f"undoing the rollout of {rollout.version} that run {rollout.runs[0]} left unfinished")
    settled(rollout.endpoint, progress)
    if _recorded(installation) == rollout:  # nobody else undid it meanwhile
        roll_back(installation, rollout, progress)


def deployment_config() -> dict[str, Any]:
    """AWS's deployment guardrails: all at once for one instance, a canary from two on, rolled back by alarms."""
    chosen = settings()
    if chosen.endpoint_instance_count > 1:
        routing: dict[str, Any] = {
            "Type": "CANARY",
            "CanarySize": {"Type": "CAPACITY_PERCENT", "Value": chosen.canary_percent},
            "WaitIntervalInSeconds": chosen.bake_seconds,
        }
    else:
        routing = {
            "Type": "ALL_AT_ONCE",
            "WaitIntervalInSeconds": chosen.bake_seconds if chosen.rollback_alarms else 0,
        }
    config: dict[str, Any] = {
        "BlueGreenUpdatePolicy": {"TrafficRoutingConfiguration": routing, "TerminationWaitInSeconds": 0}
    }
    if chosen.rollback_alarms:
        alarms = [{"AlarmName": name} for name in chosen.rollback_alarms]
        config["AutoRollbackConfiguration"] = {"Alarms": alarms}
    return config


def config_name(installation: Installation, version: ModelVersion) -> str:
    """Name of a version's model and endpoint config; it carries a hash of all that they are made of."""
    chosen = settings()
    content = [
        version.arn,
        version.artifact_uri,
        version.image,
        installation.bucket,
        installation.hosting_role_arn,
        chosen.endpoint_instance_type,
        chosen.endpoint_instance_count,
        chosen.kms_key,
        chosen.vpc_subnets,
        chosen.vpc_security_groups,
    ]
    return f"{chosen.stack}-{version.name}-{hashlib.sha256(json.dumps(content).encode()).hexdigest()[:8]}"


def create_model(installation: Installation, version: ModelVersion, name: str) -> None:
    """Creates the model unless it exists."""
    chosen = settings()
    with explained(f"look at model {name}"):
        if if_there(lambda: client("sagemaker").describe_model(ModelName=name)) is not None:
            return
    request: dict[str, Any] = {
        "ModelName": name,
        "ExecutionRoleArn": installation.hosting_role_arn,
        "PrimaryContainer": {
            "Image": version.image,
            "ModelDataUrl": version.artifact_uri,
            "Environment": {
                "SAGEMAKER_PROGRAM": "inference.py",
                "SAGEMAKER_SUBMIT_DIRECTORY": "/opt/ml/model/code",
            },
        },
    }
    if chosen.vpc_subnets:
        request["VpcConfig"] = {
            "Subnets": list(chosen.vpc_subnets),
            "SecurityGroupIds": list(chosen.vpc_security_groups),
        }
    with explained(f"create model {name}"):
        with_fresh_role(lambda: client("sagemaker").create_model(**request))


def create_config(
    installation: Installation, version: ModelVersion, name: str, model: str, candidate: bool = False
) -> None:
    """Creates the endpoint config unless it exists; a candidate's is for one instance and captures nothing."""
    chosen = settings()
    if _config_exists(name):
        return
    request: dict[str, Any] = {
        "EndpointConfigName": name,
        "ProductionVariants": [
            {
                "VariantName": version.name,
                "ModelName": model,
                "InstanceType": chosen.endpoint_instance_type,
                "InitialInstanceCount": 1 if candidate else chosen.endpoint_instance_count,
                "InitialVariantWeight": 1.0,
            }
        ],
    }
    if not candidate:
        request["DataCaptureConfig"] = {
            "EnableCapture": True,
            "InitialSamplingPercentage": 100,
            "DestinationS3Uri": f"s3://{installation.bucket}/{CAPTURE_PREFIX}",
            "CaptureOptions": [{"CaptureMode": "Input"}, {"CaptureMode": "Output"}],
            "CaptureContentTypeHeader": {"JsonContentTypes": ["application/json"]},
            **({"KmsKeyId": chosen.kms_key} if chosen.kms_key else {}),
        }
    if chosen.kms_key:
        request["KmsKeyId"] = chosen.kms_key
    with explained(f"create endpoint config {name}"):
        client("sagemaker").create_endpoint_config(**request)


def delete_model_and_config(name: str) -> None:
    """Deletes the endpoint config and the model of that name; what is not there is no error."""
    _delete_config(name)
    with explained(f"delete model {name}"):
        if_there(lambda: client("sagemaker").delete_model(ModelName=name))


@task(task_run_name="prune old endpoint configs")
def prune(installation: Installation) -> list[str]:
    """Deletes all but the newest endpoint configs and models, never those that serve; returns what it deleted."""
    endpoint = find(installation.endpoint)
    kept = {str(endpoint.endpoint_config_name)} if endpoint else set()
    names = owned_names()
    kept.update(names[: settings().retained_versions])
    pruned = [name for name in names if name not in kept]
    for name in pruned:
        delete_model_and_config(name)
    if pruned:
        get_run_logger().info("pruned %s", ", ".join(pruned))
    return pruned


def owned_names() -> list[str]:
    """Names of this installation's endpoint configs and models, the newest first."""
    stack = settings().stack
    # Another installation's name may begin with this one's.
    ours = re.compile(rf"{re.escape(stack)}-v[0-9]+-[0-9a-f]{{8}}(-candidate)?")
    found: dict[str, Any] = {}
    sagemaker = client("sagemaker")
    with explained("list endpoint configs and models"):
        for page in sagemaker.get_paginator("list_endpoint_configs").paginate(NameContains=f"{stack}-v"):
            found |= {item["EndpointConfigName"]: item["CreationTime"] for item in page["EndpointConfigs"]}
        for page in sagemaker.get_paginator("list_models").paginate(NameContains=f"{stack}-v"):
            found |= {item["ModelName"]: item["CreationTime"] for item in page["Models"]}
    return [name for name in sorted(found, key=lambda name: found[name], reverse=True) if ours.fullmatch(name)]


def check_capture(
    installation: Installation, version: ModelVersion, inference_id: str, progress: Progress, warn: Progress
) -> None:
    """Looks for the capture record of a smoke test. One that comes late is a warning: on AWS it takes minutes."""
    prefix = f"{capture_prefix(installation.endpoint)}{version.name}/"
    since = utc_now() - timedelta(seconds=settings().endpoint_max_seconds)
    deadline = time.monotonic() + settings().smoke_capture_seconds
    while not find_record(installation.bucket, prefix, inference_id, since):
        if time.monotonic() > deadline:
            warn(f"no capture record of {inference_id} yet; look below s3://{installation.bucket}/{prefix}")
            return
        time.sleep(CAPTURE_POLL_SECONDS)
    progress(f"the inferences of {version.name} are captured")


def _recorded(installation: Installation) -> Rollout | None:
    record = storage.get_json(installation.bucket, _record_key(installation))
    if record is None:
        return None
    fields = {name: value for name, value in record.items() if name != "schema_version"}
    return Rollout(**{**fields, "runs": tuple(fields["runs"])})


def _record_key(installation: Installation) -> str:
    return f"{ROLLOUTS_PREFIX}{installation.endpoint}.json"


def _config_exists(name: str) -> bool:
    with explained(f"look at endpoint config {name}"):
        return if_there(lambda: client("sagemaker").describe_endpoint_config(EndpointConfigName=name)) is not None


def _delete_config(name: str) -> None:
    with explained(f"delete endpoint config {name}"):
        if_there(lambda: client("sagemaker").delete_endpoint_config(EndpointConfigName=name))
