"""The defences that docs/threat-model.md claims."""

import io
import re
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from settings import ROOT
from tasks.bulk.manifest import ManifestError, Source

sys.path.insert(0, str(ROOT / "classifier"))
from evaluate import ModelFailed, answers

PAGE = ROOT / "docs" / "threat-model.md"


def test_every_claim_names_a_test_that_there_is() -> None:
    rows = [
        line for line in PAGE.read_text().splitlines() if line.startswith("| ") and not line.startswith("| who writes")
    ]
    assert len(rows) >= 12
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
        answers(tmp_path, np.zeros((1, 3, 32, 32), np.uint8), 2)
    assert not list(tmp_path.parent.rglob("climbed"))


@pytest.mark.parametrize("given", ["s3://another/incoming/", "s3://ours-too/incoming/"])
def test_a_prefix_or_manifest_of_another_bucket_is_refused(given: str) -> None:
    with pytest.raises(ManifestError, match="another bucket"):
        Source.of("ours", given, None, "2026-11-26")
    with pytest.raises(ManifestError, match="another bucket"):
        Source.of("ours", None, f"{given}manifest.jsonl", "2026-11-26")
