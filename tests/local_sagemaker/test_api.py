"""What AWS's API reference says of every operation, written down by hand and asked of the server.

The server checks requests with botocore's description of the API, so it can't be its own judge: nothing here is derived
from that description, and the client that asks has its own checks switched off.

Sources: the reference page of each operation for required members, ranges, error names and answered fields. A missing
resource and, but for training jobs, a name that is taken are ValidationException on SageMaker, which the reference's
pages do not list and AWS's users report ("Could not find ...", "Cannot create already existing ..."). A value of
another JSON type is refused by AWS's protocol layer as SerializationException.
"""

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import pytest
from botocore.exceptions import ClientError

from testing.waiting import eventually
from tests.local_sagemaker.conftest import BUCKET, INFERENCE_IMAGE, TRAINING_IMAGE, Server, unique

Request = dict[str, Any]
LONG_NAME = "x" * 64
NOBODY = "arn:aws:sagemaker:us-east-1:000000000000:"


@dataclass(frozen=True)
class Operation:
    """One page of the reference.

    `request` makes a good request. `required` members are left out one by one; `wrong_types` and `out_of_range` map a
    path into the request to a bad value; `absent` maps one to the name of a resource that does not exist. `in_use`
    makes a request that another resource or the resource's state forbids, and the error's code.
    """

    name: str
    request: Callable[["World"], Request]
    answer: dict[str, type | tuple[type, ...]] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    wrong_types: dict[str, Any] = field(default_factory=dict)
    out_of_range: dict[str, Any] = field(default_factory=dict)
    absent: dict[str, Any] = field(default_factory=dict)
    in_use: tuple[Callable[["World"], Request], str] | None = None


class World:
    """What the requests speak of."""

    def __init__(self, server: Server, actor: str) -> None:
        self.server = server
        server.put("data/train.csv", b"1")
        server.put("model.tar.gz", b"")
        self.role = server.role
        self.endpoint = actor
        self.endpoint_arn = server.sagemaker.describe_endpoint(EndpointName=actor)["EndpointArn"]
        self.model = server.model()
        self.config = server.config({"ModelName": self.model})
        self.job = server.job("print('a job')\n")
        self.ended_job = server.ended(server.job("raise SystemExit(1)\n"))["TrainingJobName"]
        self.group = unique("group")
        server.sagemaker.create_model_package_group(ModelPackageGroupName=self.group)
        self.package = self.new_package()
        self.full_group = unique("group")
        server.sagemaker.create_model_package_group(ModelPackageGroupName=self.full_group)
        server.sagemaker.create_model_package(ModelPackageGroupName=self.full_group)

    def new_package(self) -> str:
        arn: str = self.server.sagemaker.create_model_package(ModelPackageGroupName=self.group)["ModelPackageArn"]
        return arn

    def new_group(self) -> str:
        name = unique("group")
        self.server.sagemaker.create_model_package_group(ModelPackageGroupName=name)
        return name

    def running_job(self) -> str:
        return self.server.job("import time\ntime.sleep(60)\n")

    def training_job(self, name: str) -> Request:
        source = {"S3DataType": "S3Prefix", "S3Uri": f"s3://{BUCKET}/data/"}
        return {
            "TrainingJobName": name,
            "AlgorithmSpecification": {"TrainingImage": TRAINING_IMAGE, "TrainingInputMode": "File"},
            "RoleArn": self.role,
            "InputDataConfig": [{"ChannelName": "train", "DataSource": {"S3DataSource": source}}],
            "OutputDataConfig": {"S3OutputPath": f"s3://{BUCKET}/out"},
            "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 1},
            "StoppingCondition": {"MaxRuntimeInSeconds": 60},
            "HyperParameters": {"epochs": "1"},
        }

    def model_request(self, name: str) -> Request:
        container = {"Image": INFERENCE_IMAGE, "ModelDataUrl": f"s3://{BUCKET}/model.tar.gz"}
        return {"ModelName": name, "PrimaryContainer": container, "ExecutionRoleArn": self.role}

    def config_request(self, name: str) -> Request:
        variant = {
            "VariantName": "only",
            "ModelName": self.model,
            "InstanceType": "ml.m5.large",
            "InitialInstanceCount": 1,
            "InitialVariantWeight": 1.0,
        }
        capture = {
            "EnableCapture": True,
            "InitialSamplingPercentage": 100,
            "DestinationS3Uri": f"s3://{BUCKET}/capture",
            "CaptureOptions": [{"CaptureMode": "Input"}],
        }
        return {"EndpointConfigName": name, "ProductionVariants": [variant], "DataCaptureConfig": capture}


# A page of every List operation has these.
PAGE = {"MaxResults": 2, "SortOrder": "Ascending", "SortBy": "Name"}
PAGE_TYPES = {"MaxResults": "two", "NameContains": 7, "SortBy": 1}
PAGE_RANGES = {"MaxResults": 101, "NameContains": "not/a/name", "SortBy": "Size", "SortOrder": "Upwards"}
NUMBER = (int, float)

