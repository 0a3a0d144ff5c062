import json
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from msgspec import structs

from settings import settings
from tasks.capture.window import COLUMNS, Captured, Quarantined, Window
from tasks.data.dataset import LeftOut, png
from tasks.evaluation.outcome import summarize as judge
from tasks.evaluation.results import Result, inference_id
from tasks.evaluation.summary import Counts, EvaluationSummary, Outcome
from tasks.installation import DatasetNote, ServingEndpoint
from tasks.report import report
from tasks.report.analysis import (
    Analysis,
    _outlier_scores,
    changes_between,
    comparable_nights,
    join,
    once_per_image,
    summarize,
)
from tasks.report.charts import CHARTS, POINTS, Caption, Point, draw_all, drift_of_confidence, save, trend
from tasks.report.drift import Drift, coverage_change, drift, histogram
from tasks.report.history import History, Step
from tasks.report.inputs import PROPERTIES, input_drift
from tasks.report.metrics import figures, offered_confidence, wilson_interval
from tasks.report.page import (
    ROWS,
    interesting,
    render,
    render_executions,
    render_index,
    rows_to_look_at,
    summaries_below,
)
from tasks.report.reconciliation import KINDS
from tasks.report.report import _publish_index, markdown
from tasks.report.subject import Subject, verdict_of_window
from tasks.report.summary import ReportSummary, Unmatched, headline, to_look_at
from tasks.review.certificate import Certificate, accuracy_bounds, labels_to_show
from tasks.review.summary import ReviewSummary
from tasks.run import Run
from tasks.serving.threshold import ThresholdChange
from tests.unit.bucket import MemoryBucket
from tests.unit.results import RESULT

CLASSES = ("bicycle", "motorcycle")
CAPTION = Caption("5b52074c57ed", "2026-11-22", "generated", True, 0.93, "v1", False)


def table(n: int) -> pd.DataFrame:
    start = pd.Timestamp("2026-11-22T03:30Z")
    rows = [
        {
            "time": start + pd.Timedelta(seconds=index),
            "confidence": 0.5 + (index * 37 % 50) / 100,
            "outlier_score": 2.0 if index % 50 == 49 else 0.5,
            "predicted_class": CLASSES[index % 2],
            "label": CLASSES[(index + (index % 7 == 0)) % 2],
            "correct": index % 7 != 0,
            "key": f"test/{index}.png",
            "inference_id": f"5b52074c57ed-{index}-a1",
        }
        for index in range(n)
    ]
    columns = ["time", "confidence", "outlier_score", "predicted_class", "label", "correct", "key", "inference_id"]
    frame = pd.DataFrame(rows, columns=columns)
    return frame.astype({"confidence": float, "outlier_score": float, "correct": bool}).assign(
        time=pd.to_datetime(frame["time"], utc=True),
        predicted_class=pd.Categorical(frame["predicted_class"], CLASSES),
        label=pd.Categorical(frame["label"], CLASSES),
    )


@pytest.mark.parametrize("n", [0, 1, 200])
def test_charts_are_drawn_and_the_same_every_time(tmp_path: Path, n: int) -> None:
    first = draw_all(table(n), CLASSES, CAPTION, tmp_path / "a")
    second = draw_all(table(n), CLASSES, CAPTION, tmp_path / "b")
    assert [path.stem for path in first] == list(CHARTS)
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
        assert one.stat().st_size > 5_000


def test_without_labels_nothing_is_drawn_or_said_of_accuracy(tmp_path: Path) -> None:
    frame = table(50)
    frame["label"] = pd.Categorical([None] * 50, CLASSES)
    drawn = draw_all(frame.assign(correct=False), CLASSES, CAPTION, tmp_path)
    assert [path.stem for path in drawn] == ["confidence_scatter", "threshold_bar", "confidence_histogram"]


def test_figures_count_the_threshold_as_accepted() -> None:
    frame = pd.DataFrame(
        {"confidence": [0.93, 0.9299, 1.0], "outlier_score": None, "correct": [True, True, False], "label": "bicycle"}
    )
    found = figures(frame, 0.93)
    assert (found.above_threshold, found.below_threshold) == (2, 1)
    assert (found.coverage, found.accuracy, found.accepted_accuracy) == (2 / 3, 2 / 3, 0.5)


def test_figures_refuse_what_is_no_probability() -> None:
    frame = pd.DataFrame({"confidence": [1.2], "outlier_score": 0.5, "correct": [True], "label": "bicycle"})
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
            "threshold": [0.93 if night < 20 else 0.95 for night in range(n)],
            "model_version": [f"v{1 + night // 10}" for night in range(n)],
            "test_images": [night // 15 for night in range(n)],
        }
    )
    assert save(trend(nights, CAPTION), tmp_path / "trend.png").stat().st_size > 5_000
    counts = histogram(table(200)["confidence"].to_numpy())
    found = drift(counts, counts)
    assert found is not None
    assert save(drift_of_confidence(counts, counts, found, CAPTION), tmp_path / "drift.png").stat().st_size > 5_000


