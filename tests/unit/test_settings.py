import pytest
from pydantic import ValidationError

from settings import Settings


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
