"""Every test: python -m tests. Three parts side by side, as each mostly waits for processes of its own.

Interrupted by Ctrl-C, all parts stop what they started before this ends.
"""

import subprocess
import sys
import threading

# Of tests that take as long together, as measured on 2 cores. The first and the last start a stack.
OTHERS = ("tests/integration/test_rollout.py", "tests/integration/test_permissions.py")
OWN_STACKS = "tests/integration/test_processes.py"
PARTS = (
    ("tests/integration", *(f"--ignore={path}" for path in (*OTHERS, OWN_STACKS))),
    ("tests/unit", "tests/local_sagemaker", OWN_STACKS),
    OTHERS,
)


def main() -> int:
    """Prints their outputs, whole lines as they come; 0 if every part passed."""
    command = [sys.executable, "-m", "pytest"]
    parts = [subprocess.Popen([*command, *part], stdout=subprocess.PIPE, text=True) for part in PARTS]
    readers = [threading.Thread(target=_print, args=(part,)) for part in parts]
    for reader in readers:
        reader.start()
    codes = [_wait(part) for part in parts]
    for reader in readers:
        reader.join()
    return max(codes)


def _print(part: "subprocess.Popen[str]") -> None:
    assert part.stdout is not None
    with part.stdout:
        for line in part.stdout:
            sys.stdout.write(line)
            sys.stdout.flush()


def _wait(part: "subprocess.Popen[str]") -> int:
    while True:
        try:
            return abs(part.wait())
        except KeyboardInterrupt:  # the parts got it too, and are cleaning up
            continue


if __name__ == "__main__":
    sys.exit(main())
