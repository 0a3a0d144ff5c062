"""SageMaker training jobs: started or re-attached to, watched with their log, and stopped on cancel."""

import contextlib
import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prefect import task
from prefect.logging import get_run_logger

from settings import CODE_PREFIX, MANIFESTS_PREFIX, MODELS_PREFIX, ROOT, TRAIN_PREFIX, settings
from tasks.archives import BoundedHeader
from tasks.aws import storage
from tasks.aws.clients import (
    client,
    ignore_existing,
    none_if_missing,
    on_aws,
    retry_transient,
    retry_until_role_is_assumable,
    sdk,
)
from tasks.aws.errors import AwsError, translate_aws_errors
from tasks.aws.images import training_image
from tasks.aws.logs import TRAINING_LOGS, LogTail
from tasks.aws.tags import sdk_tags
from tasks.cancellation import is_cancelled
from tasks.errors import SconesError
from tasks.installation import DatasetNote, Installation
from tasks.model.sizing import TUNABLE, corrected, hyperparameters_for, in_words, sizing
from tasks.run import Log
from tasks.waiting import look_until

if TYPE_CHECKING:
    from sagemaker.core.resources import TrainingJob
    from sagemaker.core.shapes import Channel

POLL_SECONDS = 2.0
CODE_CHANNEL = "code"
# Below it a folder for each job.
CHECKPOINTS_PREFIX = "checkpoints/"
# As many as SageMaker allows. A job whose instance failed goes on from its checkpoints, within the time that it has.
RETRIES = 30
SOURCES = (
    "train.py",
    "fitting.py",
    "checkpoints.py",
    "evaluate.py",
    "out_of_fold.py",
    "calibration.py",
    "thresholds.py",
    "network.py",
    "inference.py",
    "serving.py",
    "deployment.py",
    "config.yaml",
    "requirements.txt",
)
# validation: is of predictions by networks that were not fitted on the image. Scripts print a ":" as "_".
METRICS = (
    "train:loss",
    "train:accuracy",
    "validation:accuracy",
    "validation:ece_before",
    "validation:ece",
    "validation:brier_before",
    "validation:brier",
    "validation:outliers",
    "temperature",
    "threshold",
    "threshold:coverage",
    "threshold:accuracy",
    "threshold:lower_bound",
    "threshold:every_class",
    "threshold:every_class_coverage",
)


# Of model.tar.gz, packed and unpacked, and of a file of figures in it. A model of this project has some ten megabytes.
MOST_ARTIFACT_BYTES, MOST_UNPACKED_BYTES, MOST_FILE_BYTES = 512_000_000, 2_000_000_000, 64_000_000


class TrainingError(SconesError):
    """The job did not complete; the message has AWS's reason."""


@dataclass(frozen=True)
class JobPlan:
    """A script of classifier/ and what it is to be run with. channels: S3 URI by name; metrics: those it prints."""

    program: str
    source_uri: str
    hyperparameters: dict[str, str]
    channels: dict[str, str]
    metrics: tuple[str, ...]


@dataclass(frozen=True)
class TrainingPlan:
    """A training and its identity: the same data, code and hyperparameters have the same fingerprint.

    settings_fingerprint: the same with the settings' hyperparameters, whatever was asked for instead of some of them.
    data_fingerprint: SHA-256 of the training manifest. data: in words, what the images are. takes: in words, how
    long the training takes and what it costs.
    """

    job: JobPlan
    fingerprint: str
    settings_fingerprint: str
    data_fingerprint: str
    data: str
    takes: tuple[str, ...] = ()


@dataclass(frozen=True)
class CompletedJob:
    """A completed job's artifact and the last value of each metric."""

    name: str
    artifact_uri: str
    metrics: dict[str, float]


