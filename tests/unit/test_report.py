import base64
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tasks.capture import COLUMNS, Captured, _hours, parse
from tasks.charts import CHARTS, POINTS, Caption, draw_all, drift_of_confidence, save, trend
from tasks.drift import drift, histogram
from tasks.metrics import figures, wilson_interval
from tasks.page import ROWS, interesting, render, render_index, rows_to_look_at
from tasks.report import alerts, join, summarize
from tasks.results import Run

CLASSES = ("bicycle", "motorcycle")
CAPTION = Caption("5b52074c57ed", "2026-11-22", "generated", True, 0.93, "v1", False)


def record(data: str, encoding: str) -> str:
    metadata = {"eventId": "e", "inferenceId": "i", "inferenceTime": "2026-11-22T17:25:49Z"}
    output = {"observedContentType": "application/json", "mode": "OUTPUT", "data": data, "encoding": encoding}
    return json.dumps({"captureData": {"endpointOutput": output}, "eventMetadata": metadata, "eventVersion": "0"})


@pytest.mark.parametrize(
    "line",
    [
        record("[0.1, 0.9]", "JSON"),
        record("0.1,0.9", "CSV"),
        record(base64.b64encode(b"[0.1, 0.9]").decode(), "BASE64"),
    ],
)
def test_records_are_read_in_each_encoding(line: str) -> None:
    row = parse(line.encode(), "v7")
    assert row["inferences"] == [0.1, 0.9]
    assert row["time"] == pd.Timestamp("2026-11-22T17:25:49Z")
    assert row["model_version"] == "v7"


@pytest.mark.parametrize(
    "line",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        "\x00\xff",
        record("nonsense", "JSON"),
        record("7", "JSON"),
        record("[]", "JSON"),
        record("[NaN, 1]", "JSON"),
        record("[2, -1]", "JSON"),
        record("[0.1, 0.9]", "BASE64"),
        '{"eventMetadata": {"eventId": "e", "inferenceTime": "2026-11-22T17:25:49Z"}, "captureData": {}}',
    ],
)
def test_a_line_that_is_no_record_is_refused(line: str) -> None:
    with pytest.raises((ValueError, KeyError, TypeError)):
        parse(line.encode(), "v7")


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
            "label": CLASSES[(index + (index % 7 == 0)) % 2],
            "correct": index % 7 != 0,
            "key": f"test/{index}.png",
            "inference_id": f"5b52074c57ed-{index}-a1",
        }
        for index in range(n)
    ]
    columns = ["time", "confidence", "predicted_class", "label", "correct", "key", "inference_id"]
    frame = pd.DataFrame(rows, columns=columns)
    return frame.astype({"confidence": float, "correct": bool, "predicted_class": str, "label": str}).assign(
        time=pd.to_datetime(frame["time"], utc=True)
    )


@pytest.mark.parametrize("n", [0, 1, 200])
def test_charts_are_drawn_and_the_same_every_time(tmp_path: Path, n: int) -> None:
    first = draw_all(table(n), CLASSES, CAPTION, tmp_path / "a")
    second = draw_all(table(n), CLASSES, CAPTION, tmp_path / "b")
    assert [path.stem for path in first] == list(CHARTS)
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


