"""What a process starts, it stops; and nothing of it reaches an account or workspace that the shell names."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import status
from local_aws import services
from local_aws.config import ROOT, LocalConfig, free_port
from local_aws.environment import aws_variables
from testing.flow_runs import worker_processes
from tests.conftest import POISON, give_migrated_database
from tests.integration.conftest import server_errors


@pytest.fixture
def own(tmp_path: Path) -> Iterator[tuple[LocalConfig, dict[str, str]]]:
    """An installation of its own, and the poisoned environment of the shell that it is used from."""
    variables = {
        "SCONES_STATE": str(tmp_path / "state"),
        "SCONES_PREFECT_PORT": str(free_port()),
        "SCONES_AWS_PORT": str(free_port()),
        "SCONES_SAGEMAKER_PORT": str(free_port()),
        "SCONES_REPORTS": str(tmp_path / "reports"),
    }
    config = LocalConfig(
        state=tmp_path / "state",
        prefect_port=int(variables["SCONES_PREFECT_PORT"]),
        aws_port=int(variables["SCONES_AWS_PORT"]),
        sagemaker_port=int(variables["SCONES_SAGEMAKER_PORT"]),
    )
    # A shell that starts the tests in its background has it ignored, which what they start would inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield config, {**os.environ, **POISON, **variables}
    services.down(config)
    assert server_errors(config, stopped_at_any_time=True) == []


def call(environment: dict[str, str], *command: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600)


def listening(config: LocalConfig) -> list[int]:
    ports = []
    for port in (config.prefect_port, config.aws_port, config.sagemaker_port):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                ports.append(port)
    return ports


def addresses_of(processes: list[psutil.Process]) -> set[str]:
    found = set()
    for process in processes:
        found |= {c.laddr.ip for c in process.net_connections() if c.status == psutil.CONN_LISTEN}
    return found


def test_a_killed_supervisor_leaves_nothing_behind_after_the_next_up(
    own: tuple[LocalConfig, dict[str, str]],
) -> None:
    config, environment = own
    give_migrated_database(config)
    assert call(environment, sys.executable, "-m", "local_aws", "up").returncode == 0
    bucket = "import boto3; boto3.client('s3').create_bucket(Bucket='kept'); "
    bucket += "boto3.client('s3').put_object(Bucket='kept', Key='k', Body=b'v')"
    shell = f'. "{config.state}/env.sh" && python -c "{bucket}"'
    assert call(environment, "sh", "-c", shell).returncode == 0
    first = services.supervised_processes(config)
    assert addresses_of(first) == {"127.0.0.1"}
    supervisor = services._supervisor_process(config)
    assert supervisor is not None
    supervisor.send_signal(signal.SIGKILL)
    supervisor.wait(10)
    assert len(listening(config)) == 3  # they live on without it

    assert call(environment, sys.executable, "-m", "local_aws", "up").returncode == 0
    assert not {process.pid for process in first} & {p.pid for p in services.supervised_processes(config)}
    read = "import boto3; print(boto3.client('s3').get_object(Bucket='kept', Key='k')['Body'].read())"
    assert "b'v'" in call(environment, "sh", "-c", f'. "{config.state}/env.sh" && python -c "{read}"').stdout

    # Deleted is deleted, also after the next start.
    deleted = call(environment, "sh", "-c", f'. "{config.state}/env.sh" && python -c "$0"', DELETE_BY_STACK)
    assert deleted.returncode == 0, deleted.stderr
    assert call(environment, "make", "down").returncode == 0
    assert services.supervised_processes(config) == []
    assert listening(config) == []
    assert call(environment, sys.executable, "-m", "local_aws", "up").returncode == 0
    names = "import boto3; print([each['Name'] for each in boto3.client('s3').list_buckets()['Buckets']])"
    assert "['kept']" in call(environment, "sh", "-c", f'. "{config.state}/env.sh" && python -c "{names}"').stdout


DELETE_BY_STACK = """
import boto3, json, time
stacks, s3 = boto3.client("cloudformation"), boto3.client("s3")
bucket = {"Type": "AWS::S3::Bucket", "Properties": {"BucketName": "made-by-stack"}}
stacks.create_stack(StackName="s", TemplateBody=json.dumps({"Resources": {"Bucket": bucket}}))
stacks.get_waiter("stack_create_complete").wait(StackName="s", WaiterConfig={"Delay": 1})
s3.put_object(Bucket="made-by-stack", Key="k", Body=b"v")
identifier = stacks.describe_stacks(StackName="s")["Stacks"][0]["StackId"]
stacks.delete_stack(StackName="s")
while (status := stacks.describe_stacks(StackName=identifier)["Stacks"][0]["StackStatus"]).endswith("PROGRESS"):
    time.sleep(0.2)
