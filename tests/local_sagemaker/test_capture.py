"""Data capture: what a record holds, when it arrives, and that none is lost or doubled."""

import base64
import json
import re
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import BotoCoreError, ClientError

from local_aws.standalone import StandaloneAws
from testing.waiting import eventually
from tests.local_sagemaker.conftest import BUCKET, Server, unique


def capture(prefix: str, *modes: str, sampling: int = 100, **headers: list[str]) -> dict[str, Any]:
    """A DataCaptureConfig."""
    config: dict[str, Any] = {
        "EnableCapture": True,
        "InitialSamplingPercentage": sampling,
        "DestinationS3Uri": f"s3://{BUCKET}/{prefix}",
        "CaptureOptions": [{"CaptureMode": mode} for mode in modes],
    }
    if headers:
        config["CaptureContentTypeHeader"] = headers
    return config


def records(server: Server, prefix: str) -> list[dict[str, Any]]:
    lines = [line for key in server.keys(prefix) for line in server.get(f"s3://{BUCKET}/{key}").splitlines()]
    return [json.loads(line) for line in lines]


def captured(server: Server, prefix: str, count: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = eventually(lambda: len(all_ := records(server, prefix)) >= count and all_)
    assert len(found) == count
    return found


def test_a_record_holds_what_aws_puts_in_it_where_aws_puts_it(server: Server) -> None:
    prefix = unique("capture")
    headers: dict[str, Any] = {
        "JsonContentTypes": ["application/json", "application/mine"],
        "CsvContentTypes": ["text/csv"],
    }
    config = server.config({}, DataCaptureConfig=capture(prefix, "Input", "Output", **headers))
    name = server.endpoint(config)
    described = server.sagemaker.describe_endpoint(EndpointName=name)["DataCaptureConfig"]
    assert (described["CaptureStatus"], described["CurrentSamplingPercentage"]) == ("Started", 100)
    before = datetime.now(UTC).replace(microsecond=0)
    server.invoke(name, b"\x89PNG\xff", ContentType="application/x-image", InferenceId="an-id", CustomAttributes="a=1")
    server.runtime.invoke_endpoint(
        EndpointName=name, Body=b"1,2", ContentType="text/csv; charset=utf-8", Accept="text/csv"
    )
    server.invoke(name, b"\xff no text", ContentType="application/mine")
    image, csv, broken = captured(server, prefix, 3)

    assert set(image) == {"captureData", "eventMetadata", "eventVersion"}
    asked, answered = image["captureData"]["endpointInput"], image["captureData"]["endpointOutput"]
    assert (asked["observedContentType"], asked["mode"], asked["encoding"]) == (
        "application/x-image",
        "INPUT",
        "BASE64",
    )
    assert base64.b64decode(asked["data"]) == b"\x89PNG\xff"
    assert (answered["mode"], answered["encoding"]) == ("OUTPUT", "JSON")
    assert json.loads(answered["data"])["content_type"] == "application/x-image"
    metadata = image["eventMetadata"]
    assert (metadata["inferenceId"], metadata["customAttributes"]) == ("an-id", ["a=1"])
    assert before <= datetime.strptime(metadata["inferenceTime"], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)

    assert csv["captureData"]["endpointInput"]["observedContentType"] == "text/csv; charset=utf-8"
    assert (csv["captureData"]["endpointInput"]["encoding"], csv["captureData"]["endpointInput"]["data"]) == (
        "CSV",
        "1,2",
    )
    assert csv["captureData"]["endpointOutput"]["data"] == "1,2,3"
    assert "inferenceId" not in csv["eventMetadata"]
    # Bytes that are no text stay as they are.
    assert base64.b64decode(broken["captureData"]["endpointInput"]["data"]) == b"\xff no text"
    assert len({record["eventMetadata"]["eventId"] for record in (image, csv, broken)}) == 3

    layout = rf"{prefix}/{name}/only/\d{{4}}/\d\d/\d\d/\d\d/\d\d-\d\d-\d{{3}}-[0-9a-f-]{{36}}\.jsonl"
    assert all(re.fullmatch(layout, key) for key in server.keys(prefix))
    server.delete(name)


def test_one_mode_a_sample_and_none_at_all(server: Server) -> None:
    prefix = unique("capture")
    model = server.model()
    plans = {
        "input": capture(f"{prefix}/input", "Input"),
        "output": capture(f"{prefix}/output", "Output"),
        "both": capture(f"{prefix}/both", "InputAndOutput", sampling=50),
        "none": capture(f"{prefix}/none", "InputAndOutput", sampling=0),
        "off": {**capture(f"{prefix}/off", "InputAndOutput"), "EnableCapture": False},
    }
    names = {
        kind: server.endpoint(server.config({"ModelName": model}, DataCaptureConfig=plan), wait=False)
        for kind, plan in plans.items()
    }
    for name in names.values():
        assert server.settled(name)["EndpointStatus"] == "InService"
    for kind, name in names.items():
        for _ in range(200 if kind == "both" else 3):
            server.invoke(name)
    assert all(set(item["captureData"]) == {"endpointInput"} for item in captured(server, f"{prefix}/input", 3))
    assert all(set(item["captureData"]) == {"endpointOutput"} for item in captured(server, f"{prefix}/output", 3))
    time.sleep(1.5)
    # 200 draws at one half: outside of these bounds once in ten million runs.
    assert 62 <= len(records(server, f"{prefix}/both")) <= 138
    assert records(server, f"{prefix}/none") == records(server, f"{prefix}/off") == []
    for name in names.values():
        server.sagemaker.delete_endpoint(EndpointName=name)


@pytest.fixture
def own(tmp_path: Path) -> Any:
    """A server of a test's own, which it may kill; capture waits a little before it is delivered."""
    with StandaloneAws(tmp_path, "--capture-interval", "0.2", "--capture-delay", "1.5") as aws:
        yield Server(aws)


def test_every_answered_request_has_one_record_through_kills_and_an_absent_s3(own: Server) -> None:
    prefix = "capture"
    name = own.endpoint(own.config({}, DataCaptureConfig=capture(prefix, "InputAndOutput")))
    answered: list[str] = []
    stop = threading.Event()

    def invoke(client: int) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            inference_id = f"{client}-{number}"
            try:
                own.invoke(name, b"x", InferenceId=inference_id)
                answered.append(inference_id)
            except (BotoCoreError, ClientError):
                time.sleep(0.1)

    def has_more(so_far: int, more: int) -> bool:
        return len(answered) > so_far + more

    with ThreadPoolExecutor(4) as threads:
        clients = [threads.submit(invoke, client) for client in range(4)]
        try:
            for _ in range(2):
                eventually(partial(has_more, len(answered), 100))
                own.aws.kill("sagemaker")
                own.aws.start("sagemaker")
                assert own.settled(name)["EndpointStatus"] == "InService"
            eventually(partial(has_more, len(answered), 4))  # the restarted server knows who may invoke
            # S3 and IAM are away for a while: the endpoint goes on answering.
            own.aws.signal("ministack", signal.SIGSTOP)
            eventually(partial(has_more, len(answered), 100))
        finally:
            own.aws.signal("ministack", signal.SIGCONT)
            stop.set()
        for client in clients:
            client.result()

    def arrived() -> Any:
        ids = [record["eventMetadata"]["inferenceId"] for record in records(own, prefix)]
        return set(answered) <= set(ids) and ids

    count = Counter(eventually(arrived))
    assert max(count.values()) == 1
    assert len(set(count) - set(answered)) <= 8  # answers that were lost on their way


def test_delivery_can_be_delayed(own: Server) -> None:
    name = own.endpoint(own.config({}, DataCaptureConfig=capture("delayed", "Output")))
    started = time.monotonic()
    own.invoke(name)
    captured(own, "delayed", 1)
    assert time.monotonic() - started > 1.5
