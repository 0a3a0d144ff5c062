"""classify-images against the local stack, through its deployment: Distributed Map, rows, results and report."""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any
from uuid import UUID

import httpx
import pytest
from prefect.client.orchestration import get_client
from prefect.states import Cancelling, Scheduled

from local_aws.config import ROOT, LocalConfig, free_port
from local_aws.credentials import credentials
from settings import BULK_PREFIX, REVIEW_QUEUE_PREFIX, run_id
from tasks.aws import storage
from tasks.aws.clients import client
from tasks.data.dataset import png
from tasks.data.generated import FAR, draw
from tasks.evaluation import executions
from tasks.evaluation.catalogue import UnknownRun
from tasks.evaluation.results import Result, results_of
from tasks.evaluation.summary import STATUSES, EvaluationSummary
from tasks.report.story import stories
from tasks.report.subject import read_evaluation
from tasks.review.page import address
from tasks.review.queue import Waiting
from tasks.run import Run, utc_now
from testing.faults.bulk_runs import BulkLab
from testing.faults.checker import Verdict, check_bulk
from testing.faults.nights import Night
from testing.flow_runs import ended, processes_of, retried, started
from testing.pictures import huge_png
from testing.waiting import eventually
from tests.integration.conftest import read_json, reports_folder, run_flow

ENDS = ("Passed", "Missed", "Incomplete", "Failed")


@pytest.fixture(scope="module")
def images(installed: Any) -> list[tuple[str, str, bytes]]:
    """Key, label and content of the demo's test images."""
    listing = storage.get(installed.bucket, "manifests/test.lst")
    assert listing is not None
    rows = [line.split("\t") for line in listing.decode().splitlines()]
    found = []
    for _, index, name in rows:
        content = storage.get(installed.bucket, f"test/{name}")
        assert content is not None
        found.append((f"test/{name}", installed.classes[int(index)], content))
    return found


@pytest.fixture(scope="module")
def prefix(installed: Any) -> str:
    """A prefix with 60 unlabelled images."""
    name = f"incoming/{uuid.uuid4().hex[:8]}/"
    named = {
        f"{name}{number:03}.png": png(draw(installed.classes[number % 2], 70_000 + number)) for number in range(60)
    }
    storage.upload_changed(installed.bucket, name, named)
    return name


def begin(parameters: dict[str, Any], **settings: str) -> UUID:
    variables = {"SCONES_BULK_BATCH_SIZE": "10", **settings}
    return started("classify-images/local", parameters, variables)


def finished(installed: Any, run: UUID, *states: str) -> tuple[EvaluationSummary, list[Result]]:
    ended(run, *(states or ENDS))
    with get_client(sync_client=True) as prefect:
        expected = prefect.read_flow_run(run).expected_start_time
    identity = Run(run_id(run), (expected or utc_now()).date().isoformat(), BULK_PREFIX)
    keys = sorted(storage.list_etags(installed.bucket, f"{identity.prefix}summary"), key=len)
    summary = storage.get_record(installed.bucket, keys[-1], EvaluationSummary)
    assert summary is not None
    return summary, results_of(installed.bucket, summary)


def balanced(installed: Any, summary: EvaluationSummary, results: list[Result]) -> None:
    """Every planned image is in exactly one place, and no id came twice."""
    prefix = summary.identity.prefix
    manifest = storage.get_json_lines(installed.bucket, f"{prefix}manifest.jsonl") or []
    assert [row.key for row in results] == [line["key"] for line in manifest]
    counts = Counter(row.status for row in results)
    assert sum(counts.values()) == summary.planned == len({line["inference_id"] for line in manifest})
    assert {status: counts[status] for status in STATUSES} == {status: getattr(summary, status) for status in STATUSES}
    rows = [
        row["inference_id"]
        for key in storage.list_etags(installed.bucket, f"{prefix}parts/")
        for row in storage.get_json_lines(installed.bucket, key) or []
    ]
    assert len(rows) == len(set(rows))
    attempts = [attempt for row in results for attempt in (*row.previous_attempts, row)]
    assert set(rows) <= {attempt.inference_id for attempt in attempts}


