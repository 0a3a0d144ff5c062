"""What people say about queued images, and what came of each of them.

review/labels/INFERENCE_ID/REVIEWER-TIME.json is written once and never changed: taking an answer back, or skipping an
image, is a record of its own, so that nothing is lost whenever page, browser or network die.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal

from settings import INCOMING_PREFIX, REVIEW_LABELS_PREFIX, REVIEW_QUEUE_PREFIX, Settings
from tasks.aws import storage
from tasks.records import Record, RecordError
from tasks.review.queue import Waiting, by_chance
from tasks.run import utc_now

# Of class: the image shows `label`. gone: written by the page, as the image is not there any more, or another one.
Answer = Literal["class", "none_of_these", "unreadable", "skipped", "withdrawn", "gone"]
# What a person can see in an image; the other answers say nothing about it.
SEEN = ("class", "none_of_these", "unreadable")
State = Literal["answered", "open", "skipped", "expired"]
STATES: tuple[State, ...] = ("answered", "open", "skipped", "expired")

INFERENCE_ID = re.compile(r"[0-9a-f]{12}-[0-9a-f]{20}-a[0-9]{1,3}")
REVIEWER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,63}")
TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}\+00:00")
SHA256 = re.compile(r"[0-9a-f]{64}")
# Clocks differ a little; an answer of tomorrow would win over all that come before it.
AHEAD = timedelta(minutes=10)
# Of a record of the queue or an answer, which have some hundred.
MOST_BYTES = 64_000
# Whom the page writes as where nobody answered.
NOBODY = "page"
# More people than this are not asked about one image.
MOST_ASKED = 3


class Label(Record, frozen=True, kw_only=True):
    """review/labels/INFERENCE_ID/REVIEWER-TIME.json: one answer of one person about one queued image.

    sha256: of the image that was shown. label: the class, if the answer is `class`. time: ISO 8601 in UTC, with
    microseconds. seconds: from when the image was shown until the answer; None if it is not known. source: where the
    answer was given.
    """

    inference_id: str
    sha256: str
    reviewer: str
    answer: Answer
    label: str | None
    time: str
    seconds: float | None = None
    source: Literal["page", "label-studio"] = "page"

    @property
    def key(self) -> str:
        """Of the object."""
        stamp = re.sub(r"[-:]", "", self.time.removesuffix("+00:00")) + "Z"
        return f"{REVIEW_LABELS_PREFIX}{self.inference_id}/{self.reviewer}-{stamp}.json"


@dataclass(frozen=True)
class Outcome:
    """What came of a queued image.

    answers: the last one of each person who said what is in the image, the first one first. answer: what most of them
    say, once enough have said so; None of one that is answered if they disagree. asked: how many people are to say it.
    skipped: whether somebody skipped it and has not answered it since. blind: the first answer of each person, given
    before the page showed what the model said, also of those who took it back.
    """

    state: State
    answers: tuple[Label, ...] = ()
    answer: Label | None = None
    asked: int = 1
    skipped: bool = False
    blind: tuple[Label, ...] = ()

    @property
    def disputed(self) -> bool:
        return self.state == "answered" and self.answer is None


@dataclass
class Review:
    """The queue and all answers, as they were read last.

    queue: by inference id. labels: of each queued image, in no order. strange: by key, what is wrong with objects that
    are no records, or not in their place; they are left out everywhere. read: keys of all that was read.
    """

    queue: dict[str, Waiting] = field(default_factory=dict)
    labels: dict[str, list[Label]] = field(default_factory=lambda: defaultdict(list))
    strange: dict[str, str] = field(default_factory=dict)
    read: set[str] = field(default_factory=set)

    def refresh(self, bucket: str) -> None:
        """Reads what is new; records never change, so that those that were read stay as they are."""
        for prefix, kind, keep in (
            (REVIEW_QUEUE_PREFIX, Waiting, self.keep_waiting),
            (REVIEW_LABELS_PREFIX, Label, self.keep_label),
        ):
            there = storage.list_objects(bucket, prefix)
            new = [key for key in there if key not in self.read]
            for key in [key for key in new if there[key][1] > MOST_BYTES]:
                self.read.add(key)
                self.strange[key] = f"it has {there[key][1]:,} bytes, more than any record"
                new.remove(key)
            with ThreadPoolExecutor(storage.PARALLEL_REQUESTS) as threads:
                for key, content in zip(new, threads.map(lambda key: storage.get(bucket, key), new), strict=True):
                    if content is None:
                        continue
                    self.read.add(key)
                    try:
                        keep(key, kind.parse(content, f"s3://{bucket}/{key}"))  # type: ignore[arg-type]
                    except RecordError as error:
                        self.strange[key] = str(error)

    def keep_waiting(self, key: str, waiting: Waiting) -> None:
        """Adds what was read of the queue, unless it is not what its key says or must not be shown."""
        name = key.removeprefix(REVIEW_QUEUE_PREFIX).removesuffix(".json")
        if waiting.inference_id != name or not INFERENCE_ID.fullmatch(name):
            self.strange[key] = f"it is about {waiting.inference_id[:60]!r}, which is not its name"
        elif problem := _problem(waiting):
            self.strange[key] = problem
        elif not waiting.key.startswith(INCOMING_PREFIX):
            self.strange[key] = f"{waiting.key[:200]!r} is not below {INCOMING_PREFIX}, where images without labels are"
        else:
            self.queue[name] = waiting

    def keep_label(self, key: str, label: Label) -> None:
        """Adds an answer that was read, unless it is not what its key says."""
        ahead = not TIME.fullmatch(label.time) or datetime.fromisoformat(label.time) > utc_now() + AHEAD
        if label.key != key or not REVIEWER.fullmatch(label.reviewer) or ahead:
            self.strange[key] = f"it is about {label.inference_id[:60]!r} by {label.reviewer[:60]!r}, not its name"
        else:
            self.add(label)

    def add(self, label: Label) -> None:
        """An answer that was written just now, or read."""
        self.read.add(label.key)
        self.labels[label.inference_id].append(label)

    def outcome(self, inference_id: str, chosen: Settings, now: datetime) -> Outcome:
        """What came of an image of the queue."""
        return outcome(self.queue[inference_id], self.labels.get(inference_id, ()), chosen, now)

    def outcomes(self, chosen: Settings, now: datetime) -> dict[str, Outcome]:
        """What came of every image of the queue, by inference id."""
        return {name: self.outcome(name, chosen, now) for name in self.queue}

    @property
    def stray(self) -> int:
        """Answers about images that are in no queue."""
        return sum(len(labels) for name, labels in self.labels.items() if name not in self.queue)


def _problem(waiting: Waiting) -> str | None:
    """What is wrong with a record of the queue; None if nothing is."""
    if not _is_time(waiting.queued):
        return f"it was queued at {waiting.queued[:60]!r}, which is no time"
    if not SHA256.fullmatch(waiting.sha256) or not waiting.key:
        return "it names no image: key and SHA-256"
    shares = (waiting.confidence, waiting.threshold, waiting.sampling_probability)
    if not all(0 <= share <= 1 for share in shares) or not waiting.sampling_probability:
        return f"{shares} are no confidence, threshold and probability of being drawn"
    try:
        "".join((waiting.key, waiting.model_version, waiting.predicted_class)).encode()
    except UnicodeEncodeError:
        return "it is no text"
    return None


def _is_time(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False


def write(bucket: str, label: Label) -> bool:
    """Stores an answer; False if there is another one of that person and that very time."""
    return storage.create_json(bucket, label.key, label.to_json())


def latest(labels: Iterable[Label]) -> dict[str, Label]:
    """The last record of each person about one image, in the order of their times."""
    ordered = sorted(labels, key=lambda label: (label.time, label.reviewer))
    return {label.reviewer: label for label in sorted({label.reviewer: label for label in ordered}.values(), key=_time)}


def first_answers(labels: Iterable[Label]) -> tuple[Label, ...]:
    """The first thing that each person said about one image, the first one first."""
    first: dict[str, Label] = {}
    for label in sorted((label for label in labels if label.answer in SEEN), key=_time):
        first.setdefault(label.reviewer, label)
    return tuple(first.values())


def _time(label: Label) -> tuple[str, str]:
    return label.time, label.reviewer


def people_asked(inference_id: str, share: float) -> int:
    """How many people look at an image at first: two of a random share, by a hash."""
    return 2 if by_chance("double", inference_id) < share * 2**64 else 1


def outcome(waiting: Waiting, labels: Sequence[Label], chosen: Settings, now: datetime) -> Outcome:
    """What came of a queued image. labels: all records about it; those about another content do not count.

    It is answered as soon as as many people as are asked have said what is in it and more than half of them say the
    same; where two disagree a third is asked. After `review_expires_days` the answers that there are decide.
    """
    about_it = [label for label in labels if label.sha256 == waiting.sha256]
    of_people, blind = latest(about_it), first_answers(about_it)
    answers = tuple(label for label in of_people.values() if label.answer in SEEN)
    asked = people_asked(waiting.inference_id, chosen.review_double_share)
    expired = now - datetime.fromisoformat(waiting.queued) > timedelta(days=chosen.review_expires_days)
    gone = any(label.answer == "gone" for label in of_people.values())
    majority = most_say(answers)
    if len(answers) >= asked and majority is None and not (expired or gone):
        asked = max(asked, MOST_ASKED)
    skipped = any(label.answer == "skipped" for label in of_people.values())
    if answers and (len(answers) >= asked or expired or gone):
        return Outcome("answered", answers, majority, asked, skipped, blind)
    if expired or gone:
        return Outcome("expired", answers, None, asked, skipped, blind)
    return Outcome("skipped" if skipped and not answers else "open", answers, None, asked, skipped, blind)


def most_say(answers: Sequence[Label]) -> Label | None:
    """The first of the answers that more than half of the people gave; None if there is none."""
    counts = Counter((label.answer, label.label) for label in answers)
    return next((label for label in answers if 2 * counts[label.answer, label.label] > len(answers)), None)


def counted(outcomes: Mapping[str, Outcome]) -> dict[str, int]:
    """How many images of the queue are in each state: their sum is the whole queue."""
    counts = Counter(outcome.state for outcome in outcomes.values())
    return {state: counts[state] for state in STATES}


@dataclass(frozen=True)
class Agreement:
    """How two people who looked at the same images agree. images: how many; the same: of them. kappa: Cohen's."""

    images: int
    same: int
    kappa: float | None


def agreement(outcomes: Iterable[Outcome]) -> Agreement:
    """Of the first two people who looked at the same image, by what each said first.

    Cohen's kappa (1960, A coefficient of agreement for nominal scales) with the marginals of the first and the second
    answer; None if there is no such image, or if chance alone would agree on all.
    """
    pairs = [
        tuple((label.answer, label.label) for label in outcome.blind[:2])
        for outcome in outcomes
        if len(outcome.blind) > 1
    ]
    n, same = len(pairs), sum(first == second for first, second in pairs)
    if not n:
        return Agreement(0, 0, None)
    firsts, seconds = Counter(first for first, _ in pairs), Counter(second for _, second in pairs)
    by_chance_alone = sum(firsts[what] * seconds[what] for what in firsts) / n**2
    kappa = (same / n - by_chance_alone) / (1 - by_chance_alone) if by_chance_alone < 1 else None
    return Agreement(n, same, kappa)


def certifies(sha256: str, share: float) -> bool:
    """Whether an audited image is for the certificate only, by a hash of its content, so that its copies are too."""
    return by_chance("certification", sha256) < share * 2**64
