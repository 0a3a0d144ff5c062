"""The nightly evaluation against the local stack: under faults, cancelled, resumed, and asked about one image."""

import http.server
import json
import re
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import boto3
import httpx
import pytest
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.events.filters import EventFilter, EventResourceFilter
from prefect.states import Cancelling, Scheduled

from deploy import DeploymentError, bring_up
from local_aws.config import ROOT, LocalConfig
from settings import run_id, settings
from tasks.evaluation import evaluation
from tasks.evaluation.executions import Executions, execution_arn, start
from tasks.evaluation.results import Result
from tasks.installation import ServingEndpoint
from testing.faults.checker import World, check
from testing.faults.nights import BAD_IMAGES, Lab, Night
from testing.flow_runs import ended, processes_of, started
from watch.__main__ import LOOK_SECONDS
from watch.notices import BLOCK


@pytest.fixture(scope="module")
def lab(stack: LocalConfig, installed: Any) -> Iterator[Lab]:
    with Lab(stack, installed) as lab:
        yield lab


@pytest.fixture(scope="module")
def bad_night(lab: Lab) -> Night:
    """A night with images that can't be classified."""
    return lab.night("bad images", 1, images=20)


@pytest.mark.parametrize(
    "fault",
    [
        "worker killed",
        "response of StartExecution lost",
        "ministack restarted",
    ],
)
def test_a_fault_loses_nothing_and_doubles_nothing(lab: Lab, fault: str) -> None:
    night = lab.night(fault, 1, images=20)
    assert night.verdict.violations == []
    assert night.summary["planned"] == 20
    assert night.summary["not_submitted"] == 0
    run = flow_run_named(night.summary["run"])
    with get_client(sync_client=True) as prefect:
        running = [
            task.name
            for task in prefect.read_task_runs()
            if task.flow_run_id == run.id and task.state and task.state.is_running()
        ]
    assert running == []


def test_bad_images_fail_by_name_and_their_neighbours_do_not(bad_night: Night) -> None:
    assert bad_night.verdict.violations == []
    assert bad_night.summary["errors"] == {"UnreadableImage": 3, "ImageTooLarge": 1, "ImageNotFound": 1}
    assert bad_night.summary["retried"] == 5
    assert bad_night.summary["executions"] == 25


def test_a_missed_gate_fails_the_run_and_says_by_how_much(lab: Lab, bad_night: Night) -> None:
    run = flow_run_named(bad_night.summary["run"])
    assert (run.state.name, run.state.type.value) == ("Missed", "FAILED")
    assert "| missed: failed share 0.250 is 0.200 over 0.05" in run.name
    assert run.state.message.startswith("Missed: failed share 0.250 is 0.200 over 0.05")
    rows = lab.world(bad_night.summary["run"]).lines("results.jsonl")
    failed = [row for row in rows if row["status"] == "failed"]
    assert {row["failed_state"] for row in failed} == {"SerializeImageData", "ClassifyImage"}
    assert all(row["cause"] and row["previous_attempts"][0]["attempt"] == 1 for row in failed)
    said = [json.loads(row["cause"])["errorMessage"] for row in failed]
    assert all("\n" not in text and len(text) < 700 for text in said), said


def test_the_run_shows_verdict_and_progress_as_artifacts(bad_night: Night) -> None:
    run = flow_run_named(bad_night.summary["run"])
    with get_client(sync_client=True) as prefect:
        artifacts = prefect.read_artifacts(
            artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]))
        )
        tasks = [task.name for task in prefect.read_task_runs() if task.flow_run_id == run.id]
    text = next(str(each.data) for each in artifacts if each.key == "nightly-evaluation")
    assert text.startswith("# Missed: failed share")
    assert "| test/vanished.png | SerializeImageData | ImageNotFound |" in text
    assert [each.data for each in artifacts if each.type == "progress"] == [100.0, 100.0]
    assert sorted(tasks)[:2] == ["attempt 1: images 1 to 20 of 20", "attempt 2: images 1 to 5 of 5"]


