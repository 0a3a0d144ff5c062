"""Endpoints: each variant's model is served by a process of its own, kept alive and swapped on update."""

import logging
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from local_aws.sagemaker import account
from local_aws.sagemaker.store import Record, Store

logger = logging.getLogger(__name__)

ENDPOINT = "endpoint"
CONFIG = "endpoint-config"
MODEL = "model"
LOG_GROUP = "/aws/sagemaker/Endpoints"
STARTUP_SECONDS = 120
TOOLKIT_IMAGES = ("pytorch",)


class HostingFailed(Exception):
    """A fleet can't serve; the message is the endpoint's FailureReason."""


@dataclass
class Instance:
    """One model process behind a variant."""

    variant: str
    weight: float
    role_arn: str
    model_dir: Path
    environment: dict[str, str]
    process: subprocess.Popen[bytes]
    url: str
    logs: account.LogStream
    reader: threading.Thread

    def stop(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, number)
                self.process.wait(timeout=3)
            except ProcessLookupError:
                break
            except subprocess.TimeoutExpired:
                continue
        self.process.wait()
        self.reader.join(timeout=3)
        self.logs.close()


class Fleet:
    """The running instances of one endpoint config."""

    def __init__(self, config: Record, instances: list[Instance]) -> None:
        self.config = config
        self.instances = instances

    def choose(self, variant: str | None) -> Instance | None:
        """The instance of the named variant, or one drawn by weight; None where there is none."""
        candidates = [instance for instance in self.instances if variant in (None, instance.variant)]
        if not candidates:
            return None
        return random.choices(candidates, weights=[instance.weight for instance in candidates])[0]

    def stop(self) -> None:
        for instance in self.instances:
            instance.stop()


class Endpoints:
    """Brings fleets up and down, and restarts a model process that died."""

    def __init__(self, store: Store, folder: Path) -> None:
        self._store = store
        self._folder = folder
        self._fleets: dict[str, Fleet] = {}
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="hosting")
        self._stop = threading.Event()
        for endpoint in store.all(ENDPOINT):
            if endpoint["EndpointStatus"] in ("InService", "Updating", "Creating"):
                self._threads.submit(self._deploy, endpoint["EndpointName"], endpoint["EndpointConfigName"])
        threading.Thread(target=self._watch, name="hosting-watch", daemon=True).start()

    def create(self, name: str, config_name: str) -> None:
        self._threads.submit(self._deploy, name, config_name)

    def update(self, name: str, config_name: str) -> None:
        self._store.update(ENDPOINT, name, EndpointStatus="Updating", LastModifiedTime=time.time())
        self._threads.submit(self._deploy, name, config_name)

    def delete(self, name: str) -> None:
        self._store.update(ENDPOINT, name, EndpointStatus="Deleting", LastModifiedTime=time.time())
        self._threads.submit(self._remove, name)

    def fleet(self, name: str) -> Fleet | None:
        return self._fleets.get(name)

    def shutdown(self) -> None:
        self._stop.set()
        self._threads.shutdown(wait=False, cancel_futures=True)
        with ThreadPoolExecutor() as threads:
            list(threads.map(Fleet.stop, list(self._fleets.values())))

    def _deploy(self, name: str, config_name: str) -> None:
        """Starts the config's fleet beside the old one and switches only when it answers."""
        try:
            fleet = self._start_fleet(name, config_name)
        except Exception as error:
            logger.warning("endpoint %s: %s", name, error)
            # An update that fails leaves the old fleet serving, as on AWS.
            status = "InService" if name in self._fleets else "Failed"
            self._store.update(
                ENDPOINT, name, EndpointStatus=status, FailureReason=str(error)[:1024], LastModifiedTime=time.time()
            )
            return
        previous, self._fleets[name] = self._fleets.get(name), fleet
        self._store.update(
            ENDPOINT,
            name,
            EndpointStatus="InService",
            EndpointConfigName=config_name,
            ProductionVariants=_variant_summaries(fleet.config),
            DataCaptureConfig=_capture_summary(fleet.config),
            FailureReason=None,
            LastModifiedTime=time.time(),
        )
        if previous:
            previous.stop()

    def _remove(self, name: str) -> None:
        fleet = self._fleets.pop(name, None)
        if fleet:
            fleet.stop()
        self._store.delete(ENDPOINT, name)

    def _start_fleet(self, name: str, config_name: str) -> Fleet:
        config = self._store.get(CONFIG, config_name)
        if config is None:
            raise HostingFailed(f"endpoint config {config_name!r} does not exist")
        instances: list[Instance] = []
        try:
            for variant in config["ProductionVariants"]:
                instances.append(self._start_variant(name, variant))
        except BaseException:
            Fleet(config, instances).stop()
            raise
        return Fleet(config, instances)

    def _start_variant(self, endpoint: str, variant: Record) -> Instance:
        model = self._store.get(MODEL, variant["ModelName"])
        if model is None:
            raise HostingFailed(f"model {variant['ModelName']!r} does not exist")
        container = model["PrimaryContainer"]
        if not any(framework in container.get("Image", "") for framework in TOOLKIT_IMAGES):
            raise HostingFailed(f"this server runs PyTorch inference images only, not {container.get('Image')!r}")
        model_dir = self._unpack(model)
        return start_instance(
            endpoint=endpoint,
            variant=variant["VariantName"],
            weight=variant.get("InitialVariantWeight", 1.0),
            role_arn=model["ExecutionRoleArn"],
            model_dir=model_dir,
            environment=container.get("Environment", {}),
        )

    def _unpack(self, model: Record) -> Path:
        """Downloads and unpacks a model once; a folder of that name is complete."""
        target = self._folder / model["ModelName"]
        if target.exists():
            return target
        url = model["PrimaryContainer"].get("ModelDataUrl")
        if not url:
            raise HostingFailed(f"model {model['ModelName']!r} has no ModelDataUrl")
        partial = target.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        archive = partial / "model.tar.gz"
        bucket, key = account.split_uri(url)
        s3 = account.client_as(model["ExecutionRoleArn"], "s3")
        archive.write_bytes(s3.get_object(Bucket=bucket, Key=key)["Body"].read())
        with tarfile.open(archive) as tar:
            tar.extractall(partial, filter="data")
        archive.unlink()
        partial.rename(target)
        return target

    def _watch(self) -> None:
        """Restarts model processes that died."""
        while not self._stop.wait(1):
            for name, fleet in list(self._fleets.items()):
                for index, instance in enumerate(fleet.instances):
                    if instance.process.poll() is None or self._stop.is_set():
                        continue
                    logger.warning("endpoint %s: variant %s died, restarting it", name, instance.variant)
                    try:
                        fleet.instances[index] = start_instance(
                            name,
                            instance.variant,
                            instance.weight,
                            instance.role_arn,
                            instance.model_dir,
                            instance.environment,
                        )
                    except HostingFailed as error:
                        logger.warning("endpoint %s: %s", name, error)


