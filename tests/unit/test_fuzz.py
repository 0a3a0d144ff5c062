"""Some changed inputs for every parser, and that the fuzzer notices what it is there for."""

import signal
import subprocess
import sys
import time

import pytest

from local_aws.config import ROOT
from testing.fuzz import __main__ as fuzzer
from testing.fuzz.targets import TARGETS, Target


def test_every_parser_takes_its_seeds() -> None:
    for target in TARGETS.values():
        for content in target.seeds:
            fuzzer.try_it(target, content)


def test_some_inputs_of_every_parser_end_in_a_result_or_an_error_of_ours() -> None:
    command = [sys.executable, "-m", "testing.fuzz", "--examples", "30", "--seed", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("\n") >= len(TARGETS) + 2


CRASHES = """
from testing.fuzz.__main__ import fuzz
from testing.fuzz.targets import Target

def crashes(content):
    if b"\\\\" in content:
        raise ZeroDivisionError

fuzz("crashes", Target((b"seed",), crashes), 2000, 1)
"""


def test_a_crash_is_noticed() -> None:
    # In a process of its own: Hypothesis minds threads that draw random numbers meanwhile.
    done = subprocess.run([sys.executable, "-c", CRASHES], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr, done.stderr


def test_a_hang_is_noticed() -> None:
    def hangs(content: bytes) -> None:
        time.sleep(60)

    before = signal.signal(signal.SIGALRM, fuzzer._hung)
    try:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(fuzzer.Hung):
            patch.setattr(fuzzer, "SECONDS", 0.05)
            fuzzer.try_it(Target((b"",), hangs), b"")
    finally:
        signal.signal(signal.SIGALRM, before)
