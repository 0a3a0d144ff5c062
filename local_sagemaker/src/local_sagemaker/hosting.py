"""Endpoints: fleets brought up, and replaced without a failed request."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from local_sagemaker import account
from local_sagemaker.fleet import Fleet, Traffic, Variant
from local_sagemaker.instances import HostingFailed, Instances
from local_sagemaker.repairs import MAX_BACKOFF_SECONDS, Repairs
from local_sagemaker.resources import ENDPOINT, Resources
from local_sagemaker.routing import Routing
from local_sagemaker.store import Record

logger = logging.getLogger(__name__)

STARTUP_SECONDS = 120


@dataclass(frozen=True)
class Shift:
    """How an update moves traffic: the shares of the new fleet one after another, and the waits in seconds."""

    shares: tuple[float, ...] = (1.0,)
    wait_seconds: float = 0.0
    termination_wait_seconds: float = 0.0
    max_seconds: float = 28800.0
    alarms: tuple[str, ...] = ()


class Endpoints:
    """Brings fleets up and down and keeps them alive. A plan is what Describe, a restart and an update work from:
    EndpointConfigName, DataCaptureConfig, and for each variant name, weight, instance count and what it runs."""

    def __init__(self, resources: Resources, instances: Instances, routing: Routing, model_seconds: float) -> None:
        self._resources = resources
        self._instances = instances
        self._routing = routing
        self._model_seconds = model_seconds
        self._stop = threading.Event()
        self._instances.remove_models(but=self._models_in_use())
        for endpoint in resources.store.all(ENDPOINT.path):
            if endpoint["EndpointStatus"] == "Deleting":
                self._start_thread(self._delete, endpoint["EndpointName"])
            elif endpoint["EndpointStatus"] != "Failed":
                resources.update(ENDPOINT, endpoint["EndpointName"], EndpointStatus="SystemUpdating")
                self._start_thread(self._recover, endpoint)
        Repairs(instances, routing, self._stop).start()

    # What the control plane asks

    def create(self, name: str, plan: Record) -> None:
        self._start_thread(self._create, name, plan)

    def update(self, name: str, plan: Record, shift: Shift) -> None:
        """`plan` and `shift` are in the record as PendingPlan and PendingShift already, for a restart."""
        self._start_thread(self._update, name, plan, shift)

    def scale(self, name: str, plan: Record) -> None:
        """Sets weights and instance counts; `plan` differs from the present one in nothing else."""
        self._start_thread(self._scale, name, plan)

    def delete(self, name: str) -> None:
        self._start_thread(self._delete, name)

    def shutdown(self) -> None:
        self._stop.set()
        self._instances.stop_all()

    # Each in a thread of its own

    def _create(self, name: str, plan: Record) -> None:
        try:
            fleet = self._start_fleet(name, plan)
        except Exception as error:
            logger.warning("endpoint %s: %s", name, error)
            self._give_up(name, error)
            return
        self._serve(name, fleet)

    def _update(self, name: str, plan: Record, shift: Shift) -> None:
        """Starts the new fleet beside the old one and moves traffic when it answers; else the old one stays."""
        previous = self._routing.fleet(name)
        fleet = None
        try:
            fleet = self._start_fleet(name, plan)
            self._move_traffic(name, previous, fleet, shift)
        except Exception as error:
            if self._stop.is_set():
                return
            logger.warning("endpoint %s keeps %s: %s", name, previous.plan["EndpointConfigName"], error)
            self._set(name, EndpointStatus="RollingBack")
            self._routing.direct(name, Traffic(previous))
            if fleet:
                self._retire(fleet)
            self._set(
                name,
                EndpointStatus="InService",
                FailureReason=str(error)[:1024],
                PendingPlan=None,
                PendingDeploymentSummary=None,
            )
            return
        self._routing.direct(name, Traffic(fleet))
        if self._stop.wait(shift.termination_wait_seconds):  # done again after the restart
            return
        self._serve(name, fleet)
        self._retire(previous)
        self._instances.remove_models(but=self._models_in_use())

    def _scale(self, name: str, plan: Record) -> None:
        fleet = self._routing.fleet(name)
        failure = None
        for variant, wanted in zip(fleet.variants, plan["Variants"], strict=True):
            try:
                missing = wanted["InstanceCount"] - len(variant.instances)
                started = self._instances.start(name, [variant.plan] * missing)
                answering = {instance for instance in variant.instances if instance.healthy and instance.ping()}
                with self._routing.lock:
                    everyone = sorted([*started, *variant.instances], key=lambda instance: instance not in answering)
                    count = wanted["InstanceCount"]
                    variant.plan, variant.instances, surplus = wanted, everyone[:count], everyone[count:]
                self._retire(Fleet(plan, [Variant(wanted, surplus)]))
            except Exception as error:
                failure = str(error)[:1024]
        if self._stop.is_set():  # done again after the restart
            return
        fleet.plan = {**plan, "Variants": [variant.plan for variant in fleet.variants]}
        self._serve(name, fleet, failure)

    def _delete(self, name: str) -> None:
        traffic = self._routing.close(name)
        if traffic:
            self._retire(traffic.fleet)
        self._resources.delete(ENDPOINT, name)
        self._instances.remove_models(but=self._models_in_use())

    def _recover(self, endpoint: Record) -> None:
        """After a restart of the server: what was served is served again, what was under way is done again."""
        name = endpoint["EndpointName"]
        plan = endpoint.get("Plan") or endpoint.get("PendingPlan")
        if plan is None:
            self._give_up(name, HostingFailed("it was stored by an earlier version of this server; create it again"))
            return
        delay, patience = 1.0, time.monotonic() + STARTUP_SECONDS
        while not self._stop.is_set():
            try:
                fleet = self._start_fleet(name, plan)
                break
            except HostingFailed as error:
                self._give_up(name, error)
                return
            except Exception as error:
                # AWS's other services start at the same time; one that answers and refuses may be no more than new.
                logger.warning("endpoint %s: %s", name, error)
                if isinstance(error, ClientError) and time.monotonic() > patience:
                    self._give_up(name, error)
                    return
                self._stop.wait(delay)
                delay = min(delay * 2, MAX_BACKOFF_SECONDS)
        else:
            return
        pending = endpoint.get("PendingPlan")
        if endpoint.get("Plan") and pending:
            self._routing.direct(name, Traffic(fleet))
            self._set(name, EndpointStatus="Updating")
            self._update(name, pending, Shift(**endpoint["PendingShift"]))
        else:
            self._serve(name, fleet)

    # Traffic

    def _move_traffic(self, name: str, previous: Fleet, fleet: Fleet, shift: Shift) -> None:
        deadline = time.monotonic() + shift.max_seconds
        for share in shift.shares:
            self._routing.direct(name, Traffic(previous, fleet, share))
            until = time.monotonic() + shift.wait_seconds
            while not self._stop.is_set():
                if not all(instance.healthy for instance in fleet.instances):
                    raise HostingFailed("an instance of the new fleet became unhealthy while traffic was shifted to it")
                ringing = _ringing(shift.alarms)
                if ringing:
                    raise HostingFailed(f"alarm {ringing} went off while traffic was shifted to the new fleet")
                if time.monotonic() > deadline:
                    raise HostingFailed(f"the update took longer than {shift.max_seconds:.0f} s")
                left = until - time.monotonic()
                if left <= 0:
                    break
                self._stop.wait(min(1.0, left))

    def _serve(self, name: str, fleet: Fleet, failure: str | None = None) -> None:
        self._routing.direct(name, Traffic(fleet))
        self._set(
            name,
            EndpointStatus="InService",
            EndpointConfigName=fleet.plan["EndpointConfigName"],
            Plan=fleet.plan,
            PendingPlan=None,
            PendingDeploymentSummary=None,
            FailureReason=failure,
            ProductionVariants=[_summary(variant.plan) for variant in fleet.variants],
            DataCaptureConfig=_capture_summary(fleet.plan.get("DataCaptureConfig")),
        )

    def _give_up(self, name: str, error: Exception) -> None:
        if not self._stop.is_set():  # else it is tried again after the restart
            self._set(name, EndpointStatus="Failed", FailureReason=str(error)[:1024])

    def _retire(self, fleet: Fleet) -> None:
        """Stops a fleet that gets no new requests when it has answered those it has."""
        fleet.wait_until_idle(self._model_seconds)
        for instance in fleet.instances:
            self._instances.stop(instance)

    def _set(self, name: str, **changes: Any) -> None:
        self._resources.update(ENDPOINT, name, **changes)

    def _start_fleet(self, name: str, plan: Record) -> Fleet:
        variants = [Variant(variant) for variant in plan["Variants"]]
        plans = [variant.plan for variant in variants for _ in range(variant.plan["InstanceCount"])]
        started = iter(self._instances.start(name, plans))
        for variant in variants:
            variant.instances = [next(started) for _ in range(variant.plan["InstanceCount"])]
        return Fleet(plan, variants)

    def _models_in_use(self) -> set[str]:
        plans = [
            plan
            for endpoint in self._resources.store.all(ENDPOINT.path)
            for plan in (endpoint.get("Plan"), endpoint.get("PendingPlan"))
            if plan
        ]
        return {variant["ModelFolder"] for plan in plans for variant in plan["Variants"]}

    def _start_thread(self, work: Callable[..., None], *arguments: Any) -> None:
        threading.Thread(target=work, args=arguments, name=f"hosting-{work.__name__}", daemon=True).start()


def _ringing(alarms: tuple[str, ...]) -> str | None:
    """The first of the CloudWatch alarms that is in ALARM."""
    if not alarms:
        return None
    try:
        answer = boto3.client("cloudwatch", config=account.CONFIG).describe_alarms(AlarmNames=list(alarms))
    except (BotoCoreError, ClientError) as error:
        raise HostingFailed(f"the alarms can't be read: {error}") from error
    return next((alarm["AlarmName"] for alarm in answer["MetricAlarms"] if alarm["StateValue"] == "ALARM"), None)


def _summary(variant: Record) -> Record:
    return {
        "VariantName": variant["VariantName"],
        "DeployedImages": [{"SpecifiedImage": variant["Image"], "ResolvedImage": variant["Image"]}],
        "CurrentWeight": variant["Weight"],
        "DesiredWeight": variant["Weight"],
        "CurrentInstanceCount": variant["InstanceCount"],
        "DesiredInstanceCount": variant["InstanceCount"],
    }


def _capture_summary(capture: Record | None) -> Record | None:
    if capture is None:
        return None
    return {
        "EnableCapture": capture["EnableCapture"],
        "CaptureStatus": "Started" if capture["EnableCapture"] else "Stopped",
        "CurrentSamplingPercentage": capture["InitialSamplingPercentage"],
        "DestinationS3Uri": capture["DestinationS3Uri"],
        "KmsKeyId": capture.get("KmsKeyId", ""),
    }
