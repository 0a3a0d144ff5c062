"""What users get wrong: each ends in a Failed (never Crashed) flow run whose message says what to do."""

import json
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tasks.aws import storage
from tasks.aws.clients import client
from tests.integration.conftest import run_flow

# Runs flows one after the other in a process of their own and prints their final states as JSON.
RUN = """
import importlib, json, sys
for module, arguments in json.loads(sys.argv[1]):
    state = getattr(importlib.import_module("flows." + module), module)(**arguments, return_state=True)
    print("STATE", json.dumps([state.type.value, str(state.message)]))
"""
Case = tuple[str, dict[str, Any]]


def final_states(*cases: Case, **environment: str) -> list[tuple[str, str]]:
    """Type and message of each flow's final state."""
    done = run_flow(RUN, json.dumps(cases), **environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith("STATE")]
    assert len(lines) == len(cases), done.stdout + done.stderr
    return [tuple(json.loads(line.removeprefix("STATE "))) for line in lines]


def final_state(module: str, environment: dict[str, str] | None = None, **arguments: Any) -> tuple[str, str]:
    return final_states((module, arguments), **(environment or {}))[0]


def test_an_archive_that_cannot_be_read(installed: Any, tmp_path: Path) -> None:
    paths = [tmp_path / "missing.tar.gz"]
    for name, content in (("empty", b""), ("text", b"not an archive"), ("truncated", b"\x1f\x8b\x08\x00truncated")):
        paths.append(tmp_path / f"{name}.tar.gz")
        paths[-1].write_bytes(content)
    before = storage.list_etags(installed.bucket, "manifests/")
    states = final_states(*[("prepare_data", {"dataset": str(path)}) for path in paths])
    for path, (kind, message) in zip(paths, states, strict=True):
        assert kind == "FAILED"
        assert str(path) in message
    assert storage.list_etags(installed.bucket, "manifests/") == before  # nothing half-written


def test_images_are_drawn_only_where_the_caller_allows_it(installed: Any) -> None:
    (kind, message), (drawn, _) = final_states(
        ("prepare_data", {"dataset": "cifar100"}),
        ("prepare_data", {"dataset": "cifar100", "fall_back_to_generated": True}),
        SCONES_CIFAR_URL="http://127.0.0.1:9/cifar.tar.gz",
    )
    assert kind == "FAILED"
    assert "SCONES_CIFAR_URL" in message
    assert drawn == "COMPLETED"


def test_nothing_is_installed_yet(installed: Any) -> None:
    flows = ("train_model", "deploy_endpoint", "nightly_evaluation", "confidence_report")
    for kind, message in final_states(*[(name, {}) for name in flows], SCONES_STACK="not-there"):
        assert kind == "FAILED"
        assert "run the prepare-data deployment first" in message


def test_an_endpoint_that_does_not_exist_and_no_model(installed: Any) -> None:
    prepared, deployed, evaluated, reported = final_states(
        ("prepare_data", {"dataset": "generated"}),
        ("deploy_endpoint", {}),
        ("nightly_evaluation", {}),
        ("confidence_report", {}),
        SCONES_STACK="empty",
    )
    assert prepared[0] == "COMPLETED"
    assert {deployed[0], evaluated[0], reported[0]} == {"FAILED"}
    assert "has no version; run the train-model deployment first" in deployed[1]
    assert "no endpoint 'empty-classifier'" in evaluated[1]
    assert "run the deploy-endpoint deployment first" in evaluated[1]
    assert "run the nightly-evaluation deployment first" in reported[1]


def test_an_empty_test_set(installed: Any) -> None:
    manifest = storage.get(installed.bucket, "manifests/test.lst")
    assert manifest
    storage.put(installed.bucket, "manifests/test.lst", b"")
    try:
        kind, message = final_state("nightly_evaluation")
    finally:
        storage.put(installed.bucket, "manifests/test.lst", manifest)
    assert kind == "FAILED"
    assert "no test image to evaluate" in message


def test_a_threshold_outside_0_to_1(installed: Any) -> None:
    kind, message = final_state("prepare_data", {"SCONES_THRESHOLD": "1.5"}, dataset="generated")
    assert kind == "FAILED"
    assert "SCONES_THRESHOLD=1.5: " in message and "less than or equal to 1" in message


def test_aws_out_of_reach(installed: Any) -> None:
    kind, message = final_state("nightly_evaluation", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"})
    assert kind == "FAILED"
    assert "Cannot reach AWS" in message


def test_a_model_error_carries_the_models_own_status(installed: Any) -> None:
    with pytest.raises(ClientError) as error:
        client("sagemaker-runtime").invoke_endpoint(
            EndpointName=installed.endpoint, ContentType="application/x-image", Body=b"no image"
        )
    response: Any = error.value.response
    assert response["Error"]["Code"] == "ModelError"
    assert response["ResponseMetadata"]["HTTPStatusCode"] == 424
    assert response["OriginalStatusCode"] == 400
    assert "neither a PNG nor a JPEG" in response["OriginalMessage"]
