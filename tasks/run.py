"""The smallest shared types: which run a piece of work belongs to, times as text, shares, where progress is told."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from settings import EVALUATIONS_PREFIX

# Takes a line about the progress of something, such as a logger's `info`.
Log = Callable[[str], None]


@dataclass(frozen=True)
class Run:
    """The identity of an evaluation: a flow run's, so that a retry of it resumes. root: where such runs are kept."""

    id: str
    date: str
    root: str = EVALUATIONS_PREFIX

    @property
    def prefix(self) -> str:
        return f"{self.root}{self.date}/{self.id}/"

    def summary_key(self, revision: int = 1) -> str:
        """Of the summary; each later judgement of the same run has a file of its own."""
        return f"{self.prefix}summary{_revised(revision)}.json"

    def results_key(self, revision: int = 1) -> str:
        """Of the results that the summary of the same revision is about."""
        return f"{self.prefix}results{_revised(revision)}.jsonl"

    def table_prefix(self, revision: int = 1) -> str:
        """Of the Parquet files that a bulk run has instead of results.jsonl."""
        return f"{self.prefix}results{_revised(revision)}/"


def _revised(revision: int) -> str:
    return f"-{revision}" if revision > 1 else ""


def iso(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="milliseconds")


def utc_now() -> datetime:
    return datetime.now(UTC)


def share(part: int, whole: int) -> float | None:
    """The quotient; None if there is nothing to divide by."""
    return part / whole if whole else None
