"""What audits show of a model version, and that it holds however often one looks."""

from datetime import timedelta

import numpy as np
import pytest
from msgspec import structs

from settings import Settings, settings
from tasks.review.certificate import accuracy_bounds, certificates, labels_to_show, log_ratio, sentence
from tasks.review.labels import Review, certifies
from tasks.review.queue import drawn
from tests.unit.test_labels import NOW, label, name_of, waiting


def everything_certifies(**changed: object) -> Settings:
    return settings().model_copy(update={"certification_share": 1.0, "review_double_share": 0.0, **changed})


def audited(said: list[str], probability: float = 1.0, version: str = "v1", first: int = 0) -> Review:
    """A queue of audits with these answers; "" for none yet."""
    review = Review()
    for number, each in enumerate(said, first):
        name, sha = name_of(number), f"{number:064x}"
        review.queue[name] = waiting(
            number, reason="audit", sha256=sha, sampling_probability=probability, model_version=version, confidence=0.99
        )
        if each:
            review.labels[name].append(label(said=each, number=number, sha256=sha))
    return review


def test_bounds_of_known_cases() -> None:
    assert accuracy_bounds(0, 0, 0.95) == (0.0, 1.0)
    low, high = accuracy_bounds(0, 409, 0.95)
    assert low == pytest.approx(0.99, abs=1e-4) and low >= 0.99 and high == 1.0
    low, high = accuracy_bounds(30, 100, 0.95)
    assert low < 0.7 < high < 0.95
    # At the bound the labels are 20 times as likely under the mixture.
    assert log_ratio(30, 100, 1 - high) == pytest.approx(np.log(20), abs=1e-6)
    assert accuracy_bounds(5, 5, 0.95)[0] == 0.0


def test_labels_needed_are_the_fewest() -> None:
    for errors, needed in ((0, 409), (1, 705), (3, 1134)):
        assert labels_to_show(errors, 0.99, 0.95) == needed
        assert accuracy_bounds(errors, needed, 0.95)[0] >= 0.99 > accuracy_bounds(errors, needed - 1, 0.95)[0]


@pytest.mark.parametrize("error_rate", [0.005, 0.02, 0.1])
def test_the_truth_stays_inside_on_every_one_of_a_thousand_looks(error_rate: float) -> None:
    generator, simulated = np.random.default_rng(7), 1500
    outside = 0
    for _ in range(simulated):
        errors = (generator.random(1000) < error_rate).cumsum()
        outside += any(log_ratio(int(errors[n - 1]), n, error_rate) >= np.log(20) for n in range(5, 1001, 5))
    # What a rate of exactly .05 exceeds in one simulation of a thousand.
    assert outside / simulated <= 0.05 + 3.1 * (0.05 * 0.95 / simulated) ** 0.5


def test_a_certificate_counts_what_people_said_and_what_nobody_can_tell_as_wrong() -> None:
    said = ["bicycle"] * 90 + ["motorcycle", "none_of_these", "unreadable", "skipped"] + ["", "", "withdrawn"]
    chosen = everything_certifies()
    review = audited(said)
    (found,) = certificates(review, review.outcomes(chosen, NOW), chosen)
    assert (found.labels, found.errors, found.unlabelled) == (94, 4, 3)
    assert found.lower_bound == accuracy_bounds(4, 94, 0.95)[0] < 0.957 < found.upper_bound
    assert found.missing_labels == labels_to_show(4, 0.99, 0.95) - 94
    assert "at least 0.8" in sentence(found) and "4 of them wrong" in sentence(found)


def test_hard_images_count_as_wrong_while_they_wait_for_another_person() -> None:
    """Two who agree with the model on easy images, one who contradicts it on a hard one: it must not be missing."""
    chosen = everything_certifies(review_double_share=1.0)
    review = audited(["bicycle", "bicycle", "motorcycle", "bicycle", "skipped"])
    review.labels[name_of(0)].append(label("ben", "bicycle", 1, 0, f"{0:064x}"))
    (found,) = certificates(review, review.outcomes(chosen, NOW), chosen)
    # Decided: 0. Contradicted: 2. Skipped: 4. Right so far, and waiting for a second person: 1 and 3.
    assert (found.labels, found.errors, found.unlabelled) == (3, 2, 2)
    # Skipped, and nobody answered in time: still not right.
    later = chosen.model_copy(update={"review_expires_days": 1})
    (found,) = certificates(review, review.outcomes(later, NOW + timedelta(days=3)), later)
    assert (found.labels, found.errors) == (5, 2)


def test_it_starts_again_with_another_model_version() -> None:
    chosen = everything_certifies()
    review = audited(["bicycle"] * 30)
    later = audited(["motorcycle"] * 5, version="v2", first=100)
    review.queue.update(later.queue)
    review.labels.update(later.labels)
    review.queue = dict(sorted(review.queue.items(), reverse=True))
    found = {each.model_version: each for each in certificates(review, review.outcomes(chosen, NOW), chosen)}
    assert (found["v1"].labels, found["v1"].errors) == (30, 0)
    assert (found["v2"].labels, found["v2"].errors, found["v2"].missing_labels) == (5, 5, None)
    assert found["v2"].contradicts and "contradicts" in sentence(found["v2"]) and not found["v1"].contradicts


