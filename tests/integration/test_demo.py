"""The whole pipeline through the Prefect server, the worker and the deployments."""

import json
import os
import re
import subprocess
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
from prefect.client.orchestration import get_client

from deploy import bring_up
from local_aws.config import ROOT, LocalConfig
from tasks.aws import storage
from tasks.evaluation.summary import DECIDED
from tasks.report.charts import CHARTS
from tests.integration.conftest import read_json, reports_folder, run_demo, run_flow

Evaluation = tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]


def test_the_demo_ends_well_and_says_what_came_of_it(demo: subprocess.CompletedProcess[str]) -> None:
    assert demo.returncode == 0, demo.stdout + demo.stderr
    for text in ("GENERATED images", "images planned   20", "accuracy", "Prefect UI", "epoch=12/12", "InService"):
        assert text in demo.stdout


def test_every_image_is_accounted_for(evaluation: Evaluation) -> None:
    summary, results, manifest = evaluation
    assert summary["planned"] == len(results) == len(manifest) == 20
    assert summary["submitted"] == sum(summary[status] for status in (*DECIDED, "failed")) == 20
    assert summary["failed"] == 0
    assert summary["model_version"] == "v1"
    assert summary["dataset"]["synthetic"] is True
    assert [row["inference_id"] for row in results] == [row["inference_id"] for row in manifest]
    for row in results:
        assert row["schema_version"] == 1
        assert row["inference_id"].startswith(summary["run"])
        expected = "accepted" if row["confidence"] >= row["threshold"] else "below_threshold"
        assert row["status"] == ("not_a_class" if row["outlier_score"] > 1 else expected)


def test_every_inference_is_captured_once(installed: Any, evaluation: Evaluation) -> None:
    summary, results, _ = evaluation
    ids = []
    for key in storage.list_etags(installed.bucket, f"data-capture/v1/{installed.endpoint}/primary/"):
        for line in (storage.get(installed.bucket, key) or b"").splitlines():
            record = json.loads(line)
            assert record["captureData"]["endpointInput"]["encoding"] == "BASE64"
            assert record["captureData"]["endpointOutput"]["encoding"] == "JSON"
            ids.append(record["eventMetadata"]["inferenceId"])
    counted = sorted(name for name in ids if name.startswith(summary["run"]))
    assert counted == sorted(row["inference_id"] for row in results)


def test_the_report_is_here_and_in_the_bucket(installed: Any, evaluation: Evaluation) -> None:
    summary, _, _ = evaluation
    folder = reports_folder() / summary["date"] / summary["run"]
    tables = {"quarantine.jsonl", "reconciliation.jsonl", "inferences.parquet"}
    pages = {"report.html", "executions.html"}
    names = {*(f"{chart}.png" for chart in CHARTS), "trend.png", *pages, "summary.json", *tables}
    assert {path.name for path in folder.iterdir()} == names
    assert names <= {path.name for path in folder.parent.iterdir()}
    report = read_json(folder / "summary.json")
    assert report["captured"] == 20
    assert report["provisional"] is False
    assert report["accuracy"] == summary["accuracy"]
    assert report["quarantined_lines"] == 0
    page, histories = (folder / "report.html").read_text(), (folder / "executions.html").read_text()
    assert summary["model_version"] in page
    linked = re.findall(r'href="executions.html#([^"]+)"', page)
    assert linked and all(f'id="{name}"' in histories for name in linked)
    assert "FilterLowConfidence" in histories and "image_data" in histories and len(histories) < 1_000_000
    index = (reports_folder() / "index.html").read_text()
    assert f"{summary['date']}/{summary['run']}/report.html" in index
    prefix = f"reports/{summary['date']}/{summary['run']}/"
    assert {key.removeprefix(prefix) for key in storage.list_etags(installed.bucket, prefix)} == names


REPORT = """
import json, sys
from datetime import datetime
from flows.confidence_report import confidence_report
since, until = (datetime.fromisoformat(text) for text in sys.argv[3:5]) if sys.argv[3:] else (None, None)
print(json.dumps(confidence_report(*sys.argv[1:3], since, until).to_json()))
"""


def test_the_same_report_is_the_same_byte_for_byte(evaluation: Evaluation, tmp_path: Path) -> None:
    """In another folder, and with nothing kept of what was decoded before."""
    summary, _, _ = evaluation
    for name in ("first", "other"):
        folders = {"SCONES_REPORTS": str(tmp_path / name), "SCONES_CACHE": str(tmp_path / f"cache-{name}")}
        written = run_flow(REPORT, summary["date"], summary["run"], **folders)
        assert written.returncode == 0, written.stderr
    first, other = (tmp_path / name / summary["date"] / summary["run"] for name in ("first", "other"))
    of_demo = reports_folder() / summary["date"] / summary["run"]
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in other.iterdir()) == sorted(path.name for path in of_demo.iterdir())
    for name in names:
        assert (first / name).read_bytes() == (other / name).read_bytes(), name
        # Page and summary also tell how many images wait for a person by now.
        assert name.startswith(("report", "summary")) or (of_demo / name).read_bytes() == (first / name).read_bytes(), (
            name
        )


