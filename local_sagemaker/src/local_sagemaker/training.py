"""Training jobs: each runs under AWS's training toolkit in a process group of its own."""

import json
import logging
import math
import shutil
import signal
import tarfile
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import regex
from botocore.exceptions import BotoCoreError, ClientError

from local_sagemaker import account, training_container
from local_sagemaker.checkpoints import BASE, SYNC_SECONDS, Checkpoints
from local_sagemaker.container import Container, container_environment, start_process
from local_sagemaker.resources import TRAINING_JOB, Resources
from local_sagemaker.store import Record

logger = logging.getLogger(__name__)

LOG_GROUP = "/aws/sagemaker/TrainingJobs"
# Names where a container's code is.
CODE_PARAMETER = "sagemaker_submit_directory"
STOP_GRACE_SECONDS = 120.0
TOOLKIT_MODULES = {"pytorch": "sagemaker_pytorch_container.training:main"}
METRIC_SECONDS = 1.0
# After a restart AWS's other services may be starting too.
ACCOUNT_SECONDS = 120.0
MESSAGES = {
    "Starting": "Starting the training job",
    "Interrupted": "Training job interrupted",
    "Downloading": "Downloading input data",
    "Training": "Training image download completed. Training in progress.",
    "Uploading": "Uploading generated training model",
    "Stopping": "Stopping the training job",
    "Stopped": "Training job stopped",
    "MaxRuntimeExceeded": "Training job runtime exceeded MaxRuntimeInSeconds",
    "Completed": "Training job completed",
    "Failed": "Training job failed",
}


class JobFailed(Exception):
    """The job ends as Failed; the message is its FailureReason."""


