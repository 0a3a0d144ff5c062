"""Endpoints: starting, failing, updating, scaling, and staying alive."""

import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest
from botocore.exceptions import ClientError

from testing.archives import tar_gz
from testing.load import Load
from testing.waiting import eventually
from tests.local_sagemaker.conftest import ACTOR, Server, answer_or_none, unique


def clients_of(server: Server, endpoint: str, clients: int = 3) -> Load:
    return Load(server.runtime, clients, who=model_of, EndpointName=endpoint, Body=b"sleep 0.02")


def model_of(answer: Any, body: bytes) -> str:
    return str(json.loads(body)["model"])


def test_an_endpoint_describes_what_it_serves(server: Server, actor: str) -> None:
    endpoint = server.sagemaker.describe_endpoint(EndpointName=actor)
    variant = endpoint["ProductionVariants"][0]
    assert (variant["VariantName"], variant["CurrentInstanceCount"], variant["CurrentWeight"]) == ("only", 1, 1.0)
    assert "pytorch-inference" in variant["DeployedImages"][0]["ResolvedImage"]
    eventually(lambda: any("is loaded" in line for line in server.log(f"/aws/sagemaker/Endpoints/{actor}", "only/")))


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ('def model_fn(model_dir):\n    raise ValueError("no weights in the tin")\n', "no weights in the tin"),
        ("import no_such_library\n", "no_such_library"),
        ("import os\nos._exit(7)\n", "exit code 7"),
    ],
)
def test_a_model_that_cannot_load_fails_its_endpoint_with_the_reason(server: Server, code: str, reason: str) -> None:
    name = server.endpoint(server.config({"ModelName": server.model(code)}), wait=False)
    endpoint = server.settled(name)
    assert endpoint["EndpointStatus"] == "Failed"
    assert reason in endpoint["FailureReason"]
    with pytest.raises(ClientError, match=rf"(?s)ValidationError.*{name}.*not found"):
        server.invoke(name)
    with pytest.raises(ClientError, match="Cannot update failed endpoint"):
        server.sagemaker.update_endpoint(EndpointName=name, EndpointConfigName=server.config())
    server.delete(name)


@pytest.mark.parametrize(
    "data", [None, b"no archive", tar_gz({"code/inference.py": ACTOR})[:100]], ids=["missing", "text", "truncated"]
)
def test_model_data_that_is_missing_or_broken_is_the_reason(server: Server, data: bytes | None) -> None:
    model = server.model()
    key = f"models/{model}.tar.gz"
    if data is None:
        server.s3.delete_object(Bucket="sagemaker-tests", Key=key)
    else:
        server.put(key, data)
    name = server.endpoint(server.config({"ModelName": model}), wait=False)
    endpoint = server.settled(name)
    assert endpoint["EndpointStatus"] == "Failed"
    assert key in endpoint["FailureReason"]
    server.delete(name)


def test_an_update_moves_all_clients_without_a_failed_request(server: Server) -> None:
    name = server.endpoint(server.answering("old"))
    with clients_of(server, name) as load:
        eventually(lambda: load.answers["old"] > 20)
        server.sagemaker.update_endpoint(EndpointName=name, EndpointConfigName=server.answering("new"))
        assert "FailureReason" not in server.settled(name)
        before = load.answers["old"]
        eventually(lambda: load.answers["new"] > 20)
    assert load.errors == []
    assert load.answers["old"] - before <= 3  # those that were in flight
    server.delete(name)


def test_an_update_that_fails_leaves_the_old_model_serving(server: Server) -> None:
    name = server.endpoint(server.answering("old"))
    present = server.sagemaker.describe_endpoint(EndpointName=name)["EndpointConfigName"]
    broken = server.answering("new", "raise ImportError('stale')\n")
    with clients_of(server, name) as load:
        server.sagemaker.update_endpoint(EndpointName=name, EndpointConfigName=broken)
        endpoint = server.settled(name)
    assert (endpoint["EndpointStatus"], endpoint["EndpointConfigName"]) == ("InService", present)
    assert "stale" in endpoint["FailureReason"]
    assert load.errors == []
    assert set(load.answers) == {"old"}
    server.delete(name)


