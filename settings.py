"""The one home of names, prefixes and defaults.

Every field of Settings can be set as SCONES_NAME, in the file scones.env or in the environment, which wins.
"""

import difflib
import logging
import os
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from uuid import UUID
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from dotenv.parser import Binding, parse_stream
from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

ROOT = Path(__file__).resolve().parent
PREFIX = "SCONES_"

# What local_aws/config.py reads from the same file and environment.
LOCAL_NAMES = frozenset(
    [
        "STATE",
        "PREFECT_PORT",
        "AWS_PORT",
        "SAGEMAKER_PORT",
        "SAGEMAKER_OPTIONS",
        "LIST_DELAY",
        "ROLE_DELAY",
        "PREFECT_DATABASE",
    ]
)
# What processes of this project tell each other; SETTINGS is the path of the settings file, DEFAULTS that of defaults
# that suit the machine.
PROCESS_NAMES = frozenset({"SETTINGS", "ROOT", "SUPERVISED", "SOCKET", "AUTHORIZER", "WORK_POOL", "DEFAULTS"})

# Prefixes in the bucket. The templates in infrastructure/ grant access to them by name.
TRAIN_PREFIX = "train/"
TEST_PREFIX = "test/"
MANIFESTS_PREFIX = "manifests/"
CODE_PREFIX = "code/"
MODELS_PREFIX = "models/"
# Photographs that somebody has classified by themselves.
ADHOC_PREFIX = "adhoc/"
# Images without labels, which somebody brings; the functions for batches read no other prefix besides test/.
INCOMING_PREFIX = "incoming/"
CAPTURE_PREFIX = "data-capture/"
# Of a bulk run at the same time, if nothing else is set; each asks the endpoint with 8 threads.
BATCHES_PER_INSTANCE = 2
EVALUATIONS_PREFIX = "evaluations/"
BULK_PREFIX = "bulk/"
REPORTS_PREFIX = "reports/"
HOLDS_PREFIX = "holds/"
ROLLOUTS_PREFIX = "rollouts/"
THRESHOLDS_PREFIX = "thresholds/"
REVIEW_QUEUE_PREFIX = "review/queue/"
REVIEW_LABELS_PREFIX = "review/labels/"
REVIEW_LEASES_PREFIX = "review/leases/"

# The endpoint's one variant. AWS: "When doing a blue/green or rolling deployment, your new endpoint configuration must
# have the same variant name as the old endpoint configuration"
# (https://docs.aws.amazon.com/sagemaker/latest/dg/deployment-guardrails-exclusions.html).
VARIANT = "primary"

# Schema of the JSON files that others may read.
SCHEMA_VERSION = 1

# The event that carries an evaluation's outcome; prefect.yaml starts the report from it.
EVALUATION_EVENT = "scones.evaluation.completed"

# The same of a bulk run.
BULK_EVENT = "scones.bulk.completed"

# The event that says how many reviewed images no training has seen; prefect.yaml starts a training from it.
LABELS_EVENT = "scones.review.labels"

# The event that says that more images wait for a person than the setting allows.
BACKLOG_EVENT = "scones.review.backlog"

# The event that a report emits if somebody should look at it, with the reasons.
METRICS_NAMESPACE = "Scones"
ALERT_EVENT = "scones.report.alert"


def run_id(flow_run_id: UUID | str) -> str:
    """RUN: the last 12 hex digits of a flow run's id, which are random.

    The first 12 are a time in milliseconds (UUID version 7), which runs that a schedule makes together share.
    """
    return str(flow_run_id).replace("-", "")[-12:]


# Lines that it can't read are refused by their numbers, see wrong_names.
logging.getLogger("dotenv.main").setLevel(logging.ERROR)
# Five fields; Prefect looks at what they mean.
CRON = r"^\S+( \S+){4}$"


class SettingsError(ValueError):
    """Settings are unknown or wrong; the message has a line for each."""