OPERATIONS = [
    Operation(
        "CreateTrainingJob",
        lambda world: world.training_job(unique("api")),
        {"TrainingJobArn": str},
        required=(
            "TrainingJobName",
            "AlgorithmSpecification",
            "AlgorithmSpecification.TrainingInputMode",
            "RoleArn",
            "OutputDataConfig",
            "OutputDataConfig.S3OutputPath",
            "ResourceConfig",
            "InputDataConfig.0.ChannelName",
            "InputDataConfig.0.DataSource",
            "InputDataConfig.0.DataSource.S3DataSource.S3Uri",
        ),
        wrong_types={
            "TrainingJobName": 7,
            "ResourceConfig.InstanceCount": "one",
            "StoppingCondition.MaxRuntimeInSeconds": True,
            "HyperParameters.epochs": 1,
        },
        out_of_range={
            "TrainingJobName": LONG_NAME,
            "RoleArn": "not an arn, however long it is",
            "AlgorithmSpecification.TrainingInputMode": "Telepathy",
            "InputDataConfig.0.ChannelName": "no spaces",
            "InputDataConfig.0.DataSource.S3DataSource.S3DataType": "S3Suffix",
            "InputDataConfig.0.DataSource.S3DataSource.S3Uri": "ftp://elsewhere",
            "OutputDataConfig.S3OutputPath": "s3:/one-slash",
            "ResourceConfig.InstanceType": "ml.huge",
            "ResourceConfig.InstanceCount": 0,
            "StoppingCondition.MaxRuntimeInSeconds": 0,
            "HyperParameters.epochs": "9" * 2501,
        },
        in_use=(lambda world: world.training_job(world.job), "ResourceInUse"),
    ),
    Operation(
        "DescribeTrainingJob",
        lambda world: {"TrainingJobName": world.job},
        {
            "TrainingJobName": str,
            "TrainingJobArn": str,
            "ModelArtifacts": dict,
            "TrainingJobStatus": str,
            "SecondaryStatus": str,
            "AlgorithmSpecification": dict,
            "ResourceConfig": dict,
            "StoppingCondition": dict,
            "CreationTime": object,
        },
        required=("TrainingJobName",),
        wrong_types={"TrainingJobName": ["a", "list"]},
        out_of_range={"TrainingJobName": "under_score"},
        absent={"TrainingJobName": "nobody"},
    ),
    Operation(
        "ListTrainingJobs",
        lambda world: {**PAGE, "StatusEquals": "Failed"},
        {"TrainingJobSummaries": list},
        wrong_types=PAGE_TYPES,
        out_of_range={**PAGE_RANGES, "StatusEquals": "Fine"},
    ),
    Operation(
        "StopTrainingJob",
        lambda world: {"TrainingJobName": world.running_job()},
        required=("TrainingJobName",),
        wrong_types={"TrainingJobName": 7},
        out_of_range={"TrainingJobName": LONG_NAME},
        absent={"TrainingJobName": "nobody"},
        in_use=(lambda world: {"TrainingJobName": world.ended_job}, "ValidationException"),
    ),
    Operation(
        "CreateModel",
        lambda world: world.model_request(unique("api")),
        {"ModelArn": str},
        required=("ModelName",),
        wrong_types={"ModelName": 7, "PrimaryContainer.Image": 7},
        out_of_range={
            "ModelName": LONG_NAME,
            "ExecutionRoleArn": "nobody",
            "PrimaryContainer.Image": "i" * 256,
            "PrimaryContainer.ModelDataUrl": "not a url",
        },
        absent={"PrimaryContainer": {"ModelPackageName": NOBODY + "model-package/nobody/1"}},
        in_use=(lambda world: world.model_request(world.model), "ValidationException"),
    ),
    Operation(
        "DescribeModel",
        lambda world: {"ModelName": world.model},
        {"ModelName": str, "ModelArn": str, "PrimaryContainer": dict, "ExecutionRoleArn": str, "CreationTime": object},
        required=("ModelName",),
        wrong_types={"ModelName": 7},
        out_of_range={"ModelName": LONG_NAME},
        absent={"ModelName": "nobody"},
    ),
    Operation("ListModels", lambda world: PAGE, {"Models": list}, (), PAGE_TYPES, PAGE_RANGES),
    Operation(
        "DeleteModel",
        lambda world: {"ModelName": world.server.model()},
        required=("ModelName",),
        wrong_types={"ModelName": 7},
        out_of_range={"ModelName": LONG_NAME},
        absent={"ModelName": "nobody"},
    ),
    Operation(
        "CreateEndpointConfig",
        lambda world: world.config_request(unique("api")),
        {"EndpointConfigArn": str},
        required=(
            "EndpointConfigName",
            "ProductionVariants",
            "ProductionVariants.0.VariantName",
            "DataCaptureConfig.InitialSamplingPercentage",
            "DataCaptureConfig.DestinationS3Uri",
            "DataCaptureConfig.CaptureOptions",
            "DataCaptureConfig.CaptureOptions.0.CaptureMode",
        ),
        wrong_types={
            "EndpointConfigName": 7,
            "ProductionVariants.0.InitialInstanceCount": "one",
            "DataCaptureConfig.EnableCapture": "yes",
        },
        out_of_range={
            "EndpointConfigName": LONG_NAME,
            "ProductionVariants": [],
            "ProductionVariants.0.InitialInstanceCount": 0,
            "ProductionVariants.0.InitialVariantWeight": -1,
            "ProductionVariants.0.InstanceType": "ml.huge",
            "DataCaptureConfig.InitialSamplingPercentage": 101,
            "DataCaptureConfig.CaptureOptions.0.CaptureMode": "Sideways",
            "DataCaptureConfig.DestinationS3Uri": "somewhere",
        },
        absent={"ProductionVariants.0.ModelName": "nobody"},
        in_use=(lambda world: world.config_request(world.config), "ValidationException"),
    ),
    Operation(
        "DescribeEndpointConfig",
        lambda world: {"EndpointConfigName": world.config},
        {"EndpointConfigName": str, "EndpointConfigArn": str, "ProductionVariants": list, "CreationTime": object},
        required=("EndpointConfigName",),
        wrong_types={"EndpointConfigName": 7},
        out_of_range={"EndpointConfigName": LONG_NAME},
        absent={"EndpointConfigName": "nobody"},
    ),
    Operation("ListEndpointConfigs", lambda world: PAGE, {"EndpointConfigs": list}, (), PAGE_TYPES, PAGE_RANGES),
    Operation(
        "DeleteEndpointConfig",
        lambda world: {"EndpointConfigName": world.server.config({"ModelName": world.model})},
        required=("EndpointConfigName",),
        wrong_types={"EndpointConfigName": 7},
        out_of_range={"EndpointConfigName": LONG_NAME},
        absent={"EndpointConfigName": "nobody"},
    ),
    Operation(
        "CreateEndpoint",
        lambda world: {"EndpointName": unique("api"), "EndpointConfigName": world.config},
        {"EndpointArn": str},
        required=("EndpointName", "EndpointConfigName"),
        wrong_types={"EndpointName": 7, "EndpointConfigName": {}},
        out_of_range={"EndpointName": LONG_NAME, "EndpointConfigName": "-hyphen-first"},
        absent={"EndpointConfigName": "nobody"},
        in_use=(
            lambda world: {"EndpointName": world.endpoint, "EndpointConfigName": world.config},
            "ValidationException",
        ),
    ),
    Operation(
        "DescribeEndpoint",
        lambda world: {"EndpointName": world.endpoint},
        {
            "EndpointName": str,
            "EndpointArn": str,
            "EndpointConfigName": str,
            "ProductionVariants": list,
            "EndpointStatus": str,
            "CreationTime": object,
            "LastModifiedTime": object,
        },
        required=("EndpointName",),
        wrong_types={"EndpointName": 7},
        out_of_range={"EndpointName": LONG_NAME},
        absent={"EndpointName": "nobody"},
    ),
    Operation(
        "ListEndpoints",
        lambda world: {**PAGE, "StatusEquals": "InService"},
        {"Endpoints": list},
        wrong_types=PAGE_TYPES,
        out_of_range={**PAGE_RANGES, "StatusEquals": "Fine"},
    ),
    Operation(
        "UpdateEndpoint",
        lambda world: {"EndpointName": world.server.endpoint(world.config), "EndpointConfigName": world.config},
        {"EndpointArn": str},
        required=("EndpointName", "EndpointConfigName"),
        wrong_types={"EndpointName": 7, "RetainAllVariantProperties": "yes"},
        out_of_range={
            "EndpointName": LONG_NAME,
            "DeploymentConfig.BlueGreenUpdatePolicy.TrafficRoutingConfiguration.WaitIntervalInSeconds": 3601,
        },
        absent={"EndpointName": "nobody", "EndpointConfigName": "nobody"},
        in_use=(
            lambda world: {
                "EndpointName": world.server.endpoint(world.config, wait=False),
                "EndpointConfigName": world.config,
            },
            "ValidationException",
        ),
    ),
    Operation(
        "UpdateEndpointWeightsAndCapacities",
        lambda world: {
            "EndpointName": world.server.endpoint(world.config),
            "DesiredWeightsAndCapacities": [{"VariantName": "only", "DesiredWeight": 2.0, "DesiredInstanceCount": 1}],
        },
        {"EndpointArn": str},
        required=("EndpointName", "DesiredWeightsAndCapacities", "DesiredWeightsAndCapacities.0.VariantName"),
        wrong_types={"EndpointName": 7, "DesiredWeightsAndCapacities.0.DesiredInstanceCount": "one"},
        out_of_range={
            "EndpointName": LONG_NAME,
            "DesiredWeightsAndCapacities": [],
            "DesiredWeightsAndCapacities.0.DesiredWeight": -1,
        },
        absent={"EndpointName": "nobody", "DesiredWeightsAndCapacities.0.VariantName": "nobody"},
    ),
    Operation(
        "DeleteEndpoint",
        lambda world: {"EndpointName": world.server.endpoint(world.config)},
        required=("EndpointName",),
        wrong_types={"EndpointName": 7},
        out_of_range={"EndpointName": LONG_NAME},
        absent={"EndpointName": "nobody"},
        in_use=(
            lambda world: {"EndpointName": world.server.endpoint(world.config, wait=False)},
            "ValidationException",
        ),
    ),
    Operation(
        "AddTags",
        lambda world: {"ResourceArn": world.endpoint_arn, "Tags": [{"Key": "team", "Value": "kitchen"}]},
        {"Tags": list},
        required=("ResourceArn", "Tags", "Tags.0.Key", "Tags.0.Value"),
        wrong_types={"ResourceArn": 7, "Tags.0.Value": 7},
        out_of_range={"ResourceArn": "an-endpoint", "Tags.0.Key": "k" * 129, "Tags.0.Value": "v" * 257},
        absent={"ResourceArn": NOBODY + "endpoint/nobody"},
    ),
    Operation(
        "ListTags",
        lambda world: {"ResourceArn": world.endpoint_arn, "MaxResults": 50},
        {"Tags": list},
        required=("ResourceArn",),
        wrong_types={"ResourceArn": 7, "MaxResults": "fifty"},
        out_of_range={"ResourceArn": "an-endpoint", "MaxResults": 49},
        absent={"ResourceArn": NOBODY + "endpoint/nobody"},
    ),
    Operation(
        "DeleteTags",
        lambda world: {"ResourceArn": world.endpoint_arn, "TagKeys": ["never-there"]},
        required=("ResourceArn", "TagKeys"),
        wrong_types={"ResourceArn": 7, "TagKeys.0": 7},
        out_of_range={"ResourceArn": "an-endpoint", "TagKeys": []},
        absent={"ResourceArn": NOBODY + "endpoint/nobody"},
    ),
    Operation(
        "CreateModelPackageGroup",
        lambda world: {"ModelPackageGroupName": unique("api"), "ModelPackageGroupDescription": "scones"},
        {"ModelPackageGroupArn": str},
        required=("ModelPackageGroupName",),
        wrong_types={"ModelPackageGroupName": 7},
        out_of_range={"ModelPackageGroupName": LONG_NAME, "ModelPackageGroupDescription": "d" * 1025},
        in_use=(lambda world: {"ModelPackageGroupName": world.group}, "ValidationException"),
    ),
    Operation(
        "DescribeModelPackageGroup",
        lambda world: {"ModelPackageGroupName": world.group},
        {
            "ModelPackageGroupName": str,
            "ModelPackageGroupArn": str,
            "CreationTime": object,
            "CreatedBy": dict,
            "ModelPackageGroupStatus": str,
        },
        required=("ModelPackageGroupName",),
        wrong_types={"ModelPackageGroupName": 7},
        out_of_range={"ModelPackageGroupName": "g" * 171},
        absent={"ModelPackageGroupName": "nobody"},
    ),
    Operation(
        "ListModelPackageGroups",
        lambda world: PAGE,
        {"ModelPackageGroupSummaryList": list},
        (),
        PAGE_TYPES,
        PAGE_RANGES,
    ),
    Operation(
        "DeleteModelPackageGroup",
        lambda world: {"ModelPackageGroupName": world.new_group()},
        required=("ModelPackageGroupName",),
        wrong_types={"ModelPackageGroupName": 7},
        out_of_range={"ModelPackageGroupName": "g" * 171},
        absent={"ModelPackageGroupName": "nobody"},
        in_use=(lambda world: {"ModelPackageGroupName": world.full_group}, "ConflictException"),
    ),
    Operation(
        "CreateModelPackage",
        lambda world: {
            "ModelPackageGroupName": world.group,
            "ModelPackageDescription": "a version",
            "InferenceSpecification": {"Containers": [{"Image": INFERENCE_IMAGE}]},
            "CustomerMetadataProperties": {"job": "a job"},
        },
        {"ModelPackageArn": str},
        required=("InferenceSpecification.Containers",),
        wrong_types={"ModelPackageGroupName": 7, "CustomerMetadataProperties.job": 7},
        out_of_range={
            "ModelPackageGroupName": "under_score",
            "ModelPackageDescription": "d" * 1025,
            "CustomerMetadataProperties.job": "v" * 257,
            "ModelApprovalStatus": "Perhaps",
        },
        absent={"ModelPackageGroupName": "nobody"},
    ),
    Operation(
        "DescribeModelPackage",
        lambda world: {"ModelPackageName": world.package},
        {
            "ModelPackageGroupName": str,
            "ModelPackageVersion": int,
            "ModelPackageArn": str,
            "CreationTime": object,
            "ModelPackageStatus": str,
            "ModelPackageStatusDetails": dict,
            "ModelApprovalStatus": str,
        },
        required=("ModelPackageName",),
        wrong_types={"ModelPackageName": 7},
        out_of_range={"ModelPackageName": "n" * 177},
        absent={"ModelPackageName": NOBODY + "model-package/nobody/1"},
    ),
    Operation(
        "UpdateModelPackage",
        lambda world: {
            "ModelPackageArn": world.package,
            "ModelApprovalStatus": "Approved",
            "ApprovalDescription": "it is good",
        },
        {"ModelPackageArn": str},
        required=("ModelPackageArn",),
        wrong_types={"ModelPackageArn": 7, "ApprovalDescription": ["good"]},
        out_of_range={
            "ModelPackageArn": "a-name",
            "ModelApprovalStatus": "Perhaps",
            "ApprovalDescription": "d" * 1025,
        },
        absent={"ModelPackageArn": NOBODY + "model-package/nobody/1"},
    ),
    Operation(
        "ListModelPackages",
        lambda world: {**PAGE, "ModelPackageGroupName": world.group, "ModelApprovalStatus": "Approved"},
        {"ModelPackageSummaryList": list},
        wrong_types=PAGE_TYPES,
        out_of_range={**PAGE_RANGES, "ModelApprovalStatus": "Perhaps", "ModelPackageType": "Third"},
        absent={"ModelPackageGroupName": "nobody"},
    ),
    Operation(
        "DeleteModelPackage",
        lambda world: {"ModelPackageName": world.new_package()},
        required=("ModelPackageName",),
        wrong_types={"ModelPackageName": 7},
        out_of_range={"ModelPackageName": "n" * 177},
        absent={"ModelPackageName": NOBODY + "model-package/nobody/1"},
    ),
]