def test_a_canary_takes_its_share_and_then_all(server: Server) -> None:
    name = server.endpoint(server.answering("old"))
    routing = {
        "Type": "CANARY",
        "CanarySize": {"Type": "CAPACITY_PERCENT", "Value": 50},
        "WaitIntervalInSeconds": 3,
    }
    policy = {"BlueGreenUpdatePolicy": {"TrafficRoutingConfiguration": routing}}
    with clients_of(server, name) as load:
        server.sagemaker.update_endpoint(
            EndpointName=name, EndpointConfigName=server.answering("new"), DeploymentConfig=policy
        )
        pending = server.sagemaker.describe_endpoint(EndpointName=name)["PendingDeploymentSummary"]
        assert pending["EndpointConfigName"]
        eventually(lambda: load.answers["new"] > 10)
        old = load.answers["old"]
        eventually(lambda: load.answers["old"] > old + 10)  # both answer
        endpoint = server.settled(name)
    assert endpoint["LastDeploymentConfig"] == policy
    assert "PendingDeploymentSummary" not in endpoint
    assert load.errors == []
    server.delete(name)


def test_a_new_fleet_that_dies_during_the_shift_is_rolled_back(server: Server) -> None:
    name = server.endpoint(server.answering("old"))
    routing = {
        "Type": "LINEAR",
        "LinearStepSize": {"Type": "CAPACITY_PERCENT", "Value": 10},
        "WaitIntervalInSeconds": 60,
    }
    server.sagemaker.update_endpoint(
        EndpointName=name,
        EndpointConfigName=server.answering("new"),
        DeploymentConfig={"BlueGreenUpdatePolicy": {"TrafficRoutingConfiguration": routing}},
    )
    answer = eventually(lambda: (found := server.invoke(name)) and found["model"] == "new" and found)
    eventually(lambda: server.invoke(name)["model"] == "old")  # both answer
    os.kill(answer["process"], signal.SIGKILL)
    endpoint = server.settled(name)
    assert endpoint["EndpointStatus"] == "InService"
    assert "unhealthy" in endpoint["FailureReason"]
    assert {server.invoke(name)["model"] for _ in range(10)} == {"old"}
    server.delete(name)


def test_an_update_keeps_the_names_of_the_variants(server: Server) -> None:
    """Every update is a blue/green one by default, and AWS's guardrails ask for the same variant names."""
    name = server.endpoint(server.answering("old"))
    renamed = server.config({"VariantName": "other"})
    with pytest.raises(ClientError, match="must have the same variant names") as error:
        server.sagemaker.update_endpoint(EndpointName=name, EndpointConfigName=renamed)
    assert error.value.response["Error"]["Code"] == "ValidationException"
    assert server.sagemaker.describe_endpoint(EndpointName=name)["EndpointStatus"] == "InService"
    assert server.invoke(name)["model"] == "old"
    server.delete(name)


def test_an_alarm_rolls_an_update_back(server: Server) -> None:
    alarm = unique("alarm")
    cloudwatch = server.aws.client("cloudwatch")
    cloudwatch.put_metric_alarm(
        AlarmName=alarm,
        MetricName="Invocation5XXErrors",
        Namespace="AWS/SageMaker",
        Statistic="Sum",
        Period=60,
        EvaluationPeriods=1,
        Threshold=1,
        ComparisonOperator="GreaterThanOrEqualToThreshold",
    )
    cloudwatch.set_alarm_state(AlarmName=alarm, StateValue="ALARM", StateReason="a test")
    name = server.endpoint(server.answering("old"))
    policy = {
        "BlueGreenUpdatePolicy": {
            "TrafficRoutingConfiguration": {"Type": "ALL_AT_ONCE", "WaitIntervalInSeconds": 60},
        },
        "AutoRollbackConfiguration": {"Alarms": [{"AlarmName": alarm}]},
    }
    server.sagemaker.update_endpoint(
        EndpointName=name, EndpointConfigName=server.answering("new"), DeploymentConfig=policy
    )
    endpoint = server.settled(name)
    assert alarm in endpoint["FailureReason"]
    assert server.invoke(name)["model"] == "old"
    server.delete(name)


