"""Every chart over spans from a second to a year and 2 to 100 classes: no labels overlap, and nothing is cut off."""

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from PIL import Image

from tasks.report.charts import (
    CHARTS,
    COLOURS,
    POINTS,
    Caption,
    confidence_scatter,
    confusion_at_threshold,
    save,
    scatter_points,
    threshold_bar,
    trend,
)

SPANS = {"second": 1, "ten seconds": 10, "minute": 60, "hour": 3600, "day": 86400, "month": 2.6e6, "year": 3.2e7}
CLASSES = (2, 3, 8, 9, 20, 100)
# Pixels by which boxes of letters may touch.
TOUCH = 1.5


def caption(**more: object) -> Caption:
    given = {
        "run": "522240828954",
        "date": "2026-11-27",
        "dataset": "/home/somebody/a folder of pictures with a long name: 1,540 training, 226 test images",
        "synthetic": True,
        "threshold": 0.93,
        "model_version": "v12",
        "provisional": True,
        **more,
    }
    return Caption(**given)  # type: ignore[arg-type]


def inferences(count: int, seconds: float, n_classes: int) -> tuple[pd.DataFrame, tuple[str, ...]]:
    rng = np.random.default_rng(1)
    classes = tuple(f"class_of_a_long_name_{number}" if number % 3 else f"c{number}" for number in range(n_classes))
    labels, predicted = rng.integers(0, n_classes, (2, count))
    right = rng.random(count) < 0.8
    start = pd.Timestamp("2026-11-27T03:30:07Z")
    table = pd.DataFrame(
        {
            "time": start + pd.to_timedelta(np.sort(rng.random(count)) * seconds, unit="s"),
            "confidence": rng.beta(6, 1.2, count).clip(1 / n_classes, 1),
            "outlier_score": rng.random(count) * 1.05,
            "predicted_class": [classes[number] for number in np.where(right, labels, predicted)],
            "label": [classes[number] for number in labels],
        }
    )
    table["correct"] = table["predicted_class"] == table["label"]
    return table, classes


def texts(figure: Figure) -> Iterator[tuple[str, Bbox]]:
    """What is written, and where, in pixels."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    hidden = not_drawn(figure)
    for text in figure.findobj(Text):
        if isinstance(text, Text) and text not in hidden and text.get_visible() and text.get_text().strip():
            box = text.get_window_extent(renderer)
            if box.width > 0:
                yield text.get_text(), box


def not_drawn(figure: Figure) -> set[Text]:
    """Labels of ticks outside of an axis' range, and all of an axis that is off."""
    hidden: set[Text] = set()
    for axes in figure.findobj(Axes):
        assert isinstance(axes, Axes)
        for axis in (axes.xaxis, axes.yaxis):
            ticks = {*axis.majorTicks, *axis.minorTicks}
            seen = axes.axison and axis.get_visible()
            shown = set(axis._update_ticks()) if seen else set()  # type: ignore[union-attr]
            hidden |= {text for tick in ticks - shown for text in (tick.label1, tick.label2)}
            if not seen:
                hidden |= {axis.label, axis.offsetText}
    return hidden


def problems(figure: Figure) -> list[str]:
    found = list(texts(figure))
    whole = figure.bbox
    cut = [
        f"{text!r} is cut off"
        for text, box in found
        if box.x0 < -TOUCH or box.y0 < -TOUCH or box.x1 > whole.width + TOUCH or box.y1 > whole.height + TOUCH
    ]
    over = [
        f"{one!r} overlaps {other!r}"
        for (one, box), (other, second) in combinations(found, 2)
        if box.x0 + TOUCH < second.x1 - TOUCH
        and second.x0 + TOUCH < box.x1 - TOUCH
        and box.y0 + TOUCH < second.y1 - TOUCH
        and second.y0 + TOUCH < box.y1 - TOUCH
    ]
    return cut + over


@pytest.mark.parametrize("n_classes", CLASSES)
@pytest.mark.parametrize("name", CHARTS)
def test_nothing_overlaps_whatever_the_classes(name: str, n_classes: int) -> None:
    table, classes = inferences(1000, 60, n_classes)
    assert problems(CHARTS[name](table, classes, caption())) == []


@pytest.mark.parametrize("span", SPANS)
@pytest.mark.parametrize("count", [1, 40, 6000])
def test_nothing_overlaps_whatever_the_time(span: str, count: int) -> None:
    table, classes = inferences(count, SPANS[span], 2)
    assert problems(CHARTS["confidence_scatter"](table, classes, caption())) == []


@pytest.mark.parametrize("name", CHARTS)
@pytest.mark.parametrize("count", [0, 1, 12])
def test_nothing_overlaps_in_charts_of_little(name: str, count: int) -> None:
    table, classes = inferences(count, 5, 3)
    assert problems(CHARTS[name](table, classes, caption(synthetic=False))) == []


