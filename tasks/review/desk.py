"""Who looks at which image: what the page gives out, takes back and stores. Nothing here knows HTTP."""

import hashlib
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from threading import RLock

from settings import REVIEW_LEASES_PREFIX, Settings
from tasks.aws import storage
from tasks.data.pictures import thumbnail
from tasks.errors import SconesError
from tasks.records import Record, RecordError
from tasks.review import labels
from tasks.review.certificate import Certificate, certificates
from tasks.review.labels import AHEAD, INFERENCE_ID, NOBODY, REVIEWER, SEEN, Answer, Label, Outcome, Review, latest
from tasks.review.queue import Waiting, by_chance, rank
from tasks.review.training_set import Use, labels_needed, new_labels, published, trained_on, uses
from tasks.run import iso, utc_now

# Seconds after which the bucket is looked at again for what others queued and answered.
REFRESH_SECONDS = 10.0
# Larger objects are not sent to a browser.
MOST_BYTES = 25_000_000
# Longest side in pixels of what people are shown.
SHOWN_SIDE = 1024
# Someone may look at an image for so long; what is said to be longer is not believed.
MOST_SECONDS = 86_400.0


class ReviewRefused(SconesError):
    """A request that can't be served; the message says why. status: as HTTP's."""

    def __init__(self, status: int, problem: str) -> None:
        super().__init__(problem)
        self.status = status


class Lease(Record, frozen=True, kw_only=True):
    """review/leases/INFERENCE_ID.json: whom an image is shown to, and until when nobody else is (ISO 8601 in UTC)."""

    reviewer: str
    until: str


@dataclass(frozen=True)
class Progress:
    """Where a person stands.

    states: of all images of the queue. left: what this person could be shown. by_me: images that this person has
    answered. waiting: of the open ones, those that have an answer and wait for another person. audits_open: of the open
    ones, the audits of the newest model version that has some, without saying which. new_labels, labels_needed: images
    that no training has seen, and with how many of them one starts (0: none does). certificate: the newest one.
    strange: objects that are no records, or answers about images that are in no queue.
    """

    states: dict[str, int]
    left: int
    by_me: int
    waiting: int
    audits_open: int
    new_labels: int
    labels_needed: int
    certificate: Certificate | None
    strange: int


