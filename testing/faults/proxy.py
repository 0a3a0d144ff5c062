"""A proxy between a client and an AWS service that breaks some of the calls."""

import asyncio
import json
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import aiohttp
from aiohttp import web
from yarl import URL

NOT_FORWARDED = {"expect", "transfer-encoding", "content-length", "connection", "keep-alive"}


@dataclass(frozen=True)
class Call:
    """operation: of a JSON service, such as StartExecution; else the HTTP method. inference_id: of an invocation."""

    operation: str
    path: str
    inference_id: str


# refuse: the connection breaks before the service hears of it. lose: the service answers and nobody hears that.
# throttle, model_error: AWS's own answer. slow: the call takes a second more. None: the call goes through.
Decide = Callable[[Call], str | None]


class FaultProxy:
    """Listens on 127.0.0.1 and hands calls on to `upstream`, but for those that it is told to break (`deciding`).

    calls: how often each operation was called. decided: how often which fault was made.
    """

    def __init__(self, upstream: str, certificate: Path) -> None:
        self._decide: Decide = lambda call: None
        self.calls: Counter[str] = Counter()
        self.decided: Counter[str] = Counter()
        self._upstream = upstream
        self._context = ssl.create_default_context(cafile=str(certificate)) if upstream.startswith("https") else None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.url = ""

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    @contextmanager
    def deciding(self, decide: Decide) -> Iterator[None]:
        """Breaks the calls that `decide` names a fault for, until the block is left."""
        self._decide = decide
        try:
            yield
        finally:
            self._decide = lambda call: None

    async def _start(self) -> None:
        self._session = aiohttp.ClientSession(
            auto_decompress=False, trust_env=False, connector=aiohttp.TCPConnector(limit=0, ssl=self._context or True)
        )
        application = web.Application(client_max_size=64 * 1024 * 1024)
        application.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        assert self._runner.addresses
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def _stop(self) -> None:
        await self._runner.cleanup()
        await self._session.close()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        target = request.headers.get("X-Amz-Target", "")
        call = Call(
            target.rsplit(".", 1)[-1] or request.method,
            request.path,
            request.headers.get("X-Amzn-SageMaker-Inference-Id", ""),
        )
        self.calls[call.operation] += 1
        fault = self._decide(call)
        if fault:
            self.decided[fault] += 1
        if fault == "throttle":
            return _throttled(bool(target), call)
        if fault == "model_error":
            return _model_error()
        body = await request.read()
        if fault == "slow":
            await asyncio.sleep(1)
        if fault == "refuse":
            return _broken(request)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in NOT_FORWARDED}
        try:
            # As it was sent: another spelling of the same path has another signature.
            url = URL(self._upstream + request.raw_path, encoded=True)
            async with self._session.request(
                request.method, url, headers=headers, data=body, allow_redirects=False
            ) as answer:
                content = await answer.read()
        except aiohttp.ClientError:
            return _broken(request)
        if fault == "lose":
            return _broken(request)
        returned = {name: value for name, value in answer.headers.items() if name.lower() not in NOT_FORWARDED}
        if request.method == "HEAD" and "Content-Length" in answer.headers:
            returned["Content-Length"] = answer.headers["Content-Length"]
        return web.Response(status=answer.status, headers=returned, body=content)


def _broken(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()  # which goes nowhere


def _throttled(is_json_service: bool, call: Call) -> web.Response:
    if is_json_service or call.inference_id:
        body = json.dumps({"__type": "ThrottlingException", "message": "Rate exceeded"})
        return web.Response(status=400, body=body, headers={"x-amzn-ErrorType": "ThrottlingException"})
    xml = "<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
    return web.Response(status=503, body=xml, content_type="application/xml")


def _model_error() -> web.Response:
    body = {"Message": "the model failed", "OriginalStatusCode": 500, "OriginalMessage": "out of luck"}
    return web.Response(status=424, body=json.dumps(body), headers={"x-amzn-ErrorType": "ModelError"})