def test_weights_and_targets_choose_the_variant(server: Server) -> None:
    config = server.config({"VariantName": "most"}, {"VariantName": "none", "InitialVariantWeight": 0})
    name = server.endpoint(config)
    runtime = server.runtime
    variants = {runtime.invoke_endpoint(EndpointName=name, Body=b"x")["InvokedProductionVariant"] for _ in range(20)}
    assert variants == {"most"}
    targeted = runtime.invoke_endpoint(EndpointName=name, Body=b"x", TargetVariant="none")
    assert targeted["InvokedProductionVariant"] == "none"
    with pytest.raises(ClientError, match=r"Variant other of endpoint .* not found"):
        server.invoke(name, TargetVariant="other")

    swapped = [
        {"VariantName": "most", "DesiredWeight": 0},
        {"VariantName": "none", "DesiredWeight": 1, "DesiredInstanceCount": 2},
    ]
    with clients_of(server, name) as load:
        server.sagemaker.update_endpoint_weights_and_capacities(EndpointName=name, DesiredWeightsAndCapacities=swapped)
        endpoint = server.settled(name)
    assert load.errors == []
    assert [variant["CurrentWeight"] for variant in endpoint["ProductionVariants"]] == [0, 1]
    assert [variant["CurrentInstanceCount"] for variant in endpoint["ProductionVariants"]] == [1, 2]
    with ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(lambda _: server.invoke(name, b"sleep 0.2")["process"], range(6)))
    assert len(set(answers)) == 2

    # A new config brings its own, unless the present ones are to be kept.
    server.sagemaker.update_endpoint(
        EndpointName=name,
        EndpointConfigName=config,
        RetainAllVariantProperties=True,
        ExcludeRetainedVariantProperties=[{"VariantPropertyType": "DesiredInstanceCount"}],
    )
    endpoint = server.settled(name)
    assert [variant["CurrentWeight"] for variant in endpoint["ProductionVariants"]] == [0, 1]
    assert [variant["CurrentInstanceCount"] for variant in endpoint["ProductionVariants"]] == [1, 1]
    server.delete(name)


def hang_one(server: Server, name: str) -> tuple[int, str]:
    """Stops the process of an endpoint's only instance; returns its id, and the error of whoever asks it then."""
    for _ in range(3):
        process = eventually(lambda: answer_or_none(server, name))["process"]
        os.kill(process, signal.SIGSTOP)
        try:
            answered = server.invoke(name)["process"]
        except ClientError as error:
            return process, str(error)
        assert answered != process  # a busy machine had taken it for sick, and replaced it at that moment
    raise AssertionError("a process that is stopped was never asked")


def test_an_instance_that_dies_or_hangs_is_replaced(server: Server) -> None:
    name = server.endpoint()
    first = server.invoke(name)["process"]
    with pytest.raises(ClientError) as died:
        server.invoke(name, b"die")
    assert died.value.response["Error"]["Code"] == "ServiceUnavailable"
    second, message = hang_one(server, name)
    assert "did not answer within 6 s" in message
    third = eventually(lambda: answer_or_none(server, name))["process"]
    assert len({first, second, third}) == 3
    assert not psutil.pid_exists(second)
    server.delete(name)
    assert not psutil.pid_exists(third)


def test_scaling_down_takes_the_dead_instance_away(server: Server) -> None:
    name = server.endpoint(server.config({"InitialInstanceCount": 2}))
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: server.invoke(name, b"sleep 0.3")["process"], range(4)))
    dead, alive = sorted(set(answers))
    os.kill(dead, signal.SIGKILL)
    eventually(lambda: not psutil.pid_exists(dead) or psutil.Process(dead).status() == psutil.STATUS_ZOMBIE)
    one = [{"VariantName": "only", "DesiredInstanceCount": 1}]
    server.sagemaker.update_endpoint_weights_and_capacities(EndpointName=name, DesiredWeightsAndCapacities=one)
    assert server.settled(name)["ProductionVariants"][0]["CurrentInstanceCount"] == 1
    assert {server.invoke(name)["process"] for _ in range(10)} == {alive}
    server.delete(name)