def start_instance(
    endpoint: str, variant: str, weight: float, role_arn: str, model_dir: Path, environment: dict[str, str]
) -> Instance:
    """Starts a model process and waits until it answers; raises HostingFailed with its last words."""
    logs = account.LogStream(role_arn, f"{LOG_GROUP}/{endpoint}", f"{variant}/i-{os.urandom(8).hex()}")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "local_aws.sagemaker.model_server",
                "--fd",
                str(listener.fileno()),
                "--model-dir",
                str(model_dir),
            ],
            env={**os.environ, **account.role_credentials(role_arn), "PYTHONUNBUFFERED": "1", **environment},
            pass_fds=[listener.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    last_words: list[str] = []
    reader = threading.Thread(target=_read_log, args=(process, logs, last_words), daemon=True)
    reader.start()
    instance = Instance(variant, weight, role_arn, model_dir, environment, process, url, logs, reader)
    try:
        _wait_until_healthy(instance, last_words)
    except HostingFailed:
        instance.stop()
        raise
    return instance


def _wait_until_healthy(instance: Instance, last_words: list[str]) -> None:
    deadline = time.monotonic() + STARTUP_SECONDS
    while time.monotonic() < deadline:
        if instance.process.poll() is not None:
            instance.reader.join(timeout=3)
            raise HostingFailed(
                f"The container of variant {instance.variant!r} did not pass the ping health check: "
                f"exit code {instance.process.returncode}; {' | '.join(last_words[-1:])}"
            )
        try:
            if httpx.get(f"{instance.url}/ping", timeout=2, trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.05)
    raise HostingFailed(
        f"The container of variant {instance.variant!r} did not pass the ping health check within {STARTUP_SECONDS} s"
    )


def _read_log(process: subprocess.Popen[bytes], logs: account.LogStream, last_words: list[str]) -> None:
    assert process.stdout is not None
    for raw in process.stdout:
        line = raw.decode("utf-8", "replace").rstrip()
        logs.write(line)
        last_words[:] = [*last_words[-9:], line]


def _variant_summaries(config: Record) -> list[dict[str, Any]]:
    return [
        {
            "VariantName": variant["VariantName"],
            "CurrentWeight": variant.get("InitialVariantWeight", 1.0),
            "DesiredWeight": variant.get("InitialVariantWeight", 1.0),
            "CurrentInstanceCount": variant.get("InitialInstanceCount", 1),
            "DesiredInstanceCount": variant.get("InitialInstanceCount", 1),
        }
        for variant in config["ProductionVariants"]
    ]


def _capture_summary(config: Record) -> dict[str, Any] | None:
    capture = config.get("DataCaptureConfig")
    if capture is None:
        return None
    return {
        "EnableCapture": capture.get("EnableCapture", True),
        "CaptureStatus": "Started" if capture.get("EnableCapture", True) else "Stopped",
        "CurrentSamplingPercentage": capture["InitialSamplingPercentage"],
        "DestinationS3Uri": capture["DestinationS3Uri"],
        "KmsKeyId": capture.get("KmsKeyId", ""),
    }
