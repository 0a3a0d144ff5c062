"""What a person changed in Prefect stays when prefect.yaml is applied again; everything else follows the file."""

from typing import Any
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import DeploymentSchedule
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule

import schedules
from settings import Settings

ENTRYPOINT = "flows/nightly_evaluation.py:nightly_evaluation"


def described(cron: str = "30 3 * * *", parameters: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """A deployment as prefect.yaml has it. parameters: of its schedule."""
    schedule: dict[str, Any] = {"slug": "nightly", "cron": cron, "timezone": "UTC", "active": False}
    if parameters is not None:
        schedule["parameters"] = parameters
    return {"entrypoint": ENTRYPOINT, "schedules": [schedule], **more}


def standing(*found: DeploymentSchedule, parameters: dict[str, Any] | None = None) -> DeploymentResponse:
    known: dict[str, Any] = {"name": "local", "flow_id": uuid4(), "parameters": parameters or {}}
    return DeploymentResponse(id=uuid4(), schedules=list(found), **known)


def schedule(slug: str | None, cron: str, active: bool = False, zone: str = "UTC", **more: Any) -> DeploymentSchedule:
    known: dict[str, Any] = {"deployment_id": uuid4(), "slug": slug, "active": active, **more}
    return DeploymentSchedule(id=uuid4(), schedule=CronSchedule(cron=cron, timezone=zone), **known)


def merged(
    now: dict[str, Any], before: dict[str, Any] | None, there: DeploymentResponse
) -> tuple[dict[str, Any], list[str]]:
    lines: list[str] = []
    base = None if before is None else schedules.applied(before)
    return schedules.merge(now, base, there, lines.append), lines


def times(deployment: dict[str, Any]) -> list[tuple[str, bool]]:
    return [(each.get("cron", str(each.get("interval"))), each["active"]) for each in deployment["schedules"]]


@pytest.mark.parametrize(
    ("file_before", "stands", "file_now", "wanted", "lines"),
    [
        ("30 3 * * *", "30 3 * * *", "30 3 * * *", "30 3 * * *", 0),  # nobody changed anything
        ("30 3 * * *", "0 1 * * *", "30 3 * * *", "0 1 * * *", 1),  # a person did
        ("30 3 * * *", "30 3 * * *", "0 4 * * *", "0 4 * * *", 0),  # the file did
        ("30 3 * * *", "0 1 * * *", "0 4 * * *", "0 1 * * *", 1),  # both: a person's wins
        ("30 3 * * *", "0 4 * * *", "0 4 * * *", "0 4 * * *", 0),  # both to the same
    ],
)
def test_a_time_that_a_person_changed_stays(
    file_before: str, stands: str, file_now: str, wanted: str, lines: int
) -> None:
    result, said = merged(described(file_now), described(file_before), standing(schedule("nightly", stands, True)))
    assert times(result) == [(wanted, True)]  # and paused or not is always a person's
    assert len(said) == lines
    assert all("nightly-evaluation: nightly stays at 0 1 * * * UTC, as it was changed by hand" in line for line in said)


def test_a_time_zone_and_another_kind_of_schedule_stay_too() -> None:
    berlin, _ = merged(described(), described(), standing(schedule("nightly", "30 3 * * *", zone="Europe/Berlin")))
    assert berlin["schedules"][0]["timezone"] == "Europe/Berlin"
    known: dict[str, Any] = {"deployment_id": uuid4(), "slug": "nightly", "active": True}
    every = DeploymentSchedule(id=uuid4(), schedule=IntervalSchedule(interval=90.0), **known)  # type: ignore[arg-type]
    result, said = merged(described(), described(), standing(every))
    assert "cron" not in result["schedules"][0] and result["schedules"][0]["interval"] == 90
    assert "stays at every 90.0 s UTC" in said[0]


def test_what_a_person_added_or_deleted_stays_so_and_what_left_the_file_goes() -> None:
    there = standing(schedule(None, "* * * * *", True), schedule("old", "1 1 * * *", True))
    before = described()
    before["schedules"].append({"slug": "old", "cron": "1 1 * * *", "timezone": "UTC", "active": False})
    result, said = merged(described(), before, there)
    assert times(result) == [("* * * * *", True)]
    assert result["schedules"][0]["slug"] == f"added-{there.schedules[0].id.hex[:8]}"
    assert said == ["nightly-evaluation: the schedule nightly was deleted by hand and stays so"]
    again, _ = merged(described(), described(), standing(schedule("added-1", "* * * * *", False)))
    assert [each["slug"] for each in again["schedules"]] == ["added-1"]


def test_the_first_time_nothing_is_known_of_before() -> None:
    result, said = merged(described(), None, standing())
    assert times(result) == [("30 3 * * *", False)] and said == []
    result, said = merged(described(), None, standing(schedule("nightly", "0 1 * * *", True)))
    assert times(result) == [("0 1 * * *", True)] and len(said) == 1


def test_parameters_of_deployments_and_schedules_are_merged_one_by_one() -> None:
    now = {**described(parameters={"prefix": "incoming/{date}/"}), "parameters": {"retrain": False, "new": 1}}
    before = {**described(parameters={"prefix": "incoming/{date}/"}), "parameters": {"retrain": False, "gone": 1}}
    there = standing(
        schedule("nightly", "30 3 * * *", parameters={"prefix": "photos/"}),
        parameters={"retrain": True, "gone": 1, "mine": "yes"},
    )
    result, said = merged(now, before, there)
    assert result["schedules"][0]["parameters"] == {"prefix": "photos/"}
    assert result["parameters"] == {"retrain": True, "new": 1, "mine": "yes"}
    assert len(said) == 3 and "nightly-evaluation: parameter mine stays 'yes', as it was changed by hand" in said


def test_settings_name_times() -> None:
    deployment = described()
    schedules.with_settings(deployment, Settings(nightly_cron="0 22 * * *", schedule_timezone="Europe/Berlin"))
    assert deployment["schedules"][0]["cron"] == "0 22 * * *"
    assert deployment["schedules"][0]["timezone"] == "Europe/Berlin"
    other = {"entrypoint": "flows/pipeline.py:pipeline"}
    schedules.with_settings(other, Settings())
    assert other == {"entrypoint": "flows/pipeline.py:pipeline"}