@pytest.fixture(scope="module")
def world(server: Server, actor: str) -> World:
    return World(server, actor)


@pytest.fixture(params=OPERATIONS, ids=lambda operation: operation.name)
def operation(request: pytest.FixtureRequest) -> Operation:
    found: Operation = request.param
    return found


def call(world: World, operation: Operation, request: Request) -> dict[str, Any]:
    snake = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in operation.name).lstrip("_")
    answer: dict[str, Any] = getattr(world.server.unchecked, snake)(**request)
    return answer


def refusal(world: World, operation: Operation, request: Request) -> tuple[str, int, str]:
    """Code, HTTP status and message."""
    with pytest.raises(ClientError) as error:
        call(world, operation, request)
    answer = error.value.response
    assert answer["ResponseMetadata"]["RequestId"]
    return answer["Error"]["Code"], answer["ResponseMetadata"]["HTTPStatusCode"], answer["Error"]["Message"]


def changed(request: Request, path: str, value: Any) -> Request:
    """A copy with another value at a path such as ProductionVariants.0.ModelName; Ellipsis takes the member away."""
    copy = deepcopy(request)
    *way, last = path.split(".")
    place: Any = copy
    for step in way:
        place = place[int(step)] if isinstance(place, list) else place.setdefault(step, {})
    if value is ...:
        del place[last]
    elif isinstance(place, list):
        place[int(last)] = value
    else:
        place[last] = value
    return copy


