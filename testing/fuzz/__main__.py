"""Tries every parser with changed inputs: python -m testing.fuzz, which `make fuzz` calls.

Each input ends in a result or in an error of this project, within SECONDS and MEMORY_BYTES; anything else is printed
with the input that did it, which is kept in .scones/fuzz and tried first the next time.
"""

import argparse
import random
import resource
import signal
import sys
import time
import warnings
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed
from hypothesis import settings as examples
from hypothesis import strategies as st
from hypothesis.database import DirectoryBasedExampleDatabase

from settings import ROOT
from testing.fuzz.targets import TARGETS, Target

# Of one input: more is a hang.
SECONDS = 10
MEMORY_BYTES = 6_000_000_000
BATCH = 500
KEPT = ROOT / ".scones" / "fuzz"
# What text formats and numbers are sensitive to.
TOKENS = (
    *(b"\0", b"\xff", b"\n", b"\r\n", b'"', b"'", b"\\", b",", b"=", b"[" * 2000, b"{" * 2000, b"NaN", b"-1", b"1e999"),
    *(
        b"null",
        b"true",
        b"9" * 20,
        b"../",
        b"%00",
        b"\xf0\x9f\x9a\xb2",
        b"\xed\xa0\x80",
        b"\xe2\x80\xa8",
        b"\xef\xbb\xbf",
    ),
)


class Hung(BaseException):
    """An input took longer than SECONDS; no parser may catch it."""


def changed(content: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
    """Returns the content after changes, each of a kind, at a place, with some bytes."""
    result = bytearray(content)
    for kind, place, piece in changes:
        at = place % (len(result) + 1)
        if kind == 0:  # overwritten
            result[at : at + len(piece)] = piece
        elif kind == 1:  # inserted
            result[at:at] = piece
        elif kind == 2:  # cut out
            del result[at : at + place % 64 + 1]
        elif kind == 3:  # torn off
            del result[at:]
        elif kind == 4 and at < len(result):  # a bit
            result[at] ^= 1 << (place % 8)
        elif kind == 5:  # a piece twice
            result[at:at] = result[at : at + place % 200]
    return bytes(result)


def inputs(target: Target) -> st.SearchStrategy[bytes]:
    """Seeds with some changes, and now and then bytes of no seed at all."""
    pieces = st.one_of(st.sampled_from(TOKENS), st.binary(max_size=8))
    change = st.tuples(st.integers(0, 5), st.integers(0, 1 << 20), pieces)
    mutated = st.builds(changed, st.sampled_from(target.seeds), st.lists(change, min_size=1, max_size=6))
    return st.one_of(mutated, mutated, mutated, st.binary(max_size=400))


def try_it(target: Target, content: bytes) -> None:
    """Raises whatever is no error of this project, and Hung."""
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow about broken files
            target.call(content)
    except target.errors:
        pass
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def fuzz(name: str, target: Target, count: int, number: int) -> int:
    """Tries so many inputs and returns how many were; raises what is wrong. number: the seed."""
    tried = 0

    @seed(number)
    @examples(
        max_examples=count,
        deadline=None,
        database=DirectoryBasedExampleDatabase(KEPT / name.replace(" ", "-")),
        suppress_health_check=list(HealthCheck),
        phases=(Phase.reuse, Phase.generate, Phase.shrink),
    )
    @given(inputs(target))
    def run(content: bytes) -> None:
        nonlocal tried
        tried += 1
        try_it(target, content)

    run()
    return tried


def _hung(signum: int, frame: object) -> None:
    raise Hung


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m testing.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=5, help="in all (default: 5)")
    parser.add_argument("--examples", type=int, help="inputs of each parser, instead of a time")
    parser.add_argument("--seed", type=int, help="by default another one each time")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    signal.signal(signal.SIGALRM, _hung)
    number = random.randrange(1 << 30) if options.seed is None else options.seed
    began, counts, broken = time.monotonic(), dict.fromkeys(TARGETS, 0), dict[str, Any]()
    rounds = 0
    while True:
        for name, target in TARGETS.items():
            if name in broken:
                continue
            try:
                counts[name] += fuzz(name, target, options.examples or BATCH, number + rounds)
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                broken[name] = error
        rounds += 1
        if options.examples or time.monotonic() - began > options.minutes * 60:
            break
    print(f"{'parser':<28} {'inputs':>8}  crashes")
    for name, count in counts.items():
        print(f"{name:<28} {count:>8}  {1 if name in broken else 0}")
    print(f"{'together':<28} {sum(counts.values()):>8}  {len(broken)}, seed {number}, {time.monotonic() - began:.0f} s")
    for name, what in broken.items():
        print(f"\n{name}: {type(what).__name__}: {what}")
        for note in getattr(what, "__notes__", []):
            print(f"  {note[:2000]}")
    return int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
