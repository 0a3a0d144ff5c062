"""Runs the Prefect worker with the settings of the last `make up`: python -m local_aws.worker.

The supervisor's own environment can't change while it runs, so the settings come from a file. Settings in scones.env
are not among them: each flow run reads that file when it starts.
"""

import json
import os

from local_aws import services
from local_aws.config import LocalConfig
from local_aws.environment import work_pool


def main() -> None:
    environment = dict(os.environ)
    environment.update(json.loads(LocalConfig().worker_settings.read_text()))
    pool = work_pool(real_aws=services.mode(LocalConfig()) == "real")
    command = ["prefect", "worker", "start", "--name", pool, "--pool", pool, "--type", "process", "--limit", "4"]
    os.execvpe(command[0], command, environment)  # noqa: S606


if __name__ == "__main__":
    main()
