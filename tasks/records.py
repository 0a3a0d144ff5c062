"""The base of all records: JSON that this project writes and reads again, or that others read.

A record's type says what is in the file, docs/schemas/ says the same to other programs (`make schemas` writes it), and
what is read is checked against it, so that a wrong file is named and not half understood.
"""

import json
from typing import Any, Self

import msgspec

from settings import SCHEMA_VERSION
from tasks.errors import SconesError


class RecordError(SconesError):
    """A file does not hold what its type says; the message names the file and what is wrong in it."""


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """A JSON object within a record."""


class Record(Part, frozen=True, kw_only=True):
    """A JSON object with the version of its schema.

    Members that later releases added have defaults, so that files of earlier releases of the same version are read.
    """

    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> dict[str, Any]:
        """The record as JSON's own types."""
        content: dict[str, Any] = msgspec.to_builtins(self)
        return content

    @classmethod
    def from_json(cls, content: Any, source: str) -> Self:
        """The record that was read from `source`. Raises RecordError if it is another, or of a later version."""
        version = content.get("schema_version") if isinstance(content, dict) else None
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise RecordError(
                f"{source} is of schema version {version}, and this release reads {SCHEMA_VERSION}",
                "use the release that wrote it, or a later one",
            )
        if version != SCHEMA_VERSION:
            raise RecordError(f"{source} says no schema version that was ever written: {version!r}")
        try:
            return msgspec.convert(content, cls)
        except msgspec.ValidationError as error:
            raise RecordError(f"{source} is no {cls.__name__}: {error}") from error
        except UnicodeEncodeError as error:  # half of a pair of surrogates, which JSON may escape
            raise RecordError(f"{source} is no text") from error

    @classmethod
    def parse(cls, content: bytes, source: str) -> Self:
        """The same from the bytes of a JSON document."""
        try:
            decoded = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise RecordError(f"{source} is no JSON: {error}") from error
        return cls.from_json(decoded, source)
