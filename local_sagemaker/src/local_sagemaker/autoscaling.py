"""Target tracking of endpoint variants: more instances while each is asked too often, fewer after a while of little.

As Application Auto Scaling's alarms do: three periods in a row above the target scale out, fifteen below nine tenths of
it scale in, and the capacity is what would have met the target. A period without a request has no data point, so a
variant that nobody asks any more keeps its instances: SageMaker "doesn't emit metrics with a value of zero".
https://docs.aws.amazon.com/sagemaker/latest/dg/endpoint-auto-scaling.html
"""

import logging
import math
import threading
import time
import uuid
from collections import deque
from dataclasses import dataclass, field
from typing import Protocol

from local_sagemaker.fleet import Variant
from local_sagemaker.operations.autoscaling import (
    ACTIVITIES,
    DIMENSION,
    NAMESPACE,
    POLICIES,
    RESOURCE_ID,
    TARGETS,
)
from local_sagemaker.protocol import ApiError
from local_sagemaker.resources import Resources
from local_sagemaker.routing import Routing
from local_sagemaker.store import Record

logger = logging.getLogger(__name__)

PERIOD_SECONDS = 60.0
PERIODS_OUT, PERIODS_IN = 3, 15
SHARE_IN = 0.9
# Defaults for SageMaker: API_TargetTrackingScalingPolicyConfiguration.
COOLDOWN_SECONDS = 300


class Scaler(Protocol):
    """What sets an endpoint's capacity."""

    def update_endpoint_weights_and_capacities(self, request: Record) -> Record: ...


@dataclass
class _Watched:
    """What was seen of a variant: invocations counted so far, and invocations per instance and minute by period."""

    variant: Variant | None = None
    counted: int = 0
    values: deque[float] = field(default_factory=lambda: deque(maxlen=PERIODS_IN))
    quiet_until: float = 0.0


class AutoScaling:
    """Looks at every scalable target once a period, in a thread of its own."""

    def __init__(self, resources: Resources, routing: Routing, scaler: Scaler, period: float = PERIOD_SECONDS) -> None:
        self._resources, self._routing, self._scaler, self._period = resources, routing, scaler, period
        self._watched: dict[str, _Watched] = {}
        self._stop = threading.Event()
        threading.Thread(target=self._watch, name="autoscaling", daemon=True).start()

    def shutdown(self) -> None:
        self._stop.set()

    def _watch(self) -> None:
        while not self._stop.wait(self._period):
            targets = self._resources.store.all(TARGETS)
            known = {target["ResourceId"] for target in targets}
            self._watched = {name: each for name, each in self._watched.items() if name in known}
            for target in targets:
                try:
                    self._look_at(target)
                except ApiError as error:  # an update is under way, or the account has no more instances
                    logger.info("%s is not scaled: %s", target["ResourceId"], error.message)
                except Exception:
                    logger.exception("scaling %s", target["ResourceId"])

    def _look_at(self, target: Record) -> None:
        resource = target["ResourceId"]
        match = RESOURCE_ID.fullmatch(resource)
        assert match, "only such are registered"
        traffic = self._routing.traffic(match[1])
        variant = traffic.fleet.choose(match[2]) if traffic else None
        if variant is None or not variant.instances:
            return
        seen = self._watched.setdefault(resource, _Watched())
        count = len(variant.instances)
        if seen.variant is not variant:  # it was replaced by an update
            seen.variant, seen.counted = variant, 0
        asked, seen.counted = variant.invocations - seen.counted, variant.invocations
        if asked:
            seen.values.append(asked * 60 / self._period / count)
        low, high = target["MinCapacity"], target["MaxCapacity"]
        if not low <= count <= high:
            self._scale(target, count, min(max(count, low), high), "the capacity is out of bounds")
            return
        for policy in self._resources.store.all(POLICIES):
            if policy["ResourceId"] == resource and time.monotonic() >= seen.quiet_until:
                self._follow(policy["TargetTrackingScalingPolicyConfiguration"], target, count, seen)

    def _follow(self, policy: Record, target: Record, count: int, seen: _Watched) -> None:
        wanted, values = policy["TargetValue"], list(seen.values)
        capacity, cooldown = count, COOLDOWN_SECONDS
        if len(values) >= PERIODS_OUT and min(values[-PERIODS_OUT:]) > wanted:
            capacity = math.ceil(count * values[-1] / wanted)
            cooldown = policy.get("ScaleOutCooldown", COOLDOWN_SECONDS)
        elif len(values) == PERIODS_IN and max(values) < SHARE_IN * wanted and not policy.get("DisableScaleIn"):
            capacity = math.ceil(count * values[-1] / wanted)
            cooldown = policy.get("ScaleInCooldown", COOLDOWN_SECONDS)
        capacity = min(max(capacity, target["MinCapacity"]), target["MaxCapacity"])
        if capacity == count:
            return
        self._scale(target, count, capacity, f"{values[-1]:.0f} invocations per instance and minute, {wanted:g} wanted")
        seen.quiet_until = time.monotonic() + cooldown
        seen.values.clear()

    def _scale(self, target: Record, present: int, capacity: int, cause: str) -> None:
        match = RESOURCE_ID.fullmatch(target["ResourceId"])
        assert match, "only such are registered"
        desired = {"VariantName": match[2], "DesiredInstanceCount": capacity}
        began = time.time()
        self._scaler.update_endpoint_weights_and_capacities(
            {"EndpointName": match[1], "DesiredWeightsAndCapacities": [desired]}
        )
        logger.info("%s: %d instances instead of %d: %s", target["ResourceId"], capacity, present, cause)
        activity = {
            "ActivityId": str(uuid.uuid4()),
            "ServiceNamespace": NAMESPACE,
            "ResourceId": target["ResourceId"],
            "ScalableDimension": DIMENSION,
            "Description": f"Setting desired instance count to {capacity}.",
            "Cause": cause,
            "StartTime": began,
            "EndTime": time.time(),
            "StatusCode": "Successful",
        }
        self._resources.store.put(ACTIVITIES, activity["ActivityId"], activity)
