"""Fleets: the running instances of an endpoint's variants, and which of them answers a request."""

import random
import time
from dataclasses import dataclass, field

from local_sagemaker.instances import Instance
from local_sagemaker.store import Record


@dataclass(eq=False)
class Variant:
    """The running instances of a production variant. `plan` says what each of them runs."""

    plan: Record
    instances: list[Instance] = field(default_factory=list)
    invocations: int = 0
    failures: int = 0
    retry_at: float = 0.0

    @property
    def name(self) -> str:
        return str(self.plan["VariantName"])

    @property
    def weight(self) -> float:
        return float(self.plan["Weight"])


@dataclass(eq=False)
class Fleet:
    """The variants of one endpoint config."""

    plan: Record
    variants: list[Variant]

    @property
    def instances(self) -> list[Instance]:
        return [instance for variant in self.variants for instance in variant.instances]

    def choose(self, target: str | None) -> Variant | None:
        """The named variant, or one drawn by weight; None if there is no such variant."""
        if target is not None:
            return next((variant for variant in self.variants if variant.name == target), None)
        largest = max(variant.weight for variant in self.variants)
        weights = [variant.weight / largest if largest else 1.0 for variant in self.variants]
        return random.choices(self.variants, weights)[0]

    def wait_until_idle(self, seconds: float) -> None:
        """Returns when no request is in flight, or after that time."""
        deadline = time.monotonic() + seconds
        while any(instance.in_flight for instance in self.instances) and time.monotonic() < deadline:
            time.sleep(0.02)


@dataclass
class Traffic:
    """Which fleet answers an endpoint's requests; during an update a share of them goes to the incoming one."""

    fleet: Fleet
    incoming: Fleet | None = None
    share: float = 0.0

    @property
    def fleets(self) -> list[Fleet]:
        return [self.fleet, self.incoming] if self.incoming else [self.fleet]

    def choose(self, target: str | None) -> tuple[Fleet, Variant] | None:
        """A variant of the fleet whose turn it is; one that is named is found in the other as well."""
        first_new = self.incoming is not None and random.random() < self.share
        for fleet in reversed(self.fleets) if first_new else self.fleets:
            variant = fleet.choose(target)
            if variant:
                return fleet, variant
        return None


@dataclass(frozen=True)
class Lease:
    """A request's hold on an instance."""

    fleet: Fleet
    variant: Variant
    instance: Instance
