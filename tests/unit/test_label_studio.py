"""Tasks for Label Studio, and what comes back from there."""

from typing import Any
from xml.etree import ElementTree

import pytest

from tasks.review.label_studio import LabelStudioError, export_tasks, import_answers, interface
from tasks.review.labels import Review
from tests.unit.test_labels import NOW, SHA, label, name_of, waiting
from tests.unit.test_training_set import CLASSES, chosen


def queue(numbers: int = 3) -> Review:
    review = Review()
    for number in range(numbers):
        review.queue[name_of(number)] = waiting(number)
    return review


def annotated(number: int = 1, choice: Any = "bicycle", **changed: Any) -> dict[str, Any]:
    """A task as Label Studio exports it."""
    annotation = {
        "id": 1001,
        "completed_by": {"id": 10, "email": "anna@example.com"},
        "created_at": "2026-11-26T10:05:08.728353Z",
        "was_cancelled": False,
        "lead_time": 4.288,
        "result": [
            {"type": "choices", "from_name": "class", "to_name": "image", "value": {"choices": [choice]}},
        ],
        **changed,
    }
    return {"id": number, "data": {"inference_id": name_of(number), "sha256": SHA}, "annotations": [annotation]}


def test_a_task_says_nothing_of_what_the_model_said() -> None:
    review = queue()
    review.labels[name_of(0)].append(label(number=0))
    tasks = export_tasks("bucket", review, review.outcomes(chosen(), NOW))
    assert [task["data"]["inference_id"] for task in tasks] == [name_of(1), name_of(2)]
    assert tasks[0] == {"data": {"image": "s3://bucket/incoming/1.png", "inference_id": name_of(1), "sha256": SHA}}


def test_the_interface_is_xml_whatever_classes_are_called() -> None:
    root = ElementTree.fromstring(interface(('a"b', "<c>&")))
    values = [choice.get("value") for choice in root.iter("Choice")]
    assert values == ['a"b', "<c>&", "none of these", "unreadable"]


def test_annotations_become_answers_and_the_same_ones_again() -> None:
    review = queue()
    content = [
        annotated(0),
        annotated(1, "none of these", completed_by=10),
        annotated(2, "unreadable"),
        annotated(2, was_cancelled=True, result=[]),
    ]
    answers, problems = import_answers(content, review, CLASSES)
    assert problems == []
    told = [(each.reviewer, each.answer, each.label, each.seconds, each.source) for each in answers]
    assert told == [
        ("anna@example.com", "class", "bicycle", 4.288, "label-studio"),
        ("user-10", "none_of_these", None, 4.288, "label-studio"),
        ("anna@example.com", "unreadable", None, 4.288, "label-studio"),
        ("anna@example.com", "skipped", None, 4.288, "label-studio"),
    ]
    assert answers[0].key == f"review/labels/{name_of(0)}/anna@example.com-20261126T100508.728353Z.json"
    for each in answers:
        review.keep_label(each.key, each)
    assert review.strange == {}
    assert import_answers(content, review, CLASSES)[0] == answers


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        (annotated(99), "is not in the queue"),
        (annotated(1, "tractor"), "'tractor' is no class"),
        (annotated(1, result=[]), "it has 0 choices"),
        (annotated(1, completed_by="<script>"), "can't be the name of a reviewer"),
        (annotated(1, created_at="yesterday"), "Invalid isoformat"),
        (annotated(1, result="bicycle"), "lacks what an annotation has"),
        ({"data": {}, "annotations": [{}]}, "lacks what an annotation has"),
        ({"data": {}}, "it has no annotations"),
        ("text", "it has no annotations"),
    ],
)
def test_what_is_no_answer_is_listed_with_the_reason(task: Any, reason: str) -> None:
    answers, problems = import_answers([annotated(0), task], queue(), CLASSES)
    assert len(answers) == 1 and len(problems) == 1
    assert problems[0].startswith("task 2: ") and reason in problems[0]


def test_a_corrected_annotation_is_another_answer() -> None:
    corrected = annotated(1, "motorcycle", updated_at="2026-11-26T11:00:00.000000Z")
    answers, _ = import_answers([annotated(1), corrected], queue(), CLASSES)
    assert answers[0].key != answers[1].key and answers[1].time > answers[0].time
    _, problems = import_answers([annotated(1, completed_by="page")], queue(), CLASSES)
    assert "can't be the name of a reviewer" in problems[0]


def test_another_file_is_refused() -> None:
    with pytest.raises(LabelStudioError, match="no list of tasks"):
        import_answers({"tasks": []}, queue(), CLASSES)
