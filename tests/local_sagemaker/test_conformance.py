"""The conformance kit finds no difference on the embedded AWS, and leaves nothing there."""

import pytest

from conformance import places
from conformance.__main__ import run
from conformance.calls import load
from tests.local_sagemaker.conftest import Server


def test_the_embedded_aws_answers_as_aws_does(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    client_of = server.aws.client
    variables = places.variables("provided.al2023", client_of)
    prefix = variables["prefix"]
    differing = run(load(), client_of, variables, "embedded", None)
    output = capsys.readouterr().out
    assert differing == 0, output
    assert "90 calls: 90 as expected" in output
    assert places.teardown(client_of, prefix, variables["region"], variables["account"]) == []
    sagemaker = client_of("sagemaker")
    assert [each for each in sagemaker.list_endpoints()["Endpoints"] if each["EndpointName"].startswith(prefix)] == []
    assert [each for each in sagemaker.list_models()["Models"] if each["ModelName"].startswith(prefix)] == []
    assert variables["bucket"] not in [each["Name"] for each in client_of("s3").list_buckets()["Buckets"]]
