"""Prefect ignores unknown keys of prefect.yaml, so the file is read here as strictly as it should be."""

import importlib
from typing import Any
from uuid import uuid4

import yaml

from deploy import merge_schedules
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
    "preflight",
    "prepare-data",
    "train-model",
    "decide-model",
    "deploy-endpoint",
    "recover-runs",
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


def test_one_evaluation_runs_at_a_time() -> None:
    nightly = next(d for d in DOCUMENT["deployments"] if flow_of(d).name == "nightly-evaluation")
    assert nightly["concurrency_limit"]["limit"] == 1


def test_the_report_listens_to_the_events_that_evaluations_and_bulk_runs_emit() -> None:
    from settings import BULK_EVENT, EVALUATION_EVENT

    report = next(d for d in DOCUMENT["deployments"] if flow_of(d).name == "confidence-report")
    assert report["triggers"][0]["expect"] == [EVALUATION_EVENT, BULK_EVENT]


def test_schedules_stay_as_a_person_left_them() -> None:
    from prefect.client.schemas.objects import DeploymentSchedule
    from prefect.client.schemas.schedules import CronSchedule

    def standing(slug: str | None, cron: str, active: bool) -> DeploymentSchedule:
        known: dict[str, Any] = {"deployment_id": uuid4(), "slug": slug, "active": active}
        return DeploymentSchedule(id=uuid4(), schedule=CronSchedule(cron=cron, timezone="UTC"), **known)

    described = [{"slug": "nightly", "cron": "30 3 * * *", "timezone": "UTC", "active": False}]
    there = [
        standing("nightly", "0 1 * * *", True),
        standing(None, "* * * * *", True),
        standing("old", "1 1 * * *", True),
    ]
    merged = merge_schedules(described, there)
    # The file says when, the person whether; what a person added stays, what the file does not have any more goes.
    assert merged[0] == {**described[0], "active": True}
    assert (merged[1]["cron"], merged[1]["active"], merged[1]["slug"]) == (
        "* * * * *",
        True,
        f"added-{there[1].id.hex[:8]}",
    )
    assert len(merged) == 2
    assert merge_schedules(described, [standing("added-1", "* * * * *", False)])[1]["slug"] == "added-1"
    assert merge_schedules(described, []) == described


def test_runs_that_died_are_looked_after_by_a_deployment_that_runs_alone() -> None:
    recovery = next(d for d in DOCUMENT["deployments"] if flow_of(d).name == "recover-runs")
    assert recovery["concurrency_limit"]["limit"] == 1
    postures = [trigger["posture"] for trigger in recovery["triggers"]]
    assert postures == ["Reactive", "Proactive", "Proactive"]
    # No automation changes a state by itself: an event may be lost, and then it would act on a run that has ended.
    assert "change-flow-run-state" not in (ROOT / "prefect.yaml").read_text() + (ROOT / "automations.yaml").read_text()
