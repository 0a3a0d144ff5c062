"""A bar among a flow run's artifacts, which nothing stops for."""

from contextlib import suppress
from uuid import UUID

import httpx
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.exceptions import PrefectHTTPStatusError


class ProgressBar:
    """Shows how much of something is done."""

    def __init__(self, what: str) -> None:
        artifact = create_progress_artifact(progress=0.0, description=what)
        assert isinstance(artifact, UUID)
        self._artifact = artifact

    def show(self, done: int, total: int) -> None:
        with suppress(httpx.HTTPError, PrefectHTTPStatusError):
            update_progress_artifact(self._artifact, progress=100 * done / max(total, 1))