def test_no_image_has_an_accuracy_of_anything() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_many_points_are_drawn_as_a_density(tmp_path: Path) -> None:
    few = table(200)
    many = pd.concat([few] * (POINTS // 200 + 1), ignore_index=True)
    path = save(CHARTS["confidence_scatter"](many, CLASSES, CAPTION), tmp_path / "density.png")
    assert path.stat().st_size > 5_000


@pytest.mark.parametrize("n", [0, 1, 30])
def test_trend_and_drift_are_drawn(tmp_path: Path, n: int) -> None:
    nights = pd.DataFrame(
        {
            "stopped": pd.date_range("2026-10-01T03:40Z", periods=n, freq="D"),
            "accuracy": [0.9] * n,
            "coverage": [0.7] * n,
            "failed_share": [0.0] * n,
            "model_version": [f"v{1 + night // 10}" for night in range(n)],
        }
    )
    assert save(trend(nights, CAPTION), tmp_path / "trend.png").stat().st_size > 5_000
    counts = histogram(table(200)["confidence"].to_numpy())
    found = drift(counts, counts)
    assert found is not None
    assert save(drift_of_confidence(counts, counts, found, CAPTION), tmp_path / "drift.png").stat().st_size > 5_000


HOSTILE = '<script>alert("x")</script>{{ 7 * 7 }}'


def page(n: int, hostile: bool = False) -> str:
    frame = table(n)
    if hostile:
        frame.loc[0, ["key", "inference_id"]] = HOSTILE
    results = [
        {
            "inference_id": row.inference_id,
            "execution_arn": "arn:aws:states:eu-west-1:000000000000:execution:machine:name",
            "key": row.key,
            "label": row.label,
            "status": "accepted" if row.confidence >= 0.93 else "below_threshold",
            "predicted_class": row.predicted_class,
            "confidence": row.confidence,
            "error": None,
        }
        for row in frame.itertuples()
    ]
    counts = dict.fromkeys(("planned", "submitted", "not_submitted", "accepted", "below_threshold", "failed"), n)
    evaluation = {
        **counts,
        "outcome": "passed",
        "threshold": 0.93,
        "classes": list(CLASSES),
        "dataset": {"source": HOSTILE if hostile else "generated", "synthetic": True},
        "model_version": "v1",
        "endpoint": "e",
        "started": "2026-11-22T03:30:00.000+00:00",
        "stopped": "2026-11-22T03:40:00.000+00:00",
    }
    captured = Captured(pd.DataFrame(columns=COLUMNS), ())
    summary = summarize(Run("r", "2026-11-22"), evaluation, results, captured, frame)
    return render(
        summary,
        evaluation,
        "Passed: all well",
        results,
        interesting(frame),
        {"chart": b"png"},
        {"test/1.png": b"\x89PNG"},
    )


@pytest.mark.parametrize("n", [0, 1, 200])
def test_the_page_is_whole_and_needs_no_network(n: int) -> None:
    text = page(n)
    assert "Passed: all well" in text and text.rstrip().endswith("</html>")
    assert "Synthetic data." in text
    # Links lead away only where somebody follows them.
    sources = re.findall(r'(?:src|<link[^>]*href)="([^"]*)"', text)
    assert sources and all(source.startswith("data:image/") for source in sources)
    assert text == page(n)


def test_the_index_leads_to_every_report_and_to_nothing_else(tmp_path: Path) -> None:
    captured = Captured(pd.DataFrame(columns=COLUMNS), ())
    counts = dict.fromkeys(("planned", "submitted", "not_submitted", "accepted", "below_threshold", "failed"), 0)
    evaluation = {**counts, "threshold": 0.93, "classes": [], "dataset": {"synthetic": True}, "model_version": HOSTILE}
    for date, run in (("2026-11-21", "aaa"), ("2026-11-22", "bbb")):
        summary = summarize(Run(run, date), evaluation, [], captured, table(0))
        (tmp_path / date / run).mkdir(parents=True)
        (tmp_path / date / run / "summary.json").write_text(json.dumps(summary))
    for name, text in (
        ("broken", "{"),
        ("other", "[]"),
        ("moved", (tmp_path / "2026-11-21/aaa/summary.json").read_text()),
    ):
        (tmp_path / "2026-11-20" / name).mkdir(parents=True)
        (tmp_path / "2026-11-20" / name / "summary.json").write_text(text)
    text = render_index(tmp_path)
    assert re.findall(r'href="([^"]*)"', text) == ["2026-11-22/bbb/report.html", "2026-11-21/aaa/report.html"]
    assert "<script>" not in text


def test_nothing_of_a_record_reaches_the_page_unescaped() -> None:
    text = page(20, hostile=True)
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert" in text
    assert ">49<" not in text and "{{ 7 * 7 }}" in text


def test_the_contact_sheets_show_the_confidently_wrong_and_the_barely_right() -> None:
    wrong, right = interesting(table(200)).values()
    assert len(wrong) == len(right) == 12
    assert [row["confidence"] for row in wrong] == sorted((row["confidence"] for row in wrong), reverse=True)
    assert [row["confidence"] for row in right] == sorted(row["confidence"] for row in right)


def test_the_table_begins_with_what_failed_and_ends_somewhere() -> None:
    def row(status: str, predicted: str | None, name: str) -> dict[str, Any]:
        known = {"status": status, "predicted_class": predicted, "label": "bicycle", "confidence": 0.9, "key": name}
        return {**known, "inference_id": name, "error": None}

    rows = [row("accepted", "bicycle", "right"), row("accepted", "motorcycle", "wrong"), row("failed", None, "broken")]
    assert [each["key"] for each in rows_to_look_at(rows, set())] == ["broken", "wrong"]
    assert [each["key"] for each in rows_to_look_at(rows, {"right"})] == ["broken", "right", "wrong"]
    assert page(ROWS * 8).count("<tr>") == ROWS + 1


def test_an_alert_needs_more_than_chance() -> None:
    captured = Captured(pd.DataFrame(columns=COLUMNS), ())
    assert alerts(0.05, 0.06, None, captured) == alerts(None, None, None, captured) == []
    assert "not calibrated" in alerts(0.07, 0.06, None, captured)[0]
    high, low = histogram(np.full(100, 0.99)), histogram(np.full(100, 0.6))
    assert "has drifted" in alerts(None, None, drift(high, low), captured)[0]
    assert alerts(None, None, drift(high, high), captured) == []
    missing = Captured(pd.DataFrame(columns=COLUMNS), ("x",))
    assert "not captured (yet): 1." in alerts(None, None, None, missing)[0]


def test_missing_records_make_the_report_provisional() -> None:
    results = [{"inference_id": name, "key": name, "label": "bicycle", "status": "accepted"} for name in ("x", "y")]
    records = pd.DataFrame([["x", pd.Timestamp("2026-11-22T03:30Z"), "v1", [0.99, 0.01]]], columns=COLUMNS)
    captured = Captured(records, ("y",))
    counts = dict.fromkeys(("planned", "submitted", "not_submitted", "accepted", "below_threshold", "failed"), 0)
    evaluation = {**counts, "threshold": 0.93, "classes": list(CLASSES), "dataset": {}, "model_version": "v1"}
    joined = join(records, results, CLASSES)
    summary = summarize(Run("r", "2026-11-22"), evaluation, results, captured, joined)
    assert summary["provisional"] and summary["missing_captures"] == ["y"]
    assert (summary["captured"], summary["accuracy"]) == (1, 1.0)
