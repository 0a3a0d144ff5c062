"""What is fuzzed: for each parser, inputs to begin with, a call, and the errors that it may end in."""

import asyncio
import gzip
import io
import json
import pickle
import sys
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from local_sagemaker.protocol import ApiError, operation, parse, validate
from PIL import Image

from local_aws.config import ConfigError, LocalConfig
from local_aws.credentials import Credentials
from local_aws.ministack.doors import with_doors
from settings import ROOT, SettingsError, settings
from tasks.aws import storage
from tasks.bulk import manifest
from tasks.capture import decoding
from tasks.data import folder
from tasks.data.dataset import DatasetError, from_archive, png
from tasks.data.generated import draw
from tasks.data.pictures import as_served, thumbnail
from tasks.evaluation.summary import EvaluationSummary
from tasks.model import training
from tasks.records import RecordError
from tasks.review import label_studio
from tasks.review.labels import Label, Review
from tasks.review.queue import Waiting

sys.path.insert(0, str(ROOT / "classifier"))
import serving

CLASSES = ("bicycle", "motorcycle")
QUEUED = Waiting(
    inference_id="5b52074c57ed-00000000000000000001-a1",
    key="incoming/1.png",
    sha256="ab" * 32,
    run="5b52074c57ed",
    date="2026-11-25",
    model_version="v1",
    threshold=0.93,
    predicted_class="bicycle",
    confidence=0.6,
    probabilities=(0.6, 0.4),
    outlier_score=None,
    reason="below_threshold",
    sampling_probability=1.0,
    limited=False,
    queued="2026-11-25T12:00:00.000+00:00",
)
ROOT_KEY = Credentials("AKIAOWN", "secret", "password", "token")


@dataclass(frozen=True)
class Target:
    """seeds: valid inputs, which are changed. call: takes one input. errors: the only ones that it may raise."""

    seeds: tuple[bytes, ...]
    call: Callable[[bytes], object]
    errors: tuple[type[Exception], ...] = ()


def _pickles() -> tuple[bytes, ...]:
    pixels = np.stack([draw(CLASSES[row % 2], row, 32) for row in range(4)]).transpose(0, 3, 1, 2).reshape(4, 3072)
    content = {
        b"data": pixels,
        b"fine_labels": [0, 1, 0, 1],
        b"filenames": [f"{row}.png".encode() for row in range(4)],
    }
    return tuple(pickle.dumps(content, protocol) for protocol in range(6))


