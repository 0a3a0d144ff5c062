"""The embedded AWS's Distributed Map does what AWS's documentation says of one.

https://docs.aws.amazon.com/step-functions/latest/dg/state-map-distributed.html and the pages below it.
"""

import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from local_aws.config import LocalConfig
from tasks.aws.clients import client
from testing.waiting import eventually
from tests.integration.test_ministack import role

LIMIT = 262_144
MACHINE_ACTIONS = ("states:StartExecution", "s3:GetObject", "s3:ListBucket", "s3:PutObject")
EVERY_ITEM = {"Type": "Pass", "End": True}
FAIL = {"Type": "Fail", "Error": "Broken", "Cause": "it is meant to be"}


@pytest.fixture(scope="module")
def bucket(stack: LocalConfig) -> Iterator[str]:
    name = f"map-{uuid.uuid4().hex[:8]}"
    client("s3").create_bucket(Bucket=name)
    lines = "".join(json.dumps({"number": number}) + "\n" for number in range(10))
    put(name, "items.jsonl", lines)
    put(name, "items.csv", "number,name\n0,zero\n1\n2,two,more\n")
    put(name, "broken.jsonl", '{"number": 0}\nnot json\n')
    yield name
    for item in client("s3").list_objects_v2(Bucket=name)["Contents"]:
        client("s3").delete_object(Bucket=name, Key=item["Key"])
    client("s3").delete_bucket(Bucket=name)


@pytest.fixture(scope="module")
def may(stack: LocalConfig) -> str:
    """The ARN of a role that may do all that a Distributed Map needs."""
    return role(*MACHINE_ACTIONS)


def put(bucket: str, key: str, text: str) -> None:
    client("s3").put_object(Bucket=bucket, Key=key, Body=text.encode())


def read(bucket: str, key: str) -> Any:
    return json.loads(client("s3").get_object(Bucket=bucket, Key=key)["Body"].read())


def reader(bucket: str, key: str = "items.jsonl", kind: str = "JSONL", **config: Any) -> dict[str, Any]:
    return {
        "Resource": "arn:aws:states:::s3:getObject",
        "ReaderConfig": {"InputType": kind, **config},
        "Arguments": {"Bucket": bucket, "Key": key},
    }


def begin(role_arn: str, item: dict[str, Any] | None = None, more: Any = None, **fields: Any) -> str:
    """Starts an execution with one Distributed Map; returns its ARN. item: the child's only state, or all of them."""
    states = item if item and "Type" not in item else {"Each": item or EVERY_ITEM}
    processor = {
        "ProcessorConfig": {"Mode": "DISTRIBUTED", "ExecutionType": "STANDARD"},
        "StartAt": "Each",
        "States": states,
    }
    state = {"Type": "Map", "Label": "each", "ItemProcessor": processor, "End": True, **fields}
    definition = {"QueryLanguage": "JSONata", "StartAt": "Map", "States": {"Map": state}}
    machine = client("stepfunctions").create_state_machine(
        name=f"map-{uuid.uuid4().hex[:8]}", definition=json.dumps(definition), roleArn=role_arn
    )["stateMachineArn"]
    arn: str = client("stepfunctions").start_execution(stateMachineArn=machine, input=json.dumps(more or {}))[
        "executionArn"
    ]
    return arn


def described(arn: str) -> dict[str, Any]:
    found: dict[str, Any] = client("stepfunctions").describe_execution(executionArn=arn)
    return found


def ended(arn: str) -> dict[str, Any]:
    return eventually(lambda: found if (found := described(arn))["status"] != "RUNNING" else None)


def run(role_arn: str, item: dict[str, Any] | None = None, more: Any = None, **fields: Any) -> dict[str, Any]:
    """The ended execution; its output is decoded."""
    execution = ended(begin(role_arn, item, more, **fields))
    return {**execution, "output": json.loads(execution.get("output") or "null")}


def map_run(arn: str) -> dict[str, Any]:
    """DescribeMapRun of an execution's only map run, once there is one."""
    states = client("stepfunctions")
    runs = eventually(lambda: states.list_map_runs(executionArn=arn)["mapRuns"])
    assert len(runs) == 1
    view: dict[str, Any] = states.describe_map_run(mapRunArn=runs[0]["mapRunArn"])
    return view


