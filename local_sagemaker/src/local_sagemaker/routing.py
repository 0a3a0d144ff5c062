"""Which instance answers a request: the traffic of every endpoint, and a lease for each request."""

import threading

from local_sagemaker.fleet import Fleet, Lease, Traffic
from local_sagemaker.resources import ENDPOINT, Resources


class Unavailable(Exception):
    """No instance can take a request now; the message says why."""


class Routing:
    """The traffic of the endpoints that serve. `lock` holds it, and the instances of its fleets, still."""

    def __init__(self, resources: Resources, queue_per_instance: int) -> None:
        self._resources = resources
        self._queue = queue_per_instance
        self._traffic: dict[str, Traffic] = {}
        self.lock = threading.Lock()

    def lease(self, name: str, target: str | None) -> Lease | None:
        """Takes the least busy instance of a variant for one request, to be given back with `release`.

        None if the endpoint or the target variant does not exist; raises Unavailable if none can take it now.
        """
        with self.lock:
            traffic = self._traffic.get(name)
            if traffic is None:
                endpoint = self._resources.store.get(ENDPOINT.path, name)
                if endpoint and endpoint["EndpointStatus"] == "SystemUpdating":
                    raise Unavailable(f"Endpoint {name} is starting again after a restart of the server.")
                return None
            chosen = traffic.choose(target)
            if chosen is None:
                return None
            fleet, variant = chosen
            instances = [instance for instance in variant.instances if instance.healthy]
            if not instances:
                raise Unavailable(f"No instance of variant {variant.name} is healthy.")
            instance = min(instances, key=lambda instance: instance.in_flight)
            if instance.in_flight >= self._queue:
                raise Unavailable(f"Every instance of variant {variant.name} has {self._queue} requests in flight.")
            instance.in_flight += 1
            variant.invocations += 1
            return Lease(fleet, variant, instance)

    def release(self, lease: Lease) -> None:
        with self.lock:
            lease.instance.in_flight -= 1

    def direct(self, name: str, traffic: Traffic) -> None:
        """Has the endpoint's requests answered so from now on."""
        with self.lock:
            self._traffic[name] = traffic

    def close(self, name: str) -> Traffic | None:
        """Ends the endpoint's traffic and returns what it was."""
        with self.lock:
            return self._traffic.pop(name, None)

    def fleet(self, name: str) -> Fleet:
        """The fleet that answers an endpoint's requests; KeyError if there is none."""
        return self._traffic[name].fleet

    def traffic(self, name: str) -> Traffic | None:
        return self._traffic.get(name)

    def all(self) -> list[tuple[str, Traffic]]:
        """The traffic of every endpoint, by name."""
        return list(self._traffic.items())
