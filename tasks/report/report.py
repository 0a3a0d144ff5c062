"""A report as files: charts, pages, tables and a summary, in reports/, in the bucket and as an artifact."""

import json
import math
import shutil
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate, pairwise
from pathlib import Path

import msgspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from prefect import task
from prefect.artifacts import create_markdown_artifact

from settings import REPORTS_PREFIX, settings
from tasks.aws import storage
from tasks.capture.window import Captured
from tasks.data.images import left_out_files
from tasks.data.pictures import SMALL_BYTES, THUMBNAIL_SIDE, thumbnail
from tasks.evaluation.outcome import counts_table
from tasks.evaluation.summary import EvaluationSummary
from tasks.report.analysis import Analysis, analyse
from tasks.report.charts import Caption, draw_all, drift_of_confidence, save, scatter_points, trend
from tasks.report.drift import histogram
from tasks.report.history import executions_of
from tasks.report.page import (
    LINKED_POINTS,
    ROWS,
    interesting,
    render,
    render_executions,
    render_index,
    rows_to_look_at,
    summaries_below,
)
from tasks.report.subject import Subject
from tasks.report.summary import IndexedReport, ReportSummary, are_comparable, headline, to_look_at
from tasks.review.certificate import sentence as certificate_sentence

INDEX_KEY = f"{REPORTS_PREFIX}index.html"
# Reports that the index in the bucket lists: each is a small object to read.
INDEXED = 200
# Slashes in reports/DATE/RUN/summary.json; the newest of a day is reports/DATE/summary.json too.
SUMMARY_DEPTH = 3

# Longest side in pixels of a picture in executions.html, and bytes of one that is small enough as it is: there may be
# more than a thousand of them.
STORY_SIDE, STORY_BYTES = 96, 8_000
# Bars of the histogram in Prefect's artifact, and characters of the longest.
BARS = 10
BAR = 24
# Mermaid's own colours are pale.
PALETTE = """%%{init: {"theme": "base", "themeVariables": {"xyChart": {"plotColorPalette": "#0072B2, #E69F00"}}}}%%"""


@task(task_run_name="write report {subject.run.date} {subject.run.id}")
def write(
    bucket: str,
    subject: Subject,
    captured: Captured,
    before: Captured | None = None,
    pictures: Sequence[bytes] = (),
) -> ReportSummary:
    """Writes reports/DATE/RUN/ here and in the bucket, and returns the summary.

    before: what a window is compared with; an evaluation is compared with those before it. pictures: a sample of those
    that the endpoint was sent.
    """
    analysis = analyse(bucket, subject, captured, before, pictures)
    folder = settings().reports / subject.run.date / subject.run.id
    charts = _draw(analysis, folder)
    files = [*charts, *_write_files(bucket, analysis, charts, folder)]
    _publish(bucket, subject, files)
    (settings().reports / "index.html").write_text(render_index(summaries_below(settings().reports), bucket))
    _publish_index(bucket)
    create_markdown_artifact(
        markdown(analysis, folder),
        key="confidence-report",
        description=f"Report {subject.run.date} {subject.run.id}",
    )
    return analysis.summary


def _caption(analysis: Analysis) -> Caption:
    subject = analysis.subject
    return Caption(
        run=subject.run.id,
        date=subject.run.date,
        dataset=subject.dataset.source,
        synthetic=subject.dataset.synthetic,
        threshold=subject.threshold,
        model_version=subject.model_version,
        provisional=analysis.summary.provisional,
    )


def _draw(analysis: Analysis, folder: Path) -> list[Path]:
    """The charts, as files in the folder."""
    subject, summary, caption = analysis.subject, analysis.summary, _caption(analysis)
    files = draw_all(analysis.table, subject.classes, caption, folder)
    files.append(save(trend(_trend_table(analysis.nights), caption), folder / "trend.png"))
    if summary.drift is not None:
        histograms = histogram(analysis.baseline["confidence"].to_numpy()), histogram(analysis.confidence)
        drawn = drift_of_confidence(*histograms, summary.drift, caption)
        files.append(save(drawn, folder / "drift.png"))
    return files