def test_the_checker_finds_what_is_planted(lab: Lab, bad_night: Night) -> None:
    world = lab.world(bad_night.summary["run"])
    bad = {f"test/{name}.png" for name in ("corrupt", "empty", "oversized", "truncated", "vanished")}
    rows = world.lines("results.jsonl")
    decided = next(row for row in rows if row["status"] != "failed")
    other = "below_threshold" if decided["status"] == "accepted" else "accepted"

    def verdict_on(changed: list[dict[str, Any]]) -> Any:
        body = "".join(json.dumps(row) + "\n" for row in changed).encode()
        world.s3.put_object(Bucket=world.bucket, Key=f"{world.prefix}results.jsonl", Body=body)
        return check(world, bad, capture_seconds=0)

    try:
        assert verdict_on([row for row in rows if row is not decided]).lost
        assert verdict_on([*rows, decided]).duplicated
        assert verdict_on([{**row, "status": other} if row is decided else row for row in rows]).wrong
        assert verdict_on([{**row, "confidence": 0.123} if row is decided else row for row in rows]).wrong
        assert verdict_on(list(reversed(rows))).wrong
        assert verdict_on([{**row, "previous_attempts": []} for row in rows]).lost
        assert not verdict_on(rows).violations
        elsewhere = World(world.s3, world.states, world.bucket, world.state_machine, world.prefix, "data-capture/none/")
        assert check(elsewhere, bad, capture_seconds=0).lost
        assert check(world, bad - {"test/vanished.png"}, capture_seconds=0).wrong
        stray = f"{decided['inference_id'].removesuffix('-a1')}-a7"
        start(world.state_machine, stray, {"bucket": world.bucket, "key": decided["key"]})
        assert f"execution {stray} is in no result" in verdict_on(rows).lost
    finally:
        verdict_on(rows)


class CancelledRun(NamedTuple):
    """A run of 20 images that was cancelled, and what was there of it then: somebody may retry it later."""

    id: UUID
    name: str
    summary: dict[str, Any]
    violations: list[str]


@pytest.fixture(scope="module")
def cancelled(lab: Lab) -> CancelledRun:
    lab.plan(lab.schedule("cancelled"), 20)
    goal = lab.progress() + 6
    run = started("nightly-evaluation/local", {}, {**lab.variables, "SCONES_EXECUTIONS_IN_FLIGHT": "2"})
    lab.wait_for(goal)
    with get_client(sync_client=True) as prefect:
        prefect.set_flow_run_state(run, Cancelling())
    ended(run, "Cancelled")
    world = lab.world(run_id(run))
    found = until(lambda: next((each for each in [flow_run_named(run_id(run))] if " | " in each.name), None))
    return CancelledRun(run, found.name, world.summary(), check(world, set(), cancelled=True).violations)


def test_a_cancelled_run_stops_its_executions_and_accounts_for_the_rest(cancelled: CancelledRun) -> None:
    summary = cancelled.summary
    assert summary["outcome"] == "incomplete"
    assert 0 < summary["not_submitted"] < 20
    assert cancelled.violations == []
    says = f"Incomplete: {summary['not_submitted']} of 20 images were not submitted"
    assert cancelled.name.endswith(f" | cancelled: {says}")


def test_a_run_that_is_retried_by_hand_goes_on_and_one_that_is_done_does_nothing_again(
    lab: Lab, cancelled: CancelledRun
) -> None:
    """As the Retry of the Prefect UI schedules it."""
    run = cancelled.id
    world = lab.world(run_id(run))
    before = world.judgements()
    assert set(before) == {"results.jsonl", "summary.json"}
    for _ in range(2):
        judged = world.judgements()
        with get_client(sync_client=True) as prefect:
            prefect.set_flow_run_state(run, Scheduled(name="AwaitingRetry"), force=True)
        ended(run, "Passed")
        assert check(world, set()).violations == []
        assert world.summary()["planned"] == world.summary()["submitted"] == 20
    # What was judged stands; going on with what was incomplete is a judgement of its own.
    assert world.judgements() == judged
    assert {name: judged[name] for name in before} == before
    assert set(judged) == {*before, "results-2.jsonl", "summary-2.json"}
    assert world.summary()["supersedes"] == f"{world.prefix}summary.json"
    executions = world.executions(datetime(2000, 1, 1, tzinfo=UTC))
    assert len(executions) == world.summary()["executions"]
    wanted = EventFilter(resource=EventResourceFilter(id=[f"scones.evaluation.{run_id(run)}"]))
    with get_client(sync_client=True) as prefect:
        assert len(until(lambda: prefect.read_events(wanted, limit=50).events)) == 1


