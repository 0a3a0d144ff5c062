"""A training that goes on from its checkpoints, and what it says of its time after the first epoch."""

import argparse
import json
import os
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from local_aws.config import ROOT

sys.path.insert(0, str(ROOT / "classifier"))
import fitting
from checkpoints import NOWHERE, Checkpoint, configured_folder, discard, file_of
from fitting import Work, fit, seconds_of

EPOCHS = 5


class KilledError(Exception):
    """Stands for the end of the process."""


@dataclass(frozen=True)
class KilledAfter(Checkpoint):
    """A checkpoint whose process ends once it has saved the epoch `last`."""

    last: int = 0

    def save(self, state: dict[str, Any]) -> None:
        super().save(state)
        if state["epoch"] == self.last:
            raise KilledError


def fitted(checkpoint: Checkpoint, learning_rate: float = 0.004) -> dict[str, Tensor]:
    """The weights of a network that is fitted in a process of its own, as far as its random numbers go."""
    options = argparse.Namespace(
        num_classes=2,
        image_shape=(3, 32, 32),
        epochs=EPOCHS,
        learning_rate=learning_rate,
        mini_batch_size=8,
        final=True,
    )
    drawn = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (21, 3, 32, 32), dtype=torch.uint8, generator=drawn)
    torch.manual_seed(7)
    return dict(fit(pixels, torch.arange(21) % 2, torch.arange(20), options, "1/1", checkpoint).state_dict())


@pytest.fixture(scope="module")
def uninterrupted() -> dict[str, Tensor]:
    return fitted(NOWHERE)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def interrupted(folder: Path, epoch: int, fingerprint: str = "this") -> Checkpoint:
    """The checkpoint of a training that was killed after an epoch."""
    with pytest.raises(KilledError):
        fitted(KilledAfter(file_of(folder, 1), fingerprint, epoch))
    return Checkpoint(file_of(folder, 1), fingerprint)


@pytest.mark.parametrize("epoch", [2, 4, EPOCHS])
def test_a_resumed_training_gives_the_weights_of_an_uninterrupted_one(
    tmp_path: Path, uninterrupted: dict[str, Tensor], capsys: pytest.CaptureFixture[str], epoch: int
) -> None:
    checkpoint = interrupted(tmp_path, epoch)
    capsys.readouterr()
    assert_same(fitted(checkpoint), uninterrupted)
    said = capsys.readouterr().out
    assert said.startswith(f"member=1/1 goes on after epoch={epoch}/{EPOCHS}\n")
    assert said.count("train_loss") == EPOCHS - epoch


def test_saving_changes_nothing(tmp_path: Path, uninterrupted: dict[str, Tensor]) -> None:
    assert_same(fitted(Checkpoint(file_of(tmp_path, 1), "this")), uninterrupted)
    assert [path.name for path in tmp_path.iterdir()] == ["network-1.pt"]
    discard(tmp_path)
    assert not list(tmp_path.iterdir())


def test_long_epochs_are_saved_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "CHECKPOINT_SECONDS", 0.0)
    assert interrupted(tmp_path, 1).load()["epoch"] == 1


def test_another_training_is_not_resumed(
    tmp_path: Path, uninterrupted: dict[str, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    saved = interrupted(tmp_path, 4, "another")
    assert_same(fitted(Checkpoint(saved.file, "this")), uninterrupted)
    assert "network-1.pt is not used, its network begins anew: it is of another training" in caplog.text


class Payload:
    """Makes a folder when it is unpickled by whoever trusts a pickle."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def test_a_damaged_or_hostile_checkpoint_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "network-1.pt"
    file.write_bytes(b"PK\x03\x04 cut off")
    assert Checkpoint(file, "this").load() == {}
    torch.save({"fingerprint": "this", "model": Payload(tmp_path / "run")}, file)
    assert Checkpoint(file, "this").load() == {}
    assert not (tmp_path / "run").exists()
    assert caplog.text.count("begins anew") == 2


def test_the_folder_is_the_one_that_sagemaker_names(tmp_path: Path) -> None:
    assert configured_folder(None) is None
    assert configured_folder(str(tmp_path)) is None
    (tmp_path / "checkpointconfig.json").write_text(json.dumps({"LocalPath": str(tmp_path / "kept")}))
    assert configured_folder(str(tmp_path)) == tmp_path / "kept"
    assert (tmp_path / "kept").is_dir()


def test_networks_take_the_core_that_is_free_first() -> None:
    assert seconds_of([1000, 800, 800], 1, 100) == 26
    assert seconds_of([1000, 800, 800], 2, 100) == 16
    assert seconds_of([1000, 800, 800, 800, 800, 800], 4, 100) == 16
    assert seconds_of([1000, 800], 8, 100) == 10


def test_the_first_epoch_tells_how_long_all_of_them_take(monkeypatch: pytest.MonkeyPatch) -> None:
    began = datetime(2026, 11, 29, 18, 0, tzinfo=UTC).timestamp()
    monkeypatch.setattr("time.time", lambda: began + 15)
    # It began after 5 seconds and took 10 for 1,000 images; the other core has 5 networks of 800 to share with it.
    work = Work((85 * 1000, *[85 * 800] * 5), 2, began)
    longer = 5 + 85 * (10 + 8 + 8)
    assert work.estimate(1000, 10.0) == f"estimated_seconds={longer} estimated_end=2026-11-29T18:36:55Z"
