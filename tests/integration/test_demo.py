"""The whole pipeline through the Prefect server, the worker and the deployments."""

import json
import subprocess
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
from prefect.client.orchestration import get_client

from local_aws.config import ROOT
from tasks import storage
from tasks.charts import CHARTS
from tests.integration.conftest import read_json, reports_folder, run_demo, run_flow

Evaluation = tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]


def test_the_demo_ends_well_and_says_what_came_of_it(demo: subprocess.CompletedProcess[str]) -> None:
    assert demo.returncode == 0, demo.stdout + demo.stderr
    for text in ("GENERATED images", "images planned   20", "accuracy", "Prefect UI", "epoch=12/12", "InService"):
        assert text in demo.stdout


def test_every_image_is_accounted_for(evaluation: Evaluation) -> None:
    summary, results, manifest = evaluation
    assert summary["planned"] == len(results) == len(manifest) == 20
    assert summary["submitted"] == summary["accepted"] + summary["below_threshold"] + summary["failed"] == 20
    assert summary["failed"] == 0
    assert summary["model_version"] == "v1"
    assert summary["dataset"]["synthetic"] is True
    assert [row["inference_id"] for row in results] == [row["inference_id"] for row in manifest]
    for row in results:
        assert row["schema_version"] == 1
        assert row["inference_id"].startswith(summary["run"])
        expected = "accepted" if row["confidence"] >= row["threshold"] else "below_threshold"
        assert row["status"] == expected


def test_every_inference_is_captured_once(installed: Any, evaluation: Evaluation) -> None:
    _, results, _ = evaluation
    ids = []
    for key in storage.list_etags(installed.bucket, f"data-capture/{installed.endpoint}/v1/"):
        for line in (storage.get(installed.bucket, key) or b"").splitlines():
            record = json.loads(line)
            assert record["captureData"]["endpointInput"]["encoding"] == "BASE64"
            assert record["captureData"]["endpointOutput"]["encoding"] == "JSON"
            ids.append(record["eventMetadata"]["inferenceId"])
    counted = sorted(name for name in ids if not name.startswith("smoke-"))
    assert counted == sorted(row["inference_id"] for row in results)


def test_the_report_is_here_and_in_the_bucket(installed: Any, evaluation: Evaluation) -> None:
    summary, _, _ = evaluation
    folder = reports_folder() / summary["date"] / summary["run"]
    tables = {"quarantine.jsonl", "reconciliation.jsonl", "inferences.parquet"}
    names = {*(f"{chart}.png" for chart in CHARTS), "trend.png", "report.html", "summary.json", *tables}
    assert {path.name for path in folder.iterdir()} == names
    assert names <= {path.name for path in folder.parent.iterdir()}
    report = read_json(folder / "summary.json")
    assert report["captured"] == 20
    assert report["provisional"] is False
    assert report["accuracy"] == summary["accuracy"]
    assert report["quarantined_lines"] == 0
    assert summary["model_version"] in (folder / "report.html").read_text()
    index = (reports_folder() / "index.html").read_text()
    assert f"{summary['date']}/{summary['run']}/report.html" in index
    prefix = f"reports/{summary['date']}/{summary['run']}/"
    assert {key.removeprefix(prefix) for key in storage.list_etags(installed.bucket, prefix)} == names


REPORT = """
import json, sys
from datetime import datetime
from flows.confidence_report import confidence_report
since, until = (datetime.fromisoformat(text) for text in sys.argv[3:5]) if sys.argv[3:] else (None, None)
print(json.dumps(confidence_report(*sys.argv[1:3], since, until)))
"""


def test_the_same_report_is_the_same_byte_for_byte(evaluation: Evaluation, tmp_path: Path) -> None:
    """In another folder, and with nothing kept of what was decoded before."""
    summary, _, _ = evaluation
    again = run_flow(
        REPORT, summary["date"], summary["run"], SCONES_REPORTS=str(tmp_path / "r"), SCONES_CACHE=str(tmp_path / "c")
    )
    assert again.returncode == 0, again.stderr
    first = reports_folder() / summary["date"] / summary["run"]
    other = tmp_path / "r" / summary["date"] / summary["run"]
    assert sorted(path.name for path in first.iterdir()) == sorted(path.name for path in other.iterdir())
    for path in first.iterdir():
        assert path.read_bytes() == (other / path.name).read_bytes(), path.name


def test_a_window_shows_all_that_the_endpoint_answered(evaluation: Evaluation, tmp_path: Path) -> None:
    summary, results, _ = evaluation
    stopped = datetime.fromisoformat(summary["stopped"])
    times = [(stopped - timedelta(hours=1)).isoformat(), stopped.isoformat()]
    window = run_flow(REPORT, "", "", *times, SCONES_REPORTS=str(tmp_path))
    assert window.returncode == 0, window.stderr
    report = json.loads(window.stdout.splitlines()[-1])
    assert report["labelled"] == len(results) == 20
    assert report["captured"] > 20  # the smoke test's too
    assert report["reconciliation"]["capture_without_execution"] == report["captured"] - 20
    assert report["accuracy"] == summary["accuracy"]
    folder = tmp_path / report["date"] / report["run"]
    assert len(pd.read_parquet(folder / "inferences.parquet")) == report["captured"]
    assert "Evaluations: 1, not passed: 0" in (folder / "report.html").read_text()
    assert not (tmp_path / report["date"] / "report.html").exists()  # that is an evaluation's


def test_a_second_demo_reuses_data_model_and_endpoint(demo: subprocess.CompletedProcess[str]) -> None:
    again = run_demo("--dataset", "generated")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "0 of them uploaded" in again.stdout
    assert "serves v1 already" in again.stdout
    assert "epoch=" not in again.stdout
    assert "scones-unlimited: unchanged" in again.stdout


def test_runs_have_names_tags_and_artifacts(demo: subprocess.CompletedProcess[str]) -> None:
    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs()
        deployments = {deployment.name for deployment in client.read_deployments()}
        artifacts = {artifact.key for artifact in client.read_artifacts()}
        automations = client.request("POST", "/automations/filter", json={}).json()
    assert deployments == {"local"}
    pipeline = next(run for run in runs if run.name.startswith("pipeline"))
    assert pipeline.tags == ["pipeline", "scones"] or set(pipeline.tags) == {"pipeline", "scones"}
    assert {"nightly-evaluation", "confidence-report"} <= artifacts
    assert any("heartbeat" in automation["name"] for automation in automations)


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
