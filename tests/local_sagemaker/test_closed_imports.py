"""Containers can import what their image holds on AWS, what they ask for and their own code, and nothing else."""

import sys

import pytest
from local_sagemaker.images import find_image

from testing.archives import tar_gz
from tests.local_sagemaker.conftest import ACTOR, INFERENCE_IMAGE, TRAINING_IMAGE, Server, unique

TRY = """
import importlib.util, subprocess, sys
for name in ("json", "numpy", "torch", "PIL", "scipy", "own", "jinja2", "sagemaker_inference", "prefect"):
    try:
        importlib.import_module(name)
        sys.stdout.write(f"{name} is there\\n")
    except ModuleNotFoundError as error:
        sys.stdout.write(f"{name} fails: {error}\\n")
    sys.stdout.write(f"{name} has a spec: {importlib.util.find_spec(name) is not None}\\n")
"""
BOTH = TRY + "if len(sys.argv) < 2 or sys.argv[1] != 'again': subprocess.run([sys.executable, __file__, 'again'])\n"
REFUSED = "fails: No module named"


def log_of(server: Server, files: dict[str, str]) -> list[str]:
    name = unique("job")
    uri = server.put(f"source/{name}.tar.gz", tar_gz({"train.py": BOTH, "own.py": "", **files}))
    hyperparameters = {"sagemaker_program": "train.py", "sagemaker_submit_directory": uri}
    hyperparameters["sagemaker_container_log_level"] = "30"  # its own lines would fill the page that is read
    server.job("", TrainingJobName=name, HyperParameters=hyperparameters)
    assert server.ended(name)["TrainingJobStatus"] == "Completed"
    return server.log("/aws/sagemaker/TrainingJobs", f"{name}/")


def test_a_job_and_what_it_starts_have_only_what_the_training_image_has(server: Server) -> None:
    log = log_of(server, {})
    for name in ("json", "numpy", "torch", "PIL", "scipy", "own", "jinja2"):
        assert log.count(f"{name} is there") == 2, name
        assert log.count(f"{name} has a spec: True") == 2, name
    for name in ("sagemaker_inference", "prefect"):
        assert log.count(f"{name} {REFUSED} '{name}'") == 2, log
        assert log.count(f"{name} has a spec: False") == 2, log
    other = sys.version_info[:2] != (3, 13)
    assert any("this image has Python 3.13 on AWS" in line for line in log) is other


def test_a_job_has_what_its_requirements_ask_for(server: Server) -> None:
    assert log_of(server, {"requirements.txt": "prefect>=3 # flows\n"}).count("prefect is there") == 2


@pytest.mark.parametrize(("module", "there"), [("sagemaker_inference", True), ("scipy", True), ("prefect", False)])
def test_a_model_has_only_what_the_inference_image_has(server: Server, module: str, there: bool) -> None:
    name = server.endpoint(server.config({"ModelName": server.model(f"import {module}\n{ACTOR}")}), wait=False)
    endpoint = server.settled(name)
    assert (endpoint["EndpointStatus"] == "InService") is there
    if not there:
        assert f"No module named '{module}'" in endpoint["FailureReason"]
    server.delete(name)


def test_an_image_without_a_list_is_not_closed(server: Server) -> None:
    successor = "763104351884.dkr.ecr.us-east-1.amazonaws.com/pytorch:2.13-cpu-amzn2023-sagemaker"
    assert find_image(INFERENCE_IMAGE) and find_image(TRAINING_IMAGE) and find_image(successor)
    for uri in ("pytorch-training", "a/pytorch-training:2.1.0", "a/pytorch-training:2.100", "a/other:2.10", ""):
        assert find_image(uri) is None
    model = unique("model")
    uri = server.put(f"models/{model}.tar.gz", tar_gz({"code/inference.py": f"import prefect\n{ACTOR}"}))
    container = {"Image": "a/pytorch-inference:9.9", "ModelDataUrl": uri}
    server.sagemaker.create_model(ModelName=model, ExecutionRoleArn=server.role, PrimaryContainer=container)
    name = server.endpoint(server.config({"ModelName": model}))
    assert server.invoke(name)
    server.delete(name)