def _write_files(bucket: str, analysis: Analysis, charts: list[Path], folder: Path) -> list[Path]:
    """Pages, tables and the summary, as files in the folder. charts: those that the page shows."""
    subject, summary = analysis.subject, analysis.summary
    sheets = interesting(analysis.table)
    tiles = [tile for sheet in sheets.values() for tile in sheet]
    images = _thumbnails(bucket, [tile.key for tile in tiles], THUMBNAIL_SIDE, SMALL_BYTES)
    drawn = {file.stem: file.read_bytes() for file in charts}
    points = scatter_points(analysis.table, subject.classes, _caption(analysis), LINKED_POINTS)
    left_out = left_out_files(bucket, subject.dataset)
    page = render(summary, subject, sheets, drawn, images, analysis.unmatched, analysis.quarantined, points, left_out)
    needing = rows_to_look_at(subject.results, set(summary.missing_captures))[:ROWS]
    shown = [*(tile.inference_id for tile in tiles), *(row.inference_id for row in needing)]
    linked = {*shown, *(point.inference_id for point in points)}
    keys = sorted({row.key for row in subject.results if row.inference_id in linked and row.execution_arn})
    return [
        _text(folder / "report.html", page),
        _text(
            folder / "executions.html",
            render_executions(
                subject,
                executions_of(subject, shown),
                [*shown, *(point.inference_id for point in points)],
                _thumbnails(bucket, keys, STORY_SIDE, STORY_BYTES),
            ),
        ),
        _lines(folder / "quarantine.jsonl", analysis.quarantined),
        _lines(folder / "reconciliation.jsonl", analysis.unmatched),
        _parquet(folder / "inferences.parquet", analysis.inferences),
        _text(folder / "summary.json", json.dumps(summary.to_json(), indent=2) + "\n"),
    ]


def _thumbnails(bucket: str, keys: Sequence[str], side: int, small_bytes: int) -> dict[str, bytes]:
    """Pictures for a page by their keys; without those that are gone from the bucket, or can't be decoded."""

    def read(key: str) -> bytes | None:
        content = storage.get_image(bucket, key)
        return thumbnail(content, side, small_bytes) if content else None

    with ThreadPoolExecutor(storage.PARALLEL_REQUESTS) as threads:
        return {key: small for key, small in zip(keys, threads.map(read, keys), strict=True) if small}


def _trend_table(nights: list[EvaluationSummary]) -> pd.DataFrame:
    columns = ["stopped", "accuracy", "coverage", "failed_share", "threshold", "model_version"]
    table = pd.DataFrame({name: [getattr(night, name) for night in nights] for name in columns})
    others = [not after.dataset.has_same_test_images(before.dataset) for before, after in pairwise(nights)]
    table["test_images"] = list(accumulate(others, initial=0))[: len(nights)]
    table["stopped"] = pd.to_datetime(table["stopped"], utc=True)
    return table.astype(dict.fromkeys(("accuracy", "coverage", "failed_share", "threshold"), float))


def markdown(analysis: Analysis, folder: Path) -> str:
    """The report as a Prefect artifact, with charts that Prefect draws itself. folder: where it is on this machine."""
    summary = analysis.summary
    key = f"{REPORTS_PREFIX}{summary.date}/{summary.run}/report.html"
    accuracy = "no accuracy" if summary.accuracy is None else f"accuracy {summary.accuracy:.1%}"
    lines = [
        f"# Confidence report {summary.date}",
        "",
        headline(summary),
        "",
        *(f"> {reason}\n" for reason in to_look_at(summary)),
        f"Model {summary.model_version}: {accuracy} of {summary.labelled} labelled images; of "
        f"{summary.captured} captured, {summary.above_threshold} at or above the threshold "
        f"{summary.threshold:g}, {summary.below_threshold} below it and {summary.not_a_class} of no class.",
        "",
        *(
            [f"{certificate_sentence(summary.review.certificate)}\n"]
            if summary.review and summary.review.certificate
            else []
        ),
        *counts_table(summary.evaluation),
        *_bars(analysis.confidence, summary.threshold),
        *_nights_lines(analysis.nights),
        f"[The report]({storage.web_address(summary.bucket, key)}) with its charts: "
        f"`s3://{summary.bucket}/{key}`, and `{folder}` on the machine that made it. "
        f"[All reports]({storage.web_address(summary.bucket, INDEX_KEY)})",
    ]
    if summary.dataset.synthetic:
        lines.insert(2, "> **Synthetic data**: the images were drawn by the project.\n")
    if summary.provisional:
        lines.insert(2, f"> **Provisional**: {len(summary.missing_captures)} capture records are missing.\n")
    return "\n".join(lines)


