"""The charts of a report: pure functions of a table, drawn with matplotlib's object interface (no global state).

Classes differ by colour and marker (Okabe-Ito), wrong predictions carry a cross, so the charts read in grey too.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
HATCHES = ("", "//", "..", "xx", "\\\\", "++", "oo", "--")
WRONG = "#000000"
SIZE = (9.0, 5.2)
DPI = 120


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


def draw_all(table: pd.DataFrame, classes: tuple[str, ...], caption: Caption, folder: Path) -> list[Path]:
    """Writes the three charts as PNG files and returns their paths.

    table: columns time (UTC), confidence in [0, 1], predicted_class and correct (bool), one row an inference.
    """
    folder.mkdir(parents=True, exist_ok=True)
    charts = {
        "confidence_scatter": confidence_scatter,
        "threshold_bar": threshold_bar,
        "confidence_histogram": confidence_histogram,
    }
    paths = []
    for name, chart in charts.items():
        path = folder / f"{name}.png"
        # Without metadata the same table gives the same bytes.
        chart(table, classes, caption).savefig(path, dpi=DPI, metadata={"Software": None})
        paths.append(path)
    return paths


def confidence_scatter(table: pd.DataFrame, classes: tuple[str, ...], caption: Caption) -> Figure:
    """Confidence of each inference over time, with the threshold as a line."""
    figure, axes = _figure("Confidence of each inference", caption, len(table))
    for label, colour, marker in zip(classes, COLOURS, MARKERS, strict=False):
        rows = table[table["predicted_class"] == label]
        axes.scatter(
            rows["time"],
            rows["confidence"],
            s=34,
            c=colour,
            marker=marker,
            alpha=0.75,
            edgecolors="white",
            linewidths=0.4,
            label=f"predicted {label} (n = {len(rows)})",
        )
    wrong = table[~table["correct"]]
    axes.scatter(
        wrong["time"],
        wrong["confidence"],
        s=110,
        c=WRONG,
        marker="x",
        linewidths=1.6,
        label=f"wrong (n = {len(wrong)})",
    )
    _threshold_line(axes.axhline, caption)
    locator = AutoDateLocator()
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    axes.set_xlabel("time of the inference (UTC)")
    axes.set_ylabel("confidence of the predicted class")
    low = min([*table["confidence"], caption.threshold, 1 / max(len(classes), 1)])
    axes.set_ylim(low - 0.03, 1.03)
    _legend(axes)
    return figure


def threshold_bar(table: pd.DataFrame, classes: tuple[str, ...], caption: Caption) -> Figure:
    """Inferences at or above the threshold and below it, stacked by predicted class."""
    figure, axes = _figure("Inferences above and below the threshold", caption, len(table))
    above = table["confidence"] >= caption.threshold
    names = [f"at or above {caption.threshold:g}\n(accepted)", f"below {caption.threshold:g}\n(not accepted)"]
    base = np.zeros(2)
    for label, colour, hatch in zip(classes, COLOURS, HATCHES, strict=False):
        rows = table["predicted_class"] == label
        counts = np.array([(rows & above).sum(), (rows & ~above).sum()])
        axes.bar(
            names,
            counts,
            bottom=base,
            width=0.55,
            color=colour,
            hatch=hatch,
            edgecolor="white",
            label=f"predicted {label}",
        )
        base += counts
    for position, side in enumerate((above, ~above)):
        n, wrong = int(side.sum()), int((~table["correct"] & side).sum())
        share = f" ({n / len(table):.0%})" if len(table) else ""
        axes.annotate(
            f"{n}{share}, {wrong} wrong", (position, n), xytext=(0, 5), textcoords="offset points", ha="center"
        )
    axes.set_ylabel("inferences (count)")
    axes.set_ylim(0, max(base.max() * 1.15, 1))
    _legend(axes)
    return figure


def confidence_histogram(table: pd.DataFrame, classes: tuple[str, ...], caption: Caption) -> Figure:
    """How many inferences have which confidence, by predicted class."""
    figure, axes = _figure("Distribution of confidence", caption, len(table))
    edges = np.linspace(1 / len(classes) if len(classes) == 2 else 0, 1, 26)
    groups = [table.loc[table["predicted_class"] == label, "confidence"] for label in classes]
    _, _, containers = axes.hist(
        groups,
        bins=edges.tolist(),
        stacked=True,
        color=[COLOURS[index % len(COLOURS)] for index in range(len(classes))],
        edgecolor="white",
        label=[f"predicted {label} (n = {len(group)})" for label, group in zip(classes, groups, strict=True)],
    )
    for container, hatch in zip(containers if isinstance(containers, list) else [containers], HATCHES, strict=False):
        for patch in container:  # type: ignore[union-attr]
            patch.set_hatch(hatch)
    _threshold_line(axes.axvline, caption)
    axes.set_xlabel("confidence of the predicted class")
    axes.set_ylabel(f"inferences per bin of {edges[1] - edges[0]:.2f} (count)")
    _legend(axes)
    return figure


def _figure(title: str, caption: Caption, n: int) -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontsize=14, fontweight="bold", pad=24)
    notes = [f"run {caption.run} of {caption.date}", f"model {caption.model_version}", f"n = {n}", caption.dataset]
    axes.text(0, 1.02, "  ·  ".join(notes), transform=axes.transAxes, fontsize=9, color="#444444")
    warnings = []
    if caption.synthetic:
        warnings.append("SYNTHETIC DATA: drawn by the project, not photographs")
    if caption.provisional:
        warnings.append("PROVISIONAL: capture records are missing")
    if warnings:
        box = {"facecolor": "#fff3cd", "edgecolor": "#8a6d00", "boxstyle": "round,pad=0.3"}
        figure.supxlabel("   ".join(warnings), fontsize=9, bbox=box)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if n == 0:
        axes.text(0.5, 0.5, "no inferences", transform=axes.transAxes, ha="center", fontsize=13, color="#444444")
    return figure, axes


def _threshold_line(draw: object, caption: Caption) -> None:
    assert callable(draw)
    draw(caption.threshold, color="#D55E00", linestyle="--", linewidth=1.6, label=f"threshold {caption.threshold:g}")


def _legend(axes: Axes) -> None:
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), fontsize=9, frameon=False, borderaxespad=0)
