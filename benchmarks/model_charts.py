"""The charts of docs/model.md."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.stats import beta

from tasks.report.charts import COLOURS, DPI
from tasks.report.metrics import bin_of, wilson_interval

BINS = 15
BLUE, ORANGE = COLOURS[:2]
GREY = "#767676"


def reliability(fold: Any, path: Path, source: str) -> None:
    """Accuracy by confidence before and after calibration, of models asked about images their jobs never saw.

    fold: probabilities `raw` and `served` (n, classes) and `labels` (n,).
    """
    figure = Figure(figsize=(10, 5), layout="constrained")
    correct = fold.served.argmax(axis=1) == fold.labels
    for axes, title, probabilities, colour, marker in zip(
        figure.subplots(1, 2, sharex=True, sharey=True),
        ("before temperature scaling", "after temperature scaling"),
        (fold.raw, fold.served),
        (ORANGE, BLUE),
        ("s", "o"),
        strict=True,
    ):
        confidence = probabilities.max(axis=1)
        index = bin_of(confidence, BINS)
        lowest = 1 / probabilities.shape[1]
        axes.plot([lowest, 1], [lowest, 1], color=GREY, linestyle="--", label="perfectly calibrated")
        centres, shares, below, above, counts = [], [], [], [], []
        for number in np.unique(index):
            rows = index == number
            share = correct[rows].mean()
            low, high = wilson_interval(int(correct[rows].sum()), int(rows.sum()))
            centres.append(confidence[rows].mean())
            shares.append(share)
            below.append(share - low)
            above.append(high - share)
            counts.append(int(rows.sum()))
        axes.errorbar(
            centres,
            shares,
            yerr=[below, above],
            color=colour,
            marker=marker,
            linewidth=1.5,
            capsize=3,
            label="accuracy, 95 % Wilson interval",
        )
        for x, y, count in zip(centres, shares, counts, strict=True):
            axes.annotate(f"{count}", (x, y), xytext=(6, -12), textcoords="offset points", fontsize=8, color="#333333")
        axes.set(title=title, xlabel="confidence", xlim=(lowest - 0.02, 1.02), ylim=(0.15, 1.03))
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right")
        axes.set_ylabel("accuracy" if colour == ORANGE else "")
    figure.suptitle(f"Reliability, cross-validated on {len(correct)} images of {source} (numbers are images a bin)")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI, metadata={"Software": None})


def coverage(probabilities: np.ndarray, labels: np.ndarray, threshold: Any, path: Path, source: str) -> None:
    """Accuracy of what is accepted against the share that is accepted, out of fold, with the recommended threshold.

    probabilities: (n, classes), calibrated. threshold: a thresholds.Threshold, or None.
    """
    confidence = probabilities.max(axis=1)
    order = np.argsort(-confidence, kind="stable")
    right = (probabilities.argmax(axis=1) == labels)[order].cumsum()
    accepted = np.arange(1, len(order) + 1)
    share = accepted / len(order)
    figure = Figure(figsize=(9, 5.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(share, right / accepted, color=BLUE, label="accuracy of accepted images")
    axes.plot(
        share, beta.ppf(0.1, right, accepted - right + 1), color=ORANGE, linestyle="-.", label="its lower bound, 90 %"
    )
    axes.axhline(0.99, color=GREY, linestyle=":", label="target .99")
    if threshold is not None:
        axes.axvline(threshold.coverage, color="#000000", linestyle="--")
        text = f"recommended threshold {threshold.value:.3f}\naccepts {threshold.coverage:.0%}"
        axes.annotate(text, (threshold.coverage, 0.905), xytext=(-8, 0), textcoords="offset points", ha="right")
    axes.set(
        xlabel="coverage (share of images accepted)",
        ylabel="accuracy",
        xlim=(0, 1.01),
        ylim=(0.9, 1.003),
        title=f"Accuracy against coverage, out of fold\n{len(labels)} training images of {source}",
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI, metadata={"Software": None})


def outliers(scores: dict[str, np.ndarray], path: Path, source: str) -> None:
    """Which share of images has an outlier score up to each value, with the limit of 1.

    scores: (n,) of each kind of image, those of the classes first.
    """
    figure = Figure(figsize=(9, 5.2), layout="constrained")
    axes = figure.subplots()
    for (name, values), colour, style in zip(scores.items(), (BLUE, ORANGE, "#009E73"), ("-", "--", "-."), strict=True):
        ranked = np.sort(values)
        over = (values > 1).mean()
        label = f"{name} (n = {len(values):,}): {over:.0%} over the limit"
        axes.step(
            ranked,
            np.arange(1, len(ranked) + 1) / len(ranked),
            where="post",
            color=colour,
            linestyle=style,
            label=label,
        )
    axes.axvline(1, color="#000000", linestyle=":", label="limit: of no class beyond it")
    lowest, highest = (float(np.quantile(np.concatenate(list(scores.values())), share)) for share in (0.001, 0.99))
    axes.set(
        xscale="log",
        xlim=(lowest, highest),
        ylim=(0, 1.01),
        xlabel="outlier score (logarithmic)",
        ylabel="share of images up to it",
        title=f"Outlier scores of images that no network was fitted to\n{source}",
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