def test_success_has_the_fields_that_the_reference_lists(world: World, operation: Operation) -> None:
    request = operation.request(world)
    answer = call(world, operation, request)
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 200
    for name, kind in operation.answer.items():
        assert isinstance(answer[name], kind), name
    for name, value in answer.items():
        if name.endswith("Arn") and name != "RoleArn" and name != "ExecutionRoleArn":
            assert value.startswith("arn:aws:sagemaker:us-east-1:000000000000:"), name
    if operation.name in ("UpdateEndpoint", "UpdateEndpointWeightsAndCapacities"):
        world.server.settled(request["EndpointName"])
        world.server.delete(request["EndpointName"])
    if operation.name == "CreateEndpoint":
        world.server.settled(request["EndpointName"])
        world.server.delete(request["EndpointName"])


def test_a_missing_member_is_named(world: World, operation: Operation) -> None:
    if operation.required:
        request = good(world, operation)
        for path in operation.required:
            code, status, message = refusal(world, operation, changed(request, path, ...))
            assert (code, status) == ("ValidationException", 400), path
            assert "must not be null" in message, path
            assert path.split(".")[-1].lower() in message.lower(), path


def test_a_wrong_type_is_a_serialization_exception(world: World, operation: Operation) -> None:
    request = good(world, operation)
    for path, value in operation.wrong_types.items():
        code, status, message = refusal(world, operation, changed(request, path, value))
        assert (code, status) == ("SerializationException", 400), path
        assert _member(path) in message.lower(), path