def test_a_manifest_with_labels_and_bad_images(
    installed: Any, images: list[tuple[str, str, bytes]], evaluation: Any
) -> None:
    bucket, name = installed.bucket, f"incoming/{uuid.uuid4().hex[:8]}"
    storage.put(bucket, f"{name}/empty.png", b"")
    storage.put(bucket, f"{name}/large.png", huge_png())
    storage.put(bucket, f"{name}/ünï &=.png", images[1][2])
    lines = [{"key": key, "label": label} for key, label, _ in images]
    lines += [{"key": f"{name}/{each}"} for each in ("empty.png", "large.png", "missing.png", "ünï &=.png")]
    lines += [{"key": f"s3://{bucket}/{images[2][0]}", "label": images[2][1]}]  # a second time
    lines[3]["etag"] = '"0123456789abcdef0123456789abcdef"'
    text = "\n\n".join(json.dumps(line) for line in lines)
    storage.put(bucket, f"{name}/manifest.jsonl", text.encode())
    run = begin({"manifest": f"{name}/manifest.jsonl"})
    summary, results = finished(installed, run, "Passed", "Missed")
    balanced(installed, summary, results)
    assert summary.planned == len(images) + 4 and summary.bulk
    causes = [(row.key, row.cause) for row in results if row.status == "failed"]
    expected = {"ImageChanged": 1, "UnreadableImage": 1, "ImageTooLarge": 1, "ImageNotFound": 1}
    assert summary.errors == expected, causes
    assert summary.retried == 4 and summary.failed == 4
    # The same model says of the same images what it said through an execution for each.
    nightly = {row["key"]: (row["predicted_class"], row["status"]) for row in evaluation[1]}
    bulk = {row.key: (row.predicted_class, row.status) for row in results[: len(images)] if row.status != "failed"}
    assert len(bulk) == len(images) - 1
    assert {key: nightly[key] for key in bulk} == bulk
    folder = reports_folder() / summary.date / summary.run
    report = eventually(lambda: (folder / "summary.json").exists() and read_json(folder / "summary.json"), 120)
    assert (report["captured"], report["missing_captures"], report["labelled"]) == (
        len(images),
        [],
        len(images) - 1,
    )
    assert report["accuracy"] == pytest.approx(summary.accuracy)


def test_a_prefix_without_labels(installed: Any, prefix: str) -> None:
    summary, results = finished(installed, begin({"prefix": prefix}), "Passed", "Missed")
    balanced(installed, summary, results)
    assert summary.planned == 60 and summary.failed == 0
    assert (summary.accuracy, summary.accepted_accuracy) == (None, None)
    assert [gate.name for gate in summary.gates] == ["failed share", "coverage"]
    assert {row.label for row in results} == {None}
    folder = reports_folder() / summary.date / summary.run
    report = eventually(lambda: (folder / "summary.json").exists() and read_json(folder / "summary.json"), 120)
    assert (report["captured"], report["labelled"], report["accuracy"]) == (60, 0, None)
    assert report["inputs"]["n_current"] == 60 and "images" in {test["name"] for test in report["tests"]}
    assert not (folder / "confusion.png").exists()
    assert read_evaluation.fn(installed.bucket, None, summary.run).run == Run(summary.run, summary.date)
    with pytest.raises(UnknownRun, match="there is no run 'fedcba987654'"):
        read_evaluation.fn(installed.bucket, None, "fedcba987654")
    (story,) = stories(installed, results[0].inference_id, 1)
    assert story.histories[0].in_batch and "this batch" in story.histories[0].missing
    assert story.results == f"s3://{installed.bucket}/{summary.identity.table_prefix()}" and story.captures
    done = subprocess.run(
        [sys.executable, "-m", "cli", "why", results[0].key], cwd=ROOT, text=True, capture_output=True
    )
    assert "  this image  " in done.stdout and "any more" not in done.stdout, done.stderr


def queue_of(installed: Any, run: str) -> list[Waiting]:
    """What waits for a person, of a run."""
    keys = storage.list_etags(installed.bucket, f"{REVIEW_QUEUE_PREFIX}{run}-")
    found = [storage.get_record(installed.bucket, key, Waiting) for key in sorted(keys)]
    return [each for each in found if each is not None]


