"""What the audits show of a model version: of what it accepted, how much is right at least, however often one looks.

The audits are a random sample of what was accepted, and people said what is in these images.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from datetime import datetime

from settings import Settings
from tasks.records import Part
from tasks.review.labels import Label, Outcome, Review, certifies, most_say
from tasks.review.queue import Waiting, drawn

# Of the error rate, chosen once and for all before there was any label: about one in a hundred. Any prior keeps the
# level; this one needs the fewest labels where the truth is about that.
PRIOR = (0.5, 50.0)
# Halvings of an interval, after which it is as narrow as a float tells.
HALVINGS = 60


class Certificate(Part, frozen=True, kw_only=True):
    """What is shown of the images that a model version accepted at one threshold. labels: how many count, of which
    `errors` are wrong.

    since: when the first of them was queued. lower_bound, upper_bound: of the accuracy, at `level`, and at every time
    that one looks. target: what the accuracy should be, and missing_labels: how many more labels without another error
    show it; None if the bound contradicts it. unlabelled: audits that wait for an answer. thinned: audits that do not
    count, as they were drawn with a larger probability than the others; copies: nor these, of an image that counts
    already; trained_on: nor these, which are in the training set. for_training: audits that are not for certification.
    """

    model_version: str
    threshold: float
    since: str
    labels: int
    errors: int
    lower_bound: float
    upper_bound: float
    level: float
    target: float
    missing_labels: int | None
    unlabelled: int
    thinned: int
    copies: int
    trained_on: int
    for_training: int
    sampling_probability: float

    @property
    def contradicts(self) -> bool:
        """Whether the accuracy is shown to be below the target."""
        return self.upper_bound < self.target


def accuracy_bounds(errors: int, n: int, level: float) -> tuple[float, float]:
    """Bounds of the accuracy at that level, for all n at once: a beta-binomial confidence sequence.

    An error rate p is outside as soon as the labels are 1 / (1 - level) times as likely under the prior's mixture as
    under p. That ratio is a martingale if p is true, and one that starts at 1 ever gets so large with probability
    1 - level at most (Ville 1939). Robbins 1970, Statistical methods related to the law of the iterated logarithm;
    Waudby-Smith and Ramdas 2020, Confidence sequences for sampling without replacement, section 2, as the ratio of
    prior and posterior.
    """
    if n == 0:
        return 0.0, 1.0
    rate = errors / n

    def outside(p: float) -> bool:
        return log_ratio(errors, n, p) >= -math.log1p(-level)

    low, high = _edge(0.0, rate, outside), _edge(1.0, rate, outside)
    return 1 - high, 1 - low


def log_ratio(errors: int, n: int, p: float) -> float:
    """Logarithm of the likelihood of so many errors of n under the prior's mixture over that under an error rate p."""
    a, b = PRIOR
    if (p <= 0 and errors) or (p >= 1 and errors < n):
        return math.inf
    mixture = _log_beta(a + errors, b + n - errors) - _log_beta(a, b)
    return mixture - (errors * math.log(p) if errors else 0) - ((n - errors) * math.log1p(-p) if errors < n else 0)


