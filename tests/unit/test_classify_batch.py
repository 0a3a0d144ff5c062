"""classifyBatch with the three functions in their places: rows, errors, retries, time and repetition."""

import hashlib
import importlib
import json
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import ClientError

from local_aws.config import ROOT
from tasks.evaluation.results import Result
from tests.unit.test_state_machine import template

PREFIX = "bulk/2026-11-22/0123456789ab/"
BATCH: dict[str, Any] = {"bucket": "bucket", "prefix": PREFIX, "attempt": 1, "model_version": "v7", "threshold": 0.93}
MODULES = ("classify_batch", "serialize_image_data", "classify_image", "filter_low_confidence")


class Storage:
    """A bucket that is a dictionary."""

    class NoSuchKey(Exception):
        pass

    exceptions = SimpleNamespace(NoSuchKey=NoSuchKey)

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    def get_object(self, **request: str) -> dict[str, Any]:
        content = self.objects.get(request["Key"])
        if content is None:
            raise self.NoSuchKey
        return {"Body": SimpleNamespace(read=lambda: content), "ETag": _etag(content)}

    def put_object(self, **request: Any) -> None:
        before = self.objects.get(request["Key"])
        if "IfMatch" in request:
            holds = before is not None and request["IfMatch"] == _etag(before)
        else:
            holds = request["IfNoneMatch"] == "*" and before is None
        if not holds:
            raise ClientError({"Error": {"Code": "PreconditionFailed", "Message": "changed"}}, "PutObject")
        self.objects[request["Key"]] = request["Body"]