def test_a_model_that_answers_no_http_harms_nobody_else(server: Server) -> None:
    code = (
        ACTOR + "\nfrom local_sagemaker import model_server\n"
        "model_server.Handler.do_GET = lambda self: self.wfile.write(b'garbage\\r\\n\\r\\n') or self.wfile.flush()\n"
    )
    name = server.endpoint(server.config({"ModelName": server.model(code)}), wait=False)
    other = server.endpoint()
    os.kill(server.invoke(other)["process"], signal.SIGKILL)
    assert eventually(lambda: answer_or_none(server, other))
    assert server.sagemaker.describe_endpoint(EndpointName=name)["EndpointStatus"] == "Creating"  # never answers
    server.delete(other)


def test_more_instances_than_the_server_has_are_refused(server: Server) -> None:
    config = server.config({"InitialInstanceCount": 13})
    with pytest.raises(ClientError) as error:
        server.sagemaker.create_endpoint(EndpointName=unique("endpoint"), EndpointConfigName=config)
    assert error.value.response["Error"]["Code"] == "ResourceLimitExceeded"
    assert "12 Instances" in error.value.response["Error"]["Message"]


def test_a_model_made_again_under_its_name_is_another_model(server: Server) -> None:
    model = server.model(ANSWER="first")
    first = server.endpoint(server.config({"ModelName": model}))
    described = server.sagemaker.describe_model(ModelName=model)
    server.sagemaker.delete_model(ModelName=model)
    container = {**described["PrimaryContainer"], "Environment": {"ANSWER": "second"}}
    server.sagemaker.create_model(ModelName=model, ExecutionRoleArn=server.role, PrimaryContainer=container)
    second = server.endpoint(server.config({"ModelName": model}))
    assert server.invoke(first)["model"] == "first"
    assert server.invoke(second)["model"] == "second"
    server.delete(first)
    server.delete(second)


def test_a_model_package_and_an_unpacked_folder_are_served(server: Server) -> None:
    prefix = unique("unpacked")
    server.put(f"{prefix}/code/inference.py", ACTOR.encode())
    source = {"S3Uri": f"s3://sagemaker-tests/{prefix}/", "S3DataType": "S3Prefix", "CompressionType": "None"}
    packaged = server.sagemaker.describe_model(ModelName=server.model(ANSWER="packaged"))["PrimaryContainer"]
    group = unique("group")
    server.sagemaker.create_model_package_group(ModelPackageGroupName=group)
    specification = {
        "Containers": [packaged],
        "SupportedContentTypes": ["text/plain"],
        "SupportedResponseMIMETypes": ["application/json"],
    }
    package = server.sagemaker.create_model_package(ModelPackageGroupName=group, InferenceSpecification=specification)
    arn = package["ModelPackageArn"]
    request = {"ExecutionRoleArn": server.role, "Containers": [{"ModelPackageName": arn}]}
    with pytest.raises(ClientError, match="must be Approved"):
        server.sagemaker.create_model(ModelName=unique("model"), **request)
    server.sagemaker.update_model_package(ModelPackageArn=arn, ModelApprovalStatus="Approved")
    from_package, from_folder = unique("model"), unique("model")
    server.sagemaker.create_model(ModelName=from_package, **request)
    server.sagemaker.create_model(
        ModelName=from_folder,
        ExecutionRoleArn=server.role,
        PrimaryContainer={"Image": packaged["Image"], "ModelDataSource": {"S3DataSource": source}},
    )
    name = server.endpoint(
        server.config(
            {"VariantName": "package", "ModelName": from_package}, {"VariantName": "folder", "ModelName": from_folder}
        )
    )
    assert server.invoke(name, TargetVariant="package")["model"] == "packaged"
    assert server.invoke(name, TargetVariant="folder")["model"] == ""
    server.delete(name)
