"""Tells the SageMaker server what the policies of a caller allow, as `local_sagemaker.authorization` asks it."""

import json
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any

from ministack.core import iam_evaluator, responses, sigv4

from local_aws.config import AUTHORIZER_PATH

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Coroutine[Any, Any, None]]


def with_authorizer(app: Application) -> Application:
    """The ASGI application with one more path."""

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != AUTHORIZER_PATH:
            await app(scope, receive, send)
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        try:
            status, answer = 200, decide(json.loads(body))
        except (ValueError, KeyError, TypeError) as error:
            status, answer = 400, {"error": {"code": "BadRequest", "message": repr(error)}}
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps(answer).encode()})

    return application


def decide(question: dict[str, Any]) -> dict[str, Any]:
    """The answer to one question, which names an access key and the requests that its owner makes."""
    if "scope" in question:
        return _signing_key(question["accessKeyId"], question["scope"])
    principal = iam_evaluator.resolve_principal(question["accessKeyId"], responses.get_account_id())
    if isinstance(principal, iam_evaluator.AuthError):
        return {"error": {"code": principal.code, "message": principal.message}}
    decisions = [
        "Allow"
        if principal.policies is None  # the account's root user
        else _decision(principal.arn, principal.type, request, principal.policies, principal.limits, principal.keys)
        for request in question["requests"]
    ]
    return {"principal": principal.arn, "decisions": decisions}


def _signing_key(access_key: str, scope: dict[str, Any]) -> dict[str, Any]:
    """The key that signs requests of one day, region and service, if the access key and its session token are known."""
    account = responses._account_from_sts_session(access_key) or responses.get_account_id()
    known = iam_evaluator.resolve_credential(access_key, account, scope["token"] or "")
    if isinstance(known, iam_evaluator.CredentialResolutionError):
        return {"error": {"code": known.code, "message": known.message}}
    key = sigv4.derive_signing_key(known.secret_access_key, scope["date"], scope["region"], scope["service"])
    return {"signingKey": key.hex()}


def role_decision(role_arn: str, session: str, action: str, resource: str) -> tuple[str, str]:
    """What a role's policies say of an action, and the principal that a session of it is."""
    account, name = role_arn.split(":")[4], role_arn.rsplit("/", 1)[-1]
    principal = f"arn:aws:sts::{account}:assumed-role/{name}/{session}"
    policies = iam_evaluator._gather_role_policies(name, account)
    return _decision(principal, "AssumedRole", {"action": action, "resource": resource}, policies), principal


def _decision(
    arn: str,
    kind: str,
    request: dict[str, Any],
    policies: list[Any],
    limits: Iterable[list[Any]] = (),
    keys: dict[str, Any] | None = None,
) -> str:
    context = iam_evaluator.EvalContext(
        principal_arn=arn,
        principal_type=kind,
        principal_account=arn.split(":")[4],
        action=request["action"],
        resource_arn=request["resource"],
        region=responses.get_region(),
        # The evaluator looks keys up in lower case. A request without tags has no aws:TagKeys.
        service_context={
            "aws:tagkeys": None,
            **{key.lower(): value for key, value in request.get("conditions", {}).items()},
        },
        principal_keys=keys or {},
    )
    decision: str = iam_evaluator.evaluate(context, policies, *limits).decision
    return decision
