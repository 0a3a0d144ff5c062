"""The wheel of local_sagemaker/, installed outside this checkout: a model's whole life through its command."""

import json
import os
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from local_aws.config import ROOT, free_port
from testing.waiting import eventually
from tests.local_sagemaker.conftest import ACTOR, BUCKET, INFERENCE_IMAGE, Server, unique

SCRIPT = f"""
import os, pathlib
code = pathlib.Path(os.environ["SM_MODEL_DIR"], "code")
code.mkdir()
(code / "inference.py").write_text({ACTOR!r})
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    source = folder / "source"
    # A build leaves files beside its source.
    subprocess.run(["cp", "-r", str(ROOT / "local_sagemaker"), str(source)], check=True)
    subprocess.run([*command, str(source)], check=True, cwd=folder, capture_output=True, text=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def elsewhere(server: Server, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The URL of a server that runs from the unpacked wheel, beside the tests' ministack, and its folder."""
    folder = tmp_path_factory.mktemp("elsewhere")
    with zipfile.ZipFile(wheel) as archived:
        archived.extractall(folder / "site")
    # Before the checkout's own, which the environment has on its path as well.
    environment = {**server.aws.environment, "PYTHONPATH": str(folder / "site"), "HOME": str(folder)}
    port = free_port()
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "local_sagemaker", "--port", str(port), "--state", "state"],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
        )
    try:
        eventually(lambda: process.poll() is not None or _listens(port))
        assert process.poll() is None, (folder / "log").read_text()
        yield f"http://127.0.0.1:{port}", folder
    finally:
        process.terminate()
        process.wait(30)


def _listens(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


def test_the_wheel_holds_the_server_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archived:
        folders = {name.split("/")[0] for name in archived.namelist()}
        imports = [
            line
            for name in archived.namelist()
            if name.endswith(".py")
            for line in archived.read(name).decode().splitlines()
            if line.strip().startswith(("import ", "from "))
        ]
    assert folders == {"local_sagemaker", "local_sagemaker-0.1.0.dist-info"}
    assert not [line for line in imports if any(word in line for word in ("local_aws", "tasks", "flows", "settings "))]


def test_a_model_lives_outside_the_checkout(server: Server, elsewhere: tuple[str, Path]) -> None:
    url, folder = elsewhere
    own = server.at(url)
    described = own.ended(own.job(SCRIPT))
    assert described["TrainingJobStatus"] == "Completed", described
    model, config, endpoint = unique("model"), unique("config"), unique("endpoint")
    artifact = described["ModelArtifacts"]["S3ModelArtifacts"]
    container: dict[str, Any] = {"Image": INFERENCE_IMAGE, "ModelDataUrl": artifact}
    own.sagemaker.create_model(ModelName=model, ExecutionRoleArn=own.role, PrimaryContainer=container)
    variant = {"VariantName": "only", "ModelName": model, "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
    capture = {
        "EnableCapture": True,
        "InitialSamplingPercentage": 100,
        "DestinationS3Uri": f"s3://{BUCKET}/{endpoint}",
        "CaptureOptions": [{"CaptureMode": "Input"}, {"CaptureMode": "Output"}],
    }
    own.sagemaker.create_endpoint_config(
        EndpointConfigName=config, ProductionVariants=[variant], DataCaptureConfig=capture
    )
    own.sagemaker.create_endpoint(EndpointName=endpoint, EndpointConfigName=config)
    assert own.settled(endpoint)["EndpointStatus"] == "InService"
    answer = own.invoke(endpoint, b"hello", InferenceId="one")
    source = Path(f"/proc/{answer['process']}/environ")
    if source.exists():  # Linux: the model runs from the unpacked wheel
        assert os.fsencode(f"PYTHONPATH={folder / 'site'}") in source.read_bytes().split(b"\0")
    keys = eventually(lambda: own.keys(f"{endpoint}/{endpoint}/only/"))
    record = json.loads(own.get(f"s3://{BUCKET}/{keys[0]}"))
    assert record["eventMetadata"]["inferenceId"] == "one"
    own.delete(endpoint)


def test_the_command_explains_itself(elsewhere: tuple[str, Path]) -> None:
    command = Path(sys.executable).with_name("local-sagemaker")
    shown = subprocess.run([str(command), "--help"], capture_output=True, text=True, check=True, cwd=elsewhere[1])
    assert "--capture-delay" in shown.stdout
    shown = subprocess.run([str(command), "--version"], capture_output=True, text=True, check=True, cwd=elsewhere[1])
    assert shown.stdout == "local-sagemaker 0.1.0\n"
