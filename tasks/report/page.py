"""report.html: one file with everything in it, for a browser without a network, for a phone and for paper.

index.html leads to all of them.
"""

import base64
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from tasks.capture.window import Quarantined
from tasks.data.dataset import LeftOut
from tasks.evaluation.results import Result
from tasks.evaluation.summary import PASSED
from tasks.records import RecordError
from tasks.report.charts import SIZE, Point, shortened
from tasks.report.history import History
from tasks.report.metrics import is_outlier
from tasks.report.reconciliation import KINDS
from tasks.report.subject import Subject
from tasks.report.summary import IndexedReport, ReportSummary, Unmatched, are_comparable, headline, to_look_at
from tasks.review.certificate import sentence as certificate_sentence
from tasks.review.summary import sentence as review_sentence

# Images of each contact sheet, and rows of the table, that a person still looks at.
TILES = 12
# Characters of a file's name on a contact sheet.
NAME_CHARACTERS = 28
ROWS = 500
# The chart whose points lead to their images' stories, and how many of them do.
SCATTER, LINKED_POINTS = "confidence_scatter", 1000
# Lines of the reconciliation and of the quarantine; the files have them all.
LINES = 50
# Newest reports of which the index shows trends and what to look at, how many of the latter, and a trend's pixels.
RECENT, LOOK_FIRST, TREND_SIZE = 30, 5, (160, 36)

