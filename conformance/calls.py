"""calls.yaml as types: what is called in which order, and what is expected of each answer."""

from pathlib import Path
from typing import Any, Literal

import msgspec

# How an expectation is known: by AWS's documentation, by an answer that somebody published, or by this kit's own run.
Source = Literal["documented", "observed in public", "observed on AWS"]
FILE = Path(__file__).with_name("calls.yaml")


class Expected(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an answer must have; what is not named may be anything."""

    answer: dict[str, Any] = {}
    # Members that must be there, whatever their value.
    has: list[str] = []
    error: str | None = None
    status: int | None = None
    message: str | None = None
    # Where AWS's whole sentence is not known.
    message_has: list[str] = []


class Call(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One call of a boto3 client: `service.method`, with its arguments.

    until: for a call that is made again until a member of the answer has one of these values. save: names for later
    calls, by the path of the answer's member.
    """

    name: str
    call: str
    source: Source
    reference: str
    expect: Expected
    arguments: dict[str, Any] = {}
    until: dict[str, list[Any]] = {}
    save: dict[str, str] = {}


def load() -> list[Call]:
    """All calls in their order; raises msgspec.ValidationError for a file that is none of calls."""
    return msgspec.yaml.decode(FILE.read_bytes(), type=list[Call])
