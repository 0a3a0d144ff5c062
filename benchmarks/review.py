"""Whether answers about unsure images help, and whether certificates hold: python -m benchmarks.review.

Labels of the training images are hidden but for some; then either the least certain images and a few audits are
answered, in the queue's order, or as many random ones, with some of the answers wrong. Networks of the settings'
recipe are fitted to what is known by then and asked about images that were never in the pool. Certificates are
simulated, with somebody who looks every day. Exits with 1 if a certificate does not hold its level.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from benchmarks.figure import HEADING, Figure
from benchmarks.model import load
from settings import ROOT, settings
from tasks.data.dataset import Dataset
from tasks.report.metrics import accuracy_lower_bound
from tasks.review.certificate import accuracy_bounds, labels_to_show, log_ratio
from tasks.review.queue import drawn, rank

sys.path.insert(0, str(ROOT / "classifier"))
from calibration import fit_temperature, scale
from fitting import fit
from network import answers, normalize

Strategy = Literal["least certain", "random"]
STRATEGIES: tuple[Strategy, ...] = ("least certain", "random")
WRONG_SHARES = (0.0, 0.05, 0.1)
# Training images whose label is known at first, that are answered in a round, and that no network is ever fitted to.
FIRST, ROUND, ROUNDS, HELD_OUT = 200, 100, 3, 300
THRESHOLD = 0.93
PARTS = ("loop", "certificate")
DAYS, LABELS_A_DAY, SIMULATED = 200, 5, 2000


@dataclass(frozen=True)
class Measured:
    """One network. wrong: share of wrong answers; labels: images that it was fitted to; accepted_accuracy: None of none
    accepted. Of images that were never in the pool.
    """

    strategy: Strategy
    wrong: float
    seed: int
    labels: int
    accuracy: float
    coverage: float
    accepted_accuracy: float | None


@dataclass(frozen=True)
class World:
    """Images of a seed: pixels (n, 3, height, width) and labels (n,). first, pool, outside: rows."""

    pixels: torch.Tensor
    labels: np.ndarray
    first: np.ndarray
    pool: np.ndarray
    outside: np.ndarray


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.review", description=__doc__)
    parser.add_argument("--dataset", help="'generated' or an archive; by default CIFAR-100 if it can be downloaded")
    parser.add_argument("--part", choices=PARTS, help="only one of the parts")
    parser.add_argument("--seeds", type=int, default=5, help="drawings of what is known at first (default: 5)")
    parser.add_argument("--chart", type=Path, help="file to draw the chart of docs/review.md in")
    parser.add_argument("--results", type=Path, help="file that each network's figures are added to, as JSON lines")
    arguments = parser.parse_args()
    figures: list[Figure] = []
    if arguments.part in (None, "loop"):
        dataset = load(arguments.dataset)
        print(
            f"{dataset.source}: {len(dataset.train.labels)} training, {len(dataset.test.labels)} test images",
            flush=True,
        )
        measured = loops(dataset, arguments.seeds, arguments.results)
        figures += compared(measured)
        if arguments.chart:
            from benchmarks.review_chart import draw

            draw([asdict(each) for each in measured], arguments.chart, dataset.source)
    if arguments.part in (None, "certificate"):
        figures += simulated_certificates()
    print(f"\n{HEADING}")
    for figure in figures:
        print(figure)
    return int(any(figure.missed for figure in figures))


def loops(dataset: Dataset, seeds: int, results: Path | None) -> list[Measured]:
    """Every strategy, share of wrong answers and seed, with a line of progress for each network."""
    measured: list[Measured] = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count() or 1, context) as processes:
        jobs = [
            processes.submit(_loop, dataset, strategy, wrong, seed)
            for seed in range(1, seeds + 1)
            for wrong in WRONG_SHARES
            for strategy in STRATEGIES
        ]
        for number, job in enumerate(jobs, 1):
            found = job.result()
            measured += found
            last = found[-1]
            print(
                f"{number} of {len(jobs)}: seed {last.seed}, {last.strategy}, {last.wrong:.0%} wrong: "
                + ", ".join(f"{each.labels}: {each.accuracy:.3f}" for each in found),
                flush=True,
            )
            if results:
                with results.open("a") as file:
                    file.writelines(json.dumps(asdict(each)) + "\n" for each in found)
    return measured


def _loop(dataset: Dataset, strategy: Strategy, wrong: float, seed: int) -> list[Measured]:
    """One way to choose, round after round, from the same start for every strategy of a seed."""
    torch.set_num_threads(1)
    there, generator = world(dataset, seed), np.random.default_rng([seed, int(wrong * 100), STRATEGIES.index(strategy)])
    known = {int(row): int(there.labels[row]) for row in there.first}
    found = []
    for number in range(ROUNDS + 1):
        network = _fitted(there, known, len(dataset.classes), seed * 10 + number)
        found.append(_measured(network, there, strategy, wrong, seed, len(known)))
        if number == ROUNDS:
            return found
        left = np.array([row for row in there.pool if int(row) not in known])
        for row in chosen(_probabilities(network, there.pixels[left]).max(axis=1), left, strategy, generator):
            right = int(there.labels[row])
            others = [label for label in range(len(dataset.classes)) if label != right]
            known[int(row)] = int(generator.choice(others)) if generator.random() < wrong else right
    return found


def chosen(confidence: np.ndarray, rows: np.ndarray, strategy: Strategy, generator: np.random.Generator) -> np.ndarray:
    """ROUND rows that are answered next: audits, drawn as the queue does it, and the least certain; or any."""
    if strategy == "random":
        return generator.choice(rows, ROUND, replace=False)
    names = [f"{generator.integers(2**63):x}" for _ in rows]  # inference ids are as good as random
    audits = [row for row, name, sure in zip(rows, names, confidence, strict=True)
              if sure >= THRESHOLD and drawn(name, settings().audit_share)]  # fmt: skip
    of_queue = settings().model_copy(update={"review_order": "uncertain"})
    ranked = sorted(zip(rows, names, confidence, strict=True), key=lambda each: rank(each[1], float(each[2]), of_queue))
    unsure = [row for row, _, _ in ranked if row not in set(audits)]
    return np.array([*audits, *unsure][:ROUND])


def world(dataset: Dataset, seed: int) -> World:
    """Outside are HELD_OUT training images and all test images; the rest is the pool, FIRST of it known."""
    pixels = np.concatenate([dataset.train.pixels, dataset.test.pixels])
    labels = np.concatenate([dataset.train.labels, dataset.test.labels])
    n = len(dataset.train.labels)
    rows = np.random.default_rng(seed).permutation(n)
    outside, pool = rows[:HELD_OUT], rows[HELD_OUT:]
    return World(
        pixels=torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(),
        labels=labels,
        first=pool[:FIRST],
        pool=pool,
        outside=np.concatenate([outside, np.arange(n, len(labels))]),
    )


def _fitted(there: World, known: dict[int, int], num_classes: int, seed: int) -> Any:
    """A network of the settings' recipe."""
    options = argparse.Namespace(
        **{name: getattr(settings(), name) for name in ("epochs", "learning_rate", "mini_batch_size")},
        num_classes=num_classes,
        image_shape=tuple(there.pixels.shape[1:]),
        final=True,
    )
    torch.manual_seed(seed)
    rows, labels = torch.tensor(list(known)), torch.zeros(len(there.labels), dtype=torch.long)
    labels[rows] = torch.tensor(list(known.values()))
    with open(os.devnull, "w") as nowhere:
        before, sys.stdout = sys.stdout, nowhere
        try:
            return fit(there.pixels, labels, rows, options, "")
        finally:
            sys.stdout = before