DAY = "2026-11-20"
HOSTILE = '<script>alert("x")</script>{{ 7 * 7 }}'


NONE_UNMATCHED = dict.fromkeys(KINDS, 0)
NO_CAPTURES = Captured(pd.DataFrame(columns=COLUMNS))
STARTED, STOPPED = "2026-11-22T03:30:00.000+00:00", "2026-11-22T03:40:00.000+00:00"
GENERATED = DatasetNote(source="generated", synthetic=True)
ABOUT = Subject(
    run=Run("r", "2026-11-22"),
    verdict="Passed: all well",
    outcome="passed",
    endpoint="e",
    model_version="v1",
    threshold=0.93,
    classes=CLASSES,
    dataset=GENERATED,
    started=STARTED,
    stopped=STOPPED,
    counts=Counts(planned=0, submitted=0, not_submitted=0, accepted=0, below_threshold=0, failed=0),
    results=[],
    window=Window("e", ("v1",), datetime.fromisoformat(STARTED), datetime.fromisoformat(STOPPED)),
)


def summary_of(
    about: Subject,
    frame: pd.DataFrame,
    captured: Captured = NO_CAPTURES,
    unmatched: dict[str, int] = NONE_UNMATCHED,
    bucket: str = "bucket",
    **more: Any,
) -> ReportSummary:
    return summarize(about, captured, frame, unmatched, bucket=bucket, inferences=len(frame), **more)


def result(name: str, label: str = "bicycle", **changed: Any) -> Result:
    return structs.replace(RESULT, **{"inference_id": name, "key": name, "label": label, **changed})


def page(n: int, hostile: bool = False) -> str:
    frame = table(n)
    if hostile:
        frame.loc[0, ["key", "inference_id"]] = HOSTILE
    results = [
        result(
            str(row.inference_id),
            str(row.label),
            key=row.key,
            status="accepted" if float(str(row.confidence)) >= 0.93 else "below_threshold",
            predicted_class=row.predicted_class,
            confidence=row.confidence,
        )
        for row in frame.itertuples()
    ]
    dataset = DatasetNote(source=HOSTILE, synthetic=True) if hostile else GENERATED
    about = replace(ABOUT, results=results, dataset=dataset)
    bad = (Quarantined(HOSTILE, 1, HOSTILE),) if hostile else ()
    unmatched = [Unmatched(kind="missing_capture", inference_id=HOSTILE, detail=HOSTILE)] if hostile else []
    summary = summary_of(about, frame, replace(NO_CAPTURES, quarantined=bad))
    sheets, images = interesting(frame), {"test/1.png": b"\x89PNG"}
    return render(summary, about, sheets, {"chart": b"png"}, images, unmatched, bad)


@pytest.mark.parametrize("n", [0, 1, 200])
def test_the_page_is_whole_and_needs_no_network(n: int) -> None:
    text = page(n)
    assert "Passed: all well" in text and text.rstrip().endswith("</html>")
    assert "Synthetic data." in text
    # Links lead away only if somebody follows them.
    sources = re.findall(r'(?:src|<link[^>]*href)="([^"]*)"', text)
    assert sources and all(source.startswith("data:image/") for source in sources)
    assert text == page(n)


def test_the_page_says_what_labels_show_of_the_threshold_and_which_tests_were_made() -> None:
    frame = table(200)
    values = np.random.default_rng(1).normal(1, 0.1, (200, len(PROPERTIES)))
    summary = summary_of(ABOUT, frame, inputs=input_drift(values, values * (0.5, 1, 1, 1, 1)))
    text = render(summary, ABOUT, interesting(frame), {"chart": b"png"}, {}, [], ())
    shown = summary.accepted_accuracy_shown
    assert shown.errors and shown.missing_labels == shown.labels_needed - summary.accepted_labelled
    assert f"takes {shown.labels_needed:,} labels with as many errors: {shown.missing_labels:,} are missing." in text
    assert "<td>brightness</td>" in text and "<td>images</td>" in text and "<td>alert</td>" in text
    frame["label"] = pd.Categorical([None] * 200, CLASSES)
    unlabelled = summary_of(ABOUT, frame.assign(correct=False))
    text = render(unlabelled, ABOUT, {}, {"chart": b"png"}, {}, [], ())
    assert "shows nothing about the accuracy" in text and "Accepted accuracy" not in text


