import re
import shutil
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from local_sagemaker.account import split_uri
from local_sagemaker.capture import CaptureSpool, Exchange
from local_sagemaker.hosting import Endpoints
from local_sagemaker.instances import Instances
from local_sagemaker.protocol import (
    ApiError,
    SerializationException,
    ValidationException,
    matches,
    operation,
    shaped,
    validate,
)
from local_sagemaker.resources import Resources
from local_sagemaker.routing import Routing
from local_sagemaker.store import Store

from local_aws import services
from local_aws.config import ROOT, LocalConfig, free_port
from local_aws.credentials import credentials
from local_aws.environment import prepare, process_environment, shell_script
from tests.conftest import POISON


def test_local_processes_get_nothing_of_a_real_account(config: LocalConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in POISON.items():
        monkeypatch.setenv(name, value)
    environment = process_environment(config)
    real = set(POISON.values())
    assert not [name for name, value in environment.items() if value in real]
    assert environment["AWS_ACCESS_KEY_ID"] == credentials(config).access_key_id
    assert "127.0.0.1" in environment["PREFECT_API_URL"]
    assert not {"AWS_PROFILE", "PREFECT_API_KEY", "AWS_SESSION_TOKEN", "HTTPS_PROXY"} & set(environment)


def test_real_aws_keeps_the_shells_account_but_not_its_workspace(
    config: LocalConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in POISON.items():
        monkeypatch.setenv(name, value)
    environment = process_environment(config, real_aws=True)
    assert environment["AWS_PROFILE"] == "production"
    assert "127.0.0.1" in environment["PREFECT_API_URL"]
    assert "PREFECT_API_KEY" not in environment


def test_the_shell_script_unsets_what_a_shell_exports_later(config: LocalConfig) -> None:
    script = shell_script(config, real_aws=False)
    done = subprocess.run(
        ["sh", "-c", script + "\nenv"], env={"PATH": "/usr/bin:/bin", **POISON}, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "AKIAREALKEY" not in done.stdout
    assert "pnu_real" not in done.stdout
    assert f"PREFECT_API_URL={config.prefect_url}/api" in done.stdout


def test_the_aws_cli_runs_from_a_folder_with_a_space(tmp_path: Path) -> None:
    config = LocalConfig(state=tmp_path / "my state")
    prepare(config)
    done = subprocess.run(
        ["sh", "-c", f"{shell_script(config, real_aws=False)}\naws --version"],
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith("aws-cli/"), done.stderr
    script = (config.state / "bin" / "aws").read_text()
    assert f"{sys.executable} -m awscli" in script


def test_only_a_folder_of_the_services_is_cleaned(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(services.ServicesError, match="not a folder of the services"):
        services.clean(LocalConfig(state=tmp_path))
    assert (tmp_path / "thesis.txt").exists()
    (tmp_path / "thesis.txt").unlink()
    services.clean(LocalConfig(state=tmp_path / "none"))
    (tmp_path / "logs").mkdir()
    services.clean(LocalConfig(state=tmp_path))
    assert not tmp_path.exists()


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        others = {"prefect_port": free_port(), "aws_port": free_port()}
        config = LocalConfig(state=tmp_path, sagemaker_port=taken.getsockname()[1], **others)
        with pytest.raises(services.ServicesError, match=rf"port {taken.getsockname()[1]} .*SCONES_SAGEMAKER_PORT"):
            services._check_ports(config, real_aws=False)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({}, "Value null at 'endpointName' failed to satisfy constraint: Member must not be null"),
        ({"EndpointName": "a b", "EndpointConfigName": "c"}, "regular expression pattern"),
        ({"EndpointName": "a" * 64, "EndpointConfigName": "c"}, "length less than or equal to 63"),
    ],
)
def test_requests_are_checked_against_the_api(request_: dict[str, object], message: str) -> None:
    shape = operation("CreateEndpoint").input_shape
    assert shape is not None
    with pytest.raises(ValidationException, match=message):
        validate(shape, request_)


def test_a_broken_constraint_is_told_in_awss_words() -> None:
    """As quoted in aws-samples/aws-sagemaker-heart-disease-prediction, issue 1."""
    shape = operation("CreateModel").input_shape
    assert shape is not None
    wrong = {"ModelName": "m", "PrimaryContainer": {"Mode": "NoModel"}}
    with pytest.raises(ValidationException) as raised:
        validate(shape, wrong)
    assert raised.value.message == (
        "1 validation error detected: Value 'NoModel' at 'primaryContainer.mode' failed to satisfy constraint: Member "
        "must satisfy enum value set: [SingleModel, MultiModel]"
    )


def test_a_value_of_another_type_is_no_request() -> None:
    shape = operation("CreateEndpoint").input_shape
    assert shape is not None
    with pytest.raises(SerializationException, match="endpointName: int is no string"):
        validate(shape, {"EndpointName": 7, "EndpointConfigName": "c"})


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        (r"\A\S[\p{Print}]*\z", "an id", "tab\there"),
        (r"\A\S[\p{Print}]*\z", "an id", "an ümlaut"),
        (r"\p{ASCII}*", "plain", "ümlaut"),
        (r"([\p{L}\p{Z}\p{N}_.:/=+\-@]*)", "ümlaut 1", "semi;colon"),
    ],
)
def test_patterns_of_java_mean_what_they_mean_there(pattern: str, good: str, bad: str) -> None:
    assert matches(pattern, good)
    assert not matches(pattern, bad)


def test_an_operation_that_aws_does_not_have_is_named() -> None:
    with pytest.raises(ApiError, match="MakeTea"):
        operation("MakeTea")


def test_answers_have_only_the_members_of_the_api() -> None:
    shape = operation("DescribeEndpoint").output_shape
    assert shape is not None
    answer = shaped(shape, {"EndpointName": "e", "Secret": 1, "FailureReason": None})
    assert answer == {"EndpointName": "e"}


def test_records_survive_the_store(tmp_path: Path) -> None:
    path = tmp_path / "resources.sqlite"
    assert Store(path).create("model", "m", {"ModelName": "m"})
    again = Store(path)
    assert again.get("model", "m") == {"ModelName": "m"}
    assert not again.create("model", "m", {})
    assert again.update("model", "m", Extra=1) == {"ModelName": "m", "Extra": 1}
    assert again.delete("model", "m") and not again.delete("model", "m")


def test_the_island_imports_nothing_of_the_rest() -> None:
    own = {"settings", "flows", "tasks", "deploy", "demo"}
    for folder in ("local_aws", "lambdas", "classifier"):
        for path in (ROOT / folder).rglob("*.py"):
            imports = [line.split()[1].split(".")[0] for line in path.read_text().splitlines() if is_import(line)]
            assert not own & set(imports), path


def is_import(line: str) -> bool:
    return line.lstrip().startswith(("import ", "from "))


@pytest.mark.parametrize(
    "name", ["requirements", "infrastructure/runner", "infrastructure/checkov", "tests/ray_serve/requirements"]
)
def test_every_package_but_pytorch_is_locked_with_its_hashes(name: str) -> None:
    lock = (ROOT / f"{name}.lock").read_text()
    packages = re.findall(r"^([a-z0-9.-]+)==([^ \n]+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", lock, re.MULTILINE)
    assert len(packages) == len([line for line in lock.splitlines() if line[:1] not in (" ", "#", "")]) > 10
    assert not [package for package, version, hashes in packages if "+" in version or package == "torch"]


def test_pytorch_is_locked_by_its_version() -> None:
    assert f'"{(ROOT / "torch.lock").read_text().strip()}",' in (ROOT / "pyproject.toml").read_text()


def test_an_unfinished_capture_record_is_cut_and_the_whole_ones_are_kept(tmp_path: Path) -> None:
    """A server that was killed while it wrote: the answer of the last record was never sent."""
    for name, content in (("one", b'{"a":1}\n{"b":2'), ("two", b'{"half'), ("three", b'{"a":1}\n')):
        (tmp_path / f"{name}.open").write_bytes(content)
        (tmp_path / f"{name}.json").write_text("{}")
    (tmp_path / "uploaded.json").write_text("{}")
    spool = CaptureSpool(tmp_path, interval=60, delay=3600)
    spool.shutdown()
    ready = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.suffix != ".json"}
    assert ready == {"one.jsonl": b'{"a":1}\n', "two.jsonl": b"", "three.jsonl": b'{"a":1}\n'}
    assert not (tmp_path / "uploaded.json").exists()


