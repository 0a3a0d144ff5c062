"""The runtime: InvokeEndpoint, from the caller's headers to the model's answer and its capture record."""

from datetime import UTC, datetime
from functools import cache
from typing import Any

import aiohttp
from aiohttp import web
from botocore.model import Shape

from local_sagemaker import account
from local_sagemaker.capture import CaptureSpool, Exchange
from local_sagemaker.fleet import Lease
from local_sagemaker.instances import LOG_GROUP
from local_sagemaker.protocol import ApiError, ValidationException, service_model, validate
from local_sagemaker.routing import Routing, Unavailable

MAX_BODY_BYTES = 6 * 1024 * 1024
MODEL_SECONDS = 60.0
REFUSED = ("TargetModel", "TargetContainerHostname", "InferenceComponentName", "SessionId", "EnableExplanations")
DEFAULT_CONTENT_TYPE = "application/octet-stream"
CUSTOM_ATTRIBUTES = "X-Amzn-SageMaker-Custom-Attributes"


class ValidationError(ApiError):
    """A request that can't be served; the runtime's name for what the control plane calls ValidationException."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__("ValidationError", message, status)


async def body_of(request: web.Request) -> bytes:
    """Returns a request's body, as often as it is asked for. Raises ValidationError if it is too large."""
    try:
        return await request.read()
    except web.HTTPRequestEntityTooLarge as error:
        raise ValidationError(f"The request body is larger than {MAX_BODY_BYTES} bytes.", 413) from error


class Runtime:
    """Answers InvokeEndpoint with the endpoint's models."""

    def __init__(self, routing: Routing, capture: CaptureSpool, model_seconds: float = MODEL_SECONDS) -> None:
        self._routing = routing
        self._capture = capture
        self._model_seconds = model_seconds
        # No limit of its own: `Routing` bounds the requests in flight. No proxy of the shell's either.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=model_seconds),
            trust_env=False,
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept-Encoding"),
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def close(self) -> None:
        await self._session.close()

    async def invoke_endpoint(self, request: web.Request) -> web.Response:
        """Raises ApiError: ValidationError, ModelError or ServiceUnavailable."""
        name = request.match_info["name"]
        members = _members(request)
        body = await body_of(request)
        if len(body) > MAX_BODY_BYTES:
            raise ValidationError(f"The request body of {len(body)} bytes is larger than {MAX_BODY_BYTES}.", 413)
        try:
            lease = self._routing.lease(name, members.get("TargetVariant"))
        except Unavailable as error:
            raise ApiError("ServiceUnavailable", str(error), 503) from error
        if lease is None:
            target = f"Variant {members['TargetVariant']} of endpoint" if "TargetVariant" in members else "Endpoint"
            raise ValidationError(f"{target} {name} of account {account.account_id()} not found.")
        try:
            return await self._answer(name, lease, members, body)
        finally:
            self._routing.release(lease)

    async def _answer(self, name: str, lease: Lease, members: dict[str, str], body: bytes) -> web.Response:
        variant, attributes = lease.variant, members.get("CustomAttributes")
        headers = {
            "Content-Type": members.get("ContentType", DEFAULT_CONTENT_TYPE),
            "Accept": members.get("Accept", "*/*"),
        }
        if attributes:
            headers[CUSTOM_ATTRIBUTES] = attributes
        time = datetime.now(UTC)
        try:
            url = f"{lease.instance.url}/invocations"
            async with self._session.post(url, data=body, headers=headers, allow_redirects=False) as response:
                status, answer = response.status, await response.read()
                content_type = response.headers.get("Content-Type", DEFAULT_CONTENT_TYPE)
                answered = response.headers.get(CUSTOM_ATTRIBUTES)
        except TimeoutError as error:
            message = f"the model of variant {variant.name} did not answer within {self._model_seconds:g} s"
            raise _model_error(name, variant.name, 0, message) from error
        except aiohttp.ClientResponseError as error:
            raise _model_error(name, variant.name, 0, f"the model's answer is no HTTP: {error}") from error
        except aiohttp.ClientError as error:
            raise ApiError("ServiceUnavailable", f"variant {variant.name} is not reachable: {error!r}", 503) from error
        if not 200 <= status < 300:
            raise _model_error(name, variant.name, status, answer.decode("utf-8", "replace"))
        if len(answer) > MAX_BODY_BYTES:
            raise _model_error(name, variant.name, status, f"an answer of {len(answer)} bytes is over {MAX_BODY_BYTES}")
        capture_config = lease.fleet.plan.get("DataCaptureConfig")
        if capture_config:
            exchange = Exchange(
                body, headers["Content-Type"], answer, content_type, members.get("InferenceId"), attributes, time
            )
            # Written before the answer is sent; an append to the page cache is quicker than a change of thread.
            self._capture.record(capture_config, str(variant.plan["RoleArn"]), name, variant.name, exchange)
        headers = {"Content-Type": content_type, "X-Amzn-Invoked-Production-Variant": variant.name}
        if answered:  # the model's own, not the request's
            headers[CUSTOM_ATTRIBUTES] = answered
        return web.Response(body=answer, headers=headers)


@cache
def _headers() -> dict[str, tuple[str, Shape]]:
    """The header of each of InvokeEndpoint's members, and its shape."""
    shape = service_model("sagemaker-runtime").operation_model("InvokeEndpoint").input_shape
    assert shape is not None
    return {
        name: (member.serialization["name"], member)
        for name, member in shape.members.items()
        if member.serialization.get("location") == "header"
    }


def _members(request: web.Request) -> dict[str, str]:
    """What the headers say, by the API's names. Raises ValidationError if one is out of its bounds."""
    members: dict[str, Any] = {}
    for name, (header, shape) in _headers().items():
        value = request.headers.get(header)
        if value is None:
            continue
        try:
            validate(shape, value, name)
        except ValidationException as error:
            raise ValidationError(error.message) from error
        if name in REFUSED:
            raise ValidationError(f"{name} is not supported by this server.")
        members[name] = value
    return members


def _model_error(name: str, variant: str, status: int, text: str) -> ApiError:
    kind = "client" if 400 <= status < 500 else "server"
    group = f"arn:aws:logs:{account.region()}:{account.account_id()}:log-group:{LOG_GROUP}/{name}"
    return ApiError(
        "ModelError",
        f'Received {kind} error ({status}) from {variant} with message "{text}". See {LOG_GROUP}/{name} in CloudWatch '
        "Logs for more information.",
        424,
        OriginalStatusCode=status,
        OriginalMessage=text,
        LogStreamArn=group,
    )
