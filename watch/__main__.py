"""Looks at the flow runs of a work pool again and again: python -m watch POOL.

What there is to do is read from the states that Prefect's API shows, at every look anew. So it does not matter what
happened while this process, or the server, was down, and nothing is done twice. Runs beside any worker, on ECS too.
"""

import argparse
import sys
import time

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import PrefectException
from prefect.logging import get_logger

from tasks.run import utc_now
from watch import notices, recovery
from watch.pool import Pool

LOOK_SECONDS = 10
logger = get_logger("watch")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m watch", description=__doc__)
    parser.add_argument("pool", help="the work pool whose flow runs are looked after")
    watch(parser.parse_args().pool)
    return 0


def watch(name: str) -> None:
    """Looks every LOOK_SECONDS, until the process is stopped."""
    heard: float | None = None  # since when the server has answered each time
    while True:
        began = time.monotonic()
        try:
            with get_client(sync_client=True) as prefect:
                heard = began if heard is None else heard
                look(prefect, name, began - heard)
        except (httpx.HTTPError, PrefectException) as error:
            if heard is not None:
                logger.warning("the Prefect server does not answer: %s", error or type(error).__name__)
            heard = None
        except Exception:  # a defect in one look must not end all later ones
            logger.exception("a look failed")
        time.sleep(max(LOOK_SECONDS - (time.monotonic() - began), 1))


def look(prefect: SyncPrefectClient, name: str, heard_seconds: float) -> None:
    """Looks once. heard_seconds: for how long the server has answered, and could have heard of living runs."""
    pool = Pool.read(prefect, name)
    if recovery.recover(prefect, pool, heard_seconds, utc_now()):
        pool = Pool.read(prefect, name)
    notices.tell(prefect, pool, utc_now())


if __name__ == "__main__":
    sys.exit(main())
