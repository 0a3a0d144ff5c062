"""Model versions against each other on a real endpoint, with a client that invokes it all the while."""

import hashlib
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from prefect.client.orchestration import get_client

from flows import night_endpoint
from flows.deploy_endpoint import deploy_endpoint
from flows.night_endpoint import remove_endpoint_of_the_night
from flows.nightly_evaluation import nightly_evaluation
from flows.prepare_data import prepare_data
from flows.teardown import teardown
from flows.train_model import train_model
from local_aws.config import LocalConfig
from settings import ROOT, VARIANT, settings
from tasks.aws import storage
from tasks.aws.clients import client
from tasks.aws.stacks import InfrastructureError, delete_stack, deploy_stack, installation
from tasks.evaluation import evaluation
from tasks.evaluation.summary import DECIDED
from tasks.exclusive import Owner, exclusive
from tasks.installation import Installation
from tasks.model import training
from tasks.model.gate import judge
from tasks.model.registry import APPROVED, PENDING, REJECTED, ModelVersion, decide, versions
from tasks.serving.endpoint import delete_endpoint, find, serving
from tasks.serving.models import owned_names
from tasks.serving.rollout import RolloutFailed
from tasks.serving.threshold import threshold_changes
from tasks.teardown import FUNCTION_NAMES
from testing.archives import tar_gz
from testing.flow_runs import ended, model_servers, started
from testing.waiting import eventually
from tests.rollouts import (
    captured_versions,
    changed_artifact,
    clients_of,
    leftovers,
    register_artifact,
    slow_artifact,
    version_named,
)

STACK = "rollouts"
DOOMED = "doomed"
CLASSES = ("bicycle", "motorcycle", "pickup_truck")
KEY = "arn:aws:kms:us-east-1:000000000000:key/scones"


SLOW_START = b"""
import time
_began, _predict = time.monotonic(), predict_fn
def predict_fn(image, model):
    if time.monotonic() - _began < 4:
        raise BaseInferenceToolkitError(503, "no worker is available", "Service Unavailable")
    return _predict(image, model)
"""

# Sure of its class, and that it is none.
NO_CLASS = b"""%s
import torch
def predict_fn(image, model):
    return Prediction(classify(image, model).probabilities, torch.tensor([2.0]))
"""


@pytest.fixture(scope="module")
def own(stack: LocalConfig) -> Iterator[Installation]:
    """An installation of its own, of three classes, with v1, trained for a moment, in service."""
    before = dict(os.environ)
    os.environ.update({"SCONES_STACK": STACK, "SCONES_CLASSES": ",".join(CLASSES)})
    os.environ.update({"SCONES_SMOKE_CAPTURE_SECONDS": "0", "SCONES_EPOCHS": "20", "SCONES_GATE_MIN_ACCURACY": "0"})
    settings.cache_clear()
    try:
        prepare_data("generated")
        assert train_model().status == APPROVED
        assert deploy_endpoint().model_version == "v1"
        yield installation()
        teardown(everything=True, confirm=STACK)
    finally:
        os.environ.clear()
        os.environ.update(before)
        settings.cache_clear()


@pytest.fixture
def doomed(own: Installation) -> Iterator[Installation]:
    """Another installation, with the champion's artifact as its only version, in service, and every door closed."""
    champion = version_named(serving(own).model_version)
    artifact = storage.get(own.bucket, champion.artifact_uri.split("/", 3)[3])
    assert artifact is not None
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SCONES_STACK", DOOMED)
            patch.setenv("SCONES_GENERATED_PER_CLASS", "10")
            patch.setenv("SCONES_KMS_KEY", KEY)
            patch.setenv("SCONES_VPC_SUBNETS", "subnet-0a1b2c3d")
            patch.setenv("SCONES_VPC_SECURITY_GROUPS", "sg-0a1b2c3d")
            patch.setenv("SCONES_OWNER", "team@example.org")
            for name in (
                "FUNCTIONS_IN_VPC",
                "ACCESS_LOGS",
                "STATE_MACHINE_LOGS",
                "TRACING",
                "ALARMS",
                "PROTECTED",
                "TRAINING_SPOT",
            ):
                patch.setenv(f"SCONES_{name}", "true")
            settings.cache_clear()
            prepare_data("generated")
            made = installation()
            storage.put(made.bucket, "models/champion/model.tar.gz", artifact)
            register_artifact(champion.image, f"s3://{made.bucket}/models/champion/model.tar.gz")
            assert deploy_endpoint().model_version == "v1"
            yield made
            patch.setenv("SCONES_PROTECTED", "false")
            settings.cache_clear()
            teardown(everything=True, confirm=DOOMED)
    finally:
        settings.cache_clear()


