"""The images in capture records: a sample of what the endpoint was asked in a window of time."""

import base64
import hashlib
from collections.abc import Sequence
from datetime import datetime

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from tasks.capture.archive import CaptureArchive
from tasks.capture.decoding import unpacked
from tasks.capture.window import SMOKE, Window

# Objects that are read for it; an endpoint writes some thousand records into each.
MOST_OBJECTS = 50


class _Input(msgspec.Struct, gc=False):
    data: str
    encoding: str


class _Exchange(msgspec.Struct, gc=False):
    endpointInput: _Input | None = None  # noqa: N815 AWS's name


class _Metadata(msgspec.Struct, gc=False):
    inferenceTime: datetime  # noqa: N815
    inferenceId: str | None = None  # noqa: N815


class _Line(msgspec.Struct, gc=False):
    captureData: _Exchange  # noqa: N815
    eventMetadata: _Metadata  # noqa: N815


_decode = msgspec.json.Decoder(_Line).decode


def sample(
    archives: Sequence[tuple[str, CaptureArchive]], window: Window, wanted: Sequence[str], most: int
) -> list[bytes]:
    """Up to `most` pictures that the endpoint was sent, each once however often it was sent, the same ones each time.

    wanted: inference ids that count; all but those of smoke tests if there are none. Lines that are no records, and
    records without a picture, are left out.
    """
    chosen, found = set(wanted), dict[bytes, bytes]()  # by the digest of the content
    for _, archive in archives:
        objects, reader = _objects(archive, window, wanted), archive.reader()
        for key in sorted(objects, key=_mixed)[:MOST_OBJECTS]:
            try:
                content, _ = unpacked(reader(key))
            except (FileNotFoundError, ValueError):
                continue
            for line in content.splitlines():
                picture = _picture(line, window, chosen)
                if picture is not None:
                    found[hashlib.sha256(picture).digest()] = picture
            if len(found) >= 2 * most:
                break
    return [found[digest] for digest in sorted(found)[:most]]


def _objects(archive: CaptureArchive, window: Window, wanted: Sequence[str]) -> set[str]:
    """Keys of the window's objects, or of those with records that are wanted."""
    found: set[str] = set()
    for day in archive.days(window.first, window.last):
        rows = day.read("object", "inference_id")
        if wanted:
            rows = rows.filter(pc.is_in(rows["inference_id"], pa.array(wanted, pa.string())))
        found.update(pc.unique(rows["object"].cast(pa.string())).to_pylist())
    return found


def _picture(line: bytes, window: Window, wanted: set[str]) -> bytes | None:
    """The picture of a record; None if it does not count."""
    try:
        record = _decode(line)
        sent, name = record.captureData.endpointInput, record.eventMetadata.inferenceId or ""
        inside = window.first <= record.eventMetadata.inferenceTime <= window.last
        if sent is None or sent.encoding != "BASE64" or not inside:
            return None
        if name not in wanted if wanted else name.startswith(SMOKE):
            return None
        return base64.b64decode(sent.data, validate=True)
    except (ValueError, TypeError, RecursionError, msgspec.MsgspecError):  # a time without a zone is a TypeError
        return None


def _mixed(text: str) -> bytes:
    """Sorts texts in an order that has nothing to do with them."""
    return hashlib.sha256(text.encode()).digest()