def _member(path: str) -> str:
    """The last part of a path that is a name."""
    return [part for part in path.split(".") if not part.isdigit()][-1].lower()


def test_a_value_out_of_range_is_named(world: World, operation: Operation) -> None:
    request = good(world, operation)
    for path, value in operation.out_of_range.items():
        code, status, message = refusal(world, operation, changed(request, path, value))
        assert (code, status) == ("ValidationException", 400), path
        assert _member(path) in message.lower(), path


def test_a_resource_that_is_not_there_is_named(world: World, operation: Operation) -> None:
    request = good(world, operation)
    for path, name in operation.absent.items():
        code, status, message = refusal(world, operation, changed(request, path, name))
        assert (code, status) == ("ValidationException", 400), path
        # AWS does not say which training job there is none of.
        assert "nobody" in message or message == "Requested resource not found.", path


def test_a_resource_in_use_is_refused(world: World, operation: Operation) -> None:
    if operation.in_use:
        request, expected = operation.in_use
        code, status, _ = refusal(world, operation, request(world))
        assert (code, status) == (expected, 400)


def good(world: World, operation: Operation) -> Request:
    """A good request that changes nothing by itself: if one is about a new endpoint, it is about the shared one."""
    if operation.name in ("UpdateEndpoint", "UpdateEndpointWeightsAndCapacities", "DeleteEndpoint"):
        variants = [{"VariantName": "only", "DesiredWeight": 1.0, "DesiredInstanceCount": 1}]
        requests: dict[str, Request] = {
            "UpdateEndpoint": {"EndpointName": world.endpoint, "EndpointConfigName": world.config},
            "UpdateEndpointWeightsAndCapacities": {
                "EndpointName": world.endpoint,
                "DesiredWeightsAndCapacities": variants,
            },
            "DeleteEndpoint": {"EndpointName": world.endpoint},
        }
        return requests[operation.name]
    if operation.name == "StopTrainingJob":
        return {"TrainingJobName": world.ended_job}
    return operation.request(world)


