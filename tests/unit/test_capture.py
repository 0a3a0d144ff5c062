"""What capture files hold, what of it is kept, and what a window gives."""

import gzip
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from tasks.capture import archive as capture_archive
from tasks.capture import deduplication
from tasks.capture.archive import MOST_PARTS, _folders
from tasks.capture.decoding import MOST_BYTES, decode
from tasks.capture.images import sample
from tasks.capture.window import SMOKE
from testing.captures import DAY, POISON, CaptureFolder, record, records


@pytest.fixture
def captures(tmp_path: Path) -> CaptureFolder:
    return CaptureFolder(tmp_path / "captures")


@pytest.mark.parametrize(
    "line",
    [
        record(),
        record(data="0.1,0.9\n", encoding="CSV"),
        record(data="WzAuMSwgMC45XQ==", encoding="BASE64"),
        record(data="MC4xLDAuOQ==", encoding="BASE64", content_type="text/csv; charset=utf-8"),
    ],
)
def test_records_are_read_in_each_encoding(line: bytes) -> None:
    (row,) = decode("key", line).to_pylist()
    assert (row["object"], row["line"], row["event_id"], row["inference_id"]) == ("key", 1, "e", "i")
    assert (row["confidence"], row["predicted"], row["outputs"], row["reason"]) == (0.9, 1, 2, None)
    assert row["time"] == datetime(2026, 11, 22, 17, 25, 49, tzinfo=UTC)


def test_a_verbose_answer_has_an_outlier_score() -> None:
    (row,) = decode("key", record(data='{"probabilities": [0.1, 0.9], "outlier_score": 1.5}')).to_pylist()
    assert (row["confidence"], row["predicted"], row["outputs"], row["outlier_score"]) == (0.9, 1, 2, 1.5)
    (row,) = decode("key", record(data='{"probabilities": [0.1, 0.9], "outlier_score": null}')).to_pylist()
    assert (row["confidence"], row["outlier_score"]) == (0.9, None)
    (row,) = decode("key", record()).to_pylist()
    assert row["outlier_score"] is None


def test_times_of_every_zone_are_utc() -> None:
    (row,) = decode("key", record(time="2026-11-22T18:25:49.123456+01:00")).to_pylist()
    assert row["time"] == datetime(2026, 11, 22, 17, 25, 49, 123456, tzinfo=UTC)


BAD = {
    "no JSON": b"{",
    "a list": b"[]",
    "null": b"null",
    "nothing in it": b"{}",
    "binary": b"\x00\xff",
    "deep": b"[" * 100_000,
    "no probabilities": record(data="nonsense"),
    "a number": record(data="7"),
    "an empty answer": record(data="[]"),
    "not a number": record(data="[NaN, 1]"),
    "outside 0 to 1": record(data="[2, -1]"),
    "an object without probabilities": record(data='{"outlier_score": 1}'),
    "a negative outlier score": record(data='{"probabilities": [0.1, 0.9], "outlier_score": -1}'),
    "no base64": record(encoding="BASE64"),
    "another encoding": record(encoding="XML"),
    "no event": record(event=""),
    "an endless event": record(event="e" * 1000),
    "no time zone": record(time="2026-11-22T17:25:49"),
    "no time": record(time="yesterday"),
    "an answer that is two": record(data="[0.1, 0.9], [1, 0]"),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=list(BAD))
def test_a_bad_line_costs_that_line(bad: bytes) -> None:
    rows = decode("key", b"\n".join([record("a"), bad, record("b")])).to_pylist()
    assert [row["event_id"] for row in rows] == ["a", None, "b"]
    assert [row["line"] for row in rows] == [1, 2, 3]
    assert rows[1]["reason"] and len(rows[1]["reason"]) <= 200
    assert rows[0]["reason"] is rows[2]["reason"] is None


def test_a_record_without_an_answer_is_a_record() -> None:
    line = b'{"captureData": {}, "eventMetadata": {"eventId": "e", "inferenceTime": "2026-11-22T17:25:49Z"}}'
    (row,) = decode("key", line).to_pylist()
    assert (row["event_id"], row["confidence"], row["predicted"], row["reason"]) == ("e", None, None, None)


