"""What the capture archive holds of a window of time, as one table for pandas; no AWS, no Prefect and no waiting."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from tasks.capture_archive import CaptureArchive, Day

# Strings that are hashed at once.
SLICE = 1 << 16
COLUMNS = ["inference_id", "time", "model_version", "confidence", "predicted_class"]


@dataclass(frozen=True)
class Window:
    """Captures of one endpoint from `first` to `last` (both UTC, inclusive): of these variants, or of all."""

    endpoint: str
    variants: tuple[str, ...]
    first: datetime
    last: datetime

    def before(self) -> "Window":
        """As long a time, just before."""
        return replace(self, first=self.first - (self.last - self.first), last=self.first - timedelta(microseconds=1))


@dataclass(frozen=True)
class Quarantined:
    """A line that is no record of an inference. line: from 1, or 0 where it is about the object as a whole."""

    key: str
    line: int
    reason: str


@dataclass(frozen=True)
class Captured:
    """What was captured in a window.

    records: columns COLUMNS, a row per inference by time; inference_id is null where the caller gave none. missing: ids
    that are waited for and have no record. without_output: ids whose record has no answer in it. repeated: how often
    those inferences were captured that were so more than once; the last record is the row.
    """

    records: pd.DataFrame
    missing: tuple[str, ...] = ()
    without_output: tuple[str, ...] = ()
    repeated: dict[str, int] = field(default_factory=dict)
    quarantined: tuple[Quarantined, ...] = ()


def read(
    archives: dict[str, CaptureArchive], window: Window, classes: tuple[str, ...], wanted: Sequence[str] = ()
) -> Captured:
    """What is captured by now. archives: by variant."""
    tables, kept, quarantined = [_NONE], [], []
    for variant, archive in archives.items():
        days = list(archive.days(window.first, window.last))
        if not days:
            continue
        good = np.flatnonzero(np.concatenate([_good(day, window, len(classes)) for day in days]))
        # A delivery may come twice; its records are the same.
        first = _first(pa.chunked_array([chunk for day in days for chunk in day.read("event_id")[0].chunks]), good)
        kept.append(good[first] + sum(map(len, tables)))
        for day in days:
            rows = day.read(*_NEEDED)
            names = pa.DictionaryArray.from_arrays(np.zeros(len(rows), dtype=np.int8), [variant])
            tables.append(rows.append_column("model_version", names))
            quarantined += _quarantined(day, len(classes))
    table = pa.concat_tables(tables).unify_dictionaries()
    return _captured(table, np.concatenate([np.zeros(0, int), *kept]), classes, wanted, tuple(quarantined))


_TIME = pa.timestamp("us", tz="UTC")
_NEEDED = ["inference_id", "time", "confidence", "predicted"]
_NONE = pa.table(
    {
        "inference_id": pa.array([], pa.string()),
        "time": pa.array([], _TIME),
        "confidence": pa.array([], pa.float64()),
        "predicted": pa.array([], pa.int16()),
        "model_version": pa.DictionaryArray.from_arrays(pa.array([], pa.int8()), pa.array([], pa.string())),
    }
)


def _captured(
    table: pa.Table,
    kept: np.ndarray,
    classes: tuple[str, ...],
    wanted: Sequence[str],
    quarantined: tuple[Quarantined, ...],
) -> Captured:
    """table: a row per line. kept: indices of the rows that are records; nothing is copied before it is known which."""
    times = table["time"].to_numpy()[kept]
    # The latest first, so that of several records of an inference the last one stays: what its execution saw.
    latest = kept[np.argsort(times, kind="stable")[::-1]]
    ids = table["inference_id"]
    first = _first(ids, latest)
    again = ids.take(latest[~first]).value_counts()
    repeated = {row["values"].as_py(): row["counts"].as_py() + 1 for row in again}
    one_each = latest[first][::-1]
    answered = pc.is_valid(table["predicted"]).to_numpy()[one_each]
    without = ids.take(one_each[~answered]).drop_null().to_pylist()
    waited_for = pa.array(wanted, pa.string())
    there = pc.is_in(waited_for, ids.take(one_each).combine_chunks()) if wanted else pa.array([], pa.bool_())
    missing = waited_for.filter(pc.invert(there)).to_pylist()
    table = table.take(one_each[answered])
    index = table["predicted"].combine_chunks().cast(pa.int8() if len(classes) < 128 else pa.int16())
    names = pa.DictionaryArray.from_arrays(index, pa.array(classes))
    records = table.drop_columns(["predicted"]).append_column("predicted_class", names).to_pandas()
    return Captured(records[COLUMNS], tuple(missing), tuple(without), dict(sorted(repeated.items())), quarantined)


def _first(column: pa.ChunkedArray, order: np.ndarray) -> np.ndarray:
    """Mask (n,) of the rows, taken in an order of n, whose value did not come before; a null is like no other.

    Rows of the same hash are compared as they are; so few strings at a time are in memory as Python's or in a table.
    """
    hashes = np.concatenate([np.zeros(0, np.uint64), *map(_hashes, _slices(column))])[order]
    by_hash = np.argsort(hashes, kind="stable")
    same = hashes[by_hash][1:] == hashes[by_hash][:-1]
    mask = np.ones(len(order), dtype=bool)
    suspected = np.sort(by_hash[np.append(same, False) | np.append(False, same)]) if len(order) else by_hash
    values = column.take(order[suspected]).combine_chunks()
    # dictionary_encode numbers the values as they come.
    codes = values.dictionary_encode().indices.fill_null(-1).to_numpy(zero_copy_only=False)
    before = np.maximum.accumulate(np.append(-1, codes[:-1])) if len(codes) else codes
    mask[suspected] = (codes > before) | (codes < 0)
    return mask


def _slices(column: pa.ChunkedArray) -> Iterator[pa.Array]:
    for chunk in column.chunks:
        for start in range(0, len(chunk), SLICE):
            yield chunk.slice(start, SLICE)


def _hashes(strings: pa.Array) -> np.ndarray:
    hashes: np.ndarray = pd.util.hash_array(strings.to_numpy(zero_copy_only=False), categorize=False)
    return hashes


def _good(day: Day, window: Window, classes: int) -> np.ndarray:
    """Mask of the records in the window."""
    rows = day.read("time", "outputs", "reason")
    inside = pc.and_(
        pc.greater_equal(rows["time"], pa.scalar(window.first, _TIME)),
        pc.less_equal(rows["time"], pa.scalar(window.last, _TIME)),
    )
    good: np.ndarray = pc.and_(pc.invert(_bad(rows, classes)), pc.fill_null(inside, False)).to_numpy()
    return good


def _bad(rows: pa.Table, classes: int) -> pa.ChunkedArray:
    """Mask of lines that are no records of this model."""
    return pc.or_(pc.is_valid(rows["reason"]), pc.fill_null(pc.not_equal(rows["outputs"], classes), False))


def _quarantined(day: Day, classes: int) -> list[Quarantined]:
    bad = _bad(day.read("outputs", "reason"), classes)
    if not pc.any(bad).as_py():
        return []
    rows = day.read("object", "line", "outputs", "reason").filter(bad).to_pylist()
    other = "its answer has {} probabilities, and there are {} classes"
    return [
        Quarantined(row["object"], row["line"], row["reason"] or other.format(row["outputs"], classes)) for row in rows
    ]
