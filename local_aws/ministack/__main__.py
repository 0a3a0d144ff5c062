"""Runs ministack with this project's configuration: python -m local_aws.ministack."""

import asyncio
import asyncio.constants
import logging
import os
import tempfile
import time
from pathlib import Path

from hypercorn.asyncio import serve
from hypercorn.config import Config as HypercornConfig

from local_aws.config import LocalConfig
from local_aws.credentials import credentials
from local_aws.environment import ministack_variables

SNAPSHOT_SECONDS = 10
# Of the time at most; a snapshot copies all that ever ran, and nothing else is answered meanwhile.
SNAPSHOT_SHARE = 0.05
SNAPSHOT_SERVICES = ("s3", "lambda", "stepfunctions", "iam", "cloudformation", "cloudwatch_logs", "eventbridge")


def main() -> None:
    config = LocalConfig()
    variables = ministack_variables(config)
    Path(variables["TMPDIR"]).mkdir(parents=True, exist_ok=True)
    os.environ.update(variables)
    tempfile.tempdir = variables["TMPDIR"]
    # ministack reads its environment when it is imported. Its own main() is not used: with TLS that listens on port
    # 443 as well.
    from ministack.app import _build_persistence_save_dict, app
    from ministack.core import iam_evaluator
    from ministack.core.persistence import save_all
    from ministack.services import sts

    from local_aws.ministack import (
        authorization,
        buckets,
        budgets,
        distributed_map,
        doors,
        ecs,
        functions,
        metrics,
        roles,
        state_machines,
    )

    buckets.install()
    budgets.install()
    roles.install(config.role_delay)
    state_machines.install(config.list_delay)
    distributed_map.install()
    ecs.install()
    functions.install()
    metrics.install()

    async def snapshot() -> None:
        """ministack saves its state only when it is stopped; this bounds what a kill can lose."""
        logging.getLogger("persistence").setLevel(logging.WARNING)
        seconds = 0.0
        while True:
            await asyncio.sleep(max(SNAPSHOT_SECONDS, seconds / SNAPSHOT_SHARE))
            began = time.monotonic()
            services = {name: state for name, state in _build_persistence_save_dict().items() if name in wanted}
            await asyncio.to_thread(save_all, services)
            seconds = time.monotonic() - began

    def known(key: str) -> bool:
        return key in sts._sessions or iam_evaluator.find_iam_access_key_account(key) is not None

    async def run() -> None:
        snapshots = asyncio.create_task(snapshot())
        guarded = doors.with_doors(authorization.with_authorizer(app), credentials(config), known)
        await serve(guarded, server)
        snapshots.cancel()

    # A client that keeps a TLS connection would hold up the end for half a minute.
    asyncio.constants.SSL_SHUTDOWN_TIMEOUT = 1.0
    wanted = set(SNAPSHOT_SERVICES)
    server = HypercornConfig()
    server.bind = [f"127.0.0.1:{config.aws_port}"]
    server.certfile = str(config.certificate)
    server.keyfile = str(config.key)
    server.keep_alive_timeout = 75
    server.graceful_timeout = 2
    server.loglevel = "WARNING"
    asyncio.run(run())


if __name__ == "__main__":
    main()
