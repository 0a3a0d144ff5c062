"""The rooms of the house: what may import what, and what an import of a flow must not load."""

import ast
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from local_aws.config import ROOT

# The folders and files of tasks/, each above all that it imports.
FLOORS = (
    {"errors"},
    {"answers", "archives", "cancellation", "prices", "records", "run", "waiting"},
    {"installation", "heartbeat"},
    {"aws"},
    {"exclusive"},
    {"data", "model", "evaluation", "capture"},
    {"serving"},
    {"bulk", "review"},
    {"report", "costs", "teardown", "preflight"},
    {"schemas"},
)
# Folders that run somewhere else, or by themselves, and import nothing else of this project.
ISLANDS = ("lambdas", "classifier", "local_aws", "local_sagemaker")
PROJECT = {
    "cli",
    "flows",
    "tasks",
    "settings",
    "schedules",
    "statemachine",
    "status",
    "watch",
    "testing",
    "tests",
    "benchmarks",
    "conformance",
    "cost",
    "environment",
    "deploy",
    "demo",
    "review",
    *ISLANDS,
}
SINCE_PREFECT = "import sys, prefect.flows; import {module}; print(*[name for name in {names} if name in sys.modules])"


def imported(file: Path) -> set[str]:
    """Names of all modules that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def arrows() -> dict[str, set[str]]:
    """Which rooms of tasks/ each room imports."""
    found: dict[str, set[str]] = defaultdict(set)
    for file in (ROOT / "tasks").rglob("*.py"):
        room = file.relative_to(ROOT / "tasks").parts[0].removesuffix(".py")
        names = {name.split(".")[1] for name in imported(file) if name.startswith("tasks.")}
        found[room] |= names - {room}
    return found


def test_no_import_of_tasks_goes_up() -> None:
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    wrong = {(room, other) for room, others in arrows().items() for other in others if floor[other] >= floor[room]}
    assert wrong == set()


def test_tasks_import_no_flow_and_nobody_imports_tests() -> None:
    for folder, forbidden in (
        ("tasks", {"flows", "watch"}),
        ("flows", {"watch"}),
        ("benchmarks", {"tests"}),
        ("testing", {"tests"}),
    ):
        for file in (ROOT / folder).rglob("*.py"):
            assert not {name.split(".")[0] for name in imported(file)} & forbidden, file


@pytest.mark.parametrize("island", ISLANDS)
def test_islands_import_only_themselves(island: str) -> None:
    # The embedded AWS runs the SageMaker server, a package of its own.
    allowed = {island, "local_sagemaker"} if island == "local_aws" else {island}
    for file in (ROOT / island).rglob("*.py"):
        assert not {name.split(".")[0] for name in imported(file)} & (PROJECT - allowed), file


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("flows.identity", ["boto3", "pandas"]),
        ("flows.deploy_endpoint", ["pyarrow", "pandas", "matplotlib", "sagemaker.core", "prefect_aws"]),
        ("flows.nightly_evaluation", ["pyarrow", "pandas", "matplotlib", "sagemaker.core", "prefect_aws"]),
        ("flows.confidence_report", ["matplotlib", "sagemaker.core", "prefect_aws", "torch"]),
        ("flows.pipeline", ["matplotlib", "sagemaker.core", "prefect_aws", "torch"]),
    ],
)
def test_a_flow_loads_only_what_it_needs(module: str, names: list[str]) -> None:
    code = SINCE_PREFECT.format(module=module, names=names)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