@task(task_run_name="plan training")
def plan_training(installation: Installation, changed: dict[str, int | float | str] | None = None) -> TrainingPlan:
    """Uploads the training code and derives the hyperparameters from data and settings.

    changed: hyperparameters that are to differ from the settings'. Raises TrainingError for an unknown one.
    """
    bucket, chosen = installation.bucket, settings()
    manifest = storage.get(bucket, f"{MANIFESTS_PREFIX}train.lst")
    if not manifest:
        raise TrainingError("there is no training data", "run the prepare-data deployment first")
    hyperparameters = {
        "image_shape": image_shape(),
        "num_classes": str(len(installation.classes)),
        "num_training_samples": str(len(manifest.splitlines())),
        **hyperparameters_for(len(manifest.splitlines()), chosen),
    }
    unknown = sorted(set(changed or {}) - set(TUNABLE))
    if unknown:
        raise TrainingError(f"unknown hyperparameter {', '.join(unknown)}; there are {', '.join(sorted(TUNABLE))}")
    asked_for = hyperparameters | {name: str(value) for name, value in (changed or {}).items()}
    size = sizing(len(manifest.splitlines()), chosen.image_size, asked_for)
    takes = in_words(size, chosen.training_instance_type, not on_aws(), chosen.training_max_seconds)
    job = JobPlan("train.py", upload_source(bucket), asked_for, training_channels(bucket), METRICS)
    data = sorted(storage.list_etags(bucket, TRAIN_PREFIX).items())

    def fingerprint(chosen: dict[str, str]) -> str:
        identity = json.dumps([data, manifest.decode(), job.source_uri, chosen], sort_keys=True)
        return hashlib.sha256(identity.encode()).hexdigest()

    data_fingerprint = hashlib.sha256(manifest).hexdigest()
    note = storage.get_record(bucket, f"{MANIFESTS_PREFIX}dataset.json", DatasetNote)
    words = described(note) if note else "unknown"
    return TrainingPlan(
        job, fingerprint(asked_for), fingerprint(hyperparameters), data_fingerprint, words, tuple(takes)
    )


def described(note: DatasetNote) -> str:
    """What the training images are, in words that the registry takes."""
    reviewed = f" and {note.reviewed} reviewed" if note.reviewed else ""
    return f"{note.train - note.reviewed} of {note.source}{reviewed} since {note.since or 'an unknown time'}"


def image_shape() -> str:
    """Of the training images: channels, height and width as the classifier's scripts take them."""
    size = settings().image_size
    return f"3,{size},{size}"


def training_channels(bucket: str) -> dict[str, str]:
    """S3 URIs of the training images and their manifest, by channel."""
    return {"train": f"s3://{bucket}/{TRAIN_PREFIX}", "train_lst": f"s3://{bucket}/{MANIFESTS_PREFIX}train.lst"}


def upload_source(bucket: str) -> str:
    """Uploads classifier/ under a key that carries its hash and returns its S3 URI."""
    source = source_archive()
    key = f"{CODE_PREFIX}classifier-{hashlib.sha256(source).hexdigest()[:16]}.tar.gz"
    storage.upload_changed(bucket, CODE_PREFIX, {key: source})
    return f"s3://{bucket}/{key}"


@task(task_run_name="train {run}")
def train(installation: Installation, plan: TrainingPlan, run: str) -> CompletedJob:
    """Trains, or re-attaches to the job of this run, and waits for it with its log in the flow run's log."""
    logger = get_run_logger()
    for line in plan.takes:
        logger.info(line)
    return run_job(installation, plan.job, f"{settings().stack}-{run}", logger.info)


def run_job(installation: Installation, plan: JobPlan, name: str, progress: Log) -> CompletedJob:
    """Starts the job of that name, or re-attaches to it, and waits for it. Raises TrainingError."""
    return wait(start_or_attach(installation, plan, name, progress), progress)


def start_or_attach(installation: Installation, plan: JobPlan, name: str, progress: Log) -> str:
    """The name of the job that is running or complete; starts one if there is none.

    A job of that name that failed or was stopped is left alone and the next attempt gets a number.
    """
    for attempt in range(1, 100):
        numbered = name + (f"-{attempt}" if attempt > 1 else "")
        job = _find(numbered)
        if job is None:
            _start(numbered, installation, plan)
            progress(f"started training job {numbered}")
            return numbered
        if job.training_job_status in ("InProgress", "Completed"):
            progress(f"training job {numbered} is {job.training_job_status}: re-attached")
            return numbered
    raise TrainingError(f"{name} has 99 training jobs that did not complete")


