"""The page on which people look at queued images, one at a time: `make review` serves it on this machine only.

Nothing that came from a record reaches the page but as JSON text, which the page's script writes as text.
"""

import hmac
import logging
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, TypeVar

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from msgspec import to_builtins
from pydantic import BaseModel, ConfigDict, Field

from tasks.aws.errors import AwsError
from tasks.review.desk import Desk, Progress, ReviewRefused
from tasks.review.queue import Waiting

logger = logging.getLogger(__name__)
HERE = Path(__file__).parent
TEMPLATES = Environment(
    autoescape=True, loader=FileSystemLoader(HERE / "templates"), undefined=StrictUndefined, trim_blocks=True
)
FILES = {"review.js": "text/javascript", "review.css": "text/css"}
# Of a request's body: an answer has about 200 bytes.
MOST_BODY_BYTES = 10_000
COOKIE = "scones-review"
HEADERS = {
    # The page runs its own script and shows its own images, and nothing else does in its place.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
# Called with the numbers of new and of needed labels after an answer.
Announce = Callable[[int, int], None]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    reviewer: str = Field(max_length=200)


class _Next(_Body):
    but_not: str | None = Field(default=None, max_length=100)


class _Answered(_Body):
    inference_id: str = Field(max_length=100)
    answer: Literal["class", "none_of_these", "unreadable", "skipped"]
    label: str | None = Field(default=None, max_length=200)
    seconds: float | None = None


def application(desk: Desk, port: int, reviewer: str, announce: Announce, token: str) -> FastAPI:
    """The page over a desk. reviewer: the name that the page proposes. token: opens the page, see `address`."""
    app = FastAPI(title="Review", docs_url=None, redoc_url=None, openapi_url=None)
    hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}

    @app.middleware("http")
    async def guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        if problem := foreign(request, hosts):
            response: Response = _error(*problem)
        elif request.url.path == "/" and _is(request.query_params.get("token"), token):
            response = RedirectResponse("/", 303)  # so that the token is in no history
            response.set_cookie(COOKIE, token, httponly=True, samesite="strict")
        elif not _is(request.cookies.get(COOKIE), token):
            response = _error(401, "open the link that `make review` prints")
        else:
            response = await call_next(request)
        response.headers.update(HEADERS)
        return response

    @app.exception_handler(ReviewRefused)
    async def refused(_: Request, error: ReviewRefused) -> Response:
        return _error(error.status, str(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return _error(422, f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}")

    @app.exception_handler(AwsError)
    async def unavailable(_: Request, error: AwsError) -> Response:
        return _error(503, str(error))

    @app.exception_handler(Exception)
    async def broken(_: Request, error: Exception) -> Response:
        return _error(500, f"{type(error).__name__}: {error}"[:500])

    @app.get("/")
    def page() -> HTMLResponse:
        return HTMLResponse(TEMPLATES.get_template("review.html.j2").render(reviewer=reviewer, classes=desk.classes))

    @app.get("/static/{name}")
    def static(name: str) -> Response:
        if name not in FILES:
            return _error(404, "there is no such file")
        return Response((HERE / "templates" / name).read_bytes(), media_type=FILES[name])

    @app.get("/api/images/{inference_id}")
    def image(inference_id: str) -> Response:
        found = desk.picture(inference_id)
        if found is None:
            return _error(415, "the object is no picture that can be drawn")
        return Response(found[0], media_type=found[1])

    @app.post("/api/next")
    def following(body: _Next) -> dict[str, Any]:
        waiting = desk.take(body.reviewer, body.but_not)
        return {"item": _shown(waiting), "progress": _told(desk.progress(body.reviewer))}

    @app.post("/api/answers")
    def answer(body: _Answered) -> dict[str, Any]:
        label = desk.answer(body.inference_id, body.reviewer, body.answer, body.label, body.seconds)
        # From here on it is stored: nothing that fails may have it sent again.
        progress = _after_the_fact(lambda: desk.progress(body.reviewer))
        if progress is not None:
            _after_the_fact(lambda: announce(progress.new_labels, progress.labels_needed))
        waiting = desk.review.queue[body.inference_id]
        result: dict[str, Any] = {"stored": label.key, "progress": None if progress is None else _told(progress)}
        if body.answer != "skipped":  # what the model said stays hidden until the person has said it
            result |= {
                "predicted_class": waiting.predicted_class,
                "confidence": waiting.confidence,
                "reason": waiting.reason,
                "agrees": body.answer == "class" and body.label == waiting.predicted_class,
            }
        return result

    @app.post("/api/undo")
    def undo(body: _Body) -> dict[str, Any]:
        waiting = desk.undo(body.reviewer)
        return {"item": _shown(waiting), "progress": _told(desk.progress(body.reviewer))}

    return app


def address(port: int, token: str) -> str:
    """The link that opens the page: whoever has it may answer. The browser then keeps the token as a cookie."""
    return f"http://127.0.0.1:{port}/?token={token}"


def _is(given: str | None, token: str) -> bool:
    return given is not None and hmac.compare_digest(given.encode(), token.encode())


def serve(app: FastAPI, port: int) -> None:
    """Serves until Ctrl-C."""
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", server_header=False)


def foreign(request: Request, hosts: set[str]) -> tuple[int, str] | None:
    """Status and reason of a request that another site, or another name of this machine, may have sent; None for ours.

    A page of another site can have a browser send requests here. Host tells a name that its owner points to this
    machine, Origin and Sec-Fetch-Site the site that asks.
    """
    if request.headers.get("host") not in hosts:
        return 421, "this page is served as 127.0.0.1 and localhost only"
    site = request.headers.get("sec-fetch-site", "same-origin")
    if site not in ("same-origin", "none"):
        return 403, "requests from other sites are refused"
    if request.method in ("GET", "HEAD"):
        return None
    if request.headers.get("origin") not in {f"http://{host}" for host in hosts}:
        return 403, "requests from other sites are refused: the header Origin must be this page's"
    if request.headers.get("content-type", "").split(";")[0].strip() != "application/json":
        return 415, "the body must be application/json"
    length = request.headers.get("content-length", "")
    if not length.isdecimal() or int(length) > MOST_BODY_BYTES:
        return 413, f"the body must have a Content-Length of at most {MOST_BODY_BYTES} bytes"
    return None


T = TypeVar("T")


def _after_the_fact(work: Callable[[], T]) -> T | None:
    """What it returns; None if it failed, which is logged."""
    try:
        return work()
    except Exception:  # whatever it is, the answer is stored
        logger.exception("after an answer")
        return None


def _error(status: int, problem: str) -> JSONResponse:
    return JSONResponse({"error": problem}, status_code=status)


def _shown(waiting: Waiting | None) -> dict[str, str] | None:
    """What a person may know of an image before the answer: nothing but which one it is."""
    return None if waiting is None else {"inference_id": waiting.inference_id}


def _told(progress: Progress) -> dict[str, Any]:
    certificate = progress.certificate
    return {**asdict(progress), "certificate": None if certificate is None else to_builtins(certificate)}
