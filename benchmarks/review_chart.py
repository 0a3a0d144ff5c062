"""The chart of docs/review.md: what answers about unsure images are worth, against answers about any."""

import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

COLOURS = {"least certain": "#0072B2", "random": "#D55E00"}
STYLES = {"least certain": ("-", "o"), "random": ("--", "s")}
TITLES = {"accuracy": "accuracy", "coverage": "share accepted at .93"}
DPI = 110


def draw(rows: list[dict[str, Any]], path: Path, source: str) -> None:
    """Mean and standard error over seeds, a row of charts per figure and a column per share of wrong answers."""
    shares = sorted({row["wrong"] for row in rows})
    figure = Figure(figsize=(3.6 * len(shares), 6.2), layout="constrained")
    axes = figure.subplots(len(TITLES), len(shares), sharex=True, sharey="row", squeeze=False)
    for line, (name, title) in enumerate(TITLES.items()):
        for column, wrong in enumerate(shares):
            for strategy, colour in COLOURS.items():
                values: dict[int, list[float]] = defaultdict(list)
                for row in rows:
                    if (row["strategy"], row["wrong"]) == (strategy, wrong):
                        values[row["labels"]].append(row[name])
                labels = sorted(values)
                means = [statistics.mean(values[each]) for each in labels]
                errors = [
                    statistics.stdev(values[each]) / len(values[each]) ** 0.5 if len(values[each]) > 1 else 0.0
                    for each in labels
                ]
                style, marker = STYLES[strategy]
                axes[line, column].errorbar(
                    *(labels, means, errors), color=colour, linestyle=style, marker=marker, capsize=3, label=strategy
                )
            axes[line, column].grid(alpha=0.3)
            axes[line, column].set_xticks(sorted({row["labels"] for row in rows}))
            if line == 0:
                axes[line, column].set_title(f"{wrong:.0%} of the answers wrong")
            if line == len(TITLES) - 1:
                axes[line, column].set_xlabel("labelled images")
        axes[line, 0].set_ylabel(title)
    axes[0, 0].legend(loc="lower right", title="answered next")
    seeds = len({row["seed"] for row in rows})
    figure.suptitle(f"What answers are worth: {source}, means and standard errors of {seeds} seeds")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