@pytest.mark.parametrize("count", [1, 2, 7, 60, 365])
def test_nothing_overlaps_in_the_trend(count: int) -> None:
    rng = np.random.default_rng(1)
    nights = pd.DataFrame(
        {
            "stopped": pd.Timestamp("2026-01-01T03:40:00Z") + pd.to_timedelta(np.arange(count), unit="D"),
            "accuracy": rng.uniform(0.8, 1, count),
            "coverage": rng.uniform(0.5, 0.9, count),
            "failed_share": rng.uniform(0, 0.1, count),
            "threshold": np.where(np.arange(count) < count / 2, 0.93, 0.9),
            "model_version": [f"v{number // 3 + 1}" for number in range(count)],
            "test_images": np.arange(count) // 20,
        }
    )
    figure = trend(nights, caption())
    assert problems(figure) == []
    legend = [text for text, _ in texts(figure)]
    assert ("threshold changed (n = 1)" in legend) is (count > 1)


def night(day: int, model: str = "v1", images: int = 0) -> dict[str, object]:
    return {
        "stopped": pd.Timestamp("2026-01-01T03:40:00Z") + pd.Timedelta(days=day),
        "accuracy": 0.9 + day / 64,
        "coverage": 0.7,
        "failed_share": 0.0,
        "threshold": 0.93,
        "model_version": model,
        "test_images": images,
    }


def test_no_line_joins_nights_of_other_models_or_images() -> None:
    nights = [night(0), night(1), night(2, images=1), night(3, images=1), night(4, "v2", 1), night(5, "v2", 1)]
    figure = trend(pd.DataFrame(nights), caption())
    (axes,) = figure.axes
    drawn = [np.asarray(line.get_ydata()).tolist() for line in axes.get_lines() if line.get_marker() == "o"]
    assert drawn == [[each["accuracy"] for each in pair] for pair in (nights[:2], nights[2:4], nights[4:])]
    written = [text for text, _ in texts(figure)]
    assert "lines end where model or images change" in written and "test images changed (n = 1)" in written
    assert problems(figure) == []
    alike = [text for text, _ in texts(trend(pd.DataFrame([night(0), night(1)]), caption()))]
    assert not [text for text in alike if "lines end" in text or "changed" in text]


def test_a_single_night_is_shown_at_its_time_and_with_its_threshold() -> None:
    figure = trend(pd.DataFrame([night(0)]), caption())
    written = [text for text, _ in texts(figure)]
    (axes,) = figure.axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["2026-01-01 03:40:00"]
    assert np.ptp(axes.get_xlim()) < 1 / 24 and "threshold" in written
    (threshold,) = [line for line in axes.get_lines() if line.get_label() == "threshold"]
    assert list(np.asarray(threshold.get_xdata())) == [0, 1]  # all of the width: a line of one point is not seen


def test_no_class_is_missing_where_there_are_more_than_colours() -> None:
    table, classes = inferences(1000, 60, 20)
    figure = threshold_bar(table, classes, caption())
    (axes,) = figure.axes
    heights = sum(patch.get_height() for container in axes.containers for patch in container)
    assert heights == len(table)
    assert any(text == "predicted 13 others" for text, _ in texts(figure))


def test_a_confusion_of_many_classes_names_some_of_them() -> None:
    table, classes = inferences(3000, 60, 100)
    figure = confusion_at_threshold(table, classes, caption())
    labels = [label.get_text() for label in figure.axes[0].child_axes[0].get_xticklabels()]
    assert len(labels) == 20


@pytest.mark.parametrize("seconds", [1, 3600, 3.2e7])
def test_points_are_where_the_picture_shows_them(tmp_path: Path, seconds: float) -> None:
    table, classes = inferences(7, seconds, 2)
    table = table.assign(label=table["predicted_class"], correct=True, outlier_score=0.5, inference_id=list("abcdefg"))
    table["confidence"] = np.linspace(0.6, 0.9, 7)
    picture = Image.open(save(confidence_scatter(table, classes, caption()), tmp_path / "a.png")).convert("RGB")
    points = scatter_points(table, classes, caption(), 100)
    assert [point.inference_id for point in points] == list("abcdefg")
    for point, predicted in zip(points, table["predicted_class"], strict=True):
        colour = np.array(to_rgb(COLOURS[classes.index(predicted)])) * 255
        seen = np.array(picture.getpixel((round(point.x * picture.width), round(point.y * picture.height))))
        assert np.abs(seen - (0.75 * colour + 0.25 * 255)).max() < 40, (point, seen)


def test_of_many_points_wrong_and_unsure_ones_lead_somewhere() -> None:
    table, classes = inferences(50, 60, 2)
    table = table.assign(inference_id=[f"i{number:02}" for number in range(50)])
    points = scatter_points(table, classes, caption(), 20)
    wrong = set(table[~table["correct"]]["inference_id"])
    assert len(points) == 20 and wrong <= {point.inference_id for point in points}
    right = table[table["correct"]].nsmallest(20 - len(wrong), "confidence")
    assert {point.inference_id for point in points} == wrong | set(right["inference_id"])
    many, _ = inferences(POINTS + 1, 60, 2)
    assert scatter_points(many.assign(inference_id="x"), classes, caption(), 20) == []
