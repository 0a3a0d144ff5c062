import base64
import json
from pathlib import Path

import pandas as pd
import pytest

from tasks.capture import COLUMNS, Captured, _hours, parse
from tasks.charts import Caption, draw_all
from tasks.evaluation import Run
from tasks.metrics import figures, wilson_interval
from tasks.report import join, summarize

CLASSES = ("bicycle", "motorcycle")
CAPTION = Caption("5b52074c57ed", "2026-11-22", "generated", True, 0.93, "v1", False)


def record(data: str, encoding: str) -> str:
    metadata = {"eventId": "e", "inferenceId": "i", "inferenceTime": "2026-11-22T17:25:49Z"}
    output = {"observedContentType": "application/json", "mode": "OUTPUT", "data": data, "encoding": encoding}
    return json.dumps({"captureData": {"endpointOutput": output}, "eventMetadata": metadata, "eventVersion": "0"})


@pytest.mark.parametrize(
    "line", [record("[0.1, 0.9]", "JSON"), record(base64.b64encode(b"[0.1, 0.9]").decode(), "BASE64")]
)
def test_records_are_read_in_either_encoding(line: str) -> None:
    row = parse(line, "v7")
    assert row["inferences"] == [0.1, 0.9]
    assert row["time"] == pd.Timestamp("2026-11-22T17:25:49Z")
    assert row["model_version"] == "v7"


@pytest.mark.parametrize("line", ["", "{", "[]", "null", "{}", record("nonsense", "JSON"), record("7", "JSON")])
def test_a_line_that_is_no_record_is_refused(line: str) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        parse(line, "v7")


def test_hours_of_a_window_over_midnight() -> None:
    first, last = pd.Timestamp("2026-11-22T23:58Z"), pd.Timestamp("2026-11-23T01:00Z")
    assert _hours(first, last) == {"2026/11/22/23", "2026/11/23/00", "2026/11/23/01"}


def table(n: int) -> pd.DataFrame:
    start = pd.Timestamp("2026-11-22T03:30Z")
    rows = [
        {
            "time": start + pd.Timedelta(seconds=index),
            "confidence": 0.5 + (index * 37 % 50) / 100,
            "predicted_class": CLASSES[index % 2],
            "correct": index % 7 != 0,
        }
        for index in range(n)
    ]
    frame = pd.DataFrame(rows, columns=["time", "confidence", "predicted_class", "correct"])
    return frame.astype({"confidence": float, "correct": bool, "predicted_class": str}).assign(
        time=pd.to_datetime(frame["time"], utc=True)
    )


@pytest.mark.parametrize("n", [0, 1, 200])
def test_charts_are_drawn_and_the_same_every_time(tmp_path: Path, n: int) -> None:
    first = draw_all(table(n), CLASSES, CAPTION, tmp_path / "a")
    second = draw_all(table(n), CLASSES, CAPTION, tmp_path / "b")
    assert [path.name for path in first] == ["confidence_scatter.png", "threshold_bar.png", "confidence_histogram.png"]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
        assert one.stat().st_size > 5_000


def test_figures_count_the_threshold_as_accepted() -> None:
    frame = pd.DataFrame({"confidence": [0.93, 0.9299, 1.0], "correct": [True, True, False]})
    found = figures(frame, 0.93)
    assert (found.above_threshold, found.below_threshold) == (2, 1)
    assert (found.coverage, found.accuracy, found.accepted_accuracy) == (2 / 3, 2 / 3, 0.5)


def test_figures_refuse_what_is_no_probability() -> None:
    frame = pd.DataFrame({"confidence": [1.2], "correct": [True]})
    with pytest.raises(ValueError, match="confidence"):
        figures(frame, 0.5)
    with pytest.raises(ValueError, match="threshold"):
        figures(frame.iloc[:0], 1.5)


def test_the_wilson_interval_agrees_with_scipy() -> None:
    scipy_stats = pytest.importorskip("scipy.stats")
    for successes, n in ((0, 10), (92, 100), (200, 200)):
        expected = scipy_stats.binomtest(successes, n).proportion_ci(0.95, method="wilson")
        assert wilson_interval(successes, n) == pytest.approx((expected.low, expected.high))
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_missing_records_make_the_report_provisional() -> None:
    results = [{"inference_id": name, "key": name, "label": "bicycle", "status": "accepted"} for name in ("x", "y")]
    records = pd.DataFrame([["x", pd.Timestamp("2026-11-22T03:30Z"), "v1", [0.99, 0.01]]], columns=COLUMNS)
    captured = Captured(records, ("y",), 0)
    counts = dict.fromkeys(("planned", "submitted", "not_submitted", "accepted", "below_threshold", "failed"), 0)
    evaluation = {**counts, "threshold": 0.93, "classes": list(CLASSES), "dataset": {}, "model_version": "v1"}
    joined = join(records, results, CLASSES)
    summary = summarize(Run("r", "2026-11-22"), evaluation, results, captured, joined)
    assert summary["provisional"] and summary["missing_captures"] == ["y"]
    assert (summary["captured"], summary["accuracy"]) == (1, 1.0)
