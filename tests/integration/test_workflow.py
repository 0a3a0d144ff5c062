"""Single executions of the real state machine with real Lambdas and the real endpoint."""

import base64
import io
import json
import time
import uuid
from typing import Any

import numpy as np
import pytest
from PIL import Image

from local_aws.config import ROOT
from tasks.aws import storage
from tasks.aws.clients import client
from tasks.data.dataset import png
from tasks.data.generated import FAR, draw
from tasks.data.pictures import as_served
from tasks.evaluation.executions import Execution, ExecutionConflict, describe, start
from testing.pictures import huge_png, noise_jpeg

PAYLOAD_LIMIT = 262_144
EVENTS = ROOT / "tests" / "events"


def execute(installed: Any, payload: Any, name: str | None = None) -> Execution:
    arn = start(installed.state_machine_arn, name or f"test-{uuid.uuid4().hex[:20]}", payload)
    deadline = time.monotonic() + 60
    while (execution := describe(arn)) is None or execution.status == "RUNNING":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return execution


def classify(installed: Any, image: bytes) -> Execution:
    key = f"incoming/{uuid.uuid4().hex}.png"
    storage.put(installed.bucket, key, image)
    return execute(installed, {"bucket": installed.bucket, "key": key})


def decision(execution: Execution) -> dict[str, Any]:
    if execution.status == "SUCCEEDED":
        assert execution.output is not None
        return execution.output
    assert execution.error in ("LowConfidence", "NotAClass"), (execution.error, execution.cause)
    loaded: dict[str, Any] = json.loads(execution.cause or "")
    return loaded


def test_an_image_ends_accepted_or_below_the_threshold(installed: Any) -> None:
    execution = classify(installed, png(draw("bicycle", 1)))
    found = decision(execution)
    assert found["predicted_class"] in installed.classes
    assert found["threshold"] == installed.threshold == 0.93
    assert end(execution) == expected_end(found)


def end(execution: Execution) -> str | None:
    return None if execution.status == "SUCCEEDED" else execution.error


def expected_end(found: dict[str, Any]) -> str | None:
    if found["outlier_score"] > 1:
        return "NotAClass"
    return None if found["confidence"] >= found["threshold"] else "LowConfidence"


def test_a_blend_of_both_classes_is_not_accepted(installed: Any) -> None:
    """Half a bicycle, half a motorcycle: the fixture that no confident answer is right for."""
    blend = (ROOT / "tests" / "fixtures" / "ambiguous.png").read_bytes()
    execution = classify(installed, blend)
    assert execution.status == "FAILED"
    found = decision(execution)
    assert set(found) == {"predicted_class", "confidence", "threshold", "outlier_score", "sent_as", "inferences"}
    assert execution.error == expected_end(found)


def test_pictures_of_other_things_end_as_no_class_by_their_outlier_score(installed: Any) -> None:
    ends = []
    for name in FAR:
        execution = classify(installed, png(draw(name, 1)))
        ends.append(end(execution))
        assert ends[-1] == expected_end(decision(execution))
    assert "NotAClass" in ends


def test_the_fixture_is_what_its_test_says() -> None:
    blend = (draw("bicycle", 96).astype(float) + draw("motorcycle", 96)) / 2
    assert (ROOT / "tests" / "fixtures" / "ambiguous.png").read_bytes() == png(blend.astype(np.uint8))


@pytest.mark.parametrize(
    ("image", "error"),
    [
        (b"", "UnreadableImage"),
        (b"just text", "UnreadableImage"),
        (png(draw("bicycle", 1))[:60], "UnreadableImage"),
        (b"\x89PNG\r\n\x1a\n" + b"x" * 100, "UnreadableImage"),
        (noise_jpeg(2000)[:200_000], "UnreadableImage"),
        (huge_png(), "ImageTooLarge"),
    ],
    ids=["empty", "text", "truncated", "broken", "truncated and large", "too large"],
)
def test_a_bad_image_ends_in_its_own_error(installed: Any, image: bytes, error: str) -> None:
    execution = classify(installed, image)
    assert (execution.status, execution.error) == ("FAILED", error)
    assert execution.cause