assert status == "DELETE_FAILED", status  # as on AWS: the bucket is not empty
s3.delete_object(Bucket="made-by-stack", Key="k")
stacks.delete_stack(StackName="s")
while (status := stacks.describe_stacks(StackName=identifier)["Stacks"][0]["StackStatus"]).endswith("PROGRESS"):
    time.sleep(0.2)
assert status == "DELETE_COMPLETE", status
"""


def demo_until(line: str, environment: dict[str, str]) -> subprocess.Popen[str]:
    """A demo that has printed this."""
    demo = subprocess.Popen(
        ["make", "demo", "DATASET=generated"],
        cwd=ROOT,
        env={**environment, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert demo.stdout is not None
    seen = []
    for printed in demo.stdout:
        seen.append(printed)
        if line in printed:
            return demo
    raise AssertionError("".join(seen))


def interrupt(demo: subprocess.Popen[str], config: LocalConfig) -> None:
    """As Ctrl-C does; one message, and nothing of it is left."""
    os.killpg(demo.pid, signal.SIGINT)
    output = demo.communicate(timeout=90)[0]
    assert demo.returncode != 0
    assert output.count("interrupted: stopping all services") == 1 and "Traceback" not in output, output
    assert services.supervised_processes(config) == []
    assert listening(config) == []


def test_ctrl_c_in_the_demo_stops_everything(own: tuple[LocalConfig, dict[str, str]]) -> None:
    config, environment = own
    demo = demo_until("epoch=1/", environment)  # a training job runs in a session of its own by now
    second = subprocess.run(
        ["make", "demo", "DATASET=generated"], cwd=ROOT, env=environment, text=True, capture_output=True
    )
    assert second.returncode != 0 and "another `make demo` is under way" in second.stderr
    assert listening(config)  # of the first, which goes on
    interrupt(demo, config)


def test_ctrl_c_in_the_first_steps_of_the_demo_too(own: tuple[LocalConfig, dict[str, str]]) -> None:
    config, environment = own
    give_migrated_database(config)
    for line in ("starting the services", "applying prefect.yaml", "Beginning subflow run 'prepare-data"):
        interrupt(demo_until(line, environment), config)


def test_real_aws_starts_only_server_and_worker(own: tuple[LocalConfig, dict[str, str]]) -> None:
    config, environment = own
    give_migrated_database(config, real_aws=True)
    # The shell's proxies are meant for an AWS of its own, and Prefect may use them too.
    environment = {name: value for name, value in environment.items() if not name.endswith("_PROXY")}
    sourced = call({**environment, **aws_variables(config)}, "make", "up", "AWS=real")
    assert sourced.returncode != 0
    assert "the environment of the local AWS (AWS_ACCESS_KEY_ID, AWS_CA_BUNDLE, AWS_ENDPOINT_URL," in sourced.stderr
    done = call(environment, "make", "up", "AWS=real")
    assert done.returncode == 0, done.stdout + done.stderr
    assert listening(config) == [config.prefect_port]
    worker = next(p for p in services.supervised_processes(config) if "worker" in p.cmdline())
    watch = next(p for p in services.supervised_processes(config) if "watch" in p.cmdline())
    assert watch.cmdline()[-1] == "aws"
    assert worker.environ()["AWS_PROFILE"] == "production"
    assert worker.environ()["PREFECT_API_URL"] == f"{config.prefect_url}/api"
    listed = call(environment, "sh", "-c", f'. "{config.state}/env.sh" && prefect deployment ls').stdout
    assert "pipeline/aws" in listed and "/local" not in listed
    # Nothing of the local mode, its schedules among it, is there to be started against an account.
    assert (config.state / "prefect-aws" / "prefect.db").exists()
    assert not (config.state / "prefect" / "prefect.db").exists()
    assert worker.cmdline()[worker.cmdline().index("--pool") + 1] == "aws"
    refused = call(environment, "make", "up")
    assert refused.returncode != 0
    assert "make down" in refused.stderr
    assert call(environment, "make", "down").returncode == 0
    assert services.supervised_processes(config) == []


def test_real_aws_without_credentials_is_refused_at_once(own: tuple[LocalConfig, dict[str, str]]) -> None:
    config, environment = own
    bare = {name: value for name, value in environment.items() if not name.startswith("AWS_")}
    bare |= {"AWS_CONFIG_FILE": "/none", "AWS_SHARED_CREDENTIALS_FILE": "/none", "AWS_EC2_METADATA_DISABLED": "true"}
    done = call(bare, "make", "up", "AWS=real")
    assert done.returncode != 0
    assert "there are no AWS credentials" in done.stderr
    assert listening(config) == []


def test_a_second_up_applies_what_has_changed_and_status_says_what_is_used(
    own: tuple[LocalConfig, dict[str, str]],
) -> None:
    config, environment = own
    give_migrated_database(config)
    environment = {name: value for name, value in environment.items() if name != "SCONES_EPOCHS"}
    up = [sys.executable, "-m", "local_aws", "up"]
    assert call({**environment, "SCONES_EPOCHS": "3"}, *up).returncode == 0
    shown = call(environment, "make", "status")
    assert shown.returncode == 0, shown.stderr
    told = shown.stdout
    assert f"Prefect UI      {config.prefect_url}" in told and "no evaluation has ended yet" in told
    assert "SCONES_EPOCHS: 3, now not set" in told
    moved = call({**environment, "SCONES_PREFECT_PORT": "1"}, "make", "status").stdout
    assert f"Prefect UI      {config.prefect_url}" in moved  # where it is, not where it would be
    again = call(environment, *up)
    assert "restarted the worker: SCONES_EPOCHS: 3 -> not set" in again.stdout
    assert "restarted" not in call(environment, *up).stdout
    port = str(free_port())
    elsewhere = call({**environment, "SCONES_SAGEMAKER_PORT": port}, *up)
    assert f"restarted the services: SCONES_SAGEMAKER_PORT: {config.sagemaker_port} -> {port}" in elsewhere.stdout
    deadline = time.monotonic() + 60
    while not (workers := worker_processes(config)):  # it becomes `prefect worker` a moment after it is started
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert "SCONES_EPOCHS" not in workers[0].environ()


def test_status_and_help_explain(own: tuple[LocalConfig, dict[str, str]], tmp_path: Path) -> None:
    _, environment = own
    down = call(environment, sys.executable, "status.py")
    assert (down.returncode, "make up" in down.stdout) == (status.DOWN, True)
    assert call(environment, "make", "status").returncode != 0
    shutil.copy(ROOT / "Makefile", tmp_path)
    assert "Nothing is set up" in call(environment, "make", "status", cwd=tmp_path).stdout
    wrong = call(environment, "make", "demo", "DATASET=none.tar.gz", cwd=tmp_path)
    assert wrong.returncode != 0 and "neither cifar100, generated, a file nor a folder" in wrong.stderr
    assert not (tmp_path / ".venv").exists()
    text = call(environment, "make").stdout
    for target in ("demo", "test", "up", "down", "status", "logs", "lint", "check", "clean"):
        assert f"make {target}" in text


def test_a_second_run_of_the_tests_keeps_to_itself(own: tuple[LocalConfig, dict[str, str]]) -> None:
    _, environment = own
    done = call(environment, "make", "test", "TESTS=tests/unit/test_settings.py")
    assert done.returncode == 0, done.stdout


def test_clean_removes_what_was_made_and_nothing_else(own: tuple[LocalConfig, dict[str, str]], tmp_path: Path) -> None:
    _, environment = own
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in files:
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, checkout / name)
    (checkout / ".venv").symlink_to(ROOT / ".venv")
    (checkout / "reports" / "2026-11-22").mkdir()
    (checkout / ".scones").mkdir()
    kept = {name: value for name, value in environment.items() if name != "SCONES_STATE"}
    done = call(kept, "make", "clean", cwd=checkout)
    assert done.returncode == 0, done.stderr
    left = {str(path.relative_to(checkout)) for path in checkout.rglob("*") if path.is_file()}
    assert left == set(files)
    assert (ROOT / ".venv" / "bin" / "python").exists()
