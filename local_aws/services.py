"""Starts and stops the local services under supervisord, and leaves no process of theirs behind.

Every process that supervisord starts carries SCONES_SUPERVISED in its environment and hands it on to its children, in
whatever session or process group they put themselves: that is how strays are found.
"""

import fcntl
import hashlib
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from local_aws.certificate import ensure_certificate
from local_aws.config import ROOT, LocalConfig
from local_aws.credentials import credentials, private_folder, write_private
from local_aws.environment import (
    local_exports,
    prepare,
    process_environment,
    shell_script,
    work_pool,
    worker_settings,
)

MARK = "SCONES_SUPERVISED"
# Prefect sets it for the process of a flow run.
FLOW_RUN = "PREFECT__FLOW_RUN_ID"
START_SECONDS = 90
STOP_SECONDS = 40
BUSY_SECONDS = 10
# What a first demo writes below the state folder, several times over.
LEAST_FREE_BYTES = 500_000_000


class ServicesError(Exception):
    """The services can't be started or stopped; the message says what to do."""


def up(config: LocalConfig, real_aws: bool = False) -> list[str]:
    """Starts what is not running, waits until it answers, and has the worker use the present settings.

    Returns lines for a person: what was restarted and why, or what has to wait for flow runs in progress.
    """
    if real_aws:
        refuse_local_shell(config)
    prepare(config)
    with _lock(config):
        running = mode(config)
        wanted = "real" if real_aws else "local"
        if running not in (None, wanted):
            raise ServicesError(f"the services are up with AWS={running}; run `make down` first")
        changed = _changed(running_config(config), _service_settings(config)) if running else []
        busy = flow_run_processes(config) if running else []
        if changed or (running and running_settings(config) != worker_settings(config, real_aws)):
            busy = psutil.wait_procs(busy, timeout=BUSY_SECONDS)[1]  # one whose run has just ended is still leaving
        if changed and busy:
            raise ServicesError(
                f"the services run with other settings than these: {'; '.join(changed)}. {len(busy)} flow runs are in "
                "progress: wait for them, then run `make up` again, or stop everything with `make down`"
            )
        write_private(config.state / "env.sh", shell_script(config, real_aws))
        settings = worker_settings(config, real_aws)
        if running and not changed and all(answers(config, name) for name in _checked_services(real_aws)):
            return _renew_worker(config, settings, busy)
        _stop(config)
        _check_ports(config, real_aws)
        _check_space(config)
        if not real_aws:
            ensure_certificate(config.certificate, config.key)
        (config.state / "mode").write_text(wanted)
        write_private(config.state / "services.json", json.dumps(_service_settings(config)))
        write_private(config.worker_settings, json.dumps(settings))
        _supervisor(config, "supervisord", real_aws=real_aws)
        try:
            _start(config, real_aws)
        except BaseException:
            _stop(config)
            raise
    return [f"restarted the services: {line}" for line in changed]


def refuse_local_shell(config: LocalConfig) -> None:
    """Raises ServicesError if the shell has the environment of the embedded AWS."""
    if names := local_exports(config):
        raise ServicesError(
            f"AWS=real, and this shell has the environment of the local AWS ({', '.join(names)}): it sourced "
            f"{config.state / 'env.sh'}. Open another shell"
        )


def down(config: LocalConfig) -> None:
    """Stops the services and every process that they left."""
    if config.state.exists():
        with _lock(config):
            _stop(config)


def mode(config: LocalConfig) -> str | None:
    """'local' or 'real' while the supervisor runs, else None."""
    if _supervisor_process(config) is None:
        return None
    file = config.state / "mode"
    return file.read_text() if file.exists() else None


def status(config: LocalConfig) -> str:
    """A line per service and where it listens, or that they are down."""
    current = mode(config)
    if current is None:
        return "The services are down. `make up` starts them."
    lines = _supervisor(config, "supervisorctl", "status").stdout.strip()
    started = config.model_copy(update=running_config(config))
    where = [f"Prefect UI      {credentials(config).sign_in(started.prefect_url)}"]
    if current == "local":
        where += [f"ministack       {started.aws_url}", f"SageMaker       {started.sagemaker_url}"]
    return "\n".join([lines, "", *where, f"state and logs  {config.state}"])


def running_config(config: LocalConfig) -> dict[str, Any]:
    """Fields of LocalConfig that the services were started with, which may have changed since; empty if unknown."""
    try:
        found: dict[str, Any] = json.loads((config.state / "services.json").read_text())
    except (OSError, ValueError):
        return {}
    return found