# What the table can't say


def test_an_operation_that_is_not_there_says_so_by_name(server: Server) -> None:
    with pytest.raises(ClientError) as error:
        server.unchecked.create_notebook_instance(NotebookInstanceName="n")
    assert error.value.response["Error"]["Code"] == "UnknownOperationException"
    assert "CreateNotebookInstance" in error.value.response["Error"]["Message"]


@pytest.mark.parametrize("kind", ["models", "endpoint_configs", "model_package_groups"])
def test_pages_are_whole_and_sorted(server: Server, world: World, kind: str) -> None:
    prefix = unique("page")
    names = [f"{prefix}-{number}" for number in range(5)]
    kinds: dict[str, tuple[Callable[[str], Any], str, str]] = {
        "models": (lambda name: server.sagemaker.create_model(**world.model_request(name)), "ModelName", "Models"),
        "endpoint_configs": (
            lambda name: server.sagemaker.create_endpoint_config(**world.config_request(name)),
            "EndpointConfigName",
            "EndpointConfigs",
        ),
        "model_package_groups": (
            lambda name: server.sagemaker.create_model_package_group(ModelPackageGroupName=name),
            "ModelPackageGroupName",
            "ModelPackageGroupSummaryList",
        ),
    }
    create, field_name, answer = kinds[kind]
    for name in names:
        create(name)
    operation = getattr(server.sagemaker, f"list_{kind}")

    def pages(**request: Any) -> list[list[str]]:
        found: list[list[str]] = []
        token: dict[str, str] = {}
        while True:
            page = operation(NameContains=prefix.upper(), **request, **token)
            found.append([item[field_name] for item in page[answer]])
            if "NextToken" not in page:
                return found
            token = {"NextToken": page["NextToken"]}

    assert pages(MaxResults=2, SortBy="Name", SortOrder="Descending") == [names[:2:-1], names[2:0:-1], names[:1]]
    ascending = pages(MaxResults=2, SortBy="CreationTime", SortOrder="Ascending")
    assert [name for page in ascending for name in page] == names
    # The reference: newest first, but for model package groups.
    assert pages() == [names if kind == "model_package_groups" else names[::-1]]

    # A page goes on where the one before ended, whatever is created meanwhile.
    first = operation(NameContains=prefix, MaxResults=2, SortBy="CreationTime", SortOrder="Descending")
    create(f"{prefix}-later")
    second = operation(
        NameContains=prefix,
        MaxResults=2,
        SortBy="CreationTime",
        SortOrder="Descending",
        NextToken=first["NextToken"],
    )
    assert [item[field_name] for item in [*first[answer], *second[answer]]] == names[:0:-1]

    middle = next(
        item["CreationTime"] for item in operation(NameContains=prefix)[answer] if item[field_name] == names[2]
    )
    # A client sends whole seconds; the filter itself is finer.
    late = server.unchecked
    assert getattr(late, f"list_{kind}")(NameContains=prefix, CreationTimeAfter=middle.timestamp() + 3600)[answer] == []
    assert (
        len(getattr(late, f"list_{kind}")(NameContains=prefix, CreationTimeBefore=middle.timestamp() + 3600)[answer])
        == 6
    )
    with pytest.raises(ClientError, match="Invalid NextToken"):
        operation(NextToken="not one of ours")


