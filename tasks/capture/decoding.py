"""What a data-capture object holds, as columns: pure functions of its bytes, no AWS and no Prefect.

A line is decoded straight into the few members that count; the image in it is skipped, not built. A bad line costs that
line: it becomes a row with a reason.
"""

import base64
import gzip
import io
import zlib
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated

import msgspec
import pyarrow as pa
from msgspec import Meta, Struct

from tasks import answers
from tasks.answers import Answer

# Arrow's own allocator keeps what it once had: more than a hundred megabytes after a million records.
pa.set_memory_pool(pa.system_memory_pool())

# A row is a record (no reason), or a line that is none (a reason, no event_id). line: from 1, not counting blank ones
# if all are records; 0 if the object as a whole can't be read. confidence and predicted (index of the class) are
# null if no output was captured. outputs: how many probabilities the answer had. outlier_score: null if the answer
# tells none.
SCHEMA = pa.schema(
    [
        ("object", pa.dictionary(pa.int32(), pa.string())),
        ("line", pa.int32()),
        ("event_id", pa.string()),
        ("inference_id", pa.string()),
        ("time", pa.timestamp("us", tz="UTC")),
        ("confidence", pa.float64()),
        ("predicted", pa.int16()),
        ("outputs", pa.int16()),
        ("outlier_score", pa.float64()),
        ("reason", pa.string()),
    ]
)
GZIP = b"\x1f\x8b"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# What one object may hold, unpacked: the endpoint begins a new one long before.
MOST_BYTES = 1 << 27
TOO_LARGE = f"the object holds more than {MOST_BYTES >> 20} MiB; what is beyond is not read"

Text = Annotated[str, Meta(min_length=1, max_length=256)]


class _Output(Struct, gc=False):
    data: str
    encoding: str
    observedContentType: str | None = None  # noqa: N815 AWS's name


class _Exchange(Struct, gc=False):
    endpointOutput: _Output | None = None  # noqa: N815


class _Metadata(Struct, gc=False):
    eventId: Text  # noqa: N815
    inferenceTime: Annotated[datetime, Meta(tz=True)]  # noqa: N815
    inferenceId: Text | None = None  # noqa: N815


class Record(Struct, gc=False):
    """A line, without what nobody asks for."""

    captureData: _Exchange  # noqa: N815
    eventMetadata: _Metadata  # noqa: N815


class _NoMetadata:
    """Of a line that is no record."""

    eventId = inferenceId = inferenceTime = None  # noqa: N815


_NO_METADATA = _NoMetadata()
_LINE = msgspec.json.Decoder(Record)
# msgspec's errors and those of base64 and UTF-8 are ValueErrors but for the nesting of hostile JSON.
_BAD = (ValueError, RecursionError, msgspec.MsgspecError)


class Columns:
    """Rows of SCHEMA, gathered object by object."""

    def __init__(self) -> None:
        self._objects: list[str] = []
        self._of_object: list[int] = []
        self._lines: list[int] = []
        self._records: list[Record | None] = []
        self._answers: list[Answer | None] = []
        self._reasons: list[str | None] = []

    def add(self, key: str, content: bytes) -> None:
        """The rows of one object, plain or gzip."""
        self._objects.append(key)
        content, problem = unpacked(content)
        if problem:
            self._extend([0], [None], [None], [problem])
        try:
            records = _LINE.decode_lines(content)
            answers = [_answer(record.captureData.endpointOutput) for record in records]
        except _BAD:
            self._add_lines(content)
            return
        n = len(records)
        self._extend(range(1, n + 1), records, answers, [None] * n)

    def add_unread(self, key: str, reason: str) -> None:
        """An object that is not even tried."""
        self._objects.append(key)
        self._extend([0], [None], [None], [reason])

    def table(self) -> pa.Table:
        """All of them, in the order in which they were added."""
        metadata = [record.eventMetadata if record else _NO_METADATA for record in self._records]
        outputs = [answer.probabilities if answer else None for answer in self._answers]
        highest = [max(output) if output else None for output in outputs]
        predicted = [
            output.index(top) if output and top is not None else None
            for output, top in zip(outputs, highest, strict=True)
        ]
        columns = [
            pa.DictionaryArray.from_arrays(pa.array(self._of_object, pa.int32()), pa.array(self._objects, pa.string())),
            self._lines,
            [each.eventId for each in metadata],
            [each.inferenceId for each in metadata],
            [each.inferenceTime for each in metadata],
            highest,
            predicted,
            [output and len(output) for output in outputs],
            [answer.outlier_score if answer else None for answer in self._answers],
            self._reasons,
        ]
        arrays = [
            column if isinstance(column, pa.DictionaryArray) else pa.array(column, field.type)
            for column, field in zip(columns, SCHEMA, strict=True)
        ]
        return pa.table(arrays, schema=SCHEMA)

    def _add_lines(self, content: bytes) -> None:
        """Line by line, so that one that can't be decoded takes none of its neighbours with it."""
        for number, line in enumerate(content.split(b"\n"), 1):
            if not line.strip():
                continue
            record = answer = reason = None
            try:
                record = _LINE.decode(line)
                answer = _answer(record.captureData.endpointOutput)
            except _BAD as error:
                record, reason = None, f"{type(error).__name__}: {error}"[:200]
            self._extend([number], [record], [answer], [reason])

    def _extend(
        self,
        lines: Sequence[int],
        records: Sequence[Record | None],
        answers: Sequence[Answer | None],
        reasons: Sequence[str | None],
    ) -> None:
        self._of_object += [len(self._objects) - 1] * len(lines)
        self._lines += lines
        self._records += records
        self._answers += answers
        self._reasons += reasons


def decode(key: str, content: bytes) -> pa.Table:
    """The rows of one object."""
    columns = Columns()
    columns.add(key, content)
    return columns.table()


def _answer(output: _Output | None) -> Answer | None:
    """The answer; None if no output was captured. Raises ValueError, or msgspec's, if it is something else."""
    if output is None:
        return None
    if output.encoding == "JSON":
        return answers.decode(output.data)
    text = output.data
    if output.encoding == "BASE64":
        text = base64.b64decode(text, validate=True).decode()
    elif output.encoding != "CSV":
        raise ValueError(f"the encoding {output.encoding[:20]!r} is none of JSON, CSV and BASE64")
    kind, _, _ = (output.observedContentType or "").partition(";")
    if output.encoding == "CSV" or kind.strip().lower() == "text/csv":
        text = f"[{text.strip()}]"
    return answers.decode(text)


def unpacked(content: bytes) -> tuple[bytes, str | None]:
    """The content as far as it can be unpacked, MOST_BYTES at most, and what is wrong with the rest."""
    if content[:2] == GZIP:
        unpacked = bytearray()
        packed = gzip.GzipFile(fileobj=io.BytesIO(content))
        try:
            while len(unpacked) <= MOST_BYTES and (piece := packed.read1(1 << 20)):
                unpacked += piece
        except (OSError, EOFError, zlib.error) as error:
            return bytes(unpacked), f"the gzip file is broken: {error}"
        content = bytes(unpacked)
    if len(content) > MOST_BYTES:
        return content[: content.rfind(b"\n", 0, MOST_BYTES) + 1], TOO_LARGE
    return content.removeprefix(BYTE_ORDER_MARK), None