def running_settings(config: LocalConfig) -> dict[str, str]:
    """Settings that the running worker was started with, by variable; empty if none runs."""
    if mode(config) is None or not config.worker_settings.exists():
        return {}
    found: dict[str, str] = json.loads(config.worker_settings.read_text())
    return found


def flow_run_processes(config: LocalConfig) -> list[psutil.Process]:
    """Processes in which the worker runs flows."""
    found = []
    for process in supervised_processes(config):
        with suppress(psutil.Error):
            parent = process.parent()
            if FLOW_RUN in process.environ() and (parent is None or FLOW_RUN not in parent.environ()):
                found.append(process)
    return found


def follow_logs(config: LocalConfig) -> None:
    """Shows what the services log, until Ctrl-C."""
    files = sorted(map(str, (config.state / "logs").glob("*.log")))
    if not files:
        raise ServicesError(f"there are no logs in {config.state / 'logs'}; run `make up` first")
    os.execvp("tail", ["tail", "-n", "20", "-F", *files])  # noqa: S606, S607


def clean(config: LocalConfig) -> None:
    """Stops the services and deletes all that they kept. Raises ServicesError for a folder that is not theirs."""
    found = {path.name for path in config.state.iterdir()} if config.state.exists() else set()
    if found and not found & {"lock", "logs", "cache"}:
        raise ServicesError(f"SCONES_STATE={config.state} is not a folder of the services, so it is not deleted")
    down(config)
    shutil.rmtree(config.state, ignore_errors=True)


def _service_settings(config: LocalConfig) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude={"state"})


def _changed(before: Mapping[str, object], after: Mapping[str, object]) -> list[str]:
    """What differs, as NAME: OLD -> NEW."""
    names = sorted(before.keys() | after.keys()) if before else []
    changed = [name for name in names if before.get(name) != after.get(name)]
    return [
        f"{_variable(name)}: changed"  # it may hold a password
        if name == "prefect_database"
        else f"{_variable(name)}: {before.get(name, 'not set')} -> {after.get(name, 'not set')}"
        for name in changed
    ]


def _variable(name: str) -> str:
    return name if name.startswith("SCONES_") else f"SCONES_{name.upper()}"


def _renew_worker(config: LocalConfig, settings: dict[str, str], busy: list[psutil.Process]) -> list[str]:
    """Restarts the worker if its settings have changed and no flow run is in progress."""
    changed = _changed(running_settings(config), settings)
    if not changed:
        return []
    if busy:
        return [
            f"NOT applied while {len(busy)} flow runs are in progress; run `make up` again afterwards: {line}"
            for line in changed
        ]
    write_private(config.worker_settings, json.dumps(settings))
    _supervisor(config, "supervisorctl", "restart", "worker")
    return [f"restarted the worker: {line}" for line in changed]


def supervised_processes(config: LocalConfig) -> list[psutil.Process]:
    """Every process that carries this installation's mark."""
    mark = _mark(config)
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