@pytest.mark.parametrize(
    ("payload", "error"),
    [
        ({}, "InvalidInput"),
        ({"bucket": "BUCKET"}, "InvalidInput"),
        ({"bucket": "BUCKET", "key": "test/no-such.png"}, "ImageNotFound"),
        ({"bucket": "no-such-bucket-anywhere", "key": "test/a.png"}, "ImageNotFound"),
        ({"bucket": "BUCKET", "key": "train/bicycle_00000.png"}, "ImageAccessDenied"),
        ({"bucket": "BUCKET", "key": "../../etc/passwd"}, "ImageAccessDenied"),
    ],
)
def test_a_bad_location_ends_in_its_own_error(installed: Any, payload: dict[str, str], error: str) -> None:
    located = {name: value.replace("BUCKET", installed.bucket) for name, value in payload.items()}
    execution = execute(installed, located)
    allowed = {error, "ImageAccessDenied"} if payload.get("bucket", "").startswith("no-such") else {error}
    assert execution.status == "FAILED"
    assert execution.error in allowed


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_large_photograph_is_shrunk_on_the_way_and_it_is_said(installed: Any, kind: str) -> None:
    enlarged = Image.fromarray(draw("bicycle", 5)).resize((1600, 1600), Image.Resampling.BICUBIC)
    grain = np.random.default_rng(3).integers(-12, 13, (1600, 1600, 3))
    photograph = Image.fromarray((np.asarray(enlarged) + grain).clip(0, 255).astype(np.uint8))
    buffer, whole = io.BytesIO(), io.BytesIO()
    photograph.save(buffer, kind, quality=95)
    photograph.save(whole, "PNG")
    assert len(buffer.getvalue()) > 500_000
    served = as_served(whole.getvalue(), 32)
    assert served is not None
    small, shrunk = decision(classify(installed, png(served))), decision(classify(installed, buffer.getvalue()))
    assert small["sent_as"] is None
    assert shrunk["sent_as"].startswith("JPEG of ") and f"made of a {kind} of 1600 x 1600" in shrunk["sent_as"]
    assert abs(shrunk["inferences"][0] - small["inferences"][0]) < 0.1


def test_payloads_stay_under_the_limit_for_the_largest_image(installed: Any) -> None:
    small = Image.fromarray(np.random.default_rng(2).integers(0, 256, (240, 248, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    small.save(buffer, "PNG", compress_level=0)
    largest = buffer.getvalue()
    assert 175_000 < len(largest) <= 180_000
    execution = classify(installed, largest)
    decision(execution)
    history = client("stepfunctions").get_execution_history(executionArn=execution.arn, maxResults=1000)
    sizes = [len(text) for event in history["events"] for text in payloads(event)]
    assert len(sizes) > 6
    assert max(sizes) > 230_000  # the image did travel
    assert max(sizes) < PAYLOAD_LIMIT


def payloads(value: Any) -> list[str]:
    """Every input and output in a history event."""
    if isinstance(value, dict):
        own = [text for name, text in value.items() if name in ("input", "output") and isinstance(text, str)]
        return own + [text for nested in value.values() for text in payloads(nested)]
    return []


@pytest.mark.parametrize("function", ["serialize_image_data", "classify_image"])
def test_functions_give_the_golden_results(installed: Any, function: str) -> None:
    case = json.loads((EVENTS / f"{function}.json").read_text())
    image = storage.get(installed.bucket, case["event"]["key"])
    assert image is not None
    event = {**case["event"], "bucket": installed.bucket}
    if "image_data" in event:
        event["image_data"] = base64.b64encode(image).decode()
    names = {"serialize_image_data": "serializeImageData", "classify_image": "classifyImage"}
    answer = client("lambda").invoke(
        FunctionName=f"scones-unlimited-{names[function]}", Payload=json.dumps(event).encode()
    )
    result = json.loads(answer["Payload"].read())
    assert "FunctionError" not in answer, result
    assert list(result) == case["result_fields"]
    if function == "serialize_image_data":
        assert base64.b64decode(result["image_data"]) == image
    else:
        assert sum(result["inferences"]) == pytest.approx(1, abs=1e-3)


def test_starting_twice_finds_the_same_execution(installed: Any) -> None:
    name = f"twice-{uuid.uuid4().hex[:12]}"
    payload = {"bucket": installed.bucket, "key": "test/bicycle_50000.png"}
    first = execute(installed, payload, name)
    assert start(installed.state_machine_arn, name, payload) == first.arn
    with pytest.raises(ExecutionConflict, match="exists with other input"):
        start(installed.state_machine_arn, name, {"bucket": installed.bucket, "key": "test/other.png"})
