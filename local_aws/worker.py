"""Runs the Prefect worker with the settings of the last `make up`: python -m local_aws.worker.

The supervisor's own environment can't change while it runs, so the settings come from a file. Settings in scones.env
are not among them: each flow run reads that file when it starts.
"""

import json
import os

from local_aws.config import LocalConfig

COMMAND = ["prefect", "worker", "start", "--name", "local", "--pool", "local", "--type", "process", "--limit", "4"]


def main() -> None:
    environment = dict(os.environ)
    environment.update(json.loads(LocalConfig().worker_settings.read_text()))
    os.execvpe(COMMAND[0], COMMAND, environment)  # noqa: S606


if __name__ == "__main__":
    main()
