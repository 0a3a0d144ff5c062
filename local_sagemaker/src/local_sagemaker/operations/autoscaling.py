"""Application Auto Scaling of endpoint variants: scalable targets, target tracking policies and scaling activities."""

import re
import time
import uuid
from typing import Any

from local_sagemaker import account
from local_sagemaker.protocol import ApiError, NamedError, ValidationException
from local_sagemaker.resources import ENDPOINT, Resources
from local_sagemaker.store import Record

TARGETS, POLICIES, ACTIVITIES = "scalable-target", "scaling-policy", "scaling-activity"
NAMESPACE, DIMENSION = "sagemaker", "sagemaker:variant:DesiredInstanceCount"
METRIC = "SageMakerVariantInvocationsPerInstance"
SERVICE_LINKED_ROLE = (
    "aws-service-role/sagemaker.application-autoscaling.amazonaws.com/"
    "AWSServiceRoleForApplicationAutoScaling_SageMakerEndpoint"
)
RESOURCE_ID = re.compile(r"endpoint/([^/]+)/variant/([^/]+)")


class ObjectNotFoundException(NamedError):
    """There is no such scalable target or policy."""


class AutoScalingOperations:
    """The API. What it stores is acted upon by autoscaling.AutoScaling."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources

    def register_scalable_target(self, request: Record) -> Record:
        """Registers a variant, or changes the bounds of one that is registered."""
        endpoint, variant = _variant_of(request)
        found = self._resources.store.get(ENDPOINT.path, endpoint)
        plan = (found or {}).get("Plan") or (found or {}).get("PendingPlan") or {"Variants": []}
        if variant not in {each["VariantName"] for each in plan["Variants"]}:
            raise ValidationException(f"Endpoint {endpoint} has no variant {variant}.")
        resource = request["ResourceId"]
        with self._resources.store.lock:
            present = self._resources.store.get(TARGETS, resource)
            target = {
                "ScalableTargetARN": f"arn:aws:application-autoscaling:{account.region()}:{account.account_id()}:"
                f"scalable-target/{uuid.uuid4().hex}",
                "CreationTime": time.time(),
                "RoleARN": f"arn:aws:iam::{account.account_id()}:role/{SERVICE_LINKED_ROLE}",
                **(present or {}),
                **{field: value for field, value in request.items() if field != "Tags"},
            }
            low, high = target.get("MinCapacity"), target.get("MaxCapacity")
            if low is None or high is None:
                raise ValidationException("MinCapacity and MaxCapacity are required when a target is registered.")
            if low < 1 or high < low:
                raise ValidationException(f"MinCapacity {low} must be at least 1 and at most MaxCapacity {high}.")
            self._resources.store.put(TARGETS, resource, target)
        return {"ScalableTargetARN": target["ScalableTargetARN"]}

    def deregister_scalable_target(self, request: Record) -> None:
        """Its policies go with it."""
        _variant_of(request)
        deregister(self._resources, self._target(request)["ResourceId"])

    def describe_scalable_targets(self, request: Record) -> Record:
        wanted = request.get("ResourceIds")
        targets = self._resources.store.all(TARGETS)
        return {"ScalableTargets": [each for each in targets if wanted is None or each["ResourceId"] in wanted]}

    def put_scaling_policy(self, request: Record) -> Record:
        target = self._target(request)
        tracking = request.get("TargetTrackingScalingPolicyConfiguration")
        if request.get("PolicyType") != "TargetTrackingScaling" or tracking is None:
            raise ApiError("ValidationException", "this server knows policies of the type TargetTrackingScaling only")
        metric = tracking.get("PredefinedMetricSpecification", {}).get("PredefinedMetricType")
        if metric != METRIC:
            raise ApiError("ValidationException", f"this server knows the metric {METRIC} only, not {metric!r}")
        if tracking["TargetValue"] <= 0:
            raise ValidationException("TargetValue must be greater than 0.")
        key = f"{target['ResourceId']}/{request['PolicyName']}"
        arn = (
            f"arn:aws:autoscaling:{account.region()}:{account.account_id()}:scalingPolicy:{uuid.uuid4()}:"
            f"resource/sagemaker/{target['ResourceId']}:policyName/{request['PolicyName']}"
        )
        with self._resources.store.lock:
            present = self._resources.store.get(POLICIES, key) or {"PolicyARN": arn, "CreationTime": time.time()}
            self._resources.store.put(POLICIES, key, {**present, **request})
        return {"PolicyARN": present["PolicyARN"], "Alarms": []}

    def delete_scaling_policy(self, request: Record) -> None:
        if not self._resources.store.delete(POLICIES, f"{request['ResourceId']}/{request['PolicyName']}"):
            raise ObjectNotFoundException(f"No scaling policy found for {_described(request)}")

    def describe_scaling_policies(self, request: Record) -> Record:
        return {"ScalingPolicies": self._of_resource(POLICIES, request)}

    def describe_scaling_activities(self, request: Record) -> Record:
        """The newest first."""
        found = self._of_resource(ACTIVITIES, request)
        return {"ScalingActivities": sorted(found, key=lambda each: each["StartTime"], reverse=True)}

    def _of_resource(self, kind: str, request: Record) -> list[Record]:
        wanted = request.get("ResourceId")
        return [each for each in self._resources.store.all(kind) if wanted in (None, each["ResourceId"])]

    def _target(self, request: Record) -> Record:
        target = self._resources.store.get(TARGETS, request["ResourceId"])
        if target is None:
            raise ObjectNotFoundException(f"No scalable target registered for {_described(request)}")
        return target


def deregister(resources: Resources, resource_id: str) -> None:
    """Removes a scalable target and its policies."""
    with resources.store.lock:
        resources.store.delete(TARGETS, resource_id)
        for policy in resources.store.all(POLICIES):
            if policy["ResourceId"] == resource_id:
                resources.store.delete(POLICIES, f"{resource_id}/{policy['PolicyName']}")


def targets_of(resources: Resources, endpoint: str) -> list[Record]:
    """Scalable targets that are variants of the endpoint."""
    prefix = f"endpoint/{endpoint}/"
    return [target for target in resources.store.all(TARGETS) if target["ResourceId"].startswith(prefix)]


def _variant_of(request: dict[str, Any]) -> tuple[str, str]:
    """Endpoint and variant of a ResourceId."""
    if (request["ServiceNamespace"], request["ScalableDimension"]) != (NAMESPACE, DIMENSION):
        raise ApiError("ValidationException", f"this server scales {NAMESPACE}, by {DIMENSION}, only")
    found = RESOURCE_ID.fullmatch(request["ResourceId"])
    if not found:
        raise ValidationException(f"{request['ResourceId']!r} is not endpoint/NAME/variant/NAME.")
    return found[1], found[2]


def _described(request: dict[str, Any]) -> str:
    return (
        f"service namespace: {request['ServiceNamespace']}, resource ID: {request['ResourceId']}, "
        f"scalable dimension: {request['ScalableDimension']}"
    )
