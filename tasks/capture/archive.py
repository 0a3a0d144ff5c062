"""The capture objects of a window of time: found, downloaded side by side, and each decoded once.

What was decoded is kept on this machine, in Parquet files by day: an object is known again by its key and ETag, so that
a later read decodes late and changed objects only. Nothing here waits, and nothing knows of evaluations.
"""

import contextlib
import gc
import hashlib
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import numpy as np
import obstore
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from obstore.store import S3Store

from tasks.capture.decoding import MOST_BYTES, SCHEMA, TOO_LARGE, Columns

# Objects are downloaded and decoded a batch at a time, which bounds the memory.
BATCH_BYTES = 8 << 20
BATCH_OBJECTS = 4096
PARALLEL_REQUESTS = 32
# From here on it pays to start a process per CPU.
PROCESSES_BYTES = 256 << 20
# Many small groups of rows take long to read, and large ones much memory to write.
GROUP_ROWS = 1 << 16
# Files of a day that are read together before they are made one.
MOST_PARTS = 8
DAY_SECONDS = 86_400
# Of what a file holds; another number makes everything be decoded again.
VERSION = 3


# ETag and size in bytes by key.
Objects = dict[str, tuple[str, int]]
Listing = Callable[[str], Objects]
# Told how many of all objects are decoded.
Decoded = Callable[[int, int], None]
# An object's content by key; asked from several threads and processes. Raises FileNotFoundError if it is gone, and
# ValueError if it can't be read but others can.
Reader = Callable[[str], bytes]


@dataclass(frozen=True)
class StoreReader:
    """Reads from whatever obstore knows."""

    store: S3Store

    def __call__(self, key: str) -> bytes:
        answer = obstore.get(self.store, key)
        if answer.meta["size"] > MOST_BYTES:
            raise ValueError(TOO_LARGE)
        return answer.bytes().to_bytes()


@dataclass(frozen=True)
class CaptureArchive:
    """Objects PREFIXyyyy/mm/dd/hh/*, and the folder that keeps what they held.

    listing: objects by key below a prefix. reader: makes what reads them, anew each time, since credentials end.
    progress is told how many of the new objects are decoded.
    """

    listing: Listing
    reader: Callable[[], Reader]
    prefix: str
    folder: Path
    progress: Decoded

    def days(self, first: datetime, last: datetime) -> Iterator["Day"]:
        """The window's hours, by day; those of which nothing is kept yet are decoded now.

        Raises what the store raises if objects can't be read at all.
        """
        for day, folders in sorted(_folders(first, last).items()):
            objects = {key: found for name in folders for key, found in self.listing(f"{self.prefix}{name}/").items()}
            if objects:
                yield self._day(self.folder / day.replace("/", "-"), objects)

    def _day(self, folder: Path, objects: Objects) -> "Day":
        folder.mkdir(parents=True, exist_ok=True)
        parts = {}
        wanted = dict(objects)
        for path in sorted(folder.glob("*.parquet")):
            part = _Part.open(path)
            there = {key for key, etag in part.etags.items() if wanted.get(key, ("",))[0] == etag} if part else set()
            if part and there:
                parts[part] = there
                for key in there:
                    del wanted[key]
        if wanted:
            part = self._decode(folder, wanted)
            parts[part] = set(part.etags)
        if len(parts) > MOST_PARTS:
            _compact(folder, objects)
            return self._day(folder, objects)
        return Day(parts)

    def _decode(self, folder: Path, objects: Objects) -> "_Part":
        """Decodes objects into a new part of the day, a batch in memory at a time."""
        batches = list(_batches(objects))
        with _Writer(folder) as writer:
            done = 0
            for batch, (table, vanished) in zip(batches, _decoded(self.reader(), batches), strict=True):
                writer.write(table, {key: objects[key][0] for key in batch if key not in vanished})
                done += len(batch)
                self.progress(done, len(objects))
        part = _Part.open(writer.path)
        assert part is not None
        return part


