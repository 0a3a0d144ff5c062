"""The web application: the control planes at POST /, the runtime at POST /endpoints/NAME/invocations."""

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from aiohttp import web
from botocore.exceptions import BotoCoreError, ClientError

from local_sagemaker import account
from local_sagemaker.authorization import AUTO_SCALING, Authorizer, Request
from local_sagemaker.autoscaling import PERIOD_SECONDS, AutoScaling
from local_sagemaker.capture import CaptureSpool
from local_sagemaker.control_plane import ControlPlane
from local_sagemaker.hosting import Endpoints
from local_sagemaker.instances import Instances
from local_sagemaker.operations.autoscaling import AutoScalingOperations
from local_sagemaker.operations.endpoints import EndpointOperations
from local_sagemaker.operations.model_packages import ModelPackageOperations
from local_sagemaker.operations.models import EndpointConfigOperations, ModelOperations
from local_sagemaker.operations.training_jobs import TrainingJobOperations
from local_sagemaker.protocol import ApiError, parse, service_model
from local_sagemaker.resources import ENDPOINT, Resources
from local_sagemaker.routing import Routing
from local_sagemaker.runtime import MAX_BODY_BYTES, MODEL_SECONDS, Runtime, body_of
from local_sagemaker.signatures import Scope, Signatures, signing_key
from local_sagemaker.store import Store
from local_sagemaker.training import STOP_GRACE_SECONDS, TrainingJobs

logger = logging.getLogger(__name__)

# What begins X-Amz-Target of Application Auto Scaling's operations.
SCALING_TARGET = "AnyScaleFrontendService."
JSON = "application/x-amz-json-1.1"
RUNTIME = web.AppKey("runtime", Runtime)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class ServerConfig:
    """What an account's quotas and AWS's pace are here. Times in seconds."""

    state: Path
    training_jobs: int = 2
    instances: int = 8
    requests_per_instance: int = 64
    capture_interval: float = 2.0
    capture_delay: float = 0.0
    capture_loss: float = 0.0
    worker_delay: float = 0.0
    calls_per_second: float = 0.0
    authorizer: str = ""
    model_seconds: float = MODEL_SECONDS
    stop_grace: float = STOP_GRACE_SECONDS
    scaling_period: float = PERIOD_SECONDS


def create_app(config: ServerConfig) -> web.Application:
    """The server with its state below `config.state`."""
    resources = Resources(Store(config.state / "resources.sqlite"))
    jobs = TrainingJobs(resources, config.state / "training", config.training_jobs, config.stop_grace)
    instances = Instances(config.state / "models", config.model_seconds, config.worker_delay)
    routing = Routing(resources, config.requests_per_instance)
    endpoints = Endpoints(resources, instances, routing, config.model_seconds)
    capture = CaptureSpool(config.state / "capture", config.capture_interval, config.capture_delay, config.capture_loss)
    rate = Rate(config.calls_per_second)
    authorizer = Authorizer(config.authorizer) if config.authorizer else None
    endpoint_operations = EndpointOperations(resources, endpoints, config.instances)
    scaling = AutoScaling(resources, routing, endpoint_operations, config.scaling_period)
    sagemaker = ControlPlane(
        resources,
        authorizer,
        resources,
        TrainingJobOperations(resources, jobs),
        ModelOperations(resources),
        EndpointConfigOperations(resources),
        endpoint_operations,
        ModelPackageOperations(resources),
    )
    auto_scaling = ControlPlane(resources, authorizer, AutoScalingOperations(resources), service=AUTO_SCALING)
    # Operations may wait for the store; the loop goes on answering invocations.
    threads = ThreadPoolExecutor(8, thread_name_prefix="control")

    callers: set[tuple[str, str]] = set()
    signatures = Signatures(partial(_signing_key, authorizer))

    async def signer(request: web.Request, body: bytes, service: str, refused: int = 400) -> str:
        """Returns the access key of a request. Raises ApiError if it is not signed with it."""
        url = f"http://{request.host}{request.raw_path}"
        check = partial(signatures.check, request.method, url, request.headers, body, service, refused)
        if signatures.knows(request.headers):
            return check()
        return await asyncio.get_running_loop().run_in_executor(threads, check)

    async def control(request: web.Request) -> web.Response:
        target = request.headers.get("X-Amz-Target", "")
        control_plane, name = sagemaker, target.removeprefix("SageMaker.")
        if target.startswith(SCALING_TARGET):
            control_plane, name = auto_scaling, target.removeprefix(SCALING_TARGET)
        try:
            if request.content_type != JSON:
                raise ApiError("UnknownOperationException", f"the Content-Type must be {JSON}", 404)
            access_key = await signer(request, await request.read(), control_plane.service)
            payload = parse(await request.read())
            _log_request(access_key, name, payload, control_plane.service)
            rate.take()
            call = partial(control_plane.call, name, payload, access_key)
            answer = await asyncio.get_running_loop().run_in_executor(threads, call)
        except ApiError as error:
            return _error(error, {"__type": error.code, "message": error.message}, JSON)
        except (BotoCoreError, ClientError) as error:
            away = ApiError("ServiceUnavailable", f"the account's STS or S3 does not answer: {error}", 503)
            return _error(away, {"__type": away.code, "message": away.message}, JSON)
        return web.json_response(answer, content_type=JSON)

    async def invoke(request: web.Request) -> web.Response:
        try:
            caller = (request.match_info["name"], await signer(request, await body_of(request), "sagemaker", 403))
            if caller not in callers:  # the first of each; thousands a minute would hide the rest of the log
                callers.add(caller)
                _log_request(caller[1], "InvokeEndpoint", {"EndpointName": caller[0]})
            if authorizer:
                wanted = Request("sagemaker:InvokeEndpoint", ENDPOINT.arn(caller[0]))
                if not authorizer.remembers(caller[1], wanted):
                    check = partial(authorizer.check, caller[1], [wanted], refused=403)
                    await asyncio.get_running_loop().run_in_executor(threads, check)
            return await request.app[RUNTIME].invoke_endpoint(request)
        except ApiError as error:
            return _error(error, {"Message": error.message, **error.fields}, "application/json")

    async def ping(request: web.Request) -> web.Response:
        return web.Response()

    async def run(app: web.Application) -> AsyncIterator[None]:
        app[RUNTIME] = Runtime(routing, capture, config.model_seconds)
        yield
        await app[RUNTIME].close()
        with ThreadPoolExecutor() as stopping:
            list(stopping.map(lambda part: part.shutdown(), (jobs, scaling, endpoints, capture)))

    app = web.Application(
        client_max_size=MAX_BODY_BYTES + 1,
        middlewares=[_answer_everything, _refuse_web_pages],
        handler_args={"auto_decompress": False},  # a body is the model's, as it came
    )
    app.cleanup_ctx.append(run)
    app.add_routes([web.post("/", control), web.post("/endpoints/{name}/invocations", invoke), web.get("/ping", ping)])
    for name, path in _runtime_paths().items():
        app.router.add_route("*", path, _unknown_operation(name))
    return app


