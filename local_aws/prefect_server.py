"""Runs Prefect's server for this machine's own browser: python -m local_aws.prefect_server.

It is Prefect's own application with two additions. Requests by another name than 127.0.0.1 or localhost, or from a
page of another origin, are refused before anything reads them. And the page /sign-in#USER:PASSWORD keeps the password
where Prefect's pages look for it, so that a person only has to follow the link that `make up` and `make demo` print;
what comes after # never leaves the browser.
"""

import os
from collections.abc import Awaitable, Callable
from typing import Any

import uvicorn
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from local_aws.config import LocalConfig

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
HOSTS = ("127.0.0.1", "localhost")
# Requests that a browser sends for the page of another origin; a person who follows a link is let through.
FOREIGN_SITES = ("cross-site", "same-site")
SIGN_IN = """<!doctype html>
<meta charset="utf-8"><title>Signing in to Prefect</title>
<script>
const login = decodeURIComponent(location.hash.slice(1));
if (login) localStorage.setItem("prefect-password", btoa(login));
location.replace("/");
</script>
"""


def main() -> None:
    # As `prefect server start` tells it.
    os.environ["PREFECT__SERVER_FINAL"] = "1"
    from prefect.server.api.server import create_app
    from prefect.settings import get_current_settings

    app = create_app(final=True)
    app.router.routes.insert(0, Route("/sign-in", sign_in))
    keep_alive = get_current_settings().server.api.keepalive_timeout
    uvicorn.run(
        OwnPagesOnly(app),
        host="127.0.0.1",
        port=LocalConfig().prefect_port,
        log_level="warning",
        timeout_keep_alive=keep_alive,
        timeout_graceful_shutdown=10,
    )


def sign_in(request: Request) -> Response:
    """The page that signs in whoever follows the link of the terminal; a page's link would sign them out."""
    if request.headers.get("sec-fetch-site") in FOREIGN_SITES:
        return PlainTextResponse("sign in by the link that `make up` prints", 403)
    return HTMLResponse(SIGN_IN)


class OwnPagesOnly:
    """An ASGI application that refuses what a page of another origin, or by another name of this machine, asks for."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket") and (problem := foreign(scope["headers"])):
            if scope["type"] == "http":
                await PlainTextResponse(problem, 403)(scope, receive, send)
            else:
                await send({"type": "websocket.close", "code": 1008, "reason": problem})
            return
        await self._app(scope, receive, send)


def foreign(raw: list[tuple[bytes, bytes]]) -> str | None:
    """Returns why a request with these headers is refused; None for one of this server's own pages, or of a program."""
    headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in raw}
    host = headers.get("host", "")
    if host.rsplit(":", 1)[0] not in HOSTS:
        return "this server is 127.0.0.1 and localhost only"
    link = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
    if headers.get("sec-fetch-site") in FOREIGN_SITES and not link:
        return "requests of other pages are refused"
    if headers.get("origin", f"http://{host}") != f"http://{host}":
        return "requests of other pages are refused: the header Origin must be this server's"
    return None


if __name__ == "__main__":
    main()