def _probabilities(network: Any, pixels: torch.Tensor) -> np.ndarray:
    found: np.ndarray = answers(network, normalize(pixels), shifted=True).probabilities.numpy()
    return found


def _measured(network: Any, there: World, strategy: Strategy, wrong: float, seed: int, labels: int) -> Measured:
    """Of the images outside the pool; each half of them is calibrated with a temperature of the other half."""
    raw, right = _probabilities(network, there.pixels[there.outside]), there.labels[there.outside]
    half = np.arange(len(right)) % 2 == 0
    calibrated = np.empty_like(raw, dtype=float)
    for rows in (half, ~half):
        calibrated[rows] = scale(raw[rows], fit_temperature(raw[~rows], right[~rows]))
    correct, sure = calibrated.argmax(axis=1) == right, calibrated.max(axis=1) >= THRESHOLD
    return Measured(
        strategy, wrong, seed, labels, float(correct.mean()), float(sure.mean()),
        float(correct[sure].mean()) if sure.any() else None,
    )  # fmt: skip


def compared(measured: list[Measured]) -> list[Figure]:
    """At the end of the loop: what each way reached, and how much further the least certain got than random ones."""
    figures, last = [], max(each.labels for each in measured)
    seeds = {each.seed for each in measured}
    n = f"{len(seeds)} seeds, images outside the pool"

    def of(strategy: Strategy, wrong: float, labels: int, name: str) -> dict[int, float]:
        return {
            each.seed: getattr(each, name) or 0.0
            for each in measured
            if (each.strategy, each.wrong, each.labels) == (strategy, wrong, labels)
        }

    figures.append(
        Figure(f"accuracy with {FIRST} labels", statistics.mean(of("random", 0, FIRST, "accuracy").values()), "", n)
    )
    figures.append(
        Figure(f"coverage with {FIRST} labels", statistics.mean(of("random", 0, FIRST, "coverage").values()), "", n)
    )
    for wrong in WRONG_SHARES:
        for name in ("accuracy", "coverage", "accepted_accuracy"):
            reached = {strategy: of(strategy, wrong, last, name) for strategy in STRATEGIES}
            for strategy in STRATEGIES:
                title = f"{name.replace('_', ' ')} with {last} labels, {wrong:.0%} wrong: {strategy}"
                figures.append(Figure(title, statistics.mean(reached[strategy].values()), "", n))
            gained = [reached["least certain"][seed] - reached["random"][seed] for seed in sorted(seeds)]
            error = statistics.stdev(gained) / len(gained) ** 0.5 if len(gained) > 1 else float("nan")
            figures.append(
                Figure("  the former more than the latter", statistics.mean(gained), "", f"standard error {error:.3f}")
            )
    return figures


