"""Requests checked and answers shaped by botocore's own description of the SageMaker API."""

import json
from collections.abc import Iterator
from functools import cache
from typing import Any, NoReturn

import botocore.session
import regex
from botocore.model import ListShape, MapShape, OperationModel, ServiceModel, Shape, StringShape, StructureShape

PATTERN_SECONDS = 1.0

PYTHON_TYPES: dict[str, Any] = {
    "structure": dict,
    "map": dict,
    "list": list,
    "string": str,
    "integer": int,
    "long": int,
    "float": (int, float),
    "double": (int, float),
    "boolean": bool,
    "timestamp": (int, float),
    "blob": str,
}


class ApiError(Exception):
    """An error answer: AWS's code, a message and the HTTP status."""

    def __init__(self, code: str, message: str, status: int = 400, **fields: Any) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status
        self.fields = fields


class NamedError(ApiError):
    """An error whose code is the name of its class."""

    def __init__(self, message: str) -> None:
        super().__init__(type(self).__name__, message)


class ValidationException(NamedError):
    """A bad parameter or, as SageMaker has it, a resource that does not exist."""


class SerializationException(NamedError):
    """The request is not JSON, or a value of it has another type than the API says."""


class ResourceInUse(NamedError):
    """A resource of that name exists."""


class ResourceLimitExceeded(NamedError):
    """More of something than this server was told to run."""


class ConflictException(NamedError):
    """The resource can't be changed as long as another one depends on it."""


@cache
def service_model(service: str = "sagemaker") -> ServiceModel:
    """What botocore knows of a service: its operations and their shapes."""
    model: ServiceModel = botocore.session.get_session().get_service_model(service)
    return model


def operation(name: str, service: str = "sagemaker") -> OperationModel:
    """The description of one operation; raises ApiError (UnknownOperationException) if AWS has none of that name."""
    model = service_model(service)
    if name not in model.operation_names:
        raise ApiError("UnknownOperationException", f"{model.metadata['serviceId']} has no operation {name!r}")
    return model.operation_model(name)


def parse(body: bytes) -> dict[str, Any]:
    """The JSON object of a request; raises SerializationException."""

    def no_number(text: str) -> NoReturn:
        raise ValueError(f"{text} is no JSON number")

    try:
        payload = json.loads(body or b"{}", parse_constant=no_number)
        json.dumps(payload, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise SerializationException(f"the request is not JSON: {error}") from error
    if not isinstance(payload, dict):
        raise SerializationException("the request is not a JSON object")
    return payload


def validate(shape: Shape, value: Any, path: str = "") -> None:
    """Raises SerializationException for a wrong type, else ValidationException with every constraint that is broken."""
    problems = list(_problems(shape, value, path))
    if problems:
        count = f"{len(problems)} validation error{'s' if len(problems) > 1 else ''} detected: "
        raise ValidationException(count + "; ".join(problems))


def shaped(shape: Shape, value: Any) -> Any:
    """`value` reduced to the members that `shape` has; members that are None are left out."""
    if isinstance(shape, StructureShape):
        members = shape.members
        return {
            name: shaped(members[name], member)
            for name, member in value.items()
            if name in members and member is not None
        }
    if isinstance(shape, ListShape):
        return [shaped(shape.member, item) for item in value]
    return value


def matches(pattern: str, value: str) -> bool:
    """Whether a value is of the API's pattern, which is one of Java's; True if the match takes too long to tell."""
    try:
        return _compiled(pattern).fullmatch(value, timeout=PATTERN_SECONDS) is not None
    except TimeoutError:
        return True


@cache
def _compiled(pattern: str) -> regex.Pattern[str]:
    # Java's names for ASCII ranges, within brackets and without; and its characters beyond the first 65,536, which it
    # writes as two halves.
    for java, python in (
        (r"[\p{Print}]", r"[\x20-\x7e]"),
        (r"\p{Print}", r"[\x20-\x7e]"),
        (r"\p{ASCII}", r"[\x00-\x7f]"),
        (r"\z", r"\Z"),
        (r"\uD800\uDC00-\uDBFF\uDFFF", r"\U00010000-\U0010FFFF"),
    ):
        pattern = pattern.replace(java, python)
    return regex.compile(pattern)


def _problems(shape: Shape, value: Any, path: str) -> Iterator[str]:
    expected = PYTHON_TYPES[shape.type_name]
    if not isinstance(value, expected) or (isinstance(value, bool) and shape.type_name != "boolean"):
        raise SerializationException(f"{path or 'the request'}: {type(value).__name__} is no {shape.type_name}")
    if isinstance(shape, StructureShape):
        for name in shape.required_members:
            if value.get(name) is None:
                yield f"Value null at '{_join(path, name)}' failed to satisfy constraint: Member must not be null"
        for name, member in value.items():
            if name in shape.members and member is not None:
                yield from _problems(shape.members[name], member, _join(path, name))
        return
    yield from (
        f"Value '{_shown(value)}' at '{path}' failed to satisfy constraint: {rule}"
        for rule in _broken_rules(shape, value)
    )
    if isinstance(shape, ListShape):
        for index, item in enumerate(value, start=1):
            yield from _problems(shape.member, item, f"{path}.{index}.member")
    elif isinstance(shape, MapShape):
        for key, item in value.items():
            yield from _problems(shape.key, key, f"{path}.{key}.key")
            yield from _problems(shape.value, item, f"{path}.{key}")


def _shown(value: Any) -> str:
    return (value if isinstance(value, str) else json.dumps(value))[:200]


def _broken_rules(shape: Shape, value: Any) -> Iterator[str]:
    size, word = (value, "value") if isinstance(value, (int, float)) else (None, "length")
    if isinstance(value, (str, list, dict)):
        size = len(value)
    low, high = shape.metadata.get("min"), shape.metadata.get("max")
    if low is not None and size < low:
        yield f"Member must have {word} greater than or equal to {low}"
    if high is not None and size > high:
        yield f"Member must have {word} less than or equal to {high}"
    if isinstance(shape, StringShape):
        if shape.enum and value not in shape.enum:
            yield f"Member must satisfy enum value set: [{', '.join(shape.enum)}]"
        pattern = shape.metadata.get("pattern")
        if pattern and not matches(pattern, value):
            yield f"Member must satisfy regular expression pattern: {pattern}"


def _join(path: str, name: str) -> str:
    camel = name[:1].lower() + name[1:]
    return f"{path}.{camel}" if path else camel
