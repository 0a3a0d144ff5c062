"""InvokeEndpoint: headers, limits, errors, and many at once."""

import pickle
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.local_sagemaker.conftest import Server


def refusal(server: Server, endpoint: str, body: bytes = b"x", **more: Any) -> tuple[str, int, dict[str, Any]]:
    """Error code, HTTP status and the whole answer of an invocation that fails."""
    with pytest.raises(ClientError) as error:
        server.runtime.invoke_endpoint(EndpointName=endpoint, Body=body, **more)
    answer: Any = error.value.response
    return answer["Error"]["Code"], answer["ResponseMetadata"]["HTTPStatusCode"], answer


def test_content_type_accept_and_attributes_reach_the_model_and_come_back(server: Server, actor: str) -> None:
    assert server.invoke(actor, ContentType="text/plain; charset=utf-8")["content_type"].startswith("text/plain")
    answer = server.runtime.invoke_endpoint(
        EndpointName=actor, Body=b"x", Accept="text/csv", CustomAttributes="answer me", InferenceId="i" * 64
    )
    assert (answer["ContentType"], answer["Body"].read()) == ("text/csv", b"1,2,3")
    assert answer["CustomAttributes"] == "answered"
    assert answer["InvokedProductionVariant"] == "only"
    silent = server.runtime.invoke_endpoint(EndpointName=actor, Body=b"x", CustomAttributes="trace=1")
    assert "CustomAttributes" not in silent  # the model set none


def test_a_model_error_has_the_models_status_and_message(server: Server, actor: str) -> None:
    code, status, answer = refusal(server, actor, b"raise the kettle is empty")
    assert (code, status) == ("ModelError", 424)
    assert answer["OriginalStatusCode"] == 500
    assert "the kettle is empty" in answer["OriginalMessage"]
    assert actor in answer["LogStreamArn"]
    assert "Received server error (500)" in answer["Error"]["Message"]


@pytest.mark.parametrize(
    "header",
    [
        {"InferenceId": "i" * 65},
        {"InferenceId": "with\ttab"},
        {"CustomAttributes": "a" * 1025},
        {"ContentType": "t" * 1025},
        {"TargetVariant": "not a variant"},
        {"TargetModel": "other.tar.gz"},
        {"InferenceComponentName": "component"},
    ],
    ids=lambda header: next(iter(header)),
)
def test_headers_out_of_bounds_are_validation_errors(server: Server, actor: str, header: dict[str, Any]) -> None:
    code, status, answer = refusal(server, actor, **header)
    assert (code, status) == ("ValidationError", 400)
    assert next(iter(header)) in answer["Error"]["Message"]


def test_an_endpoint_that_is_not_there_is_a_validation_error(server: Server) -> None:
    code, status, answer = refusal(server, "nobody")
    assert (code, status) == ("ValidationError", 400)
    assert "nobody" in answer["Error"]["Message"]


def test_six_mebibytes_and_not_a_byte_more(server: Server, actor: str) -> None:
    limit = 6 * 1024 * 1024
    assert server.runtime.invoke_endpoint(EndpointName=actor, Body=b"x" * limit, Accept="text/csv")
    code, status, _ = refusal(server, actor, b"x" * (limit + 1))
    assert (code, status) == ("ValidationError", 413)
    code, status, _ = refusal(server, actor, b"large %d" % limit)  # the quotes around it are too much
    assert (code, status) == ("ModelError", 424)


def test_a_model_over_its_time_is_a_model_error(server: Server) -> None:
    name = server.endpoint()
    code, status, answer = refusal(server, name, b"sleep 60")
    assert (code, status, answer["OriginalStatusCode"]) == ("ModelError", 424, 0)
    assert "did not answer within 6 s" in answer["OriginalMessage"]
    server.delete(name)


def test_requests_are_served_side_by_side_and_too_many_are_turned_away(server: Server) -> None:
    name = server.endpoint(server.config({"ModelName": server.model(SAGEMAKER_MODEL_SERVER_WORKERS="6")}))
    with ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(lambda _: server.invoke(name, b"sleep 1"), range(6)))
        assert max(answer["began"] for answer in answers) < min(answer["ended"] for answer in answers)
        busy = [threads.submit(server.invoke, name, b"sleep 3") for _ in range(6)]
        time.sleep(1)
        code, status, answer = refusal(server, name)
        assert (code, status) == ("ServiceUnavailable", 503)
        assert "6 requests in flight" in answer["Error"]["Message"]
        assert all(future.result() for future in busy)
    server.delete(name)


def test_one_busy_endpoint_does_not_hold_another_up(server: Server, actor: str) -> None:
    name = server.endpoint(server.config({"ModelName": server.model(SAGEMAKER_MODEL_SERVER_WORKERS="1")}))
    with ThreadPoolExecutor(4) as threads:
        busy = [threads.submit(server.invoke, name, b"sleep 1") for _ in range(3)]
        assert server.invoke(actor)
        assert not busy[-1].done()
    server.delete(name)


def test_a_pickle_in_a_request_is_not_loaded(server: Server, tmp_path: Any) -> None:
    """The toolkit's own reader of NPY would unpickle it."""
    import io

    import numpy as np

    class Trap:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return (__import__("os").mkdir, (str(tmp_path / "sprung"),))

    body = io.BytesIO()
    np.save(body, np.array([Trap()], dtype=object), allow_pickle=True)
    assert pickle.dumps(Trap())
    code = "def model_fn(model_dir):\n    return None\ndef predict_fn(data, model):\n    return data\n"
    name = server.endpoint(server.config({"ModelName": server.model(code)}))
    refused, _, answer = refusal(server, name, body.getvalue(), ContentType="application/x-npy")
    assert refused == "ModelError"
    assert "allow_pickle" in answer["OriginalMessage"]
    assert not (tmp_path / "sprung").exists()
    numbers = io.BytesIO()
    np.save(numbers, np.arange(3.0))
    assert server.invoke(name, numbers.getvalue(), ContentType="application/x-npy") == [0.0, 1.0, 2.0]
    server.delete(name)


@pytest.mark.parametrize("path", ["invocations-response-stream", "async-invocations"])
def test_an_operation_of_the_runtime_that_is_not_there_says_so(server: Server, actor: str, path: str) -> None:
    calls: dict[str, Callable[[], Any]] = {
        "invocations-response-stream": lambda: server.runtime.invoke_endpoint_with_response_stream(
            EndpointName=actor, Body=b"x"
        ),
        "async-invocations": lambda: server.runtime.invoke_endpoint_async(
            EndpointName=actor, InputLocation="s3://bucket/key"
        ),
    }
    with pytest.raises(ClientError, match=r"InvokeEndpoint(WithResponseStream|Async) is not implemented"):
        calls[path]()