def wait(name: str, progress: Log) -> CompletedJob:
    """Waits for the job to complete. Raises TrainingError for every other end.

    A cancelled flow stops the job, and so does the end of the time that the settings give it.
    """

    def tell(line: str) -> None:
        for each in (line, *corrected(line, settings().training_max_seconds)):
            progress(each)

    log = LogTail(TRAINING_LOGS, f"{name}/", tell)
    with _stopped_on_cancel(name, progress):
        job = _wait_for_end(name, log, progress)
    log.read()
    if job.training_job_status != "Completed":
        reason = getattr(job, "failure_reason", None)
        raise TrainingError(f"training job {name} is {job.training_job_status}: {reason or job.secondary_status}")
    metrics = job.final_metric_data_list if isinstance(job.final_metric_data_list, list) else []
    return CompletedJob(
        name,
        str(job.model_artifacts.s3_model_artifacts),
        {str(metric.metric_name): float(metric.value) for metric in metrics},
    )


def _wait_for_end(name: str, log: LogTail, progress: Log) -> "TrainingJob":
    """The job once it has ended, however it did. Raises TrainingError if it is gone, or outlasts the settings' time."""
    reported = ""

    def look() -> "TrainingJob":
        nonlocal reported
        job = _find(name)
        if job is None:
            raise TrainingError(f"training job {name} is gone")
        log.read()
        if job.secondary_status != reported:
            reported = str(job.secondary_status)
            progress(f"training job {name}: {reported}")
        return job

    seconds = settings().training_max_seconds + settings().training_pending_seconds
    job = look_until(_has_ended, look, seconds=seconds, every=POLL_SECONDS)
    if not _has_ended(job):
        stop(name)
        raise TrainingError(f"training job {name} is {reported} after {seconds} s and was told to stop")
    return job


def _has_ended(job: "TrainingJob") -> bool:
    return job.training_job_status in ("Completed", "Failed", "Stopped")


@contextlib.contextmanager
def _stopped_on_cancel(name: str, progress: Log) -> Iterator[None]:
    """Stops the job if a person cancels the flow run within the block.

    After an error, or a signal that stops the process, the job goes on, and the flow run attaches to it later.
    """
    try:
        yield
    except Exception:
        raise
    except BaseException:  # Prefect's TerminationSignal, KeyboardInterrupt
        if not is_cancelled():
            progress(f"the process is stopped; training job {name} goes on")
            raise
        progress(f"cancelled: stopping training job {name}")
        try:
            stop(name)
        except AwsError as error:
            progress(f"{error}; the job goes on, and costs what it costs, until somebody stops it")
        raise


def stop(name: str) -> None:
    """Stops a job that runs; one that has ended, or is gone, is left alone. Raises AwsError."""
    retry_transient(
        f"stop training job {name}",
        lambda: none_if_missing(lambda: client("sagemaker").stop_training_job(TrainingJobName=name)),
    )


def read_artifact(job: CompletedJob, name: str) -> bytes:
    """A file that the job's script left in its model folder. Raises TrainingError if there is none."""
    bucket, _, key = job.artifact_uri.removeprefix("s3://").partition("/")
    found = storage.get_with_etag(bucket, key, MOST_ARTIFACT_BYTES + 1)
    if found is None:
        raise TrainingError(f"training job {job.name} left no artifact at {job.artifact_uri}")
    if len(found[0]) > MOST_ARTIFACT_BYTES:
        raise TrainingError(f"{job.artifact_uri} has more than {MOST_ARTIFACT_BYTES:,} bytes")
    passed = 0
    try:
        with tarfile.open(fileobj=io.BytesIO(found[0]), tarinfo=BoundedHeader) as archive:
            for member in archive:
                passed += member.size  # all of it is unpacked on the way
                if passed > MOST_UNPACKED_BYTES:
                    raise TrainingError(f"{job.artifact_uri} unpacks to more than {MOST_UNPACKED_BYTES:,} bytes")
                if member.name.removeprefix("./") == name and (file := archive.extractfile(member)):
                    if member.size > MOST_FILE_BYTES:
                        raise TrainingError(f"{name} in {job.artifact_uri} has more than {MOST_FILE_BYTES:,} bytes")
                    return file.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise TrainingError(f"{job.artifact_uri} can't be read: {error}") from error
    raise TrainingError(f"{job.artifact_uri} has no {name}")


