"""Which images a bulk run classifies: a prefix's, or those of somebody's manifest, as a manifest of our own."""

import csv
import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from tasks.aws import storage
from tasks.errors import SconesError
from tasks.evaluation.results import inference_id
from tasks.records import Record
from tasks.run import Run

MAX_KEY_BYTES = 1024
# Suffixes of manifests, by which their format is known.
FORMATS = (".jsonl", ".csv", ".parquet")
PARQUET_ROWS = 10_000


class ManifestError(SconesError):
    """The images can't be listed; the message names the line and what is wrong in it."""


class BulkImage(Record, frozen=True, kw_only=True):
    """A line of bulk/DATE/RUN/manifest.jsonl. etag: of the object that is meant; None for whichever is there."""

    inference_id: str
    key: str
    etag: str | None
    label: str | None


@dataclass(frozen=True)
class Source:
    """Where images come from: all objects below a prefix of the bucket, or the lines of a manifest in it."""

    key: str
    is_prefix: bool
    lines: tuple["Line", ...] | None = None  # those of the manifest, if they are known already

    @classmethod
    def of(cls, bucket: str, prefix: str | None, manifest: str | None, date: str) -> "Source":
        """`{{ date }}` or `{date}` in either stands for the run's date. Raises ManifestError unless one is given."""
        if bool(prefix) == bool(manifest):
            raise ManifestError("one of prefix and manifest says which images to classify", "give one of them")
        text = str(prefix or manifest)
        for placeholder in ("{{ date }}", "{{date}}", "{date}"):
            text = text.replace(placeholder, date)
        if text.startswith("s3://"):
            named, _, key = text.removeprefix("s3://").partition("/")
            if named != bucket:
                raise ManifestError(
                    f"{text} is in another bucket than the installation's, {bucket}, and its functions may not read it",
                    f"copy the images below s3://{bucket}/incoming/",
                )
            text = key
        if manifest and not text.endswith(FORMATS):
            raise ManifestError(f"{text} is no manifest by its name, which ends in {', '.join(FORMATS)}")
        return cls(text, is_prefix=bool(prefix))


class Line(msgspec.Struct, frozen=True):
    """A line of somebody's manifest."""

    key: str
    label: str | None = None
    etag: str | None = None


def write(bucket: str, source: Source, run: Run, classes: tuple[str, ...], file: Path) -> None:
    """Writes the run's manifest to a local file, a line per image, each image once.

    Raises ManifestError for a line that is no image, for an image with two labels or ETags, and if there is no image.
    """
    given = file.with_suffix(".given")
    if source.is_prefix:
        lines = _listed(bucket, source.key)
        repeated: set[int] = set()
    elif source.lines is not None:
        lines, repeated = iter(source.lines), set()
    else:
        if not storage.download(bucket, source.key, given):
            raise ManifestError(f"there is no manifest s3://{bucket}/{source.key}", "upload it first")
        repeated = _repeated(line for _, line in _read(given, source.key, bucket, classes))
        lines = (line for _, line in _read(given, source.key, bucket, classes))
    seen: dict[int, Line] = {}
    written = 0
    encoder = msgspec.json.Encoder()
    with file.open("wb") as target:
        for line in lines:
            before = seen.setdefault(digest, line) if (digest := _digest(line.key)) in repeated else line
            if before != line:
                raise ManifestError(f"{source.key} has {line.key} twice, with different labels or ETags")
            if before is not line:
                continue
            image = BulkImage(
                inference_id=inference_id(run.id, line.key, 1), key=line.key, etag=line.etag, label=line.label
            )
            target.write(encoder.encode(image) + b"\n")
            written += 1
    given.unlink(missing_ok=True)
    if not written:
        raise ManifestError(f"there is no image in s3://{bucket}/{source.key}", "upload the images first")


def read(file: Path) -> Iterator[BulkImage]:
    """The images of a run's manifest. Raises ManifestError for a line that is none."""
    decoder = msgspec.json.Decoder(BulkImage)
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield decoder.decode(line)
            except msgspec.MsgspecError as error:
                raise ManifestError(f"line {number} of the run's manifest is no image of ours: {error}") from error


def _listed(bucket: str, prefix: str) -> Iterator[Line]:
    for key, etag in storage.iterate_etags(bucket, prefix):
        if not key.endswith("/"):  # what consoles make of a folder
            yield Line(key, etag=etag)


def _read(file: Path, name: str, bucket: str, classes: tuple[str, ...]) -> Iterator[tuple[int, Line]]:
    """Lines of somebody's manifest with their numbers, checked."""
    for number, row in _rows(file, name):
        try:
            if not isinstance(row, dict):
                raise ValueError("it is no object")
            line = msgspec.convert({key: row.get(key) or None for key in ("key", "label", "etag")}, Line)
            key = line.key.removeprefix(f"s3://{bucket}/")
            if key.startswith("s3://") or len(key.encode()) > MAX_KEY_BYTES:
                raise ValueError(f"{key[:100]!r} is no key of an object in {bucket}")
            if line.label is not None and line.label not in classes:
                raise ValueError(f"its label {line.label[:50]!r} is none of {', '.join(classes)}")
            yield number, Line(key, line.label, line.etag.strip('"') if line.etag else None)
        except (ValueError, UnicodeError) as error:  # of which msgspec's ValidationError is one
            raise ManifestError(f"line {number} of {name} is no image: {error}", "mend the manifest") from error


def _rows(file: Path, name: str) -> Iterator[tuple[int, Any]]:
    try:
        if name.endswith(".parquet"):
            import pyarrow.parquet as pq  # for this format only

            batches = pq.ParquetFile(file).iter_batches(PARQUET_ROWS)
            yield from enumerate((row for batch in batches for row in batch.to_pylist()), 1)
        elif name.endswith(".csv"):
            with file.open(encoding="utf-8-sig", newline="") as text:
                rows = csv.DictReader(text, strict=True)
                if "key" not in (rows.fieldnames or []):
                    raise ManifestError(f"the first line of {name} names no column key: {rows.fieldnames}")
                for row in rows:
                    yield rows.line_num, row
        else:
            with file.open("rb") as lines:
                for number, line in enumerate(lines, 1):
                    if line.strip():
                        yield number, _decoded(line, number, name)
    except (OSError, ValueError, csv.Error) as error:  # pyarrow's errors are ValueErrors
        raise ManifestError(f"{name} can't be read as {name.rsplit('.', 1)[1]}: {str(error)[:200]}") from error


def _decoded(line: bytes, number: int, name: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"line {number} of {name} is no JSON: {line[:100]!r}", "mend the manifest") from error


def _repeated(lines: Iterable[Line]) -> set[int]:
    """Digests of keys that stand there more than once, in 8 bytes a line."""
    digests = np.frombuffer(array("Q", (_digest(line.key) for line in lines)), dtype=np.uint64).copy()
    digests.sort()
    return {int(each) for each in digests[1:][digests[1:] == digests[:-1]]}


def _digest(key: str) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
