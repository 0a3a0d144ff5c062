import http.server
import importlib.util
import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from local_aws.config import ROOT

EVENTS = ROOT / "tests" / "events"
HANDLERS = ("serialize_image_data", "classify_image", "filter_low_confidence")
# What AWS's managed Python runtimes bring besides the standard library.
MANAGED = ("boto3", "botocore", "s3transfer", "jmespath", "dateutil", "urllib3", "six.py")


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "lambdas" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def filter_low_confidence(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setenv("CLASSES", "bicycle,motorcycle")
    monkeypatch.setenv("THRESHOLD", "0.93")
    return load("filter_low_confidence")


def golden(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((EVENTS / f"{name}.json").read_text())
    return content


def test_the_filter_gives_the_golden_result(filter_low_confidence: ModuleType) -> None:
    case = golden("filter_low_confidence")
    assert filter_low_confidence.handler(case["event"], None) == case["result"]
    assert json.loads(json.dumps(case["result"])) == case["result"]


@pytest.mark.parametrize(("confidence", "meets"), [(0.93, True), (0.9299999, False), (1.0, True), (0.5, False)])
def test_the_threshold_itself_is_accepted(filter_low_confidence: ModuleType, confidence: float, meets: bool) -> None:
    event = {**golden("filter_low_confidence")["event"], "inferences": [1 - confidence, confidence]}
    result = filter_low_confidence.handler(event, None)
    assert result["meets_threshold"] is meets
    assert result["confidence"] == confidence


@pytest.mark.parametrize(
    "inferences", [[], [1.0], [0.2, 0.3, 0.5], ["a", "b"], [True, False], [2, -1], [float("nan"), 0.5], None, "0.9"]
)
def test_inferences_that_are_no_probabilities_are_refused(
    filter_low_confidence: ModuleType, inferences: object
) -> None:
    with pytest.raises(filter_low_confidence.InvalidInferences):
        filter_low_confidence.handler({**golden("filter_low_confidence")["event"], "inferences": inferences}, None)


@pytest.mark.parametrize(("score", "is_a_class"), [(None, True), (0, True), (1.0, True), (1.0001, False), (1e9, False)])
def test_an_outlier_score_over_its_limit_is_no_class_however_confident(
    filter_low_confidence: ModuleType, score: float | None, is_a_class: bool
) -> None:
    event = {**golden("filter_low_confidence")["event"], "inferences": [1.0, 0.0], "outlier_score": score}
    result = filter_low_confidence.handler(event, None)
    assert (result["is_a_class"], result["meets_threshold"]) == (is_a_class, True)
    del event["outlier_score"]
    assert filter_low_confidence.handler(event, None)["is_a_class"]


@pytest.mark.parametrize("score", [-0.1, float("nan"), float("inf"), "1", True, [0.5]])
def test_an_outlier_score_that_is_none_is_refused(filter_low_confidence: ModuleType, score: object) -> None:
    with pytest.raises(filter_low_confidence.InvalidInferences, match="not an outlier score"):
        filter_low_confidence.handler({**golden("filter_low_confidence")["event"], "outlier_score": score}, None)


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        ("[0.2, 0.8]", {"inferences": [0.2, 0.8], "outlier_score": None}),
        ('{"probabilities": [0.2, 0.8]}', {"inferences": [0.2, 0.8], "outlier_score": None}),
        ('{"probabilities": [1, 0], "outlier_score": 2}', {"inferences": [1, 0], "outlier_score": 2}),
    ],
)
def test_a_models_plain_answer_and_its_verbose_one_are_both_read(body: str, answer: dict[str, Any]) -> None:
    assert load("classify_image")._answer(body.encode()) == answer


@pytest.mark.parametrize(
    "body", ["", "7", '"text"', "{}", '{"probabilities": 7}', '{"probabilities": [0], "outlier_score": []}']
)
def test_another_answer_is_the_models_error(body: str) -> None:
    module = load("classify_image")
    with pytest.raises(module.ModelError, match="not a list of probabilities"):
        module._answer(body.encode())


@pytest.mark.parametrize("name", HANDLERS)
@pytest.mark.parametrize("event", [None, [], "text", {}, {"bucket": 1, "key": 2}, {"bucket": "", "key": ""}])
def test_events_of_another_shape_are_invalid_input(monkeypatch: pytest.MonkeyPatch, name: str, event: object) -> None:
    monkeypatch.setenv("CLASSES", "bicycle,motorcycle")
    monkeypatch.setenv("THRESHOLD", "0.93")
    module = load(name)
    with pytest.raises(module.InvalidInput):
        module.handler(event, None)


