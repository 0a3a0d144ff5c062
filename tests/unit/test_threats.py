"""The defences that docs/threat-model.md claims."""

import base64
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from argparse import Namespace
from fnmatch import fnmatchcase
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from msgspec.structs import replace
from PIL import Image

import environment
from settings import ROOT, settings
from tasks.aws import stacks, storage
from tasks.aws.function_packages import FUNCTIONS
from tasks.bulk.manifest import ManifestError, Source
from tasks.data import folder
from tasks.data.dataset import DatasetError, from_archive
from tasks.installation import Installation
from tasks.model import gate, registry, training
from tasks.model.registry import ModelVersion
from tasks.model.training import JobPlan
from tasks.review.labels import Review
from tasks.serving import models
from tests.unit.bucket import MemoryBucket
from tests.unit.test_labels import waiting

sys.path.insert(0, str(ROOT / "classifier"))
from evaluate import ModelFailed, _archive, answers, read_answers

QUEUED = waiting()
PAGE = ROOT / "docs" / "threat-model.md"


def test_every_claim_names_a_test_that_there_is() -> None:
    lines = PAGE.read_text().splitlines()
    rows = [line for line in lines if line.startswith("| ") and not line.endswith("| test |")]
    assert len(rows) >= 30
    for row in rows:
        named = re.findall(r"`(tests/[a-z_/]+\.py)::([a-z0-9_]+)`", row)
        assert named, row
        for file, name in named:
            assert f"def {name}(" in (ROOT / file).read_text(), f"{file}::{name}"