def test_items_are_read_selected_and_batched(bucket: str, may: str) -> None:
    ten = run(may, ItemReader=reader(bucket))
    assert ten["output"] == [{"number": number} for number in range(10)]
    csv = run(may, ItemReader=reader(bucket, "items.csv", "CSV", CSVHeaderLocation="FIRST_ROW"))
    rows = [("0", "zero"), ("1", ""), ("2", "two")]
    assert csv["output"] == [{"number": number, "name": name} for number, name in rows]
    listing = {"Resource": "arn:aws:states:::s3:listObjectsV2", "Arguments": {"Bucket": bucket, "Prefix": "items."}}
    listed = run(may, ItemReader=listing)
    assert [item["Key"] for item in listed["output"]] == ["items.csv", "items.jsonl"]
    assert set(listed["output"][0]) == {"Etag", "Key", "LastModified", "Size", "StorageClass"}
    given = run(may, more={"values": ["a", "b"]}, Items="{% $states.input.values %}")
    assert given["output"] == ["a", "b"]
    batched = run(
        may,
        more={"size": 4},
        ItemReader=reader(bucket, MaxItems=9),
        ItemSelector={"n": "{% $states.context.Map.Item.Value.number %}", "i": "{% $states.context.Map.Item.Index %}"},
        ItemBatcher={"MaxItemsPerBatch": "{% $states.input.size %}", "BatchInput": {"of": "{% $states.input.size %}"}},
    )
    items = [{"n": number, "i": number} for number in range(9)]
    assert batched["output"] == [{"BatchInput": {"of": 4}, "Items": items[at : at + 4]} for at in (0, 4, 8)]


