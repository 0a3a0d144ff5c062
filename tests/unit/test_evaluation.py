import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from msgspec.structs import replace

from settings import ROOT, run_id, settings
from tasks.evaluation.cost import (
    BATCH_FUNCTION_GB,
    BATCH_TRANSITIONS,
    FUNCTION_GB,
    FUNCTIONS,
    TRANSITIONS,
    bulk_cost,
    cost,
)
from tasks.evaluation.evaluation import EvaluationError, planned_images
from tasks.evaluation.executions import Execution
from tasks.evaluation.outcome import GateMissed, markdown, summarize, verdict
from tasks.evaluation.results import Planned, Result, not_submitted, result
from tasks.evaluation.summary import EvaluationSummary, Latency
from tasks.installation import DatasetNote, Installation, ServingEndpoint
from tasks.run import Run

INSTALLATION = Installation("bucket", "arn", "batch-arn", "endpoint", ("bicycle", "motorcycle"), 0.93, "role", "role")
ENDPOINT = ServingEndpoint("endpoint", "v7")
RUN = Run("5b52074c57ed", "2026-11-22")
NOTE = DatasetNote(source="generated", synthetic=True)
BEGUN = datetime(2026, 11, 22, 3, 30, tzinfo=UTC)


def planned_of(manifest: str) -> list[Planned]:
    return planned_images(manifest, INSTALLATION, "v7", RUN)


PLANNED = planned_of("0\t0\ta.png\n1\t1\tb.png\n2\t0\tc.png\n3\t1\td.png\n")


def execution(status: str, **fields: Any) -> Execution:
    content = {"output": None, "error": None, "cause": None, "started": BEGUN, "stopped": BEGUN, **fields}
    return Execution("arn:execution", status, {}, **content)


def accepted(predicted: str, **fields: Any) -> Execution:
    output = {"predicted_class": predicted, "confidence": 0.99, "threshold": 0.93}
    return execution("SUCCEEDED", output=output, **fields)


LOW = execution(
    "FAILED",
    error="LowConfidence",
    cause=json.dumps({"predicted_class": "bicycle", "confidence": 0.6, "threshold": 0.93}),
)


def summary_of(rows: list[Result]) -> EvaluationSummary:
    return summarize(rows, RUN, ENDPOINT, INSTALLATION.classes, NOTE, settings())


