"""Runs another module and ends with the process that started it: python -m local_aws.parent_watchdog MODULE ARGUMENTS.

The parent holds the other end of standard input, which the system closes if the parent ends, however it does.
"""

import os
import runpy
import signal
import sys
import threading
from pathlib import Path


def main() -> None:
    """Runs the module that the first argument names as `__main__`, with the other arguments."""
    start()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def start() -> None:
    """Kills this process's group as soon as standard input is closed."""
    parent = os.dup(0)
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)

    def watch() -> None:
        os.read(parent, 1)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, name="parent-watchdog", daemon=True).start()


if __name__ == "__main__":
    main()
