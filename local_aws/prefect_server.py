"""Runs Prefect's server: python -m local_aws.prefect_server.

On SQLite, Prefect 3.8 begins a transaction by reading and asks for the write lock later. If another transaction has
written meanwhile, SQLite refuses at once with "database is locked", whatever busy time-out is set
(https://www.sqlite.org/rescode.html#busy_snapshot), and the server drops what it wanted to record: an event, a state.
Here every transaction asks for the write lock when it begins (BEGIN IMMEDIATE), as Prefect does from 3.9 on, so that it
waits for its turn for up to Prefect's 60 seconds. PostgreSQL is not affected.
"""

import sys
from contextlib import AbstractAsyncContextManager
from typing import Any

from prefect.cli import app
from prefect.server.database.configurations import AioSqliteConfiguration
from sqlalchemy.ext.asyncio import AsyncSession, AsyncSessionTransaction

from local_aws.config import LocalConfig

_begin = AioSqliteConfiguration.begin_transaction


def _begin_immediately(
    self: AioSqliteConfiguration, session: AsyncSession, with_for_update: bool = False
) -> AbstractAsyncContextManager[AsyncSessionTransaction, Any]:
    return _begin(self, session, with_for_update=True)


def main() -> None:
    AioSqliteConfiguration.begin_transaction = _begin_immediately  # type: ignore
    sys.argv = ["prefect", "server", "start", "--host", "127.0.0.1", "--port", str(LocalConfig().prefect_port)]
    app()


if __name__ == "__main__":
    main()
