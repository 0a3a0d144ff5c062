"""Automatic scaling of the endpoint: between two numbers of instances, by how often each of them is asked.

https://docs.aws.amazon.com/sagemaker/latest/dg/endpoint-auto-scaling.html
"""

from typing import Any

from settings import VARIANT, settings
from tasks.aws.clients import client
from tasks.aws.errors import translate_aws_errors
from tasks.run import Log

NAMESPACE = "sagemaker"
DIMENSION = "sagemaker:variant:DesiredInstanceCount"
POLICY = "invocations-per-instance"
METRIC = "SageMakerVariantInvocationsPerInstance"


def apply_scaling(endpoint: str, progress: Log) -> None:
    """Has the endpoint scale as the settings say, or not any more. The endpoint is in service."""
    chosen = settings()
    if not chosen.endpoint_max_instances:
        stop_scaling(endpoint, progress)
        return
    scaling = client("application-autoscaling")
    with translate_aws_errors(f"have endpoint {endpoint} scale by itself"):
        scaling.register_scalable_target(
            **_target(endpoint),
            MinCapacity=chosen.endpoint_instance_count,
            MaxCapacity=chosen.endpoint_max_instances,
        )
        scaling.put_scaling_policy(
            **_target(endpoint),
            PolicyName=POLICY,
            PolicyType="TargetTrackingScaling",
            TargetTrackingScalingPolicyConfiguration={
                "TargetValue": float(chosen.endpoint_invocations_per_instance),
                "PredefinedMetricSpecification": {"PredefinedMetricType": METRIC},
            },
        )
    progress(
        f"endpoint {endpoint} has {chosen.endpoint_instance_count} to {chosen.endpoint_max_instances} instances, "
        f"for {chosen.endpoint_invocations_per_instance} invocations a minute each"
    )


def stop_scaling(endpoint: str, progress: Log) -> None:
    """Leaves the endpoint with the instances that it has; does nothing if it does not scale by itself."""
    if is_scaled(endpoint):
        with translate_aws_errors(f"have endpoint {endpoint} scale by itself no more"):
            client("application-autoscaling").deregister_scalable_target(**_target(endpoint))
        progress(f"endpoint {endpoint} does not scale by itself any more")


def is_scaled(endpoint: str) -> bool:
    """Whether the endpoint's variant is a scalable target."""
    with translate_aws_errors(f"look whether endpoint {endpoint} scales by itself"):
        found = client("application-autoscaling").describe_scalable_targets(
            ServiceNamespace=NAMESPACE, ResourceIds=[_target(endpoint)["ResourceId"]], ScalableDimension=DIMENSION
        )
    return bool(found["ScalableTargets"])


def _target(endpoint: str) -> dict[str, Any]:
    return {
        "ServiceNamespace": NAMESPACE,
        "ResourceId": f"endpoint/{endpoint}/variant/{VARIANT}",
        "ScalableDimension": DIMENSION,
    }