def test_a_record_that_cannot_be_spooled_costs_no_answer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spool = CaptureSpool(tmp_path / "spool", interval=60)
    shutil.rmtree(tmp_path / "spool")
    config = {
        "EnableCapture": True,
        "InitialSamplingPercentage": 100,
        "DestinationS3Uri": "s3://bucket/capture",
        "CaptureOptions": [{"CaptureMode": "Input"}],
    }
    exchange = Exchange(b"x", "text/plain", b"y", "text/plain", None, None, datetime.now(UTC))
    spool.record(config, "a-role", "endpoint", "variant", exchange)
    assert "a capture record is lost" in caplog.text
    (tmp_path / "spool").mkdir()
    spool.record(config, "a-role", "endpoint", "variant", exchange)
    assert len(list((tmp_path / "spool").glob("*.open"))) == 1
    spool.shutdown()


@pytest.mark.parametrize(
    ("uri", "parts"),
    [
        ("s3://bucket/a/b", ("bucket", "a/b")),
        ("s3://bucket", ("bucket", "")),
        ("s3://bucket/a?b#c/", ("bucket", "a?b#c/")),
        ("s3://bucket//a", ("bucket", "/a")),
    ],
)
def test_an_s3_uri_is_bucket_and_key_whatever_is_in_the_key(uri: str, parts: tuple[str, str]) -> None:
    assert split_uri(uri) == parts
    for wrong in ("https://bucket/a", "s3:///a", "s3://../a", "bucket/a"):
        with pytest.raises(ValueError, match="not an S3 URI"):
            split_uri(wrong)


def test_an_endpoint_of_an_earlier_version_can_be_deleted_and_made_again(tmp_path: Path) -> None:
    resources = Resources(Store(tmp_path / "resources.sqlite"))
    resources.store.create("endpoint", "old", {"EndpointName": "old", "EndpointStatus": "InService"})
    instances = Instances(tmp_path / "models", model_seconds=1)
    endpoints = Endpoints(resources, instances, Routing(resources, queue_per_instance=1), model_seconds=1)
    deadline = time.monotonic() + 10
    while (record := resources.store.get("endpoint", "old") or {})["EndpointStatus"] != "Failed":
        assert time.monotonic() < deadline
    assert "earlier version" in record["FailureReason"]
    endpoints.shutdown()


def test_a_full_disk_is_told_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = LocalConfig(state=tmp_path)
    services._check_space(config)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=90_000_000))
    with pytest.raises(services.ServicesError, match="only 90 MB are free"):
        services._check_space(config)
