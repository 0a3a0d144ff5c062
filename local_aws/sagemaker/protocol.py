"""Requests checked and answers shaped by botocore's own description of the SageMaker API."""

import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import botocore.session
from botocore.model import ListShape, MapShape, OperationModel, ServiceModel, Shape, StringShape, StructureShape

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


class ValidationException(ApiError):
    """A bad parameter or, as SageMaker has it, a resource that does not exist."""

    def __init__(self, message: str) -> None:
        super().__init__("ValidationException", message)


class ResourceInUse(ApiError):
    """A resource of that name exists, or is in a state that forbids the operation."""

    def __init__(self, message: str) -> None:
        super().__init__("ResourceInUse", message)


@cache
def service_model() -> ServiceModel:
    model: ServiceModel = botocore.session.get_session().get_service_model("sagemaker")
    return model


def operation(name: str) -> OperationModel:
    """The description of one operation; raises ApiError (UnknownOperationException) where AWS has none of that name."""
    if name not in service_model().operation_names:
        raise ApiError("UnknownOperationException", f"SageMaker has no operation {name!r}")
    return service_model().operation_model(name)


def validate(shape: Shape, value: Any) -> None:
    """Raises ValidationException that lists every constraint of `shape` that `value` breaks."""
    problems = list(_problems(shape, value, ""))
    if problems:
        count = f"{len(problems)} validation error{'s' if len(problems) > 1 else ''} detected: "
        raise ValidationException(count + "; ".join(problems))


def shaped(shape: Shape, value: Any) -> Any:
    """`value` reduced to the members that `shape` has; members that are None are left out."""
    if isinstance(shape, StructureShape) and isinstance(value, dict):
        members = shape.members
        return {
            name: shaped(members[name], member)
            for name, member in value.items()
            if name in members and member is not None
        }
    if isinstance(shape, ListShape):
        return [shaped(shape.member, item) for item in value]
    return value


def _problems(shape: Shape, value: Any, path: str) -> Iterator[str]:
    expected = PYTHON_TYPES[shape.type_name]
    if not isinstance(value, expected) or (isinstance(value, bool) and shape.type_name != "boolean"):
        yield f"Value at '{path}' failed to satisfy constraint: Member must be of type {shape.type_name}"
        return
    if isinstance(shape, StructureShape):
        for name in shape.required_members:
            if value.get(name) is None:
                where = _join(path, name)
                yield f"Value null at '{where}' failed to satisfy constraint: Member must not be null"
        for name, member in value.items():
            if name in shape.members and member is not None:
                yield from _problems(shape.members[name], member, _join(path, name))
        return
    yield from _out_of_bounds(shape, value, path)
    if isinstance(shape, ListShape):
        for index, item in enumerate(value, start=1):
            yield from _problems(shape.member, item, f"{path}.{index}.member")
    elif isinstance(shape, MapShape):
        for key, item in value.items():
            yield from _problems(shape.key, key, f"{path}.{key}.key")
            yield from _problems(shape.value, item, f"{path}.{key}")
    elif isinstance(shape, StringShape):
        if shape.enum and value not in shape.enum:
            yield (
                f"Value '{value}' at '{path}' failed to satisfy constraint: "
                f"Member must satisfy enum value set: {shape.enum}"
            )
        pattern = shape.metadata.get("pattern")
        if pattern and not _matches(pattern, value):
            yield (
                f"Value '{value}' at '{path}' failed to satisfy constraint: "
                f"Member must satisfy regular expression pattern: {pattern}"
            )


def _out_of_bounds(shape: Shape, value: Any, path: str) -> Iterator[str]:
    bounded = value if shape.type_name in ("integer", "long", "float", "double") else None
    word = "value"
    if shape.type_name in ("string", "list", "map"):
        bounded, word = len(value), "length"
    if bounded is None:
        return
    low, high = shape.metadata.get("min"), shape.metadata.get("max")
    if low is not None and bounded < low:
        relation = f"Member must have {word} greater than or equal to {low}"
        yield f"Value at '{path}' failed to satisfy constraint: {relation}"
    if high is not None and bounded > high:
        yield f"Value at '{path}' failed to satisfy constraint: Member must have {word} less than or equal to {high}"


@cache
def _compiled(pattern: str) -> re.Pattern[str] | None:
    try:
        return re.compile(pattern)
    except re.error:  # a Java pattern, such as \p{L}, that Python cannot compile
        return None


def _matches(pattern: str, value: str) -> bool:
    compiled = _compiled(pattern)
    return compiled is None or compiled.fullmatch(value) is not None


def _join(path: str, name: str) -> str:
    camel = name[:1].lower() + name[1:]
    return f"{path}.{camel}" if path else camel
