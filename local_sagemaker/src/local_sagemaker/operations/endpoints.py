"""Endpoints: Create, Describe, List, Update, UpdateWeightsAndCapacities and Delete."""

import time
import uuid
from dataclasses import asdict
from itertools import count, takewhile
from typing import Any

from local_sagemaker.hosting import STARTUP_SECONDS, Endpoints, Shift
from local_sagemaker.operations.autoscaling import deregister, targets_of
from local_sagemaker.protocol import ResourceLimitExceeded, ValidationException
from local_sagemaker.resources import ENDPOINT, ENDPOINT_CONFIG, MODEL, MODEL_PACKAGE, Resources
from local_sagemaker.store import Record

PROPERTIES = {"DesiredInstanceCount": "InstanceCount", "DesiredWeight": "Weight"}


class EndpointOperations:
    """Endpoints as the API knows them; `endpoints` runs them, `max_instances` of them in all."""

    def __init__(self, resources: Resources, endpoints: Endpoints, max_instances: int) -> None:
        self._resources = resources
        self._endpoints = endpoints
        self._max_instances = max_instances

    def create_endpoint(self, request: Record) -> Record:
        name = request["EndpointName"]
        plan = self._plan(request["EndpointConfigName"])
        with self._resources.store.lock:
            self._check_limit(name, plan)
            endpoint = self._resources.create(
                ENDPOINT,
                name,
                request,
                EndpointStatus="Creating",
                PendingPlan=plan,
                LastDeploymentConfig=request.get("DeploymentConfig"),
            )
        self._endpoints.create(name, plan)
        return endpoint

    def describe_endpoint(self, request: Record) -> Record:
        return self._resources.get(ENDPOINT, request["EndpointName"])

    def list_endpoints(self, request: Record) -> Record:
        return self._resources.page(ENDPOINT, request, "Endpoints", newest_first=True)

    def update_endpoint(self, request: Record) -> Record:
        name = request["EndpointName"]
        with self._resources.store.lock:
            endpoint = self._settled(name)
            plan = self._plan(request["EndpointConfigName"])
            _check_same_variants(name, endpoint["Plan"], plan)
            self._check_scaled(name, endpoint["Plan"], plan)
            if request.get("RetainAllVariantProperties"):
                _retain(endpoint["Plan"], plan, request.get("ExcludeRetainedVariantProperties", []))
            deployment = request.get("DeploymentConfig")
            if request.get("RetainDeploymentConfig"):
                deployment = deployment or endpoint.get("LastDeploymentConfig")
            shift = _shift(deployment or {}, sum(variant["InstanceCount"] for variant in plan["Variants"]))
            self._check_limit(name, plan)
            self._resources.update(
                ENDPOINT,
                name,
                EndpointStatus="Updating",
                PendingPlan=plan,
                PendingShift=asdict(shift),
                FailureReason=None,
                LastDeploymentConfig=deployment,
                PendingDeploymentSummary={
                    "EndpointConfigName": request["EndpointConfigName"],
                    "ProductionVariants": [{"VariantName": variant["VariantName"]} for variant in plan["Variants"]],
                    "StartTime": time.time(),
                },
            )
        self._endpoints.update(name, plan, shift)
        return endpoint

    def update_endpoint_weights_and_capacities(self, request: Record) -> Record:
        name = request["EndpointName"]
        with self._resources.store.lock:
            endpoint = self._settled(name)
            variants = {variant["VariantName"]: dict(variant) for variant in endpoint["Plan"]["Variants"]}
            for desired in request["DesiredWeightsAndCapacities"]:
                variant = variants.get(desired["VariantName"])
                if variant is None:
                    raise ValidationException(f"Endpoint {name} has no variant {desired['VariantName']}.")
                for field, ours in PROPERTIES.items():
                    if field in desired:
                        variant[ours] = desired[field]
                if variant["InstanceCount"] < 1:
                    raise ValidationException(f"Variant {desired['VariantName']} needs an instance at least.")
            plan = {**endpoint["Plan"], "Variants": list(variants.values())}
            self._check_limit(name, plan)
            wanted = [
                {
                    **summary,
                    "DesiredWeight": variants[summary["VariantName"]]["Weight"],
                    "DesiredInstanceCount": variants[summary["VariantName"]]["InstanceCount"],
                }
                for summary in endpoint["ProductionVariants"]
            ]
            self._resources.update(
                ENDPOINT,
                name,
                EndpointStatus="Updating",
                ProductionVariants=wanted,
                PendingPlan=plan,
                PendingShift=asdict(Shift()),
                FailureReason=None,
            )
        self._endpoints.scale(name, plan)
        return endpoint

    def delete_endpoint(self, request: Record) -> None:
        name = request["EndpointName"]
        with self._resources.store.lock:
            self._settled(name, "InService", "Failed")
            self._resources.update(ENDPOINT, name, EndpointStatus="Deleting")
            # As AWS does without notice: endpoint-scaling-delete.
            for target in targets_of(self._resources, name):
                deregister(self._resources, target["ResourceId"])
        self._endpoints.delete(name)

    def _settled(self, name: str, *allowed: str) -> Record:
        """An endpoint that nothing is being done to. A failed one can only be deleted."""
        endpoint = self._resources.get(ENDPOINT, name)
        status = endpoint["EndpointStatus"]
        if status in (allowed or ("InService",)):
            return endpoint
        if status == "Failed":
            raise ValidationException(f'Cannot update failed endpoint "{endpoint["EndpointArn"]}"; delete it.')
        raise ValidationException(f'Cannot update in-progress endpoint "{endpoint["EndpointArn"]}" ({status}).')

    def _plan(self, config_name: str) -> Record:
        """All that serving needs of a config and its models, which may be deleted while the endpoint serves on."""
        config = self._resources.get(ENDPOINT_CONFIG, config_name)
        return {
            "EndpointConfigName": config_name,
            "DataCaptureConfig": config.get("DataCaptureConfig"),
            "Variants": [self._variant_plan(variant) for variant in config["ProductionVariants"]],
        }

    def _variant_plan(self, variant: Record) -> Record:
        model = self._resources.get(MODEL, variant["ModelName"])
        container = model.get("PrimaryContainer") or model["Containers"][0]
        if container.get("ModelPackageName"):
            package = self._resources.get(MODEL_PACKAGE, container["ModelPackageName"])
            packaged = package["InferenceSpecification"]["Containers"][0]
            environment = {**packaged.get("Environment", {}), **container.get("Environment", {})}
            container = {**packaged, "Environment": environment}
        source = container.get("ModelDataSource", {}).get("S3DataSource")
        uri = source["S3Uri"] if source else container.get("ModelDataUrl")
        if not uri or not container.get("Image"):
            raise ValidationException(f"Model {variant['ModelName']} has no {'Image' if uri else 'model data'}.")
        return {
            "VariantName": variant["VariantName"],
            "Weight": variant.get("InitialVariantWeight", 1.0),
            "InstanceCount": variant["InitialInstanceCount"],
            "InstanceType": variant.get("InstanceType"),
            "ModelName": variant["ModelName"],
            # Every deployment downloads its model anew; restarts and further instances of it do not.
            "ModelFolder": f"{variant['ModelName']}-{uuid.uuid4().hex[:12]}",
            "Image": container["Image"],
            "ModelUri": uri,
            "Compressed": source is None or source["CompressionType"] == "Gzip",
            "Environment": container.get("Environment", {}),
            "RoleArn": model.get("ExecutionRoleArn"),
            "NetworkIsolation": model.get("EnableNetworkIsolation", False),
            "StartupSeconds": variant.get("ContainerStartupHealthCheckTimeoutInSeconds", STARTUP_SECONDS),
        }

    def _check_scaled(self, name: str, present: Record, wanted: Record) -> None:
        """Raises ValidationException if a variant that scales by itself would get another instance type.

        https://docs.aws.amazon.com/sagemaker/latest/dg/endpoint-scaling-update.html
        """
        before, after = (
            {each["VariantName"]: each.get("InstanceType") for each in plan["Variants"]} for plan in (present, wanted)
        )
        for target in targets_of(self._resources, name):
            variant = target["ResourceId"].rpartition("/")[2]
            if before.get(variant) != after.get(variant):
                raise ValidationException(
                    f"Cannot update endpoint {name}: variant {variant} is a scalable target of Application Auto "
                    f"Scaling, and its instance type would change; deregister it first."
                )

    def _check_limit(self, name: str, plan: Record) -> None:
        """Raises ResourceLimitExceeded if the endpoints would have more instances than this server is to run."""
        others = [
            endpoint
            for endpoint in self._resources.store.all(ENDPOINT.path)
            if endpoint["EndpointName"] != name and endpoint["EndpointStatus"] != "Failed"
        ]
        used = sum(_instances(endpoint.get("Plan") or endpoint["PendingPlan"]) for endpoint in others)
        if used + _instances(plan) > self._max_instances:
            raise ResourceLimitExceeded(
                f"The account-level service limit 'instances for endpoint usage' is {self._max_instances} Instances, "
                f"with current utilization of {used} Instances and a request delta of {_instances(plan)} Instances."
            )