class Settings(BaseSettings):
    """What an installation may choose."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="ignore")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Returns where values come from, the first wins: environment, settings file, defaults of the machine."""
        return (
            init_settings,
            env_settings,
            dotenv_settings,
            DotEnvSettingsSource(settings_cls, env_file=defaults_file()),
        )

    stack: str = Field(
        default="scones-unlimited",
        pattern=r"^[a-z][a-z0-9-]{1,30}$",
        description="Name of the installation; everything in AWS carries it.",
    )
    environment: str = Field(
        default="dev",
        pattern=r"^[a-z][a-z0-9-]{0,30}$",
        description="What the installation is for, such as dev or prod; a tag of all that it makes in AWS.",
    )
    owner: str | None = Field(
        default=None,
        pattern=r"^[\w .:/=+@-]{1,128}$",
        description="Who answers for it, such as a team's address; a tag as well.",
    )
    protected: bool = Field(
        default=False,
        description="Whether the stacks are protected against deletion, and teardown refuses to remove everything.",
    )
    aws_credentials_block: str | None = Field(
        default=None, description="Name of a prefect-aws AwsCredentials block; without it the environment decides."
    )

    # Schedules
    schedule_timezone: str = Field(default="UTC", description="Time zone of the schedules, such as Europe/Berlin.")
    nightly_cron: str | None = Field(
        default=None,
        pattern=CRON,
        description="When nightly-evaluation runs; 30 3 * * * by default.",
    )
    bulk_cron: str | None = Field(
        default=None, pattern=CRON, description="When classify-images runs; 0 5 * * * by default."
    )
    data_cron: str | None = Field(
        default=None, pattern=CRON, description="When prepare-data runs; 0 1 * * 0 by default."
    )
    training_cron: str | None = Field(
        default=None, pattern=CRON, description="When train-model runs; 0 2 * * 0 by default."
    )
    endpoint_cron: str | None = Field(
        default=None, pattern=CRON, description="When deploy-endpoint runs; 0 3 * * 0 by default."
    )

    # Data
    classes: Annotated[tuple[str, ...], NoDecode] = Field(
        default=("bicycle", "motorcycle"),
        min_length=2,
        max_length=100,
        description="CIFAR-100 fine labels, separated by commas. Those of your own images are their folders' names.",
    )
    dataset: str = Field(
        default="cifar100",
        min_length=1,
        description="'cifar100', 'generated', the path of an archive in CIFAR-100's layout, or your own images: a "
        "folder with one per class, a CSV or JSON Lines file, or an s3:// prefix. Used if nothing was prepared yet; "
        "afterwards an installation keeps its data set until prepare-data is given another one.",
    )
    dataset_test_share: float = Field(
        default=0.2,
        gt=0,
        lt=1,
        description="Share of your own images that are for testing, where there is no folder test/; drawn by content.",
    )
    dataset_strict: bool = Field(
        default=False, description="Whether your own images are refused if a file is broken, doubled or mislabelled."
    )
    cifar_url: str = Field(
        default="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz", description="Where 'cifar100' comes from."
    )
    cifar_md5: str = Field(default="eb9058c3a382ffc7106e4002c42a8d85", description="MD5 of that archive.")
    cache: Path = Field(default=ROOT / ".scones" / "cache", description="Folder for downloaded archives.")
    image_size: int = Field(
        default=32,
        ge=16,
        le=256,
        multiple_of=8,
        description="Width and height of the images that prepare-data uploads, drawn or resized, and of the network's "
        "input; a multiple of 8. Larger images take longer, about as their number of pixels.",
    )
    generated_per_class: int = Field(default=500, ge=10, description="Training images drawn for each class.")
    generated_test_per_class: int = Field(default=100, ge=1, description="Test images drawn for each class.")

    # Workflow
    threshold: Annotated[float, Field(ge=0, le=1)] | Literal["recommended", "every-class"] | None = Field(
        default=None,
        description="Confidence threshold, which deploy-endpoint applies: a number, 'recommended' for the one that the "
        "deployed model recommends, or 'every-class' for the one at which what is accepted as each class reaches the "
        "target; without it the stack keeps its own (0.93 at first).",
    )
    lambda_runtime: str = Field(
        default="python3.13",
        pattern=r"^(python3\.(1[2-9]|[2-9][0-9])|provided\.al2023)$",
        description="Runtime of the functions: python3.12 or later, for which lambdas/requirements.txt names Pillow.",
    )
    lambda_concurrency: int = Field(default=0, ge=0, description="Reserved concurrency of each function; 0 for none.")

    # Training
    classifier: Literal["single", "ensemble"] = Field(
        default="single",
        description="What serves: 'single' is one network fitted to all training images, 'ensemble' the mean of those "
        "that are each fitted without a fold, which takes longer to answer.",
    )
    epochs: int = Field(
        default=84,
        ge=1,
        description="How often each network is shown its images; without it as often as suits their number: 84 of 401 "
        "to 2,000.",
    )
    learning_rate: float = Field(default=0.004, gt=0)
    mini_batch_size: int = Field(default=64, ge=2)
    seed: int = Field(default=1, ge=0)
    folds: int = Field(
        default=5,
        ge=2,
        le=10,
        description="Parts of the training images that are left out in turn; without it as many as suit their number: "
        "5 of 201 to 10,000.",
    )
    repeats: int = Field(default=1, ge=1, le=10, description="How often the folds are dealt anew.")
    outlier_share: float = Field(
        default=0.02,
        ge=0,
        lt=0.5,
        description="Share of the confident training images that may be taken for pictures of no class, which sets the "
        "limit of the outlier score; 0 for models without one.",
    )
    threshold_target: float = Field(
        default=0.99, gt=0, lt=1, description="Accuracy of what is accepted at the threshold that a model recommends."
    )
    threshold_level: float = Field(
        default=0.90, gt=0.5, lt=1, description="Confidence of the lower bound that has to reach that accuracy."
    )
    threshold_method: Literal["monotone", "fixed-sequence"] = Field(
        default="monotone",
        description="How a threshold is shown to reach it: 'monotone' assumes that errors are no likelier at higher "
        "confidence, 'fixed-sequence' does not, accepts less, and recommends none for every class.",
    )
    training_instance_type: str = "ml.m5.xlarge"
    training_spot: bool = Field(
        default=False,
        description="Whether training waits for spare capacity (managed spot training), which is much cheaper. An "
        "interrupted job goes on from its last checkpoint.",
    )
    training_pytorch: str = Field(default="2.13", description="PyTorch version of AWS's training image.")
    training_python: str = Field(
        default="py313", description="Python version of AWS's training image, for a PyTorch below 2.11."
    )
    training_max_seconds: int = Field(default=3600, ge=60, description="After this SageMaker stops the job.")
    training_pending_seconds: int = Field(
        default=3600, ge=0, description="How much longer a job may be on its way, such as waiting for an instance."
    )

    # Gate
    approval: Literal["automatic", "manual"] = Field(
        default="automatic", description="Who approves a model that was trained: the gate, or a person whom it asks."
    )
    approval_max_seconds: int = Field(default=604_800, ge=10, description="How long a person may take to decide.")
    gate_min_accuracy: float = Field(default=0.85, ge=0, le=1, description="Accuracy below which no model is approved.")
    gate_margin: float = Field(
        default=0.03, ge=0, le=1, description="How much less accurate than the champion a challenger may be."
    )
    gate_level: float = Field(default=0.95, gt=0.5, lt=1, description="Confidence of the test that it is not worse.")

    # Endpoint
    endpoint_instance_type: str = "ml.m5.large"
    endpoint_instance_count: int = Field(
        default=1, ge=1, description="Instances of the endpoint; the fewest, if it scales by itself."
    )
    endpoint_max_instances: int = Field(
        default=0,
        ge=0,
        le=1000,
        description="The most instances, if the endpoint scales by itself; 0 if it does not. For an endpoint that is "
        "asked all day: that nobody asks is no reason for AWS to take instances away.",
    )
    endpoint_invocations_per_instance: int = Field(
        default=1000,
        ge=1,
        description="Invocations a minute of each instance that automatic scaling aims at. AWS advises half of what an "
        "instance bears.",
    )
    inference_container: Literal["pytorch", "ray-serve"] = Field(
        default="pytorch",
        description="What serves models: AWS's PyTorch image, or its successor with Ray Serve, which only AWS runs.",
    )
    inference_pytorch: str = Field(default="2.6.0", description="PyTorch version of AWS's inference image.")
    inference_python: str = Field(default="py312", description="Python version of AWS's inference image.")
    inference_ray_serve: str = Field(default="1.4", description="Version of AWS's Ray Serve image.")
    inference_image: str | None = Field(default=None, description="Image URI to serve with instead of AWS's.")
    endpoint_schedule: Literal["always", "night"] = Field(
        default="always",
        description="When the endpoint stands, which costs by the hour: always, or only while nightly-evaluation runs, "
        "which then deploys the newest approved version first and deletes the endpoint afterwards.",
    )
    endpoint_linger_seconds: int = Field(
        default=300,
        ge=0,
        description="How long an endpoint of one night stands after it: capture records may come late.",
    )
    endpoint_max_seconds: int = Field(default=1800, ge=30, description="How long an endpoint may take to come up.")
    canary_percent: int = Field(
        default=50, ge=1, le=50, description="Share of the instances that are switched first, from two instances on."
    )
    bake_seconds: int = Field(
        default=60, ge=0, le=3600, description="How long a canary, or a switch with alarms, is watched before the rest."
    )
    rollback_alarms: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), max_length=10, description="Names of CloudWatch alarms that roll a switch back, with commas."
    )
    smoke_images_per_class: int = Field(default=5, ge=1, le=100, description="Known images asked about, of each class.")
    smoke_min_accuracy: float = Field(
        default=0.75, ge=0, le=1, description="Share of the known images that a candidate has to get right."
    )
    smoke_capture_seconds: int = Field(
        default=30, ge=0, description="How long to wait for the smoke test's capture record before a warning."
    )
    retained_versions: int = Field(
        default=3, ge=1, description="Newest endpoint configs, with their models, that are kept for going back."
    )
    alarms: bool = Field(
        default=False,
        description="CloudWatch alarms and a dashboard, as a stack of their own; about $1.70 a month. The endpoint's "
        "alarms then roll a switch back, unless SCONES_ROLLBACK_ALARMS names others.",
    )
    alarm_email: str | None = Field(
        default=None,
        pattern=r"^[^@\s]+@[^@\s]+$",
        description="Gets a message of every alarm, after it has confirmed that it wants them.",
    )
    monthly_budget: float = Field(
        default=0,
        ge=0,
        description="US dollars a month beyond which the alarms' topic is told, at 80 % spent and at 100 % forecast; 0 "
        "for no budget. It counts what carries the installation's tag, which the account has to activate.",
    )
    kms_key: str | None = Field(
        default=None,
        pattern=r"^arn:[^:]+:kms:.+$",
        description="ARN of a KMS key for bucket, logs, functions, training, volumes and capture records; prepare-data "
        "grants its use. The key's own policy must let CloudWatch Logs use it.",
    )
    vpc_subnets: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(),
        max_length=16,
        description="Subnets that training and the model's containers join, separated by commas.",
    )
    vpc_security_groups: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), max_length=5, description="Their security groups, separated by commas."
    )
    network_isolation: bool = Field(
        default=False,
        description="Whether the model's containers reach no network and hold no credentials, as training's never do. "
        "What requirements.txt asks for must be in the image then.",
    )
    functions_in_vpc: bool = Field(
        default=False,
        description="Whether the functions join these subnets too, which then need VPC endpoints for S3, SageMaker "
        "Runtime and CloudWatch Logs.",
    )
    access_logs: bool = Field(
        default=False, description="Whether S3 logs each request to the bucket, in a second bucket (-logs)."
    )
    state_machine_logs: bool = Field(
        default=False, description="Whether executions that fail are logged in CloudWatch, without their data."
    )
    tracing: bool = Field(default=False, description="Whether executions and functions are traced by X-Ray.")

    # Flow runs on ECS
    runner_vpc: str | None = Field(
        default=None,
        pattern=r"^vpc-[0-9a-f]+$",
        description="VPC in which flow runs run on ECS; without it `make deploy` makes no cluster.",
    )
    runner_subnets: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), max_length=16, description="Its subnets that they run in, separated by commas."
    )
    runner_public_ip: bool = Field(
        default=True,
        description="Whether they have public addresses, which they need in public subnets; in private ones a NAT "
        "gateway or VPC endpoints have to be there.",
    )
    runner_image_tag: str = Field(
        default="1",
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$",
        description="Tag of their image, in the repository STACK-runner.",
    )
    runner_workers: int = Field(
        default=0, ge=0, le=1, description="Prefect workers on ECS; 1 once the image is in the repository."
    )
    runner_api_key_secret: str | None = Field(
        default=None,
        pattern=r"^arn:[^:]+:secretsmanager:.+$",
        description="ARN of the secret that holds the key of Prefect's API.",
    )

    # Evaluation
    executions_in_flight: int = Field(
        default=50, ge=1, le=1000, description="Executions that run at the same time; four per CPU on one machine."
    )
    execution_max_seconds: int = Field(
        default=600, ge=5, description="What runs is stopped when no execution has ended for this long."
    )
    starts_per_second: float = Field(
        default=100, gt=0, description="Rate of StartExecution; AWS refills 150 or more a second in every region."
    )
    describes_per_second: float = Field(
        default=10, gt=0, description="Rate of DescribeExecution; AWS refills 10 or more a second in every region."
    )
    lists_per_second: float = Field(
        default=2, gt=0, description="Rate of ListExecutions; AWS refills 2 or more a second in every region."
    )
    evaluation_attempts: int = Field(
        default=2, ge=1, le=9, description="Executions an image may have: failed ones are tried again at the end."
    )
    evaluation_max_failed: float = Field(
        default=0.05, ge=0, le=1, description="Share of failed images above which an evaluation fails."
    )
    evaluation_min_accuracy: float = Field(
        default=0.85, ge=0, le=1, description="Accuracy below which an evaluation fails; that of the model gate."
    )
    evaluation_min_coverage: float = Field(
        default=0.5, ge=0, le=1, description="Share of accepted images below which an evaluation fails."
    )
    evaluation_bulk_images: int = Field(
        default=5_000, ge=1, description="Images above which an evaluation runs them in batches, by a Distributed Map."
    )

    heartbeat_url: str | None = Field(
        default=None,
        pattern=r"^https?://\S+$",
        description="Asked for (GET) after every evaluation that was judged, well or badly. A service outside that "
        "misses it for a day tells what nothing here can: that the Prefect server itself is down.",
    )

    # Bulk
    bulk_batch_size: int = Field(
        default=100, ge=1, le=1000, description="Images of a batch, which is one invocation of classifyBatch."
    )
    bulk_concurrency: int | None = Field(
        default=None,
        ge=1,
        le=10_000,
        description="Batches at the same time, of which each asks the endpoint with 8 threads; by default 2 for each "
        "instance of the endpoint.",
    )

    outage_max_seconds: int = Field(
        default=600, ge=0, description="How long throttling, or an AWS out of reach, is waited out."
    )

    # Review
    audit_share: float = Field(
        default=0.05, ge=0, le=1, description="Share of the accepted images that a person looks at, drawn at random."
    )
    review_per_day: int = Field(
        default=200,
        ge=0,
        description="Images that were not accepted, of which so many a day are queued for a person; accepted ones that "
        "were drawn come on top.",
    )
    review_order: Literal["uncertain", "random"] = Field(
        default="uncertain", description="Which of them come first: those of the lowest confidence, or any."
    )
    review_double_share: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Share of the queued images that two people look at, and a third where they disagree.",
    )
    review_lease_seconds: int = Field(
        default=300, ge=10, description="How long an image is kept for the person whom it is shown to."
    )
    review_expires_days: int = Field(
        default=90, ge=1, description="After this nobody is asked any more; the answers that there are decide."
    )
    review_retrain_labels: int = Field(
        default=100, ge=0, description="New labels with which a training starts by itself; 0 for never."
    )
    review_backlog: int = Field(
        default=1000, ge=0, description="Waiting images above which somebody is told that there are so many."
    )
    review_port: int = Field(default=4240, ge=1, le=65535, description="Port of the page that `make review` serves.")
    certification_share: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Share of the audited images that only the certificate uses, and no training, by a hash of their "
        "content.",
    )
    certificate_level: float = Field(
        default=0.95, gt=0.5, lt=1, description="Confidence of the certificate over what is accepted."
    )

    # Report
    capture_max_seconds: int = Field(
        default=900, ge=0, description="How long the report waits for capture records before it is provisional."
    )
    reports: Path = Field(default=ROOT / "reports", description="Folder that reports are written to.")

    @field_validator(
        "classes", "rollback_alarms", "vpc_subnets", "vpc_security_groups", "runner_subnets", mode="before"
    )
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value

    @field_validator("classes")
    @classmethod
    def _distinct(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError(f"a class is named twice: {', '.join(value)}")
        return value

    @field_validator("schedule_timezone")
    @classmethod
    def _known_time_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError) as error:
            raise ValueError(f"there is no time zone {value!r}; names are such as UTC or Europe/Berlin") from error
        return value

    @model_validator(mode="after")
    def _bounds_of_scaling(self) -> Self:
        if self.endpoint_max_instances and self.endpoint_max_instances < self.endpoint_instance_count:
            raise ValueError("SCONES_ENDPOINT_MAX_INSTANCES is 0, or at least SCONES_ENDPOINT_INSTANCE_COUNT")
        return self

    @model_validator(mode="after")
    def _whole_vpc(self) -> Self:
        if bool(self.vpc_subnets) != bool(self.vpc_security_groups):
            raise ValueError("SCONES_VPC_SUBNETS and SCONES_VPC_SECURITY_GROUPS are set together, or not at all")
        if self.functions_in_vpc and not self.vpc_subnets:
            raise ValueError("SCONES_FUNCTIONS_IN_VPC needs SCONES_VPC_SUBNETS and SCONES_VPC_SECURITY_GROUPS")
        if bool(self.runner_vpc) != bool(self.runner_subnets):
            raise ValueError("SCONES_RUNNER_VPC and SCONES_RUNNER_SUBNETS are set together, or not at all")
        return self

    @model_validator(mode="after")
    def _one_network_judged(self) -> Self:
        if self.classifier == "single" and self.repeats != 1:
            raise ValueError(
                "SCONES_CLASSIFIER=single takes SCONES_REPEATS=1: the mean of several networks tells nothing about one"
            )
        return self

    @property
    def bulk_batches(self) -> int:
        """Batches at the same time."""
        return self.bulk_concurrency or BATCHES_PER_INSTANCE * self.endpoint_instance_count

    @property
    def tags(self) -> dict[str, str]:
        """Of all that the installation makes in AWS, by which bills and policies can tell it apart."""
        return {
            "scones:stack": self.stack,
            "scones:environment": self.environment,
            **({"scones:owner": self.owner} if self.owner else {}),
        }

    @property
    def storage_stack(self) -> str:
        return f"{self.stack}-storage"

    @property
    def alarms_stack(self) -> str:
        return f"{self.stack}-alarms"

    @property
    def runner_stack(self) -> str:
        return f"{self.stack}-runner"

    @property
    def alarms_of_a_switch(self) -> tuple[str, ...]:
        """Alarms that roll a switch to another model back: those that are set, or the endpoint's own."""
        if self.rollback_alarms or not self.alarms:
            return self.rollback_alarms
        return f"{self.stack}-endpoint-5xx", f"{self.stack}-endpoint-latency"

    @property
    def endpoint(self) -> str:
        return f"{self.stack}-classifier"

    @property
    def training_hold(self) -> str:
        """What a training holds, so that there is one at a time."""
        return f"{self.stack}-training"

    @property
    def candidate_endpoint(self) -> str:
        return f"{self.stack}-candidate"

    @property
    def model_package_group(self) -> str:
        return f"{self.stack}-classifier"