def test_pictures_of_other_things_are_counted_as_no_class(installed: Any) -> None:
    name = f"incoming/{uuid.uuid4().hex[:8]}/"
    drawn = {f"{name}{thing}-{seed}.png": png(draw(thing, seed)) for thing in FAR for seed in range(3)}
    storage.upload_changed(installed.bucket, name, drawn)
    summary, results = finished(installed, begin({"prefix": name}), "Passed", "Missed")
    balanced(installed, summary, results)
    assert 0 < summary.not_a_class <= summary.planned == len(drawn)
    for row in results:
        assert row.outlier_score is not None and (row.status == "not_a_class") == (row.outlier_score > 1)
    folder = reports_folder() / summary.date / summary.run
    report = eventually(lambda: (folder / "summary.json").exists() and read_json(folder / "summary.json"), 120)
    assert report["not_a_class"] == report["evaluation"]["not_a_class"] == summary.not_a_class
    rejected = {row.inference_id for row in results if row.status != "accepted"}
    assert eventually(lambda: rejected <= {each.inference_id for each in queue_of(installed, summary.run)}, 120)
    waiting = queue_of(installed, summary.run)
    for each in waiting:
        (row,) = (row for row in results if row.inference_id == each.inference_id)
        assert (each.key, each.confidence, each.probabilities) == (row.key, row.confidence, row.probabilities)
        assert each.reason == (row.status if row.status != "accepted" else "audit")
        assert each.sha256 == hashlib.sha256(drawn[each.key]).hexdigest()
    code = "import sys; from flows.queue_review import queue_review; print(queue_review(*sys.argv[1:]).already)"
    again = run_flow(code, summary.date, summary.run)
    assert again.returncode == 0, again.stderr
    assert again.stdout.splitlines()[-1] == str(len(waiting))
    assert queue_of(installed, summary.run) == waiting
    assert "Not a class, and farthest" in (folder / "report.html").read_text()


def test_the_demo_of_the_review_has_images_wait_and_serves_the_page(installed: Any) -> None:
    port, before = free_port(), set(storage.list_etags(installed.bucket, REVIEW_QUEUE_PREFIX))
    environment = {**os.environ, "SCONES_REVIEW_PORT": str(port)}
    command = [sys.executable, "review.py", "demo"]
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            eventually(lambda: process.poll() is not None or answers(port), 120)
            output.seek(0)
            assert process.poll() is None, output.read()
        finally:
            process.kill()
            process.wait()
    new = set(storage.list_etags(installed.bucket, REVIEW_QUEUE_PREFIX)) - before
    records = [storage.get_record(installed.bucket, key, Waiting) for key in new]
    assert records and all(record and record.key.startswith("incoming/generated-") for record in records)


def answers(port: int) -> bool:
    with suppress(httpx.HTTPError):
        token = credentials(LocalConfig()).review_token
        return "Who answers?" in httpx.get(address(port, token), follow_redirects=True).text
    return False


def test_a_night_of_many_images_runs_in_batches_survives_a_kill_and_is_judged_once(
    installed: Any, images: list[tuple[str, str, bytes]], evaluation: Any
) -> None:
    few = {"SCONES_EVALUATION_BULK_IMAGES": "5", "SCONES_BULK_BATCH_SIZE": "2", "SCONES_BULK_CONCURRENCY": "1"}
    run = started("nightly-evaluation/local", {}, few)
    name = f"{utc_now().date().isoformat()}/{run_id(run)}/"
    eventually(lambda: storage.list_etags(installed.bucket, f"{BULK_PREFIX}{name}parts/"))
    (process,) = processes_of(run)
    process.kill()
    summary, results = finished(installed, run, "Passed", "Missed")
    balanced(installed, summary, results)
    assert summary.bulk and summary.planned == summary.submitted == summary.executions == len(images)
    assert storage.list_etags(installed.bucket, f"{BULK_PREFIX}{name}manifest-a2.jsonl") == {}
    # The same model says of the same images what it said through an execution for each, and as well.
    nightly, rows, _ = evaluation
    assert {row.key: (row.predicted_class, row.status) for row in results} == {
        row["key"]: (row["predicted_class"], row["status"]) for row in rows
    }
    assert (summary.accuracy, summary.coverage) == (nightly["accuracy"], nightly["coverage"])
    there = storage.list_etags(installed.bucket, f"evaluations/{name}")
    assert storage.get_record(installed.bucket, f"evaluations/{name}summary.json", EvaluationSummary) == summary
    folder = reports_folder() / summary.date / summary.run
    report = eventually(lambda: (folder / "summary.json").exists() and read_json(folder / "summary.json"), 120)
    assert (report["captured"], report["missing_captures"]) == (len(images), [])
    retried(run, "Passed", "Missed")
    assert storage.list_etags(installed.bucket, f"evaluations/{name}") == there


