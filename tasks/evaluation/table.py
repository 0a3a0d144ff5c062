"""Results as a Parquet data set: written row by row in bounded memory, and read again."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.aws import storage
from tasks.evaluation.results import Result

# Rows that are held in memory, and of a file.
GROUP_ROWS = 20_000
FILE_ROWS = 1_000_000
_TEXTS = ("execution_arn", "label", "predicted_class", "error", "cause", "failed_state", "started", "stopped")
SCHEMA = pa.schema(
    [
        pa.field("schema_version", pa.int32(), nullable=False),
        pa.field("inference_id", pa.string(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("attempt", pa.int32(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("confidence", pa.float64()),
        pa.field("threshold", pa.float64(), nullable=False),
        pa.field("model_version", pa.string(), nullable=False),
        *(pa.field(name, pa.string()) for name in _TEXTS),
        # JSON of earlier results of the same image; null if there are none.
        pa.field("previous_attempts", pa.string()),
    ]
)


def write(bucket: str, prefix: str, results: Iterable[Result], folder: Path) -> int:
    """Uploads PREFIXpart-00000.parquet and so on, by way of a local folder; returns how many rows there are."""
    rows = files = 0
    writer: pq.ParquetWriter | None = None
    group: list[Result] = []
    local = folder / "part.parquet"

    def finish() -> None:
        nonlocal writer, files
        if writer is not None:
            writer.close()
            storage.put_file(bucket, f"{prefix}part-{files:05}.parquet", local)
            writer, files = None, files + 1

    def flush() -> None:
        nonlocal writer
        if writer is None:
            writer = pq.ParquetWriter(local, SCHEMA, compression="zstd")
        writer.write_table(_table(group))
        group.clear()

    for result in results:
        group.append(result)
        rows += 1
        if len(group) == GROUP_ROWS:
            flush()
        if rows % FILE_ROWS == 0:
            finish()
    if group or not rows:
        flush()
    finish()
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
    columns = {name: [getattr(row, name) for row in results] for name in SCHEMA.names if name != "previous_attempts"}
    columns["previous_attempts"] = [
        msgspec.json.encode(row.previous_attempts).decode() if row.previous_attempts else None for row in results
    ]
    return pa.table(columns, schema=SCHEMA)
