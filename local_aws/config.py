"""Where the local services listen and keep their state: SCONES_STATE and SCONES_*_PORT."""

import socket
from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

ROOT = Path(__file__).resolve().parent.parent


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class LocalConfig(BaseSettings):
    """Every port is on 127.0.0.1."""

    model_config = SettingsConfigDict(env_prefix="SCONES_")

    state: Path = Field(default=ROOT / ".scones", description="folder of all state of the local services")
    prefect_port: int = Field(default=4210, ge=1, le=65535, description="Prefect's API and UI")
    aws_port: int = Field(default=4567, ge=1, le=65535, description="ministack")
    sagemaker_port: int = Field(default=4568, ge=1, le=65535, description="the SageMaker server")

    sagemaker_options: str = Field(
        default="", description="options of the SageMaker server, such as --capture-delay 120"
    )

    @property
    def prefect_url(self) -> str:
        return f"http://127.0.0.1:{self.prefect_port}"

    @property
    def aws_url(self) -> str:
        # TLS because the bucket's policy refuses plain HTTP, here as on AWS.
        return f"https://127.0.0.1:{self.aws_port}"

    @property
    def sagemaker_url(self) -> str:
        return f"http://127.0.0.1:{self.sagemaker_port}"

    @property
    def certificate(self) -> Path:
        return self.state / "tls" / "certificate.pem"

    @property
    def key(self) -> Path:
        return self.state / "tls" / "key.pem"
