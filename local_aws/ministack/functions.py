"""Has the port on which a function fetches its events answer that function's account only, and no web page."""

from http.server import BaseHTTPRequestHandler

from local_sagemaker.peers import accepted


def install() -> None:
    """ministack has no other server of this kind; its own API is ASGI."""
    parse = BaseHTTPRequestHandler.parse_request
    BaseHTTPRequestHandler.parse_request = (  # type: ignore[method-assign]
        lambda self: parse(self) and accepted(self)
    )