def _bars(confidence: np.ndarray, threshold: float) -> list[str]:
    """A table of inferences by confidence with bars of text, which every version of Prefect's UI shows."""
    if not len(confidence):
        return []
    low = min(int(confidence.min() * BARS) / BARS, 1 - 1 / BARS)
    counts, edges = np.histogram(confidence, bins=BARS, range=(low, 1))
    longest = max(counts)
    rows = [
        f"| {first:.2f} to {last:.2f} | {count} | {'█' * math.ceil(BAR * count / longest)} |"
        for first, last, count in zip(edges, edges[1:], counts, strict=False)
    ]
    return [f"| confidence (threshold {threshold:g}) | inferences | |", "|---|---:|---|", *rows, ""]


def _nights_lines(nights: list[EvaluationSummary]) -> list[str]:
    """Accuracy and coverage of the last evaluations of the model and test images that the last one is of."""
    known = [
        night
        for night in nights
        if night.accuracy is not None and night.coverage is not None and are_comparable(night, nights[-1])
    ]
    if len(known) < 2:
        return []
    return [
        "```mermaid",
        PALETTE,
        "xychart-beta",
        f'    title "The last evaluations of {known[-1].model_version}: accuracy (blue) and coverage (orange)"',
        f"    x-axis [{', '.join(str(number) for number in range(1 - len(known), 1))}]",
        '    y-axis "share" 0 --> 1',
        *(
            f"    line [{', '.join(f'{getattr(night, name):.3f}' for night in known)}]"
            for name in ("accuracy", "coverage")
        ),
        "```",
        "",
    ]


def _text(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def _lines(path: Path, rows: Iterable[object]) -> Path:
    return _text(path, "".join(json.dumps(msgspec.to_builtins(row)) + "\n" for row in rows))


def _parquet(path: Path, table: pd.DataFrame) -> Path:
    """The report's inferences, for questions of one's own; without pandas' own notes, which name its version."""
    arrow = pa.Table.from_pandas(table, preserve_index=False).replace_schema_metadata()
    pq.write_table(arrow, path, compression="zstd")
    return path


def _publish(bucket: str, subject: Subject, files: list[Path]) -> None:
    """Copies the files to the bucket, and an evaluation's up to the day's folder too, which holds the newest report."""
    day = f"{REPORTS_PREFIX}{subject.run.date}/"
    objects = {f"{day}{subject.run.id}/{file.name}": file.read_bytes() for file in files}
    if not subject.is_window:
        for file in files:
            shutil.copyfile(file, file.parent.parent / file.name)
            objects[f"{day}{file.name}"] = file.read_bytes()
    storage.upload_changed(bucket, day, objects)


def _publish_index(bucket: str) -> None:
    """Writes the index of the latest reports to the bucket, for whoever has not the machine that made them."""
    times = {
        key: time
        for key, time in storage.list_times(bucket, REPORTS_PREFIX).items()
        if key.endswith("/summary.json") and key.count("/") == SUMMARY_DEPTH
    }
    latest = sorted(times, key=lambda key: times[key])[-INDEXED:]
    read = ((key, content) for key in latest if (content := storage.get(bucket, key)))

    def link(report: IndexedReport) -> str:
        return storage.web_address(bucket, f"{REPORTS_PREFIX}{report.date}/{report.run}/report.html")

    storage.put(bucket, INDEX_KEY, render_index(read, bucket, link).encode())
