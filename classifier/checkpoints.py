"""Checkpoints of a training: a file for each network, from which a job that is started again goes on.

SageMaker copies the folder to S3 while the job runs, and back before it starts again:
https://docs.aws.amazon.com/sagemaker/latest/dg/model-checkpoints.html
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

logger = logging.getLogger(__name__)

# Written by SageMaker for a job with a CheckpointConfig.
CONFIG = "checkpointconfig.json"
DEFAULT_FOLDER = "/opt/ml/checkpoints"


@dataclass(frozen=True)
class Checkpoint:
    """Where a network is saved; None: nowhere. fingerprint: of all that decides what comes of the training."""

    file: Path | None = None
    fingerprint: str = ""

    def load(self) -> dict[str, Any]:
        """Returns what was saved last; nothing if it can't be read or is of another training."""
        if self.file is None or not self.file.exists():
            return {}
        try:
            state: dict[str, Any] = torch.load(self.file, map_location="cpu", weights_only=True)
            if state["fingerprint"] == self.fingerprint:
                return state
            reason = "it is of another training"
        except Exception as error:  # a damaged file can raise nearly anything
            reason = str(error).partition("\n")[0]
        logger.warning("checkpoint %s is not used, its network begins anew: %s", self.file.name, reason)
        return {}

    def save(self, state: dict[str, Any]) -> None:
        """Saves in one step: whoever reads the file finds this state or the one before."""
        if self.file is None:
            return
        partial = self.file.with_name(f"{self.file.name}.partial")
        torch.save({"fingerprint": self.fingerprint, **state}, partial)
        partial.replace(self.file)


NOWHERE = Checkpoint()


def configured_folder(config: str | None) -> Path | None:
    """The folder of the job's checkpoints; None if it has none. config: the folder of SageMaker's configuration."""
    file = Path(config or "", CONFIG)
    if config is None or not file.exists():
        return None
    folder = Path(json.loads(file.read_text()).get("LocalPath", DEFAULT_FOLDER))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def file_of(folder: Path | None, member: int) -> Path | None:
    """Where a network is saved."""
    return None if folder is None else folder / f"network-{member}.pt"


def discard(folder: Path | None) -> None:
    """Deletes the checkpoints of a training that is over. SageMaker deletes its copies then."""
    for file in folder.glob("network-*.pt*") if folder else ():
        file.unlink(missing_ok=True)