def reviewed(errors: int, labels: int, version: str = "v1") -> ReviewSummary:
    """What audits of a version show."""
    low, high = accuracy_bounds(errors, labels, 0.95)
    certificate = Certificate(
        model_version=version,
        threshold=0.93,
        since=STARTED,
        labels=labels,
        errors=errors,
        lower_bound=low,
        upper_bound=high,
        level=0.95,
        target=0.99,
        missing_labels=None if high < 0.99 else max(0, labels_to_show(errors, 0.99, 0.95) - labels),
        unlabelled=0,
        thinned=0,
        copies=0,
        trained_on=0,
        for_training=0,
        sampling_probability=0.05,
    )
    return ReviewSummary(
        queued=100, answered=60, open=30, skipped=6, expired=4, double=10, same=9, kappa=0.8, certificate=certificate,
        left_out=0,
    )  # fmt: skip


def test_the_certificate_stands_at_the_top_and_alerts_if_it_contradicts_the_target() -> None:
    frame = table(200)
    good = summary_of(ABOUT, frame, reviewed=reviewed(0, 500))
    text = render(good, ABOUT, {}, {"chart": b"png"}, {}, [], ())
    certified = "Of what v1 at 0.93 accepted since 22 November 2026 at least 0.991 is right, with 95 % confidence"
    assert text.index(certified) < text.index('<div class="cards">')
    assert "That shows the target of 0.99." in text
    assert "60 answered, 30 open, 6 skipped, 4 expired" in text and "kappa 0.80" in text
    assert not [alert for alert in good.alerts if "right than the target" in alert]
    bad = summary_of(ABOUT, frame, reviewed=reviewed(20, 100))
    (alert,) = [alert for alert in bad.alerts if "right than the target" in alert]
    assert "20 of 100 reviewed images" in alert
    assert certified in markdown(Analysis(ABOUT, good, frame, frame, [], frame, [], ()), Path("r"))
    assert "queued for review" not in page(200)


def test_the_index_leads_to_every_report_and_to_nothing_else(tmp_path: Path) -> None:
    for date, run in (("2026-11-21", "aaa"), ("2026-11-22", "bbb")):
        about = replace(ABOUT, model_version=HOSTILE, run=Run(run, date))
        (tmp_path / date / run).mkdir(parents=True)
        (tmp_path / date / run / "summary.json").write_text(json.dumps(summary_of(about, table(0)).to_json()))
    for name, text in (
        ("broken", "{"),
        ("other", "[]"),
        ("moved", (tmp_path / "2026-11-21/aaa/summary.json").read_text()),
    ):
        (tmp_path / "2026-11-20" / name).mkdir(parents=True)
        (tmp_path / "2026-11-20" / name / "summary.json").write_text(text)
    text = render_index(summaries_below(tmp_path), "bucket")
    assert re.findall(r'href="([^"]*)"', text) == ["2026-11-22/bbb/report.html", "2026-11-21/aaa/report.html"]
    assert "<script>" not in text


def test_nothing_of_a_record_reaches_the_page_unescaped() -> None:
    text = page(20, hostile=True)
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert" in text
    assert ">49<" not in text and "{{ 7 * 7 }}" in text


def test_the_contact_sheets_show_the_confidently_wrong_and_the_barely_right() -> None:
    wrong, right, strange = interesting(table(200)).values()
    assert [tile.key for tile in strange] == [f"test/{index}.png" for index in (149, 199, 49, 99)]
    assert len(wrong) == len(right) == 12
    assert [tile.confidence for tile in wrong] == sorted((tile.confidence for tile in wrong), reverse=True)
    assert [tile.confidence for tile in right] == sorted(tile.confidence for tile in right)


def test_the_table_begins_with_what_failed_and_ends_somewhere() -> None:
    broken = result("broken", status="failed", predicted_class=None, confidence=None)
    rows = [result("right"), result("wrong", predicted_class="motorcycle"), broken]
    assert [each.key for each in rows_to_look_at(rows, set())] == ["broken", "wrong"]
    assert [each.key for each in rows_to_look_at(rows, {"right"})] == ["broken", "right", "wrong"]
    assert page(ROWS * 8).count('<tr><td class="key whole">test/') == ROWS


def alerts(
    n: int = 0, captured: Captured = NO_CAPTURES, unmatched: dict[str, int] = NONE_UNMATCHED, **changes: Any
) -> tuple[str, ...]:
    frame = table(n).assign(confidence=0.99, correct=True)
    return summary_of(ABOUT, frame, captured, {**NONE_UNMATCHED, **unmatched}, **changes).alerts


