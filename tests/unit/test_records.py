"""Files that this project writes: what they are read as, what is refused, and what docs/schemas/ says of them."""

import json
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from settings import SCHEMA_VERSION
from tasks.evaluation.results import Result
from tasks.evaluation.summary import EvaluationSummary
from tasks.installation import DatasetNote
from tasks.records import RecordError
from tasks.schemas import FOLDER, TYPES, schemas
from tests.unit.results import RESULT


def test_a_record_is_read_as_it_was_written() -> None:
    row = replace(RESULT, previous_attempts=(replace(RESULT, attempt=2),))
    assert Result.parse(json.dumps(row.to_json()).encode(), "results.jsonl") == row
    assert row.to_json()["schema_version"] == SCHEMA_VERSION


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"schema_version": SCHEMA_VERSION + 1}, f"schema version 2, and this release reads {SCHEMA_VERSION}; use the"),
        ({"schema_version": 0}, "no schema version that was ever written: 0"),
        ({"schema_version": "1"}, "no schema version that was ever written: '1'"),
        ({"schema_version": None}, "no schema version that was ever written: None"),
        ({"status": "lost"}, r"no Result: Invalid enum value 'lost' - at `\$.status`"),
        ({"confidence": "high"}, r"no Result: .* - at `\$.confidence`"),
        ({"key": None}, r"no Result: .* - at `\$.key`"),
    ],
)
def test_another_file_is_refused_by_its_name(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(RecordError, match=f"s3://b/results.jsonl is .*{message}|s3://b/results.jsonl says {message}"):
        Result.from_json({**RESULT.to_json(), **changed}, "s3://b/results.jsonl")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff", b'"text"', b"{}"])
def test_what_is_no_record_at_all_is_refused(content: bytes) -> None:
    with pytest.raises(RecordError, match=r"^dataset\.json"):
        DatasetNote.parse(content, "dataset.json")


def test_files_of_earlier_releases_of_this_version_are_read() -> None:
    note = DatasetNote.parse(b'{"schema_version": 1, "source": "generated", "synthetic": true, "new": 1}', "f")
    assert (note.given, note.classes, note.manifests_sha256) == (None, (), None)


def test_the_schemas_are_those_of_the_types() -> None:
    assert {file.name: file.read_text() for file in FOLDER.glob("*.json")} == schemas(), "run `make schemas`"
    summary = msgspec.json.schema(EvaluationSummary)["$defs"]["EvaluationSummary"]
    assert "threshold" in summary["required"] and "revision" not in summary["required"]
    assert TYPES["evaluation-summary"] is EvaluationSummary