@cache
def settings() -> Settings:
    """The settings of this process. Raises SettingsError if one is unknown or wrong."""
    problems = wrong_names()
    try:
        # mypy does not know that every setting has a default.
        chosen = Settings(_env_file=settings_file())  # type: ignore[call-arg]
    except ValidationError as error:
        problems += explain(error)
    if problems:
        raise SettingsError("\n".join(problems))
    return chosen


def settings_file() -> Path:
    """scones.env beside this file, or the file that SCONES_SETTINGS names."""
    return Path(os.environ.get(f"{PREFIX}SETTINGS", ROOT / "scones.env"))


def defaults_file() -> Path | None:
    """The file of defaults that suit the machine, which `make up` writes; None on AWS."""
    named = os.environ.get(f"{PREFIX}DEFAULTS")
    return Path(named) if named else None


def file_values() -> dict[str, str]:
    """Names and values in the settings file, empty if there is none. Raises SettingsError if it can't be read."""
    return {each.key: each.value for each in _lines() if each.key and each.value is not None}


def _lines() -> list[Binding]:
    """What python-dotenv makes of the lines of the settings file."""
    path = settings_file()
    if not path.is_file():
        if f"{PREFIX}SETTINGS" in os.environ:
            raise SettingsError(f"SCONES_SETTINGS names {path}, which is no file")
        return []
    try:
        with path.open(encoding="utf-8") as file:
            return list(parse_stream(file))
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path} is no text file: {error.reason} at byte {error.start}") from error