def test_gzip_is_unpacked_as_far_as_it_goes() -> None:
    whole = gzip.compress(records(0, 2)) + gzip.compress(records(2, 3))
    assert [row["event_id"] for row in decode("key", whole).to_pylist()] == ["e0", "e1", "e2"]
    rows = decode("key", gzip.compress(records(0, 3))[:-9]).to_pylist()
    assert [row["event_id"] for row in rows] == [None, "e0", "e1", "e2"]
    assert "broken" in rows[0]["reason"] and rows[0]["line"] == 0


def test_what_unpacks_to_too_much_is_not_unpacked() -> None:
    bomb = gzip.compress(record("a") + b"\n" + b" " * (MOST_BYTES + 1), compresslevel=1)
    assert len(bomb) < MOST_BYTES // 100
    rows = decode("key", bomb).to_pylist()
    assert [row["event_id"] for row in rows] == [None, "a"]
    assert "more than 128 MiB" in rows[0]["reason"]


def test_blank_lines_byte_order_marks_and_carriage_returns_are_none() -> None:
    rows = decode("key", b"\xef\xbb\xbf" + record("a") + b"\r\n\r\n\n" + record("b") + b"\n").to_pylist()
    assert [row["event_id"] for row in rows] == ["a", "b"]
    rows = decode("key", record("a") + b"\n\n{\n" + record("b")).to_pylist()
    assert [(row["line"], row["event_id"]) for row in rows] == [(1, "a"), (3, None), (4, "b")]
    assert decode("key", b"").num_rows == 0


def test_folders_of_a_window_over_midnight_and_of_whole_days() -> None:
    first = datetime(2026, 11, 22, 23, 58, tzinfo=UTC)
    assert _folders(first, first + timedelta(hours=1, minutes=3)) == {
        "2026/11/22": ["2026/11/22/23"],
        "2026/11/23": ["2026/11/23/00", "2026/11/23/01"],
    }
    assert _folders(DAY.first, DAY.last) == {"2026/11/22": ["2026/11/22"]}


def test_a_second_read_decodes_what_is_late_or_changed_and_nothing_else(captures: CaptureFolder) -> None:
    captures.put("a.jsonl", records(0, 3))
    captures.put("b.jsonl", records(3, 4)[:-40])
    captured = captures.read()
    assert (len(captured.records), len(captured.quarantined), captures.decoded) == (3, 1, [2])
    assert captures.read() is not None and captures.decoded == []
    captures.put("b.jsonl", records(3, 5))
    captures.put("c.jsonl", records(5, 6), hour="2026/11/22/03")
    captured = captures.read()
    assert captures.decoded == [2]
    assert set(captured.records["inference_id"]) == {f"i{number}" for number in range(6)}
    assert captured.quarantined == ()


def test_many_parts_of_a_day_become_one(captures: CaptureFolder) -> None:
    for number in range(MOST_PARTS + 3):
        captures.put(f"{number:02}.jsonl", records(number, number + 1))
        assert len(captures.read().records) == number + 1
    assert len(list(captures.cache.rglob("*.parquet"))) <= MOST_PARTS
    captures.read()
    assert captures.decoded == []
    late = captures.read(replace(DAY, first=datetime(2026, 11, 22, 18, tzinfo=UTC)))
    assert late.records.empty


