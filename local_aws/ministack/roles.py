"""What IAM and STS refuse on AWS and ministack lets pass when a service assumes a role.

ministack knows a service by nothing: the SageMaker server calls it with the account's own key. So a session of the name
that it chooses is held to be SageMaker's.
"""

import dataclasses
import json
from collections.abc import Callable
from datetime import UTC, datetime
from functools import wraps
from typing import Any

from ministack.core import iam_evaluator
from ministack.services import iam

# `RoleSessionName` of local_sagemaker's sessions, and who it stands for.
SERVICES = {"SageMaker": "sagemaker.amazonaws.com"}


def install(role_delay: float) -> None:
    """Puts the checks around ministack's evaluation of trust policies.

    role_delay: seconds from a role's creation until it can be assumed.
    https://docs.aws.amazon.com/IAM/latest/UserGuide/troubleshoot.html#troubleshoot_general_eventual-consistency
    """
    iam_evaluator.evaluate_trust_policy = _strictly(iam_evaluator.evaluate_trust_policy, role_delay)


def _strictly(trusts: Callable[..., bool], delay: float) -> Callable[..., bool]:
    @wraps(trusts)
    def checked(document: Any, caller: str, context: Any = None) -> bool:
        if context is None:
            return trusts(document, caller)
        role = iam._roles.get(context.resource_arn.rsplit("/", 1)[-1])
        if role and _age(role) < delay:
            return False
        service = SERVICES.get(context.service_context.get("sts:rolesessionname") or "")
        if service and caller.endswith(":root"):
            document = _of_service(document, service)
            # What the service tells of itself: https://docs.aws.amazon.com/IAM/latest/UserGuide/confused-deputy.html
            source = {"aws:sourceaccount": context.principal_account}
            context = dataclasses.replace(context, service_context={**context.service_context, **source})
        return trusts(document, caller, context)

    return checked


def _age(role: dict[str, Any]) -> float:
    """Seconds since a role was created."""
    return (datetime.now(UTC) - datetime.fromisoformat(role["CreateDate"])).total_seconds()


def _of_service(document: Any, service: str) -> dict[str, Any]:
    """A trust policy's statements about one service."""
    document = json.loads(document) if isinstance(document, str) else document
    statements = document.get("Statement", [])
    statements = [statements] if isinstance(statements, dict) else statements
    return {**document, "Statement": [each for each in statements if service in _services(each)]}


def _services(statement: dict[str, Any]) -> list[str]:
    principal = statement.get("Principal", {})
    named = principal.get("Service", []) if isinstance(principal, dict) else []
    return [named] if isinstance(named, str) else named