def test_training_jobs_are_listed_oldest_first_and_by_status(server: Server, world: World) -> None:
    listed = server.sagemaker.list_training_jobs(MaxResults=100)["TrainingJobSummaries"]
    times = [job["CreationTime"] for job in listed]
    assert times == sorted(times)
    failed = server.sagemaker.list_training_jobs(StatusEquals="Failed", SortBy="Status")["TrainingJobSummaries"]
    assert world.ended_job in {job["TrainingJobName"] for job in failed}
    assert {job["TrainingJobStatus"] for job in failed} == {"Failed"}


def test_tags_come_with_a_resource_and_go_with_it(server: Server, world: World) -> None:
    name = unique("tagged")
    tags = [{"Key": f"key-{number}", "Value": "ü b/c"} for number in range(49)]
    arn = server.sagemaker.create_model(**world.model_request(name), Tags=tags)["ModelArn"]
    added = server.sagemaker.add_tags(ResourceArn=arn, Tags=[{"Key": "key-0", "Value": "new"}])["Tags"]
    assert len(added) == 49
    server.sagemaker.add_tags(ResourceArn=arn, Tags=[{"Key": "last", "Value": ""}])
    with pytest.raises(ClientError, match="at most 50 tags"):
        server.sagemaker.add_tags(ResourceArn=arn, Tags=[{"Key": "one-more", "Value": ""}])
    with pytest.raises(ClientError, match="reserved"):
        server.sagemaker.add_tags(ResourceArn=arn, Tags=[{"Key": "aws:mine", "Value": ""}])
    server.sagemaker.delete_tags(ResourceArn=arn, TagKeys=[f"key-{number}" for number in range(1, 49)])
    left = {tag["Key"]: tag["Value"] for tag in server.sagemaker.list_tags(ResourceArn=arn)["Tags"]}
    assert left == {"key-0": "new", "last": ""}
    server.sagemaker.delete_model(ModelName=name)
    with pytest.raises(ClientError, match="Could not find"):
        server.sagemaker.list_tags(ResourceArn=arn)


def test_versions_count_up_and_are_never_given_twice(server: Server) -> None:
    sagemaker = server.sagemaker
    group = unique("group")
    group_arn = sagemaker.create_model_package_group(ModelPackageGroupName=group)["ModelPackageGroupArn"]
    arns = [sagemaker.create_model_package(ModelPackageGroupName=group_arn)["ModelPackageArn"] for _ in range(3)]
    assert [arn.rsplit("/", 2)[1:] for arn in arns] == [[group, "1"], [group, "2"], [group, "3"]]
    sagemaker.delete_model_package(ModelPackageName=arns[2])
    again = sagemaker.create_model_package(ModelPackageGroupName=group, ClientToken="a-token")["ModelPackageArn"]
    assert again.endswith("/4")
    # A repeated call of the same token is the same call.
    assert (
        sagemaker.create_model_package(ModelPackageGroupName=group, ClientToken="a-token")["ModelPackageArn"] == again
    )

    assert sagemaker.describe_model_package(ModelPackageName=again)["ModelApprovalStatus"] == "PendingManualApproval"
    sagemaker.update_model_package(
        ModelPackageArn=again,
        ModelApprovalStatus="Rejected",
        ApprovalDescription="worse than the last",
        CustomerMetadataProperties={"accuracy": "0.9", "job": "a job"},
    )
    sagemaker.update_model_package(ModelPackageArn=again, CustomerMetadataPropertiesToRemove=["job"])
    package = sagemaker.describe_model_package(ModelPackageName=again)
    assert package["ModelApprovalStatus"] == "Rejected"
    assert package["ApprovalDescription"] == "worse than the last"
    assert package["CustomerMetadataProperties"] == {"accuracy": "0.9"}
    rejected = sagemaker.list_model_packages(ModelPackageGroupName=group, ModelApprovalStatus="Rejected")
    assert [item["ModelPackageVersion"] for item in rejected["ModelPackageSummaryList"]] == [4]
    every = sagemaker.list_model_packages(ModelPackageGroupName=group)["ModelPackageSummaryList"]
    assert [item["ModelPackageVersion"] for item in every] == [1, 2, 4]

    # Packages outside of groups are what a list without a group shows, unless it asks for others.
    alone = unique("alone")
    specification = {"Containers": [{"Image": INFERENCE_IMAGE}]}
    sagemaker.create_model_package(ModelPackageName=alone, InferenceSpecification=specification)
    named = {item.get("ModelPackageName") for item in sagemaker.list_model_packages()["ModelPackageSummaryList"]}
    assert alone in named and None not in named
    assert sagemaker.describe_model_package(ModelPackageName=alone)["ModelPackageName"] == alone


def test_a_spot_job_says_how_long_it_may_wait_and_no_other_job_does(server: Server, world: World) -> None:
    job = world.training_job(unique("api"))
    for spot, condition, reason in (
        (False, {"MaxRuntimeInSeconds": 60, "MaxWaitTimeInSeconds": 60}, "only supported when EnableManagedSpot"),
        (True, {"MaxRuntimeInSeconds": 60}, "must be present"),
        (True, {"MaxRuntimeInSeconds": 60, "MaxWaitTimeInSeconds": 59}, "greater than or equal"),
    ):
        with pytest.raises(ClientError, match=reason):
            server.unchecked.create_training_job(
                **{**job, "EnableManagedSpotTraining": spot, "StoppingCondition": condition}
            )