def _instances(plan: Record) -> int:
    return sum(variant["InstanceCount"] for variant in plan["Variants"])


def _check_same_variants(endpoint: str, present: Record, wanted: Record) -> None:
    """Raises ValidationException if the variants have other names.

    AWS asks for the same ones in every blue/green and rolling deployment, and an update without a policy is a
    blue/green one (deployment-guardrails-exclusions, API_DeploymentConfig). Its sentence is not known.
    """
    before, after = ({variant["VariantName"] for variant in plan["Variants"]} for plan in (present, wanted))
    if before != after:
        raise ValidationException(
            f"Cannot update endpoint {endpoint}: in a blue/green or rolling deployment the new endpoint configuration "
            f"must have the same variant names as the old one, and {sorted(after)} are not {sorted(before)}."
        )


def _retain(present: Record, plan: Record, excluded: list[dict[str, Any]]) -> None:
    """Carries weights, instance counts and capture over to variants of the same name."""
    names = {item["VariantPropertyType"] for item in excluded}
    before = {variant["VariantName"]: variant for variant in present["Variants"]}
    for variant in plan["Variants"]:
        for field, ours in PROPERTIES.items():
            if field not in names and variant["VariantName"] in before:
                variant[ours] = before[variant["VariantName"]][ours]
    if "DataCaptureConfig" not in names:
        plan["DataCaptureConfig"] = present["DataCaptureConfig"]


