"""The conformance kit tells an answer that differs from one that only has other names and times."""

from datetime import UTC, datetime
from typing import Any

import pytest

from conformance.__main__ import filled, make
from conformance.calls import Call, Expected, load
from conformance.comparison import ERROR, MESSAGE, STATUS, differences, normalized

KNOWN = {"run-1-bucket": "BUCKET", "run-1": "PREFIX", "123456789012": "ACCOUNT"}


def test_what_differs_from_run_to_run_is_replaced() -> None:
    answer = {
        "Arn": "arn:aws:s3:::run-1-bucket/run-1/6f1f0b52-6d2c-4c1e-9d7e-0c9a0e1b2c3d",
        "Times": [datetime(2026, 11, 25, tzinfo=UTC), "2026-11-25T01:02:03.456Z"],
        "Owner": b"123456789012",
        "Count": 3,
        "ResponseMetadata": {"RequestId": "changes"},
    }
    assert normalized(answer, KNOWN) == {
        "Arn": "arn:aws:s3:::BUCKET/PREFIX/UUID",
        "Times": ["TIME", "TIME"],
        "Owner": "ACCOUNT",
        "Count": 3,
    }


@pytest.mark.parametrize(
    ("expected", "answer", "told"),
    [
        (Expected(answer={"a": {"b": 1}}), {"a": {"b": 1, "c": 2}}, []),
        (Expected(answer={"a": {"b": 1}}), {"a": {"b": 2}}, ["a.b: 1 is expected, and got 2"]),
        (Expected(answer={"a": [1, 2]}), {"a": [1]}, ["a: [1, 2] is expected, and got [1]"]),
        (Expected(answer={"a": [{"b": 1}]}), {"a": [{"b": 3}]}, ["a[0].b: 1 is expected, and got 3"]),
        (Expected(has=["a", "b"]), {"a": 0}, ["there is no b"]),
        (Expected(error="Nope"), {"a": 1}, ['Nope is expected, and got {"a": 1}']),
        (Expected(), {ERROR: "Nope", MESSAGE: "no", STATUS: 400}, ["an answer is expected, and got Nope: no"]),
        (Expected(error="Nope", status=404), {ERROR: "Nope", STATUS: 400}, ["status 404 is expected, and got 400"]),
        (
            Expected(error="Nope", message="No.", message_has=["x"]),
            {ERROR: "Nope", MESSAGE: "no"},
            ["the message 'No.' is expected, and got 'no'", "the message has no 'x': 'no'"],
        ),
    ],
)
def test_a_difference_is_told(expected: Expected, answer: dict[str, Any], told: list[str]) -> None:
    assert differences(expected, answer) == told


def test_arguments_are_filled_in() -> None:
    variables = {"name": "run-1", "file": b"\x00", "nothing": None}
    arguments = {"Key": "${name}/x", "Body": "${file}", "Tags": ["${name}"], "Size": 1, "Location": "${nothing}"}
    assert filled(arguments, variables) == {
        "Key": "run-1/x",
        "Body": b"\x00",
        "Tags": ["run-1"],
        "Size": 1,
    }


def test_a_call_is_made_until_it_is_settled() -> None:
    class Client:
        answers = iter(("Creating", "Creating", "InService"))

        def describe(self, **arguments: str) -> dict[str, Any]:
            assert arguments == {"Name": "run-1"}
            return {"Status": next(self.answers), "ResponseMetadata": {"HTTPStatusCode": 200}}

    client = Client()
    call = Call(
        name="settled",
        call="service.describe",
        source="documented",
        reference="",
        expect=Expected(),
        arguments={"Name": "${name}"},
        until={"Status": ["InService"]},
    )
    assert make(call, lambda service: client, {"name": "run-1"}, "embedded")["Status"] == "InService"


def test_every_call_says_what_it_is_known_by() -> None:
    calls = load()
    assert len({call.name for call in calls}) == len(calls) >= 60
    for call in calls:
        assert call.reference.startswith("https://"), call.name
        if call.source == "documented":
            assert "/issues/" not in call.reference and "/pull/" not in call.reference, call.name
        if call.source == "observed in public":
            assert "/issues/" in call.reference or "/pull/" in call.reference, call.name
