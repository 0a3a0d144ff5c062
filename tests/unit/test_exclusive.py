"""Holds in the bucket: who has one, who waits, and what becomes of one that nobody renews."""

import json
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tasks import exclusive
from tasks.aws import storage
from tasks.exclusive import Hold, HoldLost, Owner, holder, key_of
from testing.waiting import eventually

BUCKET, NAME = "bucket", "endpoint"
FIRST, SECOND = Owner("run-1", "nightly-evaluation 1"), Owner("run-2", "deploy-endpoint 2")


@dataclass
class Bucket:
    """Stands for S3's conditional writes, in memory. now: S3's clock, which no other clock has to agree with."""

    objects: dict[str, tuple[bytes, str, datetime]] = field(default_factory=dict)
    now: datetime = datetime(2026, 11, 29, 3, 30, tzinfo=UTC)
    writes: int = 0

    def pass_time(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def get_with_age(self, bucket: str, key: str) -> storage.Aged | None:
        if key not in self.objects:
            return None
        content, etag, written = self.objects[key]
        return storage.Aged(content, etag, (self.now - written).total_seconds())

    def create_json(self, bucket: str, key: str, value: Any) -> bool:
        return key not in self.objects and self._put(key, value)

    def replace_json(self, bucket: str, key: str, value: Any, etag: str) -> bool:
        return key in self.objects and self.objects[key][1] == etag and self._put(key, value)

    def _put(self, key: str, value: Any) -> bool:
        self.writes += 1
        self.objects[key] = (json.dumps(value).encode(), f"etag-{self.writes}", self.now)
        return True


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Bucket:
    made = Bucket()
    for name in ("get_with_age", "create_json", "replace_json"):
        monkeypatch.setattr(storage, name, getattr(made, name))
    monkeypatch.setattr(exclusive, "POLL_SECONDS", 0.005)
    return made


class Other:
    """Another process that holds until it is told to end. lines: what it logged; waited: whom it waited for."""

    def __init__(self, owner: Owner) -> None:
        self.lines: list[str] = []
        self.waited: list[Hold | None] = []
        self.inside, self._end = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, args=(owner,), daemon=True)
        self._thread.start()

    def _run(self, owner: Owner) -> None:
        with exclusive.exclusive(BUCKET, NAME, owner, self.lines.append, self.waited.append):
            self.inside.set()
            self._end.wait(10)

    def end(self) -> None:
        self._end.set()
        self._thread.join(10)
        assert not self._thread.is_alive()


def test_the_second_waits_until_the_first_is_done(bucket: Bucket) -> None:
    with exclusive.exclusive(BUCKET, NAME, FIRST, print):
        standing = holder(BUCKET, NAME)
        assert standing is not None and (standing.owner, standing.flow_run) == (FIRST.name, FIRST.flow_run)
        other = Other(SECOND)
        eventually(lambda: other.lines, 5)
        assert "nightly-evaluation 1 has held it since" in other.lines[0]
        assert [hold and hold.owner for hold in other.waited] == [FIRST.name] and not other.inside.is_set()
    assert other.inside.wait(5) and other.waited[-1] is None
    other.end()
    assert holder(BUCKET, NAME) is None


def test_a_hold_that_nobody_renews_is_free_after_a_minute_by_the_clock_of_s3(bucket: Bucket) -> None:
    """Its process was killed, with the Prefect server or without: what it held expires all the same."""
    dead = exclusive._Lease(BUCKET, NAME, FIRST, print)
    dead.take(lambda hold: None)
    again = Other(FIRST)  # the same flow run, which goes on in another process
    eventually(lambda: again.lines, 5)
    assert "an earlier process of this run has held it" in again.lines[0]
    bucket.pass_time(exclusive.LEASE_SECONDS - 1)
    assert not again.inside.wait(0.05)
    bucket.pass_time(2)
    assert again.inside.wait(5)
    again.end()


def test_renewals_keep_it(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exclusive, "RENEW_SECONDS", 0.01)
    with exclusive.exclusive(BUCKET, NAME, FIRST, print):
        for _ in range(4):
            bucket.pass_time(exclusive.LEASE_SECONDS - 10)
            writes = bucket.writes
            while bucket.writes < writes + 2:
                time.sleep(0.005)
            assert holder(BUCKET, NAME) is not None


def test_who_lost_it_is_told_and_does_not_take_it_back(bucket: Bucket) -> None:
    """Such as a process that stood still for more than a minute."""
    lines: list[str] = []
    with pytest.raises(HoldLost, match="deploy-endpoint 2 took the hold on endpoint"):  # noqa: SIM117
        with exclusive.exclusive(BUCKET, NAME, FIRST, lines.append):
            bucket.pass_time(exclusive.LEASE_SECONDS + 1)
            other = Other(SECOND)
            assert other.inside.wait(5)
    assert "deploy-endpoint 2 has taken the hold" in lines[-1]
    standing = holder(BUCKET, NAME)
    assert standing is not None and standing.owner == SECOND.name
    other.end()


def test_of_many_that_ask_at_once_one_gets_it(bucket: Bucket) -> None:
    inside, most, lock = 0, 0, threading.Lock()

    def work(number: int) -> None:
        nonlocal inside, most
        with exclusive.exclusive(BUCKET, NAME, Owner(f"{number}", f"run {number}"), lambda line: None):
            with lock:
                inside += 1
                most = max(most, inside)
            threading.Event().wait(0.01)
            with lock:
                inside -= 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert (most, inside) == (1, 0)


def test_a_lost_response_is_not_taken_for_another_holder(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """S3 wrote it, and the answer never came: the second try is refused, and the object says whose it is."""
    create = storage.create_json

    def lose(*call: Any) -> bool:
        create(*call)
        return False

    monkeypatch.setattr(storage, "create_json", lose)
    with exclusive.exclusive(BUCKET, NAME, FIRST, print):
        pass


def test_a_person_may_delete_it_and_what_is_no_hold_stands_in_nobodys_way(bucket: Bucket) -> None:
    with exclusive.exclusive(BUCKET, NAME, FIRST, print):
        del bucket.objects[key_of(NAME)]
    bucket.objects[key_of(NAME)] = (b"{", "etag", bucket.now)
    assert holder(BUCKET, NAME) is None
    with exclusive.exclusive(BUCKET, NAME, FIRST, print):
        assert holder(BUCKET, NAME) is not None


def test_an_error_in_the_block_is_what_is_raised(bucket: Bucket) -> None:
    with pytest.raises(ZeroDivisionError), exclusive.exclusive(BUCKET, NAME, FIRST, print):
        raise ZeroDivisionError
    assert holder(BUCKET, NAME) is None
