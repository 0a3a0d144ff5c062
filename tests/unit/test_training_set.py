"""Which reviewed images are trained on, and which look like test images."""

import io
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image

from local_aws.config import ROOT
from settings import Settings, settings
from tasks.data.dataset import png
from tasks.data.generated import draw
from tasks.data.pictures import as_served
from tasks.review.labels import Review, certifies
from tasks.review.training_set import NEAR_DUPLICATE, Use, is_near, new_labels, uses, vectors
from tests.unit.test_labels import NOW, label, name_of, waiting

sys.path.insert(0, str(ROOT / "classifier"))
import serving

CLASSES = ("bicycle", "motorcycle")


def chosen(**changed: Any) -> Settings:
    return settings().model_copy(update={"review_double_share": 0.0, **changed})


def of(*queued: tuple[int, dict[str, Any], list[tuple[str, str]]], **changed: Any) -> dict[str, Use]:
    """What becomes of queued images, by their numbers: what is special about each, and who said what."""
    review = Review()
    for number, special, said in queued:
        one = waiting(number, **({"sha256": f"{number:064x}"} | special))
        review.queue[one.inference_id] = one
        for minute, (person, answer) in enumerate(said):
            review.labels[one.inference_id].append(label(person, answer, minute, number, one.sha256))
    settings_ = chosen(**changed)
    return {use.inference_id: use for use in uses(review, review.outcomes(settings_, NOW), settings_, CLASSES)}


@pytest.mark.parametrize(
    ("said", "use", "why"),
    [
        ([("anna", "bicycle")], "training", None),
        ([("anna", "none_of_these")], "left_out", "it is of no class"),
        ([("anna", "unreadable")], "left_out", "nobody can tell what is in it"),
        ([("anna", "skipped")], "left_out", "it was skipped"),
        ([("anna", "bicycle"), ("anna", "withdrawn")], "left_out", "its answer was taken back"),
        ([("anna", "bicycle"), ("ben", "motorcycle")], "left_out", "it waits for another answer"),
        (
            [("anna", "bicycle"), ("ben", "motorcycle"), ("cleo", "unreadable")],
            "left_out",
            "people disagree about it",
        ),
        ([("anna", "tractor")], "left_out", "tractor is no class any more"),
        ([("page", "gone")], "left_out", "it is gone, or nobody answered in time"),
    ],
)
def test_every_image_that_somebody_said_something_about_is_used_or_listed_with_the_reason(
    said: list[tuple[str, str]], use: str, why: str | None
) -> None:
    found = of((1, {}, said), (2, {}, []))
    assert set(found) == {name_of(1)}
    assert (found[name_of(1)].use, found[name_of(1)].why) == (use, why)


def test_who_said_it_and_when_stands_with_it() -> None:
    found = of((1, {}, [("anna", "bicycle"), ("ben", "bicycle")]), review_double_share=1.0)[name_of(1)]
    assert (found.label, found.reviewers, found.answered) == (
        "bicycle",
        ("anna", "ben"),
        "2026-11-26T10:01:00.000000+00:00",
    )


def test_audits_are_split_by_their_content_and_copies_go_where_the_audit_goes() -> None:
    audits = [(number, {"reason": "audit"}, [("anna", "bicycle")]) for number in range(200)]
    found = of(*audits)
    for number in range(200):
        expected = "certification" if certifies(f"{number:064x}", 0.5) else "training"
        assert found[name_of(number)].use == expected
    kept = next(f"{number:064x}" for number in range(200) if certifies(f"{number:064x}", 0.5))
    copies = of(
        (1, {"reason": "audit", "sha256": kept}, [("anna", "bicycle")]),
        (2, {"sha256": kept}, [("anna", "bicycle")]),
        (3, {"reason": "audit", "sha256": kept}, []),
    )
    assert copies[name_of(1)].use == "certification"
    assert (copies[name_of(2)].use, copies[name_of(2)].why) == ("left_out", "a copy of it is kept for certification")


