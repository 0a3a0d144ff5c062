"""dev and prod in one account: stacks, runner, deployments, promotion and drift, and flow runs that share no disk."""

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client

import environment
from deploy import apply_document
from local_aws.config import LocalConfig
from settings import ROOT, settings
from tasks.aws import storage
from tasks.aws.clients import client
from tasks.aws.stacks import installation
from tasks.data.dataset import png
from tasks.data.generated import draw
from tasks.model.registry import APPROVED, versions

PROD = "env-prod"


@pytest.fixture
def environments(stack: LocalConfig, installed: Any, tmp_path: Path) -> Iterator[Path]:
    """A folder of two environments: dev is the demo's installation, prod has stacks of its own and runs on ECS."""
    before = dict(os.environ)
    (tmp_path / "dev.env").write_text("SCONES_ENVIRONMENT=dev\n")
    (tmp_path / "prod.env").write_text(
        f"SCONES_STACK={PROD}\nSCONES_ENVIRONMENT=prod\nSCONES_RUNNER_VPC=vpc-0a1b2c3d\n"
        "SCONES_RUNNER_SUBNETS=subnet-0a1b2c3d,subnet-1a1b2c3d\nSCONES_RUNNER_WORKERS=1\nSCONES_APPROVAL=manual\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(environment, "FOLDER", tmp_path)
        try:
            yield tmp_path
        finally:
            os.environ.clear()
            os.environ.update(before)
            settings.cache_clear()


def test_prod_is_deployed_promoted_to_watched_for_drift_and_removed(
    environments: Path, stack: LocalConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    environment.choose("prod", real_aws=False)
    environment.deploy("prod", stack)
    family = client("ecs").describe_task_definition(taskDefinition=f"{PROD}-flow-run")["taskDefinition"]
    container = family["containerDefinitions"][0]
    assert (family["cpu"], family["networkMode"], container["user"]) == ("1024", "awsvpc", "10001")
    assert container["image"].endswith(f"{PROD}-runner:1")
    assert {"name": "PREFECT_API_URL", "value": os.environ["PREFECT_API_URL"]} in container["environment"]
    with get_client(sync_client=True) as prefect:
        pool = prefect.read_work_pool(PROD)
        assert pool.type == "ecs"
        defaults = {
            name: each.get("default") for name, each in pool.base_job_template["variables"]["properties"].items()
        }
        assert defaults["task_definition_arn"] == family["taskDefinitionArn"]
        assert defaults["network_configuration"]["assignPublicIp"] == "ENABLED"
        report = prefect.read_deployment_by_name("confidence-report/prod")
        assert report.work_pool_name == PROD and report.job_variables["env"]["SCONES_STACK"] == PROD
        assert report.pull_steps == [{"prefect.deployments.steps.set_working_directory": {"directory": "/opt/scones"}}]
        local = {each.entrypoint for each in prefect.read_deployments() if each.name == "local"}
        assert {each.entrypoint for each in prefect.read_deployments() if each.name == "prod"} == local
    try:
        champion = champion_of("dev")
        environment.promote(champion.number, "dev", "prod", real_aws=False)
        environment.promote(champion.number, "dev", "prod", real_aws=False)  # finds it again
        promoted = list(versions())
        assert [(each.status, each.metadata["promoted_from"]) for each in promoted] == [(APPROVED, champion.arn)]
        assert promoted[0].threshold == champion.threshold and champion.reason in promoted[0].reason
        assert content_of(promoted[0].artifact_uri) == content_of(champion.artifact_uri)

        assert environment.show_drift() == 0
        client("logs").put_retention_policy(logGroupName=f"/aws/lambda/{PROD}-classifyImage", retentionInDays=1)
        capsys.readouterr()
        assert environment.show_drift() == 1
        assert re.search(r"ClassifyImageLogs .*RetentionInDays is 1, not 30", capsys.readouterr().out)
    finally:
        environment.choose("prod", real_aws=False)
        environment.remove(PROD)
        with get_client(sync_client=True) as prefect:
            for each in prefect.read_deployments():
                if each.name == "prod":
                    prefect.delete_deployment(each.id)
            prefect.delete_work_pool(PROD)
    stacks = client("cloudformation").describe_stacks()["Stacks"]
    assert not [each["StackName"] for each in stacks if each["StackName"].startswith(PROD)]
    assert PROD not in str(client("ecr").describe_repositories()["repositories"])


def test_the_image_is_built_and_pushed_once_before_the_deployments(
    environments: Path, stack: LocalConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefect runs the steps; programs of these names write down what they are asked, in place of Docker."""
    (tmp_path / "bin").mkdir()
    for name in ("docker", "aws"):
        program = tmp_path / "bin" / name
        says = "echo secret" if name == "aws" else "true"
        program.write_text(f'#!/bin/sh\necho {name} "$@" >> {tmp_path}/calls\n{says}\n')
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    steps = environment.image_steps("123.dkr.ecr.us-east-1.amazonaws.com/prod-runner:7")
    pull = [{"prefect.deployments.steps.set_working_directory": {"directory": "/opt/scones"}}]
    of_flows: list[dict[str, Any]] = [
        {"name": "built", "entrypoint": f"flows/{flow}.py:{flow}", "work_pool": {"name": "local"}}
        for flow in ("preflight", "teardown")
    ]
    of_flows[0] |= steps
    document = {"prefect-version": "3.8.8", "name": "scones-unlimited", "pull": pull, "deployments": of_flows}
    try:
        apply_document(document, "built", tmp_path / "prefect.yaml", tmp_path / "log")
        made = {each.entrypoint for each in built_deployments()}
        assert made == {"flows/preflight.py:preflight", "flows/teardown.py:teardown"}
    finally:
        with get_client(sync_client=True) as prefect:
            for each in built_deployments():
                prefect.delete_deployment(each.id)
    calls = (tmp_path / "calls").read_text().splitlines()
    image = "123.dkr.ecr.us-east-1.amazonaws.com/prod-runner:7"
    # Of a pipe either program may begin.
    assert [calls[0], *sorted(calls[1:3]), calls[3]] == [
        f"docker build --platform linux/amd64 --tag {image} .",
        "aws ecr get-login-password",
        f"docker login --username AWS --password-stdin {image.split('/')[0]}",
        f"docker push {image}",
    ]
    assert "secret" not in (tmp_path / "log").read_text()


def built_deployments() -> list[Any]:
    with get_client(sync_client=True) as prefect:
        return [each for each in prefect.read_deployments() if each.name == "built"]


def champion_of(name: str) -> Any:
    environment.choose(name, real_aws=False)
    return next(versions(APPROVED))


def content_of(uri: str) -> bytes:
    bucket, key = uri.removeprefix("s3://").split("/", 1)
    content = storage.get(bucket, key)
    assert content
    return content


def test_a_version_that_is_not_approved_is_not_promoted(environments: Path) -> None:
    from dataclasses import replace

    from tasks.model.promotion import NotPromoted, promote

    champion, here = champion_of("dev"), installation()
    with pytest.raises(NotPromoted, match="only an approved version"):
        promote(replace(champion, status="Rejected"), here.classes, here, print)
    with pytest.raises(NotPromoted, match="not bicycle, motorcycle"):
        promote(champion, ("bicycle", "tank"), here, print)
    with pytest.raises(NotPromoted, match="not cat, dog"):  # the classes of own images, which no setting has
        promote(champion, here.classes, replace(here, classes=("cat", "dog")), print)


def test_an_unknown_environment_is_refused_with_those_there_are(environments: Path) -> None:
    with pytest.raises(environment.EnvironmentRefused, match="dev, prod"):
        environment.choose("live", real_aws=False)


# Runs a flow as the image does: with the files that it has, and the packages of its lock and no others.
AS_IN_THE_IMAGE = """
import importlib.abc, json, sys

class OnlyItsPackages(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in REFUSED:
            raise ImportError(f"{name} is not in the image")

REFUSED = set(json.loads(sys.argv[1]))
sys.meta_path.insert(0, OnlyItsPackages())
from flows.FLOW import FLOW
FLOW(**json.loads(sys.argv[2]))
"""


def refused_packages() -> list[str]:
    """Top-level modules of this machine's packages that infrastructure/runner.lock does not have."""
    lock = (ROOT / "infrastructure" / "runner.lock").read_text()
    locked = {re.sub(r"[-_.]+", "-", line.split("==")[0]).lower() for line in lock.splitlines() if "==" in line}
    found = []
    for module, names in packages_distributions().items():
        normal = {re.sub(r"[-_.]+", "-", name).lower() for name in names}
        if not normal & locked:
            found.append(module)
    assert {"torch", "ministack", "pytest"} <= set(found)
    return found


def image_files(folder: Path) -> Path:
    """The files that Dockerfile copies, in a folder of their own."""
    for line in (ROOT / "Dockerfile").read_text().splitlines():
        if line.startswith("COPY "):
            source, target = line.split()[1:]
            destination = folder / source if target == "./" else folder / target
            if (ROOT / source).is_dir():
                shutil.copytree(
                    ROOT / source, destination, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True
                )
            else:
                destination.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / source, destination)
    return folder


def run_apart(machine: Path, flow: str, parameters: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """A flow run on a disk of its own, with nothing of other runs' homes, caches and reports."""
    image_files(machine / "opt")
    own = {
        "HOME": str(machine / "home"),
        "PREFECT_HOME": str(machine / "home" / ".prefect"),
        "SCONES_CACHE": str(machine / "cache"),
        "SCONES_REPORTS": str(machine / "reports"),
        "PYTHONPATH": str(machine / "opt"),
    }
    dropped = ("SCONES_STATE", "SCONES_ROOT", "SCONES_SETTINGS")
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            AS_IN_THE_IMAGE.replace("FLOW", flow),
            json.dumps(refused_packages()),
            json.dumps(parameters),
        ],
        cwd=machine / "opt",
        env={name: value for name, value in os.environ.items() if name not in dropped} | own,
        text=True,
        capture_output=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_flow_runs_on_machines_of_their_own_meet_in_the_bucket(installed: Any, tmp_path: Path) -> None:
    prefix = "incoming/apart/"
    images = {f"{prefix}{number}.png": png(draw(installed.classes[number % 2], 90_000 + number)) for number in range(8)}
    storage.upload_changed(installed.bucket, prefix, images)
    run_apart(tmp_path / "one", "classify_images", {"prefix": prefix})
    days = storage.list_folders(installed.bucket, "bulk/")
    times = storage.list_times(installed.bucket, f"bulk/{max(days)}/")
    run = max(times, key=times.__getitem__).split("/")[2]
    run_apart(tmp_path / "two", "confidence_report", {"date": max(days), "run": run})
    assert (tmp_path / "two" / "reports" / max(days) / run / "report.html").is_file()
    index = storage.get(installed.bucket, "reports/index.html")
    assert index is not None
    links = [link.replace("&amp;", "&") for link in re.findall(r'href="([^"]+)"', index.decode())]
    link = next(link for link in links if f"/{run}/report.html" in link)
    with urllib.request.urlopen(link, context=trusting()) as answer:
        assert answer.headers["Content-Type"] == "text/html"
        assert b"<!doctype html>" in answer.read(100).lower()


def trusting() -> Any:
    import ssl

    return ssl.create_default_context(cafile=os.environ["AWS_CA_BUNDLE"])
