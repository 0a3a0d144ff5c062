"""What one network serves faster than ten: python -m benchmarks.serving.

Trains both kinds of classifier for a moment, as jobs of a local stack, and deploys them in turns. Each serves one
client, then eight, then a night. Exits with 1 if the single network is not faster.
"""

import argparse
import os
import signal
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.evaluation import evaluate, interrupt, own_stack
from benchmarks.figure import HEADING, Figure
from local_aws import services

KINDS: dict[str, dict[str, int | float | str]] = {
    "ensemble": {"classifier": "ensemble", "folds": 5, "repeats": 2, "epochs": 12},
    "single": {"classifier": "single", "folds": 2, "repeats": 1, "epochs": 12},
}
CLIENTS = 8


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="how often each is deployed (default: 3)")
    parser.add_argument("--calls", type=int, default=300, help="calls of one client (default: 300)")
    parser.add_argument("--seconds", type=float, default=5, help="seconds of eight clients (default: 5)")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, interrupt)
    figures = []
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        config = own_stack(Path(name), GENERATED_TEST_PER_CLASS="100", GATE_MARGIN="1", GATE_MIN_ACCURACY="0")
        from deploy import bring_up

        try:
            bring_up(config)
            print(HEADING, flush=True)
            for figure in _measure(arguments):
                print(figure, flush=True)
                figures.append(figure)
        finally:
            services.down(config)
    return int(any(figure.missed for figure in figures))


def _measure(arguments: argparse.Namespace) -> Iterator[Figure]:
    from flows.deploy_endpoint import deploy_endpoint
    from flows.prepare_data import prepare_data
    from flows.train_model import train_model
    from tasks.aws import storage
    from tasks.aws.stacks import installation

    prepare_data("generated")
    versions = {kind: train_model(hyperparameters=options).number for kind, options in KINDS.items()}
    installed = installation()
    rows = (storage.get(installed.bucket, "manifests/test.lst") or b"").decode().splitlines()
    image = storage.get(installed.bucket, "test/" + rows[0].split("\t")[2])
    assert image is not None
    measured: defaultdict[str, dict[str, list[float]]] = defaultdict(lambda: {kind: [] for kind in KINDS})
    for _ in range(arguments.rounds):
        for kind, version in versions.items():
            deploy_endpoint(version)
            measured["one client"][kind].append(_latency(installed.endpoint, image, arguments.calls))
            measured["eight clients"][kind].append(1 / _throughput(installed.endpoint, image, arguments.seconds))
            measured["a night"][kind].append(evaluate(len(rows)) / len(rows))
    for what, of_kind in measured.items():
        ten, one = (statistics.median(of_kind[kind]) for kind in KINDS)
        n = f"medians of {arguments.rounds} rounds: {1000 * ten:.1f} and {1000 * one:.1f} ms an image"
        yield Figure(f"speed of one network over that of ten, {what}", ten / one, "", n, at_least=1)


def _latency(endpoint: str, image: bytes, calls: int) -> float:
    """Median seconds of a call, one after the other."""
    for _ in range(20):
        _invoke(endpoint, image)
    seconds = []
    for _ in range(calls):
        began = time.perf_counter()
        _invoke(endpoint, image)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def _throughput(endpoint: str, image: bytes, seconds: float) -> float:
    """Calls a second of clients that each wait for their answer."""
    end = time.perf_counter() + seconds

    def work(client: int) -> int:
        calls = 0
        while time.perf_counter() < end:
            _invoke(endpoint, image)
            calls += 1
        return calls

    with ThreadPoolExecutor(CLIENTS) as threads:
        return sum(threads.map(work, range(CLIENTS))) / seconds


def _invoke(endpoint: str, image: bytes) -> Any:
    from tasks.answers import ACCEPT
    from tasks.aws.clients import client

    answer = client("sagemaker-runtime").invoke_endpoint(
        EndpointName=endpoint,
        ContentType="application/x-image",
        Accept=ACCEPT,
        InferenceId=f"smoke-benchmark-{os.getpid()}",
        Body=image,
    )
    return answer["Body"].read()


if __name__ == "__main__":
    sys.exit(main())