class Desk:
    """The queue of one installation. All methods may be called by several threads."""

    def __init__(self, bucket: str, chosen: Settings, classes: tuple[str, ...]) -> None:
        self.bucket, self.chosen, self.classes = bucket, chosen, classes
        self.review = Review()
        self._refreshed = float("-inf")
        self._order: list[str] = []
        self._standing: list[Use] = []
        self._needed = chosen.review_retrain_labels
        self._lock = RLock()

    def refresh(self, oldest_seconds: float = REFRESH_SECONDS) -> None:
        """Looks at the bucket, unless that was done less than `oldest_seconds` ago."""
        with self._lock:
            if time.monotonic() - self._refreshed < oldest_seconds:
                return
            self.review.refresh(self.bucket)
            self._standing = published(self.bucket)
            self._needed = labels_needed(self.bucket, self.chosen)
            self._order = order(list(self.review.queue.values()), self.chosen)
            self._refreshed = time.monotonic()

    def take(self, reviewer: str, but_not: str | None = None) -> Waiting | None:
        """The next image for a person, which nobody else is shown for a while; None if there is none left.

        but_not: one that this person has just skipped, which comes last.
        """
        self._check(reviewer)
        self.refresh()
        for name in sorted(self._left(reviewer), key=lambda name: name == but_not):
            if self._lease(name, reviewer):
                return self.review.queue[name]
        return None

    def picture(self, inference_id: str) -> tuple[bytes, str] | None:
        """Content and media type of a queued image; None if a browser is not to be given it: none that can be drawn.

        Raises ReviewRefused for what is not in the queue, and for an image that is gone or is another one by now.
        """
        waiting = self._waiting(inference_id)
        found = storage.get_with_etag(self.bucket, waiting.key, MOST_BYTES + 1)
        if found is None or (len(found[0]) <= MOST_BYTES and hashlib.sha256(found[0]).hexdigest() != waiting.sha256):
            self._store(waiting, NOBODY, "gone", None, None)
            raise ReviewRefused(410, "the image is not there any more, or is another one than was queued")
        return drawable(found[0])

    def answer(
        self, inference_id: str, reviewer: str, answer: Answer, label: str | None, seconds: float | None
    ) -> Label:
        """Stores what a person says, and gives the image free. Raises ReviewRefused for an answer that is none."""
        self._check(reviewer)
        waiting = self._waiting(inference_id)
        if (answer == "class") != (label is not None):
            raise ReviewRefused(422, "a class is named if, and only if, the answer is `class`")
        if label is not None and label not in self.classes:
            raise ReviewRefused(422, f"there is no class {label[:60]!r}; there are {', '.join(self.classes)}")
        if answer == "gone":
            raise ReviewRefused(422, "only the page itself says that an image is gone")
        with self._lock:
            before = latest(self.review.labels.get(inference_id, ())).get(reviewer)
        if before is not None and (before.answer, before.label) == (answer, label):
            self._release(inference_id, reviewer)
            return before  # sent again, as its confirmation was lost
        known = seconds if seconds is not None and 0 <= seconds <= MOST_SECONDS else None
        stored = self._store(waiting, reviewer, answer, label, known)
        self._release(inference_id, reviewer)
        return stored

    def undo(self, reviewer: str) -> Waiting | None:
        """Takes back the person's last answer, or skip, and shows that image again; None if there is none."""
        self._check(reviewer)
        self.refresh()
        with self._lock:
            given = [
                mine
                for name in self.review.queue
                if (mine := latest(self.review.labels.get(name, ())).get(reviewer))
                and mine.answer in (*SEEN, "skipped")
            ]
        if not given:
            return None
        last = max(given, key=lambda label: label.time)
        waiting = self.review.queue[last.inference_id]
        self._store(waiting, reviewer, "withdrawn", None, None)
        self._lease(waiting.inference_id, reviewer)
        return waiting

    def outcome(self, inference_id: str) -> Outcome:
        with self._lock:
            return self.review.outcome(inference_id, self.chosen, utc_now())

    def progress(self, reviewer: str) -> Progress:
        """Where a person stands, and what the open images are worth."""
        self._check(reviewer)
        self.refresh()
        with self._lock:
            outcomes = self.review.outcomes(self.chosen, utc_now())
            trained = trained_on(self._standing)
            of_versions = certificates(self.review, outcomes, self.chosen, trained)
            newest = of_versions[-1].model_version if of_versions else None
            still = [name for name, each in outcomes.items() if each.state in ("open", "skipped")]
            return Progress(
                states=labels.counted(outcomes),
                left=len(self._left(reviewer)),
                by_me=sum(self._has_answered(name, reviewer) for name in outcomes),
                waiting=sum(bool(outcomes[name].answers) for name in still),
                audits_open=sum(
                    self.review.queue[name].reason == "audit" and self.review.queue[name].model_version == newest
                    for name in still
                ),
                new_labels=new_labels(self._standing, uses(self.review, outcomes, self.chosen, self.classes, trained)),
                labels_needed=self._needed,
                certificate=of_versions[-1] if of_versions else None,
                strange=len(self.review.strange) + self.review.stray,
            )

    def _left(self, reviewer: str) -> list[str]:
        """Images that a person may be shown: open ones first, those that somebody skipped after them."""
        with self._lock:
            now = utc_now()
            open_ones: list[str] = []
            skipped: list[str] = []
            for name in self._order:
                mine = latest(self.review.labels.get(name, ())).get(reviewer)
                if mine is not None and mine.answer in SEEN:
                    continue
                state = self.review.outcome(name, self.chosen, now).state
                if state not in ("open", "skipped"):
                    continue
                (skipped if mine is not None and mine.answer == "skipped" else open_ones).append(name)
            return open_ones + skipped

    def _has_answered(self, name: str, reviewer: str) -> bool:
        mine = latest(self.review.labels.get(name, ())).get(reviewer)
        return mine is not None and mine.answer in SEEN

    def _check(self, reviewer: str) -> None:
        if not REVIEWER.fullmatch(reviewer) or reviewer == NOBODY:
            raise ReviewRefused(
                422, "a reviewer's name has 1 to 64 letters, digits and . _ @ + -, and begins with a letter or digit"
            )

    def _waiting(self, inference_id: str) -> Waiting:
        """The queue's record: no other object is ever read for a browser."""
        self.refresh()
        waiting = self.review.queue.get(inference_id) if INFERENCE_ID.fullmatch(inference_id) else None
        if waiting is None:
            raise ReviewRefused(404, "there is no such image in the queue")
        return waiting

    def _store(
        self, waiting: Waiting, reviewer: str, answer: Answer, label: str | None, seconds: float | None
    ) -> Label:
        moment = max(utc_now(), self._last_time(waiting.inference_id, reviewer) + timedelta(microseconds=1))
        while True:
            written = Label(
                inference_id=waiting.inference_id,
                sha256=waiting.sha256,
                reviewer=reviewer,
                answer=answer,
                label=label,
                time=moment.astimezone(UTC).isoformat(timespec="microseconds"),
                seconds=seconds,
            )
            if labels.write(self.bucket, written):
                break
            moment += timedelta(microseconds=1)  # two answers of one person at the same microsecond
        with self._lock:
            self.review.add(written)
        return written

    def _last_time(self, inference_id: str, reviewer: str) -> datetime:
        """When the person's last record about an image is of, by whatever clock: the next one comes after it."""
        with self._lock:
            mine = latest(self.review.labels.get(inference_id, ())).get(reviewer)
        return datetime.fromisoformat(mine.time) if mine else datetime.min.replace(tzinfo=UTC)

    def _lease(self, name: str, reviewer: str) -> bool:
        """Whether the image is this person's for a while: it was nobody's, this person's, or the lease has ended."""
        key = f"{REVIEW_LEASES_PREFIX}{name}.json"
        until = iso(utc_now() + timedelta(seconds=self.chosen.review_lease_seconds))
        lease = Lease(reviewer=reviewer, until=until).to_json()
        found = storage.get_with_etag(self.bucket, key, labels.MOST_BYTES + 1)
        if found is None:
            return storage.create_json(self.bucket, key, lease)
        held, longest = _lease_of(found[0]), timedelta(seconds=self.chosen.review_lease_seconds)
        if held is not None and held.reviewer != reviewer:
            left = datetime.fromisoformat(held.until) - utc_now()
            # One for longer than any lease is of another clock, or nobody's.
            if timedelta(0) < left <= longest + AHEAD:
                return False
        return storage.replace_json(self.bucket, key, lease, found[1])

    def _release(self, name: str, reviewer: str) -> None:
        """Ends the person's lease. Somebody else's, who was given the image after it had ended, stays."""
        key = f"{REVIEW_LEASES_PREFIX}{name}.json"
        found = storage.get_with_etag(self.bucket, key, labels.MOST_BYTES + 1)
        held = _lease_of(found[0]) if found else None
        if held is not None and held.reviewer == reviewer:
            storage.delete(self.bucket, key)


