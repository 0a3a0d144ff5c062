"""Prefect ignores unknown keys of prefect.yaml, so the file is read here as strictly as it should be."""

import importlib
from typing import Any

import yaml

from local_aws.config import ROOT

DOCUMENT: dict[str, Any] = yaml.safe_load((ROOT / "prefect.yaml").read_text())
KEYS = {
    "name",
    "entrypoint",
    "description",
    "tags",
    "work_pool",
    "schedules",
    "triggers",
    "parameters",
}
EXPECTED = {
    "preflight",
    "prepare-data",
    "train-model",
    "decide-model",
    "deploy-endpoint",
    "nightly-evaluation",
    "classify-images",
    "confidence-report",
    "queue-review",
    "generate-traffic",
    "pipeline",
    "teardown",
}


def flow_of(deployment: dict[str, Any]) -> Any:
    path, name = deployment["entrypoint"].split(":")
    return getattr(importlib.import_module(path.removesuffix(".py").replace("/", ".")), name)


def test_every_deployment_uses_known_keys_only() -> None:
    assert set(DOCUMENT) == {"prefect-version", "name", "definitions", "deployments"}
    for deployment in DOCUMENT["deployments"]:
        assert set(deployment) <= KEYS


def test_every_flow_has_its_deployment() -> None:
    flows = {flow_of(deployment).name for deployment in DOCUMENT["deployments"]}
    assert flows == EXPECTED
    assert {deployment["name"] for deployment in DOCUMENT["deployments"]} == {"local"}
    assert all(deployment["description"] and deployment["tags"] for deployment in DOCUMENT["deployments"])


def test_schedules_are_paused_and_the_nightly_runs_at_half_past_three() -> None:
    schedules = {
        flow_of(deployment).name: schedule
        for deployment in DOCUMENT["deployments"]
        for schedule in deployment.get("schedules", [])
    }
    assert set(schedules) == {"prepare-data", "train-model", "deploy-endpoint", "nightly-evaluation", "classify-images"}
    assert all(schedule["active"] is False and schedule["timezone"] == "UTC" for schedule in schedules.values())
    assert schedules["nightly-evaluation"]["cron"] == "30 3 * * *"


def test_nothing_is_held_in_the_memory_of_a_prefect_server() -> None:
    """Concurrency limits are, and a restart loses them: runs take turns by a hold in the bucket instead."""
    assert not any("concurrency_limit" in deployment for deployment in DOCUMENT["deployments"])


def test_triggers_have_names() -> None:
    triggers = [trigger for deployment in DOCUMENT["deployments"] for trigger in deployment.get("triggers", [])]
    assert [trigger["name"] for trigger in triggers] == ["Train on new labels"]
