"""Clients that were not written here: boto3's waiters, sagemaker.core.resources, the AWS CLI."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import WaiterError

from testing.archives import tar_gz
from tests.local_sagemaker.conftest import BUCKET, INFERENCE_IMAGE, TRAINING_IMAGE, Server, unique

QUICK = {"Delay": 1, "MaxAttempts": 60}
TRAIN = """
import os, pathlib, shutil, torch
rows = pathlib.Path(os.environ["SM_CHANNEL_TRAIN"], "train.csv").read_text().split()
numbers = torch.tensor([[float(value) for value in row.split(",")] for row in rows])
model = torch.nn.Linear(3, 1)
with torch.no_grad():
    model.weight.copy_(numbers[:, 1:].mean(0, keepdim=True))
    model.bias.zero_()
folder = pathlib.Path(os.environ["SM_MODEL_DIR"])
torch.save(model.state_dict(), folder / "model.pt")
(folder / "code").mkdir()
(folder / "code" / "inference.py").write_text('''
import pathlib, torch
def model_fn(model_dir):
    model = torch.nn.Linear(3, 1)
    model.load_state_dict(torch.load(pathlib.Path(model_dir, "model.pt"), weights_only=True))
    return model
''')
"""


def run(server: Server, *command: str) -> str:
    """A program's output, with the environment that a user of the servers has."""
    done = subprocess.run(
        command, env={**server.aws.environment, "AWS_PAGER": ""}, text=True, capture_output=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def source(server: Server) -> dict[str, str]:
    """A training script and its data, as notebooks upload them."""
    return {
        "code": server.put("client/code.tar.gz", tar_gz({"train.py": TRAIN})),
        "train": server.put("client/data/train.csv", b"0,1.0,2.0,3.0\n1,3.0,2.0,1.0\n"),
    }


def test_boto3s_waiters(server: Server) -> None:
    done = server.job("print('done')\n")
    server.sagemaker.get_waiter("training_job_completed_or_stopped").wait(TrainingJobName=done, WaiterConfig=QUICK)
    failed = server.job("raise SystemExit(1)\n")
    with pytest.raises(WaiterError, match="terminal failure state"):
        waiter = server.sagemaker.get_waiter("training_job_completed_or_stopped")
        waiter.wait(TrainingJobName=failed, WaiterConfig=QUICK)
    name = server.endpoint(wait=False)
    server.sagemaker.get_waiter("endpoint_in_service").wait(EndpointName=name, WaiterConfig=QUICK)
    server.sagemaker.delete_endpoint(EndpointName=name)
    server.sagemaker.get_waiter("endpoint_deleted").wait(EndpointName=name, WaiterConfig=QUICK)
    broken = server.endpoint(server.config({"ModelName": server.model("import no_such_library\n")}), wait=False)
    with pytest.raises(WaiterError, match="terminal failure state"):
        server.sagemaker.get_waiter("endpoint_in_service").wait(EndpointName=broken, WaiterConfig=QUICK)
    server.delete(broken)
    for operation in ("list_models", "list_endpoints", "list_training_jobs", "list_model_package_groups"):
        pages = server.sagemaker.get_paginator(operation).paginate(PaginationConfig={"PageSize": 1, "MaxItems": 3})
        assert len(list(pages)) <= 3


# The calls of aws/amazon-sagemaker-examples, sagemaker-core/inference_and_resource_chaining.ipynb, in their order and
# with their options, for a PyTorch image in place of XGBoost's.
NOTEBOOK = """
import json, sys
from sagemaker.core.resources import Endpoint, EndpointConfig, Model, TrainingJob
from sagemaker.core.shapes import (
    AlgorithmSpecification, Channel, ContainerDefinition, DataSource, OutputDataConfig, ProductionVariant,
    ResourceConfig, S3DataSource, StoppingCondition,
)

given = json.loads(sys.argv[1])
training_job = TrainingJob.create(
    training_job_name=given["key"],
    hyper_parameters={"sagemaker_program": "train.py", "sagemaker_submit_directory": given["code"]},
    algorithm_specification=AlgorithmSpecification(training_image=given["training"], training_input_mode="File"),
    role_arn=given["role"],
    input_data_config=[
        Channel(
            channel_name="train",
            content_type="csv",
            compression_type="None",
            record_wrapper_type="None",
            data_source=DataSource(
                s3_data_source=S3DataSource(
                    s3_data_type="S3Prefix",
                    s3_uri=given["train"],
                    s3_data_distribution_type="FullyReplicated",
                )
            ),
        )
    ],
    output_data_config=OutputDataConfig(s3_output_path=given["output"]),
    resource_config=ResourceConfig(instance_type="ml.m4.xlarge", instance_count=1, volume_size_in_gb=30),
    stopping_condition=StoppingCondition(max_runtime_in_seconds=600),
)
training_job.wait(poll=1, logs=True)
model = Model.create(
    model_name=given["key"],
    primary_container=ContainerDefinition(
        image=given["inference"], model_data_url=training_job.model_artifacts.s3_model_artifacts
    ),
    execution_role_arn=given["role"],
)
endpoint_config = EndpointConfig.create(
    endpoint_config_name=given["key"],
    production_variants=[
        ProductionVariant(
            variant_name=given["key"], initial_instance_count=1, instance_type="ml.m5.xlarge", model_name=model
        )
    ],
)
endpoint = Endpoint.create(endpoint_name=given["key"], endpoint_config_name=endpoint_config)
endpoint.wait_for_status("InService", poll=1)
result = endpoint.invoke(body="1,1,1", content_type="text/csv", accept="text/csv")
print("ANSWER", result.body.read().decode().strip())
print("JOBS", [job.training_job_name for job in TrainingJob.get_all(name_contains=given["key"])])
endpoint.delete()
endpoint.wait_for_delete(poll=1)
endpoint_config.delete()
model.delete()
try:
    Endpoint.get(given["key"])
except Exception as error:
    print("GONE", error)
"""


def test_a_public_notebooks_calls_with_sagemaker_core(server: Server, source: dict[str, str]) -> None:
    given = {
        **source,
        "key": unique("notebook"),
        "role": server.role,
        "output": f"s3://{BUCKET}/client/output",
        "training": TRAINING_IMAGE,
        "inference": INFERENCE_IMAGE,
    }
    printed = run(server, sys.executable, "-c", NOTEBOOK, json.dumps(given))
    # The weights are the means of the columns, the input is ones.
    assert "ANSWER 6.0" in printed
    assert f"JOBS ['{given['key']}']" in printed
    assert "Could not find endpoint" in printed


def test_the_aws_cli(server: Server, source: dict[str, str], tmp_path: Path) -> None:
    name = unique("cli")

    def aws(*arguments: str, parsed: bool = True) -> Any:
        printed = run(server, str(Path(sys.executable).parent / "aws"), *arguments, "--output", "json")
        return json.loads(printed) if parsed and printed.strip() else printed

    hyperparameters = {"sagemaker_program": "train.py", "sagemaker_submit_directory": source["code"]}
    data = {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": source["train"]}}
    created = aws(
        *("sagemaker", "create-training-job", "--training-job-name", name, "--role-arn", server.role),
        *("--algorithm-specification", f"TrainingImage={TRAINING_IMAGE},TrainingInputMode=File"),
        *("--hyper-parameters", json.dumps(hyperparameters)),
        *("--input-data-config", json.dumps([{"ChannelName": "train", "DataSource": data}])),
        *("--output-data-config", f"S3OutputPath=s3://{BUCKET}/cli"),
        *("--resource-config", "InstanceType=ml.m5.large,InstanceCount=1,VolumeSizeInGB=1"),
        *("--stopping-condition", "MaxRuntimeInSeconds=300", "--tags", "Key=team,Value=kitchen"),
    )
    assert created["TrainingJobArn"].endswith(f":training-job/{name}")
    assert server.ended(name)["TrainingJobStatus"] == "Completed"
    described = aws("sagemaker", "describe-training-job", "--training-job-name", name)
    assert described["SecondaryStatus"] == "Completed"
    tags = aws("sagemaker", "list-tags", "--resource-arn", created["TrainingJobArn"])["Tags"]
    assert tags == [{"Key": "team", "Value": "kitchen"}]
    artifact = described["ModelArtifacts"]["S3ModelArtifacts"]
    aws(
        *("sagemaker", "create-model", "--model-name", name, "--execution-role-arn", server.role),
        *("--primary-container", f"Image={INFERENCE_IMAGE},ModelDataUrl={artifact}"),
    )
    variant = f"VariantName=v1,ModelName={name},InitialInstanceCount=1,InstanceType=ml.m5.large"
    aws("sagemaker", "create-endpoint-config", "--endpoint-config-name", name, "--production-variants", variant)
    aws("sagemaker", "create-endpoint", "--endpoint-name", name, "--endpoint-config-name", name)
    server.settled(name)
    aws("sagemaker", "wait", "endpoint-in-service", "--endpoint-name", name, parsed=False)
    listed = aws("sagemaker", "list-endpoints", "--name-contains", name, "--sort-by", "Name")["Endpoints"]
    assert [endpoint["EndpointStatus"] for endpoint in listed] == ["InService"]
    body, answer = tmp_path / "body.csv", tmp_path / "answer"
    body.write_text("1,0,0")
    invoked = aws(
        *("sagemaker-runtime", "invoke-endpoint", "--endpoint-name", name, "--content-type", "text/csv"),
        *("--accept", "application/json", "--body", f"fileb://{body}", str(answer)),
    )
    assert invoked["InvokedProductionVariant"] == "v1"
    assert json.loads(answer.read_text()) == [2.0]
    aws("sagemaker", "delete-endpoint", "--endpoint-name", name, parsed=False)
    server.sagemaker.get_waiter("endpoint_deleted").wait(EndpointName=name, WaiterConfig=QUICK)
    refused = subprocess.run(
        [str(Path(sys.executable).parent / "aws"), "sagemaker", "describe-endpoint", "--endpoint-name", name],
        env=server.aws.environment,
        text=True,
        capture_output=True,
        timeout=60,
    )
    assert refused.returncode != 0
    assert "(ValidationException)" in refused.stderr and "Could not find endpoint" in refused.stderr
