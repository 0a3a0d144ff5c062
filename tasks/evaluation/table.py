"""Results as a Parquet data set: written row by row in bounded memory, and read again."""

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.json as pj
import pyarrow.parquet as pq

from tasks.aws import storage
from tasks.evaluation.results import Result

# As in tasks/capture/decoding.py: Arrow's own allocator keeps what it once had.
pa.set_memory_pool(pa.system_memory_pool())

# Rows that are held in memory, and of a file.
GROUP_ROWS = 5_000
FILE_ROWS = 1_000_000
_TEXTS = (
    "execution_arn",
    "label",
    "predicted_class",
    "error",
    "cause",
    "failed_state",
    "started",
    "stopped",
    "sent_as",
)
SCHEMA = pa.schema(
    [
        pa.field("schema_version", pa.int32(), nullable=False),
        pa.field("inference_id", pa.string(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("attempt", pa.int32(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("confidence", pa.float64()),
        pa.field("outlier_score", pa.float64()),
        pa.field("probabilities", pa.list_(pa.float64())),
        pa.field("threshold", pa.float64(), nullable=False),
        pa.field("model_version", pa.string(), nullable=False),
        *(pa.field(name, pa.string()) for name in _TEXTS),
        # JSON of earlier results of the same image; null if there are none.
        pa.field("previous_attempts", pa.string()),
    ]
)


def write(bucket: str, prefix: str, results: Iterable[Result], folder: Path) -> int:
    """Uploads PREFIXpart-00000.parquet and so on, by way of a local folder; returns how many rows there are."""
    remaining, local = iter(results), folder / "part.parquet"
    rows = files = 0
    group = list(islice(remaining, GROUP_ROWS))
    while group or not files:
        in_file = 0
        with pq.ParquetWriter(local, SCHEMA, compression="zstd") as writer:
            while group and in_file < FILE_ROWS:
                writer.write_table(_table(group))
                in_file += len(group)
                group = list(islice(remaining, GROUP_ROWS))
        storage.put_file(bucket, f"{prefix}part-{files:05}.parquet", local)
        rows, files = rows + in_file, files + 1
    return rows


def read(bucket: str, prefix: str, folder: Path) -> Iterator[Result]:
    """The results in their order."""
    local = folder / "part.parquet"
    for key in sorted(storage.list_etags(bucket, prefix)):
        storage.download(bucket, key, local)
        for batch in pq.ParquetFile(local).iter_batches(GROUP_ROWS):
            for row in batch.to_pylist():
                row["previous_attempts"] = json.loads(row["previous_attempts"] or "[]")
                yield msgspec.convert(row, Result)


def _table(results: list[Result]) -> pa.Table:
    """By way of JSON lines: pyarrow loads pandas, 75 MB, for any list of Python's that it is given."""
    names = [name for name in SCHEMA.names if name != "previous_attempts"]
    lines = []
    for row in results:
        earlier = _encode(row.previous_attempts).decode() if row.previous_attempts else None
        lines.append(_encode({**{name: getattr(row, name) for name in names}, "previous_attempts": earlier}))
    text = b"\n".join(lines)
    read = pj.ReadOptions(use_threads=False, block_size=len(text) + 1)
    parse = pj.ParseOptions(explicit_schema=_NULLABLE, unexpected_field_behavior="error")
    return pj.read_json(pa.BufferReader(text), read, parse).select(SCHEMA.names).cast(SCHEMA)


_encode = msgspec.json.Encoder().encode
# pyarrow's reader of JSON takes no other.
_NULLABLE = pa.schema([field.with_nullable(True) for field in SCHEMA])