def test_an_alert_needs_more_than_chance() -> None:
    high, low, few = np.full(100, 0.99), np.full(100, 0.6), np.full(10, 0.6)
    assert alerts() == alerts(5) == ()
    assert "not calibrated" in alerts(5000)[0]
    assert "has drifted" in alerts(drifted=drift(histogram(high), histogram(low)))[0]
    assert alerts(drifted=drift(histogram(high), histogram(high))) == ()
    assert "coverage has changed: 0.0% after 100.0%" in alerts(changed=coverage_change(high, low, 0.93))[0]
    assert alerts(changed=coverage_change(high, high, 0.93)) == ()
    assert coverage_change(high, few, 0.93) is None
    generator = np.random.default_rng(1)
    training, now = (generator.normal(1, 0.1, (n, len(PROPERTIES))) for n in (200, 100))
    assert alerts(inputs=input_drift(training, now)) == ()
    darker = input_drift(training, now * (0.5, 1, 1, 1, 1))
    assert "do not look like the training images: brightness is 0.4" in alerts(inputs=darker)[0]
    near, farther, untold, of_another = (
        pd.DataFrame({"outlier_score": [score] * 100, "model_version": version})
        for score, version in ((0.3, "v1"), (0.9, "v1"), (None, "v1"), (0.9, "v2"))
    )

    def moved(before: pd.DataFrame, now: pd.DataFrame) -> Drift | None:
        return drift(_outlier_scores(before, now), _outlier_scores(now, before))

    assert alerts(features=moved(near, near)) == ()
    assert "in the model's features has drifted: KS 1.000" in alerts(features=moved(near, farther))[0]
    # Each model tells scores in units of its own limit, and some tell none.
    assert moved(near, untold) is moved(untold, untold) is moved(near, of_another) is None
    (only,) = alerts(features=moved(pd.concat([near, of_another]), farther))
    assert "n = 100 against 100" in only
    missing = Captured(pd.DataFrame(columns=COLUMNS), ("x",), quarantined=(Quarantined("k", 1, "bad"),))
    assert [reason.rsplit(": ", 1)[1] for reason in alerts(captured=missing)] == ["1.", "1."]
    assert "without the model's answer: 2." in alerts(unmatched={"capture_without_output": 2})[0]


def test_what_is_of_no_class_is_never_accepted_and_counted_by_itself() -> None:
    frame = table(200).assign(confidence=0.99)
    found = figures(frame, 0.93)
    assert (found.above_threshold, found.below_threshold, found.not_a_class) == (196, 0, 4)
    assert (found.coverage, found.accepted_labelled, found.captured) == (0.98, 196, 200)
    untold = figures(frame.assign(outlier_score=None), 0.93)
    assert (untold.above_threshold, untold.not_a_class) == (200, 0)
    assert (offered_confidence(frame) == -1).sum() == 4


def records(*names: str | None) -> pd.DataFrame:
    frame = pd.DataFrame(
        [[name, pd.Timestamp("2026-11-22T03:31Z"), "v1", 0.99, 0.5, "bicycle"] for name in names], columns=COLUMNS
    )
    return frame.astype({"predicted_class": pd.CategoricalDtype(list(CLASSES)), "inference_id": "str"})


def test_missing_records_make_the_report_provisional() -> None:
    results = [result(name) for name in ("x", "y")]
    captured = Captured(records("x"), ("y",))
    summary = summary_of(replace(ABOUT, results=results), join(captured.records, results, CLASSES), captured)
    assert summary.provisional and summary.missing_captures == ("y",)
    assert (summary.captured, summary.accuracy) == (1, 1.0)


def test_a_window_counts_inferences_of_others_but_no_accuracy_of_theirs() -> None:
    results = [result("x", "motorcycle")]
    everything = join(records("x", "other", None), results, CLASSES, only_known=False)
    assert len(join(records("x", "other", None), results, CLASSES)) == 1
    summary = summary_of(replace(ABOUT, results=results, is_window=True), everything, Captured(everything))
    assert (summary.captured, summary.labelled, summary.accuracy) == (3, 1, 0.0)
    assert summary.coverage == 1.0
    assert [len(rows) for rows in interesting(everything).values()] == [1, 0]


def night(number: int, **changed: Any) -> EvaluationSummary:
    """The summary of an evaluation in which nothing was planned."""
    run, images = Run("r", f"2026-11-2{number}"), DatasetNote(source="generated", synthetic=True, manifests_sha256="a")
    summary = judge([], run, ServingEndpoint("e", "v1"), CLASSES, images, settings())
    times = {"started": f"2026-11-2{number}T03:30:00", "stopped": f"2026-11-2{number}T03:40:00"}
    return structs.replace(summary, **{"threshold": 0.93, **times, **changed})


