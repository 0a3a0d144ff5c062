"""A sign of life for a service outside, which notices if it stays away."""

import httpx

from tasks.run import Log

TRIES = 3
SECONDS = 10.0


def beat(url: str | None, warn: Log) -> bool:
    """Asks for the URL, a few times; returns whether it was answered. None for none: nobody waits for it.

    Nothing fails because of it: whoever waits for the sign will tell.
    """
    if url is None:
        return False
    problem: object = None
    for _ in range(TRIES):
        try:
            answer = httpx.get(url, timeout=SECONDS, follow_redirects=True)
        except httpx.HTTPError as error:
            problem = error or type(error).__name__
            continue
        if answer.is_success:
            return True
        problem = f"status {answer.status_code}"
    warn(f"SCONES_HEARTBEAT_URL does not answer: {problem}")
    return False