# What names a report's folder.
DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,199}")
TEMPLATES = Environment(
    # Nothing from a record reaches the page unescaped.
    autoescape=True,
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
# Sorts a table by a column.
SCRIPT = Markup((Path(__file__).parent / "templates" / "report.js").read_text())  # noqa: S704  # it is this project's


def policy(script: str | None = None) -> str:
    """Returns the Content-Security-Policy of a page, which runs no script but this one and loads nothing.

    Not even a link that is a script: https://developer.mozilla.org/en-US/docs/Web/HTTP/Guides/CSP
    """
    allowed = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    if script is None:
        return allowed
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"{allowed}; script-src 'sha256-{digest}'"


@dataclass(frozen=True)
class Tile:
    """An image of a contact sheet."""

    key: str
    label: str | None
    predicted_class: str
    confidence: float
    inference_id: str


def render(
    summary: ReportSummary,
    subject: Subject,
    sheets: Mapping[str, list[Tile]],
    charts: Mapping[str, bytes],
    images: Mapping[str, bytes],
    unmatched: Sequence[Unmatched],
    quarantined: Sequence[Quarantined],
    points: Sequence[Point] = (),
    left_out: Sequence[LeftOut] = (),
) -> str:
    """The page. sheets: those of `interesting`. charts: PNG files by name. images: content by key, of those tiles.
    points: of the chart SCATTER, each a link to its image's story.

    unmatched: lines of the reconciliation. quarantined: lines that are no records. left_out: files of one's own images
    that could not be used.
    """
    needing = rows_to_look_at(subject.results, set(summary.missing_captures))
    executed = {row.inference_id: row for row in subject.results if row.execution_arn}
    tiles = [
        (title, [_drawn(tile, images.get(tile.key), tile.inference_id in executed) for tile in rows])
        for title, rows in sheets.items()
    ]
    return TEMPLATES.get_template("report.html.j2").render(
        script=SCRIPT,
        policy=policy(SCRIPT),
        summary=summary,
        headline=headline(summary),
        good=not to_look_at(summary) if summary.window else summary.outcome == PASSED,
        to_look_at=to_look_at(summary),
        numbers=_numbers(summary),
        of_threshold=_threshold_sentences(summary),
        of_review=_review_sentences(summary),
        chart_shape=f"{SIZE[0]:g} / {SIZE[1]:g}",
        alert_level=summary.calibration.level,
        charts=[
            (
                name.replace("_", " "),
                base64.b64encode(content).decode(),
                [(point, executed[point.inference_id]) for point in points if point.inference_id in executed]
                if name == SCATTER
                else [],
            )
            for name, content in charts.items()
        ],
        sheets=tiles,
        rows=needing[:ROWS],
        needing=len(needing),
        kinds=KINDS,
        unmatched=[line for line in unmatched if line.kind != "retried_attempt"][:LINES],
        quarantined=quarantined[:LINES],
        left_out=left_out[:LINES],
        changes=summary.changes,
        executed=executed,
        endpoint=subject.endpoint,
        started=subject.started,
        stopped=subject.stopped,
    )


def render_executions(
    subject: Subject,
    executions: list[History],
    shown: Sequence[str] = (),
    images: Mapping[str, bytes] = MappingProxyType({}),
) -> str:
    """The page that the report's images lead to: what came of each, and every state of its execution.

    executions: those whose history was read. shown: inference ids of the images that the report leads here from.
    images: their pictures by key, as far as they are there.
    """
    by_id = {row.inference_id: row for row in subject.results}
    read = {each.inference_id for each in executions}
    return TEMPLATES.get_template("executions.html.j2").render(
        policy=policy(),
        run=subject.run,
        executions=executions,
        results=by_id,
        pictures={key: _data_uri(image) for key, image in images.items()},
        others=[by_id[name] for name in dict.fromkeys(shown) if name in by_id and name not in read],
    )


def render_index(
    summaries: Iterable[tuple[str, bytes]], bucket: str, link: Callable[[IndexedReport], str] | None = None
) -> str:
    """A page over the reports of one installation, the latest first.

    summaries: the content of each summary.json by its path or key, which ends with DATE/RUN/summary.json. link: where a
    report is; by default beside the page. Left out is what is no summary of a report, or one of another installation's:
    of another bucket.
    """
    reports = []
    for name, content in summaries:
        try:
            report = IndexedReport.parse(content, name)
        except RecordError:
            continue
        named = DATE.fullmatch(report.date) and RUN.fullmatch(report.run)  # they become a link
        if named and name.split("/")[-3:-1] == [report.date, report.run] and report.bucket in (None, bucket):
            reports.append(report)
    reports.sort(key=lambda report: (report.stopped or report.date, report.run), reverse=True)
    rows = [(report, link(report) if link else f"{report.date}/{report.run}/report.html") for report in reports]
    first = [(each, where) for each, where in rows[:RECENT] if to_look_at(each)]
    return TEMPLATES.get_template("index.html.j2").render(
        policy=policy(),
        rows=rows,
        bucket=bucket,
        first=first[:LOOK_FIRST],
        trends=list(_trends(reports)),
        headline=headline,
        to_look_at=to_look_at,
    )


@dataclass(frozen=True)
class Trend:
    """Accuracies of a model version on one set of test images, the oldest first.

    source: what the images are of. points: the same as accuracies, in an SVG of TREND_SIZE.
    """

    model_version: str
    source: str
    accuracies: list[float]
    points: str


def _trends(reports: Sequence[IndexedReport]) -> Iterator[Trend]:
    """Those that were reported on last first; each of two accuracies at least.

    A window's accuracy is that of evaluations that have reports of their own, maybe of several models.
    """
    found: list[tuple[IndexedReport, list[float]]] = []
    for report in reports:  # the latest first
        if report.accuracy is None or not report.model_version or report.window:
            continue
        alike = next((values for newest, values in found if are_comparable(newest, report)), None)
        if alike is None:
            found.append((report, [report.accuracy]))
        else:
            alike.append(report.accuracy)
    width, height = TREND_SIZE
    for newest, newest_first in found:
        values = newest_first[:RECENT][::-1]
        if len(values) < 2:
            continue
        # At least a tenth from bottom to top, so that a hundredth is no cliff.
        top = max(values)
        bottom = min(*values, top - 0.1)
        places = [
            (2 + index * (width - 4) / (len(values) - 1), 2 + (top - value) / (top - bottom) * (height - 4))
            for index, value in enumerate(values)
        ]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        yield Trend(newest.model_version, newest.dataset.source, values, points)


def summaries_below(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Path and content of every summary that can be read below a folder of reports."""
    for file in folder.glob("*/*/summary.json"):
        with suppress(OSError):
            yield file.as_posix(), file.read_bytes()


def interesting(table: pd.DataFrame) -> dict[str, list[Tile]]:
    """The contact sheets by title: wrong images with the highest confidence, right ones with the lowest, and those of
    no class.
    """
    known = table["label"].notna()
    wrong = table[known & ~table["correct"]].sort_values(["confidence", "key"], ascending=[False, True]).head(TILES)
    unsure = table[known & table["correct"]].sort_values(["confidence", "key"]).head(TILES)
    strange = table[is_outlier(table) & table["key"].notna()]
    strange = strange.sort_values(["outlier_score", "key"], ascending=[False, True])
    sheets = {"Wrong, and most confident": _tiles(wrong), "Right, and least confident": _tiles(unsure)}
    if len(strange):
        sheets["Not a class, and farthest"] = _tiles(strange.head(TILES))
    return sheets


def _tiles(rows: pd.DataFrame) -> list[Tile]:
    columns = (rows[name].tolist() for name in ("key", "label", "predicted_class", "confidence", "inference_id"))
    return [
        Tile(key, label if isinstance(label, str) else None, *rest) for key, label, *rest in zip(*columns, strict=True)
    ]


def rows_to_look_at(results: list[Result], missing: set[str]) -> list[Result]:
    """Results that failed, are wrong, were not submitted or not captured; failed ones first."""
    order = {"failed": 0, "not_submitted": 1, "accepted": 2, "not_a_class": 3, "below_threshold": 4}
    chosen = [
        row
        for row in results
        if row.status in ("failed", "not_submitted")
        or (row.label is not None and row.predicted_class != row.label)
        or row.inference_id in missing
    ]
    return sorted(chosen, key=lambda row: (order[row.status], -(row.confidence or 0), row.key))


def _drawn(tile: Tile, image: bytes | None, executed: bool) -> dict[str, object]:
    """What the template needs of a tile."""
    return {
        "tile": tile,
        "name": shortened(tile.key.rpartition("/")[2], NAME_CHARACTERS),
        "image": _data_uri(image) if image else None,
        "link": f"executions.html#{tile.inference_id}" if executed else None,
    }


def _data_uri(image: bytes) -> str:
    """A PNG or JPEG as the source of an <img>."""
    kind = "png" if image.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"


def _threshold_sentences(summary: ReportSummary) -> list[str]:
    """What is known of the accuracy of what the threshold accepts."""
    shown = summary.accepted_accuracy_shown
    n, target, level = summary.accepted_labelled, f"{shown.target:g}", f"{shown.level:.0%}"
    if shown.lower_bound is None:
        return ["No accepted image has a label, which shows nothing about the accuracy of what is accepted."]
    wrong = "none of them wrong" if shown.errors == 0 else f"{shown.errors:,} of them wrong"
    first = (
        f"{n:,} accepted images have a label, {wrong}: with {level} confidence the accuracy of what is accepted is "
        f"{shown.lower_bound:.3f} or more (exact, one-sided)."
    )
    if shown.missing_labels:
        second = (
            f"That it is {target} takes {shown.labels_needed:,} labels with as many errors: "
            f"{shown.missing_labels:,} are missing."
        )
    else:
        second = f"That shows an accuracy of {target}."
    third = (
        "The threshold that a model recommends is shown for networks that were each fitted without a part of the "
        "training images, by what they answered about that part, not for what serves; what is said here is of the "
        "model that served."
    )
    return [first, second, third]


def _review_sentences(summary: ReportSummary) -> list[str]:
    """What people's answers show, and how many there are; nothing if no image was ever queued."""
    if summary.review is None:
        return []
    certificate = summary.review.certificate
    shown = [certificate_sentence(certificate)] if certificate else []
    return [*shown, review_sentence(summary.review)]


def _numbers(summary: ReportSummary) -> list[tuple[str, str, str]]:
    """Name, value and detail of each number that matters."""

    def share(value: float | None) -> str:
        return "-" if value is None else f"{value:.1%}"

    low, high = summary.accuracy_interval_95
    counts = summary.evaluation
    calibration = summary.calibration
    error = "-" if calibration.error is None else f"{calibration.error:.3f}"
    chance = "" if calibration.p is None else f"p = {calibration.p:.2g} if calibrated, n = {summary.labelled:,}"
    expected = summary.estimated_accuracy
    of_labelled = [
        ("Accuracy", share(summary.accuracy), f"{low:.1%} to {high:.1%}, n = {summary.labelled:,}"),
        (
            "Accepted accuracy",
            share(summary.accepted_accuracy),
            f"of {summary.accepted_labelled:,} accepted with a label",
        ),
        ("Calibration error", error, chance),
    ]
    return [
        *(of_labelled if summary.labelled or not summary.captured else [("Labels", "none", "so no accuracy is known")]),
        (
            "Coverage",
            share(summary.coverage),
            f"{summary.above_threshold:,} accepted of {summary.captured:,} captured"
            if summary.window
            else f"{counts.accepted:,} accepted of {counts.submitted:,} submitted",
        ),
        ("Not a class", f"{summary.not_a_class:,}", "of those captured: too far from the training images"),
        (
            "Expected accuracy",
            share(expected.value if expected else None),
            "from confidence alone, if all were of a class",
        ),
        ("Failed", f"{counts.failed:,}", f"of {counts.submitted:,} submitted, {counts.not_submitted:,} not"),
        (
            "Images captured",
            f"{summary.captured:,}",
            f"{summary.inferences:,} inferences, {summary.expected_captures:,} expected",
        ),
        ("Model", str(summary.model_version), "version that answered"),
    ]
