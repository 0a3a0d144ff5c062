"""The local stack, started once for the session, with the pipeline run once through its deployment."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest

from local_aws import services
from local_aws.config import ROOT, LocalConfig
from tests.conftest import POISON, give_migrated_database


@pytest.fixture(scope="session")
def stack(config: LocalConfig) -> Iterator[LocalConfig]:
    """Prefect server, worker, ministack and SageMaker server, with prefect.yaml applied."""
    from deploy import bring_up

    give_migrated_database(config)
    try:
        bring_up(config)
        yield config
    finally:
        services.down(config)
    assert services.supervised_processes(config) == []
    assert server_errors(config) == []


# How the tracebacks of requests end that were under way when the server was told to stop.
BANNER = re.compile(r"\s*_{3} _{3}")
CUT_OFF = re.compile("CancelledError|KeyboardInterrupt|shutdown|[Cc]losed|no active connection|WebSocketDisconnected")


def server_errors(config: LocalConfig, stopped_at_any_time: bool = False) -> list[str]:
    """Errors with a traceback in the log of the Prefect server: when, what it did, and how the traceback ends.

    stopped_at_any_time: leave out those of requests that its end cut off.
    """
    file = config.state / "logs" / "prefect-server.log"
    log = file.read_text(errors="replace") if file.exists() else ""
    lines = [entry.strip().splitlines() for entry in re.split(r"(?m)^(?=\d\d:\d\d:\d\d\.\d+ \| )", log)]
    # A server that was killed is followed by the banner of the next one, which is no part of the entry.
    lines = [list(takewhile(lambda line: not BANNER.match(line), entry)) for entry in lines]
    errors = [entry for entry in lines if entry and " | ERROR " in entry[0] and any("Traceback" in x for x in entry)]
    # A test that deletes an automation of its own may do so while Prefect evaluates it. If two transactions read before
    # they write, SQLite refuses one of them at once, whatever time-out is set
    # (https://www.sqlite.org/rescode.html#busy_snapshot). Prefect repeats it: a client repeats a request on 503, the
    # next heartbeat stands for one that was lost, and the recorder of events says how many it dropped.
    shown = ["\n".join([entry[0], "...", *entry[-6:]]) for entry in errors]
    told = [text for text in shown if "FOREIGN KEY constraint failed" not in text and not repeated(text)]
    return [text for text in told if not (stopped_at_any_time and CUT_OFF.search(text.splitlines()[-1]))]


def repeated(text: str) -> bool:
    """Returns whether an error is a transaction that SQLite refused and Prefect repeats."""
    return "database is locked" in text and (" 0 dropped)" in text or "dropped)" not in text)


@pytest.fixture(scope="session")
def demo(stack: LocalConfig) -> subprocess.CompletedProcess[str]:
    """`make demo` on generated images, through the worker."""
    return run_demo("--dataset", "generated")


def run_demo(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """From a shell that is set up for somebody else's account, and has these settings besides."""
    command = [sys.executable, "demo.py", *arguments]
    environment = {**os.environ, **POISON, **settings}
    return subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True, timeout=800)


@pytest.fixture(scope="session")
def installed(demo: subprocess.CompletedProcess[str]) -> Any:
    """The installation that the demo left."""
    from tasks.aws.stacks import installation

    assert demo.returncode == 0, demo.stdout + demo.stderr
    return installation()


@pytest.fixture(scope="session")
def evaluation(
    installed: Any, demo: subprocess.CompletedProcess[str]
) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    """Summary, results and manifest of the demo's evaluation, as they are in the bucket."""
    from tasks.aws import storage

    shown = re.search(r"/([0-9-]{10}/[0-9a-f]{12})/report.html", demo.stdout)
    assert shown, demo.stdout
    prefix = f"evaluations/{shown[1]}/"
    results = storage.get_json_lines(installed.bucket, f"{prefix}results.jsonl")
    manifest = storage.get_json_lines(installed.bucket, f"{prefix}manifest.jsonl")
    assert results is not None and manifest is not None
    return storage.get_json(installed.bucket, f"{prefix}summary.json"), results, manifest


def run_flow(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own, with the local environment and more."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        text=True,
        capture_output=True,
        timeout=600,
    )


def reports_folder() -> Path:
    return Path(os.environ["SCONES_REPORTS"])


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())
