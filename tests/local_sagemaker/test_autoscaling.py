"""Endpoints that scale by themselves: by how often each instance is asked, within bounds, and as AWS refuses."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.exceptions import ClientError

from testing.waiting import eventually
from tests.local_sagemaker.conftest import Server

DIMENSION = "sagemaker:variant:DesiredInstanceCount"
METRIC = "SageMakerVariantInvocationsPerInstance"


class Scaling:
    """Application Auto Scaling of one endpoint's variant."""

    def __init__(self, server: Server, endpoint: str) -> None:
        self.client = server.aws.client("application-autoscaling")
        self.server, self.endpoint = server, endpoint
        self.target = {
            "ServiceNamespace": "sagemaker",
            "ResourceId": f"endpoint/{endpoint}/variant/only",
            "ScalableDimension": DIMENSION,
        }

    def register(self, low: int, high: int) -> str:
        arn: str = self.client.register_scalable_target(**self.target, MinCapacity=low, MaxCapacity=high)[
            "ScalableTargetARN"
        ]
        return arn

    def follow(self, invocations: float, **more: Any) -> None:
        self.client.put_scaling_policy(
            **self.target,
            PolicyName="invocations",
            PolicyType="TargetTrackingScaling",
            TargetTrackingScalingPolicyConfiguration={
                "TargetValue": invocations,
                "PredefinedMetricSpecification": {"PredefinedMetricType": METRIC},
                "ScaleOutCooldown": 0,
                "ScaleInCooldown": 0,
                **more,
            },
        )

    @property
    def instances(self) -> int:
        described = self.server.sagemaker.describe_endpoint(EndpointName=self.endpoint)
        count: int = described["ProductionVariants"][0]["CurrentInstanceCount"]
        return count if described["EndpointStatus"] == "InService" else 0

    @property
    def activities(self) -> list[str]:
        """The newest first."""
        found = self.client.describe_scaling_activities(
            ServiceNamespace="sagemaker", ResourceId=self.target["ResourceId"]
        )
        return [each["Description"] for each in found["ScalingActivities"]]


@pytest.fixture
def scaling(server: Server) -> Iterator[Scaling]:
    name = server.endpoint()
    yield Scaling(server, name)
    server.settled(name)
    server.delete(name)


def test_an_endpoint_that_is_asked_much_gets_instances_and_loses_them_when_it_is_asked_little(scaling: Scaling) -> None:
    server, name = scaling.server, scaling.endpoint
    scaling.register(1, 3)
    scaling.follow(60)  # one a second
    asking, pause = threading.Event(), threading.Event()

    def ask() -> None:
        while not asking.is_set():
            server.invoke(name)
            pause.wait(0.01)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        eventually(lambda: scaling.instances == 3)
    finally:
        asking.set()
        thread.join()
    assert scaling.activities[0] == "Setting desired instance count to 3."
    # Nobody asks, so there is nothing to go by, and all stay. SageMaker publishes no zeroes.
    pause.wait(10)
    assert scaling.instances == 3
    scaling.follow(1e6)

    def asked_little() -> bool:
        server.invoke(name)
        return scaling.instances == 1

    eventually(asked_little)


def test_an_endpoint_is_brought_within_its_bounds(scaling: Scaling) -> None:
    arn = scaling.register(2, 3)
    eventually(lambda: scaling.instances == 2)
    assert scaling.register(1, 1) == arn  # the same target, with other bounds
    eventually(lambda: scaling.instances == 1)


def test_an_update_keeps_the_instances_only_if_asked_to_and_the_type_never_changes(scaling: Scaling) -> None:
    server, name = scaling.server, scaling.endpoint
    scaling.register(2, 2)
    eventually(lambda: scaling.instances == 2)
    server.sagemaker.update_endpoint(
        EndpointName=name, EndpointConfigName=server.config(), RetainAllVariantProperties=True
    )
    assert server.settled(name)["ProductionVariants"][0]["CurrentInstanceCount"] == 2
    with pytest.raises(ClientError, match="is a scalable target of Application Auto Scaling"):
        server.sagemaker.update_endpoint(
            EndpointName=name, EndpointConfigName=server.config({"InstanceType": "ml.c5.large"})
        )
    scaling.client.deregister_scalable_target(**scaling.target)
    server.sagemaker.update_endpoint(
        EndpointName=name, EndpointConfigName=server.config({"InstanceType": "ml.c5.large"})
    )
    assert server.settled(name)["EndpointStatus"] == "InService"


def test_targets_and_policies_go_with_the_endpoint(server: Server) -> None:
    scaling = Scaling(server, server.endpoint())
    scaling.register(1, 2)
    scaling.follow(100)
    (policy,) = scaling.client.describe_scaling_policies(ServiceNamespace="sagemaker")["ScalingPolicies"]
    assert policy["PolicyName"] == "invocations" and policy["ResourceId"] == scaling.target["ResourceId"]
    named = {"ServiceNamespace": "sagemaker", "ResourceIds": [scaling.target["ResourceId"]]}
    assert len(scaling.client.describe_scalable_targets(**named)["ScalableTargets"]) == 1
    server.delete(scaling.endpoint)
    assert not scaling.client.describe_scalable_targets(**named)["ScalableTargets"]
    assert not scaling.client.describe_scaling_policies(ServiceNamespace="sagemaker")["ScalingPolicies"]


@pytest.mark.parametrize(
    ("change", "bounds", "code"),
    [
        ({"ResourceId": "endpoint/none/variant/only"}, (1, 2), "ValidationException"),
        ({"ResourceId": "table/none"}, (1, 2), "ValidationException"),
        ({"ServiceNamespace": "dynamodb"}, (1, 2), "ValidationException"),
        ({}, (2, 1), "ValidationException"),
        ({}, (0, 1), "ValidationException"),
        ({}, (None, 1), "ValidationException"),
    ],
)
def test_what_makes_no_sense_is_refused(
    server: Server, actor: str, change: dict[str, str], bounds: tuple[int | None, int], code: str
) -> None:
    scaling = Scaling(server, actor)
    low, high = bounds
    least = {} if low is None else {"MinCapacity": low}
    with pytest.raises(ClientError) as refused:
        scaling.client.register_scalable_target(**{**scaling.target, **change}, **least, MaxCapacity=high)
    assert refused.value.response["Error"]["Code"] == code


def test_nothing_is_done_to_what_is_not_registered(server: Server, actor: str) -> None:
    scaling = Scaling(server, actor)
    for call in (lambda: scaling.follow(10), lambda: scaling.client.deregister_scalable_target(**scaling.target)):
        with pytest.raises(ClientError, match="No scalable target registered") as refused:
            call()
        assert refused.value.response["Error"]["Code"] == "ObjectNotFoundException"
