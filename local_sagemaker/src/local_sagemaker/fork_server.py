"""Starts model servers as forks of one process that has loaded PyTorch and AWS's inference toolkit.

Loading them takes seconds, and most of a model server's memory; a fork has them at once and shares them with the
others. What a model's Environment decides while Python or PyTorch start can't reach a fork: see `can_fork`.
"""

import contextlib
import gc
import importlib
import json
import os
import select
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import IO, NoReturn

PRELOADED = (
    "local_sagemaker.model_server",
    "numpy",
    "sagemaker_inference.transformer",
    "sagemaker_pytorch_serving_container.default_pytorch_inference_handler",
)
# Beginnings of variables that Python, the dynamic linker and numerical libraries read when they are loaded.
STARTUP_VARIABLES = ("PYTHON", "LD_", "OMP_", "MKL_", "KMP_", "OPENBLAS_", "TORCH_", "MALLOC_", "GOMP_")
# A fork with PyTorch loaded is not safe on macOS.
AVAILABLE = sys.platform == "linux"


def can_fork(environment: Mapping[str, str]) -> bool:
    """Whether a fork behaves like a new process with these variables."""
    return AVAILABLE and not any(name.startswith(STARTUP_VARIABLES) for name in environment)


class ForkServer:
    """The server's side: asks the process, which the first request starts, for forks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def start(
        self, arguments: list[str], environment: Mapping[str, str], folder: Path, listener: socket.socket
    ) -> "ForkedProcess":
        """A model server in a session of its own that listens at `listener` and writes its output to a pipe."""
        stdin_read, stdin_write = os.pipe()
        stdout_read, stdout_write = os.pipe()
        request_read, request_write = os.pipe()
        status_read, status_write = os.pipe()
        handed_over = (stdin_read, stdout_write, listener.fileno(), request_read, status_write)
        try:
            with self._lock:
                socket.send_fds(self._running(), [b"f"], handed_over)
        finally:
            for fd in (stdin_read, stdout_write, request_read, status_write):
                os.close(fd)
        request = {"arguments": arguments, "environment": dict(environment), "folder": str(folder)}
        with contextlib.suppress(BrokenPipeError), open(request_write, "wb") as file:
            file.write(json.dumps(request).encode())
        return ForkedProcess(status_read, open(stdin_write, "wb"), open(stdout_read, "rb"))

    def stop(self) -> None:
        """Ends the process; its forks go on."""
        with self._lock:
            if self._process is not None and self._control is not None:
                self._control.close()
                self._process.wait()

    def _running(self) -> socket.socket:
        if self._process is None or self._control is None or self._process.poll() is not None:
            self._control, other = socket.socketpair()
            with other:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "local_sagemaker.fork_server", str(other.fileno())],
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                    pass_fds=(other.fileno(),),
                )
        return self._control


class ForkedProcess:
    """A process that is no child of this one, with what is needed of subprocess.Popen."""

    def __init__(self, status: int, stdin: IO[bytes], stdout: IO[bytes]) -> None:
        self.stdin: IO[bytes] | None = stdin
        self.stdout: IO[bytes] | None = stdout
        self._status = open(status, "rb", buffering=0)  # noqa: SIM115 closed with the last that it tells
        self._lock = threading.Lock()
        self._code: int | None = None
        text = self._status.readline()
        if not text:
            raise OSError("the process that forks model servers ended")
        self.pid = int(text)

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        with self._lock:
            if self._code is None and select.select([self._status], [], [], 0)[0]:
                text = self._status.readline()
                self._code = int(text) if text else -signal.SIGKILL
                self._status.close()
            return self._code

    def wait(self, timeout: float | None = None) -> int:
        """The exit code. Raises subprocess.TimeoutExpired."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            left = 1.0 if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise subprocess.TimeoutExpired(["model_server"], timeout or 0)
            with contextlib.suppress(ValueError):  # another thread was told the end meanwhile
                select.select([self._status], [], [], left)
        return code


def main() -> None:
    """The process: preloads, then forks for every request until the server's end of the socket is closed."""
    control = socket.socket(fileno=int(sys.argv[1]))
    for name in PRELOADED:
        importlib.import_module(name)
    # What is there stays: a collection would touch, and so copy, the pages that forks share.
    gc.collect()
    gc.freeze()
    awake, wake = os.pipe()
    os.set_blocking(awake, False)
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    statuses: dict[int, int] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_READ)
        selector.register(awake, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fd == awake:
                    _report_ended(awake, statuses)
                    continue
                message, fds, _, _ = socket.recv_fds(control, 1, 5)
                if not message:
                    return
                *mine, status = fds
                pid = os.fork()
                if pid == 0:
                    _become_model_server(mine, [control.fileno(), awake, wake, status, *statuses.values()])
                statuses[pid] = status
                os.write(status, b"%d\n" % pid)
                for fd in mine:
                    os.close(fd)


def _report_ended(awake: int, statuses: dict[int, int]) -> None:
    with contextlib.suppress(BlockingIOError):
        os.read(awake, 4096)
    for pid in list(statuses):
        ended, code = os.waitpid(pid, os.WNOHANG)
        if ended:
            status = statuses.pop(pid)
            with contextlib.suppress(BrokenPipeError):
                os.write(status, b"%d\n" % os.waitstatus_to_exitcode(code))
            os.close(status)


def _become_model_server(mine: list[int], others: list[int]) -> NoReturn:
    """What a fork does; it never returns to the loop of the process that it was forked from."""
    code = 1
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        stdin, stdout, listener, request = mine
        for fd in others:
            os.close(fd)
        for source, target in ((stdin, 0), (stdout, 1), (stdout, 2)):
            os.dup2(source, target)
        os.close(stdin)
        os.close(stdout)
        with open(request, "rb") as file:
            wanted = json.load(file)
        os.environ.clear()
        os.environ.update(wanted["environment"])
        os.chdir(wanted["folder"])
        sys.argv = ["model_server", "--fd", str(listener), *wanted["arguments"]]
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
        import numpy as np

        from local_sagemaker import closed_imports, isolation, model_server

        closed_imports.close()
        isolation.isolate()
        np.random.seed()  # its global state would be the same in every fork
        model_server.main()
        code = 0
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