def labels_to_show(errors: int, target: float, level: float) -> int:
    """The fewest labels of which so many errors show an accuracy of `target` by `accuracy_bounds`."""

    def shown(n: int) -> bool:
        return errors / n < 1 - target and log_ratio(errors, n, 1 - target) >= -math.log1p(-level)

    high = errors + 1
    while not shown(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if shown(middle) else (middle, high)
    return high


def certificates(
    review: Review, outcomes: Mapping[str, Outcome], chosen: Settings, trained_on: Collection[str] = ()
) -> list[Certificate]:
    """One for each model version and threshold that has audits, in the order in which they began.

    trained_on: SHA-256 of reviewed images in the training set.
    """
    of_models: dict[tuple[str, float], list[Waiting]] = defaultdict(list)
    for waiting in review.queue.values():
        if waiting.reason == "audit":
            of_models[waiting.model_version, waiting.threshold].append(waiting)
    found = [_certificate(audits, outcomes, chosen, trained_on) for audits in of_models.values()]
    return sorted(found, key=lambda each: each.since)


def _certificate(
    audits: list[Waiting], outcomes: Mapping[str, Outcome], chosen: Settings, trained_on: Collection[str]
) -> Certificate:
    """Audits count with one sampling probability, the smallest that any of them was drawn with: the draw is by a hash,
    so that the sample of a larger share has the one of the smaller share in it. An image that was accepted several
    times counts once, as copies tell nothing new.
    """
    probability = min(waiting.sampling_probability for waiting in audits)
    kept = [waiting for waiting in audits if drawn(waiting.inference_id, probability)]
    first: dict[str, Waiting] = {}
    for waiting in sorted(kept, key=lambda each: (each.queued, each.inference_id)):
        first.setdefault(waiting.sha256, waiting)
    unseen = [waiting for waiting in first.values() if waiting.sha256 not in trained_on]
    certifying = [waiting for waiting in unseen if certifies(waiting.sha256, chosen.certification_share)]
    looked_at = [(waiting, outcomes[waiting.inference_id]) for waiting in certifying]
    told = [(waiting, each) for waiting, each in looked_at if counts(waiting, each)]
    errors = sum(not is_right(waiting, each) for waiting, each in told)
    # That agree with the model so far, and wait for another person.
    right_so_far = sum(bool(each.blind) and not counts(waiting, each) for waiting, each in looked_at)
    level, target = chosen.certificate_level, chosen.threshold_target
    low, _ = accuracy_bounds(errors, len(told), level)
    # Contradictions count at once, so those that agree have to count as well, or errors would come first.
    _, high = accuracy_bounds(errors, len(told) + right_so_far, level)
    return Certificate(
        model_version=audits[0].model_version,
        threshold=audits[0].threshold,
        since=min(waiting.queued for waiting in audits),
        labels=len(told),
        errors=errors,
        lower_bound=low,
        upper_bound=high,
        level=level,
        target=target,
        missing_labels=None if high < target else max(0, labels_to_show(errors, target, level) - len(told)),
        unlabelled=sum(each.state == "open" and not counts(waiting, each) for waiting, each in looked_at),
        thinned=len(audits) - len(kept),
        copies=len(kept) - len(first),
        trained_on=len(first) - len(unseen),
        for_training=len(unseen) - len(certifying),
        sampling_probability=probability,
    )


def sentence(certificate: Certificate) -> str:
    """What is known, for people: lower bounds are rounded down and upper ones up."""
    version, level = f"{certificate.model_version} at {certificate.threshold:g}", f"{100 * certificate.level:g} %"
    since = f"{datetime.fromisoformat(certificate.since):%-d %B %Y}"
    if not certificate.labels:
        known = f"Nothing is known yet of what {version} accepted since {since}: none of its audits has an answer."
    else:
        labels = "label" if certificate.labels == 1 else "labels"
        wrong = "none of them" if not certificate.errors else f"{certificate.errors:,} of them"
        at_least = math.floor(certificate.lower_bound * 1000) / 1000
        known = (
            f"Of what {version} accepted since {since} at least {at_least:.3f} is right, with {level} confidence "
            f"however often one looks ({certificate.labels:,} {labels} of a random sample, {wrong} wrong)."
        )
    if certificate.missing_labels is None:
        at_most = math.ceil(certificate.upper_bound * 1000) / 1000
        return f"{known} That contradicts the target of {certificate.target:g}: at most {at_most:.3f} is right."
    if not certificate.missing_labels:
        return f"{known} That shows the target of {certificate.target:g}."
    return f"{known} {certificate.missing_labels:,} more without another error show {certificate.target:g}."


def counts(waiting: Waiting, outcome: Outcome) -> bool:
    """Whether an audit counts by now: it is answered, somebody could not tell, or somebody has contradicted the model.

    The last two count before they are decided, as wrong ones: it is hard images that wait for another person, and they
    must not be missing meanwhile. What nobody has looked at does not count; the order of these is random.
    """
    contradicted = any(not _agrees(waiting, label) for label in outcome.blind)
    return outcome.state == "answered" or outcome.skipped or contradicted


def is_right(waiting: Waiting, outcome: Outcome) -> bool:
    """Whether people said what the model said, before they knew it: whoever sees it first tends to agree.

    An image that nobody can tell (skipped, unreadable, disputed) is not right: leaving those out would keep the hard
    ones from counting.
    """
    said = most_say(outcome.blind)
    return outcome.state == "answered" and said is not None and _agrees(waiting, said)


def _agrees(waiting: Waiting, label: Label) -> bool:
    return label.answer == "class" and label.label == waiting.predicted_class


def _edge(outer: float, inner: float, outside: Callable[[float], bool]) -> float:
    """Where, between an outer and an inner rate, the interval begins."""
    if not outside(outer):
        return outer
    for _ in range(HALVINGS):
        middle = (outer + inner) / 2
        outer, inner = (middle, inner) if outside(middle) else (outer, middle)
    return outer


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
