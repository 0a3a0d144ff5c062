"""The charts of a report: pure functions of a table, drawn with matplotlib's object interface (no global state).

Classes differ by colour and marker (Okabe-Ito), wrong predictions carry a cross, so the charts read in grey too.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.dates as mdates
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

from tasks.report.drift import FINE, Drift
from tasks.report.metrics import (
    confusion,
    coverage_curve,
    is_outlier,
    offered_confidence,
    reliability,
    threshold_sweep,
)

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
HATCHES = ("", "//", "..", "xx", "\\\\", "++", "oo", "--")
WRONG = "#000000"
LIMIT = "#D55E00"
# Points that a scatter still shows one by one; more are drawn as density.
POINTS = 5_000
CROSSES = 400
STEPS = 2_000
# As wide as half of the report's page or a phone shows it, so that text is read at the size that it is drawn in.
SIZE = (6.4, 5.2)
DPI = 160
# Classes that a legend names; of more, those that were predicted most, and the rest as one.
NAMED = 8
# Classes whose counts a confusion matrix writes down, and whose names it shows.
COUNTED, TICKS = 12, 20
# Share of the width that the name of a model version takes.
VERSION_SHARE = 0.07
NOTE_CHARACTERS, DATASET_CHARACTERS = 88, 48


@dataclass(frozen=True)
class Caption:
    """What every chart says of its data."""

    run: str
    date: str
    dataset: str
    synthetic: bool
    threshold: float
    model_version: str
    provisional: bool


Chart = Callable[[pd.DataFrame, tuple[str, ...], Caption], Figure]


@dataclass(frozen=True)
class Point:
    """Where a chart shows an inference: shares of the picture's width from the left and of its height from the top."""

    inference_id: str
    x: float
    y: float


def draw_all(table: pd.DataFrame, classes: tuple[str, ...], caption: Caption, folder: Path) -> list[Path]:
    """Writes the charts of one evaluation as PNG files and returns their paths.

    table: columns time (UTC), confidence in [0, 1], outlier_score (null if the model tells none), predicted_class,
    label (null if unknown) and correct (bool), one row an inference. Charts of accuracy show the labelled ones, and
    there are none of them if no inference has a label.
    """
    labelled = _labelled(table)
    drawn = [name for name in CHARTS if name not in OF_LABELLED or len(labelled) or not len(table)]
    shown = {name: labelled if name in OF_LABELLED else table for name in drawn}
    return [save(CHARTS[name](shown[name], classes, caption), folder / f"{name}.png") for name in drawn]