def simulated_certificates() -> list[Figure]:
    """How often a certificate is wrong on any of DAYS days, if somebody looks every day; and a bound for one look."""
    figures, level = [], settings().certificate_level
    for accuracy in (0.995, 0.99, 0.98, 0.95):
        generator = np.random.default_rng(round(accuracy * 1000))
        labels = generator.poisson(LABELS_A_DAY, (SIMULATED, DAYS)).cumsum(axis=1)
        errors = np.stack([_errors(generator, each, accuracy) for each in labels])
        known: dict[tuple[int, int], tuple[bool, bool, bool]] = {}

        def looked(pair: tuple[int, int], p: float = 1 - accuracy) -> tuple[bool, bool, bool]:
            """Whether the truth is outside, above the lower bound's promise, and above that of a single look."""
            e, n = pair
            outside = n > 0 and log_ratio(e, n, p) >= -np.log(1 - level)
            once = accuracy_lower_bound(e, n, level)
            return bool(outside), bool(outside and e / n < p), once is not None and once > 1 - p

        wrong = np.zeros((SIMULATED, 3), bool)
        for night in range(SIMULATED):
            for pair in zip(errors[night].tolist(), labels[night].tolist(), strict=True):
                if pair not in known:
                    known[pair] = looked(pair)
                wrong[night] |= known[pair]
        n = f"{SIMULATED} installations, {DAYS} days, {LABELS_A_DAY} labels a day"
        rates = wrong.mean(axis=0)
        figures += [
            Figure(f"certificates ever wrong, accuracy {accuracy}", float(rates[0]), "", n, at_most=1 - level),
            Figure("  of these promising too much", float(rates[1]), "", n),
            Figure("  an exact bound for a single look, looked at every day", float(rates[2]), "", n),
        ]
    missing = labels_to_show(0, 0.99, level)
    low, _ = accuracy_bounds(0, missing, level)
    figures.append(Figure("labels without an error that show .99", missing, "", f"at {level:.0%}; bound {low:.4f}"))
    return figures


def _errors(generator: np.random.Generator, labels: np.ndarray, accuracy: float) -> np.ndarray:
    """Errors until each day, of so many labels until then."""
    wrong = np.concatenate([[0], (generator.random(labels[-1]) >= accuracy).cumsum()])
    found: np.ndarray = wrong[labels]
    return found


if __name__ == "__main__":
    sys.exit(main())