class TrainingJobs:
    """Starts, watches and stops training jobs. At most `parallel` run at once, the rest wait as Starting."""

    def __init__(
        self, resources: Resources, folder: Path, parallel: int, stop_grace_seconds: float = STOP_GRACE_SECONDS
    ) -> None:
        self._resources = resources
        self._folder = folder
        self._grace = stop_grace_seconds
        self._threads = ThreadPoolExecutor(parallel, thread_name_prefix="training")
        self._stopping: dict[str, threading.Event] = {}
        self._futures: dict[str, Future[None]] = {}
        self._containers: dict[str, Container] = {}
        self._shutdown = False
        shutil.rmtree(folder, ignore_errors=True)
        for job in sorted(resources.store.all(TRAINING_JOB.path), key=lambda job: job["CreationTime"]):
            if job["TrainingJobStatus"] in ("InProgress", "Stopping"):
                self._recover(job)

    def _recover(self, job: Record) -> None:
        """Starts a job again whose instance went with the server, if it is one that AWS would start again.

        On AWS that is an interrupted job on spot capacity, and another one as often as its RetryStrategy says:
        https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_RetryStrategy.html
        """
        name, spot = job["TrainingJobName"], job.get("EnableManagedSpotTraining", False)
        restarts, most = job.get("Restarts", 0), job.get("RetryStrategy", {}).get("MaximumRetryAttempts", 0)
        if job["TrainingJobStatus"] == "Stopping" or not (spot or restarts < most):
            reason = "InternalServerError: the server was restarted while the training job was in progress"
            self._end(name, "Failed", "Failed", reason)
            return
        if spot:
            self._transition(name, "Interrupted")
        self._transition(name, "Starting", Restarts=restarts + 1, TrainingEndTime=None)
        with self._resources.store.lock:
            self.start(job)

    def start(self, job: Record) -> None:
        """Queues a job; to be called with the store locked, so that nobody finds a job that can't be stopped yet."""
        name = job["TrainingJobName"]
        self._stopping[name] = threading.Event()
        self._futures[name] = self._threads.submit(self._run, name)

    def stop(self, name: str) -> bool:
        """Asks a job to stop: SIGTERM, then SIGKILL after a grace period. What it wrote so far is kept.

        False if the job has ended.
        """
        with self._resources.store.lock:
            job = self._resources.get(TRAINING_JOB, name)
            if job["TrainingJobStatus"] != "InProgress":
                return bool(job["TrainingJobStatus"] == "Stopping")
            self._transition(name, "Stopping", TrainingJobStatus="Stopping")
            self._stopping[name].set()
            if self._futures[name].cancel():
                self._end(name, "Stopped", "Stopped")
        return True

    def shutdown(self) -> None:
        self._shutdown = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        for container in list(self._containers.values()):
            container.signal(signal.SIGKILL)

    def _run(self, name: str) -> None:
        job = self._resources.get(TRAINING_JOB, name)
        folder = self._folder / name
        try:
            status = "Stopped" if self._stopping[name].is_set() else self._train(job, folder)
            self._end(name, "Stopped" if status == "MaxRuntimeExceeded" else status, status)
        except JobFailed as failure:
            self._end(name, "Failed", "Failed", str(failure))
        except Exception as error:
            logger.exception("training job %s", name)
            self._end(name, "Failed", "Failed", f"ClientError: {error}")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            with self._resources.store.lock:
                del self._futures[name], self._stopping[name]

    def _train(self, job: Record, folder: Path) -> str:
        name, config = job["TrainingJobName"], job.get("CheckpointConfig")
        if job.get("Restarts"):
            self._wait_for_account(job)
        self._transition(name, "Downloading")
        checkpoints = Checkpoints(config, folder, job["RoleArn"]) if config else None
        _lay_out(job, folder, account.client_as(job["RoleArn"], "s3"), checkpoints)
        if self._shutdown or self._stopping[name].is_set():
            return "Stopped"
        self._transition(name, "Training", TrainingStartTime=time.time())
        status = self._run_container(job, folder, checkpoints)
        self._transition(name, "Uploading", TrainingEndTime=time.time())
        # Not the client that downloaded: its session may have expired by now.
        _upload(job, folder, account.client_as(job["RoleArn"], "s3"))
        return status

    def _wait_for_account(self, job: Record) -> None:
        """Returns when the job's role can be assumed."""
        deadline = time.monotonic() + ACCOUNT_SECONDS
        while not self._shutdown and not self._stopping[job["TrainingJobName"]].wait(1):
            try:
                account.client_as(job["RoleArn"], "s3")
                return
            except (BotoCoreError, ClientError) as error:
                if isinstance(error, ClientError) and time.monotonic() > deadline:
                    raise
                logger.warning("training job %s waits: %s", job["TrainingJobName"], error)

    def _run_container(self, job: Record, folder: Path, checkpoints: Checkpoints | None) -> str:
        """Completed if the script ended by itself, Stopped or MaxRuntimeExceeded if it was told to."""
        name = job["TrainingJobName"]
        metrics: dict[str, Record] = {}
        definitions = [
            (item["Name"], regex.compile(item["Regex"]))
            for item in job["AlgorithmSpecification"].get("MetricDefinitions", [])
        ]

        def read_metrics(line: str) -> None:
            for metric, pattern in definitions:
                value = _metric_value(pattern, line)
                if value is not None:
                    metrics[metric] = {"MetricName": metric, "Value": value, "Timestamp": time.time()}

        image, own = job["AlgorithmSpecification"]["TrainingImage"], job.get("Environment", {})
        environment = {
            **container_environment(image, job["RoleArn"], own, job.get("EnableNetworkIsolation", False)),
            "SAGEMAKER_BASE_DIR": str(folder),
            "SAGEMAKER_TRAINING_MODULE": _toolkit_module(job),
            "TRAINING_JOB_NAME": name,
            "TRAINING_JOB_ARN": job["TrainingJobArn"],
        }
        logs = account.LogStream(job["RoleArn"], LOG_GROUP, f"{name}/algo-1-{int(time.time())}")
        process = start_process(training_container.main, [], environment, folder)
        container = Container(process, logs, read_metrics)
        self._containers[name] = container
        if self._shutdown:
            container.signal(signal.SIGKILL)
        began = time.monotonic() - job.get("SecondsRun", 0.0)
        try:
            status = self._wait(job, container, checkpoints, began)
        finally:
            container.stop(self._grace)
            self._note_time(name, began)
            del self._containers[name]
            self._resources.update(TRAINING_JOB, name, FinalMetricDataList=list(metrics.values()))
        if checkpoints and not self._shutdown:
            _copy(checkpoints)
        if status == "Completed" and container.exit_code != 0:
            raise JobFailed(_failure_reason(folder, container))
        return status

    def _wait(self, job: Record, container: Container, checkpoints: Checkpoints | None, began: float) -> str:
        """How it ended. began: as if the earlier attempts had come right before; MaxRuntimeInSeconds is of all."""
        name, copied = job["TrainingJobName"], time.monotonic()
        while not container.wait(0.1):
            now = time.monotonic()
            if self._stopping[name].is_set():
                return "Stopped"
            if now - began > job["StoppingCondition"]["MaxRuntimeInSeconds"]:
                return "MaxRuntimeExceeded"
            if now - copied > SYNC_SECONDS:
                self._note_time(name, began)
                if checkpoints:
                    _copy(checkpoints)
                copied = time.monotonic()
        return "Completed"

    def _note_time(self, name: str, began: float) -> None:
        """While it runs, as a server that is killed can't tell when."""
        self._resources.store.update(TRAINING_JOB.path, name, SecondsRun=time.monotonic() - began)

    def _transition(self, name: str, status: str, **fields: Any) -> None:
        with self._resources.store.lock:
            job = self._resources.get(TRAINING_JOB, name)
            now = time.time()
            transitions = job["SecondaryStatusTransitions"]
            transitions[-1].setdefault("EndTime", now)
            transitions.append({"Status": status, "StartTime": now, "StatusMessage": MESSAGES[status]})
            changes = {"SecondaryStatus": status, "SecondaryStatusTransitions": transitions}
            self._resources.update(TRAINING_JOB, name, **changes, **fields)

    def _end(self, name: str, status: str, secondary: str, reason: str | None = None) -> None:
        if self._shutdown:  # it was killed; the next start says so
            return
        job = self._resources.get(TRAINING_JOB, name)
        now = time.time()
        ended = job.get("TrainingEndTime") or now
        seconds = round(job.get("SecondsRun", 0.0) + now - ended)
        self._transition(
            name,
            secondary,
            TrainingJobStatus=status,
            FailureReason=reason and reason[:1024],
            TrainingEndTime=ended,
            TrainingTimeInSeconds=seconds,
            BillableTimeInSeconds=seconds,
        )