def test_a_larger_share_is_thinned_to_the_smallest_one() -> None:
    """Audits that were drawn while the share was larger would weigh more than their share of what was accepted."""
    chosen = everything_certifies()
    names = [number for number in range(4000) if drawn(name_of(number), 0.2)]
    review = audited(["bicycle"] * 4000)
    for number in range(4000):
        name = name_of(number)
        share = 0.05 if number < 2000 else 0.2
        if drawn(name, share):
            review.queue[name] = waiting(
                number, reason="audit", sha256=f"{number:064x}", sampling_probability=share, confidence=0.99
            )
        else:
            del review.queue[name]
    (found,) = certificates(review, review.outcomes(chosen, NOW), chosen)
    assert found.sampling_probability == 0.05
    assert found.labels == sum(drawn(name_of(number), 0.05) for number in names)
    assert found.thinned == len(review.queue) - found.labels > 100


def test_only_their_own_part_of_the_audits_and_nothing_that_was_trained_on() -> None:
    chosen = everything_certifies(certification_share=0.5)
    review = audited(["bicycle"] * 200)
    trained = {review.queue[name_of(0)].sha256}
    (found,) = certificates(review, review.outcomes(chosen, NOW), chosen, trained)
    mine = sum(certifies(f"{number:064x}", 0.5) for number in range(1, 200))
    assert (found.labels, found.for_training, found.trained_on) == (mine, 199 - mine, 1)


def test_an_image_that_was_accepted_many_times_counts_once() -> None:
    chosen = everything_certifies()
    review = audited(["bicycle"] * 420)
    for number in range(420):
        name = name_of(number)
        same = f"{number % 21:064x}"
        review.queue[name] = structs.replace(review.queue[name], sha256=same)
        review.labels[name] = [structs.replace(review.labels[name][0], sha256=same)]
    (found,) = certificates(review, review.outcomes(chosen, NOW), chosen)
    assert (found.labels, found.copies) == (21, 399) and found.lower_bound < 0.9


def test_an_error_stays_when_a_later_model_is_unsure_of_the_same_image() -> None:
    chosen = everything_certifies()
    review = audited(["bicycle"] * 380 + ["motorcycle"] * 20)
    (before,) = certificates(review, review.outcomes(chosen, NOW), chosen)
    for number in range(380, 400):
        review.queue[name_of(number + 1000)] = waiting(number + 1000, sha256=f"{number:064x}", model_version="v2")
    assert certificates(review, review.outcomes(chosen, NOW), chosen) == [before] and before.errors == 20


def test_an_answer_that_was_changed_after_the_model_s_was_seen_counts_as_it_was_first() -> None:
    chosen = everything_certifies()
    review = audited(["motorcycle", "motorcycle", "bicycle"])
    for number, then in ((0, "bicycle"), (1, "withdrawn"), (2, "withdrawn")):
        sha = f"{number:064x}"
        review.labels[name_of(number)].append(label("anna", "withdrawn", 1, number, sha))
        if then != "withdrawn":
            review.labels[name_of(number)].append(label("anna", then, 2, number, sha))
    outcomes = review.outcomes(chosen, NOW)
    (found,) = certificates(review, outcomes, chosen)
    assert (found.labels, found.errors) == (2, 2)
    # What is trained on is what the person says in the end.
    decided = outcomes[name_of(0)].answer
    assert decided is not None and decided.label == "bicycle"
    assert outcomes[name_of(1)].state == outcomes[name_of(2)].state == "open"


def test_another_threshold_begins_another_certificate() -> None:
    chosen = everything_certifies()
    review = audited(["bicycle"] * 50)
    lower = audited(["motorcycle"] * 10, first=100)
    review.queue |= {name: structs.replace(each, threshold=0.5) for name, each in lower.queue.items()}
    review.labels.update(lower.labels)
    found = {each.threshold: (each.labels, each.errors) for each in
             certificates(review, review.outcomes(chosen, NOW), chosen)}  # fmt: skip
    assert found == {0.93: (50, 0), 0.5: (10, 10)}


def test_agreements_that_wait_for_a_second_person_keep_the_upper_bound_from_falling() -> None:
    chosen = everything_certifies(review_double_share=1.0)
    review = audited(["bicycle"] * 996 + ["motorcycle"] * 4)
    (found,) = certificates(review, review.outcomes(chosen, NOW), chosen)
    assert (found.labels, found.errors) == (4, 4) and not found.contradicts


def test_bounds_are_not_rounded_in_their_own_favour() -> None:
    chosen = everything_certifies()
    review = audited(["bicycle"] * 387)
    (found,) = certificates(review, review.outcomes(chosen, NOW), chosen)
    assert found.lower_bound > 0.9895 and "at least 0.989 is right, with 95 %" in sentence(found)
    assert "22 more without another error show 0.99" in sentence(found)


def test_without_a_label_nothing_is_known() -> None:
    chosen = everything_certifies()
    review = audited([""])
    (found,) = certificates(review, review.outcomes(chosen, NOW), chosen)
    assert (found.lower_bound, found.upper_bound, found.labels) == (0.0, 1.0, 0)
    assert sentence(found).startswith("Nothing is known yet of what v1 at 0.93 accepted since 25 November 2026")
    assert certificates(Review(), {}, chosen) == []
