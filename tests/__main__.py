"""Every test: python -m tests. Two halves side by side, as each mostly waits for processes of its own.

Interrupted by Ctrl-C, both halves stop what they started before this ends.
"""

import subprocess
import sys
import threading

# Its tests start stacks of their own, so they need not be where the shared one is.
OWN_STACKS = "tests/integration/test_processes.py"
HALVES = (
    ("tests/unit", "tests/integration", f"--ignore={OWN_STACKS}"),
    ("tests/sagemaker", OWN_STACKS),
)


def main() -> int:
    """Prints both outputs, whole lines as they come; 0 where both halves passed."""
    command = [sys.executable, "-m", "pytest"]
    halves = [subprocess.Popen([*command, *half], stdout=subprocess.PIPE, text=True) for half in HALVES]
    readers = [threading.Thread(target=_print, args=(half,)) for half in halves]
    for reader in readers:
        reader.start()
    codes = [_wait(half) for half in halves]
    for reader in readers:
        reader.join()
    return max(codes)


def _print(half: "subprocess.Popen[str]") -> None:
    assert half.stdout is not None
    with half.stdout:
        for line in half.stdout:
            sys.stdout.write(line)
            sys.stdout.flush()


def _wait(half: "subprocess.Popen[str]") -> int:
    while True:
        try:
            return abs(half.wait())
        except KeyboardInterrupt:  # the halves got it too, and are cleaning up
            continue


if __name__ == "__main__":
    sys.exit(main())
