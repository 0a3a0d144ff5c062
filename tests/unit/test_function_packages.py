"""The zips of the functions, as the embedded AWS and AWS get them."""

import importlib.metadata
import io
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from settings import ROOT, Settings
from tasks.aws import function_packages
from tasks.aws.function_packages import FUNCTIONS, PackageError, function_package

MINOR = sys.version_info.minor
RUNS_ALONE = """
import sys
sys.path[:0] = [{package!r}, {stubs!r}]
import serialize_image_data
from PIL import Image
assert Image.__file__.startswith({package!r}), Image.__file__
print(serialize_image_data.shrink(open({image!r}, "rb").read(), "here")[1])
"""


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel of the Pillow that is installed here, as if it were Lambda's."""
    folder, version = tmp_path / "wheels", importlib.metadata.version("pillow")
    folder.mkdir()
    with zipfile.ZipFile(folder / f"pillow-{version}-cp3{MINOR}-cp3{MINOR}-manylinux_x86_64.whl", "w") as wheel:
        for file in importlib.metadata.files("pillow") or []:
            if ".." not in file.parts and file.suffix != ".pyc":
                wheel.write(str(file.locate()), str(file))
    monkeypatch.setattr(function_packages, "WHEELS", folder)
    return folder


def unzipped(package: bytes, folder: Path) -> set[str]:
    with zipfile.ZipFile(io.BytesIO(package)) as archive:
        archive.extractall(folder)
        return set(archive.namelist())


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_a_package_for_the_embedded_aws_is_the_modules_alone(name: str, tmp_path: Path) -> None:
    expected = {*(f"{module}.py" for module in FUNCTIONS[name]), "bootstrap"}
    assert unzipped(function_package(name, "provided.al2023"), tmp_path) == expected
    assert function_package(name, "provided.al2023") == function_package(name, "provided.al2023")


def test_a_package_for_aws_shrinks_images_with_its_own_pillow(wheels: Path, tmp_path: Path) -> None:
    from PIL import Image

    runtime, package = f"python3.{MINOR}", tmp_path / "package"
    names = unzipped(function_package("serialize_image_data", runtime), package)
    assert "PIL/Image.py" in names and any(name.startswith("PIL/_imaging.") for name in names)
    assert not any(name.startswith("PIL/") for name in unzipped(function_package("classify_image", runtime), tmp_path))
    Image.new("RGB", (300, 200), "red").save(tmp_path / "a.webp")
    # boto3 is there on AWS; nothing of it is used here.
    stubs = tmp_path / "stubs"
    (stubs / "botocore").mkdir(parents=True)
    (stubs / "boto3.py").write_text("def client(*_, **__): pass\n")
    (stubs / "botocore" / "__init__.py").touch()
    (stubs / "botocore" / "config.py").write_text("def Config(**_): pass\n")
    errors = "ClientError ConnectTimeoutError EndpointConnectionError HTTPClientError IncompleteReadError"
    (stubs / "botocore" / "exceptions.py").write_text(
        "".join(f"class {name}(Exception): pass\n" for name in errors.split())
    )
    code = RUNS_ALONE.format(package=str(package), stubs=str(stubs), image=str(tmp_path / "a.webp"))
    # -I and -S: without the packages that are installed here.
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("JPEG of 300 x 200, made of a WEBP of 300 x 200")


def test_the_whole_package_is_the_same_file_each_time(wheels: Path) -> None:
    first = function_package("classify_batch", f"python3.{MINOR}")
    assert first == function_package("classify_batch", f"python3.{MINOR}")
    # https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html: 250 MB unzipped, of a package in S3.
    with zipfile.ZipFile(io.BytesIO(first)) as archive:
        assert sum(member.file_size for member in archive.infolist()) < 250_000_000


def test_a_wheel_that_cannot_be_fetched_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(function_packages, "WHEELS", tmp_path)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(PackageError, match=r"Pillow for Python 3\.13 of AWS Lambda could not be fetched"):
        function_package("serialize_image_data", "python3.13")


def test_the_wheels_are_of_the_version_that_everything_else_uses() -> None:
    pinned = (ROOT / "lambdas" / "requirements.txt").read_text()
    assert re.findall(r"pillow==([0-9.]+)", pinned) == [importlib.metadata.version("pillow")]
    for lock in ("requirements.lock", "infrastructure/runner.lock"):
        assert f"pillow=={importlib.metadata.version('pillow')}" in (ROOT / lock).read_text()
    # One for each runtime that the setting allows today.
    assert len(re.findall(r"--hash=sha256:[0-9a-f]{64}", pinned)) == 3


@pytest.mark.parametrize("runtime", ["python3.11", "python3.9", "nodejs22.x", "python3.13 "])
def test_a_runtime_without_such_a_wheel_is_refused(runtime: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCONES_LAMBDA_RUNTIME", runtime)
    with pytest.raises(ValueError, match="lambda_runtime"):
        Settings()
