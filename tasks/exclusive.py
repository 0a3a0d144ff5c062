"""One flow run at a time on an endpoint, or in training: a hold in the bucket, by conditional requests.

A hold is kept by nothing but the process that renews it. Whatever ends that process, or restarts the Prefect server,
the hold is free LEASE_SECONDS after its last renewal.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import uuid4

from msgspec.structs import replace

from settings import HOLDS_PREFIX
from tasks.aws import storage
from tasks.aws.errors import AwsError
from tasks.errors import SconesError
from tasks.records import Record
from tasks.run import Log, iso, utc_now

LEASE_SECONDS = 60
RENEW_SECONDS = 15
POLL_SECONDS = 2.0


class HoldLost(SconesError):
    """Another flow run took the hold, because this one did not renew it in time."""


class Hold(Record, frozen=True, kw_only=True):
    """holds/NAME.json: who works on an endpoint, or trains.

    owner: name of the flow run; flow_run: its id. token: of the process, as a flow run may have had several. since and
    until: ISO 8601 in UTC; until is for people, as the age of the object decides. released: nobody holds it.
    """

    owner: str
    flow_run: str
    token: str
    since: str
    until: str
    released: bool = False


@dataclass(frozen=True)
class Owner:
    """The flow run that asks for a hold, by its id and its name."""

    flow_run: str
    name: str


def key_of(name: str) -> str:
    return f"{HOLDS_PREFIX}{name}.json"


def holder(bucket: str, name: str) -> Hold | None:
    """Returns who holds `name` now; None if nobody does."""
    found = storage.get_with_age(bucket, key_of(name))
    if found is None:
        return None
    hold = _parsed(found.content, bucket, name)
    return None if _is_free(hold, found.age_seconds) else hold


@contextmanager
def exclusive(
    bucket: str, name: str, owner: Owner, log: Log, waiting: Callable[[Hold | None], None] = lambda hold: None
) -> Iterator[None]:
    """Waits until nobody else holds `name`, and holds it until the block is left.

    waiting: is told whom the run waits for, and None once it waits no longer. Raises HoldLost at the end of the block
    if another flow run took the hold meanwhile, which takes an outage of more than LEASE_SECONDS.
    """
    lease = _Lease(bucket, name, owner, log)
    lease.take(waiting)
    ended = threading.Event()
    renewal = threading.Thread(target=lease.renew_until, args=(ended,), name=f"hold-{name}", daemon=True)
    renewal.start()
    try:
        yield
    finally:
        ended.set()
        renewal.join(RENEW_SECONDS)
        lease.release()
    if lease.lost:
        raise HoldLost(f"{lease.lost} took the hold on {name} while this run worked", "start a new run")


class _Lease:
    """One process's claim. lost: name of the flow run that took it away."""

    def __init__(self, bucket: str, name: str, owner: Owner, log: Log) -> None:
        self.lost: str | None = None
        self._bucket, self._name, self._log = bucket, name, log
        now = utc_now()
        self._claim = Hold(
            owner=owner.name, flow_run=owner.flow_run, token=uuid4().hex, since=iso(now), until=_until(now)
        )

    def take(self, waiting: Callable[[Hold | None], None]) -> None:
        blocker: Hold | None = None
        while (hold := self._try()) is not None:
            if blocker is None or hold.token != blocker.token:
                mine = hold.flow_run == self._claim.flow_run
                whose = "an earlier process of this run" if mine else hold.owner
                self._log(
                    f"waiting for {self._name}: {whose} has held it since {hold.since}. It is free as soon as that "
                    f"run ends, or {LEASE_SECONDS} s after its process has died"
                )
                waiting(hold)
                blocker = hold
            time.sleep(POLL_SECONDS)
        if blocker is not None:
            self._log(f"{self._name} is free: this run holds it now")
            waiting(None)

    def renew_until(self, ended: threading.Event) -> None:
        while not ended.wait(RENEW_SECONDS):
            try:
                if not self._write(replace(self._claim, until=_until(utc_now()))):
                    return
            except AwsError as error:
                self._log(f"could not renew the hold on {self._name}: {error}")

    def release(self) -> None:
        try:
            self._write(replace(self._claim, until=iso(utc_now()), released=True))
        except AwsError as error:  # as after a teardown of the bucket
            self._log(f"could not release the hold on {self._name}, which is free in {LEASE_SECONDS} s: {error}")

    def _try(self) -> Hold | None:
        """Returns who holds it; None if this process does."""
        found = storage.get_with_age(self._bucket, key_of(self._name))
        now = utc_now()
        claim = self._claim = replace(self._claim, since=iso(now), until=_until(now))
        if found is None:
            storage.create_json(self._bucket, key_of(self._name), claim.to_json())
        else:
            hold = _parsed(found.content, self._bucket, self._name)
            if hold is not None and hold.token == claim.token and not hold.released:
                return None  # the response to the write of a try before was lost
            if not _is_free(hold, found.age_seconds):
                assert hold is not None
                return hold
            storage.replace_json(self._bucket, key_of(self._name), claim.to_json(), found.etag)
        # Another process may have been quicker; the object tells.
        standing = holder(self._bucket, self._name)
        return None if standing is None or standing.token == claim.token else standing

    def _write(self, hold: Hold) -> bool:
        """Writes it if the hold is still this process's own; returns whether it was."""
        found = storage.get_with_age(self._bucket, key_of(self._name))
        if found is None:  # a person released it by deleting the object
            return storage.create_json(self._bucket, key_of(self._name), hold.to_json())
        standing = _parsed(found.content, self._bucket, self._name)
        if standing is not None and standing.token != hold.token:
            if not self.lost:
                self.lost = standing.owner
                self._log(f"{standing.owner} has taken the hold on {self._name}, which this run could not renew")
            return False
        storage.replace_json(self._bucket, key_of(self._name), hold.to_json(), found.etag)
        return True


def _parsed(content: bytes, bucket: str, name: str) -> Hold | None:
    """Returns the hold; None for an object that is none, which stands in nobody's way once it is old."""
    try:
        return Hold.parse(content, f"s3://{bucket}/{key_of(name)}")
    except SconesError:
        return None


def _is_free(hold: Hold | None, age_seconds: float) -> bool:
    return age_seconds > LEASE_SECONDS or hold is None or hold.released


def _until(now: datetime) -> str:
    return iso(now.astimezone(UTC) + timedelta(seconds=LEASE_SECONDS))
