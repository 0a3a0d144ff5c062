"""Tells a cancellation by a person from every other end of a process: a stopped worker, a reboot, a signal."""

from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.exceptions import PrefectException
from prefect.runtime import flow_run

CANCELLED: tuple[StateType | None, ...] = (StateType.CANCELLING, StateType.CANCELLED)


def is_cancelled() -> bool:
    """Returns whether somebody cancelled the present flow run, or the one that called it, as Prefect's API has it.

    False if the server does not answer: what is left running then can be found again, and what was stopped can not.
    """
    runs = {UUID(run) for run in (flow_run.get_id(), flow_run.get_root_flow_run_id()) if run}
    try:
        with get_client(sync_client=True) as prefect:
            return any(prefect.read_flow_run(run).state_type in CANCELLED for run in runs)
    except (httpx.HTTPError, PrefectException):
        return False
