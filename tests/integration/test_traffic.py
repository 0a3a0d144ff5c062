"""Traffic against the demo's endpoint and workflow, and the drift that a report then tells of."""

import json
from datetime import datetime
from typing import Any

import pytest

from flows.confidence_report import confidence_report
from flows.generate_traffic import generate_traffic
from tasks.aws import storage
from tasks.aws.clients import client
from testing.waiting import eventually
from tests.integration.conftest import read_json, reports_folder


def captured(installed: Any) -> int:
    """How many of the traffic's inferences are in the bucket by now."""
    keys = storage.list_etags(installed.bucket, "data-capture/")
    lines = [line for key in keys for line in (storage.get(installed.bucket, key) or b"").splitlines()]
    ids = {json.loads(line)["eventMetadata"].get("inferenceId", "") for line in lines}
    return sum(name.startswith("traffic-") for name in ids)


def test_a_drift_that_begins_half_way_is_in_the_report(installed: Any) -> None:
    calm = generate_traffic(per_minute=900, minutes=0.2)
    assert calm.sent == 180 and calm.failed == {}
    drifted = generate_traffic(per_minute=900, minutes=0.2, drift="darkness")
    assert drifted.failed == {}
    eventually(lambda: captured(installed) >= calm.sent + drifted.sent)  # records come a moment after the answers
    since, until = (datetime.fromisoformat(text) for text in (calm.since, drifted.until))
    summary = confidence_report(since=since, until=until)
    names = {path.name for path in (reports_folder() / summary.date / summary.run).iterdir()}
    assert "report.html" in names and "confidence_scatter.png" in names
    written = read_json(reports_folder() / summary.date / summary.run / "summary.json")
    assert written["captured"] >= calm.sent + drifted.sent  # the demo may have ended in the same minute
    assert any("images" in alert for alert in summary.alerts), summary.alerts


def test_traffic_through_the_workflow_starts_executions(installed: Any) -> None:
    sent = generate_traffic(per_minute=600, minutes=0.02, through="workflow")
    assert sent.sent == 12 and sent.failed == {}
    pages = (
        client("stepfunctions").get_paginator("list_executions").paginate(stateMachineArn=installed.state_machine_arn)
    )
    names = [each["name"] for page in pages for each in page["executions"] if each["name"].startswith("traffic-")]
    assert len(names) == 12


def test_traffic_that_makes_no_sense_is_refused_at_once(installed: Any) -> None:
    with pytest.raises(Exception, match="it is more than 0"):
        generate_traffic(per_minute=0)
