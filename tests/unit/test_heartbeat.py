"""The sign of life after an evaluation."""

import http.server
import threading
from collections.abc import Iterator

import pytest

from tasks.heartbeat import TRIES, beat


class Listener(http.server.ThreadingHTTPServer):
    """Answers with the statuses that it is given, the last one for ever."""

    def __init__(self, *statuses: int) -> None:
        self.asked: list[str] = []
        asked = self.asked

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                self.send_response(statuses[min(len(asked), len(statuses)) - 1])
                self.end_headers()

            def log_message(self, *details: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/ping/token"


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture(params=[(200,), (503, 200), (404,)], ids=["well", "at the second try", "never"])
def listener(request: pytest.FixtureRequest) -> Iterator[Listener]:
    server = Listener(*request.param)
    yield server
    server.shutdown()
    server.server_close()


def test_it_is_tried_a_few_times_and_nothing_fails(listener: Listener, warnings: list[str]) -> None:
    answered = beat(listener.url, warnings.append)
    assert set(listener.asked) == {"/ping/token"} and len(listener.asked) <= TRIES
    assert answered == (not warnings)
    assert warnings in ([], ["SCONES_HEARTBEAT_URL does not answer: status 404"])


def test_nobody_waits_for_it_by_default_and_a_dead_service_is_a_warning(warnings: list[str]) -> None:
    assert not beat(None, warnings.append) and warnings == []
    server = Listener(200)
    server.shutdown()
    server.server_close()
    assert not beat(server.url, warnings.append)
    assert len(warnings) == 1 and "token" not in warnings[0]
