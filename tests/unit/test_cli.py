"""The command line without an installation."""

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from PIL import Image
from typer.testing import CliRunner

from cli import classify, output
from cli.app import app
from settings import ROOT
from tasks.evaluation.results import by_class
from tasks.installation import Installation, ServingEndpoint
from tests.unit.results import RESULT
from tests.unit.test_folder import fill

INSTALLED = Installation("bucket", "arn", "batch-arn", "e", ("bicycle", "motorcycle"), 0.93, "arn", "arn")
SENTENCE = "image of 900 x 900 pixels is too large: at most 640 x 640 are read, as the setting of the function says" * 3
CAUSE = json.dumps({"errorMessage": SENTENCE, "errorType": "ImageTooLarge", "stackTrace": ["line"] * 20})
RESULTS = [
    replace(RESULT, probabilities=(0.99, 0.01)),
    replace(RESULT, status="failed", predicted_class=None, confidence=None, error="ImageTooLarge", cause=CAUSE),
]


@pytest.fixture
def classified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Standard output of `scones classify` with two photographs, of which the workflow says RESULTS."""

    def run(*options: str) -> str:
        photos = [tmp_path / name for name in ("a.png", "a longer name.png")]
        for photo in photos:
            Image.new("RGB", (8, 8)).save(photo)
        monkeypatch.setattr("cli.app._installation", lambda aws: pytest.MonkeyPatch.context())
        monkeypatch.setattr(classify, "installation", lambda: INSTALLED)
        monkeypatch.setattr(classify, "serving", lambda installed: ServingEndpoint("e", "v1"))
        monkeypatch.setattr(classify, "classify", lambda *arguments: RESULTS)
        done = CliRunner().invoke(app, ["classify", *options, *map(str, photos)])
        assert done.exit_code == 2, done.output
        return done.stdout

    return run


def test_columns_are_as_wide_as_what_is_in_them_and_a_cause_is_told_whole(classified: Callable[..., str]) -> None:
    header, accepted, failed, cause = classified().splitlines()
    assert not [line for line in (header, accepted, failed, cause) if line != line.rstrip()]
    assert re.split("  +", header) == ["file", "class", "confidence", "threshold", "decision", "inference id"]
    assert accepted.endswith(f"accepted  {RESULT.inference_id}") and failed.endswith(f"failed    {RESULT.inference_id}")
    assert cause.endswith(f"a longer name.png failed: ImageTooLarge: {SENTENCE}")


def test_json_has_the_whole_cause_and_probabilities_by_class(classified: Callable[..., str]) -> None:
    accepted, failed = json.loads(classified("--json"))
    assert accepted["probabilities"] == {"bicycle": 0.99, "motorcycle": 0.01}
    assert (failed["probabilities"], failed["cause"]) == (None, CAUSE)


def test_probabilities_of_other_classes_get_no_names() -> None:
    assert by_class((0.5, 0.3, 0.2), ("bicycle", "motorcycle")) is None


def test_the_version_is_the_projects() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert CliRunner().invoke(app, ["--version"]).stdout == f"scones-unlimited {project['version']}\n"


def scones(*arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "cli", *arguments]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, timeout=120)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_a_stream_can_not_show_is_escaped(tmp_path: Path, encoding: str) -> None:
    pictures = fill(tmp_path / "pictures", "cat", "dog", each=20)
    (pictures / "cat" / "vélo 오토바이.jpg").write_text("no image")
    done = scones("check", str(pictures), PYTHONIOENCODING=encoding)
    assert done.returncode == 1 and b"Traceback" not in done.stderr, done.stderr
    shown = done.stdout.decode(encoding)
    assert ("오토바이" if encoding == "utf-8" else r"\uc624\ud1a0\ubc14\uc774") in shown
    assert (r"v\xe9lo" if encoding == "ascii" else "vélo") in shown
    told: dict[str, Any] = json.loads(scones("check", "--json", str(pictures), PYTHONIOENCODING=encoding).stdout)
    assert [each["path"] for each in told["left_out"]] == ["cat/vélo 오토바이.jpg"]


def test_cells_of_a_table_keep_their_own_blanks(capsys: pytest.CaptureFixture[str]) -> None:
    output.show_table(("a", "b"), [("x  y", ""), ("", "z")])
    assert capsys.readouterr().out == "a     b\nx  y\n      z\n"