def _lease_of(content: bytes) -> Lease | None:
    """What a lease says; None of a damaged one, which holds nothing."""
    try:
        lease = Lease.parse(content, "a lease")
        return lease if datetime.fromisoformat(lease.until).tzinfo else None
    except (RecordError, ValueError):
        return None


def order(waiting: list[Waiting], chosen: Settings) -> list[str]:
    """Inference ids as they are shown: those that were not accepted by their rank, with the audits spread among them,
    so that neither the order nor the time tells which is which.
    """
    spread: list[tuple[float, str]] = []
    audits = sorted((each for each in waiting if each.reason == "audit"), key=lambda each: _chance(each.inference_id))
    unsure = sorted(
        (each for each in waiting if each.reason != "audit"),
        key=lambda each: (rank(each.inference_id, each.confidence, chosen), each.inference_id),
    )
    for part in (audits, unsure):
        spread += [((number + 0.5) / len(part), each.inference_id) for number, each in enumerate(part)]
    return [name for _, name in sorted(spread)]


def _chance(inference_id: str) -> int:
    return by_chance("order", inference_id)


def drawable(content: bytes) -> tuple[bytes, str] | None:
    """The content, shrunk if it is large, with its media type if a browser may be given it; None of anything else."""
    if len(content) > MOST_BYTES:
        return None
    shown = thumbnail(content, SHOWN_SIDE)
    if shown is None:
        return None
    return shown, "image/png" if shown.startswith(b"\x89PNG") else "image/jpeg"
