"""Flow runs of the deployments, and the processes behind them and behind the endpoint."""

import re
import time
from contextlib import suppress
from typing import Any
from uuid import UUID

import psutil
from prefect.client.orchestration import get_client
from prefect.states import Scheduled

from local_aws import services
from local_aws.config import LocalConfig
from testing.waiting import eventually

WAIT_SECONDS = 300


def started(deployment: str, parameters: dict[str, Any], environment: dict[str, str]) -> UUID:
    """A new flow run of the deployment, with more in its environment."""
    with get_client(sync_client=True) as prefect:
        found = prefect.read_deployment_by_name(deployment)
        variables = {"env": environment}
        run = prefect.create_flow_run_from_deployment(found.id, parameters=parameters, job_variables=variables)
    return run.id


def ended(run: UUID, *states: str, after: str | None = None) -> str:
    """Waits until the flow run is in a state of one of the names, and returns the state's message.

    after: the name of a state that it has to be seen in first.
    """
    deadline = time.monotonic() + WAIT_SECONDS
    with get_client(sync_client=True) as prefect:
        while after is not None and prefect.read_flow_run(run).state_name != after:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        while True:
            found = prefect.read_flow_run(run).state
            assert found is not None
            if found.name in states:
                return found.message or ""
            # A crashed run may be started again.
            assert not found.is_final() or found.is_crashed(), found
            assert time.monotonic() < deadline, found
            time.sleep(0.3)


def retried(run: UUID, *states: str) -> str:
    """Schedules a flow run again, as Retry in the UI does, and waits until it has run to one of these states."""
    with get_client(sync_client=True) as prefect:
        before = prefect.read_flow_run(run).run_count
        prefect.set_flow_run_state(run, Scheduled(name="AwaitingRetry"), force=True)
        eventually(lambda: prefect.read_flow_run(run).run_count > before, WAIT_SECONDS)
    return ended(run, *states)


def processes_of(run: UUID) -> list[psutil.Process]:
    """Those of a flow run that the worker started."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("PREFECT__FLOW_RUN_ID") == str(run):
                found.append(process)
    return found


def worker_processes(config: LocalConfig) -> list[psutil.Process]:
    """The Prefect worker's."""
    return _with_argument(config, "^worker$")


def model_servers(config: LocalConfig) -> list[psutil.Process]:
    """Those in which models run, a process per instance of an endpoint."""
    in_use = {process.pid for process in _with_argument(config, r"local_sagemaker(\.|/)fork_server")}
    forked = [process for process in services.supervised_processes(config) if _parent(process) in in_use]
    return forked + _with_argument(config, r"local_sagemaker\.model_server")  # one whose Environment forbids a fork


def ministack(config: LocalConfig) -> list[psutil.Process]:
    """ministack itself, without the functions that it runs."""
    return _with_argument(config, r"local_aws\.ministack$")


def function_processes(config: LocalConfig, module: str) -> list[psutil.Process]:
    """Those in which a Lambda function runs. module: of its handler, such as classify_batch."""
    return _with_argument(config, rf"^{module}\.handler$")


def _parent(process: psutil.Process) -> int | None:
    with suppress(psutil.Error):
        return process.ppid()
    return None


def _with_argument(config: LocalConfig, pattern: str) -> list[psutil.Process]:
    found = []
    for process in services.supervised_processes(config):
        with suppress(psutil.Error):
            if any(re.search(pattern, argument) for argument in process.cmdline()):
                found.append(process)
    return found
