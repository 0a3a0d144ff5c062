"""What becomes of queued images when people say what is in them."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from msgspec.structs import replace

from settings import Settings, settings
from tasks.records import RecordError
from tasks.review.labels import (
    STATES,
    Agreement,
    Answer,
    Label,
    Outcome,
    Review,
    agreement,
    certifies,
    counted,
    outcome,
    people_asked,
)
from tasks.review.queue import Waiting

NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
SHA = "ab" * 32


def name_of(number: int) -> str:
    return f"5b52074c57ed-{number:020x}-a1"


def waiting(number: int = 1, **changed: Any) -> Waiting:
    values: dict[str, Any] = {
        "inference_id": name_of(number),
        "key": f"incoming/{number}.png",
        "sha256": SHA,
        "run": "5b52074c57ed",
        "date": "2026-11-25",
        "model_version": "v1",
        "threshold": 0.93,
        "predicted_class": "bicycle",
        "confidence": 0.6,
        "probabilities": (0.6, 0.4),
        "outlier_score": None,
        "reason": "below_threshold",
        "sampling_probability": 1.0,
        "limited": False,
        "queued": "2026-11-25T12:00:00.000+00:00",
    }
    return Waiting(**(values | changed))


def label(reviewer: str = "anna", said: str = "bicycle", minute: int = 0, number: int = 1, sha256: str = SHA) -> Label:
    """said: a class, or another answer by its name."""
    kinds: tuple[Answer, ...] = ("none_of_these", "unreadable", "skipped", "withdrawn", "gone")
    kind: Answer = next((each for each in kinds if each == said), "class")
    return Label(
        inference_id=name_of(number),
        sha256=sha256,
        reviewer=reviewer,
        answer=kind,
        label=said if kind == "class" else None,
        time=f"2026-11-26T10:{minute:02}:00.000000+00:00",
    )


def asking(people: int) -> Settings:
    return settings().model_copy(update={"review_double_share": float(people - 1)})


def came_of(*labels: Label, people: int = 1, days: int = 1) -> Outcome:
    return outcome(waiting(), labels, asking(people), NOW + timedelta(days=days - 1))


def test_one_answer_decides_where_one_person_is_asked() -> None:
    assert came_of().state == "open"
    decided = came_of(label())
    assert decided.state == "answered" and decided.answer is not None and decided.answer.label == "bicycle"


def test_two_people_have_to_agree_and_a_third_decides_if_they_do_not() -> None:
    first, second = label("anna", "bicycle", 1), label("ben", "motorcycle", 2)
    assert came_of(first, people=2).state == "open"
    assert came_of(first, label("ben", "bicycle", 2), people=2).answer == first
    assert (came_of(first, second, people=2).state, came_of(first, second, people=2).asked) == ("open", 3)
    third = came_of(first, second, label("cleo", "motorcycle", 3), people=2)
    assert third.state == "answered" and third.answer == second
    disputed = came_of(first, second, label("cleo", "none_of_these", 3), people=2)
    assert disputed.disputed and len(disputed.answers) == 3


def test_two_who_were_shown_the_same_image_by_chance_and_disagree_are_joined_by_a_third() -> None:
    assert came_of(label("anna", "bicycle"), label("ben", "motorcycle")).state == "open"


def test_the_last_record_of_a_person_counts() -> None:
    assert came_of(label(said="bicycle", minute=1), label(said="withdrawn", minute=2)).state == "open"
    changed = came_of(label(said="bicycle", minute=1), label(said="motorcycle", minute=2))
    assert changed.answer is not None and changed.answer.label == "motorcycle" and len(changed.answers) == 1
    assert came_of(label(said="skipped")).state == "skipped"
    assert came_of(label("anna", "skipped"), label("ben")).state == "answered"
    assert came_of(label("anna", "bicycle", 1), label("anna", "skipped", 2)).state == "skipped"


def test_what_nobody_answers_in_time_expires_and_what_one_of_two_answered_is_decided_by_that() -> None:
    later = settings().review_expires_days + 2
    assert came_of(days=later).state == "expired"
    assert came_of(label(said="skipped"), days=later).state == "expired"
    assert came_of(label(), people=2, days=later).state == "answered"
    assert came_of(label("anna"), label("ben", "motorcycle"), people=2, days=later).disputed
    assert came_of(label("page", "gone")).state == "expired"


def test_an_answer_about_another_content_does_not_count() -> None:
    assert came_of(label(sha256="cd" * 32)).state == "open"


def test_every_queued_image_is_in_one_state() -> None:
    said = [(), ("bicycle",), ("skipped",), ("gone",), ("bicycle", "withdrawn"), ("unreadable",)]
    review = Review()
    for number in range(600):
        review.queue[name_of(number)] = waiting(number)
        for minute, each in enumerate(said[number % len(said)]):
            review.labels[name_of(number)].append(label(said=each, minute=minute, number=number))
    counts = counted(review.outcomes(settings(), NOW))
    assert tuple(counts) == STATES and sum(counts.values()) == 600
    assert counts["skipped"] == counts["expired"] == 100
    # Of 200 with one answer about a tenth wait for another one.
    assert 160 <= counts["answered"] <= 195


def test_a_share_goes_to_two_people_and_it_is_always_the_same() -> None:
    twice = [number for number in range(10_000) if people_asked(name_of(number), 0.1) == 2]
    assert 900 < len(twice) < 1100
    assert {people_asked(name_of(number), 0) for number in range(100)} == {1}
    assert {people_asked(name_of(number), 1) for number in range(100)} == {2}


def test_cohens_kappa_of_a_worked_example() -> None:
    """20 both yes, 15 both no, 5 and 10 apart: p_o .7, p_e .5, kappa .4, as in many textbooks."""
    pairs = [("bicycle", "bicycle")] * 20 + [("bicycle", "motorcycle")] * 5
    pairs += [("motorcycle", "bicycle")] * 10 + [("motorcycle", "motorcycle")] * 15
    outcomes = [came_of(label("anna", first, 1), label("ben", second, 2), people=2) for first, second in pairs]
    found = agreement(outcomes)
    assert (found.images, found.same) == (50, 35) and found.kappa == pytest.approx(0.4)
    assert agreement([came_of(label())]) == Agreement(0, 0, None)
    assert agreement([came_of(label("anna"), label("ben"), people=2)]) == Agreement(1, 1, None)


def test_records_that_are_none_or_out_of_place_are_left_out_with_a_reason() -> None:
    review = Review()
    for key, record in (
        ("review/queue/other.json", waiting()),
        (f"review/queue/{name_of(2)}.json", waiting(2, key="test/bicycle_50000.png")),
        (f"review/queue/{name_of(3)}.json", waiting(3, queued="yesterday")),
        ("review/queue/../x.json", waiting(4, inference_id="../x")),
    ):
        review.keep_waiting(key, record)
    review.keep_label("review/labels/x/anna-1.json", label())
    hostile = Label(inference_id="../../x", sha256=SHA, reviewer="<b>", answer="class", label="bicycle", time="2026")
    review.keep_label(hostile.key, hostile)
    assert review.queue == {} and not review.labels and len(review.strange) == 6
    assert "test/bicycle_50000.png" in review.strange[f"review/queue/{name_of(2)}.json"]
    right = waiting(5)
    review.keep_waiting(f"review/queue/{name_of(5)}.json", right)
    review.keep_label(label(number=5).key, label(number=5))
    review.keep_label(label(number=6).key, label(number=6))
    assert review.queue == {name_of(5): right} and review.stray == 1


@pytest.mark.parametrize(
    "changed",
    [
        {"sha256": "\ud800"},
        {"sha256": "../x"},
        {"key": ""},
        {"predicted_class": "\ud800"},
        {"model_version": "\ud800"},
        {"confidence": float("nan")},
        {"confidence": 2.0},
        {"sampling_probability": 0.0},
        {"sampling_probability": float("nan")},
    ],
)
def test_a_record_that_no_queue_writes_is_left_out(changed: dict[str, Any]) -> None:
    review, one = Review(), waiting(1, **changed)
    review.keep_waiting(f"review/queue/{name_of(1)}.json", one)
    assert not review.queue and len(review.strange) == 1


def test_json_that_is_nested_too_deep_is_no_record() -> None:
    with pytest.raises(RecordError, match="no JSON"):
        Waiting.parse(b"[" * 200_000, "s3://bucket/x")


def test_an_answer_from_the_future_is_left_out() -> None:
    review, late = Review(), replace(label(), time="9999-01-01T00:00:00.000000+00:00")
    review.keep_label(late.key, late)
    assert not review.labels and len(review.strange) == 1


def test_the_key_of_an_answer_tells_image_person_and_time() -> None:
    assert label(minute=7).key == f"review/labels/{name_of(1)}/anna-20261126T100700.000000Z.json"


def test_copies_of_an_image_certify_or_none_does() -> None:
    shas = [f"{number:064x}" for number in range(10_000)]
    kept = [sha for sha in shas if certifies(sha, 0.5)]
    assert 4800 < len(kept) < 5200 and not any(certifies(sha, 0) for sha in shas)
