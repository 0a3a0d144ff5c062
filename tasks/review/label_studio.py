"""The queue as tasks of Label Studio, and its annotations as answers, for teams that work there.

Its JSON: https://labelstud.io/guide/task_format. Pure functions of what is read and written elsewhere.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from xml.sax.saxutils import quoteattr

from tasks.errors import SconesError
from tasks.review.labels import NOBODY, REVIEWER, Answer, Label, Outcome, Review

# Of the labelling interface: names of its two tags, and how the answers are called there that are no class.
CHOICES, IMAGE = "class", "image"
NONE_OF_THESE, UNREADABLE = "none of these", "unreadable"
OTHERS: dict[str, Answer] = {NONE_OF_THESE: "none_of_these", UNREADABLE: "unreadable"}


class LabelStudioError(SconesError):
    """A file is no export of Label Studio; the message says what it is."""


def interface(classes: Sequence[str]) -> str:
    """The labelling interface to paste into a project's settings."""
    values = [*classes, NONE_OF_THESE, UNREADABLE]
    choices = "\n".join(f"    <Choice value={quoteattr(value)}/>" for value in values)
    return (
        f'<View>\n  <Image name="{IMAGE}" value="$image" zoom="true"/>\n'
        f'  <Choices name="{CHOICES}" toName="{IMAGE}" choice="single" showInLine="true">\n{choices}\n  </Choices>\n'
        "</View>\n"
    )


def export_tasks(bucket: str, review: Review, outcomes: Mapping[str, Outcome]) -> list[dict[str, Any]]:
    """A task for each image that waits for an answer, without what the model said, which would bias the answer.

    The images stay in the bucket, as S3 URIs: connect it to the project as cloud storage.
    """
    return [
        {
            "data": {
                "image": f"s3://{bucket}/{waiting.key}",
                "inference_id": name,
                "sha256": waiting.sha256,
            }
        }
        for name, waiting in review.queue.items()
        if outcomes[name].state in ("open", "skipped")
    ]


def import_answers(content: Any, review: Review, classes: Sequence[str]) -> tuple[list[Label], list[str]]:
    """Answers in an export, and what is wrong with the annotations that are none. Raises LabelStudioError.

    The same file again gives the same answers, whose objects are there already then.
    """
    if not isinstance(content, list):
        raise LabelStudioError("the file is no list of tasks: export the project as JSON, not as JSON-MIN")
    found: list[Label] = []
    problems: list[str] = []
    for number, task in enumerate(content, 1):
        for annotation in _annotations(task):
            try:
                found.append(_answer(task, annotation, review, classes))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                reason = str(error) if isinstance(error, ValueError) else "it lacks what an annotation has"
                problems.append(f"task {number}: {reason}")
    return found, problems


def _annotations(task: Any) -> list[Any]:
    """Those of a task; one that is no task has a single one, which is refused with a reason."""
    annotations = task.get("annotations") if isinstance(task, dict) else None
    return annotations if isinstance(annotations, list) else [None]


def _answer(task: Any, annotation: Any, review: Review, classes: Sequence[str]) -> Label:
    """Raises ValueError with the reason, or KeyError, TypeError or AttributeError for another shape."""
    if annotation is None:
        raise ValueError("it has no annotations")
    data = task["data"]
    waiting = review.queue.get(str(data["inference_id"]))
    if waiting is None:
        raise ValueError(f"{str(data['inference_id'])[:60]!r} is not in the queue")
    answer, label = _choice(annotation, classes)
    moment = datetime.fromisoformat(str(annotation.get("updated_at") or annotation["created_at"]))
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    seconds = annotation.get("lead_time")
    return Label(
        inference_id=waiting.inference_id,
        sha256=str(data["sha256"]),
        reviewer=_reviewer(annotation["completed_by"]),
        answer=answer,
        label=label,
        time=moment.astimezone(UTC).isoformat(timespec="microseconds"),
        seconds=float(seconds) if isinstance(seconds, int | float) and seconds >= 0 else None,
        source="label-studio",
    )


def _choice(annotation: dict[str, Any], classes: Sequence[str]) -> tuple[Answer, str | None]:
    if annotation.get("was_cancelled"):
        return "skipped", None
    chosen = [value for part in annotation["result"] if part.get("type") == "choices"
              for value in part["value"]["choices"]]  # fmt: skip
    if len(chosen) != 1:
        raise ValueError(f"it has {len(chosen)} choices, not one")
    if chosen[0] in OTHERS:
        return OTHERS[chosen[0]], None
    if chosen[0] not in classes:
        raise ValueError(f"{str(chosen[0])[:60]!r} is no class; there are {', '.join(classes)}")
    return "class", str(chosen[0])


def _reviewer(completed_by: Any) -> str:
    """An e-mail address where the export tells it, else the number of the user."""
    name = completed_by.get("email") or completed_by["id"] if isinstance(completed_by, dict) else completed_by
    reviewer = f"user-{name}" if isinstance(name, int) else str(name)
    if not REVIEWER.fullmatch(reviewer) or reviewer == NOBODY:
        raise ValueError(f"{reviewer[:60]!r} can't be the name of a reviewer")
    return reviewer
