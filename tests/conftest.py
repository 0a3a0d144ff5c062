"""The tests' ground: a shell that is set up for somebody else's AWS account and Prefect workspace.

All tests run in it. A trap listens where its variables point to, and must not have been called when the session ends.
"""

import fcntl
import http.server
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler.loadscope import LoadScopeScheduling

from local_aws import services
from local_aws.config import LocalConfig, free_port
from local_aws.environment import enter

FOLDER = "TESTS_FOLDER"
# Tests that share a stack or a server run in one process, one after another. A file's group is the first whose path it
# begins with.
GROUPS = {
    "integration/test_rollout": "rollouts",
    "integration/test_strict_aws": "rollouts",
    "integration/test_processes": "processes",
    "integration/test_review": "processes",
    "integration/test_alarms": "processes",
    "integration/test_bulk": "bulk",
    "integration/test_schedules": "bulk",
    "integration/test_distributed_map": "bulk",
    "integration/test_own_images": "bulk",
    "integration/test_recovery": "bulk",
    "integration/test_training": "bulk",
    "integration": "stack",
    "local_sagemaker/test_restart": "restart",
    "local_sagemaker/test_distribution": "distribution",
    "local_sagemaker": "sagemaker",
}
# The longest begin.
ORDER = ("rollouts", "stack", "bulk", "processes", "sagemaker", "unit/test_classifier", "restart", "distribution")


