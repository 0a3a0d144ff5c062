"""Answers made comparable: names and numbers that differ from run to run are replaced by what they stand for."""

import json
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from conformance.calls import Expected

# Beside the members of an answer, none of which is named so.
ERROR, STATUS, MESSAGE = "$error", "$status", "$message"
# Longer ones first: what stands for a part of them must not be replaced before.
PATTERNS = (
    (r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "UUID"),
    (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:?\d\d)?", "TIME"),
)


def normalized(value: Any, known: Mapping[str, str]) -> Any:
    """A value with the names in `known` (what is replaced: what for), times and UUIDs replaced."""
    if isinstance(value, dict):
        return {str(key): normalized(member, known) for key, member in value.items() if key != "ResponseMetadata"}
    if isinstance(value, list | tuple):
        return [normalized(member, known) for member in value]
    if isinstance(value, datetime):
        return "TIME"
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if not isinstance(value, str):
        return value
    for text, name in sorted(known.items(), key=lambda pair: -len(pair[0])):
        value = value.replace(text, name)
    for pattern, name in PATTERNS:
        value = re.sub(pattern, name, value)
    return value


def differences(expected: Expected, answer: dict[str, Any]) -> list[str]:
    """What is otherwise in a normalized answer, which has error code, HTTP status and message beside its members."""
    error, status, message = (answer.get(name) for name in (ERROR, STATUS, MESSAGE))
    if error != expected.error:
        told = f"{error}: {message}" if error else _short(answer)
        return [f"{expected.error or 'an answer'} is expected, and got {told}"]
    found = []
    if expected.status is not None and status != expected.status:
        found.append(f"status {expected.status} is expected, and got {status}")
    if expected.message is not None and message != expected.message:
        found.append(f"the message {expected.message!r} is expected, and got {message!r}")
    found += [f"the message has no {text!r}: {message!r}" for text in expected.message_has if text not in str(message)]
    found += [f"there is no {name}" for name in expected.has if answer.get(name) is None]
    return found + list(_unequal(expected.answer, answer, ""))


def _unequal(expected: Any, actual: Any, path: str) -> Iterator[str]:
    if isinstance(expected, dict) and isinstance(actual, dict):
        for name, value in expected.items():
            yield from _unequal(value, actual.get(name), f"{path}.{name}" if path else name)
    elif isinstance(expected, list) and isinstance(actual, list) and len(expected) == len(actual):
        for index, pair in enumerate(zip(expected, actual, strict=True)):
            yield from _unequal(*pair, path=f"{path}[{index}]")
    elif expected != actual:
        yield f"{path}: {_short(expected)} is expected, and got {_short(actual)}"


def _short(value: Any) -> str:
    return json.dumps(value, default=str)[:300]
