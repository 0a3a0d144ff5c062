"""Waiting for something that is looked at again and again: one loop, made of tenacity, for all of them."""

from collections.abc import Callable
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_result, stop_after_delay, wait_exponential

Seen = TypeVar("Seen")


def look_until(
    done: Callable[[Seen], bool],
    look: Callable[[], Seen],
    *,
    seconds: float,
    every: float,
    at_most: float | None = None,
) -> Seen:
    """Looks every so many seconds until `done` says so of what was seen, and returns that.

    After `seconds` it returns what it saw last, of which `done` is not true: the caller says what that means.
    at_most: the pause grows by half each time, up to this; by default it stays.
    """
    growth = 1.0 if at_most is None else 1.5
    retrying = Retrying(
        retry=retry_if_result(lambda seen: not done(seen)),
        wait=wait_exponential(multiplier=every, exp_base=growth, max=at_most or every),
        stop=stop_after_delay(seconds),
        retry_error_callback=_last_seen,
    )
    return retrying(look)


def _last_seen(state: RetryCallState) -> object:
    assert state.outcome is not None
    return state.outcome.result()