def _start(config: LocalConfig, real_aws: bool) -> None:
    services = _checked_services(real_aws)
    _supervisor(config, "supervisorctl", "start", *services)
    deadline = time.monotonic() + START_SECONDS
    for name in services:
        while not answers(config, name):
            if time.monotonic() > deadline:
                log = config.state / "logs" / f"{name}.log"
                tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:]) if log.exists() else ""
                raise ServicesError(f"{name} does not answer after {START_SECONDS} s; the end of {log}:\n{tail}")
            time.sleep(0.2)
    environment = process_environment(config, real_aws)
    pool = ["prefect", "work-pool", "create", work_pool(real_aws), "--type", "process", "--overwrite"]
    subprocess.run(pool, env=environment, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
    _supervisor(config, "supervisorctl", "start", "worker", "watch")


def _stop(config: LocalConfig) -> None:
    supervisor = _supervisor_process(config)
    if supervisor is not None:
        supervisor.terminate()
        try:
            supervisor.wait(STOP_SECONDS)
        except psutil.TimeoutExpired:
            supervisor.kill()
    # What is left was started in a session of its own, or its supervisor was killed. SIGTERM first, so that ministack
    # saves its state.
    me = {os.getpid()}
    strays = [process for process in supervised_processes(config) if process.pid not in me]
    for process in strays:
        _quietly(process.terminate)
    psutil.wait_procs(strays, timeout=15)
    for process in supervised_processes(config):
        _quietly(process.kill)
    psutil.wait_procs(strays, timeout=5)
    (config.state / "mode").unlink(missing_ok=True)


def _quietly(signal: object) -> None:
    assert callable(signal)
    with suppress(psutil.NoSuchProcess):
        signal()


def _checked_services(real_aws: bool) -> list[str]:
    return ["prefect-server"] if real_aws else ["prefect-server", "ministack", "sagemaker"]


def answers(config: LocalConfig, name: str) -> bool:
    """Whether prefect-server, ministack or sagemaker is up and healthy."""
    url = {
        "prefect-server": f"{config.prefect_url}/api/health",
        "ministack": f"{config.aws_url}/_ministack/health",
        "sagemaker": f"{config.sagemaker_url}/ping",
    }[name]
    context = ssl.create_default_context(cafile=str(config.certificate)) if url.startswith("https") else None
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
    if context:
        handlers.append(urllib.request.HTTPSHandler(context=context))
    try:
        with urllib.request.build_opener(*handlers).open(url, timeout=5) as response:
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def _check_ports(config: LocalConfig, real_aws: bool) -> None:
    ports = [("Prefect server", "SCONES_PREFECT_PORT", config.prefect_port)]
    if not real_aws:
        ports += [
            ("ministack", "SCONES_AWS_PORT", config.aws_port),
            ("SageMaker server", "SCONES_SAGEMAKER_PORT", config.sagemaker_port),
        ]
    for service, variable, port in ports:
        check_port(service, variable, port)


def check_port(service: str, variable: str, port: int) -> None:
    """Raises ServicesError if somebody listens on a port of 127.0.0.1. variable: the setting that chooses another."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ServicesError(
                f"port {port} for the {service} is taken{_taken_by(port)}; stop that process, or choose another "
                f"port with {variable}"
            ) from error


def _taken_by(port: int) -> str:
    for process in psutil.process_iter(["name"]):
        try:
            connections = process.net_connections(kind="tcp")
        except psutil.Error:
            continue
        if any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in connections):
            return f" by {process.info['name']} (process {process.pid})"
    return ""


def _supervisor(
    config: LocalConfig, command: str, *arguments: str, real_aws: bool = False
) -> subprocess.CompletedProcess[str]:
    ours = {
        "SCONES_SOCKET": str(_socket(config)),
        "SCONES_AUTHORIZER": config.authorizer_url,
        "SCONES_WORK_POOL": work_pool(real_aws),
    }
    environment = {**process_environment(config, real_aws), **ours}
    if command == "supervisord":
        environment[MARK] = _mark(config)
        for name in worker_settings(config, real_aws):
            del environment[name]  # local_aws/worker.py has them from a file that may change
    program = [str(Path(sys.executable).parent / command), "-c", str(ROOT / "supervisord.conf"), *arguments]
    # A session of its own, so that Ctrl-C in the terminal does not reach it.
    done = subprocess.run(program, env=environment, cwd=ROOT, text=True, capture_output=True, start_new_session=True)
    if command == "supervisord" and done.returncode:
        raise ServicesError(f"supervisord did not start: {done.stdout}{done.stderr}")
    return done


def _supervisor_process(config: LocalConfig) -> psutil.Process | None:
    file = config.state / "supervisord.pid"
    try:
        process = psutil.Process(int(file.read_text()))
        # The number may belong to another process by now.
        return process if process.environ().get(MARK) == _mark(config) else None
    except (OSError, ValueError, psutil.Error):
        return None


def _mark(config: LocalConfig) -> str:
    return str(config.state.resolve())


def _socket(config: LocalConfig) -> Path:
    # Not below the state folder: a socket's path has about 100 characters at most.
    digest = hashlib.sha256(_mark(config).encode()).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"scones-{os.getuid()}-{digest}.sock"


def _check_space(config: LocalConfig) -> None:
    """Raises ServicesError if the disk is so full that databases and images would break in the middle of a run."""
    free = shutil.disk_usage(config.state).free
    if free < LEAST_FREE_BYTES:
        raise ServicesError(
            f"only {free / 1e6:.0f} MB are free for {config.state}, and the services need "
            f"{LEAST_FREE_BYTES / 1e6:.0f}: make room, or choose another folder with SCONES_STATE"
        )


@contextmanager
def _lock(config: LocalConfig) -> Iterator[None]:
    """One `up` or `down` at a time."""
    private_folder(config.state)
    with (config.state / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