def test_the_artifact_draws_what_there_is(tmp_path: Path) -> None:
    def text(n: int, nights: int) -> str:
        summary, before = summary_of(ABOUT, table(n)), [night(1, accuracy=0.9, coverage=0.7)] * nights
        return markdown(Analysis(ABOUT, summary, table(n), table(n), before, table(0), [], ()), tmp_path)

    assert "█" not in text(0, 0) and "mermaid" not in text(0, 1)
    assert "| 0.50 to 0.55 | 1 | " + "█" * 24 + " |" in text(1, 1)
    assert text(200, 3).count("█ |") == 10
    assert "line [0.900, 0.900, 0.900]" in text(200, 3)
    one, other = night(1, accuracy=0.9, coverage=0.7), night(2, accuracy=0.8, coverage=0.7, model_version="v2")
    analysis = Analysis(ABOUT, summary_of(ABOUT, table(0)), table(0), table(0), [one, other, other], table(0), [], ())
    drawn = markdown(analysis, tmp_path)
    assert "The last evaluations of v2" in drawn and "line [0.800, 0.800]" in drawn
    assert "Synthetic data" in text(1, 0)


def test_three_nights_of_the_same_images_are_no_more_images() -> None:
    """In every figure, interval and test each image counts once, with its latest inference."""
    nights = [f"{night:012x}" for night in range(3)]
    keys = [f"test/{number}.png" for number in range(100)]
    ids = [inference_id(night, key, 1) for night in nights for key in keys]
    inferences = records(*ids, "smoke", None, None)
    start = pd.Timestamp("2026-11-20T03:30Z")
    inferences["time"] = [start + pd.Timedelta(minutes=number) for number in range(len(inferences))]
    inferences["confidence"] = [0.9] * 200 + [0.99] * (len(inferences) - 200)
    results = [result(name, key=key) for name, key in zip(ids, keys * 3, strict=True)]
    joined = join(inferences, results, CLASSES, only_known=False)
    for each in (once_per_image(joined), once_per_image(inferences)):
        assert len(each) == 103  # those without an image of ours count each
        assert (each["confidence"] == 0.99).all()
        assert each["time"].is_monotonic_increasing
    summary = summary_of(replace(ABOUT, results=results), once_per_image(joined), Captured(inferences))
    assert (summary.labelled, summary.captured) == (100, 103)
    assert summary.accuracy_interval_95 == wilson_interval(100, 100)
    assert (summary.accepted_labelled, summary.above_threshold) == (100, 103)
    assert not [reason for reason in summary.alerts if "calibrated" in reason]


def test_what_changed_between_nights_is_said_with_its_reason() -> None:
    thresholds = [
        ThresholdChange(time="2026-11-22T12:00:00", threshold=0.95, before=0.93, reason="recommended by v2", run="r")
    ]
    later = {"model_version": "v2", "threshold": 0.95}
    other = DatasetNote(source="cifar", synthetic=False, manifests_sha256="b")
    nights = [night(1), night(2), night(3, **later), night(4, **later, dataset=other)]
    found = changes_between(nights, thresholds)
    assert [(each.what, each.before, each.after, each.why) for each in found] == [
        ("model", "v1", "v2", ""),
        ("threshold", 0.93, 0.95, "recommended by v2"),
        ("test images", "generated", "cifar", "prepare-data uploaded others"),
    ]
    assert found[0].time == "2026-11-23T03:30:00"
    assert changes_between(nights[:1], thresholds) == changes_between([], []) == ()


def pets(test: str | None, everything: str, originals: str = "o") -> DatasetNote:
    """A note about images whose source is always called alike."""
    return DatasetNote(
        source="pets", synthetic=False, manifests_sha256=everything, originals_sha256=originals, test_sha256=test
    )


def test_answers_that_join_the_training_images_change_nothing_about_the_test_images() -> None:
    about = replace(ABOUT, dataset=pets("t", "with 105 reviewed ones"))
    ours = night(4, dataset=about.dataset, run="r")
    before = night(3, dataset=pets("t", "before"), run="q")
    old = night(2, dataset=pets(None, "before"), run="p")  # as an earlier release wrote it
    others = night(1, dataset=pets("u", "before", "others"), run="o")
    of_another = night(1, dataset=before.dataset, model_version="v2", run="n")
    assert changes_between([old, before, ours], []) == ()
    assert comparable_nights([of_another, others, old, before, ours], about) == [old, before]
    (change,) = changes_between([others, ours], [])
    assert (change.what, change.before, change.after) == ("test images", "pets (u)", "pets (t)")


def test_a_page_says_what_it_is_about() -> None:
    def text(window: bool) -> str:
        about = replace(ABOUT, is_window=window)
        return render(summary_of(about, table(3)), about, interesting(table(3)), {"chart": b"png"}, {}, [], [])

    assert "Confidence report of a window of time" in text(True) and "evaluation of" not in text(True)
    assert "Each image counts once" in text(True)
    assert "evaluation of 2026-11-22, run" in text(False) and "window" not in text(False)