class Rate:
    """A token bucket for the control plane's calls that holds those of a second; 0 calls a second for no limit."""

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._tokens = max(per_second, 1.0)
        self._filled = time.monotonic()

    def take(self) -> None:
        """Raises ThrottlingException if there were too many."""
        if not self._per_second:
            return
        now = time.monotonic()
        filled = self._tokens + (now - self._filled) * self._per_second
        self._tokens, self._filled = min(filled, max(self._per_second, 1.0)), now
        if self._tokens < 1:
            raise ApiError("ThrottlingException", "Rate exceeded")
        self._tokens -= 1


@web.middleware
async def _refuse_web_pages(request: web.Request, handler: Handler) -> web.StreamResponse:
    """A page in a browser may send requests here, also by a name that its owner points to this machine."""
    if request.host.rsplit(":", 1)[0] not in ("127.0.0.1", "localhost"):
        return web.Response(text="this server is 127.0.0.1 and localhost only", status=421)
    if "Origin" in request.headers or request.headers.get("Sec-Fetch-Site", "none") != "none":
        error = ApiError("AccessDeniedException", "requests of web pages are refused", 403)
        return _error(error, {"__type": error.code, "message": error.message}, JSON)
    return await handler(request)


@web.middleware
async def _answer_everything(request: web.Request, handler: Handler) -> web.StreamResponse:
    """A request id for every answer, and an error in AWS's form if a handler breaks."""
    try:
        response = await handler(request)
    except web.HTTPRequestEntityTooLarge as error:
        response = _error(ApiError("RequestEntityTooLarge", str(error), 413), {"message": str(error)}, JSON)
    except web.HTTPException:
        message = f"{request.method} {request.path} is no operation of SageMaker or its runtime"
        response = _error(ApiError("UnknownOperationException", message, 404), {"message": message}, JSON)
    except Exception:
        logger.exception("%s %s", request.method, request.path)
        message = "the server failed; its log says why"
        response = _error(ApiError("InternalFailure", message, 500), {"message": message}, JSON)
    response.headers["x-amzn-RequestId"] = str(uuid.uuid4())
    return response


def _error(error: ApiError, body: dict[str, Any], content_type: str) -> web.Response:
    return web.json_response(
        body, status=error.status, content_type=content_type, headers={"x-amzn-ErrorType": error.code}
    )


def _runtime_paths() -> dict[str, str]:
    """The paths of the runtime's operations that are not here."""
    runtime = service_model("sagemaker-runtime")
    others = [name for name in runtime.operation_names if name != "InvokeEndpoint"]
    return {name: runtime.operation_model(name).http["requestUri"] for name in others}


def _unknown_operation(name: str) -> Handler:
    async def refuse(request: web.Request) -> web.Response:
        message = f"the operation {name} is not implemented by this server"
        return _error(ApiError("UnknownOperationException", message), {"Message": message}, "application/json")

    return refuse


def _log_request(access_key: str, operation: str, payload: dict[str, Any], service: str = "sagemaker") -> None:
    """One line a request: who called what on which resource, and whether it sets tags."""
    names = {field: value for field, value in payload.items() if field.endswith("Name") and isinstance(value, str)}
    line = {"service": service, "operation": operation, "access_key": access_key}
    logger.info("request %s", json.dumps({**line, "tagged": bool(payload.get("Tags")), **names}))


def _signing_key(authorizer: Authorizer | None, scope: Scope) -> bytes:
    """Returns the key of a scope: of the account's own access key, with which this server runs, or the authorizer's.

    Raises ApiError for an access key that neither knows.
    """
    own = account.credentials()
    if own is not None and own.secret_key and (scope.access_key, scope.token) == (own.access_key, own.token):
        return signing_key(own.secret_key, scope)
    if authorizer is None:
        raise ApiError("UnrecognizedClientException", "The security token included in the request is invalid.")
    return authorizer.signing_key(scope)
