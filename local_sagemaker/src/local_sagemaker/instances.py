"""Instances: a model process each, from the model's data in S3 to the first answer to /ping."""

import http.client
import os
import shutil
import socket
import tarfile
import threading
import time
import urllib.request
import uuid
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from botocore.exceptions import ClientError

from local_sagemaker import account, model_server
from local_sagemaker.container import Container, Process, container_environment, start_process
from local_sagemaker.fork_server import ForkServer, can_fork
from local_sagemaker.store import Record

LOG_GROUP = "/aws/sagemaker/Endpoints"
STOP_GRACE_SECONDS = 3.0
PING_SECONDS = 2
PINGS_MISSED = 3
IMAGES = ("pytorch",)


class HostingFailed(Exception):
    """A fleet can't serve; the message is the endpoint's FailureReason."""


@dataclass(eq=False)
class Instance:
    """One model process. `in_flight` counts the requests that it works on."""

    container: Container
    url: str
    in_flight: int = 0
    missed_pings: int = 0

    @property
    def healthy(self) -> bool:
        return self.container.exit_code is None and self.missed_pings < PINGS_MISSED

    def ping(self) -> bool:
        """Whether GET /ping answers; no proxy of the shell's stands between."""
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
                f"{self.url}/ping", timeout=PING_SECONDS
            ) as answer:
                return bool(answer.status == 200)
        except (OSError, http.client.HTTPException):
            return False

    def stop(self) -> None:
        self.container.stop(STOP_GRACE_SECONDS)


class Instances:
    """Starts and stops model processes. A model's data is unpacked once, below `folder`.

    worker_delay: seconds for which an instance that passed its health check has no worker yet, as can be on AWS.
    """

    def __init__(self, folder: Path, model_seconds: float, worker_delay: float = 0.0) -> None:
        self._folder = folder
        self._model_seconds = model_seconds
        self._worker_delay = worker_delay
        self._live: set[Instance] = set()
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._forks = ForkServer()

    def start(self, endpoint: str, plans: list[Record]) -> list[Instance]:
        """All of them or none; raises what the first that failed raised."""
        if not plans:
            return []
        with ThreadPoolExecutor(len(plans)) as threads:
            futures = [threads.submit(self._start, endpoint, plan) for plan in plans]
        errors = [error for future in futures if (error := future.exception())]
        if errors:
            for future in futures:
                if not future.exception():
                    self.stop(future.result())
            raise errors[0]
        return [future.result() for future in futures]

    def stop(self, instance: Instance) -> None:
        instance.stop()
        with self._lock:
            self._live.discard(instance)

    def stop_all(self) -> None:
        """Stops what runs, and what is just starting."""
        self._stopped.set()
        with ThreadPoolExecutor(16) as threads:
            while self._live:
                list(threads.map(self.stop, list(self._live)))
        self._forks.stop()

    def remove_models(self, but: Collection[str]) -> None:
        """Removes the data of all models but these ModelFolders."""
        for folder in self._folder.glob("*"):
            if folder.name.split(".")[0] not in but:  # NAME.….partial is on its way to NAME
                shutil.rmtree(folder, ignore_errors=True)

    def _start(self, endpoint: str, plan: Record) -> Instance:
        """Starts a model process and waits until it answers; raises HostingFailed with its last words."""
        if not any(framework in plan["Image"] for framework in IMAGES):
            raise HostingFailed(f"this server runs PyTorch inference images only, not {plan['Image']!r}")
        if not plan["RoleArn"]:
            raise HostingFailed(f"model {plan['ModelName']!r} has no ExecutionRoleArn")
        folder = self._unpack(plan)
        environment = container_environment(
            plan["Image"], plan["RoleArn"], plan["Environment"], plan.get("NetworkIsolation", False)
        )
        stream = f"{plan['VariantName']}/i-{uuid.uuid4().hex[:17]}"
        logs = account.LogStream(plan["RoleArn"], f"{LOG_GROUP}/{endpoint}", stream)
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(128)
            process = self._start_process(folder, plan["Environment"], environment, listener)
            instance = Instance(Container(process, logs), f"http://127.0.0.1:{listener.getsockname()[1]}")
        with self._lock:
            self._live.add(instance)
        try:
            self._wait_until_healthy(plan, instance)
        except BaseException:
            self.stop(instance)
            raise
        return instance

    def _start_process(
        self, folder: Path, of_model: Mapping[str, str], environment: Mapping[str, str], listener: socket.socket
    ) -> Process:
        arguments = ["--model-dir", f"{folder}", "--seconds", f"{self._model_seconds}"]
        arguments += ["--worker-delay", f"{self._worker_delay}"]
        if can_fork(of_model):
            return self._forks.start(arguments, {**os.environ, **environment}, folder, listener)
        number = listener.fileno()
        return start_process(model_server.main, ["--fd", f"{number}", *arguments], environment, folder, (number,))

    def _wait_until_healthy(self, plan: Record, instance: Instance) -> None:
        failed = f"The container of variant {plan['VariantName']} did not pass the ping health check"
        deadline = time.monotonic() + plan["StartupSeconds"]
        while not instance.ping():
            if instance.container.exit_code is not None:
                raise HostingFailed(
                    f"{failed}: exit code {instance.container.exit_code}; {instance.container.last_line}"
                )
            if time.monotonic() > deadline:
                raise HostingFailed(f"{failed} within {plan['StartupSeconds']} s")
            if self._stopped.wait(0.05):
                raise HostingFailed("the server was stopped")

    def _unpack(self, plan: Record) -> Path:
        """Downloads and unpacks a model once; a folder without .partial in its name is complete."""
        target = self._folder / plan["ModelFolder"]
        if target.exists():
            return target
        partial = self._folder / f"{target.name}.{uuid.uuid4().hex[:8]}.partial"
        content = partial / "model"
        content.mkdir(parents=True)
        s3 = account.client_as(plan["RoleArn"], "s3")
        try:
            if not plan["Compressed"]:
                if not account.download_prefix(s3, plan["ModelUri"], content):
                    raise HostingFailed(f"there is no model data at {plan['ModelUri']}")
            else:
                bucket, key = account.split_uri(plan["ModelUri"])
                archive = partial / "model.tar.gz"
                s3.download_file(bucket, key, str(archive))
                with tarfile.open(archive) as tar:
                    tar.extractall(content, filter=_plain)  # noqa: S202 it calls data_filter
        except (ClientError, ValueError, tarfile.TarError, EOFError, OSError) as error:
            raise HostingFailed(f"the model data at {plan['ModelUri']} can't be used: {error}") from error
        else:
            try:
                content.rename(target)
            except OSError:  # another instance of the variant was quicker
                if not target.exists():
                    raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return target


def _plain(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
    """Python's own filter, and no links: by chains of them some releases of Python are led out of the folder."""
    if not (member.isreg() or member.isdir()):
        raise ValueError(f"it holds {member.name[:100]}, which is no file")
    return tarfile.data_filter(member, folder)