def test_a_run_does_not_go_on_with_another_model(lab: Lab, installed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.plan(lab.schedule("other model"), 4)
    plan = evaluation.plan
    other = ServingEndpoint("e", "v999")
    monkeypatch.setattr(evaluation, "plan", lambda installation, _, run: plan(installation, other, run))
    summary = lab.world(lab.evaluate()).summary()
    assert (summary["outcome"], summary["not_submitted"], summary["model_version"]) == ("incomplete", 4, "v999")


def test_an_execution_of_the_same_name_with_other_input_is_a_failure_of_that_image(installed: Any) -> None:
    name, key = f"conflict-{uuid.uuid4().hex[:12]}", "test/bicycle_50000.png"
    start(installed.state_machine_arn, name, {"bucket": installed.bucket, "key": "test/other.png"})
    payloads = {name: {"bucket": installed.bucket, "key": key}}
    executions = Executions(installed.state_machine_arn, payloads, lambda closed, running: None, settings())
    executions.run([name])
    closed = executions.closed[name]
    assert (closed.status, closed.error) == ("FAILED", "ExecutionConflict")
    assert closed.arn == execution_arn(installed.state_machine_arn, name)


def test_a_training_whose_process_is_killed_goes_on_with_its_job(installed: Any) -> None:
    run = started("train-model/local", {"hyperparameters": {"epochs": 20}}, {})
    name = f"scones-unlimited-{run_id(run)}"
    sagemaker = boto3.client("sagemaker")
    deadline = time.monotonic() + 120
    while not sagemaker.list_training_jobs(NameContains=name, StatusEquals="InProgress")["TrainingJobSummaries"]:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    for process in processes_of(run):
        process.kill()
    ended(run, "Approved")
    jobs = sagemaker.list_training_jobs(NameContains=name)["TrainingJobSummaries"]
    assert [(job["TrainingJobName"], job["TrainingJobStatus"]) for job in jobs] == [(name, "Completed")]


def test_the_readme_tells_what_happened_to_an_image(lab: Lab, bad_night: Night, tmp_path: Path) -> None:
    """Its commands, as they stand there."""
    readme = (ROOT / "README.md").read_text()
    section = readme[readme.index("**What happened to image X?**") :]
    block = re.search(r"```sh\n(.*?)```", section, re.DOTALL)
    assert block
    rows = [
        Result.from_json(line, "results.jsonl") for line in lab.world(bad_night.summary["run"]).lines("results.jsonl")
    ]
    row = next(row for row in rows if row.status != "failed")
    assert row.execution_arn
    values = {
        "DATE": bad_night.summary["date"],
        "RUN": bad_night.summary["run"],
        "IMAGE": row.key.rsplit("/", 1)[1],
        "INFERENCE_ID": row.inference_id,
    }
    commands = re.sub(r"\b(" + "|".join(("IMAGE", "INFERENCE_ID")) + r")\b", lambda match: values[match[0]], block[1])
    told = subprocess.run(
        ["sh", "-ec", f'. "$SCONES_STATE/env.sh"\n{commands}'], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert told.returncode == 0, told.stderr
    assert f"run {values['RUN']} of {values['DATE']}" in told.stdout
    assert row.execution_arn in told.stdout and "SerializeImageData" in told.stdout
    assert re.search(rf"captured .*{row.inference_id}", told.stdout), told.stdout


@pytest.fixture
def heard(stack: LocalConfig) -> Iterator[list[str]]:
    """What arrives at a webhook on this machine, which the stack's watch finds by the block's name."""
    texts: list[str] = []

    class Hook(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            texts.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(200)
            self.end_headers()

        def log_message(self, *details: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    block = CustomWebhookNotificationBlock(  # type: ignore[call-arg]
        name="scones", url=f"http://127.0.0.1:{server.server_address[1]}", json_data={"text": "{{subject}}: {{body}}"}
    )
    block.save(BLOCK, overwrite=True)
    try:
        yield texts
    finally:
        CustomWebhookNotificationBlock.delete(BLOCK)
        time.sleep(2)  # a notification may be on its way still
        server.shutdown()
        server.server_close()


def test_somebody_is_told_of_every_bad_run_once(lab: Lab, heard: list[str], stack: LocalConfig) -> None:
    """Missed, and failed by an exception, with a link that opens; not of a run that crashed and goes on."""
    bring_up(stack)
    bring_up(stack)
    assert [text for text in heard if "Messages about its runs will come here" in text] == heard[:1]

    lab.plan(lab.schedule("missed"), 8, BAD_IMAGES)
    missed = started("nightly-evaluation/local", {}, lab.variables)
    assert "failed share 0.625" in ended(missed, "Missed")
    failed = started("nightly-evaluation/local", {}, {**lab.variables, "SCONES_STACK": "nowhere"})
    other = started("deploy-endpoint/local", {}, {"SCONES_STACK": "nowhere"})
    lab.plan(lab.schedule("crashed"), 20)
    crashed = started("nightly-evaluation/local", {}, {**lab.variables, "SCONES_EXECUTIONS_IN_FLIGHT": "1"})
    for process in until(lambda: processes_of(crashed)):
        process.kill()

    told = until(lambda: [text for text in heard if str(missed) in text])[0]
    assert "Missed: nightly-evaluation" in told and "failed share 0.625" in told
    link = re.search(rf"{re.escape(stack.prefect_url)}/\S+?/flow-run/[0-9a-f-]{{36}}", told)
    assert link, told
    assert httpx.get(link[0], headers={"Accept": "text/html"}).status_code == 200
    told = until(lambda: [text for text in heard if str(failed) in text])[0]
    assert "Failed: nightly-evaluation" in told and "no stack 'nowhere'" in told
    assert until(lambda: " | failed: InfrastructureError: there is no stack" in named(failed))
    told = until(lambda: [text for text in heard if str(other) in text])[0]
    assert "Failed: deploy-endpoint" in told and "no stack 'nowhere'" in told
    ended(crashed, "Passed", "Missed")
    time.sleep(2 * LOOK_SECONDS)
    assert not [text for text in heard if str(crashed) in text and "Crashed" in text]
    for run in (missed, failed, other):
        assert len([text for text in heard if str(run) in text]) == 1, heard


def test_a_block_that_sends_no_messages_is_refused_by_make_up(stack: LocalConfig) -> None:
    """Prefect's Webhook looks like one for notifications, and is none."""
    from prefect.blocks.webhook import Webhook

    Webhook(url="http://127.0.0.1:9").save(BLOCK, overwrite=True)  # type: ignore[arg-type]
    try:
        with pytest.raises(DeploymentError, match=r"is of the type Webhook, which sends no messages: .*Custom Webhook"):
            bring_up(stack)
    finally:
        Webhook.delete(BLOCK)
    bring_up(stack)


def named(run: UUID) -> str:
    with get_client(sync_client=True) as prefect:
        return prefect.read_flow_run(run).name


def until(found: Callable[[], Any], seconds: float = 90) -> Any:
    """What the function finds, once it finds something."""
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline
        time.sleep(0.3)
    return value


def flow_run_named(run: str) -> Any:
    with get_client(sync_client=True) as prefect:
        return next(each for each in prefect.read_flow_runs() if f" {run}" in each.name)
