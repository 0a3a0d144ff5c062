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
    "concurrency_limit",
    "triggers",
    "parameters",
}
EXPECTED = {
    "prepare-data",
    "train-model",
    "decide-model",
    "deploy-endpoint",
    "recover-runs",
    "nightly-evaluation",
    "confidence-report",
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
    assert set(schedules) == {"prepare-data", "train-model", "deploy-endpoint", "nightly-evaluation"}
    assert all(schedule["active"] is False and schedule["timezone"] == "UTC" for schedule in schedules.values())
    assert schedules["nightly-evaluation"]["cron"] == "30 3 * * *"


def test_one_evaluation_runs_at_a_time() -> None:
    nightly = next(d for d in DOCUMENT["deployments"] if flow_of(d).name == "nightly-evaluation")
    assert nightly["concurrency_limit"]["limit"] == 1


def test_the_report_listens_to_the_event_that_the_evaluation_emits() -> None:
    from settings import EVALUATION_EVENT

    report = next(d for d in DOCUMENT["deployments"] if flow_of(d).name == "confidence-report")
    assert report["triggers"][0]["expect"] == [EVALUATION_EVENT]