@pytest.fixture
def choose(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Sets settings for one test."""

    def set_all(**values: Any) -> None:
        for name, value in values.items():
            monkeypatch.setenv(f"SCONES_{name.upper()}", str(value))
        settings.cache_clear()

    yield set_all
    monkeypatch.undo()
    settings.cache_clear()


def test_a_better_model_replaces_the_champion_and_a_worse_one_is_rejected_with_its_reason(
    own: Installation, choose: Callable[..., None]
) -> None:
    # What 120 images are worth differs between processors by more than a margin of 0.1.
    # The champion is a single network and the better model an ensemble: each kind is judged by its own answers.
    choose(epochs=40, classifier="ensemble", gate_margin=0.25, gate_min_accuracy=0.5, smoke_min_accuracy=0.5)
    before = serving(own).model_version
    with clients_of(own) as invoking:
        better = train_model()
        assert better.status == APPROVED, better.reason
        assert f"against v{better.number - 1}" in better.reason
        assert deploy_endpoint().model_version == better.name
        choose(epochs=1, learning_rate=1e-6)
        worse = train_model()
        assert worse.status == REJECTED
        assert "under the floor of 0.5" in worse.reason
        assert f"against {better.name}" in worse.reason
        assert deploy_endpoint().model_version == better.name
    assert invoking.errors == []
    assert set(invoking.answers) == {VARIANT}
    eventually(lambda: {before, better.name} <= captured_versions(own))
    assert worse.name not in captured_versions(own)
    assert leftovers(own) == []
    with pytest.raises(Exception, match=rf"{worse.name} of rollouts-classifier is Rejected, not Approved: accuracy"):
        deploy_endpoint(worse.number)


def test_the_gate_rejects_a_challenger_that_cannot_be_loaded(own: Installation) -> None:
    champion = version_named(serving(own).model_version)
    broken = changed_artifact(own, champion, {"model.pt": b"not weights"})
    judged = judge(own, broken, champion, uuid.uuid4().hex[:12], print)
    assert not judged.approved
    assert judged.reason.startswith("it can't be loaded and asked (exit code 1): ")
    decide(broken, REJECTED, judged.reason)
    assert next(versions()).reason == " ".join(judged.reason.split())


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"model.pt": b"not weights"}, "did not pass the ping health check"),
        ({"code/inference.py": b"%s\ndef output_fn(p, a): return '[0.5, 0.6, 0.1]'"}, "returned an invalid response"),
        (
            {"code/inference.py": b"%s\ndef output_fn(p, a): return '[1.0, 0.0, 0.0]'"},
            "never recognizes motorcycle, pickup_truck",
        ),
        (
            {"code/inference.py": NO_CLASS},
            "gets 0 of .* never recognizes bicycle, motorcycle, pickup_truck",
        ),
        (
            {"code/inference.py": b"%s\ndef predict_fn(i, m): raise RuntimeError('lost')"},
            "fails on train/.* answered 500: lost",
        ),
    ],
    ids=["weights", "no-probabilities", "one-class", "no-class", "error"],
)
def test_a_model_that_cannot_serve_leaves_the_old_one_serving(
    own: Installation, replaced: dict[str, bytes], message: str
) -> None:
    before = serving(own)
    source = (ROOT / "classifier" / "inference.py").read_bytes()
    champion = version_named(before.model_version)
    files = {name: content.replace(b"%s", source) for name, content in replaced.items()}
    broken = changed_artifact(own, champion, files)
    kept = set(owned_names())
    with clients_of(own) as invoking, pytest.raises(RolloutFailed, match=message) as failure:
        deploy_endpoint(broken.number)
    assert f"{before.model_version} serves as before" in str(failure.value)
    assert invoking.errors == []
    assert broken.name not in captured_versions(own)
    assert serving(own) == before
    assert leftovers(own) == []
    assert set(owned_names()) == kept
    rejected = next(versions())
    assert rejected.status == REJECTED
    assert re.search(message, rejected.reason)


def test_a_model_that_is_not_up_at_once_is_waited_for(own: Installation) -> None:
    """On AWS an endpoint can be InService while its container still answers 503, for want of a worker."""
    source = (ROOT / "classifier" / "inference.py").read_bytes()
    before = version_named(serving(own).model_version)
    slow = changed_artifact(own, before, {"code/inference.py": source + SLOW_START})
    assert deploy_endpoint(slow.number).model_version == slow.name
    assert next(versions()).status == APPROVED
    decide(slow, REJECTED, "was only for this test")
    assert deploy_endpoint(before.number).model_version == before.name


def test_a_model_killed_in_the_middle_of_the_switch_leaves_the_old_one_serving(
    own: Installation, config: LocalConfig
) -> None:
    before = serving(own)
    again = slow_artifact(own, version_named(before.model_version))
    running = {process.pid for process in model_servers(config)}
    killed: list[int] = []
    over = threading.Event()

    def kill_what_comes_up() -> None:
        while not over.wait(0.02):
            endpoint = find(own.endpoint)
            if endpoint is not None and str(endpoint.endpoint_status) == "Updating":
                for pid in {process.pid for process in model_servers(config)} - running:
                    with suppress(ProcessLookupError):  # the candidate's may be ending
                        os.kill(pid, signal.SIGKILL)
                        killed.append(pid)

    killer = threading.Thread(target=kill_what_comes_up)
    killer.start()
    try:
        with (
            clients_of(own) as invoking,
            pytest.raises(RolloutFailed, match=f"{before.model_version} serves as before"),
        ):
            deploy_endpoint(again.number)
    finally:
        over.set()
        killer.join()
    assert killed
    assert invoking.errors == []
    assert again.name not in captured_versions(own)
    assert serving(own) == before
    assert leftovers(own) == []
    # It was not the model's fault.
    assert next(versions()).status == APPROVED
    decide(again, REJECTED, "was only for this test")


def test_a_cancelled_deployment_goes_back(own: Installation) -> None:
    """SIGTERM, as the worker sends it, while the endpoint is being updated."""
    before = serving(own)
    again = slow_artifact(own, version_named(before.model_version))
    with clients_of(own) as invoking:
        flow = subprocess.Popen(
            [sys.executable, "-c", "from flows.deploy_endpoint import deploy_endpoint; deploy_endpoint()"],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        while str(getattr(find(own.endpoint), "endpoint_status", "")) != "Updating":
            assert flow.poll() is None, flow.communicate()[1]
            time.sleep(0.1)
        flow.terminate()
        log = flow.communicate(timeout=60)[1]
        assert serving(own) == before
    assert f"{before.model_version} serves as before" in log
    assert invoking.errors == []
    assert leftovers(own) == []
    decide(again, REJECTED, "was only for this test")


def test_three_classes_go_all_the_way(own: Installation) -> None:
    summary = nightly_evaluation()
    assert summary.classes == CLASSES
    assert summary.planned == sum(getattr(summary, status) for status in DECIDED) == 30
    assert summary.model_version == serving(own).model_version


def test_an_endpoint_of_the_night_is_there_for_the_evaluation_only(
    own: Installation, choose: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    choose(endpoint_schedule="night", endpoint_linger_seconds=0)
    assert delete_endpoint(own.endpoint)  # as the night before left it
    summary = nightly_evaluation()
    assert summary.planned == sum(getattr(summary, status) for status in DECIDED) == 30
    assert summary.model_version == next(versions(APPROVED)).name
    assert find(own.endpoint) is None
    # Whatever the night ends with.
    monkeypatch.setattr(evaluation, "plan", lambda *about: pytest.fail("planning failed"))
    with pytest.raises(pytest.fail.Exception, match="planning failed"):
        nightly_evaluation()
    assert find(own.endpoint) is None
    # And a run that was cancelled, whose process could not.
    choose(endpoint_schedule="always")
    deploy_endpoint()
    remove_endpoint_of_the_night(nightly_evaluation, None, None)
    assert find(own.endpoint) is not None
    choose(endpoint_schedule="night")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(night_endpoint, "flow_run_logger", lambda *about: logging.getLogger("test"))
        remove_endpoint_of_the_night(nightly_evaluation, None, None)
    assert find(own.endpoint) is None
    deploy_endpoint()


def test_a_deployment_waits_for_an_evaluation_and_changes_nothing_twice(own: Installation) -> None:
    config = str(getattr(find(own.endpoint), "endpoint_config_name", ""))
    code = "from flows.deploy_endpoint import deploy_endpoint; deploy_endpoint()"
    log = []
    with exclusive(own.bucket, own.endpoint, Owner("a", "an evaluation"), print):
        flow = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        assert flow.stderr is not None
        for line in flow.stderr:
            log.append(line)
            if "waiting for" in line:
                break
        assert "already" not in "".join(log)
    log.append(flow.communicate(timeout=120)[1])
    assert flow.returncode == 0, "".join(log)
    assert "an evaluation has held it since" in "".join(log[:-1])
    assert "already" in log[-1]
    assert str(getattr(find(own.endpoint), "endpoint_config_name", "")) == config


def test_canary_kms_and_vpc_settings_reach_aws(own: Installation, choose: Callable[..., None]) -> None:
    choose(
        endpoint_instance_count=2,
        canary_percent=50,
        bake_seconds=1,
        kms_key=KEY,
        vpc_subnets="subnet-0a,subnet-0b",
        vpc_security_groups="sg-0a",
        retained_versions=1,
    )
    before = serving(own)
    plan = training.plan_training.fn(own)
    prepare_data("generated")
    (rule,) = client("s3").get_bucket_encryption(Bucket=own.bucket)["ServerSideEncryptionConfiguration"]["Rules"]
    assert rule["ApplyServerSideEncryptionByDefault"] == {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": KEY}
    assert training.plan_training.fn(own).fingerprint == plan.fingerprint  # nothing was put again, so nothing is new
    images = {"train/encrypted.png": b"with the key"}
    assert [storage.upload_changed(own.bucket, "train/enc", images) for _ in range(2)] == [1, 0]
    etag = storage.list_etags(own.bucket, "train/enc")["train/encrypted.png"]
    assert etag != hashlib.md5(images["train/encrypted.png"]).hexdigest()
    storage.delete_others(own.bucket, "train/enc", [])
    roles = client("cloudformation").describe_stack_resource(StackName=STACK, LogicalResourceId="HostingRole")
    role = roles["StackResourceDetail"]["PhysicalResourceId"]
    policy = client("iam").get_role_policy(RoleName=role, PolicyName="host")["PolicyDocument"]
    assert "ec2:CreateNetworkInterface" in str(policy) and KEY in str(policy)
    with clients_of(own) as invoking:
        assert deploy_endpoint() == before  # the same version, on other instances
    assert invoking.errors == []
    sagemaker = client("sagemaker")
    endpoint = sagemaker.describe_endpoint(EndpointName=own.endpoint)
    routing = endpoint["LastDeploymentConfig"]["BlueGreenUpdatePolicy"]["TrafficRoutingConfiguration"]
    assert routing["CanarySize"] == {"Type": "CAPACITY_PERCENT", "Value": 50}
    assert endpoint["ProductionVariants"][0]["CurrentInstanceCount"] == 2
    config = sagemaker.describe_endpoint_config(EndpointConfigName=endpoint["EndpointConfigName"])
    assert config["KmsKeyId"] == config["DataCaptureConfig"]["KmsKeyId"] == KEY
    network = {"Subnets": ["subnet-0a", "subnet-0b"], "SecurityGroupIds": ["sg-0a"]}
    training._start(f"{STACK}-abcdef012345", own, training.plan_training.fn(own).job)
    job = sagemaker.describe_training_job(TrainingJobName=f"{STACK}-abcdef012345")
    assert job["OutputDataConfig"]["KmsKeyId"] == job["ResourceConfig"]["VolumeKmsKeyId"] == KEY
    assert job["VpcConfig"] == network
    training.stop(job["TrainingJobName"])
    model = sagemaker.describe_model(ModelName=endpoint["EndpointConfigName"])
    assert model["VpcConfig"] == network
    assert model["PrimaryContainer"]["ModelPackageName"].endswith(f"/{before.model_version.removeprefix('v')}")
    assert owned_names() == [endpoint["EndpointConfigName"]]  # older ones are pruned


def test_an_endpoint_scales_by_itself_by_a_setting_and_its_instance_type_can_change(
    own: Installation, choose: Callable[..., None]
) -> None:
    def scaled() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = client("application-autoscaling").describe_scalable_targets(
            ServiceNamespace="sagemaker", ResourceIds=[f"endpoint/{own.endpoint}/variant/{VARIANT}"]
        )["ScalableTargets"]
        return found

    served = deploy_endpoint()
    assert not scaled()
    choose(endpoint_max_instances=3, endpoint_invocations_per_instance=50)
    assert deploy_endpoint() == served  # that serves already
    (target,) = scaled()
    assert (target["MinCapacity"], target["MaxCapacity"]) == (1, 3)
    (policy,) = client("application-autoscaling").describe_scaling_policies(
        ServiceNamespace="sagemaker", ResourceId=target["ResourceId"]
    )["ScalingPolicies"]
    assert policy["TargetTrackingScalingPolicyConfiguration"]["TargetValue"] == 50
    choose(endpoint_instance_type="ml.c5.large")  # AWS refuses that for an endpoint that scales
    assert deploy_endpoint() == served
    endpoint = client("sagemaker").describe_endpoint(EndpointName=own.endpoint)
    config = client("sagemaker").describe_endpoint_config(EndpointConfigName=endpoint["EndpointConfigName"])
    assert config["ProductionVariants"][0]["InstanceType"] == "ml.c5.large"
    assert scaled()
    choose(endpoint_max_instances=0)
    assert deploy_endpoint() == served
    assert not scaled()


def test_the_recommended_threshold_comes_with_the_model(own: Installation, choose: Callable[..., None]) -> None:
    choose(threshold="recommended", threshold_target=0.5, threshold_level=0.6, gate_min_accuracy=0)
    version = train_model()
    assert version.threshold is not None
    assert installation().threshold == own.threshold
    deploy_endpoint(version.number)
    assert installation().threshold == version.threshold
    environment = client("lambda").get_function_configuration(FunctionName=f"{STACK}-filterLowConfidence")
    assert float(environment["Environment"]["Variables"]["THRESHOLD"]) == version.threshold


def test_a_threshold_is_applied_by_the_deployment_alone_and_recorded(
    own: Installation, choose: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = installation().threshold
    choose(threshold=0.625)
    prepare_data()
    assert installation().threshold == before
    deploy_endpoint(int(serving(own).model_version.removeprefix("v")))
    assert installation().threshold == 0.625
    last = threshold_changes(own.bucket)[-1]
    assert (last.before, last.threshold, last.reason) == (before, 0.625, "SCONES_THRESHOLD")
    deploy_endpoint(int(serving(own).model_version.removeprefix("v")))
    assert threshold_changes(own.bucket)[-1] == last  # nothing changed


def test_manual_approval_leaves_the_version_pending_until_someone_decides(
    own: Installation, choose: Callable[..., None]
) -> None:
    """Not a deployment, so the flow run is paused; its form is answered as the Prefect UI does it."""
    choose(approval="manual", gate_min_accuracy=0)
    outcome: list[ModelVersion] = []
    thread = threading.Thread(target=lambda: outcome.append(train_model()))
    thread.start()
    with get_client(sync_client=True) as prefect:
        paused = None
        while paused is None:
            assert thread.is_alive()
            runs = prefect.read_flow_runs()
            paused = next((run for run in runs if run.state and run.state.is_paused()), None)
            time.sleep(0.5)
        assert next(versions()).status == PENDING
        prefect.resume_flow_run(paused.id, run_input={"decision": "approve", "reason": "looks well"})
    thread.join(60)
    assert outcome[0].status == APPROVED
    assert outcome[0].reason.startswith("approved by a person: looks well (the gate would approve: ")


def test_a_deployments_run_is_suspended_until_someone_decides(own: Installation) -> None:
    """Through the worker: the first process ends, and another one goes on from there."""
    environment = {name: value for name, value in os.environ.items() if name.startswith("SCONES_")}
    environment |= {"SCONES_APPROVAL": "manual", "SCONES_EPOCHS": "2"}
    run = started("train-model/local", {}, environment)
    ended(run, "Suspended")
    version = next(versions())
    assert version.status == PENDING
    with get_client(sync_client=True) as prefect:
        # The form as it comes, untouched: nothing is decided, and it asks again.
        prefect.resume_flow_run(run, run_input={"decision": "undecided", "reason": ""})
        ended(run, "Suspended", after="Running")
        assert next(versions()).status == PENDING
    # From a shell.
    shell = f'. "$SCONES_STATE/env.sh"; prefect deployment run decide-model/local -p version={version.number} '
    shell += (
        """-p approve=false -p 'reason="not today"' --job-variable "env={\\"SCONES_STACK\\": \\"rollouts\\"}" --watch"""
    )
    done = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    ended(run, "Rejected")
    decided = next(versions())
    assert decided.number == version.number  # nothing was trained twice
    assert decided.status == REJECTED
    assert decided.reason.startswith("rejected by a person: not today")


def assert_every_door_is_closed(doomed: Installation) -> None:
    """What the settings ask for is what AWS was told, and an image still goes through.

    The embedded AWS keeps neither a function's VPC and key nor a state machine's logging and tracing, and takes them.
    """
    key, subnets = settings().kms_key, ["subnet-0a1b2c3d"]
    s3, functions, sagemaker = client("s3"), client("lambda"), client("sagemaker")
    rule = s3.get_bucket_encryption(Bucket=doomed.bucket)["ServerSideEncryptionConfiguration"]["Rules"][0]
    assert rule["ApplyServerSideEncryptionByDefault"] == {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": key}
    assert storage.bucket_exists(f"{doomed.bucket}-logs")
    for name in FUNCTION_NAMES:
        function = functions.get_function_configuration(FunctionName=f"{DOOMED}-{name}")
        assert function["TracingConfig"] == {"Mode": "Active"}
    for name in (f"/aws/vendedlogs/states/{DOOMED}", f"/aws/sagemaker/Endpoints/{doomed.endpoint}"):
        groups = client("logs").describe_log_groups(logGroupNamePrefix=name)["logGroups"]
        assert groups[0]["kmsKeyId"] == key and groups[0]["retentionInDays"] == 30
    endpoint = sagemaker.describe_endpoint(EndpointName=doomed.endpoint)
    config = sagemaker.describe_endpoint_config(EndpointConfigName=endpoint["EndpointConfigName"])
    assert config["KmsKeyId"] == config["DataCaptureConfig"]["KmsKeyId"] == key
    model = config["ProductionVariants"][0]["ModelName"]
    assert sagemaker.describe_model(ModelName=model)["VpcConfig"]["Subnets"] == subnets
    for arn in (endpoint["EndpointArn"], config["EndpointConfigArn"]):
        assert tags_of(sagemaker.list_tags(ResourceArn=arn)["Tags"]) == settings().tags
    for stack in client("cloudformation").describe_stacks()["Stacks"]:
        if stack["StackName"].startswith(DOOMED):
            assert tags_of(stack["Tags"]) == settings().tags
    image = next(iter(storage.list_objects(doomed.bucket, "test/")))
    started = client("stepfunctions").start_execution(
        stateMachineArn=doomed.state_machine_arn,
        input=json.dumps({"bucket": doomed.bucket, "key": image}),
    )
    execution = eventually(
        lambda: (
            (seen := client("stepfunctions").describe_execution(executionArn=started["executionArn"]))["status"]
            != "RUNNING"
            and seen
        )
    )
    assert execution["status"] == "SUCCEEDED" or execution["error"] in ("LowConfidence", "NotAClass")


def tags_of(tags: list[dict[str, str]]) -> dict[str, str]:
    return {tag["Key"]: tag["Value"] for tag in tags}


def test_all_of_it_is_removed_only_when_asked_twice(doomed: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_every_door_is_closed(doomed)
    with pytest.raises(Exception, match="is protected"):
        teardown(everything=True, confirm=DOOMED)
    with pytest.raises(Exception, match="TerminationProtection"):
        delete_stack(f"{DOOMED}-storage")
    monkeypatch.setenv("SCONES_PROTECTED", "false")
    settings.cache_clear()
    with pytest.raises(Exception, match="confirm='doomed'"):
        teardown(everything=True)
    with pytest.raises(Exception, match="confirm='doomed'"):
        teardown(everything=True, confirm="scones-unlimited")
    assert serving(doomed)
    job = long_training(doomed)
    started = client("sagemaker").describe_training_job(TrainingJobName=job)
    assert started["EnableManagedSpotTraining"]
    assert started["StoppingCondition"] == {"MaxRuntimeInSeconds": 3600, "MaxWaitTimeInSeconds": 7200}
    assert tags_of(client("sagemaker").list_tags(ResourceArn=started["TrainingJobArn"])["Tags"]) == settings().tags
    empty, late = storage.empty, iter([True])

    def empty_before_the_last_capture(bucket: str) -> int:
        deleted = empty(bucket)
        if next(late, False):
            storage.put(bucket, "data-capture/late.jsonl", b"{}")
        return deleted

    monkeypatch.setattr(storage, "empty", empty_before_the_last_capture)
    teardown(everything=True, confirm=DOOMED)
    assert client("sagemaker").describe_training_job(TrainingJobName=job)["TrainingJobStatus"] == "Stopped"
    assert_nothing_is_left(doomed)
    teardown(everything=True, confirm=DOOMED)  # again, with nothing there
    # Half-finished: the bucket without a stack, and then a stack whose creation failed because of it.
    client("s3").create_bucket(Bucket=doomed.bucket)
    client("s3").put_object(Bucket=doomed.bucket, Key="train/left.png", Body=b"x")
    with pytest.raises(InfrastructureError):
        deploy_stack(f"{DOOMED}-storage", ROOT / "infrastructure" / "storage.yaml", {"Stack": DOOMED})
    teardown(everything=True, confirm=DOOMED)
    assert_nothing_is_left(doomed)


def long_training(doomed: Installation) -> str:
    """The name of a training job of this installation that would run for a minute."""
    storage.put(doomed.bucket, "code/sleeps.tar.gz", tar_gz({"train.py": "import time\ntime.sleep(60)\n"}))
    name, source = f"{DOOMED}-0123456789ab", f"s3://{doomed.bucket}/code/sleeps.tar.gz"
    plan = training.JobPlan("train.py", source, {}, training.training_channels(doomed.bucket), ())
    training._start(name, doomed, plan)
    return name


def assert_nothing_is_left(doomed: Installation) -> None:
    names = {stack["StackName"] for stack in client("cloudformation").describe_stacks()["Stacks"]}
    assert not [name for name in names if name.startswith(DOOMED)]
    assert not [bucket for bucket in client("s3").list_buckets()["Buckets"] if bucket["Name"].startswith(doomed.bucket)]
    assert owned_names() == []
    assert list(versions()) == []
    assert find(doomed.endpoint) is None
    groups = client("logs").describe_log_groups()["logGroups"]
    assert not [group["logGroupName"] for group in groups if DOOMED in group["logGroupName"]]
    streams = client("logs").describe_log_streams(
        logGroupName="/aws/sagemaker/TrainingJobs", logStreamNamePrefix=f"{DOOMED}-"
    )["logStreams"]
    assert streams == []