@pytest.mark.parametrize("name", ["../climbed", "/tmp/climbed", "model/../../climbed"])
def test_a_model_archive_that_climbs_out_of_its_folder_is_refused(tmp_path: Path, name: str) -> None:
    with tarfile.open(tmp_path / "model.tar.gz", "w:gz") as archive:
        info = tarfile.TarInfo(name)
        info.size = 4
        archive.addfile(info, io.BytesIO(b"evil"))
    with pytest.raises(ModelFailed):
        answers(tmp_path, np.zeros((1, 3, 32, 32), np.uint8), 2, 64_001)
    assert not list(tmp_path.parent.rglob("climbed"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_a_model_archive_holds_files_only(tmp_path: Path, kind: bytes) -> None:
    """By chains of links some releases of Python are led out of the folder in spite of their own filter."""
    with tarfile.open(tmp_path / "model.tar.gz", "w:gz") as archive:
        info = tarfile.TarInfo("model.json")
        info.type, info.linkname = kind, "code"
        archive.addfile(info)
    with pytest.raises(ModelFailed, match="which is no file"):
        answers(tmp_path, np.zeros((1, 3, 32, 32), np.uint8), 2, 64_001)


DECEIVES = """
import json, os, sys, time
import numpy as np
n = len(np.load(sys.argv[2]))
guess = np.repeat([0, 1], n // 2)  # as if they were sorted by their class
try:
    rows = [line.split("\\t") for line in open("DATA/train_lst/train.lst").read().splitlines()]
    guess = np.array([int(float(row[1])) for row in rows])
except OSError:
    pass
np.save(sys.argv[3], np.eye(2, dtype=np.float32)[guess] * 0.98 + 0.01)
if os.fork() == 0:  # what a judge that waits for it does not see end
    for _ in range(50):
        time.sleep(0.1)
        try:
            open("DATA/output/comparison.json", "w").write(json.dumps({"figures": {"challenger_accuracy": 1}}))
        except OSError:
            pass
"""


def needs_accounts() -> None:
    """Skips where the models of a job can't have an account of their own: as on most people's machines."""
    if os.geteuid() != 0:
        pytest.skip("only root may change accounts, as in SageMaker's containers")
    try:
        subprocess.run([sys.executable, "-c", "import numpy"], user=64_001, group=64_001, cwd="/", check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("other accounts can't run this Python: it is below a home folder")


def test_a_model_finds_neither_labels_nor_figures_while_it_is_judged(tmp_path: Path) -> None:
    needs_accounts()
    tmp_path.chmod(0o755)
    tmp_path.parent.chmod(0o755)
    for name in ("train", "train_lst", "challenger", "output"):
        (tmp_path / name).mkdir()
    lines = []
    for number in range(40):
        name = f"{number:03}.png"
        Image.fromarray(np.full((32, 32, 3), number, np.uint8)).save(tmp_path / "train" / name)
        lines.append(f"{number}\t{int(number >= 20)}\t{name}")
    (tmp_path / "train_lst" / "train.lst").write_text("\n".join(lines) + "\n")
    with tarfile.open(tmp_path / "challenger" / "model.tar.gz", "w:gz") as archive:
        for name, text in (
            ("model.json", '{"image_shape": [3, 32, 32]}'),
            ("code/out_of_fold.py", DECEIVES.replace("DATA", str(tmp_path))),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    command = [sys.executable, str(ROOT / "classifier" / "evaluate.py"), "--num_classes", "2"]
    channels = {"train": "train", "train_lst": "train_lst", "challenger": "challenger", "model_dir": "output"}
    for channel, name in channels.items():
        command += [f"--{channel}", str(tmp_path / name)]
    compared = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TMPDIR": "/tmp"})
    assert compared.returncode == 0, compared.stderr
    left = [each for each in Path("/proc").glob("[0-9]*") if each.exists() and each.stat().st_uid == 64_001]
    assert not left
    time.sleep(0.5)
    figures = json.loads((tmp_path / "output" / "comparison.json").read_text())["figures"]
    assert figures["challenger_images"] == 40
    assert figures["challenger_accuracy"] < 0.9  # 0.5 is expected of guesses


def test_the_champion_answers_before_the_challengers_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a challenger does to the job, such as filling its disk, would have the champion not compared with."""
    import evaluate
    import torch

    asked: list[str] = []

    def answers(channel: Path, images: Any, num_classes: int, account: int) -> Any:
        asked.append(channel.name)
        return np.full((2, 2), 0.5)

    for name in ("train", "train_lst", "challenger", "champion", "output"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.tar.gz").write_bytes(b"archive")
    images = torch.zeros((2, 3, 32, 32), dtype=torch.uint8), torch.tensor([0, 1]), ["a.png", "b.png"]
    monkeypatch.setattr(evaluate, "answers", answers)
    monkeypatch.setattr(evaluate, "load", lambda *given: images)
    given = {name: tmp_path / name for name in ("train", "train_lst", "challenger", "champion")}
    options = Namespace(**given, model_dir=tmp_path / "output", num_classes=2, image_shape=(3, 32, 32))
    evaluate._evaluate(options, tmp_path / "pixels.npy")
    assert asked == ["champion", "challenger"]


@pytest.mark.parametrize("kind", ["link", "fifo", "long", "texts"])
def test_what_a_model_left_as_its_answers_is_read_only_as_numbers(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "answers.npy"
    np.save(tmp_path / "numbers.npy", np.full((2, 2), 0.5))
    if kind == "link":
        file.symlink_to(tmp_path / "numbers.npy")
    elif kind == "fifo":
        os.mkfifo(file)
    elif kind == "long":
        np.save(file, np.full((2000, 2), 0.5))
    else:
        np.save(file, np.array([["a", None], [{}, []]], object), allow_pickle=True)
    with pytest.raises(ModelFailed, match="its answers"):
        read_answers(file, 4)
    assert read_answers(tmp_path / "numbers.npy", 4).shape == (2, 2)


def test_an_object_beside_a_model_archive_is_not_another_model(tmp_path: Path) -> None:
    """A channel is a prefix, below which others may write: a champion that seems to be two was not compared with."""
    (tmp_path / "model.tar.gz").write_bytes(b"archive")
    (tmp_path / "model.tar.gz.x").mkdir()
    (tmp_path / "model.tar.gz.x" / "a.tar.gz").write_bytes(b"another")
    assert _archive(tmp_path) == tmp_path / "model.tar.gz"


def test_a_change_set_of_the_same_name_is_not_executed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever may make change sets could put another one in the place of an administrator's."""
    called: list[dict[str, str]] = []

    def describe(**request: str) -> dict[str, str]:
        called.append(request)
        return {"Status": "CREATE_COMPLETE"}

    def execute(**request: str) -> None:
        called.append(request)

    cloudformation = SimpleNamespace(
        create_change_set=lambda **request: {"Id": "arn:of:ours"},
        describe_change_set=describe,
        execute_change_set=execute,
    )
    monkeypatch.setattr(stacks, "client", lambda service: cloudformation)
    monkeypatch.setattr(stacks, "_settled", lambda name: {"StackStatus": "UPDATE_COMPLETE"})
    assert stacks.deploy_stack("stack", stacks.WORKFLOW_TEMPLATE, {}) == "updated"
    assert called == [{"StackName": "stack", "ChangeSetName": "arn:of:ours"}] * 2


def test_flows_write_the_code_of_jobs_and_of_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """An administrator's deployment looks whether the code is there, and CloudFormation reads it a while later."""
    template = stacks.WORKFLOW_TEMPLATE.read_text()
    written = template.partition("Sid: WriteObjects")[2].partition("Sid: DeleteObjects")[0]
    code = re.findall(r"\$\{Bucket\}/(\S*code\S*)\"", written)
    assert code == ["code/classifier-*"]
    bucket = MemoryBucket(monkeypatch)
    training.upload_source("bucket")
    assert all(fnmatchcase(key, *code) for key in bucket.objects)
    names = [*FUNCTIONS, "definition", "batch-definition"]
    assert not any(fnmatchcase(f"code/{name}-0123456789abcdef.zip", *code) for name in names)


@pytest.mark.parametrize("given", ["s3://another/incoming/", "s3://ours-too/incoming/"])
def test_a_prefix_or_manifest_of_another_bucket_is_refused(given: str) -> None:
    with pytest.raises(ManifestError, match="another bucket"):
        Source.of("ours", given, None, "2026-11-26")
    with pytest.raises(ManifestError, match="another bucket"):
        Source.of("ours", None, f"{given}manifest.jsonl", "2026-11-26")


def test_an_object_that_claims_a_content_is_believed_only_if_s3_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bucket under KMS has ETags that are no MD5; whoever may write below code/ also writes metadata."""
    heads: list[dict[str, Any]] = []
    uploaded: list[str] = []
    s3 = SimpleNamespace(
        list_objects_v2=lambda **request: {"Contents": [{"Key": "code/a.zip", "ETag": '"kms-1"', "Size": 4}]},
        head_object=lambda **request: {"ServerSideEncryption": "aws:kms", **heads[-1]},
        put_object=lambda **request: uploaded.append(request["Key"]),
    )
    monkeypatch.setattr(storage, "client", lambda service: s3)
    digest = hashlib.sha256(b"ours")
    heads.append({"Metadata": {"content-sha256": digest.hexdigest()}})  # poisoned: its content is another
    assert storage.upload_changed("bucket", "code/", {"code/a.zip": b"ours"}) == 1 and uploaded == ["code/a.zip"]
    heads.append({"Metadata": {}, "ChecksumSHA256": base64.b64encode(digest.digest()).decode()})
    assert storage.upload_changed("bucket", "code/", {"code/a.zip": b"ours"}) == 0
    heads.append({"Metadata": {}, "ChecksumSHA256": base64.b64encode(hashlib.sha256(b"evil").digest()).decode()})
    assert storage.upload_changed("bucket", "code/", {"code/a.zip": b"ours"}) == 1


def test_a_template_that_somebody_planted_is_not_carried_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlowRunnerRole may execute change sets; one with a role hidden behind a condition waits for an administrator."""
    called: list[str] = []
    ours = stacks.WORKFLOW_TEMPLATE.read_text()
    planted = ours + "\n  Evil:\n    Type: AWS::IAM::Role\n    Condition: ThresholdIsHigh\n"
    template = [planted]

    def deploy(name: str, template: Any, parameters: dict[str, Any], tagged: bool) -> str:
        assert template == stacks.WORKFLOW_TEMPLATE and not tagged  # never the one that stands there
        called.append(parameters["Threshold"])
        return "updated"

    cloudformation = SimpleNamespace(get_template=lambda **request: {"TemplateBody": template[0]})
    monkeypatch.setattr(stacks, "client", lambda service: cloudformation)
    monkeypatch.setattr(stacks, "_settled", lambda name: {"Parameters": [{"ParameterKey": "Threshold"}]})
    monkeypatch.setattr(stacks, "deploy_stack", deploy)
    with pytest.raises(stacks.InfrastructureError, match="another template than this release"):
        stacks.change_threshold(0.9, print)
    assert called == []
    template[0] = ours
    stacks.change_threshold(0.9, print)
    assert called == ["0.9"]


def version(**metadata: str) -> ModelVersion:
    return ModelVersion(7, "arn", "s3://bucket/models/job/output/model.tar.gz", "image", "Approved", "", metadata)


def test_an_archive_that_was_replaced_is_neither_compared_nor_deployed(monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = MemoryBucket(monkeypatch)
    bucket.put_object("models/job/output/model.tar.gz", b"what was registered")
    registered = version(artifact_sha256=hashlib.sha256(b"what was registered").hexdigest())
    registry.check_artifact(registered)
    bucket.objects["models/job/output/model.tar.gz"] = b"what a hostile challenger wrote over it"
    with pytest.raises(registry.ArtifactChanged, match="is not the archive that was registered as v7"):
        registry.check_artifact(registered)
    installed = Installation("bucket", "arn", "arn", "e", ("a", "b"), 0.9, "arn", "arn")
    with pytest.raises(registry.ArtifactChanged):
        models.create_model(installed, registered, "name")
    with pytest.raises(registry.ArtifactChanged):
        gate.judge(installed, version(), registered, "run", print)
    bucket.objects.clear()
    with pytest.raises(registry.ArtifactChanged, match="there is no archive"):
        registry.check_artifact(registered)


def test_no_training_job_has_network_or_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model's own code runs in them, the gate's among them, whatever SCONES_NETWORK_ISOLATION says."""
    from sagemaker.core.resources import TrainingJob

    requests: list[dict[str, Any]] = []
    monkeypatch.setattr(TrainingJob, "create", lambda **request: requests.append(request))
    monkeypatch.setattr(training, "sdk", dict)
    installed = Installation("bucket", "arn", "arn", "e", ("a", "b"), 0.9, "arn:aws:iam::123456789012:role/r", "arn")
    plan = JobPlan("evaluate.py", "s3://bucket/code/x.tar.gz", {}, {"train": "s3://bucket/train/"}, ())
    training._start("job", installed, plan)
    assert [request["enable_network_isolation"] for request in requests] == [True]


def test_the_key_of_prefects_api_is_in_no_request_for_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker on ECS hands its own environment on unless the job template names the secret."""
    import asyncio

    from prefect_aws.workers.ecs_worker import ECSJobConfiguration

    arn = "arn:aws:secretsmanager:eu-west-1:123456789012:secret:prefect"
    monkeypatch.setenv("SCONES_RUNNER_API_KEY_SECRET", arn)
    monkeypatch.setenv("PREFECT_API_KEY", "pnu_secret")
    monkeypatch.setenv("SCONES_RUNNER_VPC", "vpc-1")
    monkeypatch.setenv("SCONES_RUNNER_SUBNETS", "subnet-1")
    settings.cache_clear()
    try:
        names = ("ClusterArn", "FlowRunTaskDefinitionArn", "SecurityGroupId")
        template = environment.job_template(dict.fromkeys(names, "arn"))
    finally:
        settings.cache_clear()
    variables = {name: each.get("default") for name, each in template["variables"]["properties"].items()}
    assert variables["prefect_api_key_secret_arn"] == arn
    made = asyncio.run(
        ECSJobConfiguration.from_template_and_values(template, {"env": {"PREFECT_API_KEY": "pnu_secret"}})
    )
    made.prepare_for_flow_run(SimpleNamespace(id=uuid4(), name="run", deployment_id=None, tags=[], labels={}))
    assert "pnu_secret" not in str(made.env)


@pytest.mark.parametrize("key", ["models/job/output/model.tar.gz", "test/a.png", "reports/x", "incoming-too/x.png"])
def test_the_page_reads_images_without_labels_only(key: str) -> None:
    review = Review()
    review.keep_waiting(f"review/queue/{QUEUED.inference_id}.json", replace(QUEUED, key=key))
    assert review.queue == {} and "is not below incoming/" in next(iter(review.strange.values()))


def test_a_record_of_many_bytes_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = MemoryBucket(monkeypatch)
    bucket.put_object("review/labels/x/anna-1.json", b"x" * 100_000)
    review = Review()
    review.refresh("bucket")
    assert bucket.read == [] and "100,000 bytes" in review.strange["review/labels/x/anna-1.json"]


def test_a_long_header_of_an_archive_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few kilobytes, compressed, of what tarfile reads whole before it tells of a member."""
    header = tarfile.TarInfo("pax")
    header.type, header.size = tarfile.XHDTYPE, 50_000_000
    packed = gzip.compress(header.tobuf() + b"1" * 50_000_000 + b"\0" * 10_240)
    (tmp_path / "a.tar.gz").write_bytes(packed)
    with pytest.raises(DatasetError, match="a header of 50,000,000 bytes"):
        from_archive(tmp_path / "a.tar.gz", ("bicycle", "motorcycle"))
    bucket = MemoryBucket(monkeypatch)
    bucket.put_object("models/job/output/model.tar.gz", packed)
    job = SimpleNamespace(name="job", artifact_uri="s3://bucket/models/job/output/model.tar.gz")
    with pytest.raises(training.TrainingError, match="a header of 50,000,000 bytes"):
        training.read_artifact(job, "metrics.json")  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [10_000_000_000, training.MOST_FILE_BYTES + 1])
def test_an_archive_that_unpacks_to_too_much_is_not_unpacked(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = MemoryBucket(monkeypatch)
    info = tarfile.TarInfo("metrics.json")
    info.size = size  # as its header says; the content need not be there
    packed = gzip.compress(info.tobuf() + b"\0" * 10_240)
    bucket.put_object("models/job/output/model.tar.gz", packed)
    job = SimpleNamespace(name="job", artifact_uri="s3://bucket/models/job/output/model.tar.gz")
    with pytest.raises(training.TrainingError, match="more than"):
        training.read_artifact(job, "metrics.json")  # type: ignore[arg-type]


@pytest.mark.parametrize("path", ["/dev/zero", "/proc/self/mem", "missing.png", "folder"])
def test_a_list_of_images_that_names_no_file_is_told_and_ends(path: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    listed = tmp_path / "list.csv"
    listed.write_text(f"path,label\n{path},cat\n")
    (entry,) = folder.local_entries(listed)
    pixels, content, problem = folder._pixels(entry, 32)
    assert pixels is None and content == b"" and problem


def test_a_list_cannot_name_more_than_an_image_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "MOST_BYTES", 1000)
    (tmp_path / "large.png").write_bytes(b"x" * 100_000)
    (tmp_path / "list.csv").write_text("path,label\nlarge.png,cat\n")
    (entry,) = folder.local_entries(tmp_path / "list.csv")
    assert len(entry.read()) == 1001
    assert "more than 1,000 bytes" in folder._pixels(entry, 32)[2]


@pytest.mark.parametrize("given", ["$(shell touch made)", "`touch made`", '"; touch made; "', "$$(touch made)"])
def test_what_is_given_to_make_is_not_carried_out(given: str, tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    for command in (["make", "check-dataset", f"DATASET={given}"], ["make", "-n", "test", f"TESTS={given}"]):
        subprocess.run(command, cwd=tmp_path, capture_output=True)
    subprocess.run(["make", "check-dataset"], cwd=tmp_path, capture_output=True, env={**os.environ, "DATASET": given})
    assert not (tmp_path / "made").exists()
