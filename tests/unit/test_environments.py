"""Deployments of an environment, and what its settings must be."""

from pathlib import Path
from typing import Any

import pytest
import yaml

import environment
from settings import ROOT, Settings, settings


@pytest.fixture
def prod(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCONES_SETTINGS", str(ROOT / "environments" / "prod.env"))
    settings.cache_clear()


@pytest.fixture(autouse=True)
def forgets_settings() -> None:
    settings.cache_clear()


@pytest.mark.parametrize("name", ["dev", "prod"])
def test_the_environments_have_settings_and_stacks_of_their_own(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCONES_SETTINGS", str(ROOT / "environments" / f"{name}.env"))
    settings.cache_clear()
    assert (settings().environment, settings().stack) == (name, f"scones-{name}")
    assert settings().tags == {"scones:stack": f"scones-{name}", "scones:environment": name}
    settings.cache_clear()


def test_prod_is_protected_and_asks_a_person(prod: None) -> None:
    assert settings().protected and settings().approval == "manual"
    settings.cache_clear()


def test_deployments_are_those_of_prefect_yaml_with_the_environments_settings(prod: None) -> None:
    document = environment.deployments("prod", "scones-prod")
    described = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    assert [each["entrypoint"] for each in document["deployments"]] == [each["entrypoint"] for each in described]
    for deployment in document["deployments"]:
        assert deployment["name"] == "prod" and deployment["work_pool"]["name"] == "scones-prod"
        assert deployment["work_pool"]["job_variables"]["env"]["SCONES_PROTECTED"] == "true"
    heard = [
        trigger["match"].get("scones.stack")
        for deployment in document["deployments"]
        for trigger in deployment.get("triggers", [])
        if all(event.startswith("scones.") for event in trigger["expect"])
    ]
    assert heard == ["scones-prod"]
    settings.cache_clear()


@pytest.mark.parametrize(
    "changed",
    [{"runner_vpc": "vpc-1"}, {"runner_subnets": ("subnet-1",)}, {"functions_in_vpc": True}, {"owner": "a\nb"}],
)
def test_half_a_setting_is_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"SCONES_RUNNER_VPC|SCONES_FUNCTIONS_IN_VPC|owner"):
        Settings(**changed)


def test_the_image_has_what_flows_import(tmp_path: Path) -> None:
    copied = {
        line.split()[1] for line in (ROOT / "Dockerfile").read_text().splitlines() if line.startswith("COPY ")
    } - {"infrastructure/runner.lock"}
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == allowed
    assert {"settings.py", "flows", "tasks", "classifier", "lambdas", "statemachine", "infrastructure"} <= copied


def test_a_shell_that_contradicts_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCONES_SETTINGS", "")
    monkeypatch.setenv("SCONES_STACK", "scones-dev")
    with pytest.raises(environment.EnvironmentRefused, match=r"SCONES_STACK, otherwise than environments/prod\.env"):
        environment.choose("prod", real_aws=False)
    settings.cache_clear()


def test_an_account_needs_a_prefect_server_that_ecs_can_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with pytest.raises(environment.EnvironmentRefused, match="PREFECT_API_URL is not set"):
        environment.choose("prod", real_aws=True)
