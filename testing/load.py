"""Clients that invoke an endpoint all the while, for tests of what happens to it meanwhile."""

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any


def _variant(answer: Any, body: bytes) -> str:
    return str(answer["InvokedProductionVariant"])


class Load:
    """Counts who answered and keeps what failed. request: what InvokeEndpoint gets, each time the same.

    who: tells it from an answer and its body; by default it is the variant.
    """

    def __init__(
        self, runtime: Any, clients: int, pause: float = 0, who: Callable[[Any, bytes], str] = _variant, **request: Any
    ) -> None:
        self._stop = threading.Event()
        self._runtime, self._pause, self._who, self._request = runtime, pause, who, request
        self.answers: Counter[str] = Counter()
        self.errors: list[str] = []
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *details: Any) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._pause):
            try:
                answer = self._runtime.invoke_endpoint(**self._request)
                self.answers[self._who(answer, answer["Body"].read())] += 1
            except Exception as error:
                self.errors.append(repr(error))
