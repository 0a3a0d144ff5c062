"""A process that stands for a container: a session of its own, its output in CloudWatch Logs, gone with the server."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Protocol

from local_sagemaker import account, closed_imports, isolation
from local_sagemaker.account import LogStream

MAX_LINE_BYTES = 64 * 1024
LAST_WORDS = 10


class Process(Protocol):
    """What a container needs of subprocess.Popen."""

    pid: int
    stdin: IO[bytes] | None
    stdout: IO[bytes] | None

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...


def container_environment(image: str, role_arn: str, own: Mapping[str, str], isolated: bool) -> dict[str, str]:
    """What SageMaker adds to a container's own variables: its role's credentials, unless its network is isolated."""
    outside = isolation.variables(own) if isolated else account.role_credentials(role_arn)
    return {**own, **closed_imports.variables(image, own), **outside}


def start_process(
    main: Callable[[], None],
    arguments: list[str],
    environment: Mapping[str, str],
    folder: Path,
    pass_fds: tuple[int, ...] = (),
) -> "subprocess.Popen[bytes]":
    """Runs a module's `main` in a process and a session of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", f"from {main.__module__} import main; main()", *arguments],
        cwd=folder,
        env={**os.environ, **environment, "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        pass_fds=pass_fds,
    )


class Container:
    """A process that leads a session of its own and begins with `start_parent_watchdog`, and its log."""

    def __init__(self, process: Process, logs: LogStream, on_line: Callable[[str], None] = lambda line: None) -> None:
        self._logs = logs
        self._on_line = on_line
        self._last_words: deque[str] = deque(maxlen=LAST_WORDS)
        self._process = process
        self.pid = process.pid
        self._reader = threading.Thread(target=self._read, name=f"log-{self.pid}", daemon=True)
        self._reader.start()

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    @property
    def last_line(self) -> str:
        """The last line of its output, without empty ones."""
        self._reader.join(timeout=3)
        return next((line for line in reversed(self._last_words) if line.strip()), "")

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to the process and all that it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def wait(self, seconds: float) -> bool:
        """True if it has ended within that time."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def stop(self, grace_seconds: float) -> None:
        """SIGTERM, SIGKILL after the grace, and returns when its output is in the log."""
        if self.exit_code is None:
            self.signal(signal.SIGTERM)
            self.wait(grace_seconds)
        # Its children may outlive it.
        self.signal(signal.SIGKILL)
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._reader.join(timeout=5)
        self._logs.close()

    def _read(self) -> None:
        output = self._process.stdout
        assert output is not None
        with output:
            # A line without an end is cut rather than kept in memory.
            for raw in iter(lambda: output.readline(MAX_LINE_BYTES), b""):
                line = raw.decode("utf-8", "replace").rstrip()
                self._last_words.append(line)
                self._logs.write(line)
                self._on_line(line)


def start_parent_watchdog() -> None:
    """Called within a container: kills its process group if the server is gone, however it ended.

    The server holds the other end of standard input, which the system closes with it.
    """
    parent = os.dup(0)
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)

    def watch() -> None:
        os.read(parent, 1)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, name="parent-watchdog", daemon=True).start()
