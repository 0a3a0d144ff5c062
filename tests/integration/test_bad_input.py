"""What users get wrong: each ends in a Failed (never Crashed) flow run whose message says what to do."""

import json
from pathlib import Path
from typing import Any

import pytest

from tasks import storage
from tests.integration.conftest import run_flow

# Runs a flow in a process of its own and prints its final state as JSON.
RUN = """
import json, sys
from flows.{module} import {module}
state = {module}({arguments}return_state=True)
print("STATE", json.dumps([state.type.value, str(state.message)]))
"""


def final_state(module: str, arguments: str = "", **environment: str) -> tuple[str, str]:
    done = run_flow(RUN.format(module=module, arguments=arguments and arguments + ", "), **environment)
    lines = [line for line in done.stdout.splitlines() if line.startswith("STATE")]
    assert lines, done.stdout + done.stderr
    kind, message = json.loads(lines[-1].removeprefix("STATE "))
    return kind, message


@pytest.mark.parametrize("content", [None, b"", b"not an archive", b"\x1f\x8b\x08\x00truncated"])
def test_an_archive_that_cannot_be_read(installed: Any, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "images.tar.gz"
    if content is not None:
        path.write_bytes(content)
    before = storage.list_etags(installed.bucket, "manifests/")
    kind, message = final_state("prepare_data", f"{str(path)!r}")
    assert kind == "FAILED"
    assert str(path) in message
    assert storage.list_etags(installed.bucket, "manifests/") == before  # nothing half-written


def test_scheduled_runs_never_draw_images_instead(installed: Any) -> None:
    kind, message = final_state("prepare_data", "'cifar100'", SCONES_CIFAR_URL="http://127.0.0.1:9/cifar.tar.gz")
    assert kind == "FAILED"
    assert "SCONES_CIFAR_URL" in message


def test_a_demo_draws_images_where_the_archive_is_out_of_reach(installed: Any) -> None:
    url = "http://127.0.0.1:9/cifar.tar.gz"
    kind, _ = final_state("prepare_data", "'cifar100', fall_back_to_generated=True", SCONES_CIFAR_URL=url)
    assert kind == "COMPLETED"


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("train_model", "run the prepare-data deployment first"),
        ("nightly_evaluation", "run the prepare-data deployment first"),
        ("confidence_report", "run the prepare-data deployment first"),
    ],
)
def test_nothing_is_installed_yet(installed: Any, module: str, text: str) -> None:
    kind, message = final_state(module, SCONES_STACK="not-there")
    assert kind == "FAILED"
    assert text in message


def test_an_endpoint_that_does_not_exist_and_no_model(installed: Any) -> None:
    prepared, _ = final_state("prepare_data", "'generated'", SCONES_STACK="empty")
    assert prepared == "COMPLETED"
    kind, message = final_state("nightly_evaluation", SCONES_STACK="empty")
    assert kind == "FAILED"
    assert "no endpoint 'empty-classifier'" in message and "run the deploy-endpoint deployment first" in message
    kind, message = final_state("deploy_endpoint", SCONES_STACK="empty")
    assert kind == "FAILED"
    assert "no approved version; run the train-model deployment first" in message
    kind, message = final_state("confidence_report", SCONES_STACK="empty")
    assert kind == "FAILED"
    assert "run the nightly-evaluation deployment first" in message


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
    kind, message = final_state("prepare_data", "'generated'", SCONES_THRESHOLD="1.5")
    assert kind == "FAILED"
    assert "threshold" in message and "less than or equal to 1" in message


def test_aws_out_of_reach(installed: Any) -> None:
    kind, message = final_state("nightly_evaluation", AWS_ENDPOINT_URL="http://127.0.0.1:9", AWS_MAX_ATTEMPTS="1")
    assert kind == "FAILED"
    assert "AWS is out of reach" in message
