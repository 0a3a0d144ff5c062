"""A real browser for tests: headless Chromium over its DevTools protocol.

https://chromedevtools.github.io/devtools-protocol/
"""

import base64
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

from websockets.sync.client import connect
from websockets.sync.connection import Connection

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
START_SECONDS = 60
# Keys that are not one character: code and virtual key code.
KEYS = {"Backspace": 8, "Enter": 13, "Escape": 27}


class BrowserError(Exception):
    """The page threw, or did not come to what was waited for."""


def executable() -> str | None:
    """The path of this machine's Chromium or Chrome; None if it has none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """A tab of a browser."""

    def __init__(self, connection: Connection, session: str) -> None:
        self._connection, self._session = connection, session
        self._numbers = count(1)

    def send(self, method: str, **parameters: Any) -> Any:
        """A command of the protocol; returns its result."""
        number = next(self._numbers) + 1_000_000
        message = {"id": number, "method": method, "params": parameters, "sessionId": self._session}
        return _result(self._connection, message)

    def open(self, url: str) -> None:
        """Goes there and waits until the page's scripts have run."""
        self.send("Page.enable")
        self.send("Page.navigate", url=url)
        self.wait_for("document.readyState === 'complete' && location.href !== 'about:blank'")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        found = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise BrowserError(found["exceptionDetails"].get("exception", {}).get("description", str(found)))
        return found["result"].get("value")

    def wait_for(self, expression: str, seconds: float = 20) -> Any:
        """Waits until an expression is true."""
        deadline = time.monotonic() + seconds
        while not (value := self.evaluate(expression)):
            if time.monotonic() > deadline:
                raise BrowserError(f"{expression} did not become true; the page shows: {self.text()}")
            time.sleep(0.05)
        return value

    def text(self) -> str:
        """What a person reads."""
        return str(self.evaluate("document.body.innerText"))

    def press(self, key: str, control: bool = False) -> None:
        """A key of the keyboard, down and up."""
        code = KEYS.get(key, ord(key.upper()[0]))
        for kind in ("keyDown", "keyUp"):
            typed = {"text": key} if kind == "keyDown" and len(key) == 1 and not control else {}
            self.send(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                windowsVirtualKeyCode=code,
                modifiers=2 if control else 0,
                **typed,
            )

    def window(self, width: int, height: int, dark: bool = False, phone: bool = False) -> None:
        """Size in CSS pixels, colour scheme, and whether fingers point in place of a mouse."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=2, mobile=phone)
        self.send("Emulation.setTouchEmulationEnabled", enabled=phone)
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.send("Emulation.setEmulatedMedia", features=features)

    def screenshot(self, path: Path) -> None:
        """What is in the window, as a PNG."""
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))


@contextmanager
def browser(*arguments: str) -> Iterator["Browser"]:
    """A browser with a profile of its own, which is gone with it. Raises BrowserError if there is none.

    arguments: of the command line, besides those that every browser here has.
    """
    found = executable()
    if found is None:
        raise BrowserError(f"there is none of {', '.join(NAMES)}")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [found, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"]
        command += ["--remote-debugging-port=0", f"--user-data-dir={profile}", "--disable-dev-shm-usage"]
        command += ["--disable-background-networking", "--disable-component-update", *arguments]
        command.append("about:blank")
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        try:
            with connect(_address(process, Path(profile)), max_size=None) as connection:
                yield Browser(connection)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class Browser:
    """Makes tabs; each is as another person's, with cookies and storage of its own."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._numbers = count(1)

    def page(self) -> Page:
        context = self._send("Target.createBrowserContext")["browserContextId"]
        target = self._send("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self._send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        return Page(self._connection, session)

    def _send(self, method: str, **parameters: Any) -> Any:
        return _result(self._connection, {"id": next(self._numbers), "method": method, "params": parameters})


def _address(process: subprocess.Popen[bytes], profile: Path) -> str:
    """Where the browser listens, which it writes into its profile: the port and a path."""
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(OSError, ValueError):
            port, path = (profile / "DevToolsActivePort").read_text().splitlines()
            return f"ws://127.0.0.1:{port}{path}"
        time.sleep(0.05)
    raise BrowserError("the browser did not start")


def _result(connection: Connection, message: dict[str, Any]) -> Any:
    """Sends a command and returns its result; events are dropped. Raises BrowserError for an error."""
    connection.send(json.dumps(message))
    while True:
        answer = json.loads(connection.recv(timeout=60))
        if answer.get("id") == message["id"]:
            if "error" in answer:
                raise BrowserError(f"{message['method']}: {answer['error']['message']}")
            return answer["result"]