def _shift(deployment: Record, instances: int) -> Shift:
    """How traffic moves, from a DeploymentConfig. A rolling update moves it in its batches; both fleets run whole."""
    alarms = tuple(alarm["AlarmName"] for alarm in deployment.get("AutoRollbackConfiguration", {}).get("Alarms", []))
    blue_green, rolling = deployment.get("BlueGreenUpdatePolicy"), deployment.get("RollingUpdatePolicy")
    if blue_green and rolling:
        raise ValidationException("Give either BlueGreenUpdatePolicy or RollingUpdatePolicy.")
    if rolling:
        step = _share("MaximumBatchSize", rolling["MaximumBatchSize"], instances)
        return Shift(_steps(step), rolling["WaitIntervalInSeconds"], 0.0, _limit(rolling), alarms)
    if not blue_green:
        return Shift(alarms=alarms)
    routing = blue_green["TrafficRoutingConfiguration"]
    shares: tuple[float, ...] = (1.0,)
    if routing["Type"] == "CANARY":
        shares = (_share("CanarySize", routing.get("CanarySize"), instances), 1.0)
    elif routing["Type"] == "LINEAR":
        shares = _steps(_share("LinearStepSize", routing.get("LinearStepSize"), instances))
    termination = blue_green.get("TerminationWaitInSeconds", 0)
    return Shift(shares, routing["WaitIntervalInSeconds"], termination, _limit(blue_green), alarms)


def _limit(policy: Record) -> float:
    return float(policy.get("MaximumExecutionTimeoutInSeconds", Shift.max_seconds))


def _share(field: str, size: Record | None, instances: int) -> float:
    """A CapacitySize as a share; AWS takes at most half of the instances in one step."""
    if size is None:
        raise ValidationException(f"{field} must be given.")
    share = size["Value"] / (100 if size["Type"] == "CAPACITY_PERCENT" else instances)
    if share > 0.5:
        raise ValidationException(f"{field} must be at most 50 percent of the {instances} instances.")
    return float(share)


def _steps(step: float) -> tuple[float, ...]:
    return (*takewhile(lambda share: share < 1.0, (step * number for number in count(1))), 1.0)
