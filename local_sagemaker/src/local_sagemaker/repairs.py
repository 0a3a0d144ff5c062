"""Replaces instances that died, or whose /ping says that they do not work."""

import logging
import threading
import time

from local_sagemaker.fleet import Traffic, Variant
from local_sagemaker.instances import Instance, Instances
from local_sagemaker.routing import Routing

logger = logging.getLogger(__name__)

PING_EVERY = 5
MAX_BACKOFF_SECONDS = 30


class Repairs:
    """Looks after the instances that answer requests, in a thread of its own, until `stop` is set."""

    def __init__(self, instances: Instances, routing: Routing, stop: threading.Event) -> None:
        self._instances, self._routing, self._stop = instances, routing, stop

    def start(self) -> None:
        threading.Thread(target=self._watch, name="hosting-watch", daemon=True).start()

    def _watch(self) -> None:
        beat = 0
        while not self._stop.wait(1):
            beat += 1
            for name, traffic in self._routing.all():
                if beat % PING_EVERY == 0:
                    _ping_all(traffic)
                # One of the incoming fleet ends the update, which must find it.
                for variant in traffic.fleet.variants:
                    sick = [instance for instance in list(variant.instances) if not instance.healthy]
                    if sick and time.monotonic() >= variant.retry_at:
                        variant.retry_at = float("inf")
                        arguments = (name, variant, sick)
                        threading.Thread(
                            target=self._replace, args=arguments, name="hosting-replace", daemon=True
                        ).start()

    def _replace(self, name: str, variant: Variant, sick: list[Instance]) -> None:
        logger.warning("endpoint %s: replacing %d instances of variant %s", name, len(sick), variant.name)
        try:
            for instance in sick:
                self._instances.stop(instance)
            fresh = self._instances.start(name, [variant.plan] * len(sick))
        except Exception as error:
            logger.warning("endpoint %s: %s", name, error)
            variant.failures += 1
            variant.retry_at = time.monotonic() + min(2**variant.failures, MAX_BACKOFF_SECONDS)
            return
        with self._routing.lock:
            traffic = self._routing.traffic(name)
            wanted = traffic is not None and any(variant in fleet.variants for fleet in traffic.fleets)
            # It may have been scaled down, updated or deleted meanwhile.
            missing = [instance for instance in sick if instance in variant.instances] if wanted else []
            healthy = [instance for instance in variant.instances if instance not in missing]
            variant.instances = [*healthy, *fresh[: len(missing)]]
            variant.failures, variant.retry_at = 0, 0.0
        for instance in fresh[len(missing) :]:
            self._instances.stop(instance)


def _ping_all(traffic: Traffic) -> None:
    for instance in [instance for fleet in traffic.fleets for instance in fleet.instances if instance.healthy]:
        instance.missed_pings = 0 if instance.ping() else instance.missed_pings + 1