class Day:
    """The rows (see decoding.SCHEMA) of a day's objects, by object and line, a few columns at a time."""

    def __init__(self, parts: "dict[_Part, set[str]]") -> None:
        self._parts = parts
        self._order: np.ndarray | None = None

    def read(self, *columns: str) -> pa.Table:
        """These columns; whatever the order was in which objects came, the same objects give the same rows."""
        table = self._read(columns)
        if len(self._parts) == 1:
            return table
        if self._order is None:
            self._order = _order(self._read(("object", "line")))
        return table.take(self._order)

    def _read(self, columns: tuple[str, ...]) -> pa.Table:
        tables = [part.rows(objects, columns) for part, objects in self._parts.items()]
        return pa.concat_tables(tables).unify_dictionaries()


class _Content(msgspec.Struct, frozen=True):
    """What the metadata of a Parquet file says it holds: the rows of the objects with these ETags, by key.

    whole: no others. A writer that was interrupted may have written rows of more objects than it could name.
    """

    version: int
    etags: dict[str, str]
    whole: bool


@dataclass(frozen=True, eq=False)
class _Part:
    """A Parquet file with the rows of some objects."""

    path: Path
    etags: dict[str, str]
    whole: bool

    @classmethod
    def open(cls, path: Path) -> "_Part | None":
        """None if it is broken, of another version, or removed by now."""
        with contextlib.suppress(OSError, pa.ArrowException, ValueError, KeyError):
            metadata = pq.read_metadata(path).metadata or {}
            content = msgspec.json.decode(metadata[b"scones"], type=_Content)
            if content.version == VERSION:
                return cls(path, content.etags, content.whole)
        return None

    def rows(self, objects: set[str], columns: tuple[str, ...] = tuple(SCHEMA.names)) -> pa.Table:
        """Columns of the rows of these objects."""
        schema = pa.schema([SCHEMA.field(name) for name in columns])
        if self.whole and len(objects) == len(self.etags):
            return self._read(columns).cast(schema)
        of_object = self._read(("object",))["object"].cast(pa.string())
        return self._read(columns).cast(schema).filter(pc.is_in(of_object, pa.array(sorted(objects), pa.string())))

    def _read(self, columns: tuple[str, ...]) -> pa.Table:
        # One thread and no reading ahead: as quick for a few columns, and in less memory.
        return pq.read_table(
            self.path,
            columns=list(columns),
            read_dictionary=["object"],
            partitioning=None,
            use_threads=False,
            pre_buffer=False,
        )


class _Writer:
    """Writes a part, which is there when the block is left; after an interruption, with what was decoded until then."""

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self._folder = folder
        self._waiting: list[tuple[pa.Table, dict[str, str]]] = []
        self._etags: dict[str, str] = {}

    def __enter__(self) -> "_Writer":
        for left in self._folder.glob("*.new"):  # by a process that was killed
            if time.time() - left.stat().st_mtime > DAY_SECONDS:
                left.unlink(missing_ok=True)
        handle, name = tempfile.mkstemp(dir=self._folder, suffix=".new")
        os.close(handle)
        self._new = Path(name)
        # Ids are all different, and nobody asks for a range: dictionaries and statistics of them are only work.
        self._writer = pq.ParquetWriter(
            self._new, SCHEMA, compression="lz4", use_dictionary=["object"], write_statistics=False
        )
        return self

    def write(self, table: pa.Table, etags: dict[str, str]) -> None:
        self._waiting.append((table, etags))
        if sum(len(table) for table, _ in self._waiting) >= GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._waiting:
            tables = pa.concat_tables([table for table, _ in self._waiting])
            self._writer.write_table(tables.unify_dictionaries().combine_chunks())
            for _, etags in self._waiting:
                self._etags |= etags
            self._waiting.clear()

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        try:
            if kind is None:
                self._flush()
            content = msgspec.json.encode(_Content(VERSION, dict(sorted(self._etags.items())), whole=kind is None))
            self._writer.add_key_value_metadata({"scones": content.decode()})
            self._writer.close()
            self.path = self._folder / f"{hashlib.sha256(content).hexdigest()[:16]}.parquet"
            self._new.replace(self.path)
        except BaseException:
            self._new.unlink(missing_ok=True)
            raise


