"""CreateTrainingJob, DescribeTrainingJob, ListTrainingJobs, StopTrainingJob."""

import time

import regex

from local_sagemaker import account
from local_sagemaker.checkpoints import BASE, DEFAULT_PATH
from local_sagemaker.protocol import ResourceLimitExceeded, ValidationException
from local_sagemaker.resources import TRAINING_JOB, Resources, check_s3_uri, refuse, require
from local_sagemaker.store import Record
from local_sagemaker.training import MESSAGES, TrainingJobs, artifacts_uri

DAY = 86400
# Folders below /opt/ml that SageMaker itself, or its toolkit, puts there.
MOUNTED = ("code", "input", "model", "output")


class TrainingJobOperations:
    """Training jobs as the API knows them; `jobs` runs them."""

    def __init__(self, resources: Resources, jobs: TrainingJobs) -> None:
        self._resources = resources
        self._jobs = jobs

    def create_training_job(self, request: Record) -> Record:
        _check(request)
        _check_access(request)
        now = time.time()
        starting = {"Status": "Starting", "StartTime": now, "StatusMessage": MESSAGES["Starting"]}
        with self._resources.store.lock:
            job = self._resources.create(
                TRAINING_JOB,
                request["TrainingJobName"],
                request,
                StoppingCondition={"MaxRuntimeInSeconds": DAY, **request.get("StoppingCondition", {})},
                ModelArtifacts={"S3ModelArtifacts": artifacts_uri(request)},
                TrainingJobStatus="InProgress",
                SecondaryStatus="Starting",
                SecondaryStatusTransitions=[starting],
            )
            self._jobs.start(job)
        return job

    def describe_training_job(self, request: Record) -> Record:
        return self._resources.get(TRAINING_JOB, request["TrainingJobName"])

    def list_training_jobs(self, request: Record) -> Record:
        refuse(request, "WarmPoolStatusEquals", "TrainingPlanArnEquals")
        return self._resources.page(TRAINING_JOB, request, "TrainingJobSummaries", newest_first=False)

    def stop_training_job(self, request: Record) -> None:
        job = self._resources.get(TRAINING_JOB, request["TrainingJobName"])
        if not self._jobs.stop(job["TrainingJobName"]):
            status = self._resources.get(TRAINING_JOB, job["TrainingJobName"])["TrainingJobStatus"]
            raise ValidationException(f"The request was rejected because the training job is in status {status}.")


def _check(request: Record) -> None:
    """Raises for what the API's description allows but no job can run with here."""
    # What would change a job's result is refused; what only watches it (debugger, profiler) is kept and not acted on.
    refuse(request, "ServerlessJobConfig")
    require(request, "AlgorithmSpecification", "ResourceConfig")
    algorithm, instances = request["AlgorithmSpecification"], request["ResourceConfig"]
    refuse(algorithm, "AlgorithmName")
    refuse(instances, "InstanceGroups", "TrainingPlanArn", "InstancePreferences")
    require(algorithm, "TrainingImage")
    require(instances, "InstanceType", "InstanceCount")
    for definition in algorithm.get("MetricDefinitions", []):
        try:
            groups = regex.compile(definition["Regex"]).groups
        except regex.error as error:
            raise ValidationException(f"Metric {definition['Name']}: {definition['Regex']!r}: {error}") from error
        if groups < 1:
            raise ValidationException(f"Metric {definition['Name']}: {definition['Regex']!r} has no capturing group.")
    if instances["InstanceCount"] < 1:
        raise ValidationException("ResourceConfig.InstanceCount must be at least 1.")
    if instances["InstanceCount"] > 1:
        raise ResourceLimitExceeded(
            f"The account-level service limit '{instances['InstanceType']} for training job usage' is 1 Instances per "
            f"job, with a request of {instances['InstanceCount']} Instances."
        )
    _check_checkpoints(request.get("CheckpointConfig"))
    _check_spot(bool(request.get("EnableManagedSpotTraining")), request.get("StoppingCondition", {}))
    check_s3_uri("OutputDataConfig.S3OutputPath", request["OutputDataConfig"]["S3OutputPath"])
    names = [channel["ChannelName"] for channel in request.get("InputDataConfig", [])]
    if len(set(names)) < len(names):
        raise ValidationException("Channel names must be unique within a training job.")
    for channel in request.get("InputDataConfig", []):
        _check_channel(channel, algorithm)