class Trap(http.server.ThreadingHTTPServer):
    """Stands for the real account and workspace; keeps what it was asked."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        trap = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def handle_one_request(self) -> None:
                trap.calls.append(self.rfile.readline().decode(errors="replace"))
                self.close_connection = True

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


def poison(trap: Trap, folder: Path) -> dict[str, str]:
    """What an engineer with a real account and workspace may have exported."""
    config = folder / "aws-config"
    config.write_text(f"[profile production]\nregion = eu-central-1\nendpoint_url = {trap.url}\n")
    credentials = folder / "aws-credentials"
    credentials.write_text("[production]\naws_access_key_id = AKIAREALKEY\naws_secret_access_key = real\n")
    return {
        "AWS_PROFILE": "production",
        "AWS_CONFIG_FILE": str(config),
        "AWS_SHARED_CREDENTIALS_FILE": str(credentials),
        "AWS_ACCESS_KEY_ID": "AKIAREALKEY",
        "AWS_SECRET_ACCESS_KEY": "real",
        "AWS_SESSION_TOKEN": "real",
        "AWS_REGION": "eu-central-1",
        "AWS_ENDPOINT_URL": trap.url,
        "AWS_ENDPOINT_URL_S3": trap.url,
        "AWS_ENDPOINT_URL_STS": trap.url,
        "AWS_ENDPOINT_URL_SAGEMAKER": trap.url,
        "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{trap.url}/credentials",
        "HTTP_PROXY": trap.url,
        "HTTPS_PROXY": trap.url,
        "ALL_PROXY": trap.url,
        "PREFECT_API_URL": f"{trap.url}/api/accounts/1/workspaces/2",
        "PREFECT_API_KEY": "pnu_real",
        "PREFECT_PROFILE": "cloud",
    }


# Before anything imports boto3 or prefect. A worker of pytest-xdist finds the folder of all of them in the environment.
_all_folders = Path(os.environ.get(FOLDER) or tempfile.mkdtemp(prefix="scones-tests-"))
os.environ[FOLDER] = str(_all_folders)
_folder = _all_folders / os.environ.get("PYTEST_XDIST_WORKER", "main")
_folder.mkdir(exist_ok=True)
TRAP = Trap()
POISON = poison(TRAP, _folder)
os.environ.update(POISON)
for _name in [name for name in os.environ if name.startswith("SCONES_")]:
    del os.environ[_name]
# The developer's own settings are not the tests'.
(_folder / "scones.env").touch()
os.environ.update(
    {
        "SCONES_STATE": str(_folder / "state"),
        "SCONES_SETTINGS": str(_folder / "scones.env"),
        "SCONES_PREFECT_PORT": str(free_port()),
        "SCONES_AWS_PORT": str(free_port()),
        "SCONES_SAGEMAKER_PORT": str(free_port()),
        "SCONES_REPORTS": str(_folder / "reports"),
        "SCONES_CACHE": str(_folder / "cache"),
        # Small, so that the tests are quick; enough to tell the drawings apart now and then.
        "SCONES_GENERATED_PER_CLASS": "40",
        "SCONES_GENERATED_TEST_PER_CLASS": "10",
        "SCONES_EPOCHS": "12",
        "SCONES_FOLDS": "2",
        "SCONES_REPEATS": "1",
        "SCONES_MINI_BATCH_SIZE": "16",
        # Such models are poor: what the gate and the smoke test ask for by default is tested by itself.
        "SCONES_GATE_MIN_ACCURACY": "0.3",
        "SCONES_GATE_MARGIN": "1",
        "SCONES_SMOKE_MIN_ACCURACY": "0.3",
        "SCONES_EVALUATION_MIN_ACCURACY": "0",
        "SCONES_EVALUATION_MIN_COVERAGE": "0",
        "SCONES_CAPTURE_MAX_SECONDS": "60",
        "SCONES_REVIEW_PER_DAY": "10000",
        # Jobs of several tests share the processors; threads that wait for each other in turns would take all of them.
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        # Which role called what is read from it.
        "CLOUDTRAIL_RECORDING": "1",
    }
)
CONFIG = LocalConfig()
enter(CONFIG)


@pytest.fixture(scope="session")
def config() -> LocalConfig:
    return CONFIG


@pytest.fixture(scope="session", autouse=True)
def nothing_reaches_the_real_account():  # type: ignore[no-untyped-def]
    yield
    assert TRAP.calls == []


def give_migrated_database(config: LocalConfig, real_aws: bool = False) -> None:
    """Gives an installation that was never up a Prefect database with its tables, which are made once for all tests.

    Making them takes several seconds of a processor, and most of the time that a new Prefect server needs to start.
    """
    template = _all_folders / "prefect.db"
    with exclusive_file(_all_folders / "prefect.lock"):
        if not template.exists():
            new = template.with_suffix(".new")
            url = f"sqlite+aiosqlite:///{new}"
            command = [sys.executable, "-m", "prefect", "server", "database", "upgrade", "--yes"]
            environment = {**os.environ, "PREFECT_SERVER_DATABASE_CONNECTION_URL": url}
            subprocess.run(command, env=environment, check=True, capture_output=True, timeout=120)
            new.rename(template)
    home = config.prefect_home(real_aws)
    home.mkdir(parents=True, exist_ok=True)
    shutil.copy(template, home / "prefect.db")


@contextmanager
def exclusive_file(path: Path) -> Iterator[None]:
    """Holds a lock against the other processes of the test run."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def group_of(path: str) -> str:
    """The group of a test's file, given below tests/ without its suffix; by default the file is one by itself."""
    return next((name for beginning, name in GROUPS.items() if path.startswith(beginning)), path)


class Groups(LoadScopeScheduling):
    """Hands pytest-xdist's workers one group of tests after another."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::")[0]
        return group_of(file.removeprefix("tests/").removesuffix(".py"))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Groups:
    return Groups(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Unit tests first; but pytest-xdist starts with the group that takes longest."""
    for item in items:
        if "unit" not in item.path.parts:
            item.add_marker(pytest.mark.services)
    items.sort(key=_turn if "PYTEST_XDIST_WORKER" in os.environ else _needs_services)


def _needs_services(item: pytest.Item) -> bool:
    return item.get_closest_marker("services") is not None


def _turn(item: pytest.Item) -> int:
    group = group_of(item.path.relative_to(Path(__file__).parent).with_suffix("").as_posix())
    return ORDER.index(group) if group in ORDER else len(ORDER)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stops what an interrupted or killed worker has left; a worker itself leaves that to the process that began."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        for state in _all_folders.glob("*/state"):
            services.down(LocalConfig(state=state))
        shutil.rmtree(_all_folders, ignore_errors=True)