def _compact(folder: Path, objects: Objects) -> None:
    """Makes one part of a day's parts, without the rows of objects that have changed since."""
    paths = sorted(folder.glob("*.parquet"))
    parts = [part for path in paths if (part := _Part.open(path)) is not None]
    etags: dict[str, str] = {}
    tables = []
    for part in parts:
        current = {
            key: etag
            for key, etag in part.etags.items()
            if key not in etags and (key not in objects or objects[key][0] == etag)
        }
        tables.append(part.rows(set(current)))
        etags |= current
    with _Writer(folder) as writer:
        table = pa.concat_tables(tables).unify_dictionaries()
        writer.write(table.take(_order(table)), etags)
    for path in paths:
        if path != writer.path:
            path.unlink(missing_ok=True)


def _batches(objects: Objects) -> Iterator[list[str]]:
    """Keys in their order, as many at once as BATCH_BYTES and BATCH_OBJECTS let."""
    batch: list[str] = []
    size = 0
    for key in sorted(objects):
        if batch and (size + objects[key][1] > BATCH_BYTES or len(batch) == BATCH_OBJECTS):
            yield batch
            batch, size = [], 0
        batch.append(key)
        size += objects[key][1]
    if batch:
        yield batch


def _decoded(reader: Reader, batches: list[list[str]]) -> Iterator[tuple[pa.Table, set[str]]]:
    """The rows of each batch, and the keys that are gone."""
    cpus = os.cpu_count() or 1
    if len(batches) * BATCH_BYTES < PROCESSES_BYTES or cpus == 1:
        yield from (_decode_batch(reader, batch) for batch in batches)
        return
    # A fork would copy this process's threads' locks. Decoding makes no cycles, and looking for some takes its time.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(cpus, len(batches)), context, initializer=gc.disable) as processes:
        yield from processes.map(_decode_batch, [reader] * len(batches), batches)


def _decode_batch(reader: Reader, keys: list[str]) -> tuple[pa.Table, set[str]]:
    columns = Columns()
    vanished: set[str] = set()

    def read(key: str) -> bytes | str | None:
        """The content, or why it can't be read; None if it is gone."""
        try:
            return reader(key)
        except FileNotFoundError:
            return None
        except ValueError as error:
            return str(error)[:200]

    with ThreadPoolExecutor(PARALLEL_REQUESTS) as threads:
        for key, content in zip(keys, threads.map(read, keys), strict=True):
            if content is None:
                vanished.add(key)
            elif isinstance(content, str):
                columns.add_unread(key, content)
            else:
                columns.add(key, content)
    return columns.table(), vanished


def _folders(first: datetime, last: datetime) -> dict[str, list[str]]:
    """Folders below a version's prefix by day: the whole day's, or those of its hours."""
    hour = first.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    found: dict[str, list[str]] = {}
    while hour <= last:
        found.setdefault(f"{hour:%Y/%m/%d}", []).append(f"{hour:%Y/%m/%d/%H}")
        hour += timedelta(hours=1)
    return {day: [day] if len(hours) == 24 else hours for day, hours in found.items()}


def _order(rows: pa.Table) -> np.ndarray:
    """The order by object and line of rows with these two columns."""
    objects = rows["object"].combine_chunks()
    codes, names = objects.indices.to_numpy(), objects.dictionary.to_pylist()
    rank = np.empty(len(names), dtype=np.int32)
    rank[np.argsort(np.array(names, dtype=object))] = np.arange(len(names), dtype=np.int32)
    order: np.ndarray = np.lexsort((rows["line"].to_numpy(), rank[codes]))
    return order