def test_what_would_be_ignored_is_refused(server: Server, world: World) -> None:
    """A caller who asks for it must not believe that it is done."""
    job = world.training_job(unique("api"))
    for path, value in {
        "CheckpointConfig": {"S3Uri": "s3://bucket/checkpoints", "LocalPath": "/tmp/checkpoints"},
        "InputDataConfig.0.InputMode": "Pipe",
        "InputDataConfig.0.DataSource.S3DataSource.S3DataType": "AugmentedManifestFile",
    }.items():
        with pytest.raises(ClientError, match="is not supported by this server"):
            server.unchecked.create_training_job(**changed(job, path, value))
    with pytest.raises(ClientError) as error:
        server.unchecked.create_training_job(**changed(job, "ResourceConfig.InstanceCount", 2))
    assert error.value.response["Error"]["Code"] == "ResourceLimitExceeded"
    model = world.model_request(unique("api"))
    with pytest.raises(ClientError, match="one container"):
        container = model.pop("PrimaryContainer")
        server.unchecked.create_model(**model, Containers=[container, container])
    config = world.config_request(unique("api"))
    serverless = {"ServerlessConfig": {"MemorySizeInMB": 2048, "MaxConcurrency": 1}}
    with pytest.raises(ClientError, match="ServerlessConfig is not supported"):
        server.unchecked.create_endpoint_config(
            **changed(config, "ProductionVariants.0", {**config["ProductionVariants"][0], **serverless})
        )


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("InputDataConfig.0.ChannelName", "..", "no name for its folder"),
        ("OutputDataConfig.S3OutputPath", "https://bucket/out", "not an S3 URI"),
        ("CheckpointConfig", {"S3Uri": "https://bucket/kept"}, "not an S3 URI"),
        ("CheckpointConfig", {"S3Uri": "s3://bucket/kept", "LocalPath": "/opt/ml/model/kept"}, "none of code, input"),
        ("CheckpointConfig", {"S3Uri": "s3://bucket/kept", "LocalPath": "/opt/ml/kept/../../up"}, "not supported"),
        ("CheckpointConfig", {"LocalPath": "/opt/ml/checkpoints"}, "failed to satisfy constraint"),
        ("RetryStrategy", {"MaximumRetryAttempts": 31}, "failed to satisfy constraint"),
        ("OutputDataConfig.S3OutputPath", "s3://bucket/../../out", "a part . or .."),
        ("AlgorithmSpecification.MetricDefinitions", [{"Name": "m", "Regex": "("}], "Metric m"),
        ("AlgorithmSpecification.MetricDefinitions", [{"Name": "m", "Regex": "x"}], "no capturing group"),
    ],
)
def test_hostile_values_that_fit_the_pattern(server: Server, world: World, path: str, value: Any, reason: str) -> None:
    with pytest.raises(ClientError, match=reason):
        server.unchecked.create_training_job(**changed(world.training_job(unique("api")), path, value))


def test_null_is_no_value(server: Server, world: World) -> None:
    """As AWS has it; a client with its own checks never sends one."""
    requests = {
        "ListModels": {"MaxResults": None, "NameContains": None, "CreationTimeAfter": None, "NextToken": None},
        "CreateModel": {**world.model_request(unique("null")), "Tags": None, "Containers": None},
        "CreateEndpointConfig": {**world.config_request(unique("null")), "DataCaptureConfig": None},
        "CreateTrainingJob": {
            **world.training_job(unique("null")),
            **dict.fromkeys(("StoppingCondition", "InputDataConfig", "HyperParameters", "Environment", "Tags")),
        },
    }
    for operation_name, request in requests.items():
        assert server.post(json.dumps(request).encode(), f"SageMaker.{operation_name}").status_code == 200


def test_bodies_without_sense_are_answered(server: Server) -> None:
    for body, target, code in (
        (b"{", "SageMaker.ListModels", "SerializationException"),
        (b"[]", "SageMaker.ListModels", "SerializationException"),
        (b'{"MaxResults": NaN}', "SageMaker.ListModels", "SerializationException"),
        (b'{"Tags": ' + b"[" * 100_000 + b"}", "SageMaker.ListModels", "SerializationException"),
        (b"\xff\xfe", "SageMaker.ListModels", "SerializationException"),
        (b'{"NameContains": "\\ud800"}', "SageMaker.ListModels", "SerializationException"),
        (b"{}", "Other.Thing", "UnknownOperationException"),
        (b"{}", "SageMaker.__init__", "UnknownOperationException"),
        (b" " * (7 * 1024 * 1024), "SageMaker.ListModels", "RequestEntityTooLarge"),
    ):
        answer = server.post(body, target)
        assert answer.status_code in (400, 413)
        assert answer.headers["x-amzn-ErrorType"] == code
        assert answer.json()
    eventually(lambda: server.sagemaker.list_models())
