"""Runs one training script: what runs inside a SageMaker training container, which is AWS's training toolkit.

Three of the toolkit's steps are for a container of the job's own and are done otherwise here, in the server's
environment: nothing is installed into it, and PyTorch is not loaded just to learn its version.
"""

import os
import signal
from importlib import metadata
from types import FrameType

import psutil

from local_sagemaker.closed_imports import other_python
from local_sagemaker.container import start_parent_watchdog
from local_sagemaker.requirements import report_unmet


def main() -> None:
    start_parent_watchdog()
    if line := other_python():
        print(line, flush=True)  # noqa: T201 the job's log
    signal.signal(signal.SIGTERM, leave_it_to_the_script)
    from sagemaker_pytorch_container import training
    from sagemaker_training import modules
    from sagemaker_training.cli.train import main as train

    modules.install = modules.install_requirements = lambda path, capture_error=False: report_unmet(path)
    training._set_torch_version_environment = lambda: os.environ.update(SM_DLC_TORCH_VERSION=metadata.version("torch"))
    train()


def leave_it_to_the_script(number: int, frame: FrameType | None) -> None:
    """StopTrainingJob's SIGTERM reaches the script as well, and the toolkit waits for it to end, if it began at all."""
    if not psutil.Process().children():
        os._exit(128 + number)