def test_a_cancelled_run_says_what_it_did_and_goes_on(installed: Any, prefix: str) -> None:
    run = begin({"prefix": prefix}, SCONES_BULK_BATCH_SIZE="2", SCONES_BULK_CONCURRENCY="1")
    root = f"bulk/{utc_now().date().isoformat()}/{run_id(run)}/"
    eventually(lambda: storage.list_etags(installed.bucket, f"{root}parts/"))
    with get_client(sync_client=True) as prefect:
        prefect.set_flow_run_state(run, Cancelling())
        summary, results = finished(installed, run, "Cancelled")
        balanced(installed, summary, results)
        assert summary.outcome == "incomplete" and summary.not_submitted > 0 and summary.submitted > 0
        machine = installed.batch_state_machine_arn
        arn = executions.execution_arn(machine, f"bulk-{run_id(run)}-a1")
        assert client("stepfunctions").describe_execution(executionArn=arn)["status"] == "ABORTED"
        prefect.set_flow_run_state(run, Scheduled(name="AwaitingRetry"), force=True)
    summary, results = finished(installed, run, "Passed", "Missed")
    balanced(installed, summary, results)
    assert summary.submitted == 60 and summary.revision == 2


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("m.jsonl", b'{"key": "test/a.png"}\nnot json\n', "line 2 of .* is no JSON"),
        ("m.jsonl", b'{"key": "test/a.png", "label": "tractor"}\n', "its label 'tractor' is none of"),
        ("m.jsonl", b'{"key": "a", "label": "bicycle"}\n{"key": "a", "label": "motorcycle"}\n', "has a twice"),
        ("m.csv", b"name\ntest/a.png\n", "names no column key"),
        ("m.parquet", b"PAR1 no parquet", "can't be read as parquet"),
        ("m.jsonl", b"\n\n", "there is no image"),
        ("m.txt", b"", "is no manifest by its name"),
    ],
    ids=["no JSON", "unknown label", "two labels", "no column", "no Parquet", "empty", "unknown format"],
)
def test_a_bad_manifest_is_refused_before_anything_starts(
    installed: Any, name: str, content: bytes, reason: str
) -> None:
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from tasks.bulk import manifest

    key = f"incoming/{uuid.uuid4().hex[:8]}/{name}"
    storage.put(installed.bucket, key, content)
    with TemporaryDirectory() as folder, pytest.raises(manifest.ManifestError, match=reason):
        source = manifest.Source.of(installed.bucket, None, key, "2026-11-22")
        run = Run("0123456789ab", "2026-11-22", BULK_PREFIX)
        manifest.write(installed.bucket, source, run, installed.classes, Path(folder) / "manifest.jsonl")


@pytest.fixture(scope="module")
def lab(stack: LocalConfig, installed: Any) -> Iterator[BulkLab]:
    with BulkLab(stack, installed) as lab:
        yield lab


@pytest.fixture(scope="module")
def twice(lab: BulkLab) -> Night:
    """A run of which a batch ran a second time beside itself."""
    return lab.night("batch twice at once", 1, images=16)


@pytest.mark.parametrize("fault", ["part written, function fails", "worker killed in compaction"])
def test_a_fault_loses_nothing_and_doubles_nothing(lab: BulkLab, fault: str) -> None:
    night = lab.night(fault, 1, images=16)
    assert night.verdict.violations == [] and night.made.total()
    assert night.summary["planned"] == night.summary["submitted"] == 16


def test_the_checker_finds_what_is_planted(lab: BulkLab, twice: Night) -> None:
    assert twice.verdict.violations == [] and twice.made["batch again"] == 1
    world = lab.world(twice.summary["run"])
    key = world.keys("parts/")[0]
    content = lab.read(key)
    rows = [json.loads(line) for line in content.splitlines()]

    def verdict(*changed: dict[str, Any]) -> Verdict:
        lab.write(key, b"".join(json.dumps(row).encode() + b"\n" for row in changed))
        return check_bulk(world, set(), capture_seconds=0)

    try:
        assert "no part has it" in verdict(*rows[1:]).wrong[0]
        assert "has 2 rows in parts" in verdict(*rows, rows[0]).duplicated[0]
        assert verdict(*rows[1:], {**rows[0], "confidence": 0.123}).wrong
        stray = {**rows[0], "inference_id": f"{rows[0]['inference_id'].removesuffix('-a1')}-a7"}
        assert verdict(*rows, stray).lost
        assert verdict(*rows).violations == []
        assert check_bulk(replace(world, capture="data-capture/none/"), set(), capture_seconds=0).lost
        planned = world.lines("manifest.jsonl")
        assert check_bulk(world, {planned[0]["key"]}, capture_seconds=0).wrong
        lab.write(f"{world.prefix}manifest.jsonl", b"".join(json.dumps(line).encode() + b"\n" for line in planned[1:]))
        assert check_bulk(world, set(), capture_seconds=0).duplicated
    finally:
        lab.write(key, content)
