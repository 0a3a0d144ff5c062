"""The ASGI application: SageMaker's control plane at POST /, the runtime at POST /endpoints/NAME/invocations."""

import json
import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import anyio.to_thread
import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from local_aws.sagemaker import account
from local_aws.sagemaker.capture import CaptureSpool, Exchange
from local_aws.sagemaker.control_plane import ControlPlane
from local_aws.sagemaker.hosting import LOG_GROUP, Endpoints, Instance
from local_aws.sagemaker.protocol import ApiError
from local_aws.sagemaker.store import Store
from local_aws.sagemaker.training import TrainingJobs

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 6 * 1024 * 1024
MODEL_SECONDS = 60
MAX_INFERENCE_ID = 64


def create_app(folder: Path, capture_interval: float = 2.0) -> Starlette:
    """The server with its state below `folder`; capture is uploaded every `capture_interval` seconds."""
    state: dict[str, Any] = {}

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        store = Store(folder / "resources.sqlite")
        jobs = TrainingJobs(store, folder / "training")
        endpoints = Endpoints(store, folder / "models")
        capture = CaptureSpool(folder / "capture", capture_interval)
        # trust_env: a proxy of the shell's must not stand between the server and its own model processes.
        async with httpx.AsyncClient(
            timeout=MODEL_SECONDS, trust_env=False, limits=httpx.Limits(max_connections=64)
        ) as client:
            state.update(
                control=ControlPlane(store, jobs, endpoints), endpoints=endpoints, capture=capture, client=client
            )
            yield
        for part in (jobs, endpoints, capture):
            await anyio.to_thread.run_sync(part.shutdown)

    async def control(request: Request) -> Response:
        name = request.headers.get("x-amz-target", "").removeprefix("SageMaker.")
        try:
            payload = _json(await request.body())
            _log_request(request, name, payload)
            answer = await anyio.to_thread.run_sync(state["control"].call, name, payload)
            return JSONResponse(answer, media_type="application/x-amz-json-1.1")
        except ApiError as error:
            return JSONResponse(
                {"__type": error.code, "message": error.message},
                status_code=error.status,
                media_type="application/x-amz-json-1.1",
                headers={"x-amzn-ErrorType": error.code},
            )

    async def invoke(request: Request) -> Response:
        name = request.path_params["name"]
        _log_request(request, "InvokeEndpoint", {"EndpointName": name})
        try:
            return await _invoke(state, name, request)
        except ApiError as error:
            return JSONResponse(
                {"Message": error.message, **error.fields},
                status_code=error.status,
                headers={"x-amzn-ErrorType": error.code},
            )

    async def ping(request: Request) -> Response:
        return Response()

    return Starlette(
        lifespan=lifespan,
        routes=[
            Route("/", control, methods=["POST"]),
            Route("/endpoints/{name}/invocations", invoke, methods=["POST"]),
            Route("/ping", ping),
        ],
    )


async def _invoke(state: dict[str, Any], name: str, request: Request) -> Response:
    headers = request.headers
    body = await _bounded_body(request)
    inference_id = headers.get("x-amzn-sagemaker-inference-id")
    if inference_id is not None and not 1 <= len(inference_id) <= MAX_INFERENCE_ID:
        raise ApiError("ValidationError", f"InferenceId must have 1 to {MAX_INFERENCE_ID} characters")
    fleet = state["endpoints"].fleet(name)
    if fleet is None:
        raise ApiError("ValidationError", f"Endpoint {name} of account {account.account_id()} not found.")
    target = headers.get("x-amzn-sagemaker-target-variant")
    instance: Instance | None = fleet.choose(target)
    if instance is None:
        raise ApiError("ValidationError", f"Variant {target} of endpoint {name} not found.")
    attributes = headers.get("x-amzn-sagemaker-custom-attributes")
    forwarded = {
        "content-type": headers.get("content-type", "application/octet-stream"),
        "accept": headers.get("accept", "application/json"),
    }
    if attributes:
        forwarded["x-amzn-sagemaker-custom-attributes"] = attributes
    time = datetime.now(UTC)
    try:
        answer = await state["client"].post(f"{instance.url}/invocations", content=body, headers=forwarded)
    except httpx.TimeoutException as error:
        raise _model_error(name, instance, 0, f"the model did not answer within {MODEL_SECONDS} s") from error
    except httpx.HTTPError as error:
        raise ApiError("ServiceUnavailable", f"variant {instance.variant} is not reachable: {error}", 503) from error
    if answer.status_code >= 400:
        raise _model_error(name, instance, answer.status_code, answer.text)
    content_type = answer.headers.get("content-type", "application/octet-stream")
    capture_config = fleet.config.get("DataCaptureConfig")
    if capture_config:
        exchange = Exchange(
            body, forwarded["content-type"], answer.content, content_type, inference_id, attributes, time
        )
        record = partial(state["capture"].record, capture_config, instance.role_arn, name, instance.variant, exchange)
        await anyio.to_thread.run_sync(record)
    answered = {"content-type": content_type, "x-amzn-invoked-production-variant": instance.variant}
    if attributes:
        answered["x-amzn-sagemaker-custom-attributes"] = attributes
    return Response(answer.content, headers=answered)


async def _bounded_body(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise ApiError("ValidationError", f"Request body exceeds {MAX_BODY_BYTES} bytes.", 413)
    return bytes(body)


def _model_error(name: str, instance: Instance, status: int, text: str) -> ApiError:
    link = f"arn:aws:logs:{account.region()}:{account.account_id()}:log-group:{LOG_GROUP}/{name}"
    return ApiError(
        "ModelError",
        f'Received error ({status}) from primary with message "{text}".',
        424,
        OriginalStatusCode=status,
        OriginalMessage=text,
        LogStreamArn=link,
    )


def _json(body: bytes) -> dict[str, Any]:
    try:
        payload = json.loads(body or b"{}")
    except ValueError as error:
        raise ApiError("SerializationException", f"the request is not JSON: {error}") from error
    if not isinstance(payload, dict):
        raise ApiError("SerializationException", "the request is not a JSON object")
    return payload


def _log_request(request: Request, operation: str, payload: dict[str, Any]) -> None:
    """One line a request: who called what on which resource."""
    key = re.search(r"Credential=([^/]+)/", request.headers.get("authorization", ""))
    names = {field: value for field, value in payload.items() if field.endswith("Name") and isinstance(value, str)}
    logger.info("request %s", json.dumps({"operation": operation, "access_key": key[1] if key else None, **names}))