def test_a_window_shows_all_that_the_endpoint_answered(evaluation: Evaluation, tmp_path: Path) -> None:
    summary, results, _ = evaluation
    stopped = datetime.fromisoformat(summary["stopped"])
    times = [(stopped - timedelta(hours=1)).isoformat(), stopped.isoformat()]
    window = run_flow(REPORT, "", "", *times, SCONES_REPORTS=str(tmp_path))
    assert window.returncode == 0, window.stderr
    report = json.loads(window.stdout.splitlines()[-1])
    assert report["labelled"] == len(results) == 20
    assert report["captured"] == report["inferences"] == 20  # smoke tests do not count
    assert report["reconciliation"]["capture_without_execution"] == 0
    assert report["accuracy"] == summary["accuracy"]
    folder = tmp_path / report["date"] / report["run"]
    assert len(pd.read_parquet(folder / "inferences.parquet")) == report["captured"]
    assert "Evaluations: 1, not passed: 0" in (folder / "report.html").read_text()
    assert not (tmp_path / report["date"] / "report.html").exists()  # that is an evaluation's


def test_a_second_demo_keeps_data_and_model_and_says_what_it_missed(
    demo: subprocess.CompletedProcess[str], stack: LocalConfig
) -> None:
    """Without DATASET, and from a shell with another setting, which `make demo` hands to the worker."""
    again = run_demo(SCONES_EVALUATION_MIN_COVERAGE="1")
    try:
        assert again.returncode == 1, again.stdout + again.stderr
        assert "restarted the worker: SCONES_EVALUATION_MIN_COVERAGE: 0 -> 1" in again.stdout
        assert "GENERATED images" in again.stdout and "cifar" not in again.stdout
        assert "0 of them uploaded" in again.stdout
        assert "serves v1 already" in again.stdout
        assert "epoch=" not in again.stdout
        assert "scones-unlimited: unchanged" in again.stdout
        assert "  verdict          Missed: coverage " in again.stdout
        page = re.search(r"^  report +(.*report.html)$", again.stdout, re.MULTILINE)
        assert page and "coverage" in Path(page[1]).read_text()
        assert "Traceback" not in again.stdout + again.stderr
        assert f"`. {os.path.relpath(stack.state / 'env.sh', ROOT)}`" in again.stdout
    finally:
        bring_up(stack)


def test_an_installation_keeps_its_images_until_it_is_given_others(installed: Any, tmp_path: Path) -> None:
    note = storage.get_json(installed.bucket, "manifests/dataset.json")
    assert note["given"] == "generated" and note["since"]
    prepare = """
import sys
from flows.prepare_data import prepare_data
print(prepare_data(*sys.argv[1:]).since)
"""
    # The setting names another data set, which can't be had: it is not asked for.
    kept = run_flow(prepare, SCONES_DATASET="cifar100", SCONES_CIFAR_URL="http://127.0.0.1:9/none.tar.gz")
    assert kept.stdout.splitlines()[-1] == note["since"], kept.stderr
    assert "SCONES_DATASET is cifar100, and this installation keeps generated" in kept.stderr
    wrong = run_flow(prepare, str(tmp_path / "none.tar.gz"))
    assert wrong.returncode != 0 and "no archive at" in wrong.stderr
    assert storage.get_json(installed.bucket, "manifests/dataset.json") == note


def test_runs_have_names_tags_and_artifacts(demo: subprocess.CompletedProcess[str]) -> None:
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs()
        deployments = {deployment.name for deployment in client.read_deployments()}
        artifacts = {artifact.key for artifact in client.read_artifacts()}
    assert deployments == {"local"}
    pipeline = next(run for run in runs if run.name.startswith("pipeline"))
    assert pipeline.tags == ["pipeline", "scones"] or set(pipeline.tags) == {"pipeline", "scones"}
    assert {"nightly-evaluation", "confidence-report"} <= artifacts
    evaluations = [run.name for run in runs if run.name.startswith("nightly-evaluation")]
    assert any(" | passed: " in name or " | missed: " in name for name in evaluations), evaluations


def test_a_deployment_runs_from_another_shell_and_starts_the_report(installed: Any) -> None:
    """As the README shows it: the shell sources env.sh and calls prefect."""
    done = subprocess.run(
        ["sh", "-c", '. "$SCONES_STATE/env.sh" && prefect deployment run nightly-evaluation/local --watch'],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # It ends with the verdict and where the report is, and says how it ended.
    told = " ".join(done.stdout.split())
    assert "Passed: " in told and "The report follows at" in told and "report.html" in told
    assert told.endswith("Flow run finished successfully in 'Passed'.")
    wait = """
import sys, time
from prefect.client.orchestration import get_client
with get_client(sync_client=True) as client:
    for _ in range(120):
        runs = [r for r in client.read_flow_runs() if r.deployment_id and r.name.startswith("confidence-report")]
        done = [r for r in runs if r.state and r.state.is_final()]
        if done:
            print(done[0].state.name, done[0].parameters)
            break
        time.sleep(0.5)
"""
    assert "Completed" in run_flow(wait).stdout
