"""SageMaker models and endpoint configs of this installation: named, created, pruned, deleted."""

import hashlib
import json
import re
from typing import Any

from prefect import task
from prefect.logging import get_run_logger

from settings import VARIANT, Settings, settings
from tasks.aws.clients import client, none_if_missing, retry_until_role_is_assumable
from tasks.aws.errors import translate_aws_errors
from tasks.aws.tags import tag_list
from tasks.installation import Installation, capture_destination
from tasks.model.registry import ModelVersion, check_artifact
from tasks.serving.endpoint import find


def deployment_config(chosen: Settings) -> dict[str, Any]:
    """AWS's deployment guardrails: all at once for one instance, a canary from two on, rolled back by alarms."""
    if chosen.endpoint_instance_count > 1:
        routing: dict[str, Any] = {
            "Type": "CANARY",
            "CanarySize": {"Type": "CAPACITY_PERCENT", "Value": chosen.canary_percent},
            "WaitIntervalInSeconds": chosen.bake_seconds,
        }
    else:
        routing = {
            "Type": "ALL_AT_ONCE",
            "WaitIntervalInSeconds": chosen.bake_seconds if chosen.alarms_of_a_switch else 0,
        }
    config: dict[str, Any] = {
        "BlueGreenUpdatePolicy": {"TrafficRoutingConfiguration": routing, "TerminationWaitInSeconds": 0}
    }
    if chosen.alarms_of_a_switch:
        alarms = [{"AlarmName": name} for name in chosen.alarms_of_a_switch]
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
        chosen.network_isolation,
        VARIANT,
    ]
    return f"{chosen.stack}-{version.name}-{hashlib.sha256(json.dumps(content).encode()).hexdigest()[:8]}"


def create_model(installation: Installation, version: ModelVersion, name: str) -> None:
    """Creates the model unless it exists. Raises ArtifactChanged if its archive is not what was registered."""
    check_artifact(version)
    chosen = settings()
    with translate_aws_errors(f"look at model {name}"):
        if none_if_missing(lambda: client("sagemaker").describe_model(ModelName=name)) is not None:
            return
    request: dict[str, Any] = {
        "ModelName": name,
        "Tags": tag_list(),
        "ExecutionRoleArn": installation.hosting_role_arn,
        # By its package, so that SageMaker shows which version of the registry a model is of.
        "PrimaryContainer": {"ModelPackageName": version.arn},
    }
    if chosen.network_isolation:
        request["EnableNetworkIsolation"] = True
    if chosen.vpc_subnets:
        request["VpcConfig"] = {
            "Subnets": list(chosen.vpc_subnets),
            "SecurityGroupIds": list(chosen.vpc_security_groups),
        }
    with translate_aws_errors(f"create model {name}"):
        retry_until_role_is_assumable(lambda: client("sagemaker").create_model(**request))


def create_config(
    installation: Installation, version: ModelVersion, name: str, model: str, candidate: bool = False
) -> None:
    """Creates the endpoint config unless it exists; a candidate's is for one instance and captures nothing."""
    chosen = settings()
    if config_exists(name):
        return
    request: dict[str, Any] = {
        "EndpointConfigName": name,
        "Tags": tag_list(),
        "ProductionVariants": [
            {
                "VariantName": VARIANT,
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
            "DestinationS3Uri": f"s3://{installation.bucket}/{capture_destination(version.name)}",
            "CaptureOptions": [{"CaptureMode": "Input"}, {"CaptureMode": "Output"}],
            "CaptureContentTypeHeader": {"JsonContentTypes": ["application/json"]},
            **({"KmsKeyId": chosen.kms_key} if chosen.kms_key else {}),
        }
    if chosen.kms_key:
        request["KmsKeyId"] = chosen.kms_key
    with translate_aws_errors(f"create endpoint config {name}"):
        client("sagemaker").create_endpoint_config(**request)


def delete_model_and_config(name: str) -> None:
    """Deletes the endpoint config and the model of that name; what is not there is no error."""
    delete_config(name)
    with translate_aws_errors(f"delete model {name}"):
        none_if_missing(lambda: client("sagemaker").delete_model(ModelName=name))


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
    with translate_aws_errors("list endpoint configs and models"):
        for page in sagemaker.get_paginator("list_endpoint_configs").paginate(NameContains=f"{stack}-v"):
            found |= {item["EndpointConfigName"]: item["CreationTime"] for item in page["EndpointConfigs"]}
        for page in sagemaker.get_paginator("list_models").paginate(NameContains=f"{stack}-v"):
            found |= {item["ModelName"]: item["CreationTime"] for item in page["Models"]}
    return [name for name in sorted(found, key=lambda name: found[name], reverse=True) if ours.fullmatch(name)]


def config_exists(name: str) -> bool:
    """Whether there is an endpoint config of that name."""
    return _find_config(name) is not None


def variants_of(config: str) -> list[str]:
    """Names of an endpoint config's variants; none if there is no such config."""
    found = _find_config(config)
    return [variant["VariantName"] for variant in found["ProductionVariants"]] if found else []


def instance_types_of(config: str) -> list[str]:
    """Instance types of an endpoint config's variants; none if there is no such config."""
    found = _find_config(config)
    return [variant["InstanceType"] for variant in found["ProductionVariants"]] if found else []


def _find_config(name: str) -> dict[str, Any] | None:
    with translate_aws_errors(f"look at endpoint config {name}"):
        return none_if_missing(lambda: client("sagemaker").describe_endpoint_config(EndpointConfigName=name))


def delete_config(name: str) -> None:
    """Deletes an endpoint config; one that is not there is no error."""
    with translate_aws_errors(f"delete endpoint config {name}"):
        none_if_missing(lambda: client("sagemaker").delete_endpoint_config(EndpointConfigName=name))
