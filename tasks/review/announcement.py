"""Says how many labels no training has seen, so that a training can start by itself, and that too many images wait."""

from prefect.events import emit_event

from settings import BACKLOG_EVENT, LABELS_EVENT, settings
from tasks.records import Record


class NewLabels(Record, frozen=True, kw_only=True):
    """Payload of the event scones.review.labels. needed: with so many a training starts; 0: none does."""

    new: int
    needed: int

    @property
    def enough(self) -> bool:
        return 0 < self.needed <= self.new


def announce(new: int, needed: int) -> NewLabels:
    """Emits the event; prefect.yaml starts train-model from one that says that there are enough."""
    told = NewLabels(new=new, needed=needed)
    resource = {"prefect.resource.id": LABELS_EVENT, "scones.enough": "yes" if told.enough else "no"}
    resource["scones.stack"] = settings().stack
    emit_event(LABELS_EVENT, resource=resource, payload=told.to_json())
    return told


class Backlog(Record, frozen=True, kw_only=True):
    """Payload of the event scones.review.backlog: how many images wait for a person, and how many may."""

    open: int
    limit: int


def announce_backlog(waiting: int, limit: int) -> Backlog | None:
    """Emits the event if more images wait than may; None if not."""
    if waiting <= limit:
        return None
    backlog = Backlog(open=waiting, limit=limit)
    resource = {"prefect.resource.id": BACKLOG_EVENT, "scones.stack": settings().stack}
    emit_event(BACKLOG_EVENT, resource=resource, payload=backlog.to_json())
    return backlog


class Crossing:
    """Announces once that there are enough new labels, and again only after a training has used them."""

    def __init__(self) -> None:
        self._said = False

    def __call__(self, new: int, needed: int) -> None:
        enough = 0 < needed <= new
        if enough and not self._said:
            announce(new, needed)
        self._said = enough
