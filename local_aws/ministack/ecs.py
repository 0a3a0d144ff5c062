"""What CloudFormation does with a service of ECS on AWS and not in ministack.

A template's Number parameter is text, and CloudFormation makes it the number that a property asks for:
https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/parameters-section-structure.html
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

from ministack.services.cloudformation import provisioners


def install() -> None:
    """Puts this around ministack's functions."""
    handlers = provisioners._RESOURCE_HANDLERS["AWS::ECS::Service"]
    for name in ("create", "update"):
        handlers[name] = _with_numbers(handlers[name])


def _with_numbers(handle: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(handle)
    def handled(*arguments: Any) -> Any:
        return handle(*(_numbered(each) for each in arguments))

    return handled


def _numbered(argument: Any) -> Any:
    if isinstance(argument, dict) and isinstance(argument.get("DesiredCount"), str):
        return {**argument, "DesiredCount": int(argument["DesiredCount"])}
    return argument
