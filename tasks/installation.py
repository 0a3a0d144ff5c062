"""What an installation consists of, and which model serves in it; plain values that every folder may import."""

from dataclasses import dataclass

from settings import CAPTURE_PREFIX


@dataclass(frozen=True)
class Installation:
    """What the rest reads from the stacks' outputs."""

    bucket: str
    state_machine_arn: str
    endpoint: str
    classes: tuple[str, ...]
    threshold: float
    training_role_arn: str
    hosting_role_arn: str


@dataclass(frozen=True)
class ServingEndpoint:
    """An endpoint in service and the model version it serves."""

    name: str
    model_version: str


def capture_prefix(endpoint: str) -> str:
    """Where the capture records of an endpoint are in the bucket."""
    return f"{CAPTURE_PREFIX}{endpoint}/"