def test_a_window_opens_with_what_there_is_to_look_at() -> None:
    about = replace(ABOUT, is_window=True, verdict="2026-11-22 03:30 to 03:40 UTC")
    quiet = summary_of(about, table(3))
    assert headline(quiet) == "Nothing to look at: 2026-11-22 03:30 to 03:40 UTC" and to_look_at(quiet) == ()
    torn = Captured(pd.DataFrame(columns=COLUMNS), quarantined=(Quarantined("k", 1, "bad"),))
    noisy = summary_of(about, table(3), torn)
    text = render(noisy, about, {}, {"chart": b"png"}, {}, [], [])
    assert '<h1 class="bad">1 thing to look at: 2026-11-22 03:30 to 03:40 UTC</h1>' in text
    missed = summary_of(replace(about, outcome="missed"), table(3), torn)
    assert headline(missed).startswith("2 things to look at: ")
    assert to_look_at(missed)[0] == "An evaluation in this time did not pass."
    window = Window("e", (), datetime.fromisoformat(STARTED), datetime.fromisoformat(STOPPED))
    assert verdict_of_window(window, []) == "2026-11-22 03:30 to 03:40 UTC"
    longer = replace(window, last=datetime.fromisoformat("2026-11-23T00:00:00+00:00"))
    told = verdict_of_window(longer, [night(1, outcome="passed"), night(2, outcome="missed")])
    assert told == "2026-11-22 03:30 to 2026-11-23 00:00 UTC. Evaluations: 2, not passed: 1"


def test_a_night_that_missed_a_gate_is_a_thing_to_look_at_wherever_they_are_counted() -> None:
    """The same number in the page, the index, the artifact and the message of the flow run."""
    reasons: list[tuple[Outcome, str]] = [
        ("missed", "The evaluation missed a gate."),
        ("incomplete", "The evaluation is incomplete: not every image was submitted."),
    ]
    for outcome, why in reasons:
        about = replace(ABOUT, outcome=outcome, verdict="Missed: accuracy 0.812 is 0.038 under 0.85")
        torn = Captured(pd.DataFrame(columns=COLUMNS), quarantined=(Quarantined("k", 1, "bad"),))
        for captured, number in ((NO_CAPTURES, "1 thing"), (torn, "2 things")):
            summary = summary_of(about, table(3), captured)
            assert to_look_at(summary) == (why, *summary.alerts)
            line = f"Missed: accuracy 0.812 is 0.038 under 0.85. {number} to look at"
            assert headline(summary) == line
            text = render(summary, about, {}, {"chart": b"png"}, {}, [], [])
            assert f'<h1 class="bad">{line}</h1>' in text
            assert text.count("<strong>Look at this.</strong>") == int(number[0]) and why in text
            assert line in markdown(Analysis(about, summary, table(3), table(3), [], table(0), [], ()), Path("r"))
            index = index_of(summary)
            assert f"{line}{'. Lines' if captured is torn else '</li>'}" in index
            assert f'data-name="to look at">{number[0]} synthetic' in index
    assert headline(summary_of(ABOUT, table(3))) == "Passed: all well. Nothing to look at"


def index_of(*summaries: ReportSummary) -> str:
    """The index over these reports."""
    contents = [(f"{each.date}/{each.run}/summary.json", json.dumps(each.to_json()).encode()) for each in summaries]
    return render_index(contents, "bucket")


def test_the_coverage_of_an_evaluation_is_one_figure() -> None:
    """Accepted images over submitted ones, as the verdict and the gate have it, also if some failed."""
    counts = Counts(planned=200, submitted=200, not_submitted=0, accepted=63, below_threshold=121, failed=16)
    about = replace(ABOUT, counts=counts, verdict="Missed: coverage 0.315 is 0.185 under 0.5", outcome="missed")
    frame = table(184).assign(confidence=[0.99] * 63 + [0.6] * 121, outlier_score=0.5)
    summary = summary_of(about, frame)
    assert (summary.captured, summary.above_threshold, summary.coverage) == (184, 63, 0.315)
    text = render(summary, about, {}, {"chart": b"png"}, {}, [], [])
    assert "31.5%" in text and "63 accepted of 200 submitted" in text and "34.2%" not in text
    index = index_of(summary)
    assert 'data-name="coverage">0.315<' in index and "0.342" not in index
    assert "Coverage is the share of submitted images that were accepted" in index
    window = summary_of(replace(about, is_window=True), frame)
    text = render(window, replace(about, is_window=True), {}, {"chart": b"png"}, {}, [], [])
    assert window.coverage == 63 / 184 and "63 accepted of 184 captured" in text