def test_what_was_trained_on_never_certifies() -> None:
    kept = next(f"{number:064x}" for number in range(200) if certifies(f"{number:064x}", 0.5))
    review = Review()
    for number, reason in ((1, "below_threshold"), (2, "audit")):
        one = waiting(number, sha256=kept, reason=reason)
        review.queue[one.inference_id] = one
        review.labels[one.inference_id].append(label("anna", "bicycle", number, number, kept))
    outcomes = review.outcomes(chosen(), NOW)
    found = {use.inference_id: use.use for use in uses(review, outcomes, chosen(), CLASSES, {kept})}
    assert found == {name_of(1): "training", name_of(2): "left_out"}


def test_an_image_that_was_queued_twice_is_used_once_and_not_at_all_if_the_answers_differ() -> None:
    same = {"sha256": "ef" * 32}
    twice = of((1, same, [("anna", "bicycle")]), (2, same, [("anna", "bicycle")]))
    assert [use.use for use in twice.values()] == ["training", "left_out"]
    assert twice[name_of(2)].why == f"a copy of {name_of(1)}"
    differ = of((1, same, [("anna", "bicycle")]), (2, same, [("anna", "motorcycle")]))
    assert {use.why for use in differ.values()} == {"people said something else of a copy of it"}


def test_labels_are_new_until_a_training_set_was_made_with_them() -> None:
    listed = list(of((1, {}, [("anna", "bicycle")]), (2, {}, [("anna", "none_of_these")])).values())
    assert new_labels([], listed) == 1
    assert new_labels(listed, listed) == 0
    changed = list(of((1, {}, [("anna", "motorcycle")])).values())
    assert new_labels(listed, changed) == 1


def variants(pixels: np.ndarray) -> dict[str, np.ndarray]:
    """The same picture after what happens to copies."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=60)
    larger = Image.fromarray(pixels).resize((96, 96)).resize((32, 32))
    return {
        "as it is": pixels,
        "mirrored": pixels[:, ::-1],
        "moved": np.roll(pixels, 1, 1),
        "darker": (pixels * 0.6).astype(np.uint8),
        "compressed": np.asarray(Image.open(buffer)),
        "larger": np.asarray(larger),
    }


def test_copies_of_test_images_are_found_and_other_images_are_not() -> None:
    test = np.stack([draw(CLASSES[number % 2], 50_000 + number) for number in range(60)])
    kept = vectors(test)
    for name in variants(test[0]):
        found = [is_near(variants(image)[name], kept) for image in test]
        assert np.mean(found) > 0.95, name
    others = [draw(CLASSES[number % 2], number) for number in range(200)]
    assert np.mean([is_near(image, kept) for image in others]) < 0.02


def test_a_picture_of_one_colour_is_near_none() -> None:
    plain = np.full((1, 32, 32, 3), 200, np.uint8)
    assert not is_near(plain[0], vectors(plain)) and not is_near(plain[0], np.empty((0, 1)))
    assert 0 < NEAR_DUPLICATE < 1


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "I;16", "P", "1", "CMYK"])
@pytest.mark.parametrize("size", [(32, 32), (200, 90), (16, 48)])
def test_reviewed_pictures_become_what_the_endpoint_sees(mode: str, size: tuple[int, int]) -> None:
    """Pixel by pixel what classifier/serving.py makes of the same bytes, upright and of the network's size."""
    picture = Image.fromarray(draw("bicycle", 3)).resize(size)
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 250)
    else:
        picture = picture.convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG" if mode == "CMYK" else "PNG", exif=exif)
    served = serving.read_picture(buffer.getvalue())
    expected = np.array(served.resize((32, 32), Image.Resampling.BILINEAR, reducing_gap=2))
    found = as_served(buffer.getvalue(), 32)
    assert found is not None and np.array_equal(found, expected)


@pytest.mark.parametrize("content", [b"", b"no picture", b"<svg onload=alert(1)>", png(draw("bicycle", 1))[:200]])
def test_what_is_no_picture_is_none(content: bytes) -> None:
    assert as_served(content, 32) is None