def artifacts_uri(job: Record) -> str:
    """Where a job's model goes: an archive, or a folder if OutputDataConfig asks for no compression."""
    output = job["OutputDataConfig"]
    folder = f"{output['S3OutputPath'].rstrip('/')}/{job['TrainingJobName']}/output"
    return f"{folder}/model/" if output.get("CompressionType") == "NONE" else f"{folder}/model.tar.gz"


def _metric_value(pattern: "regex.Pattern[str]", line: str) -> float | None:
    try:
        match = pattern.search(line, timeout=METRIC_SECONDS)
        value = float(match[1]) if match else math.nan
        return value if math.isfinite(value) else None
    except (TimeoutError, TypeError, ValueError):
        return None


def _copy(checkpoints: Checkpoints) -> None:
    try:
        checkpoints.copy()
    except ClientError as error:
        raise JobFailed(f"ClientError: Checkpoint upload failed: {error}") from error


def _toolkit_module(job: Record) -> str:
    image = job["AlgorithmSpecification"]["TrainingImage"]
    for framework, module in TOOLKIT_MODULES.items():
        if framework in image:
            return module
    raise JobFailed(f"ClientError: this server runs PyTorch training images only, not {image!r}")


def _lay_out(job: Record, folder: Path, s3: Any, checkpoints: Checkpoints | None) -> None:
    """Writes what SageMaker puts below /opt/ml before it starts a container."""
    configuration = folder / "input" / "config"
    configuration.mkdir(parents=True)
    (folder / "model").mkdir()
    (folder / "output" / "data").mkdir(parents=True)
    channels = {}
    for channel in job.get("InputDataConfig", []):
        source = channel["DataSource"]["S3DataSource"]
        target = folder / "input" / "data" / channel["ChannelName"]
        download = account.download_manifest if source["S3DataType"] == "ManifestFile" else account.download_prefix
        try:
            count = download(s3, source["S3Uri"], target)
        except ValueError as error:
            raise JobFailed(
                f"ClientError: Data download failed: channel {channel['ChannelName']!r}: {error}"
            ) from error
        if not count:
            raise JobFailed(
                f"ClientError: Data download failed: no S3 objects found under {source['S3Uri']} "
                f"(channel {channel['ChannelName']!r})"
            )
        channels[channel["ChannelName"]] = {
            "TrainingInputMode": "File",
            "S3DistributionType": source.get("S3DataDistributionType", "FullyReplicated"),
            "RecordWrapperType": "None",
            "ContentType": channel.get("ContentType", "application/octet-stream"),
        }
    if checkpoints:
        try:
            checkpoints.restore()
        except (ValueError, ClientError) as error:
            raise JobFailed(f"ClientError: Checkpoint download failed: {error}") from error
        # The file's name is what AWS's own XGBoost image reads (SM_CHECKPOINT_CONFIG_FILE).
        content = {**job["CheckpointConfig"], "LocalPath": str(checkpoints.folder)}
        (configuration / "checkpointconfig.json").write_text(json.dumps(content))
    instance_type = job["ResourceConfig"].get("InstanceType", "local")
    # "localhost" and not "algo-1": the toolkit waits for the host's name to resolve.
    group = {"instance_group_name": "homogeneousCluster", "instance_type": instance_type, "hosts": ["localhost"]}
    resources = {
        "current_host": "localhost",
        "current_instance_type": instance_type,
        "current_group_name": group["instance_group_name"],
        "hosts": group["hosts"],
        "instance_groups": [group],
        "network_interface_name": "lo",
    }
    for name, content in (
        ("hyperparameters", _hyperparameters(job, folder)),
        ("inputdataconfig", channels),
        ("resourceconfig", resources),
    ):
        (configuration / f"{name}.json").write_text(json.dumps(content))


