import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

import status
from local_aws.config import ROOT, ConfigError, LocalConfig
from local_aws.environment import machine_defaults
from settings import LOCAL_NAMES, PREFIX, Settings, SettingsError, settings


@pytest.mark.parametrize("value", ["-0.1", "1.5", "nan", "high"])
def test_threshold_outside_0_to_1_names_the_setting(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("SCONES_THRESHOLD", value)
    with pytest.raises(ValidationError, match="threshold"):
        Settings()


def test_classes_come_from_a_comma_separated_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCONES_CLASSES", "apple, pear ,bed")
    assert Settings().classes == ("apple", "pear", "bed")


@pytest.mark.parametrize("value", ["apple", "apple,apple", ""])
def test_one_class_or_a_repeated_one_is_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("SCONES_CLASSES", value)
    with pytest.raises(ValidationError, match="classes"):
        Settings()


@pytest.mark.parametrize("value", ["Scones", "-scones", "s", "a" * 40, "scones_unlimited"])
def test_stack_names_that_aws_would_refuse_are_refused(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("SCONES_STACK", value)
    with pytest.raises(ValidationError, match="stack"):
        Settings()


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A settings file for the present process, and nothing else that is set."""
    for name in (*Settings.model_fields, "defaults"):
        monkeypatch.delenv(PREFIX + name.upper(), raising=False)
    path = tmp_path / "scones.env"
    path.touch()
    monkeypatch.setenv("SCONES_SETTINGS", str(path))
    return path


def problems() -> list[str]:
    settings.cache_clear()
    try:
        with pytest.raises(SettingsError) as raised:
            settings()
    finally:
        settings.cache_clear()
    return str(raised.value).splitlines()


def chosen() -> Settings:
    settings.cache_clear()
    try:
        return settings()
    finally:
        settings.cache_clear()


def test_the_file_is_read_and_the_environment_wins(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("# a comment\nSCONES_THRESHOLD=0.8\nSCONES_EPOCHS=3\nSCONES_PREFECT_PORT=4999\n")
    monkeypatch.delenv("SCONES_PREFECT_PORT")
    monkeypatch.setenv("SCONES_EPOCHS", "5")
    assert (chosen().threshold, chosen().epochs) == (0.8, 5)
    assert LocalConfig().prefect_port == 4999
    rows = [row for row in status.differing() if row[0] in ("SCONES_THRESHOLD", "SCONES_EPOCHS")]
    assert rows == [("SCONES_EPOCHS", "5", "environment"), ("SCONES_THRESHOLD", "0.8", "scones.env")]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("SCONES_THRESHOLD=2", r"SCONES_THRESHOLD=2: .*less than or equal to 1 or .*'recommended'"),
        (
            "SCONES_THRESHHOLD=0.9",
            r"scones.env, line 1: SCONES_THRESHHOLD is not a setting; did you mean SCONES_THRESHOLD\?",
        ),
        ("SCONES_CLASSES=bicycle", r"SCONES_CLASSES=bicycle: .*at least 2"),
        ("SCONES_EPOCHS=", r"SCONES_EPOCHS=.*: .*integer"),
        ("SCONES_EPOCHS", r"line 1: SCONES_EPOCHS has no value; write SCONES_EPOCHS=VALUE"),
        ("AWS_PROFILE=x", r"line 1: AWS_PROFILE is not a setting"),
        ("epochs=7", r"line 1: epochs is not a setting"),
        ("SCONES_ROOT=/", r"line 1: SCONES_ROOT is not a setting"),
        ("SCONES_VPC_SUBNETS=subnet-1", r"set together, or not at all"),
        ("SCONES_REPEATS=2", r"SCONES_CLASSIFIER=single takes SCONES_REPEATS=1"),
        ("SCONES_OUTLIER_SHARE=0.5", r"SCONES_OUTLIER_SHARE=0.5: .*less than 0.5"),
        ("# comment\n\neight in flight", r"scones.env, line 3 is not NAME=VALUE"),
        ("SCONES_SEED=1\nSCONES_EPOCHS 2", r"scones.env, line 2 is not NAME=VALUE"),
        ("SCONES_SEED=1\nSCONES_SEED=2", r"scones.env, line 2: SCONES_SEED is set in line 1 already"),
        ("SCONES_NIGHTLY_CRON=03:30", r"SCONES_NIGHTLY_CRON=03:30: .*pattern"),
        ("SCONES_SCHEDULE_TIMEZONE=Berlin", r"SCONES_SCHEDULE_TIMEZONE=Berlin: there is no time zone 'Berlin'"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(file: Path, text: str, line: str) -> None:
    file.write_text(text + "\n")
    said = problems()
    assert len(said) == 1
    assert re.search(line, said[0]), said


def test_every_wrong_setting_has_its_line_wherever_it_stands(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("SCONES_EPOCHS=0\nSCONES_SEEED=1\n")
    monkeypatch.setenv("SCONES_FOLDS", "many")
    monkeypatch.setenv("SCONES_FOLD", "3")
    wrong = ("SCONES_EPOCHS=0", "SCONES_FOLD in", "SCONES_FOLDS=many", "line 2: SCONES_SEEED")
    assert len(problems()) == 4
    assert all(any(each in line for line in problems()) for each in wrong)


def test_a_file_that_is_none_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_bytes(b"\xff\xfe\x00SCONES")
    assert "no text file" in problems()[0]
    file.unlink()
    assert "which is no file" in problems()[0]
    monkeypatch.delenv("SCONES_SETTINGS")
    monkeypatch.setattr("settings.ROOT", file.parent)
    assert chosen().epochs == 84  # nobody has to have one


def test_local_settings_are_refused_in_one_line_too(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCONES_AWS_PORT", "many")
    with pytest.raises(ConfigError, match=r"^SCONES_AWS_PORT=many: .*integer[^\n]*$"):
        LocalConfig()
    done = subprocess.run([sys.executable, "deploy.py"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert done.stderr.startswith("error: SCONES_AWS_PORT=many: ")


def test_a_line_that_is_none_is_refused_by_file_and_line_before_anything_starts(file: Path) -> None:
    file.write_text("SCONES_SEED=1\nthirty in flight\n")
    done = subprocess.run([sys.executable, "deploy.py"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, f"error: {file}, line 2 is not NAME=VALUE\n")


def test_defaults_of_the_machine_come_last(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So a change of the settings file, or taking a line out of it, applies to the next run."""
    defaults = tmp_path / "defaults.env"
    defaults.write_text("".join(f"{name}={value}\n" for name, value in machine_defaults().items()))
    monkeypatch.setenv("SCONES_DEFAULTS", str(defaults))
    file.write_text("SCONES_EXECUTIONS_IN_FLIGHT=3\n")
    assert chosen().executions_in_flight == 3
    monkeypatch.setenv("SCONES_EXECUTIONS_IN_FLIGHT", "2")
    assert chosen().executions_in_flight == 2
    monkeypatch.delenv("SCONES_EXECUTIONS_IN_FLIGHT")
    file.write_text("")
    assert chosen().executions_in_flight == 4 * (os.cpu_count() or 1)
    assert chosen().starts_per_second == 1000


def test_both_islands_know_the_same_names() -> None:
    assert {name.upper() for name in LocalConfig.model_fields} == LOCAL_NAMES


def test_the_example_explains_every_setting_as_it_is(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    assert (ROOT / "scones.env.example").read_text() == status.example()
    file.write_text("".join(f"{line[1:]}\n" for line in status.example().splitlines() if line.startswith("#SCONES_")))
    monkeypatch.setattr("settings.wrong_names", lambda: [])
    values = {name for name in Settings.model_fields if f"{PREFIX}{name.upper()}=\n" not in file.read_text()}
    file.write_text("".join(line for line in file.read_text().splitlines(True) if not line.endswith("=\n")))
    defaults = Settings(_env_file=None)  # type: ignore[call-arg]
    assert values and chosen().model_dump(exclude={"cache", "reports"}) == defaults.model_dump(
        exclude={"cache", "reports"}
    )
