"""What AWS may do and this server does on demand: late workers, lost capture records, throttling."""

import time
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from local_aws.standalone import StandaloneAws
from testing.waiting import eventually
from tests.local_sagemaker.conftest import BUCKET, Server, answer_or_none


def test_an_endpoint_in_service_may_have_no_worker_and_lose_captures(tmp_path: Path) -> None:
    habits = ("--worker-delay", "4", "--capture-loss", "1", "--capture-interval", "0.2")
    with StandaloneAws(tmp_path, *habits) as aws:
        server = Server(aws)
        capture = {
            "EnableCapture": True,
            "InitialSamplingPercentage": 100,
            "DestinationS3Uri": f"s3://{BUCKET}/captured",
            "CaptureOptions": [{"CaptureMode": "Input"}],
        }
        name = server.endpoint(server.config(DataCaptureConfig=capture))
        with pytest.raises(ClientError) as error:
            server.invoke(name)
        assert error.value.response["Error"]["Code"] == "ModelError"
        assert error.value.response.get("OriginalStatusCode") == 503
        eventually(lambda: answer_or_none(server, name), 20)
        time.sleep(1)
        assert server.keys("captured") == []


def test_too_many_calls_are_throttled_and_the_sdk_waits(tmp_path: Path) -> None:
    with StandaloneAws(tmp_path, "--calls-per-second", "3") as aws:
        server = Server(aws)
        with pytest.raises(ClientError, match="Rate exceeded") as error:
            for _ in range(10):
                server.unchecked.list_endpoints()
        assert error.value.response["Error"]["Code"] == "ThrottlingException"
        patient = aws.client("sagemaker", retries={"mode": "standard", "total_max_attempts": 8})
        assert [patient.list_endpoints()["Endpoints"] for _ in range(6)] == [[]] * 6
