"""How commands show what they found: tables for people, JSON for programs, errors in lines of their own."""

import codecs
import io
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

# What went wrong, apart from what was found.
FAILED = 2
# What came of an image, in words.
TOLD = {
    "accepted": "accepted",
    "below_threshold": "not accepted: below the threshold",
    "not_a_class": "not accepted: looks like none of the classes",
    "failed": "failed",
    "not_submitted": "not submitted: the evaluation stopped before its turn",
}


def escape_what_streams_lack() -> None:
    """Characters that standard output and error can't encode are written as escapes, not as an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def console() -> Console:
    """Of standard output; as wide as the text where it is no terminal, so that no line is broken."""
    return Console(soft_wrap=True, highlight=False)


def show_json(value: Any) -> None:
    """One JSON document, in ASCII where the stream takes no UTF-8: its own escapes are no JSON."""
    escaped = codecs.lookup(sys.stdout.encoding).name != "utf-8"
    sys.stdout.write(json.dumps(msgspec.to_builtins(value), ensure_ascii=escaped, indent=2) + "\n")


def show_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Cells are text as it is: names of files may hold anything. No line ends in blanks."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=not sys.stdout.isatty())
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    target = Console(width=None if sys.stdout.isatty() else 10_000, highlight=False)
    with target.capture() as captured:
        target.print(table)
    for line in captured.get().splitlines():
        sys.stdout.write(f"{line.rstrip()}\n")


def show_line(text: str = "", style: str = "") -> None:
    console().print(Text(printable(text)), style=style or None)


def progress(text: str) -> None:
    """To standard error, which a pipe does not take along."""
    sys.stderr.write(f"{printable(text)}\n")


def printable(text: str) -> str:
    """Without what would move a terminal's cursor."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


@contextmanager
def errors_in_lines(*kinds: type[Exception]) -> Iterator[None]:
    """Errors of these kinds end the command with their message, a line each, and the status FAILED."""
    try:
        yield
    except kinds as error:
        for line in str(error).splitlines():
            progress(f"error: {line}")
        raise typer.Exit(FAILED) from error
