"""The SageMaker server's figures: python -m benchmarks.sagemaker.

Starts ministack and the server by themselves, trains this project's classifier as a training job, serves it, and
compares with the same code called directly. Everything that is compared alternates within this one run. Exits with 1
if a goal is missed.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import psutil
from botocore.exceptions import BotoCoreError, ClientError
from local_sagemaker.model_server import Model

from benchmarks.figure import HEADING, Figure
from local_aws.standalone import StandaloneAws
from settings import ROOT, settings
from tasks.data.dataset import Dataset, generated, manifest, png

BUCKET = "benchmark"
IMAGE = "763104351884.dkr.ecr.us-east-1.amazonaws.com/pytorch-{}:2.6.0-cpu-py312"
HEADERS = {"Content-Type": "application/x-image", "Accept": "application/json"}
CLIENTS = 8
KILLS = 3
# Answers as many requests as it can in some seconds, on as many threads as it is told, and prints how many a second.
BARE_LOOP = """
import sys, threading, time
from pathlib import Path
sys.path.insert(0, sys.argv[1] + "/code")
from local_sagemaker.model_server import Model
model, image, seconds = Model(sys.argv[1]), Path(sys.argv[2]).read_bytes(), float(sys.argv[3])
headers = {"Content-Type": "application/x-image", "Accept": "application/json"}
for _ in range(20):
    model.predict(image, headers)
counts = [0] * int(sys.argv[4])
end = time.perf_counter() + seconds
def work(worker):
    while time.perf_counter() < end:
        assert model.predict(image, headers)[0] == 200
        counts[worker] += 1
threads = [threading.Thread(target=work, args=(worker,)) for worker in range(len(counts))]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(sum(counts) / seconds)
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sagemaker", description=__doc__)
    parser.add_argument("--calls", type=int, default=1000, help="calls a latency is the median of (default: 1000)")
    parser.add_argument("--rounds", type=int, default=5, help="alternations of the throughputs (default: 5)")
    parser.add_argument("--seconds", type=float, default=4, help="seconds of each throughput (default: 4)")
    parser.add_argument("--jobs", type=int, default=5, help="training jobs (default: 5)")
    parser.add_argument("--invocations", type=int, default=10_000, help="invocations between kills (default: 10000)")
    arguments = parser.parse_args()
    print(HEADING, flush=True)
    figures = []
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        folder = Path(name)
        with StandaloneAws(folder / "state", "--capture-interval", "2") as aws:
            for figure in measure(Bench(aws, folder), arguments):
                print(figure, flush=True)
                figures.append(figure)
    return int(any(figure.missed for figure in figures))


def measure(bench: "Bench", arguments: argparse.Namespace) -> Iterator[Figure]:
    yield bench.training_overhead(arguments.jobs)
    plain, captured = bench.deploy("plain", capture=False), bench.deploy("captured", capture=True)
    yield bench.latency(plain, arguments.calls, "off", at_most=4)
    yield bench.latency(captured, arguments.calls, "on")
    yield from bench.throughput(plain, captured, arguments.rounds, arguments.seconds)
    bench.delete(plain)
    yield from bench.memory(captured)
    yield from bench.records_through_kills(captured, arguments.invocations)