@pytest.fixture
def choose(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Changes settings for one test."""
    return lambda **changed: [monkeypatch.setattr(settings(), name, value) for name, value in changed.items()]


def test_inference_ids_are_distinct_and_fit_both_limits() -> None:
    ids = [image.inference_id for image in PLANNED]
    assert len(set(ids)) == 4
    assert all(len(name) == 36 and name.startswith("5b52074c57ed-") and name.endswith("-a1") for name in ids)
    again = PLANNED[0].as_attempt(2)
    assert again.inference_id == PLANNED[0].inference_id.removesuffix("1") + "2"
    assert (again.attempt, again.key) == (2, PLANNED[0].key)


def test_a_duplicate_in_the_manifest_is_planned_once() -> None:
    assert [image.key for image in planned_of("0\t0\ta.png\n1\t0\ta.png\n")] == ["test/a.png"]


@pytest.mark.parametrize(
    "manifest",
    [
        "just text",
        "0\t0",
        "0\t2\ta.png",
        "0\t-1\ta.png",
        "0\tx\ta.png",
        "0\t0\ta.png\textra",
        "0\t0\ta.png\n\n1\t1\tb.png",
    ],
)
def test_a_broken_manifest_is_named_with_its_line(manifest: str) -> None:
    with pytest.raises(EvaluationError, match=r"line \d of manifests/test.lst is not NUMBER, LABEL \(0 to 1\)"):
        planned_of(manifest)


def test_an_image_with_two_labels_is_refused() -> None:
    with pytest.raises(EvaluationError, match=r"a.png as bicycle and as motorcycle"):
        planned_of("0\t0\ta.png\n1\t1\ta.png\n")


@pytest.mark.parametrize(
    ("end", "status", "error"),
    [
        (accepted("bicycle"), "accepted", None),
        (LOW, "below_threshold", None),
        (execution("FAILED", error="ImageNotFound", cause="{}"), "failed", "ImageNotFound"),
        (execution("TIMED_OUT", error="States.Timeout"), "failed", "States.Timeout"),
        (execution("ABORTED"), "failed", "ABORTED"),
        (execution("SUCCEEDED", output={"other": 1}), "failed", "UnknownDecision"),
        (execution("SUCCEEDED"), "failed", "UnknownDecision"),
        (execution("FAILED", error="LowConfidence", cause="no json"), "failed", "UnknownDecision"),
    ],
)
def test_every_end_has_its_status(end: Execution, status: str, error: str | None) -> None:
    row = result(PLANNED[0], end)
    assert (row.status, row.error) == (status, error)


def test_a_line_of_json_gives_the_same_row_again() -> None:
    earlier = result(PLANNED[0], execution("ABORTED"))
    row = replace(result(PLANNED[0].as_attempt(2), accepted("bicycle")), previous_attempts=(earlier,))
    assert Result.from_json(json.loads(json.dumps(row.to_json())), "results.jsonl") == row
    assert Planned.from_json(PLANNED[0].to_json(), "manifest.jsonl") == PLANNED[0]


def test_the_summary_adds_up() -> None:
    ends = [accepted("bicycle"), LOW, execution("ABORTED")]
    rows = [result(image, end) for image, end in zip(PLANNED, ends, strict=False)]
    rows.append(not_submitted(PLANNED[3]))
    summary = summary_of(rows)
    assert summary.planned == summary.submitted + summary.not_submitted == 4
    assert summary.submitted == summary.accepted + summary.below_threshold + summary.failed == 3
    assert summary.accuracy == 0.5
    assert summary.accepted_accuracy == 1.0
    assert summary.errors == {"ABORTED": 1}
    assert summary.executions == 3
    assert summary.confusion.classified == {
        "bicycle": {"bicycle": 1, "motorcycle": 0},
        "motorcycle": {"bicycle": 1, "motorcycle": 0},
    }
    assert summary.confusion.accepted["motorcycle"] == {"bicycle": 0, "motorcycle": 0}
    assert summary.outcome == "incomplete"
    assert verdict(summary) == "Incomplete: 1 of 4 images were not submitted"


def test_a_summary_of_nothing_has_no_shares() -> None:
    summary = summary_of([])
    assert summary.accuracy is summary.coverage is summary.accepted_accuracy is None
    assert summary.outcome == "missed"
    assert "no image was classified" in verdict(summary)


def test_latencies_are_percentiles_of_the_executions() -> None:
    ends = [accepted("bicycle", stopped=BEGUN + timedelta(seconds=seconds)) for seconds in (1, 2, 3, 4)]
    rows = [result(image, end) for image, end in zip(PLANNED, ends, strict=True)]
    assert summary_of(rows).latency_seconds == Latency(p50=2.5, p90=3.7, p99=3.97, max=4.0)


def test_a_missed_gate_is_named_with_its_distance(choose: Any) -> None:
    choose(evaluation_min_accuracy=0.85, evaluation_min_coverage=0.5, evaluation_max_failed=0.05)
    right, wrong = accepted("bicycle"), accepted("motorcycle")
    good = summary_of([result(PLANNED[0], right), result(PLANNED[2], right)])
    assert (good.outcome, good.gates_missed) == ("passed", ())
    assert verdict(good) == "Passed: 2 of 2 images accepted, accuracy 1.000, coverage 1.000, 0 failed"
    bad = summary_of([result(PLANNED[0], wrong), result(PLANNED[2], execution("ABORTED"))])
    assert bad.outcome == "missed"
    assert bad.gates_missed == ("failed share 0.500 is 0.450 over 0.05", "accuracy 0.000 is 0.850 under 0.85")
    assert str(GateMissed(bad)).startswith("Missed: failed share 0.500 is 0.450 over 0.05; accuracy 0.000 is 0.850")


def test_the_cost_counts_every_attempt_and_the_prices_fit_the_workflow() -> None:
    once = result(PLANNED[0], accepted("bicycle", stopped=BEGUN + timedelta(seconds=1)))
    twice = replace(once, previous_attempts=(once,))
    single, double = cost([once], "ml.m5.large", 1), cost([twice], "ml.m5.large", 1)
    assert double.state_transitions == pytest.approx(2 * single.state_transitions, abs=1e-6)
    assert single.state_transitions == pytest.approx(TRANSITIONS * 0.000025)
    assert single.functions == pytest.approx(3 * 2e-7 + 0.5 * 0.0000166667, abs=1e-6)
    assert single.endpoint == pytest.approx(0.115 / 3600, abs=1e-6)
    assert cost([], "ml.m5.large", 1).total is None
    template = (ROOT / "infrastructure" / "workflow.yaml").read_text()
    *sizes, of_batches = [int(line.split(":")[1]) for line in template.splitlines() if "MemorySize:" in line]
    assert (len(sizes), max(sizes)) == (FUNCTIONS, FUNCTION_GB * 1024)
    assert of_batches == BATCH_FUNCTION_GB * 1024
    million = bulk_cost(1_000_000, 10_000, 10_000 * 3.0, 3600, "ml.m5.large", 1)
    assert million.state_transitions == pytest.approx(10_000 * BATCH_TRANSITIONS * 0.000025)
    assert million.requests == pytest.approx(1_020_000 * 4e-7 + (10_000 + 1012) * 5e-6, rel=1e-3)
    assert million.total == pytest.approx(
        million.state_transitions + million.functions + million.requests + 0.115, abs=1e-5
    )
    states = json.loads((ROOT / "statemachine" / "classify_image.asl.json").read_text())["States"]
    way = ["SerializeImageData", "ClassifyImage", "FilterLowConfidence", "Decide", "Accepted"]
    assert set(way) <= set(states)
    assert len(way) + 2 == TRANSITIONS


def test_an_unknown_instance_type_has_no_price() -> None:
    assert cost([result(PLANNED[0], accepted("bicycle"))], "ml.unheard.of", 1).total is None


def test_the_artifact_begins_with_the_verdict_and_keeps_hostile_text_in_its_cell() -> None:
    hostile = execution(
        "FAILED", error="Oops|<b>", cause="line\n| next | `x` <script>alert(1)</script>", failed_state="A|B"
    )
    rows = [result(image, hostile) for image in PLANNED]
    text = markdown(summary_of(rows), rows, "bucket", RUN.prefix)
    assert text.startswith("# Missed: failed share 1.000")
    lines = [line for line in text.splitlines() if "test/a.png" in line]
    assert len(lines) == 1
    assert lines[0].count("|") == 6
    assert "<script>" not in text


def test_a_long_list_of_failures_is_cut() -> None:
    images = planned_of("".join(f"{n}\t0\t{n}.png\n" for n in range(60)))
    rows = [result(image, execution("ABORTED")) for image in images]
    text = markdown(summary_of(rows), rows, "bucket", RUN.prefix)
    assert "and 10 more" in text
    assert text.count("ABORTED") < 60


def test_each_judgement_of_a_run_has_files_of_its_own() -> None:
    run = Run("a" * 12, "2026-11-22")
    assert run.summary_key(2) == "evaluations/2026-11-22/aaaaaaaaaaaa/summary-2.json"
    assert run.results_key() == "evaluations/2026-11-22/aaaaaaaaaaaa/results.jsonl"


def test_runs_that_a_schedule_makes_together_have_runs_of_their_own() -> None:
    """Ids of flow runs are UUIDs of version 7: what is made in the same millisecond begins alike."""
    from prefect._internal.uuid7 import uuid7

    ids = [uuid7() for _ in range(100)]
    assert len({each.hex[:12] for each in ids}) < 100
    assert len({run_id(each) for each in ids}) == 100
    assert run_id(str(ids[0])) == run_id(ids[0]) == ids[0].hex[-12:]
