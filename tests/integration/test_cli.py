"""The command line against the installation that the demo left."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from local_aws.config import ROOT
from tasks.aws import storage
from tests.conftest import POISON


def scones(*arguments: str) -> subprocess.CompletedProcess[str]:
    """From a shell that is set up for somebody else's account."""
    command = [sys.executable, "-m", "cli", *arguments]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **POISON}, text=True, capture_output=True, timeout=120)


@pytest.fixture(scope="module")
def photos(installed: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A test image as it is, the same as a photograph of a phone would be, and one of nothing, as WebP."""
    folder: Path = tmp_path_factory.mktemp("photos")
    key = next(iter(storage.list_objects(installed.bucket, "test/bicycle")))
    content = storage.get(installed.bucket, key)
    assert content is not None
    (folder / "small.png").write_bytes(content)
    large = Image.open(io.BytesIO(content)).resize((2000, 2000), Image.Resampling.BICUBIC)
    speckled = np.asarray(large).astype(int) + np.random.default_rng(1).integers(-9, 10, (2000, 2000, 3))
    Image.fromarray(speckled.clip(0, 255).astype(np.uint8)).save(folder / "IMG 0001.jpg", quality=95)
    assert (folder / "IMG 0001.jpg").stat().st_size > 1_000_000
    Image.new("RGB", (64, 64), (90, 90, 90)).save(folder / "grey [bold].webp", "WEBP")
    return [folder / "small.png", folder / "IMG 0001.jpg", folder / "grey [bold].webp"]


def test_photographs_are_classified_and_each_can_be_explained(installed: Any, photos: list[Path]) -> None:
    done = scones("classify", "--json", *map(str, photos))
    assert done.returncode in (0, 1), done.stderr
    found = json.loads(done.stdout)
    assert [each["file"] for each in found] == [str(path) for path in photos]
    assert all(each["status"] in ("accepted", "below_threshold", "not_a_class") for each in found)
    assert done.returncode == int(any(each["status"] != "accepted" for each in found))
    assert [bool(each["sent_as"]) for each in found] == [False, True, True]
    # The photograph is the same image to the model, but for its size.
    small, large = found[:2]
    assert small["predicted_class"] == large["predicted_class"]
    assert abs(small["confidence"] - large["confidence"]) < 0.2
    assert small["key"] in storage.list_etags(installed.bucket, "adhoc/")

    assert "made of a JPEG of 2000 x 2000" in large["sent_as"] and "WEBP of 64 x 64" in found[2]["sent_as"]

    told = scones("why", large["inference_id"])
    assert told.returncode == 0, told.stderr
    assert large["sent_as"] in told.stdout
    assert "classified by itself" in told.stdout and large["execution_arn"] in told.stdout
    for state in ("SerializeImageData", "ClassifyImage"):
        assert re.search(rf"{state} +[0-9.]+ s", told.stdout), told.stdout
    by_arn = json.loads(scones("why", "--json", large["execution_arn"]).stdout)
    assert by_arn[0]["result"]["confidence"] == large["confidence"]


def test_the_table_is_text_whatever_files_are_called(photos: list[Path]) -> None:
    done = scones("classify", str(photos[2]))
    assert "grey [bold].webp" in done.stdout and "inference id" in done.stdout, done.stderr
    assert "WEBP of 64 x 64" in done.stderr


def test_what_cannot_be_read_is_told_and_the_rest_is_classified(photos: list[Path], tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no image")
    done = scones("classify", "--json", str(tmp_path / "text.jpg"), str(tmp_path / "none.jpg"), str(photos[0]))
    assert done.returncode == 2
    statuses = [each["status"] for each in json.loads(done.stdout)]
    assert statuses[1:] == ["unread", "unread"] and statuses[0] != "failed"
    assert "text.jpg is neither a PNG, a JPEG nor a WebP" in done.stderr and "none.jpg: No such file" in done.stderr
    assert "Traceback" not in done.stderr


def test_why_tells_the_runs_of_a_test_image(evaluation: tuple[dict[str, Any], list[dict[str, Any]], Any]) -> None:
    summary, rows, _ = evaluation
    row = next(row for row in rows if row["status"] in ("accepted", "below_threshold"))
    by_key = json.loads(scones("why", "--json", "--last", "30", row["key"]).stdout)
    story = next(each for each in by_key if each["run"] == summary["run"])
    assert story["result"]["inference_id"] == row["inference_id"]
    (capture,) = story["captures"]
    assert abs(capture["confidence"] - row["confidence"]) < 1e-6
    assert story["report"] and story["histories"][0]["steps"]
    # By the last part of its key, and by its id.
    for wanted in (row["key"].split("/")[-1], row["inference_id"]):
        done = scones("why", "--last", "30", wanted)
        assert done.returncode == 0, done.stderr
        assert f"{row['key']}, run {summary['run']} of {summary['date']}" in done.stdout
        assert "captured " in done.stdout and "report.html" in done.stdout


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ("none.png", "no image 'none.png'"),
        ("0123456789ab-0123456789abcdef0123-a1", "there is no run '0123456789ab'"),
        ("adhoc-0123456789ab-0000", "there is no execution"),
        ("../../etc", "no image '../../etc'"),
    ],
)
def test_an_image_that_nobody_knows_is_told_so(installed: Any, wanted: str, says: str) -> None:
    done = scones("why", wanted)
    assert done.returncode == 2 and says in done.stderr and not done.stdout
    assert "Traceback" not in done.stderr


def test_nights_and_reports(evaluation: tuple[dict[str, Any], Any, Any]) -> None:
    summary = evaluation[0]
    done = scones("nights", "--last", "100")
    assert done.returncode == 0 and summary["run"] in done.stdout, done.stderr
    listed = json.loads(scones("nights", "--json", "--last", "100").stdout)
    assert summary["run"] in {each["run"] for each in listed}
    report = scones("report", "--no-open", summary["run"])
    assert report.returncode == 0 and report.stdout.strip().endswith("report.html"), report.stderr
    unknown = scones("report", "--no-open", "ffffffffffff")
    assert unknown.returncode == 2 and "there is no run 'ffffffffffff'" in unknown.stderr


def test_doctor_looks_as_preflight_does(installed: Any) -> None:
    found = json.loads((done := scones("doctor", "--json")).stdout)
    assert {"credentials", "permissions"} <= {each["check"] for each in found}, done.stderr
    assert done.returncode == int(any(each["level"] == "problem" for each in found))
    table = scones("doctor")
    assert "what to do" in table.stdout


def test_help_and_wrong_usage(installed: Any) -> None:
    shown = subprocess.run([ROOT / "scones", "--help"], text=True, capture_output=True)
    assert shown.returncode == 0
    assert all(name in shown.stdout for name in ("classify", "why", "nights", "report", "doctor", "completion"))
    for wrong in (("classify",), ("why",), ("nights", "--last", "0"), ("dance",)):
        assert scones(*wrong).returncode == 2


def test_without_services_it_says_what_to_do(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cli", "nights"],
        cwd=ROOT,
        env={**os.environ, "SCONES_STATE": str(tmp_path)},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 2 and "`make up` starts them" in done.stderr
