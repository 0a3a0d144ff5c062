"""What the capture archive holds of a window of time, as one table for pandas; no AWS, no Prefect and no waiting."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from tasks.capture.archive import CaptureArchive, Day
from tasks.capture.deduplication import first_of_each, rows_at

# Inference ids of smoke tests, which never count, begin so.
SMOKE = "smoke-"
COLUMNS = ["inference_id", "time", "model_version", "confidence", "outlier_score", "predicted_class"]


@dataclass(frozen=True)
class Window:
    """Captures of one endpoint from `first` to `last` (both UTC, inclusive): of these model versions, or of all."""

    endpoint: str
    versions: tuple[str, ...]
    first: datetime
    last: datetime

    def before(self) -> "Window":
        """As long a time, just before."""
        return replace(self, first=self.first - (self.last - self.first), last=self.first - timedelta(microseconds=1))


@dataclass(frozen=True)
class Quarantined:
    """A line that is no record of an inference. line: from 1, or 0 if it is about the object as a whole."""

    key: str
    line: int
    reason: str


@dataclass(frozen=True)
class Captured:
    """What was captured in a window.

    records: columns COLUMNS, a row per inference by time, without smoke tests; inference_id is null if the caller
    gave none. missing: ids that are waited for and have no record. without_output: ids whose record has no answer in
    it. repeated: how often those inferences were captured that were so more than once; the last record is the row.
    """

    records: pd.DataFrame
    missing: tuple[str, ...] = ()
    without_output: tuple[str, ...] = ()
    repeated: dict[str, int] = field(default_factory=dict)
    quarantined: tuple[Quarantined, ...] = ()


def read(
    archives: Sequence[tuple[str, CaptureArchive]],
    window: Window,
    classes: tuple[str, ...],
    wanted: Sequence[str] = (),
) -> Captured:
    """What is captured by now. archives: each with the model version whose records it has."""
    tables, indices, quarantined = [_NONE], [np.zeros(0, int)], []
    for version, archive in archives:
        days = list(archive.days(window.first, window.last))
        if not days:
            continue
        kept, bad = _records(days, window, len(classes))
        indices.append(kept + sum(map(len, tables)))
        quarantined += bad
        for day in days:
            rows = day.read(*_NEEDED)
            names = pa.DictionaryArray.from_arrays(np.zeros(len(rows), dtype=np.int8), [version])
            tables.append(rows.append_column("model_version", names))
    table = pa.concat_tables(tables).unify_dictionaries()
    return _captured(table, np.concatenate(indices), classes, wanted, tuple(quarantined))


_TIME = pa.timestamp("us", tz="UTC")
_NEEDED = ["inference_id", "time", "confidence", "outlier_score", "predicted"]
_NONE = pa.table(
    {
        "inference_id": pa.array([], pa.string()),
        "time": pa.array([], _TIME),
        "confidence": pa.array([], pa.float64()),
        "outlier_score": pa.array([], pa.float64()),
        "predicted": pa.array([], pa.int16()),
        "model_version": pa.DictionaryArray.from_arrays(pa.array([], pa.int8()), pa.array([], pa.string())),
    }
)


def _records(days: list[Day], window: Window, classes: int) -> tuple[np.ndarray, list[Quarantined]]:
    """Indices of the days' rows that are records of the window, each once, and the lines that are none."""
    good, quarantined = [], []
    for day in days:
        lines = day.read("time", "outputs", "reason")
        bad = _bad(lines, classes)
        good.append(~bad & _inside(lines["time"], window))
        quarantined += _quarantined(day, bad, classes)
    kept = np.flatnonzero(np.concatenate(good))
    # A delivery may come twice; its records are the same.
    events = pa.chunked_array([chunk for day in days for chunk in day.read("event_id")[0].chunks])
    return kept[first_of_each(events, kept)], quarantined


def _captured(
    table: pa.Table,
    kept: np.ndarray,
    classes: tuple[str, ...],
    wanted: Sequence[str],
    quarantined: tuple[Quarantined, ...],
) -> Captured:
    """table: a row per line. kept: indices of the rows that are records; nothing is copied before it is known which."""
    smoke = pc.fill_null(pc.starts_with(table["inference_id"], SMOKE), False).to_numpy()
    kept = kept[~smoke[kept]]
    # The latest first, so that of several records of an inference the last one stays: what its execution saw.
    latest = kept[np.argsort(table["time"].to_numpy()[kept], kind="stable")[::-1]]
    first = first_of_each(table["inference_id"], latest)
    again = rows_at(table.select(["inference_id"]), latest[~first])[0].value_counts()
    repeated = {row["values"].as_py(): row["counts"].as_py() + 1 for row in again}
    table = rows_at(table, latest[first][::-1])
    ids, answered = table["inference_id"], pc.is_valid(table["predicted"])
    waited_for = pa.array(wanted, pa.string())
    missing = waited_for.filter(pc.invert(pc.is_in(waited_for, ids.combine_chunks()))).to_pylist() if wanted else []
    without = ids.filter(pc.invert(answered)).drop_null().to_pylist()
    if not pc.all(answered).as_py():
        table = table.filter(answered)
    index = table["predicted"].combine_chunks().cast(pa.int8() if len(classes) < 128 else pa.int16())
    names = pa.DictionaryArray.from_arrays(index, pa.array(classes))
    records = table.drop_columns(["predicted"]).append_column("predicted_class", names).to_pandas()
    return Captured(records[COLUMNS], tuple(missing), tuple(without), dict(sorted(repeated.items())), quarantined)


def _inside(times: pa.ChunkedArray, window: Window) -> np.ndarray:
    """Mask of the times in the window."""
    first, last = pa.scalar(window.first, _TIME), pa.scalar(window.last, _TIME)
    inside: np.ndarray = pc.fill_null(
        pc.and_(pc.greater_equal(times, first), pc.less_equal(times, last)), False
    ).to_numpy()
    return inside


def _bad(lines: pa.Table, classes: int) -> np.ndarray:
    """Mask of lines that are no records of this model."""
    other = pc.fill_null(pc.not_equal(lines["outputs"], classes), False)
    bad: np.ndarray = pc.or_(pc.is_valid(lines["reason"]), other).to_numpy()
    return bad


def _quarantined(day: Day, bad: np.ndarray, classes: int) -> list[Quarantined]:
    if not bad.any():
        return []
    rows = day.read("object", "line", "outputs", "reason").take(np.flatnonzero(bad)).to_pylist()
    other = "its answer has {} probabilities, and there are {} classes"
    return [
        Quarantined(row["object"], row["line"], row["reason"] or other.format(row["outputs"], classes)) for row in rows
    ]