def source_archive() -> bytes:
    """classifier/ as sourcedir.tar.gz, the same bytes for the same source."""
    buffer = io.BytesIO()
    # gzip keeps a time in its header, so the archive is compressed apart from tarfile.
    with gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as zipped, tarfile.open(fileobj=zipped, mode="w") as tar:
        for name in SOURCES:
            content = (ROOT / "classifier" / name).read_bytes()
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def _find(name: str) -> "TrainingJob | None":
    from sagemaker.core.resources import TrainingJob  # takes a second

    return retry_transient(
        f"look for training job {name}", lambda: none_if_missing(lambda: TrainingJob.get(name, **sdk()))
    )


def _start(name: str, installation: Installation, plan: JobPlan) -> None:
    from sagemaker.core.resources import TrainingJob
    from sagemaker.core.shapes import (
        AlgorithmSpecification,
        CheckpointConfig,
        MetricDefinition,
        OutputDataConfig,
        ResourceConfig,
        RetryStrategy,
        StoppingCondition,
        VpcConfig,
    )

    chosen = settings()
    image = training_image(chosen)
    # Code comes as data does, as SageMaker's SDK does it too for a container without network.
    channels = {**plan.channels, CODE_CHANNEL: plan.source_uri}
    source = plan.source_uri.rpartition("/")[2]
    metrics = [
        MetricDefinition(name=metric, regex=rf"\b{metric.replace(':', '_')}=([0-9.e+-]+)") for metric in plan.metrics
    ]
    # Only what is chosen: the SDK sends a None.
    output_key = {"kms_key_id": chosen.kms_key} if chosen.kms_key else {}
    volume_key = {"volume_kms_key_id": chosen.kms_key} if chosen.kms_key else {}
    # The same time as _wait_for_end gives it.
    wait = (
        {"max_wait_time_in_seconds": chosen.training_max_seconds + chosen.training_pending_seconds}
        if chosen.training_spot
        else {}
    )
    spot = {"enable_managed_spot_training": True} if chosen.training_spot else {}
    network: dict[str, Any] = {}
    if chosen.vpc_subnets:
        network["vpc_config"] = VpcConfig(
            subnets=list(chosen.vpc_subnets), security_group_ids=list(chosen.vpc_security_groups)
        )
    with translate_aws_errors(f"create training job {name}"):
        retry_until_role_is_assumable(
            lambda: ignore_existing(
                lambda: TrainingJob.create(
                    training_job_name=name,
                    role_arn=installation.training_role_arn,
                    algorithm_specification=AlgorithmSpecification(
                        training_image=image, training_input_mode="File", metric_definitions=metrics
                    ),
                    hyper_parameters={
                        **plan.hyperparameters,
                        "sagemaker_program": plan.program,
                        "sagemaker_container_log_level": "30",  # the toolkit would print its whole environment
                        "sagemaker_submit_directory": f"/opt/ml/input/data/{CODE_CHANNEL}/{source}",
                    },
                    input_data_config=[_channel(channel, uri) for channel, uri in channels.items()],
                    output_data_config=OutputDataConfig(
                        s3_output_path=f"s3://{installation.bucket}/{MODELS_PREFIX}", **output_key
                    ),
                    resource_config=ResourceConfig(
                        instance_type=chosen.training_instance_type,
                        instance_count=1,
                        volume_size_in_gb=10,
                        **volume_key,
                    ),
                    checkpoint_config=CheckpointConfig(
                        s3_uri=f"s3://{installation.bucket}/{CHECKPOINTS_PREFIX}{name}/",
                        local_path="/opt/ml/checkpoints",
                    ),
                    retry_strategy=RetryStrategy(maximum_retry_attempts=RETRIES),
                    stopping_condition=StoppingCondition(max_runtime_in_seconds=chosen.training_max_seconds, **wait),
                    **spot,
                    tags=sdk_tags(),
                    # Code may be anybody's: without network and credentials, it can't change what is in the bucket.
                    # https://docs.aws.amazon.com/sagemaker/latest/dg/mkt-algo-model-internet-free.html
                    enable_network_isolation=True,
                    **network,
                    **sdk(),
                )
            )
        )


def _channel(name: str, uri: str) -> "Channel":
    from sagemaker.core.shapes import Channel, DataSource, S3DataSource

    source = S3DataSource(s3_data_type="S3Prefix", s3_uri=uri, s3_data_distribution_type="FullyReplicated")
    return Channel(channel_name=name, data_source=DataSource(s3_data_source=source))