def test_a_batch_has_at_most_as_many_bytes_as_it_may(bucket: str, may: str) -> None:
    put(bucket, "long.jsonl", "".join(json.dumps({"text": "x" * 99_000}) + "\n" for _ in range(5)))
    counted = {"Type": "Pass", "Output": "{% $count($states.input.Items) %}", "End": True}
    by_limit = run(may, counted, ItemReader=reader(bucket, "long.jsonl"), ItemBatcher={"MaxItemsPerBatch": 100})
    assert by_limit["output"] == [2, 2, 1]
    by_field = run(
        may, counted, ItemReader=reader(bucket, "long.jsonl"), ItemBatcher={"MaxInputBytesPerBatch": 100_000}
    )
    assert by_field["output"] == [1] * 5
    put(bucket, "huge.jsonl", json.dumps({"text": "x" * LIMIT}) + "\n")
    huge = run(may, ItemReader=reader(bucket, "huge.jsonl"))
    assert (huge["status"], huge["error"]) == ("FAILED", "States.ExceedToleratedFailureThreshold")
    outputs = run(
        may, {"Type": "Pass", "Output": "x" * (LIMIT // 8), "End": True}, ItemReader=reader(bucket)
    )  # ten of them are too much for a state's result
    assert (outputs["status"], outputs["error"]) == ("FAILED", "States.DataLimitExceeded")


@pytest.mark.parametrize("lines", [False, True], ids=["JSON", "JSONL"])
def test_results_are_written_to_the_bucket(bucket: str, may: str, lines: bool) -> None:
    odd = {
        "Each": {
            "Type": "Choice",
            "Choices": [{"Condition": "{% $states.input.number = 3 %}", "Next": "Odd"}],
            "Default": "Fine",
        },
        "Odd": FAIL,
        "Fine": EVERY_ITEM,
    }
    writer = {
        "Resource": "arn:aws:states:::s3:putObject",
        "Arguments": {"Bucket": "{% $states.input.bucket %}", "Prefix": f"results-{lines}/"},
        **({"WriterConfig": {"OutputType": "JSONL", "Transformation": "NONE"}} if lines else {}),
    }
    done = run(
        may,
        odd,
        more={"bucket": bucket},
        ItemReader=reader(bucket),
        ResultWriter=writer,
        ToleratedFailurePercentage=10,
        Output={"map": "{% $states.result %}"},
    )
    assert done["status"] == "SUCCEEDED"
    view = map_run(done["executionArn"])
    counts = {"total": 10, "succeeded": 9, "failed": 1, "resultsWritten": 10, "pending": 0, "running": 0}
    assert view["status"] == "SUCCEEDED" and view["itemCounts"].items() >= counts.items()
    where = done["output"]["map"]
    assert where["MapRunArn"] == view["mapRunArn"] and where["ResultWriterDetails"]["Bucket"] == bucket
    key = where["ResultWriterDetails"]["Key"]
    assert key == f"results-{lines}/{view['mapRunArn'].rsplit(':', 1)[1]}/manifest.json"
    manifest = read(bucket, key)
    assert (manifest["DestinationBucket"], manifest["MapRunArn"]) == (bucket, view["mapRunArn"])
    files = manifest["ResultFiles"]
    assert files["PENDING"] == []
    entries = {}
    for status in ("SUCCEEDED", "FAILED"):
        (file,) = files[status]
        content = client("s3").get_object(Bucket=bucket, Key=file["Key"])["Body"].read()
        assert file["Size"] == len(content) and file["Key"].endswith(f"/{status}_0.json{'l' if lines else ''}")
        entries[status] = [json.loads(line) for line in content.splitlines()] if lines else json.loads(content)
    assert len(entries["SUCCEEDED"]) == 9
    assert json.loads(entries["SUCCEEDED"][0]["Output"]) == json.loads(entries["SUCCEEDED"][0]["Input"])
    (failed,) = entries["FAILED"]
    assert (failed["Status"], failed["Error"], failed["Cause"]) == ("FAILED", "Broken", "it is meant to be")
    assert json.loads(failed["Input"]) == {"number": 3}
    child = described(failed["ExecutionArn"])
    assert (child["status"], child["mapRunArn"]) == ("FAILED", view["mapRunArn"])


def test_thresholds_count_items_and_are_read_from_the_input(bucket: str, may: str) -> None:
    field = {"ToleratedFailurePercentage": "{% $states.input.percent %}"}
    outputs = {}
    for percent in (100, 50):
        done = run(may, FAIL, more={"percent": percent}, ItemReader=reader(bucket), MaxConcurrency=1, **field)
        outputs[percent] = (done["status"], done.get("error"))
        counts = map_run(done["executionArn"])["itemCounts"]
        assert counts["failed"] == (10 if percent == 100 else 6) and counts["failed"] + counts["pending"] == 10
    assert outputs == {100: ("SUCCEEDED", None), 50: ("FAILED", "States.ExceedToleratedFailureThreshold")}
    count = run(may, FAIL, ItemReader=reader(bucket), MaxConcurrency=1, ToleratedFailureCount=2)
    assert map_run(count["executionArn"])["itemCounts"]["failed"] == 3
    none = run(may, FAIL, ItemReader=reader(bucket), MaxConcurrency=1)
    assert map_run(none["executionArn"])["itemCounts"]["failed"] == 1


def test_stopping_the_execution_aborts_its_children(bucket: str, may: str) -> None:
    states = client("stepfunctions")
    arn = begin(may, {"Type": "Wait", "Seconds": 60, "End": True}, ItemReader=reader(bucket), MaxConcurrency=2)
    eventually(lambda: map_run(arn)["itemCounts"]["running"] == 2)
    view = map_run(arn)
    running = states.list_executions(mapRunArn=view["mapRunArn"], statusFilter="RUNNING")["executions"]
    assert len(running) == 2
    states.stop_execution(executionArn=arn, error="Stopped", cause="enough")
    view = eventually(lambda: seen if (seen := map_run(arn))["status"] != "RUNNING" else None)
    assert view["status"] == "ABORTED"
    assert view["itemCounts"].items() >= {"aborted": 2, "pending": 8, "running": 0}.items()
    assert {described(child["executionArn"])["status"] for child in running} == {"ABORTED"}
    assert (described(arn)["status"], described(arn)["error"]) == ("ABORTED", "Stopped")


def test_a_map_runs_concurrency_can_be_changed(bucket: str, may: str) -> None:
    arn = begin(may, {"Type": "Wait", "Seconds": 60, "End": True}, ItemReader=reader(bucket), MaxConcurrency=1)
    eventually(lambda: map_run(arn)["itemCounts"]["running"] == 1)
    client("stepfunctions").update_map_run(mapRunArn=map_run(arn)["mapRunArn"], maxConcurrency=3)
    eventually(lambda: map_run(arn)["itemCounts"]["running"] == 3)
    assert map_run(arn)["maxConcurrency"] == 3
    client("stepfunctions").stop_execution(executionArn=arn)


def test_the_machines_role_must_be_allowed_all_of_it(bucket: str) -> None:
    writer = {"Resource": "arn:aws:states:::s3:putObject", "Arguments": {"Bucket": bucket, "Prefix": "x"}}
    errors = {"states:StartExecution": "States.Permissions", "s3:GetObject": "States.ItemReaderFailed"}
    errors["s3:PutObject"] = "States.ResultWriterFailed"
    for missing, error in errors.items():
        granted = [action for action in MACHINE_ACTIONS if action != missing]
        refused = run(role(*granted), ItemReader=reader(bucket), ResultWriter=writer)
        assert (refused["status"], refused["error"]) == ("FAILED", error)
        assert f"is not authorized to perform: {missing} on resource: arn:aws:" in refused["cause"]
        assert map_run(refused["executionArn"])["status"] == "FAILED"


def test_items_that_can_not_be_read_are_an_error_of_their_own(bucket: str, may: str) -> None:
    for key in ("broken.jsonl", "missing.jsonl"):
        broken = run(may, ItemReader=reader(bucket, key))
        assert (broken["status"], broken["error"]) == ("FAILED", "States.ItemReaderFailed"), broken
    put(bucket, "empty.jsonl", "\n\n")
    assert run(may, ItemReader=reader(bucket, "empty.jsonl"))["output"] == []


def test_what_is_not_done_here_is_refused_by_name(bucket: str, may: str) -> None:
    parquet = run(may, ItemReader=reader(bucket, kind="PARQUET"))
    assert (parquet["status"], parquet["cause"]) == ("FAILED", "InputType PARQUET is not done here")
    express = {
        "ProcessorConfig": {"Mode": "DISTRIBUTED", "ExecutionType": "EXPRESS"},
        "StartAt": "Each",
        "States": {"Each": EVERY_ITEM},
    }
    refused = run(may, ItemReader=reader(bucket), ItemProcessor=express)
    assert (refused["status"], refused["cause"]) == ("FAILED", "ExecutionType EXPRESS is not done here, only STANDARD")
