"""The one home of names, prefixes and defaults. Every field can be set as SCONES_NAME in the environment."""

from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

ROOT = Path(__file__).resolve().parent

# Prefixes in the bucket. The templates in infrastructure/ grant access to them by name.
TRAIN_PREFIX = "train/"
TEST_PREFIX = "test/"
MANIFESTS_PREFIX = "manifests/"
CODE_PREFIX = "code/"
MODELS_PREFIX = "models/"
CAPTURE_PREFIX = "data-capture/"
EVALUATIONS_PREFIX = "evaluations/"
REPORTS_PREFIX = "reports/"

# Schema of the JSON files that others may read.
SCHEMA_VERSION = 1

# The event that carries an evaluation's outcome; prefect.yaml starts the report from it.
EVALUATION_EVENT = "scones.evaluation.completed"


class Settings(BaseSettings):
    """What an installation may choose."""

    model_config = SettingsConfigDict(env_prefix="SCONES_")

    stack: str = Field(
        default="scones-unlimited",
        pattern=r"^[a-z][a-z0-9-]{1,30}$",
        description="Name of the installation; everything in AWS carries it.",
    )
    aws_credentials_block: str | None = Field(
        default=None, description="Name of a prefect-aws AwsCredentials block; without it the environment decides."
    )

    # Data
    classes: Annotated[tuple[str, ...], NoDecode] = Field(
        default=("bicycle", "motorcycle"), min_length=2, description="CIFAR-100 fine labels, separated by commas."
    )
    dataset: str = Field(
        default="cifar100", description="'cifar100', 'generated', or the path of an archive in CIFAR-100's layout."
    )
    cifar_url: str = Field(
        default="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz", description="Where 'cifar100' comes from."
    )
    cifar_md5: str = Field(default="eb9058c3a382ffc7106e4002c42a8d85", description="MD5 of that archive.")
    cache: Path = Field(default=ROOT / ".scones" / "cache", description="Folder for downloaded archives.")
    generated_per_class: int = Field(default=500, ge=10, description="Training images drawn for each class.")
    generated_test_per_class: int = Field(default=100, ge=1, description="Test images drawn for each class.")

    # Workflow
    threshold: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Confidence threshold to deploy; without it the stack keeps its own (0.93).",
    )
    lambda_runtime: str = Field(default="python3.13", description="Runtime of the functions.")
    lambda_concurrency: int = Field(default=0, ge=0, description="Reserved concurrency of each function; 0 for none.")

    # Training
    epochs: int = Field(default=40, ge=1)
    learning_rate: float = Field(default=0.002, gt=0)
    mini_batch_size: int = Field(default=64, ge=2)
    seed: int = Field(default=1, ge=0)
    members: int = Field(default=2, ge=1, description="Networks that are trained and answer together.")
    training_instance_type: str = "ml.m5.xlarge"
    training_pytorch: str = Field(default="2.10.0", description="PyTorch version of AWS's training image.")
    training_python: str = Field(default="py313", description="Python version of AWS's training image.")
    training_max_seconds: int = Field(default=3600, ge=60, description="After this SageMaker stops the job.")

    # Endpoint
    endpoint_instance_type: str = "ml.m5.large"
    endpoint_instance_count: int = Field(default=1, ge=1)
    inference_pytorch: str = Field(default="2.6.0", description="PyTorch version of AWS's inference image.")
    inference_python: str = Field(default="py312", description="Python version of AWS's inference image.")
    inference_image: str | None = Field(default=None, description="Image URI to serve with instead of AWS's.")
    endpoint_max_seconds: int = Field(default=1800, ge=30, description="How long an endpoint may take to come up.")

    # Evaluation
    executions_in_flight: int = Field(default=8, ge=1, le=1000, description="Executions that run at the same time.")
    execution_max_seconds: int = Field(default=600, ge=10, description="How long the last executions may take.")

    # Report
    capture_max_seconds: int = Field(
        default=900, ge=0, description="How long the report waits for capture records before it is provisional."
    )
    reports: Path = Field(default=ROOT / "reports", description="Folder that reports are written to.")

    @field_validator("classes", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value

    @field_validator("classes")
    @classmethod
    def _distinct(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError(f"a class is named twice: {', '.join(value)}")
        return value

    @property
    def storage_stack(self) -> str:
        return f"{self.stack}-storage"

    @property
    def endpoint(self) -> str:
        return f"{self.stack}-classifier"

    @property
    def model_package_group(self) -> str:
        return f"{self.stack}-classifier"


@cache
def settings() -> Settings:
    """The settings of this process; raises pydantic's ValidationError, which names the variable, where one is wrong."""
    return Settings()
