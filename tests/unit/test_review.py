"""Which images wait for a person, and why."""

from typing import Any

import pytest
from msgspec.structs import replace

from settings import settings
from tasks.evaluation.results import Result
from tasks.evaluation.summary import Status
from tasks.review.queue import Queued, choose, drawn, markdown, reason_of, told
from tests.unit.results import RESULT


def row(number: int, status: Status = "below_threshold", **changed: Any) -> Result:
    name = f"5b52074c57ed-{number:020x}-a1"
    values = {"inference_id": name, "key": f"incoming/{number}.png", "label": None, "status": status, **changed}
    return replace(RESULT, **values)


def test_a_random_share_of_the_accepted_is_drawn_and_always_the_same() -> None:
    names = [row(number).inference_id for number in range(20_000)]
    first = [name for name in names if drawn(name, 0.05)]
    assert 900 < len(first) < 1100
    assert first == [name for name in names if drawn(name, 0.05)]
    # A larger share has the smaller one in it.
    assert set(first) <= {name for name in names if drawn(name, 0.1)}
    assert not any(drawn(name, 0) for name in names) and all(drawn(name, 1) for name in names)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"status": "below_threshold"}, "below_threshold"),
        ({"status": "not_a_class"}, "not_a_class"),
        ({"status": "accepted"}, "audit"),
        ({"status": "failed"}, None),
        ({"status": "not_submitted"}, None),
        ({"label": "bicycle"}, None),
        ({"key": "test/bicycle_50000.png"}, None),
        ({"key": "train/bicycle_00000.png"}, None),
    ],
)
def test_images_whose_label_is_known_and_those_without_an_answer_stay_out(
    changed: dict[str, Any], reason: str | None
) -> None:
    assert reason_of(row(1, **changed), audit_share=1) == reason


def test_the_least_certain_come_first_and_the_rest_on_another_day() -> None:
    chosen = settings().model_copy(update={"audit_share": 0.0, "review_order": "uncertain"})
    rows = [row(number, confidence=0.5 + (number * 37 % 100) / 250) for number in range(100)]
    picked, counts = choose(rows, chosen, room=10)
    assert [each.row.confidence for each in picked] == sorted(each.confidence or 0 for each in rows)[:10]
    assert (counts["over_limit"], counts["below_threshold"]) == (90, 100)
    there = {each.row.inference_id for each in picked}
    following, counts = choose(rows, chosen, room=10, there=there)
    assert not {each.row.inference_id for each in following} & there
    assert (counts["already"], counts["over_limit"]) == (10, 80)
    anyhow = settings().model_copy(update={"audit_share": 0.0, "review_order": "random"})
    by_chance = [each.row.inference_id for each in choose(rows, anyhow, room=10)[0]]
    assert by_chance == [each.row.inference_id for each in choose(rows[::-1], anyhow, room=10)[0]]
    assert set(by_chance) != there


def test_no_limit_leaves_out_some_of_the_random_share() -> None:
    chosen = settings().model_copy(update={"audit_share": 0.5})
    rows = [row(number, "accepted") for number in range(100)] + [row(200), row(201, "not_a_class")]
    picked, counts = choose(rows, chosen, room=0)
    assert {each.reason for each in picked} == {"audit"} and len(picked) == counts["audit"] > 30
    assert {each.probability for each in picked} == {0.5}
    assert counts["over_limit"] == 2


def test_every_result_is_accounted_for() -> None:
    of_the_bucket = row(1, "below_threshold", key="test/bicycle_50000.png")
    assert choose([of_the_bucket], settings(), room=50) == ([], {"results": 1, "labelled": 1, "over_limit": 0})
    kinds: list[Status] = ["accepted", "below_threshold", "not_a_class", "failed", "not_submitted"]
    rows = [row(number, kinds[number % 5], label="bicycle" if number % 7 == 0 else None) for number in range(700)]
    picked, counts = choose(rows, settings(), room=50)
    assert counts["results"] == 700
    answered = counts["accepted"] + counts["below_threshold"] + counts["not_a_class"]
    assert counts["labelled"] + counts["failed"] + answered == 700
    assert counts["audit"] + counts["below_threshold"] + counts["not_a_class"] == len(picked) + counts["over_limit"]


def test_what_happened_is_told_in_a_line_and_counted_in_a_table() -> None:
    names = ("results", "labelled", "failed", "accepted", "audit", "below_threshold", "not_a_class", "over_limit")
    numbers = dict.fromkeys((*names, "already", "gone"), 3)
    queued = Queued(runs=("5b52074c57ed",), queued={"below_threshold": 2, "audit": 0}, **numbers)
    assert (
        told(queued) == "new in the queue: 2 below threshold; 3 were there already, 3 are gone, 3 left for another day"
    )
    assert "| of these drawn at random | 3 |" in markdown(queued, "bucket")
    nothing = Queued(runs=(), queued={}, **dict.fromkeys((*names, "already", "gone"), 0))
    assert told(nothing).startswith("new in the queue: none")
