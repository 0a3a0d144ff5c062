"""What the capture archive holds of a window of time, as one table for pandas; no AWS, no Prefect and no waiting."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from tasks.capture_archive import CaptureArchive, Day

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
    rows, quarantined = [_NONE], []
    for variant, archive in archives.items():
        days = list(archive.days(window.first, window.last))
        if not days:
            continue
        good = [_good(day, window, len(classes)) for day in days]
        for day in days:
            quarantined += _quarantined(day, len(classes))
        # A delivery may come twice; its records are the same.
        new = _first(
            pa.concat_tables([day.read("event_id").filter(mask) for day, mask in zip(days, good, strict=True)])[0]
        )
        table = pa.concat_tables([day.read(*_NEEDED).filter(mask) for day, mask in zip(days, good, strict=True)])
        table = table.filter(new)
        names = pa.DictionaryArray.from_arrays(np.zeros(len(table), dtype=np.int8), [variant])
        rows.append(table.append_column("model_version", names))
    return _captured(pa.concat_tables(rows).unify_dictionaries(), classes, wanted, tuple(quarantined))


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
    table: pa.Table, classes: tuple[str, ...], wanted: Sequence[str], quarantined: tuple[Quarantined, ...]
) -> Captured:
    """table: a row per record."""
    # The latest first, so that of several records of an inference the last one stays: what its execution saw.
    table = table.take(np.argsort(table["time"].to_numpy(), kind="stable")[::-1])
    ids = table["inference_id"]
    first = _first(ids)
    again = ids.filter(pa.array(~first)).value_counts()
    repeated = {row["values"].as_py(): row["counts"].as_py() + 1 for row in again}
    table = table.filter(first)
    table = table.take(np.arange(len(table))[::-1])
    answered = pc.is_valid(table["predicted"])
    without = table["inference_id"].filter(pc.invert(answered)).drop_null().to_pylist()
    there = pc.is_in(pa.array(wanted, pa.string()), table["inference_id"].combine_chunks())
    missing = pa.array(wanted, pa.string()).filter(pc.invert(there)).to_pylist()
    table = table.filter(answered)
    names = pa.DictionaryArray.from_arrays(
        table["predicted"].combine_chunks().cast(pa.int8() if len(classes) < 128 else pa.int16()), pa.array(classes)
    )
    records = table.drop_columns(["predicted"]).append_column("predicted_class", names).to_pandas()
    return Captured(records[COLUMNS], tuple(missing), tuple(without), dict(sorted(repeated.items())), quarantined)


def _first(column: pa.ChunkedArray) -> np.ndarray:
    """Mask of the rows whose value was not there before; a null is like no other."""
    # dictionary_encode numbers the values as they come.
    codes = column.combine_chunks().dictionary_encode().indices.fill_null(-1).to_numpy(zero_copy_only=False)
    before = np.maximum.accumulate(np.append(-1, codes[:-1])) if len(codes) else codes
    return (codes > before) | (codes < 0)


def _good(day: Day, window: Window, classes: int) -> pa.ChunkedArray:
    """Mask of the records in the window."""
    rows = day.read("time", "outputs", "reason")
    inside = pc.and_(
        pc.greater_equal(rows["time"], pa.scalar(window.first, _TIME)),
        pc.less_equal(rows["time"], pa.scalar(window.last, _TIME)),
    )
    return pc.and_(pc.invert(_bad(rows, classes)), pc.fill_null(inside, False))


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