def test_contact_sheets_name_the_files() -> None:
    frame = table(2)
    frame.loc[0, "key"] = "test/a_photograph_of_somebodys_bicycle_at_the_sea_1a2b3c4d.png"
    results = [result(str(row.inference_id), key=row.key) for row in frame.itertuples()]
    about = replace(ABOUT, results=results)
    text = render(summary_of(about, frame), about, interesting(frame), {"chart": b"png"}, {}, [], [])
    assert '<code title="5b52074c57ed-1-a1">1.png</code>' in text
    assert '<code title="5b52074c57ed-0-a1">a_photograph_…a_1a2b3c4d.png</code>' in text


def test_a_story_shows_its_image_and_fits_a_phone() -> None:
    png, jpeg = b"\x89PNG", b"\xff\xd8\xff"
    rows = [result(name, key=f"test/{name}.png") for name in ("a", "b", "c")]
    about = replace(ABOUT, results=rows)
    histories = [
        History("a", "test/a.png", "arn", 2, (Step(STARTED, "ExecutionStarted", "", "input"),)),
        History("a-earlier", "test/a.png", "arn", 1, ()),
    ]
    drawn = render_executions(about, histories, ["a", "b", "c"], {"test/a.png": png, "test/b.png": jpeg})
    assert drawn.count('<img alt="test/a.png" src="data:image/png;base64,iVBORw==">') == 2
    assert drawn.count('<img alt="test/b.png" src="data:image/jpeg;base64,/9j/">') == 1
    assert 'alt="test/c.png"' not in drawn and 'id="c"' in drawn
    assert '<table class="rows">' in drawn and "max-width: 40rem" in drawn


def test_pictures_for_a_page_are_small_and_only_those_that_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = (
        png(np.zeros((32, 32, 3), np.uint8)),
        png(np.random.default_rng(1).integers(0, 255, (200, 300, 3), np.uint8)),
    )
    there = {"small": small, "large": large, "broken": b"no image"}
    monkeypatch.setattr(
        report, "storage", SimpleNamespace(get_image=lambda _, key: there.get(key), PARALLEL_REQUESTS=2)
    )
    found = report._thumbnails("bucket", [*there, "gone"], report.STORY_SIDE, report.STORY_BYTES)
    assert found["small"] == small and set(found) == {"small", "large"}
    assert len(found["large"]) < report.STORY_BYTES < len(large)


def test_images_lead_to_the_history_of_their_executions() -> None:
    text = page(20)
    assert 'href="executions.html#5b52074c57ed-0-a1"' in text
    assert "console.aws.amazon.com" not in text
    steps = (Step("2026-11-22T03:30:00.000+00:00", "ExecutionStarted", "", HOSTILE),)
    histories = [History(HOSTILE, HOSTILE, "arn", 2, steps), History("id", "key", "arn", 1, ())]
    drawn = render_executions(ABOUT, histories)
    assert "03:30:00.000" in drawn and "no history of it any more" in drawn
    of_batch = render_executions(ABOUT, [History("id", "key", "arn:aws:states:r:1:execution:machine/batches:c", 1, ())])
    assert "no history of this batch" in of_batch and "any more" not in of_batch
    assert "<script>alert" not in drawn


def test_points_of_the_scatter_lead_to_the_stories_of_their_images() -> None:
    frame = table(3)
    rows = [
        structs.replace(
            RESULT, inference_id=str(row.inference_id), key=str(row.key), confidence=float(str(row.confidence))
        )
        for row in frame.itertuples()
    ]
    about = replace(ABOUT, results=[*rows[:2], structs.replace(rows[2], execution_arn=None)])
    points = [Point(row.inference_id, 0.1 + 0.2 * place, 0.5) for place, row in enumerate(rows)]
    charts = {"confidence_scatter": b"png", "trend": b"png"}
    text = render(summary_of(about, frame), about, {}, charts, {}, [], (), points)
    # What no execution is known of has no story.
    assert text.count("<circle ") == 2 and text.count("<svg ") == 1
    assert f'href="executions.html#{rows[1].inference_id}"' in text and 'cx="30.00%" cy="50.00%"' in text
    led = [row.inference_id for row in rows[:2]]
    drawn = render_executions(about, [History(led[0], rows[0].key, "arn", 1, ())], [*led, *led, HOSTILE])
    for name in led:
        assert drawn.count(f'<section id="{name}">') == 1
    assert f"scones why {led[1]}" in drawn and f"scones why {led[0]}" not in drawn
    hostile = replace(about, results=[structs.replace(rows[0], inference_id=HOSTILE, key=HOSTILE, sent_as=HOSTILE)])
    assert "<script>alert" not in render_executions(hostile, [], [HOSTILE])