def line_of(binding: Binding) -> int:
    """The number of the line; python-dotenv takes the blank lines before for a part of it."""
    text = binding.original.string
    return binding.original.line + text[: len(text) - len(text.lstrip())].count("\n")


def wrong_names() -> list[str]:
    """A line for each line of the settings file that sets nothing, or sets a name that is no setting or is set before.

    Also for each name in the environment that begins with SCONES_ and is no setting.
    """
    known = {PREFIX + name.upper() for name in Settings.model_fields} | {PREFIX + name for name in LOCAL_NAMES}
    problems, seen = [], dict[str, int]()
    for each in _lines():
        line = line_of(each)
        where = f"{settings_file()}, line {line}"
        if each.error:
            problems.append(f"{where} is not NAME=VALUE")
        elif each.key is None:  # blank, or a comment
            continue
        elif each.key not in known:
            problems.append(f"{where}: {each.key} is not a setting{_meant(each.key, known)}")
        elif each.value is None:
            problems.append(f"{where}: {each.key} has no value; write {each.key}=VALUE")
        elif each.key in seen:
            problems.append(f"{where}: {each.key} is set in line {seen[each.key]} already")
        else:
            seen[each.key] = line
    processes = {PREFIX + name for name in PROCESS_NAMES}
    problems += [
        f"{name} in the environment is not a setting{_meant(name, known)}"
        for name in sorted(os.environ)
        if name.startswith(PREFIX) and name not in known | processes
    ]
    return problems


def explain(error: ValidationError) -> list[str]:
    """A line for each setting that pydantic refused: name, value and why."""
    reasons: dict[str, list[str]] = {}
    values: dict[str, Any] = {}
    for problem in error.errors():
        name = PREFIX + str(problem["loc"][0]).upper() if problem["loc"] else ""
        reason = problem["msg"].removeprefix("Value error, ")
        reasons.setdefault(name, [])
        if reason not in reasons[name]:
            reasons[name].append(reason)
        values[name] = os.environ.get(name, file_values().get(name) or problem["input"])
    return [
        f"{name}={values[name]!s:.80}: {' or '.join(each)}" if name else "; ".join(each)
        for name, each in reasons.items()
    ]


def _meant(name: str, known: set[str]) -> str:
    """What a misspelt name may have meant."""
    close = difflib.get_close_matches(name, sorted(known), n=1)
    return f"; did you mean {close[0]}?" if close else "; scones.env.example has them all"
