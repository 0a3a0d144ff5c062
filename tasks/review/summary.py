"""What a report says about the review of images."""

from settings import Settings
from tasks.records import Part
from tasks.review.certificate import Certificate, certificates
from tasks.review.labels import Review, agreement, counted
from tasks.review.training_set import published, trained_on
from tasks.run import utc_now


class ReviewSummary(Part, frozen=True, kw_only=True):
    """queued = answered + open + skipped + expired. double: images with two answers, of which `same` agree.

    kappa: Cohen's, of these. certificate: of the model that the report is about; None if none of what it accepted was
    drawn. left_out: objects below review/ that can't be read, or are about no queued image.
    """

    queued: int
    answered: int
    open: int
    skipped: int
    expired: int
    double: int
    same: int
    kappa: float | None
    certificate: Certificate | None
    left_out: int


def summarize(bucket: str, versions: set[str], chosen: Settings) -> ReviewSummary | None:
    """The queue as it is now; None if there never was an image in it. versions: of the model, the newest one counts."""
    review = Review()
    review.refresh(bucket)
    left_out = len(review.strange) + review.stray
    if not review.queue and not left_out:
        return None
    outcomes = review.outcomes(chosen, utc_now())
    agreed = agreement(outcomes.values())
    shown = certificates(review, outcomes, chosen, trained_on(published(bucket)))
    of_versions = [each for each in shown if each.model_version in versions]
    return ReviewSummary(
        queued=len(outcomes),
        **counted(outcomes),
        double=agreed.images,
        same=agreed.same,
        kappa=agreed.kappa,
        certificate=of_versions[-1] if of_versions else None,
        left_out=left_out,
    )


def sentence(summary: ReviewSummary) -> str:
    """The queue's accounts and how people agree, for people."""
    kappa = "" if summary.kappa is None else f", Cohen's kappa {summary.kappa:.2f}"
    double = (
        f" Two people looked at {summary.double:,}: {summary.same:,} of their answers agree{kappa}."
        if summary.double
        else ""
    )
    left_out = f" {summary.left_out:,} objects below review/ were left out." if summary.left_out else ""
    return (
        f"{summary.queued:,} images were queued for review: {summary.answered:,} answered, {summary.open:,} open, "
        f"{summary.skipped:,} skipped, {summary.expired:,} expired.{double}{left_out}"
    )
