"""Containers' and functions' ports answer programs of the same account, and no web page."""

import http.client
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from local_sagemaker import peers


class Answering(BaseHTTPRequestHandler):
    def parse_request(self) -> bool:
        return super().parse_request() and peers.accepted(self)

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *details: object) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Answering) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "rebound.example"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
    ],
)
def test_web_pages_are_refused(port: int, headers: dict[str, str], status: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/2018-06-01/runtime/invocation/next", headers=headers)
    assert connection.getresponse().status == status
    connection.close()


ASK = "import socket, sys; s = socket.create_connection(('127.0.0.1', int(sys.argv[1])))\n"
ASK += "s.sendall(b'GET / HTTP/1.1\\r\\nHost: 127.0.0.1\\r\\n\\r\\n'); print(s.recv(12).decode().split()[1])"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may start a program as another account")
def test_another_account_is_refused(port: int) -> None:
    def asked(code: str) -> str:
        done = subprocess.run([sys.executable, "-c", code, str(port)], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    assert asked(ASK) == "200"
    # After the interpreter has been loaded, which the other account might not be able to read.
    assert asked("import encodings.idna, os, socket, sys; os.setgid(64001); os.setuid(64001)\n" + ASK) == "403"


def test_a_socket_that_nobody_has_is_nobodys() -> None:
    assert peers.same_account(("127.0.0.1", 1), ("127.0.0.1", 2)) is not peers.SOCKETS.exists()


def test_another_connection_from_the_same_port_is_not_this_one(port: int) -> None:
    """Two sockets may share a port if they are connected to different ones."""
    with socket.create_connection(("127.0.0.1", port)) as connected:
        assert peers.same_account(connected.getsockname(), ("127.0.0.1", port))
        assert peers.same_account(connected.getsockname(), ("127.0.0.1", 1)) is not peers.SOCKETS.exists()