def _check_checkpoints(config: Record | None) -> None:
    """The folder is one of its own below /opt/ml, which stands for a folder of this machine here."""
    if config is None:
        return
    check_s3_uri("CheckpointConfig.S3Uri", config["S3Uri"])
    path = config.get("LocalPath", DEFAULT_PATH)
    first, *rest = path.removeprefix(BASE).rstrip("/").split("/")
    if not path.startswith(BASE) or first in ("", *MOUNTED) or {"", ".", ".."} & {first, *rest}:
        raise ValidationException(
            f"CheckpointConfig.LocalPath: {path!r} is not supported by this server, only a folder below {BASE} that is "
            f"none of {', '.join(MOUNTED)}"
        )


def _check_spot(spot: bool, condition: Record) -> None:
    """Spot capacity is there at once and goes away with the server only; what AWS wants to be told is asked for.

    "It must be equal to or greater than MaxRuntimeInSeconds"
    (https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_StoppingCondition.html). That without spot there is
    none: Kenza-AI/sagify, issue 111.
    """
    wait = condition.get("MaxWaitTimeInSeconds")
    if not spot and wait is not None:
        raise ValidationException(
            "Invalid MaxWaitTimeInSeconds. It is only supported when EnableManagedSpotTraining is set to true"
        )
    if spot and (wait is None or wait < condition.get("MaxRuntimeInSeconds", DAY)):
        raise ValidationException(
            "Invalid MaxWaitTimeInSeconds. It must be present and be greater than or equal to MaxRuntimeInSeconds"
        )


def _check_access(request: Record) -> None:
    """Raises ValidationException if the role can't be assumed or a channel is empty, which AWS tells at once.

    The sentences are AWS's, as quoted in awslabs/predictive-maintenance-using-machine-learning, issue 3, and in
    aws/amazon-sagemaker-examples, issue 2267.
    """
    role = request["RoleArn"]
    if not account.assumable(role):
        raise ValidationException(
            f"Could not assume role {role}. Please ensure that the role exists and allows principal "
            "'sagemaker.amazonaws.com' to assume the role."
        )
    for channel in request.get("InputDataConfig", []):
        uri = channel["DataSource"]["S3DataSource"]["S3Uri"]
        if not account.readable(role, uri, as_prefix=True):
            bucket = account.split_uri(uri)[0]
            raise ValidationException(
                f'No S3 objects found under S3 URL "{uri}" given in input data source. Please ensure that the bucket '
                f"exists in the selected region ({account.region()}), that objects exist under that S3 prefix, and "
                f'that the role "{role}" has "s3:ListBucket" permissions on bucket "{bucket}".'
            )


def _check_channel(channel: Record, algorithm: Record) -> None:
    where = f"channel {channel['ChannelName']}"
    if channel["ChannelName"] in (".", ".."):
        raise ValidationException(f"{where}: that is no name for its folder.")
    source = channel["DataSource"].get("S3DataSource")
    if not source:
        raise ValidationException(f"{where}: only S3DataSource is supported by this server.")
    if source["S3DataType"] not in ("S3Prefix", "ManifestFile"):
        raise ValidationException(f"{where}: S3DataType {source['S3DataType']} is not supported by this server.")
    if channel.get("InputMode", algorithm["TrainingInputMode"]) == "Pipe":
        raise ValidationException(f"{where}: input mode Pipe is not supported by this server.")
    if channel.get("CompressionType", "None") != "None":
        raise ValidationException(f"{where}: CompressionType is for input mode Pipe only.")
    check_s3_uri(where, source["S3Uri"])