def _archive(train: bytes) -> bytes:
    meta = pickle.dumps({b"fine_label_names": [name.encode() for name in CLASSES]}, 2)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name, content in (("meta", meta), ("train", train), ("test", train)):
            info = tarfile.TarInfo(f"cifar-100-python/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def _read_archive(content: bytes) -> object:
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "a.tar.gz"
        path.write_bytes(content)
        return from_archive(path, CLASSES)


def _pictures() -> tuple[bytes, ...]:
    image, made = Image.fromarray(draw("bicycle", 1, 64)), []
    for kind, mode in (("PNG", "RGB"), ("PNG", "P"), ("PNG", "LA"), ("JPEG", "RGB"), ("JPEG", "CMYK"), ("WEBP", "RGB")):
        packed = io.BytesIO()
        image.convert(mode).save(packed, kind)
        made.append(packed.getvalue())
    return tuple(made)


def _manifest(suffix: str) -> Callable[[bytes], object]:
    def call(content: bytes) -> object:
        with tempfile.TemporaryDirectory() as name:
            file = Path(name) / f"m.{suffix}"
            file.write_bytes(content)
            return list(manifest._read(file, file.name, "bucket", CLASSES))

    return call


def _list(name: str) -> Callable[[bytes], object]:
    def call(content: bytes) -> object:
        with tempfile.TemporaryDirectory() as where:
            file = Path(where) / name
            file.write_bytes(content)
            return [folder._pixels(entry, 32) for entry in folder.local_entries(file)[:3]]

    return call


def _label_studio(content: bytes) -> object:
    review = Review()
    review.keep_waiting(f"review/queue/{QUEUED.inference_id}.json", QUEUED)
    try:
        decoded = json.loads(content)
    except (ValueError, RecursionError):
        return None  # which `make review` says
    return label_studio.import_answers(decoded, review, CLASSES)


def _settings(content: bytes) -> object:
    import os

    with tempfile.TemporaryDirectory() as name:
        file, before = Path(name) / "scones.env", os.environ.get("SCONES_SETTINGS")
        file.write_bytes(content)
        os.environ["SCONES_SETTINGS"] = str(file)
        settings.cache_clear()
        try:
            settings()
            return LocalConfig()
        finally:
            settings.cache_clear()
            if before is None:
                del os.environ["SCONES_SETTINGS"]
            else:
                os.environ["SCONES_SETTINGS"] = before


def _artifact(content: bytes) -> object:
    kept = storage.get_with_etag
    storage.get_with_etag = lambda bucket, key, most_bytes=None: (content[:most_bytes], "etag")
    try:
        job: Any = SimpleNamespace(name="job", artifact_uri="s3://bucket/model.tar.gz")
        return training.read_artifact(job, "metrics.json")
    finally:
        storage.get_with_etag = kept


def _model() -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for name in ("model.pt", "metrics.json"):
            info = tarfile.TarInfo(name)
            info.size = 100
            tar.addfile(info, io.BytesIO(b"{}" + b" " * 98))
    return packed.getvalue()


def _api(content: bytes) -> None:
    shape = operation("CreateTrainingJob").input_shape
    assert shape is not None
    validate(shape, parse(content))


def _door(content: bytes) -> object:
    """A request line by line: path with query, then headers, then a blank line and the body."""
    head, _, body = content.partition(b"\n\n")
    first, *lines = head.decode("latin-1").split("\n")
    path, _, query = first.partition("?")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    scope = {
        "type": "http",
        "path": path,
        "raw_path": path.encode("latin-1"),
        "query_string": query.encode("latin-1"),
        "method": "POST",
        "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()],
    }
    answered: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        answered.append(message)

    async def application(*scope: Any) -> None:
        answered.append("let in")

    asyncio.run(with_doors(application, ROOT_KEY, lambda key: False)(scope, receive, send))
    return answered[0]


REQUEST = b"""/bucket/key?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIAOWN%2F20261129%2Fx%2Fs3%2Faws4_request
host: 127.0.0.1:4567
x-amz-date: 20261129T000000Z

body"""
HEADER = b"""/
host: 127.0.0.1:4567
authorization: AWS4-HMAC-SHA256 Credential=AKIAOWN/20261129/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=00
x-amz-date: 20261129T000000Z

"""
CAPTURE = (
    b'{"captureData":{"endpointInput":{"mode":"INPUT","data":"aGFsbG8=","encoding":"BASE64"},"endpointOutput":'
    b'{"observedContentType":"application/json","mode":"OUTPUT","data":"[0.1, 0.9]","encoding":"JSON"}},'
    b'"eventMetadata":{"eventId":"e","inferenceId":"i","inferenceTime":"2026-11-22T17:25:49Z"},"eventVersion":"0"}\n'
)
TASK = {
    "data": {"inference_id": QUEUED.inference_id, "sha256": QUEUED.sha256},
    "annotations": [
        {
            "completed_by": {"id": 3, "email": "anna@example.org"},
            "created_at": "2026-11-26T12:00:00Z",
            "lead_time": 3.5,
            "result": [{"type": "choices", "value": {"choices": ["bicycle"]}}],
        }
    ],
}
JOB = {
    "TrainingJobName": "job",
    "RoleArn": "arn:aws:iam::000000000000:role/x",
    "AlgorithmSpecification": {"TrainingInputMode": "File", "TrainingImage": "image"},
    "OutputDataConfig": {"S3OutputPath": "s3://bucket/"},
    "ResourceConfig": {"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 1},
    "StoppingCondition": {"MaxRuntimeInSeconds": 60},
}


def _record(kind: Any) -> Callable[[bytes], object]:
    return lambda content: kind.parse(content, "a record")


TARGETS: dict[str, Target] = {
    "CIFAR archive": Target(tuple(_archive(each) for each in _pickles()), _read_archive, (DatasetError,)),
    "pickle in a CIFAR archive": Target(_pickles(), lambda each: _read_archive(_archive(each)), (DatasetError,)),
    "picture for training": Target(_pictures(), lambda content: as_served(content, 32)),
    "picture for people": Target(_pictures(), thumbnail),
    "picture at the endpoint": Target(_pictures(), serving.read_picture, (serving.UnreadableImage,)),
    "list of images, CSV": Target(
        (b"path,label,split\na.png,cat,train\nb.png,dog,test\n",), _list("l.csv"), (DatasetError,)
    ),
    "list of images, JSON Lines": Target(
        (b'{"path": "a.png", "label": "cat"}\n{"path": "b.png", "label": "dog"}\n',), _list("l.jsonl"), (DatasetError,)
    ),
    "manifest, CSV": Target((b"key,label\nincoming/a.png,bicycle\n",), _manifest("csv"), (manifest.ManifestError,)),
    "manifest, JSON Lines": Target(
        (b'{"key": "incoming/a.png", "label": "bicycle"}\n',), _manifest("jsonl"), (manifest.ManifestError,)
    ),
    "capture records": Target((CAPTURE * 2, gzip.compress(CAPTURE)), lambda content: decoding.decode("key", content)),
    "Label Studio's export": Target((json.dumps([TASK]).encode(),), _label_studio, (label_studio.LabelStudioError,)),
    "settings": Target(
        (b"SCONES_EPOCHS=3\nSCONES_CLASSES=a,b\n# comment\n", (ROOT / "scones.env.example").read_bytes()),
        _settings,
        (SettingsError, ConfigError),
    ),
    "model archive": Target((_model(), gzip.compress(_model())), _artifact, (training.TrainingError,)),
    "summary of an evaluation": Target(
        (b'{"schema_version": 1, "run": "a", "date": "2026-11-29", "outcome": "passed"}',),
        _record(EvaluationSummary),
        (RecordError,),
    ),
    "answer of a person": Target((json.dumps(QUEUED.to_json()).encode(),), _record(Label), (RecordError,)),
    "request to SageMaker": Target((json.dumps(JOB).encode(),), _api, (ApiError,)),
    "request to ministack": Target((REQUEST, HEADER), _door),
    "drawn picture": Target((png(draw("bicycle", 1, 32)),), lambda content: as_served(content, 32)),
}
