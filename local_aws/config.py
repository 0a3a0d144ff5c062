"""Where the local services listen and keep their state: SCONES_STATE, SCONES_*_PORT and a few more.

They are read from the environment and from scones.env (or the file that SCONES_SETTINGS names), as all settings are.
"""

import os
import socket
from pathlib import Path
from typing import Any

from dotenv.parser import parse_stream
from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

ROOT = Path(__file__).resolve().parent.parent
# Where ministack tells the SageMaker server what a caller may do.
AUTHORIZER_PATH = "/_scones/authorize"


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def settings_file() -> Path:
    """scones.env, or the file that SCONES_SETTINGS names."""
    return Path(os.environ.get("SCONES_SETTINGS", ROOT / "scones.env"))


class ConfigError(ValueError):
    """A setting of the local services is wrong; the message has a line for each."""


def _refuse_lines_that_are_none(file: Path) -> None:
    """Raises ConfigError for lines that python-dotenv would leave out with a warning."""
    if not file.is_file():
        return
    with file.open(encoding="utf-8", errors="replace") as lines:
        # python-dotenv takes the blank lines before for a part of the line.
        wrong = [
            each.original.line + _leading_lines(each.original.string) for each in parse_stream(lines) if each.error
        ]
    if wrong:
        raise ConfigError("\n".join(f"{file}, line {line} is not NAME=VALUE" for line in wrong))


def _leading_lines(text: str) -> int:
    return text[: len(text) - len(text.lstrip())].count("\n")


class LocalConfig(BaseSettings):
    """Every port is on 127.0.0.1."""

    model_config = SettingsConfigDict(env_prefix="SCONES_", extra="ignore")

    state: Path = Field(default=ROOT / ".scones", description="folder of all state of the local services")
    prefect_port: int = Field(default=4210, ge=1, le=65535, description="Prefect's API and UI")
    aws_port: int = Field(default=4567, ge=1, le=65535, description="ministack")
    sagemaker_port: int = Field(default=4568, ge=1, le=65535, description="the SageMaker server")

    sagemaker_options: str = Field(
        default="", description="options of the SageMaker server, such as --capture-delay 120"
    )

    list_delay: float = Field(
        default=0, ge=0, description="seconds until ListExecutions shows what happened, as it may take on AWS"
    )
    role_delay: float = Field(
        default=0, ge=0, description="seconds until a new role can be assumed, as it may take on AWS"
    )

    prefect_database: str = Field(
        default="",
        pattern=r"^(postgresql\+asyncpg://.+|sqlite\+aiosqlite:///.+)?$",
        description="database of the Prefect server, such as postgresql+asyncpg://USER:PASSWORD@HOST/NAME; by default "
        "an SQLite file in the state folder",
    )

    def __init__(self, **values: Any) -> None:
        _refuse_lines_that_are_none(settings_file())
        try:
            super().__init__(_env_file=settings_file(), **values)
        except ValidationError as error:
            lines = [f"SCONES_{str(each['loc'][0]).upper()}={each['input']}: {each['msg']}" for each in error.errors()]
            raise ConfigError("\n".join(lines)) from error

    def prefect_home(self, real_aws: bool = False) -> Path:
        """Runs, schedules and settings of Prefect; those for an account are kept apart from the local ones."""
        return self.state / ("prefect-aws" if real_aws else "prefect")

    def prefect_database_url(self, real_aws: bool = False) -> str:
        return self.prefect_database or f"sqlite+aiosqlite:///{self.prefect_home(real_aws)}/prefect.db"

    @property
    def worker_settings(self) -> Path:
        """What local_aws/worker.py adds to its environment."""
        return self.state / "worker-settings.json"

    @property
    def prefect_url(self) -> str:
        return f"http://127.0.0.1:{self.prefect_port}"

    @property
    def aws_url(self) -> str:
        # TLS because the bucket's policy refuses plain HTTP, here as on AWS.
        return f"https://127.0.0.1:{self.aws_port}"

    @property
    def authorizer_url(self) -> str:
        return f"{self.aws_url}{AUTHORIZER_PATH}"

    @property
    def sagemaker_url(self) -> str:
        return f"http://127.0.0.1:{self.sagemaker_port}"

    @property
    def certificate(self) -> Path:
        return self.state / "tls" / "certificate.pem"

    @property
    def key(self) -> Path:
        return self.state / "tls" / "key.pem"
