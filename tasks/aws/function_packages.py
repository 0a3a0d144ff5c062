"""The zip of each function: its modules, and Pillow for the ones that shrink images.

AWS's Python runtimes have boto3 and no Pillow. Its wheel for the runtime comes from the package index, checked against
lambdas/requirements.txt, and stays in lambdas/wheels/. `python -m tasks.aws.function_packages` fetches it beforehand.
The embedded AWS runs functions in this project's own environment, which has both.
"""

import io
import re
import subprocess
import sys
import zipfile
from pathlib import Path

from settings import ROOT, settings
from tasks.errors import SconesError

# The modules of each function's package, its handler's first.
FUNCTIONS = {
    "serialize_image_data": ("serialize_image_data",),
    "classify_image": ("classify_image",),
    "filter_low_confidence": ("filter_low_confidence",),
    "classify_batch": ("classify_batch", "serialize_image_data", "classify_image", "filter_low_confidence"),
}
DECODES = "serialize_image_data"
LAMBDAS = ROOT / "lambdas"
WHEELS = LAMBDAS / "wheels"
# https://docs.aws.amazon.com/lambda/latest/dg/lambda-runtimes.html: from Python 3.12 on they run on Amazon Linux 2023,
# whose glibc is 2.34. Functions of the templates run on x86.
PLATFORM = "manylinux_2_28_x86_64"
MANAGED_RUNTIME = re.compile(r"python3\.(?P<minor>[0-9]+)")
FETCH_SECONDS = 300
# Zips carry no times, so that the same content is the same file.
EPOCH = (1980, 1, 1, 0, 0, 0)


class PackageError(SconesError):
    """The wheel that a function needs could not be had."""


def function_package(name: str, runtime: str) -> bytes:
    """A function's zip for a runtime, the same bytes for the same source. Raises PackageError."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as package:
        for source, mode in (*((f"{module}.py", 0o644) for module in FUNCTIONS[name]), ("bootstrap", 0o755)):
            _add(package, source, (LAMBDAS / source).read_bytes(), mode)
        managed = MANAGED_RUNTIME.fullmatch(runtime)
        if managed and DECODES in FUNCTIONS[name]:
            with zipfile.ZipFile(wheel(int(managed["minor"]))) as pillow:
                for member in sorted(pillow.namelist()):
                    _add(package, member, pillow.read(member), 0o644)
    return buffer.getvalue()


def wheel(minor: int) -> Path:
    """Pillow for Lambda's runtime of Python 3.`minor`, fetched if it is not there yet. Raises PackageError."""
    requirements = LAMBDAS / "requirements.txt"
    pinned = re.search(r"^pillow==([0-9.]+)", requirements.read_text(), re.MULTILINE)
    assert pinned is not None
    pattern = f"pillow-{pinned[1]}-cp3{minor}-*x86_64.whl"
    if not (found := sorted(WHEELS.glob(pattern))):
        _fetch(requirements, minor)
        found = sorted(WHEELS.glob(pattern))
    if not found:
        raise PackageError(f"the package index has no Pillow {pinned[1]} for Python 3.{minor}")
    return found[0]


def _fetch(requirements: Path, minor: int) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--platform", PLATFORM, "--python-version", f"3.{minor}"]
    command += ["--require-hashes", "--requirement", str(requirements), "--dest", str(WHEELS)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=FETCH_SECONDS)
        problem = (done.stderr.strip().splitlines() or [""])[-1] if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        problem = str(error)
    if problem:
        raise PackageError(
            f"Pillow for Python 3.{minor} of AWS Lambda could not be fetched: {problem}",
            "run `python -m tasks.aws.function_packages` where the package index can be reached; the image of "
            "`make image` has it for the default of SCONES_LAMBDA_RUNTIME",
        )


def _add(package: zipfile.ZipFile, name: str, content: bytes, mode: int) -> None:
    info = zipfile.ZipInfo(name, date_time=EPOCH)
    info.external_attr = mode << 16
    info.compress_type = zipfile.ZIP_DEFLATED
    package.writestr(info, content)


if __name__ == "__main__":
    for each in FUNCTIONS:
        sys.stdout.write(f"{each}: {len(function_package(each, settings().lambda_runtime)):,} bytes\n")
