"""Training jobs: each runs under AWS's training toolkit in a process group of its own."""

import contextlib
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from local_aws.sagemaker import account
from local_aws.sagemaker.protocol import ValidationException
from local_aws.sagemaker.store import Record, Store

logger = logging.getLogger(__name__)

KIND = "training-job"
LOG_GROUP = "/aws/sagemaker/TrainingJobs"
STOP_GRACE_SECONDS = 120
TOOLKIT_MODULES = {"pytorch": "sagemaker_pytorch_container.training:main"}


class JobFailed(Exception):
    """The job ends as Failed; the message is its FailureReason."""


class TrainingJobs:
    """Starts, watches and stops training jobs. At most `parallel` train at once, the rest wait as Starting."""

    def __init__(self, store: Store, folder: Path, parallel: int = 1) -> None:
        self._store = store
        self._folder = folder
        self._threads = ThreadPoolExecutor(parallel, thread_name_prefix="training")
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._stopping: dict[str, threading.Event] = {}
        for job in store.all(KIND):
            if job["TrainingJobStatus"] in ("InProgress", "Stopping"):
                self._end(job["TrainingJobName"], "Failed", "Failed", "InternalServerError: the server was restarted")

    def start(self, job: Record) -> None:
        name = job["TrainingJobName"]
        self._stopping[name] = threading.Event()
        self._threads.submit(self._run, name)

    def stop(self, name: str) -> None:
        """Asks a job to stop: SIGTERM, then SIGKILL after a grace period. What it wrote so far is kept."""
        self._store.update(KIND, name, TrainingJobStatus="Stopping")
        self._transition(name, "Stopping")
        self._stopping[name].set()

    def shutdown(self) -> None:
        for process in list(self._processes.values()):
            _signal_group(process, signal.SIGKILL)
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _run(self, name: str) -> None:
        job = self._store.get(KIND, name)
        assert job is not None
        stream = account.LogStream(job["RoleArn"], LOG_GROUP, f"{name}/algo-1-{int(time.time())}")
        try:
            status = self._train(job, stream)
            self._end(name, "Stopped" if status == "MaxRuntimeExceeded" else status, status)
        except JobFailed as failure:
            self._end(name, "Failed", "Failed", str(failure))
        except Exception as error:
            logger.exception("training job %s", name)
            self._end(name, "Failed", "Failed", f"ClientError: {error}")
        finally:
            stream.close()
            shutil.rmtree(self._folder / name, ignore_errors=True)

    def _train(self, job: Record, stream: account.LogStream) -> str:
        name = job["TrainingJobName"]
        if self._stopping[name].is_set():
            return "Stopped"
        folder = self._folder / name
        shutil.rmtree(folder, ignore_errors=True)
        self._transition(name, "Downloading")
        credentials = account.role_credentials(job["RoleArn"])
        s3 = account.client_as(job["RoleArn"], "s3")
        _lay_out(job, folder, s3)
        self._transition(name, "Training")
        self._store.update(KIND, name, TrainingStartTime=time.time())
        status = self._run_toolkit(job, folder, credentials, stream)
        self._transition(name, "Uploading")
        self._upload(job, folder, s3)
        return status

    def _run_toolkit(self, job: Record, folder: Path, credentials: dict[str, str], stream: account.LogStream) -> str:
        name = job["TrainingJobName"]
        environment = {
            **os.environ,
            **credentials,
            "SAGEMAKER_BASE_DIR": str(folder),
            "SAGEMAKER_TRAINING_MODULE": _toolkit_module(job),
            "TRAINING_JOB_NAME": name,
            "TRAINING_JOB_ARN": job["TrainingJobArn"],
            "PYTHONUNBUFFERED": "1",
            **job.get("Environment", {}),
        }
        process = subprocess.Popen(
            [str(Path(sys.executable).parent / "train")],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._processes[name] = process
        reader = threading.Thread(target=self._read_log, args=(job, process, stream), daemon=True)
        reader.start()
        try:
            status = self._wait(job, process)
        finally:
            _signal_group(process, signal.SIGKILL)
            process.wait()
            reader.join(timeout=5)
            del self._processes[name]
        if status == "Completed" and process.returncode != 0:
            raise JobFailed(_failure_reason(folder, process.returncode))
        return status

    def _wait(self, job: Record, process: subprocess.Popen[bytes]) -> str:
        """Completed where the process ended by itself, Stopped or MaxRuntimeExceeded where it was told to."""
        deadline = time.monotonic() + job["StoppingCondition"]["MaxRuntimeInSeconds"]
        stop = self._stopping[job["TrainingJobName"]]
        while process.poll() is None:
            if stop.wait(0.1) or time.monotonic() > deadline:
                _signal_group(process, signal.SIGTERM)
                try:
                    process.wait(STOP_GRACE_SECONDS)
                except subprocess.TimeoutExpired:
                    logger.warning("%s ignored SIGTERM", job["TrainingJobName"])
                return "Stopped" if stop.is_set() else "MaxRuntimeExceeded"
        return "Completed"

    def _read_log(self, job: Record, process: subprocess.Popen[bytes], stream: account.LogStream) -> None:
        definitions = job["AlgorithmSpecification"].get("MetricDefinitions", [])
        metrics: dict[str, dict[str, Any]] = {}
        assert process.stdout is not None
        for raw in process.stdout:
            line = raw.decode("utf-8", "replace").rstrip()
            stream.write(line)
            for definition in definitions:
                match = re.search(definition["Regex"], line)
                if match:
                    value = {"MetricName": definition["Name"], "Value": float(match[1]), "Timestamp": time.time()}
                    metrics[definition["Name"]] = value
        self._store.update(KIND, job["TrainingJobName"], FinalMetricDataList=list(metrics.values()))

    def _upload(self, job: Record, folder: Path, s3: Any) -> None:
        archive = folder / "model.tar.gz"
        with tarfile.open(archive, "w:gz") as tar:
            for path in sorted((folder / "model").iterdir()):
                tar.add(path, arcname=path.name)
        bucket, _ = account.split_uri(job["ModelArtifacts"]["S3ModelArtifacts"])
        _, key = account.split_uri(job["ModelArtifacts"]["S3ModelArtifacts"])
        with archive.open("rb") as body:
            s3.put_object(Bucket=bucket, Key=key, Body=body)

    def _transition(self, name: str, status: str) -> None:
        job = self._store.get(KIND, name)
        assert job is not None
        now = time.time()
        transitions = job["SecondaryStatusTransitions"]
        if transitions:
            transitions[-1]["EndTime"] = now
        transitions.append({"Status": status, "StartTime": now, "StatusMessage": f"{status} the training job"})
        self._store.update(
            KIND, name, SecondaryStatus=status, SecondaryStatusTransitions=transitions, LastModifiedTime=now
        )

    def _end(self, name: str, status: str, secondary: str, reason: str | None = None) -> None:
        self._transition(name, secondary)
        job = self._store.get(KIND, name)
        assert job is not None
        now = time.time()
        seconds = int(now - job.get("TrainingStartTime", now))
        self._store.update(
            KIND,
            name,
            TrainingJobStatus=status,
            FailureReason=reason,
            TrainingEndTime=now,
            TrainingTimeInSeconds=seconds,
            BillableTimeInSeconds=seconds,
        )


def _toolkit_module(job: Record) -> str:
    image = job["AlgorithmSpecification"].get("TrainingImage", "")
    for framework, module in TOOLKIT_MODULES.items():
        if framework in image:
            return module
    raise JobFailed(f"ClientError: this server runs PyTorch training images only, not {image!r}")


def _lay_out(job: Record, folder: Path, s3: Any) -> None:
    """Writes what SageMaker puts below /opt/ml before it starts a container."""
    configuration = folder / "input" / "config"
    configuration.mkdir(parents=True)
    (folder / "model").mkdir()
    (folder / "output" / "data").mkdir(parents=True)
    channels = {}
    for channel in job.get("InputDataConfig", []):
        source = channel["DataSource"].get("S3DataSource")
        if not source or source["S3DataType"] != "S3Prefix":
            raise JobFailed(f"ClientError: channel {channel['ChannelName']!r}: only S3Prefix sources are served")
        target = folder / "input" / "data" / channel["ChannelName"]
        target.mkdir(parents=True)
        if not account.download_prefix(s3, source["S3Uri"], target):
            raise JobFailed(
                f"ClientError: Data download failed: no S3 objects found under {source['S3Uri']} "
                f"(channel {channel['ChannelName']!r})"
            )
        channels[channel["ChannelName"]] = {
            "TrainingInputMode": "File",
            "S3DistributionType": "FullyReplicated",
            "RecordWrapperType": "None",
            "ContentType": channel.get("ContentType", "application/octet-stream"),
        }
    # "localhost" and not "algo-1": the toolkit waits for the host's name to resolve.
    resources = {
        "current_host": "localhost",
        "current_instance_type": job["ResourceConfig"].get("InstanceType", "local"),
        "current_group_name": "homogeneousCluster",
        "hosts": ["localhost"],
        "instance_groups": [
            {"instance_group_name": "homogeneousCluster", "instance_type": "local", "hosts": ["localhost"]}
        ],
        "network_interface_name": "lo",
    }
    for name, content in (
        ("hyperparameters", job.get("HyperParameters", {})),
        ("inputdataconfig", channels),
        ("resourceconfig", resources),
    ):
        (configuration / f"{name}.json").write_text(json.dumps(content))


def _failure_reason(folder: Path, exit_code: int) -> str:
    failure = folder / "output" / "failure"
    text = failure.read_text(errors="replace").strip() if failure.exists() else ""
    # The exception stands at the end, and a reason has 1,024 characters at most.
    return f"AlgorithmError: {text[-900:] or 'the script wrote no failure file'}, exit code: {exit_code}"


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def check_request(request: Record) -> None:
    """Raises ValidationException for what the API's description does not forbid but no job can run with."""
    image = request["AlgorithmSpecification"].get("TrainingImage")
    if not image:
        raise ValidationException(
            "AlgorithmSpecification.TrainingImage is required: algorithms by name do not exist here"
        )
    for channel in request.get("InputDataConfig", []):
        source = channel["DataSource"].get("S3DataSource", {})
        try:
            account.split_uri(source.get("S3Uri", ""))
        except ValueError as error:
            raise ValidationException(f"channel {channel['ChannelName']!r}: {error}") from error