@pytest.mark.parametrize(
    "change", [{"image_data": "not base64!"}, {"inference_id": ""}, {"inference_id": "x" * 65}, {"inference_id": 7}]
)
def test_classify_checks_its_event_before_it_calls(change: dict[str, Any]) -> None:
    module = load("classify_image")
    event = {**golden("classify_image")["event"], "image_data": "aGVsbG8=", **change}
    with pytest.raises(module.InvalidInput):
        module.handler(event, None)


@pytest.mark.parametrize(
    ("name", "error"), [("serialize_image_data", "StorageUnavailable"), ("classify_image", "EndpointUnavailable")]
)
def test_a_service_that_is_out_of_reach_has_the_name_that_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, name: str, error: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    for service in ("S3", "SAGEMAKER_RUNTIME"):
        monkeypatch.setenv(f"AWS_ENDPOINT_URL_{service}", "http://127.0.0.1:9")
    monkeypatch.setenv("ENDPOINT_NAME", "endpoint")
    module = load(name)
    event = {**golden(name)["event"], "image_data": "aGVsbG8="}
    with pytest.raises(getattr(module, error)):
        module.handler(event, None)
    assert error in (ROOT / "statemachine" / "classify_image.asl.json").read_text()


@pytest.mark.parametrize(
    ("name", "error"), [("serialize_image_data", "StorageUnavailable"), ("classify_image", "EndpointUnavailable")]
)
@pytest.mark.parametrize("status", [500, 502, 503])
def test_a_services_own_failure_is_tried_again_whatever_its_code(
    monkeypatch: pytest.MonkeyPatch, name: str, error: str, status: int
) -> None:
    class Service(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            self.end_headers()

        do_GET = do_POST  # noqa: N815 http.server's name

        def log_message(self, *details: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Service) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for service in ("S3", "SAGEMAKER_RUNTIME"):
            monkeypatch.setenv(f"AWS_ENDPOINT_URL_{service}", f"http://127.0.0.1:{server.server_address[1]}")
        monkeypatch.setenv("ENDPOINT_NAME", "endpoint")
        module = load(name)
        with pytest.raises(getattr(module, error)):
            module.handler({**golden(name)["event"], "image_data": "aGVsbG8="}, None)
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "error"),
    [(503, "EndpointUnavailable"), (0, "EndpointUnavailable"), (500, "ModelError"), (400, "UnreadableImage")],
)
def test_a_model_that_is_not_up_yet_is_tried_again(monkeypatch: pytest.MonkeyPatch, status: int, error: str) -> None:
    """InvokeEndpoint's answer of status 424, in the form that AWS documents for ModelError."""

    class Endpoint(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            answer = {"Message": "Received an error", "OriginalStatusCode": status, "OriginalMessage": "no worker"}
            self.send_response(424)
            self.send_header("x-amzn-ErrorType", "ModelError")
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *details: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Endpoint) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME", f"http://127.0.0.1:{server.server_address[1]}")
        monkeypatch.setenv("ENDPOINT_NAME", "endpoint")
        module = load("classify_image")
        with pytest.raises(getattr(module, error), match="no worker"):
            module.handler({**golden("classify_image")["event"], "image_data": "aGVsbG8="}, None)
        server.shutdown()


@pytest.mark.parametrize("name", HANDLERS)
def test_a_handler_needs_only_what_the_managed_runtime_has(tmp_path: Path, name: str) -> None:
    import boto3

    packages = Path(boto3.__file__).parent.parent
    for package in MANAGED:
        (tmp_path / package).symlink_to(packages / package)
    shutil.copy(ROOT / "lambdas" / f"{name}.py", tmp_path)
    # -I -S: no site-packages and nothing of this environment but what the folder holds.
    code = f"import sys; sys.path.append({str(tmp_path)!r}); import {name}; assert callable({name}.handler)"
    done = subprocess.run(
        [managed_python(), "-I", "-S", "-c", code],
        env={"AWS_DEFAULT_REGION": "us-east-1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def managed_python() -> str:
    """The template's Python version if this machine has it, else this one."""
    candidates = [shutil.which("python3.13"), *map(str, Path.home().glob(".pyenv/versions/3.13.*/bin/python3"))]
    for candidate in candidates:
        if candidate and subprocess.run([candidate, "-c", ""], capture_output=True).returncode == 0:
            return candidate
    return sys.executable