def _hyperparameters(job: Record, folder: Path) -> dict[str, str]:
    """The job's own, where code below /opt/ml is in the folder that stands for it. The SDK writes values as JSON."""
    given: dict[str, str] = dict(job.get("HyperParameters", {}))
    if (code := given.get(CODE_PARAMETER, "").strip('"')).startswith(BASE):
        given[CODE_PARAMETER] = str(folder / code.removeprefix(BASE))
    return given


def _upload(job: Record, folder: Path, s3: Any) -> None:
    """Uploads what the script left in model/ and output/data/, however it ended."""
    bucket, key = account.split_uri(job["ModelArtifacts"]["S3ModelArtifacts"])
    model, data = folder / "model", folder / "output" / "data"
    if key.endswith("/"):
        for source, prefix in ((model, key), (data, f"{key.removesuffix('model/')}data/")):
            for path in sorted(path for path in source.rglob("*") if path.is_file()):
                s3.upload_file(str(path), bucket, f"{prefix}{path.relative_to(source).as_posix()}")
        return
    _upload_archive(model, s3, bucket, key)
    if any(data.glob("*")):
        _upload_archive(data, s3, bucket, f"{key.removesuffix('model.tar.gz')}output.tar.gz")


def _upload_archive(source: Path, s3: Any, bucket: str, key: str) -> None:
    archive = source.parent / key.rsplit("/", 1)[-1]
    with tarfile.open(archive, "w:gz") as tar:
        for path in sorted(source.glob("*")):
            tar.add(path, arcname=path.name)
    s3.upload_file(str(archive), bucket, key)


def _failure_reason(folder: Path, container: Container) -> str:
    failure = folder / "output" / "failure"
    text = failure.read_text(errors="replace").strip() if failure.exists() else container.last_line
    # The exception stands at the end, and a reason has 1,024 characters at most.
    return f"AlgorithmError: {text[-900:] or 'the script said nothing'}, exit code: {container.exit_code}"