class Bench:
    """The servers, and a model that a training job made."""

    def __init__(self, aws: StandaloneAws, folder: Path) -> None:
        self.aws = aws
        self.folder = folder
        self.sagemaker = aws.client("sagemaker")
        self.runtime = aws.client(
            "sagemaker-runtime", max_pool_connections=CLIENTS, retries={"mode": "standard", "total_max_attempts": 1}
        )
        self.s3 = aws.client("s3")
        self.s3.create_bucket(Bucket=BUCKET)
        self.role = aws.create_role("benchmark")
        self.dataset: Dataset = generated(settings().classes, 100, 10)
        self.image = png(self.dataset.test.pixels[0])
        (folder / "image.png").write_bytes(self.image)
        self.model_uri = ""

    # Training

    def training_overhead(self, jobs: int) -> Figure:
        """Seconds from CreateTrainingJob to Completed over those of `python train.py` with the same arguments."""
        data = self.folder / "data"
        (data / "train").mkdir(parents=True)
        (data / "train_lst").mkdir()
        for file, pixels in zip(self.dataset.train.names, self.dataset.train.pixels, strict=True):
            (data / "train" / file).write_bytes(png(pixels))
            self.s3.put_object(Bucket=BUCKET, Key=f"train/{file}", Body=(data / "train" / file).read_bytes())
        (data / "train_lst" / "train.lst").write_text(manifest(self.dataset.train))
        self.s3.put_object(Bucket=BUCKET, Key="train_lst/train.lst", Body=manifest(self.dataset.train).encode())
        archive = BytesIO()
        with tarfile.open(fileobj=archive, mode="w:gz") as tar:
            for path in (ROOT / "classifier").glob("*.*"):
                tar.add(path, arcname=path.name)
        self.s3.put_object(Bucket=BUCKET, Key="code.tar.gz", Body=archive.getvalue())
        options = {
            "num_classes": str(len(self.dataset.classes)),
            "num_training_samples": str(len(self.dataset.train.names)),
            "epochs": "10",
            "seed": "1",
            # A small model: it is the server that is measured.
            "folds": "2",
            "repeats": "1",
        }
        differences = []
        for number in range(jobs):
            alone = _seconds(partial(self._train_alone, data, f"model-{number}", options))
            job = _seconds(partial(self._train_as_job, f"benchmark-{number}", options))
            differences.append(job - alone)
        return Figure(
            "training job over `python train.py` alone",
            statistics.median(differences),
            "s",
            f"median of {jobs} pairs, {min(differences):.2f} to {max(differences):.2f} s",
            at_most=3,
        )

    def _train_alone(self, data: Path, model: str, options: dict[str, str]) -> None:
        (self.folder / model).mkdir()
        folders = {"train": data / "train", "train_lst": data / "train_lst", "model_dir": self.folder / model}
        command = [sys.executable, str(ROOT / "classifier" / "train.py")]
        for option, value in (options | folders).items():
            command += [f"--{option}", str(value)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    def _train_as_job(self, name: str, options: dict[str, str]) -> None:
        self.sagemaker.create_training_job(
            TrainingJobName=name,
            RoleArn=self.role,
            AlgorithmSpecification={"TrainingImage": IMAGE.format("training"), "TrainingInputMode": "File"},
            HyperParameters={
                **options,
                "sagemaker_program": "train.py",
                "sagemaker_submit_directory": f"s3://{BUCKET}/code.tar.gz",
            },
            InputDataConfig=[
                {
                    "ChannelName": channel,
                    "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": f"s3://{BUCKET}/{channel}/"}},
                }
                for channel in ("train", "train_lst")
            ],
            OutputDataConfig={"S3OutputPath": f"s3://{BUCKET}/models"},
            ResourceConfig={"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 1},
            StoppingCondition={"MaxRuntimeInSeconds": 600},
        )
        while (job := self.sagemaker.describe_training_job(TrainingJobName=name))["TrainingJobStatus"] == "InProgress":
            time.sleep(0.05)
        if job["TrainingJobStatus"] != "Completed":
            raise RuntimeError(f"the training job is {job['TrainingJobStatus']}: {job.get('FailureReason')}")
        self.model_uri = job["ModelArtifacts"]["S3ModelArtifacts"]

    # Hosting

    def deploy(self, name: str, capture: bool) -> str:
        """The name of an endpoint in service, with one instance."""
        self.sagemaker.create_model(
            ModelName=name,
            ExecutionRoleArn=self.role,
            PrimaryContainer={"Image": IMAGE.format("inference"), "ModelDataUrl": self.model_uri},
        )
        more: dict[str, Any] = {}
        if capture:
            more["DataCaptureConfig"] = {
                "EnableCapture": True,
                "InitialSamplingPercentage": 100,
                "DestinationS3Uri": f"s3://{BUCKET}/capture",
                "CaptureOptions": [{"CaptureMode": "Input"}, {"CaptureMode": "Output"}],
                "CaptureContentTypeHeader": {"JsonContentTypes": ["application/json"]},
            }
        variant = {"VariantName": "v1", "ModelName": name, "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
        self.sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant], **more)
        self.sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)
        self._wait_in_service(name)
        return name

    def delete(self, name: str) -> None:
        self.sagemaker.delete_endpoint(EndpointName=name)
        self.sagemaker.get_waiter("endpoint_deleted").wait(EndpointName=name, WaiterConfig={"Delay": 1})

    def invoke(self, name: str, inference_id: str = "benchmark") -> bytes:
        """The answer's body, read."""
        answer = self.runtime.invoke_endpoint(
            EndpointName=name,
            ContentType=HEADERS["Content-Type"],
            Accept=HEADERS["Accept"],
            InferenceId=inference_id,
            Body=self.image,
        )
        body: bytes = answer["Body"].read()
        return body

    def latency(self, name: str, calls: int, capture: str, at_most: float | None = None) -> Figure:
        """Median of boto3's invoke_endpoint less that of the model called here, one after the other in turns."""
        model_dir = self.folder / "model-0"
        sys.path.insert(0, str(model_dir / "code"))
        model = Model(str(model_dir))
        direct, invoked = [], []
        for number in range(calls + 50):
            here = _seconds(lambda: model.predict(self.image, HEADERS))
            there = _seconds(lambda: self.invoke(name))
            if number >= 50:  # the first ones warm up
                direct.append(here)
                invoked.append(there)
        here_ms, there_ms = 1000 * statistics.median(direct), 1000 * statistics.median(invoked)
        return Figure(
            f"InvokeEndpoint over the direct call, one client, capture {capture}",
            there_ms - here_ms,
            "ms",
            f"medians of {calls} calls each: {there_ms:.2f} and {here_ms:.2f} ms",
            at_most=at_most,
        )

    def throughput(self, plain: str, captured: str, rounds: int, seconds: float) -> Iterator[Figure]:
        """8 clients against loops over the model in a process of their own, and capture on against off."""
        cores = os.cpu_count() or 1
        kinds: dict[str, Callable[[], float]] = {
            "loop": lambda: self._bare_loop(1, seconds),
            "plain": lambda: self._clients(plain, seconds),
            "captured": lambda: self._clients(captured, seconds),
            "loops": lambda: self._bare_loop(cores, seconds),
        }
        rates: dict[str, list[float]] = {kind: [] for kind in kinds}
        for _ in range(rounds):
            for kind, run in kinds.items():
                rates[kind].append(run())
        per_second = {kind: statistics.median(values) for kind, values in rates.items()}
        n = f"medians of {rounds} rounds of {seconds:g} s each: {{:.0f}} and {{:.0f}} requests a second"
        for name, one, other, goal in (
            ("throughput of 8 clients, capture off, over a bare loop", "plain", "loop", 0.6),
            ("throughput of 8 clients, capture on, over a bare loop", "captured", "loop", 0.6),
            (f"the same, capture off, over {cores} loops side by side", "plain", "loops", None),
        ):
            value = per_second[one] / per_second[other]
            yield Figure(name, value, "", n.format(per_second[one], per_second[other]), at_least=goal)
        cost = statistics.median(1 - on / off for on, off in zip(rates["captured"], rates["plain"], strict=True))
        yield Figure("capture's share of the throughput", 100 * cost, "%", f"median of {rounds} rounds", at_most=15)

    def _bare_loop(self, threads: int, seconds: float) -> float:
        arguments = [str(self.folder / "model-0"), str(self.folder / "image.png"), str(seconds), str(threads)]
        done = subprocess.run(
            [sys.executable, "-c", BARE_LOOP, *arguments], cwd=ROOT, check=True, capture_output=True, text=True
        )
        return float(done.stdout)

    def _clients(self, name: str, seconds: float) -> float:
        counts = [0] * CLIENTS
        end = time.perf_counter() + seconds

        def work(client: int) -> None:
            while time.perf_counter() < end:
                self.invoke(name)
                counts[client] += 1

        _in_threads(work)
        return sum(counts) / seconds

    def memory(self, name: str) -> Iterator[Figure]:
        """Proportional set size: memory shared between processes is split among them."""
        time.sleep(3)
        server = psutil.Process(self.aws.process_id("sagemaker"))
        own, model = server.memory_full_info().pss, sum(_pss(child) for child in server.children(recursive=True))
        mib = 1024 * 1024
        n = f"PSS: server {own / mib:.0f}, model process {model / mib:.0f} MiB (PyTorch); after the load above"
        yield Figure("idle memory of the server plus one endpoint", (own + model) / mib, "MiB", n)

    # Capture

    def records_through_kills(self, name: str, invocations: int) -> Iterator[Figure]:
        """Answered requests that have no record or several, with the server killed three times on the way."""
        numbers = iter(range(invocations))
        lock = threading.Lock()
        answered: list[str] = []
        failed = 0

        def work(client: int) -> None:
            nonlocal failed
            while True:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                attempt = 0
                while True:
                    # Every attempt is a request of its own, so that each has one record or none.
                    inference_id = f"{number}-{attempt}"
                    try:
                        self.invoke(name, inference_id)
                        answered.append(inference_id)
                        break
                    except (BotoCoreError, ClientError):
                        attempt += 1
                        failed += 1
                        time.sleep(0.2)

        def kill() -> None:
            for kill_number in range(1, KILLS + 1):
                while len(answered) < invocations * kill_number / (KILLS + 1):
                    time.sleep(0.01)
                self.aws.kill("sagemaker")
                self.aws.start("sagemaker")

        killer = threading.Thread(target=kill)
        killer.start()
        _in_threads(work)
        killer.join()
        records = self._captured_ids(set(answered))
        missing = sum(records[inference_id] == 0 for inference_id in answered)
        doubled = sum(count > 1 for inference_id, count in records.items() if inference_id != "benchmark")
        n = f"{len(answered)} answered, {failed} attempts failed, {KILLS} times SIGKILL"
        yield Figure("answered requests without a record", missing, "", n, at_most=0)
        yield Figure("requests with more than one record", doubled, "", n, at_most=0)

    def _captured_ids(self, expected: set[str]) -> Counter[str]:
        """Records by inference id, when all that is expected has arrived or a minute is over."""
        deadline = time.monotonic() + 60
        read: dict[str, list[str]] = {}
        while True:
            pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix="capture/")
            for key in [item["Key"] for page in pages for item in page.get("Contents", [])]:
                if key not in read:
                    lines = self.s3.get_object(Bucket=BUCKET, Key=key)["Body"].read().splitlines()
                    read[key] = [json.loads(line)["eventMetadata"]["inferenceId"] for line in lines]
            ids = Counter(inference_id for ids in read.values() for inference_id in ids)
            if expected <= set(ids) or time.monotonic() > deadline:
                return ids
            time.sleep(1)

    def _wait_in_service(self, name: str) -> None:
        waiter = self.sagemaker.get_waiter("endpoint_in_service")
        waiter.wait(EndpointName=name, WaiterConfig={"Delay": 1, "MaxAttempts": 120})


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _in_threads(work: Callable[[int], None]) -> None:
    threads = [threading.Thread(target=work, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _pss(process: psutil.Process) -> int:
    return int(process.memory_full_info().pss)


if __name__ == "__main__":
    sys.exit(main())