def test_files_that_could_not_be_used_are_listed() -> None:
    frame = table(3)
    dataset = DatasetNote(source="pets", synthetic=False, left_out=70)
    about = replace(ABOUT, dataset=dataset)
    files = [LeftOut(path=f"{HOSTILE}{number}", why=f"broken {number}") for number in range(70)]
    text = render(summary_of(about, frame), about, {}, {}, {}, [], (), (), files)
    assert "50 of 70; all are in" in text and "broken 49" in text and "broken 50" not in text
    assert "of which 70 files could not be used" in text and "<script>alert" not in text
    assert "Files that could not be used" not in page(3)


def test_the_index_is_of_one_installation_with_misses_marked_and_the_latest_first(tmp_path: Path) -> None:
    written: list[tuple[Outcome, str]] = [("passed", "ours"), ("missed", "ours"), ("passed", "theirs")]
    for number, (outcome, bucket) in enumerate(written):
        about = replace(
            ABOUT, outcome=outcome, stopped=f"2026-11-22T0{number}:40:00", run=Run(f"r{number}", "2026-11-22")
        )
        summary = summary_of(about, table(0), bucket=bucket)
        (tmp_path / "2026-11-22" / f"r{number}").mkdir(parents=True)
        (tmp_path / "2026-11-22" / f"r{number}" / "summary.json").write_text(json.dumps(summary.to_json()))
    first, text = render_index(summaries_below(tmp_path), "ours").split("<h2>All reports</h2>")
    assert re.findall(r'href="([^"]*)"', first) == ["2026-11-22/r1/report.html"] and "Look at these first" in first
    assert re.findall(r'href="([^"]*)"', text) == ["2026-11-22/r1/report.html", "2026-11-22/r0/report.html"]
    assert text.count('class="bad"') == 1 and "✗ missed" in text
    assert "2026-11-22 01:40" in text and text.count("Passed: all well") == 2


def test_the_index_in_the_bucket_is_of_the_reports_that_were_written_last(monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = MemoryBucket(monkeypatch)
    monkeypatch.setattr("tasks.report.report.INDEXED", 2)
    for hour, run in enumerate(("ccc", "bbb", "aaa")):
        summary = summary_of(replace(ABOUT, run=Run(run, "2026-11-22")), table(0)).to_json()
        bucket.written[f"reports/2026-11-22/{run}/summary.json"] = datetime(2026, 11, 22, hour, tzinfo=UTC)
        bucket.put_object(f"reports/2026-11-22/{run}/summary.json", json.dumps(summary).encode())
    _publish_index("bucket")
    index = bucket.objects["reports/index.html"].decode()
    assert "aaa" in index and "bbb" in index and "ccc" not in index


def test_the_index_shows_how_accurate_each_model_was(tmp_path: Path) -> None:
    for number, (version, accuracy) in enumerate((("v1", 0.9), ("v2", 0.95), ("v1", 0.8), ("v1", 0.85))):
        about = replace(ABOUT, model_version=version, stopped=f"2026-11-2{number}T03:40:00", run=Run(f"r{number}", DAY))
        summary = structs.replace(summary_of(about, table(0), bucket="ours"), accuracy=accuracy)
        (tmp_path / DAY / f"r{number}").mkdir(parents=True)
        (tmp_path / DAY / f"r{number}" / "summary.json").write_text(json.dumps(summary.to_json()))
    text = render_index(summaries_below(tmp_path), "ours")
    assert "v1: 0.900 to 0.850 in 3 reports" in text and "v2:" not in text
    points = [tuple(map(float, point.split(","))) for point in text.split('points="')[1].split('"')[0].split()]
    # The oldest on the left; the best at the top and the worst at the bottom.
    assert points == [(2.0, 2.0), (80.0, 34.0), (158.0, 18.0)]


def test_the_index_joins_no_models_of_two_data_sets_that_are_both_v1() -> None:
    def written(number: int, accuracy: float, dataset: DatasetNote, **changed: Any) -> ReportSummary:
        about = replace(
            ABOUT,
            dataset=dataset,
            stopped=f"2026-11-2{number}T03:40:00",
            run=Run(f"r{number}", DAY),
            **changed,
        )
        return structs.replace(summary_of(about, table(0)), accuracy=accuracy)

    first, second = pets("t", "a"), DatasetNote(source="cars", synthetic=False, test_sha256="u", originals_sha256="c")
    text = index_of(
        *(written(number, 0.9, first) for number in range(2)),
        *(written(number, 0.6, second) for number in range(2, 4)),
        written(4, 0.8, structs.replace(first, manifests_sha256="with reviewed ones")),
        written(5, 0.5, first, is_window=True),
    )
    assert re.findall(r"<figcaption>(.*?)</figcaption>", text) == [
        'v1: 0.900 to 0.800 in 3 reports<br><span class="soft">pets</span>',
        'v1: 0.600 to 0.600 in 2 reports<br><span class="soft">cars</span>',
    ]
    assert "A line joins reports of one model on the same test images." in text