def _etag(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


class Functions:
    """The function's module, with reading and classifying replaced: `classified` are the calls, `errors` by key."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.syspath_prepend(str(ROOT / "lambdas"))
        for name, value in {"CLASSES": "a,b", "THRESHOLD": "0.93", "ENDPOINT_NAME": "endpoint"}.items():
            monkeypatch.setenv(name, value)
        for name in MODULES:
            monkeypatch.delitem(sys.modules, name, raising=False)
        self.module = importlib.import_module("classify_batch")
        self.storage = Storage()
        self.classified: list[str] = []
        self.errors: dict[str, list[Exception]] = {}
        self.inferences = [0.02, 0.98]
        self.outlier_score: float | None = 0.5
        monkeypatch.setattr(self.module.serialize_image_data, "s3", self.storage)
        monkeypatch.setattr(self.module.serialize_image_data, "handler", lambda event, _: {**event, "image_data": "x"})
        monkeypatch.setattr(self.module.classify_image, "handler", self._classify)
        monkeypatch.setattr(self.module.time, "sleep", lambda seconds: None)

    def _classify(self, event: dict[str, Any], context: Any) -> dict[str, Any]:
        self.classified.append(event["key"])
        waiting = self.errors.get(event["key"])
        if waiting:
            raise waiting.pop(0) if len(waiting) > 1 else waiting[0]
        return {**event, "inferences": self.inferences, "outlier_score": self.outlier_score}

    def run(self, *keys: str, milliseconds: int = 300_000, **batch: Any) -> dict[str, int]:
        items = [{"inference_id": f"run-{key}-a1", "key": key, "etag": None, "label": "a"} for key in keys]
        event = {"BatchInput": {**BATCH, **batch}, "Items": items, "execution_arn": "arn"}
        context = SimpleNamespace(get_remaining_time_in_millis=lambda: milliseconds)
        counts: dict[str, int] = self.module.handler(event, context)
        return counts

    def rows(self, first: str) -> dict[str, Result]:
        part = f"{PREFIX}parts/{hashlib.sha256(f'run-{first}-a1'.encode()).hexdigest()}.jsonl"
        rows = [Result.parse(line, part) for line in self.storage.objects[part].splitlines()]
        return {row.key: row for row in rows}


@pytest.fixture
def functions(monkeypatch: pytest.MonkeyPatch) -> Functions:
    return Functions(monkeypatch)


def test_every_image_gets_a_row_and_an_error_is_its_own(functions: Functions) -> None:
    functions.errors["2"] = [functions.module.classify_image.UnreadableImage("no image")]
    keys = [str(number) for number in range(30)]
    assert functions.run(*keys) == {"rows": 30, "accepted": 29, "failed": 1}
    rows = functions.rows("0")
    assert list(rows) == keys
    assert (rows["2"].error, rows["2"].cause, rows["2"].failed_state) == (
        "UnreadableImage",
        "no image",
        "ClassifyImage",
    )
    good = rows["1"]
    assert (good.status, good.predicted_class, good.confidence, good.outlier_score) == ("accepted", "b", 0.98, 0.5)
    assert (good.label, good.model_version, good.threshold, good.execution_arn) == ("a", "v7", 0.93, "arn")
    functions.inferences = [0.3, 0.7]
    assert functions.run("other") == {"rows": 1, "below_threshold": 1}
    functions.inferences, functions.outlier_score = [0.02, 0.98], 1.01
    assert functions.run("strange") == {"rows": 1, "not_a_class": 1}
    functions.outlier_score = None
    assert functions.run("of a model that tells none") == {"rows": 1, "accepted": 1}


def test_a_batch_that_is_run_again_classifies_only_what_it_lacks(functions: Functions) -> None:
    functions.run("1", "2")
    part = next(iter(functions.storage.objects))
    functions.storage.objects[part] = functions.storage.objects[part].splitlines(keepends=True)[0]
    functions.classified.clear()
    assert functions.run("1", "2")["rows"] == 2
    assert functions.classified == ["2"] and list(functions.rows("1")) == ["1", "2"]


def test_two_runs_of_a_batch_at_once_leave_a_row_of_each_image(functions: Functions) -> None:
    """Another run has written all, then a part of it, just before this one writes."""
    functions.run("1", "2", "3")
    ((part, everything),) = functions.storage.objects.items()
    lines = everything.splitlines(keepends=True)
    for others, ends in ((everything, everything), (b"".join(lines[:2]), None)):
        functions.storage.objects.clear()
        put = functions.storage.put_object

        def overtaken(others: bytes = others, put: Any = put, **request: Any) -> None:
            functions.storage.put_object = put  # type: ignore[method-assign]
            functions.storage.objects[part] = others
            put(**request)

        functions.storage.put_object = overtaken  # type: ignore[method-assign]
        assert functions.run("1", "2", "3") == {"rows": 3, "accepted": 3}
        left = functions.storage.objects[part]
        assert list(functions.rows("1")) == ["1", "2", "3"] and left.startswith(others)
        assert ends in (None, left)


def test_what_passes_is_tried_again_and_what_lasts_fails_the_batch_with_its_rows_written(functions: Functions) -> None:
    unavailable = functions.module.classify_image.EndpointUnavailable("busy")
    fine = functions.module.classify_image.UnreadableImage("then no image")
    functions.errors["1"] = [unavailable, unavailable, fine]
    assert functions.run("1")["failed"] == 1
    assert functions.classified == ["1"] * 3
    functions.errors["3"] = [unavailable]
    with pytest.raises(type(unavailable), match="busy"):
        functions.run("2", "3")
    assert set(functions.rows("2")) <= {"2"} and "3" not in functions.rows("2")


def test_near_its_deadline_the_batch_says_what_is_left(functions: Functions) -> None:
    with pytest.raises(functions.module.BatchUnfinished, match="2 of 2 images are left: run-1-a1, run-2-a1"):
        functions.run("1", "2", milliseconds=10_000)
    assert functions.classified == [] and functions.storage.objects == {}


def test_another_threshold_than_planned_is_refused(functions: Functions) -> None:
    with pytest.raises(
        functions.module.ThresholdChanged, match=r"planned with the threshold 0\.9, and it is 0\.93 now"
    ):
        functions.run("1", threshold=0.9)
    assert functions.classified == []


@pytest.mark.parametrize(
    "event",
    [
        None,
        [],
        {},
        {"BatchInput": BATCH, "Items": []},
        {"BatchInput": BATCH, "Items": [{"inference_id": "x", "key": "k"}]},
        {"BatchInput": BATCH | {"threshold": "high"}, "Items": [{"inference_id": "x", "key": "k"}]},
        {"BatchInput": BATCH, "Items": [{"inference_id": "x", "key": 3}], "execution_arn": "arn"},
        {"BatchInput": BATCH, "Items": ["x"], "execution_arn": "arn"},
        {"BatchInput": BATCH, "Items": [{"inference_id": "x", "key": "k", "etag": 5}], "execution_arn": "arn"},
    ],
)
def test_what_is_no_batch_is_refused(functions: Functions, event: Any) -> None:
    with pytest.raises(functions.module.InvalidInput):
        functions.module.handler(event, SimpleNamespace(get_remaining_time_in_millis=lambda: 300_000))


def test_storage_that_refuses_is_an_error_that_passes(functions: Functions, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**arguments: Any) -> None:
        raise ClientError({"Error": {"Code": "SlowDown", "Message": "later"}}, "PutObject")

    monkeypatch.setattr(functions.storage, "put_object", refuse)
    with pytest.raises(functions.module.serialize_image_data.StorageUnavailable, match="SlowDown"):
        functions.run("1")


def test_timeouts_of_the_batch_nest() -> None:
    machine = json.loads((ROOT / "statemachine" / "classify_batch.asl.json").read_text())
    task = machine["States"]["ClassifyBatches"]["ItemProcessor"]["States"]["ClassifyBatch"]
    timeout = template("workflow.yaml")["Resources"]["ClassifyBatch"]["Properties"]["Timeout"]
    source = (ROOT / "lambdas" / "classify_batch.py").read_text()
    margin = float(source.split("MARGIN_SECONDS = ")[1].split()[0])
    # An image may take two tries of S3 (2 + 5 s) and of the endpoint (2 + 10 s), and the part's upload as a read.
    assert 2 * 7 + 2 * 12 + 2 * 5 < margin < timeout < task["TimeoutSeconds"] < machine["TimeoutSeconds"]
    retried = {error for retry in task["Retry"] for error in retry["ErrorEquals"]}
    assert not {"States.ALL", "InvalidInput", "ThresholdChanged", "EndpointNotFound"} & retried
    assert "Retry" not in machine["States"]["ClassifyBatches"]
