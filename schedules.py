"""Schedules and parameters of deployments belong to people: applying prefect.yaml again keeps what a person changed.

Each value is compared three ways: as the file had it when it was last applied, as the file has it now, and as it stands
in Prefect. If it stands otherwise than it was applied, a person changed it, and that stays.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from settings import Settings

if TYPE_CHECKING:
    from prefect.client.schemas.objects import DeploymentSchedule
    from prefect.client.schemas.responses import DeploymentResponse

# Settings that name the time of a deployment's own schedule, by the flow's entrypoint.
TIMES = {
    "flows/prepare_data.py:prepare_data": "data_cron",
    "flows/train_model.py:train_model": "training_cron",
    "flows/deploy_endpoint.py:deploy_endpoint": "endpoint_cron",
    "flows/nightly_evaluation.py:nightly_evaluation": "nightly_cron",
    "flows/classify_images.py:classify_images": "bulk_cron",
}
# What makes up the time of a schedule; a person changes it as one.
WHEN = ("cron", "day_or", "interval", "anchor_date", "rrule", "timezone")
Say = Callable[[str], object]


def with_settings(deployment: dict[str, Any], chosen: Settings) -> None:
    """Puts the times and the time zone of the settings into a deployment of prefect.yaml."""
    cron = getattr(chosen, TIMES[deployment["entrypoint"]]) if deployment["entrypoint"] in TIMES else None
    changed = {"timezone": chosen.schedule_timezone} | ({"cron": cron} if cron else {})
    if deployment.get("schedules"):
        deployment["schedules"] = [{**schedule, **changed} for schedule in deployment["schedules"]]


def applied(deployment: dict[str, Any]) -> dict[str, Any]:
    """Returns what is to be remembered of a deployment of prefect.yaml, to tell a person's changes from the file's."""
    return {
        "schedules": {
            schedule["slug"]: {"when": _when(schedule), "parameters": schedule.get("parameters", {})}
            for schedule in deployment.get("schedules", [])
        },
        "parameters": deployment.get("parameters", {}),
    }


def merge(
    deployment: dict[str, Any], before: dict[str, Any] | None, standing: "DeploymentResponse", say: Say
) -> dict[str, Any]:
    """Returns the deployment as it is to be applied. before: what `applied` returned last time; None if unknown.

    say: is told, in a line each, what stays as a person changed it although the file says otherwise.
    """
    base = before or applied(deployment)
    name = deployment["entrypoint"].split(":")[1].replace("_", "-")
    there = {_slug(schedule): schedule for schedule in standing.schedules}
    merged = []
    for schedule in deployment.get("schedules", []):
        slug = schedule["slug"]
        if slug in there:
            merged.append(_merge_schedule(schedule, base["schedules"].get(slug), there[slug], f"{name}: {slug}", say))
        elif before is not None and slug in base["schedules"]:
            say(f"{name}: the schedule {slug} was deleted by hand and stays so")
        else:
            merged.append(schedule)
    described = {schedule["slug"] for schedule in deployment.get("schedules", [])}
    for slug, schedule in there.items():
        if slug not in described and slug not in base["schedules"]:  # a person added it
            merged.append(
                {**_standing_when(schedule), "parameters": schedule.parameters, "active": schedule.active, "slug": slug}
            )
    parameters = _merge_values(
        deployment.get("parameters", {}), base["parameters"], standing.parameters or {}, f"{name}: parameter", say
    )
    return {**deployment, "schedules": merged, "parameters": parameters}


def _merge_schedule(
    now: dict[str, Any], base: dict[str, Any] | None, standing: "DeploymentSchedule", name: str, say: Say
) -> dict[str, Any]:
    """Whether a schedule is paused is always a person's; its time and parameters are, if a person changed them."""
    when, wanted = _standing_when(standing), _when(now)
    if base is None or when == base["when"]:
        when = wanted
    elif when != wanted:
        say(f"{name} stays at {_told(when)}, as it was changed by hand; the settings say {_told(wanted)}")
    parameters = _merge_values(
        now.get("parameters", {}), base["parameters"] if base else {}, standing.parameters, f"{name}: parameter", say
    )
    return {**when, "parameters": parameters, "active": standing.active, "slug": now["slug"]}


def _merge_values(
    now: dict[str, Any], base: dict[str, Any], standing: dict[str, Any], name: str, say: Say
) -> dict[str, Any]:
    """A value that a person changed, added or removed stays so; the others are as the file has them now."""
    merged = dict(now)
    for key in base.keys() | standing.keys() | now.keys():
        if (key in standing) == (key in base) and standing.get(key) == base.get(key):
            continue
        if (key in standing) != (key in now) or standing.get(key) != now.get(key):
            stands = f"{standing[key]!r}" if key in standing else "unset"
            say(f"{name} {key} stays {stands}, as it was changed by hand")
        if key in standing:
            merged[key] = standing[key]
        else:
            merged.pop(key, None)
    return merged


def _when(schedule: dict[str, Any]) -> dict[str, Any]:
    """The members that say when, without those that say nothing."""
    found = {name: schedule[name] for name in WHEN if schedule.get(name) is not None}
    return found | ({"day_or": True} if "cron" in found and "day_or" not in found else {})


def _standing_when(schedule: "DeploymentSchedule") -> dict[str, Any]:
    return _when(schedule.schedule.model_dump(mode="json"))


def _told(when: dict[str, Any]) -> str:
    time = when.get("cron") or when.get("rrule") or f"every {when.get('interval')} s"
    return f"{time} {when.get('timezone', 'UTC')}"


def _slug(schedule: "DeploymentSchedule") -> str:
    # Prefect gives those that a person adds no slug; without one they would be taken for new each time.
    return schedule.slug or f"added-{schedule.id.hex[:8]}"