def save(figure: Figure, path: Path) -> Path:
    """Writes a PNG file; without metadata the same figure gives the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
    return path


def confidence_scatter(table: pd.DataFrame, classes: tuple[str, ...], caption: Caption) -> Figure:
    """Confidence of each inference over time, with the threshold as a line; a density above POINTS inferences."""
    figure, axes = _figure("Confidence of each inference", caption, len(table))
    many = len(table) > POINTS
    if many:
        _density(figure, axes, table)
    else:
        _points(axes, table, classes)
    outliers = table[is_outlier(table)]
    if len(outliers) and not many:
        axes.scatter(
            outliers["time"],
            outliers["confidence"],
            s=150,
            facecolors="none",
            edgecolors=LIMIT,
            linewidths=1.2,
            label=f"not a class (n = {len(outliers):,})",
        )
    labelled = _labelled(table)
    if len(labelled):
        wrong = labelled[~labelled["correct"]]
        n_wrong = len(wrong)
        if len(wrong) > CROSSES:  # more would hide what they mark
            wrong = wrong.iloc[:: len(wrong) // CROSSES + 1]
        axes.scatter(
            wrong["time"],
            wrong["confidence"],
            s=24 if many else 110,
            c=WRONG,
            marker="x",
            linewidths=1.6,
            label=_wrong_label(n_wrong, len(wrong)),
        )
    _threshold_line(axes.axhline, caption)
    _time_axis(axes, table["time"])
    axes.set_xlabel("time of the inference (UTC)")
    axes.set_ylabel("confidence of the predicted class")
    low = min(table["confidence"].min() if len(table) else 1.0, caption.threshold, 1 / len(classes))
    axes.set_ylim(low - 0.03, 1.03)
    _legend(axes)
    return figure


def scatter_points(table: pd.DataFrame, classes: tuple[str, ...], caption: Caption, most: int) -> list[Point]:
    """Where confidence_scatter shows inferences: wrong ones first, then by confidence, the lowest first.

    most: how many at most. None if it shows a density.
    """
    if not 0 < len(table) <= POINTS:
        return []
    figure = confidence_scatter(table, classes, caption)
    figure.set_dpi(DPI)
    figure.draw_without_rendering()  # this is when the layout is made
    axes = figure.axes[0]
    wrong = table["label"].notna() & ~table["correct"]
    chosen = table.assign(right=~wrong).sort_values(["right", "confidence", "inference_id"]).head(most)
    moments = mdates.date2num(chosen["time"].dt.tz_localize(None))
    pixels = axes.transData.transform(np.column_stack([moments, chosen["confidence"]]))
    places = figure.transFigure.inverted().transform(pixels)
    return [Point(name, float(x), float(1 - y)) for name, (x, y) in zip(chosen["inference_id"], places, strict=True)]


def threshold_bar(table: pd.DataFrame, classes: tuple[str, ...], caption: Caption) -> Figure:
    """Inferences at or above the threshold, below it and, if the model tells, of no class; by predicted class."""
    figure, axes = _figure("Inferences above and below the threshold", caption, len(table))
    outlier = is_outlier(table)
    above = (table["confidence"] >= caption.threshold) & ~outlier
    sides = {
        f"at or above {caption.threshold:g}\n(accepted)": above,
        f"below {caption.threshold:g}\n(not accepted)": ~above & ~outlier,
    }
    if table["outlier_score"].notna().any():
        sides["not a class\n(not accepted)"] = outlier
    base = np.zeros(len(sides))
    for (label, rows), colour, hatch in zip(_named(table, classes), COLOURS, HATCHES, strict=False):
        counts = np.array([(rows & side).sum() for side in sides.values()])
        axes.bar(
            list(sides),
            counts,
            bottom=base,
            width=0.55,
            color=colour,
            hatch=hatch,
            edgecolor="white",
            label=f"predicted {label}",
        )
        base += counts
    for position, side in enumerate(sides.values()):
        n, known = int(side.sum()), table["label"].notna()
        share = f" ({n / len(table):.0%})" if len(table) else ""
        wrong = f", {int((known & ~table['correct'] & side).sum()):,} wrong" if known.any() else ""
        axes.annotate(f"{n:,}{share}{wrong}", (position, n), xytext=(0, 5), textcoords="offset points", ha="center")
    axes.set_ylabel("inferences (count)")
    axes.set_ylim(0, max(base.max() * 1.15, 1))
    _legend(axes)
    return figure


def confidence_histogram(table: pd.DataFrame, classes: tuple[str, ...], caption: Caption) -> Figure:
    """How many inferences have which confidence, by predicted class."""
    figure, axes = _figure("Distribution of confidence", caption, len(table))
    edges = np.linspace(1 / len(classes) if len(classes) == 2 else 0, 1, 26)
    named = _named(table, classes)
    groups = [table.loc[rows, "confidence"] for _, rows in named]
    _, _, containers = axes.hist(
        groups,
        bins=edges.tolist(),
        stacked=True,
        color=COLOURS[: len(named)],
        edgecolor="white",
        label=[f"predicted {label} (n = {len(group):,})" for (label, _), group in zip(named, groups, strict=True)],
    )
    for container, hatch in zip(containers if isinstance(containers, list) else [containers], HATCHES, strict=False):
        for patch in container:  # type: ignore[union-attr]
            patch.set_hatch(hatch)
    _threshold_line(axes.axvline, caption)
    axes.set_xlabel("confidence of the predicted class")
    axes.set_ylabel(f"inferences per bin of {edges[1] - edges[0]:.2f} (count)")
    axes.set_ylim(bottom=0)
    _legend(axes)
    return figure


def reliability_diagram(table: pd.DataFrame, classes: tuple[str, ...], caption: Caption) -> Figure:
    """Accuracy in each bin of confidence with its interval, beside what perfect calibration would give."""
    figure, axes = _figure("Is the confidence true?", caption, len(table))
    bins = reliability(table["confidence"].to_numpy(), table["correct"].to_numpy())
    low = min(1 / len(classes), *bins["low"], 1.0)
    axes.plot([low, 1], [low, 1], color="#777777", linestyle=":", label="perfectly calibrated")
    # Rounding may leave a bound on the wrong side of its value by the last bit.
    errors = np.abs([bins["accuracy"] - bins["accuracy_low"], bins["accuracy_high"] - bins["accuracy"]])
    axes.errorbar(
        bins["confidence"],
        bins["accuracy"],
        yerr=errors,
        fmt="o",
        color=COLOURS[0],
        capsize=3,
        label="accuracy in a bin, 95 % interval",
    )
    for row in bins.itertuples():
        axes.annotate(
            f"{row.n:,}",
            (row.confidence, row.accuracy_high),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )
    _threshold_line(axes.axvline, caption)
    axes.set_xlabel("mean confidence in the bin (above each: n)")
    axes.set_ylabel("accuracy (share)")
    axes.set_xlim(low - 0.02, 1.02)
    axes.set_ylim(-0.03, 1.1)
    _legend(axes)
    return figure


def accuracy_against_coverage(table: pd.DataFrame, classes: tuple[str, ...], caption: Caption) -> Figure:
    """What a higher threshold buys: accuracy of what is accepted, over the share that is."""
    figure, axes = _figure("Accuracy against coverage", caption, len(table))
    curve = coverage_curve(offered_confidence(table), table["correct"].to_numpy())
    curve = curve[curve["threshold"] >= 0]  # what is of no class is not accepted at any
    # As many points as can be told apart; the first and the last are among them.
    shown = curve.iloc[np.unique(np.linspace(0, len(curve) - 1, STEPS).astype(int))] if len(curve) else curve
    axes.step(shown["coverage"], shown["accuracy"], where="post", color=COLOURS[0], label="accepted accuracy")
    accepted = curve[curve["threshold"] >= caption.threshold]
    if len(accepted):
        coverage, accuracy = float(accepted["coverage"].iloc[-1]), float(accepted["accuracy"].iloc[-1])
        label = f"threshold {caption.threshold:g}: {accuracy:.1%} of {coverage:.1%}"
        axes.plot([coverage], [accuracy], "D", color=LIMIT, markersize=9, label=label)
    axes.set_xlabel("coverage (share of inferences that is accepted)")
    axes.set_ylabel("accuracy of what is accepted (share)")
    axes.set_xlim(0, 1.02)
    axes.set_ylim(min(curve["accuracy"].min() if len(curve) else 1.0, 0.9) - 0.02, 1.01)
    _legend(axes)
    return figure


def threshold_choices(table: pd.DataFrame, classes: tuple[str, ...], caption: Caption) -> Figure:
    """What each threshold would accept, and how many errors it would let through."""
    figure, axes = _figure("What other thresholds would do", caption, len(table))
    thresholds = np.linspace(1 / len(classes), 1, 201)
    sweep = threshold_sweep(offered_confidence(table), table["correct"].to_numpy(), thresholds)
    axes.plot(sweep["threshold"], sweep["coverage"], color=COLOURS[0], label="share accepted")
    axes.plot(sweep["threshold"], sweep["accuracy"], color=COLOURS[2], linestyle="-.", label="accuracy of these")
    _threshold_line(axes.axvline, caption)
    axes.set_xlabel("threshold (confidence)")
    axes.set_ylabel("share")
    axes.set_xlim(1 / len(classes) - 0.02, 1.02)
    axes.set_ylim(-0.02, 1.04)
    errors = axes.twinx()
    errors.plot(sweep["threshold"], sweep["errors_per_1000"], color=COLOURS[3], linestyle=":", linewidth=2)
    errors.set_ylabel("accepted errors per 1,000 inferences (dotted)")
    errors.set_ylim(bottom=0)
    errors.spines["top"].set_visible(False)
    axes.plot([], [], color=COLOURS[3], linestyle=":", linewidth=2, label="errors per 1,000 (right)")
    _legend(axes)
    return figure


def confusion_at_threshold(table: pd.DataFrame, classes: tuple[str, ...], caption: Caption) -> Figure:
    """Labels against predictions, of what is accepted and of what is not."""
    figure, axes = _figure("Which classes are confused", caption, len(table))
    axes.set_axis_off()
    if table.empty:
        return figure
    above = offered_confidence(table) >= caption.threshold
    every = max(1, -(-len(classes) // TICKS))
    ticks, names = range(0, len(classes), every), [shortened(name, 16) for name in classes[::every]]
    size = 10 if len(classes) <= 4 else 8 if len(classes) <= COUNTED else 6
    for position, (side, title) in enumerate(((above, "accepted"), (~above, "not accepted"))):
        box = axes.inset_axes((0.52 * position, 0, 0.48, 0.92))
        counts = confusion(table.loc[side, "label"], table.loc[side, "predicted_class"], classes)
        box.imshow(counts, cmap="Blues", vmin=0, vmax=max(int(counts.to_numpy().max()), 1) * 1.6, aspect="auto")
        for (row, column), count in np.ndenumerate(counts.to_numpy()) if len(classes) <= COUNTED else ():
            weight = "bold" if row == column else "normal"
            box.text(column, row, f"{count:,}", ha="center", va="center", fontsize=size, fontweight=weight)
        box.set_title(f"{title} (n = {int(side.sum()):,})", fontsize=10)
        box.set_xticks(ticks, names, rotation=90 if len(classes) > 2 else 0, fontsize=size)
        box.set_yticks(ticks, names if position == 0 else [], fontsize=size)
        box.set_xlabel("predicted class (count)")
        if position == 0:
            box.set_ylabel("label")
    return figure


def drift_of_confidence(baseline: np.ndarray, current: np.ndarray, found: Drift, caption: Caption) -> Figure:
    """Distribution functions of two histograms of confidence, with what chance would do."""
    figure, axes = _figure("Has the confidence drifted?", caption, int(current.sum()))
    edges = np.arange(1, FINE + 1) / FINE
    for counts, name, colour, style in (
        (baseline, "baseline", COLOURS[1], "--"),
        (current, "this report", COLOURS[0], "-"),
    ):
        share = counts.cumsum() / counts.sum()
        axes.step(edges, share, color=colour, linestyle=style, label=f"{name} (n = {int(counts.sum()):,})")
    for name, value, limit, p in (
        ("PSI", found.psi, found.psi_by_chance, found.psi_p),
        ("KS", found.ks, found.ks_by_chance, found.ks_p),
    ):
        axes.plot([], [], " ", label=f"{name} {value:.3f}, p = {p:.2g}\n(chance: to {limit:.3f} in {found.level:.0%})")
    axes.set_xlabel("confidence of the predicted class")
    axes.set_ylabel("share of inferences up to it")
    _legend(axes)
    return figure


def trend(nights: pd.DataFrame, caption: Caption) -> Figure:
    """nights: columns stopped (UTC), accuracy, coverage, failed_share, threshold, model_version, test_images (a number
    for each set of them); one row each. Lines end where model or test images change.
    """
    figure, axes = _figure("The last nights", caption, len(nights))
    styles = {
        "accuracy": (COLOURS[0], "o", "-"),
        "coverage": (COLOURS[2], "s", "-."),
        "failed_share": (LIMIT, "^", ":"),
    }
    other_model, other_images = (_changes(nights[name]) for name in ("model_version", "test_images"))
    alike = [rows for _, rows in nights.groupby((other_model | other_images).cumsum())]
    for name, (colour, marker, line) in styles.items():
        for number, rows in enumerate(alike or [nights]):
            label = "_none" if number else name.replace("_", " ")
            axes.plot(rows["stopped"], rows[name], color=colour, marker=marker, linestyle=line, label=label)
    style: dict[str, Any] = {"color": "#555555", "linewidth": 1.2, "linestyle": "--", "label": "threshold"}
    if len(nights) == 1:  # a line from a point to itself is not seen
        axes.axhline(nights["threshold"].iloc[0], **style)
    else:
        axes.step(nights["stopped"], nights["threshold"], where="post", **style)
    moved = nights[_changes(nights["threshold"]) & nights["threshold"].shift().notna()]
    axes.plot(
        moved["stopped"], moved["threshold"], "D", color="#555555", markersize=7, markerfacecolor="white",
        label=f"threshold changed (n = {len(moved)})" if len(moved) else "_none",
    )  # fmt: skip
    for number, moment in enumerate(nights["stopped"][other_images]):
        label = "_none" if number else f"test images changed (n = {other_images.sum()})"
        axes.axvline(mdates.date2num(moment), color="#999999", linewidth=1.6, linestyle=":", label=label)
    if len(alike) > 1:
        axes.plot([], [], " ", label="lines end where model or images change")
    changed = nights[other_model | (nights.index == nights.index.min())]
    span = max(mdates.date2num(nights["stopped"].max()) - mdates.date2num(nights["stopped"].min()), 1e-9)
    named = -np.inf
    for row in changed.itertuples():
        moment = mdates.date2num(row.stopped)
        axes.axvline(moment, color="#999999", linewidth=0.8)
        if moment - named > VERSION_SHARE * span:  # the names of versions that change more often run into each other
            named = moment
            axes.annotate(str(row.model_version), (moment, 1.03), fontsize=8, ha="left", annotation_clip=False)
    _time_axis(axes, nights["stopped"])
    axes.set_xlabel("end of the evaluation (UTC)")
    axes.set_ylabel("share of images")
    axes.set_ylim(-0.03, 1.08)
    _legend(axes)
    return figure


CHARTS: dict[str, Chart] = {
    "confidence_scatter": confidence_scatter,
    "threshold_bar": threshold_bar,
    "confidence_histogram": confidence_histogram,
    "reliability_diagram": reliability_diagram,
    "accuracy_against_coverage": accuracy_against_coverage,
    "threshold_choices": threshold_choices,
    "confusion": confusion_at_threshold,
}


OF_LABELLED = {"reliability_diagram", "accuracy_against_coverage", "threshold_choices", "confusion"}


def _labelled(table: pd.DataFrame) -> pd.DataFrame:
    known = table["label"].notna()
    return table if known.all() else table[known]


def _points(axes: Axes, table: pd.DataFrame, classes: tuple[str, ...]) -> None:
    """Each inference by itself, in the colour and shape of its predicted class."""
    for (label, of_class), colour, marker in zip(_named(table, classes), COLOURS, MARKERS, strict=False):
        rows = table[of_class]
        axes.scatter(
            rows["time"],
            rows["confidence"],
            s=34,
            c=colour,
            marker=marker,
            alpha=0.75,
            edgecolors="white",
            linewidths=0.4,
            label=f"predicted {label} (n = {len(rows):,})",
        )


def _named(table: pd.DataFrame, classes: tuple[str, ...]) -> list[tuple[str, "pd.Series[bool]"]]:
    """What a legend tells apart, at most NAMED: each class, or those that were predicted most and the others as one."""
    predicted = table["predicted_class"]
    if len(classes) <= NAMED:
        return [(label, predicted == label) for label in classes]
    counts = predicted.value_counts()
    most = sorted(classes, key=lambda label: (-int(counts.get(label, 0)), classes.index(label)))[: NAMED - 1]
    return [
        *((label, predicted == label) for label in most),
        (f"{len(classes) - len(most)} others", ~predicted.isin(most)),
    ]


def _density(figure: Figure, axes: Axes, table: pd.DataFrame) -> None:
    """How many inferences there are at each time and confidence."""
    moments = mdates.date2num(table["time"].dt.tz_localize(None))
    counts, x, y = np.histogram2d(moments, table["confidence"], bins=(180, 100))
    shown = np.ma.masked_equal(counts.T, 0)
    mesh = axes.pcolormesh(x, y, shown, cmap="cividis", norm=LogNorm(vmin=1, vmax=max(counts.max(), 2)))
    figure.colorbar(mesh, ax=axes, location="right", shrink=0.6, label="inferences (count)")


def _wrong_label(wrong: int, shown: int) -> str:
    return f"wrong (n = {wrong:,})" + (f", {shown:,} shown" if shown < wrong else "")


def _changes(column: "pd.Series[Any]") -> "pd.Series[bool]":
    """Mask of the rows that differ from the one before; the first does not."""
    return (column != column.shift()) & (np.arange(len(column)) > 0)


def _time_axis(axes: Axes, times: "pd.Series[pd.Timestamp]") -> None:
    """A date axis; a single time is written out in the middle, where matplotlib would show a span that nobody meant."""
    if times.empty:
        axes.set_xticks([])
        return
    if times.min() == times.max():
        beside = pd.Timedelta(minutes=1)
        axes.set_xlim(mdates.date2num(times.min() - beside), mdates.date2num(times.max() + beside))
        axes.set_xticks([mdates.date2num(times.min())], [f"{times.min():%Y-%m-%d %H:%M:%S}"])
        return
    locator = AutoDateLocator(minticks=3, maxticks=5)  # more times of day than that run into each other
    axes.xaxis.set_major_locator(locator)
    # Seconds and minutes with the hour that they are of.
    formats = ["%Y", "%b", "%d", "%H:%M", "%H:%M", "%H:%M:%S"]
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator, formats=formats))


def _figure(title: str, caption: Caption, n: int) -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    notes = [
        f"run {caption.run} of {caption.date}",
        f"model {caption.model_version}",
        f"n = {n:,}",
        shortened(caption.dataset, DATASET_CHARACTERS),
    ]
    lines = _wrapped(notes)
    axes.set_title(title, loc="left", fontsize=13, fontweight="bold", pad=12 + 12 * len(lines))
    axes.annotate(
        "\n".join(lines),
        (0, 1),
        xycoords="axes fraction",
        xytext=(0, 6),
        textcoords="offset points",
        fontsize=8.5,
        color="#444444",
    )
    warnings = []
    if caption.synthetic:
        warnings.append("SYNTHETIC DATA: drawn by the project, not photographs")
    if caption.provisional:
        warnings.append("PROVISIONAL: capture records are missing")
    if warnings:
        box = {"facecolor": "#fff3cd", "edgecolor": "#8a6d00", "boxstyle": "round,pad=0.3"}
        figure.suptitle("\n".join(warnings), fontsize=8.5, bbox=box)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if n == 0:
        axes.text(0.5, 0.5, "no inferences", transform=axes.transAxes, ha="center", fontsize=13, color="#444444")
    return figure, axes


def _threshold_line(draw: object, caption: Caption) -> None:
    assert callable(draw)
    draw(caption.threshold, color=LIMIT, linestyle="--", linewidth=1.6, label=f"threshold {caption.threshold:g}")


def _wrapped(notes: list[str]) -> list[str]:
    """The notes in lines that a chart is wide enough for; none is broken."""
    lines = [notes[0]]
    for note in notes[1:]:
        longer = f"{lines[-1]}  ·  {note}"
        if len(longer) <= NOTE_CHARACTERS:
            lines[-1] = longer
        else:
            lines.append(note)
    return lines


def shortened(text: str, most: int) -> str:
    """The text without its middle if it has more characters than that."""
    return text if len(text) <= most else f"{text[: most // 2 - 1]}…{text[-(most // 2) :]}"


def _legend(axes: Axes) -> None:
    """Below the axes, so that all of the width is the data's."""
    figure = axes.figure
    assert isinstance(figure, Figure)
    entries, labels = axes.get_legend_handles_labels()
    if entries:
        shown = [shortened(label, 46) for label in labels]
        figure.legend(entries, shown, loc="outside lower left", ncols=2, fontsize=8.5, frameon=False, borderaxespad=0.2)
