"""The SageMaker server, asked by boto3 and by sagemaker.core."""

import io
import json
import os
import subprocess
import sys
import tarfile
import time
import uuid
from typing import Any

import pytest
from botocore.exceptions import ClientError
from sagemaker.core.resources import Endpoint, TrainingJob

from local_aws.config import ROOT
from tasks import storage
from tasks.aws import client, sdk
from tasks.infrastructure import Installation
from tasks.training import TrainingError, TrainingPlan, start_or_attach, stop, wait

IMAGE = "763104351884.dkr.ecr.us-east-1.amazonaws.com/pytorch-training:2.10.0-cpu-py313"


def archive(**files: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, text in files.items():
            info = tarfile.TarInfo(name.replace("__", "/") + ".py")
            info.size = len(text.encode())
            tar.addfile(info, io.BytesIO(text.encode()))
    return buffer.getvalue()


def plan_of(installed: Installation, script: str) -> TrainingPlan:
    key = f"code/test-{uuid.uuid4().hex}.tar.gz"
    storage.put(installed.bucket, key, archive(train=script))
    return TrainingPlan(f"s3://{installed.bucket}/{key}", {"epochs": "1"}, "fingerprint")


def test_a_failing_script_gives_its_exception_as_the_reason(installed: Any) -> None:
    lines: list[str] = []
    plan = plan_of(installed, 'print("hello from the script")\nraise RuntimeError("the kettle is empty")\n')
    name = start_or_attach(installed, plan, f"fail{uuid.uuid4().hex[:8]}", lines.append)
    with pytest.raises(TrainingError, match=r"(?s)is Failed: .*kettle is empty"):
        wait(name, "f", lines.append)
    assert any("hello from the script" in line for line in lines)


def test_a_stopped_job_is_no_success_and_its_retry_is_a_new_job(installed: Any) -> None:
    lines: list[str] = []
    plan = plan_of(installed, "import time\nprint('begun', flush=True)\ntime.sleep(300)\n")
    run = f"stop{uuid.uuid4().hex[:8]}"
    name = start_or_attach(installed, plan, run, lines.append)
    assert start_or_attach(installed, plan, run, lines.append) == name
    assert "re-attached" in lines[-1]
    while TrainingJob.get(name, **sdk()).secondary_status != "Training":
        time.sleep(0.2)
    stop(name)
    with pytest.raises(TrainingError, match="is Stopped"):
        wait(name, "f", lines.append)
    again = start_or_attach(installed, plan, run, lines.append)
    assert again == f"{name}-2"
    stop(again)


def test_missing_training_data_is_named(installed: Any) -> None:
    name = f"nodata-{uuid.uuid4().hex[:8]}"
    source = {"S3DataType": "S3Prefix", "S3Uri": f"s3://{installed.bucket}/train/no-such-prefix/"}
    client("sagemaker").create_training_job(
        TrainingJobName=name,
        RoleArn=installed.training_role_arn,
        AlgorithmSpecification={"TrainingImage": IMAGE, "TrainingInputMode": "File"},
        InputDataConfig=[{"ChannelName": "train", "DataSource": {"S3DataSource": source}}],
        OutputDataConfig={"S3OutputPath": f"s3://{installed.bucket}/models/"},
        ResourceConfig={"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 1},
        StoppingCondition={"MaxRuntimeInSeconds": 60},
    )
    with pytest.raises(TrainingError, match=r"no S3 objects found under .*no-such-prefix"):
        wait(name, "f", lambda line: None)


def test_resources_that_do_not_exist_are_validation_errors(installed: Any) -> None:
    sagemaker = client("sagemaker")
    for call, names in (
        (sagemaker.describe_training_job, {"TrainingJobName": "nobody"}),
        (sagemaker.describe_model, {"ModelName": "nobody"}),
        (sagemaker.describe_endpoint_config, {"EndpointConfigName": "nobody"}),
        (sagemaker.describe_endpoint, {"EndpointName": "nobody"}),
        (sagemaker.create_endpoint, {"EndpointName": "new", "EndpointConfigName": "nobody"}),
    ):
        with pytest.raises(ClientError) as error:
            call(**names)
        assert error.value.response["Error"]["Code"] == "ValidationException"
        assert "nobody" in error.value.response["Error"]["Message"]


def test_a_name_is_taken_once(installed: Any) -> None:
    described = client("sagemaker").describe_model(ModelName="scones-unlimited-v1")
    with pytest.raises(ClientError) as error:
        client("sagemaker").create_model(
            ModelName="scones-unlimited-v1",
            PrimaryContainer=described["PrimaryContainer"],
            ExecutionRoleArn=described["ExecutionRoleArn"],
        )
    assert error.value.response["Error"]["Code"] == "ResourceInUse"


def test_an_operation_that_is_not_there_says_so(installed: Any) -> None:
    with pytest.raises(ClientError, match="CreateNotebookInstance is not implemented"):
        client("sagemaker").create_notebook_instance(
            NotebookInstanceName="n", InstanceType="ml.t3.medium", RoleArn=installed.training_role_arn
        )


def test_a_model_that_cannot_load_fails_its_endpoint_with_the_reason(installed: Any) -> None:
    name = f"broken-{uuid.uuid4().hex[:8]}"
    deploy_model(installed, name, 'def model_fn(model_dir):\n    raise ValueError("no weights in the tin")\n')
    client("sagemaker").create_endpoint(EndpointName=name, EndpointConfigName=name)
    endpoint = wait_for(name)
    assert endpoint["EndpointStatus"] == "Failed"
    assert "no weights in the tin" in endpoint["FailureReason"]
    with pytest.raises(ClientError, match="not found"):
        client("sagemaker-runtime").invoke_endpoint(EndpointName=name, Body=b"x")


def test_an_update_that_fails_leaves_the_old_model_serving(installed: Any) -> None:
    good, bad = f"good-{uuid.uuid4().hex[:8]}", f"bad-{uuid.uuid4().hex[:8]}"
    deploy_model(installed, good, ECHO)
    deploy_model(installed, bad, "raise ImportError('stale')\n")
    sagemaker = client("sagemaker")
    sagemaker.create_endpoint(EndpointName=good, EndpointConfigName=good)
    assert wait_for(good)["EndpointStatus"] == "InService"
    sagemaker.update_endpoint(EndpointName=good, EndpointConfigName=bad)
    endpoint = wait_for(good)
    assert (endpoint["EndpointStatus"], endpoint["EndpointConfigName"]) == ("InService", good)
    answer = client("sagemaker-runtime").invoke_endpoint(EndpointName=good, Body=b"still here")
    assert answer["Body"].read() == b'"still here"'
    assert answer["InvokedProductionVariant"] == "only"
    sagemaker.delete_endpoint(EndpointName=good)


def test_a_model_error_carries_the_models_own_status(installed: Any) -> None:
    with pytest.raises(ClientError) as error:
        client("sagemaker-runtime").invoke_endpoint(
            EndpointName=installed.endpoint, ContentType="application/x-image", Body=b"no image"
        )
    response = error.value.response
    assert response["Error"]["Code"] == "ModelError"
    assert response["ResponseMetadata"]["HTTPStatusCode"] == 424
    assert response["OriginalStatusCode"] == 400
    assert "neither a PNG nor a JPEG" in response["OriginalMessage"]


def test_sagemaker_core_reads_the_endpoint(installed: Any) -> None:
    endpoint = Endpoint.get(installed.endpoint, **sdk())
    assert endpoint.endpoint_status == "InService"
    assert endpoint.production_variants[0].variant_name == "v1"


def test_requests_without_sense_are_answered(installed: Any) -> None:
    import urllib.error
    import urllib.request

    url = client("sagemaker").meta.endpoint_url
    for body, target in ((b"{", "SageMaker.ListModels"), (b"[]", "SageMaker.ListModels"), (b"{}", "Other.Thing")):
        request = urllib.request.Request(url, data=body, headers={"X-Amz-Target": target})
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(request)
        with error.value as answer:
            assert answer.code == 400
            assert json.loads(answer.read())["__type"]


ECHO = """
def model_fn(model_dir):
    return None
def input_fn(body, content_type):
    return bytes(body).decode()
def predict_fn(data, model):
    return data
def output_fn(prediction, accept):
    import json
    return json.dumps(prediction)
"""


def deploy_model(installed: Any, name: str, code: str) -> None:
    key = f"models/{name}/output/model.tar.gz"
    storage.put(installed.bucket, key, archive(code__inference=code))
    image = IMAGE.replace("training", "inference")
    sagemaker = client("sagemaker")
    sagemaker.create_model(
        ModelName=name,
        ExecutionRoleArn=installed.hosting_role_arn,
        PrimaryContainer={"Image": image, "ModelDataUrl": f"s3://{installed.bucket}/{key}"},
    )
    variant = {"VariantName": "only", "ModelName": name, "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
    sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant])


def wait_for(name: str) -> dict[str, Any]:
    deadline = time.monotonic() + 60
    while True:
        endpoint: dict[str, Any] = client("sagemaker").describe_endpoint(EndpointName=name)
        if endpoint["EndpointStatus"] not in ("Creating", "Updating"):
            return endpoint
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_cancelling_a_flow_run_stops_its_training_job(installed: Any) -> None:
    """A worker cancels with SIGTERM; the flow's main thread gets it while it waits for the job."""
    flow = subprocess.Popen(
        [sys.executable, "-c", "from flows.train_model import train_model; train_model()"],
        cwd=ROOT,
        env={**os.environ, "SCONES_EPOCHS": "5000"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    job = None
    deadline = time.monotonic() + 90
    while job is None or job["SecondaryStatus"] != "Training":
        assert time.monotonic() < deadline and flow.poll() is None
        time.sleep(0.5)
        summaries = client("sagemaker").list_training_jobs(StatusEquals="InProgress")["TrainingJobSummaries"]
        names = [summary["TrainingJobName"] for summary in summaries]
        job = client("sagemaker").describe_training_job(TrainingJobName=names[0]) if names else None
    flow.terminate()
    log = flow.communicate(timeout=60)[1]
    assert f"stopping training job {job['TrainingJobName']}" in log
    while job["TrainingJobStatus"] in ("InProgress", "Stopping"):
        assert time.monotonic() < deadline
        time.sleep(0.5)
        job = client("sagemaker").describe_training_job(TrainingJobName=job["TrainingJobName"])
    assert job["TrainingJobStatus"] == "Stopped"