def test_an_interrupted_read_keeps_what_it_decoded(captures: CaptureFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture_archive, "BATCH_OBJECTS", 1)
    monkeypatch.setattr(capture_archive, "GROUP_ROWS", 20)
    for number in range(5):
        captures.put(f"{number}.jsonl", records(number * 10, number * 10 + 10))

    def interrupt(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    archive = captures.archive
    captures.archive = replace(archive, progress=interrupt)
    with pytest.raises(KeyboardInterrupt):
        captures.read()
    captures.archive = archive
    assert len(captures.read().records) == 50
    assert captures.decoded == [1, 2, 3]  # two of five were kept
    assert not list(captures.cache.rglob("*.new"))


def test_a_part_that_is_broken_is_decoded_again(captures: CaptureFolder) -> None:
    captures.put("a.jsonl", records(0, 3))
    captures.read()
    (part,) = captures.cache.rglob("*.parquet")
    part.write_bytes(part.read_bytes()[:-50])
    assert len(captures.read().records) == 3 and captures.decoded == [1]
    assert len(captures.read().records) == 3 and captures.decoded == []


def test_the_same_captures_give_the_same_rows_whatever_came_first(tmp_path: Path) -> None:
    files = {f"{number}.jsonl": records(number * 10, number * 10 + 10) for number in range(4)}
    tables = []
    for name, order in (("one", sorted(files)), ("other", sorted(files, reverse=True))):
        folder = CaptureFolder(tmp_path / name)
        for file in order:
            folder.put(file, files[file])
            if name == "other":
                folder.read()
        tables.append(folder.read().records)
    pd.testing.assert_frame_equal(tables[0], tables[1])
    assert len(tables[0]) == 40


def test_duplicate_deliveries_count_once_and_attempts_by_their_last(captures: CaptureFolder) -> None:
    captures.put("a.jsonl", records(0, 3))
    captures.put("b.jsonl", records(1, 4))
    retried = record("r1", "[0.9, 0.1]", inference="i0", time="2026-11-22T17:30:00Z")
    captures.put("c.jsonl", retried)
    captured = captures.read(wanted=("i0", "i9"))
    by_id = captured.records.set_index("inference_id")
    assert sorted(by_id.index) == ["i0", "i1", "i2", "i3"]
    assert by_id.loc["i0", "predicted_class"] == "bicycle"
    assert captured.repeated == {"i0": 2}
    assert captured.missing == ("i9",)


def test_strings_of_one_hash_are_compared(captures: CaptureFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    captures.put("a.jsonl", records(0, 9) + record("another length", inference=None) + b"\n" + records(3, 12))
    monkeypatch.setattr(deduplication, "SLICE", 5)  # so that one has the other length, and another has not
    expected = captures.read().records
    monkeypatch.setattr(deduplication, "_hashes", lambda strings: np.zeros(len(strings), np.uint64))
    pd.testing.assert_frame_equal(captures.read().records, expected)
    assert len(expected) == 13


def test_equal_strings_have_equal_hashes_wherever_they_stand() -> None:
    strings = pa.array([f"{number:036}" for number in range(100)] * 2)
    expected = deduplication._hashes(strings)
    assert len(set(expected)) == 100
    for column in (strings.slice(0, 200), pa.concat_arrays([strings, pa.array(["", "x", None])])):
        assert (deduplication._hashes(column)[:200] == expected).all()
    assert (deduplication._hashes(strings.slice(7, 50)) == expected[7:57]).all()


def test_inferences_without_an_id_are_each_one(captures: CaptureFolder) -> None:
    captures.put("a.jsonl", b"\n".join(record(f"e{number}", inference=None) for number in range(3)))
    captured = captures.read()
    assert len(captured.records) == 3 and captured.records["inference_id"].isna().all()
    assert captured.repeated == {}


def test_answers_of_another_model_are_set_aside(captures: CaptureFolder) -> None:
    captures.put("a.jsonl", record("a", "[0.2, 0.3, 0.5]") + b"\n" + record("b"))
    captured = captures.read()
    assert len(captured.records) == 1
    assert captured.quarantined[0].reason == "its answer has 3 probabilities, and there are 2 classes"


def test_an_answer_that_was_not_captured_is_not_waited_for(captures: CaptureFolder) -> None:
    nameless = record("n", inference=None)
    lines = b"\n".join([record(), nameless]).replace(b'"endpointOutput"', b'"endpointOther"')
    captures.put("a.jsonl", lines)
    captured = captures.read(wanted=("i",))
    assert captured.missing == () and captured.without_output == ("i",)
    assert captured.records.empty


def test_a_window_ends_where_it_ends(captures: CaptureFolder) -> None:
    captures.put(
        "a.jsonl", b"\n".join(record(str(n), inference=str(n), time=f"2026-11-22T17:{n}:00Z") for n in range(10, 20))
    )
    window = replace(
        DAY, first=datetime(2026, 11, 22, 17, 12, tzinfo=UTC), last=datetime(2026, 11, 22, 17, 15, tzinfo=UTC)
    )
    assert list(captures.read(window).records["inference_id"]) == ["12", "13", "14", "15"]
    assert window.before().last < window.first and window.before().first == datetime(2026, 11, 22, 17, 9, tzinfo=UTC)
    assert captures.read(
        replace(DAY, first=DAY.first + timedelta(days=9), last=DAY.last + timedelta(days=9))
    ).records.empty


def test_objects_that_vanish_or_have_impossible_names_stop_nothing(captures: CaptureFolder) -> None:
    captures.put("a.jsonl", records(0, 2))
    listing = captures.archive.listing

    def listed(prefix: str) -> capture_archive.Objects:
        return {**listing(prefix), "v1/2026/11/22/17/gone": ("x", 1), "v1/2026/11/22/17//b": ("y", 1)}

    captures.archive = replace(captures.archive, listing=listed)
    captured = captures.read()
    assert len(captured.records) == 2
    assert [line.key for line in captured.quarantined] == ["v1/2026/11/22/17//b"]
    captures.put("gone", records(2, 3))
    captures.archive = replace(captures.archive, listing=listing)
    assert len(captures.read().records) == 3


def test_processes_give_what_one_gives(
    captures: CaptureFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for number in range(6):
        captures.put(f"{number}.jsonl", records(number * 5, number * 5 + 5))
    one = captures.read()
    monkeypatch.setattr(capture_archive, "BATCH_OBJECTS", 2)
    monkeypatch.setattr(capture_archive, "PROCESSES_BYTES", 0)
    several = CaptureFolder(captures.folder, tmp_path / "another")
    pd.testing.assert_frame_equal(several.read().records, one.records)
    assert several.decoded == [2, 4, 6]


@pytest.mark.parametrize("poison", POISON.values(), ids=list(POISON))
def test_a_poisoned_file_loses_nothing_and_doubles_nothing(
    captures: CaptureFolder, poison: Callable[[int, int], bytes]
) -> None:
    captures.put("a.jsonl", records(0, 10))
    captures.put("b", poison(10, 20))
    captures.put("c.jsonl", records(20, 30))
    there = captures.read().records["inference_id"]
    assert sorted(there) == sorted(f"i{number}" for number in range(30))


def test_a_sample_of_the_pictures_is_the_same_each_time_and_of_what_is_wanted(captures: CaptureFolder) -> None:
    first = records(0, 30)
    captures.put("a.jsonl", first + record("s", inference=f"{SMOKE}x") + b"\n" + record("n", inference=None))
    captures.put("b.jsonl", b"".join(first.splitlines(keepends=True)[20:]) + records(30, 60))  # ten once more
    captures.put("late.jsonl", record("late", inference="late", time="2026-11-23T00:00:00Z"))
    place = [("v1", captures.archive)]
    everything = sample(place, DAY, (), 1000)
    assert len(everything) == 61 and len(set(everything)) == 61  # and the one without an id
    assert sample(place, DAY, (), 1000) == everything
    few = sample(place, DAY, (), 10)
    assert len(few) == 10 and set(few) <= set(everything)
    chosen = sample(place, DAY, ("i1", "i25", "nobody"), 1000)
    assert len(chosen) == 2 and set(chosen) <= set(everything)


@pytest.mark.parametrize("name", POISON)
def test_a_sample_of_the_pictures_leaves_out_what_is_none(captures: CaptureFolder, name: str) -> None:
    captures.put("bad.jsonl", POISON[name](0, 8))
    captures.put("good.jsonl", records(8, 10))
    assert len(sample([("v1", captures.archive)], DAY, [f"i{number}" for number in range(10)], 100)) >= 9


def test_parts_that_others_cover_are_compacted_too(captures: CaptureFolder) -> None:
    """Two reports at the same time each decode what is new, so that a part may have nothing of its own."""
    for number in range(MOST_PARTS):
        captures.put(f"{number}.jsonl", records(10 * number, 10 * number + 10))
        captures.read()
    first = min(captures.cache.rglob("*.parquet"))
    folder = first.parent
    shutil.copy(first, folder / "zzzz.parquet")
    captures.put("last.jsonl", records(1000, 1005))
    assert len(captures.read().records) == 10 * MOST_PARTS + 5
    assert len(list(folder.glob("*.parquet"))) == 1
