"""The demo's own conduct, without a stack."""

import sys

import pytest

import demo
from local_aws import services


@pytest.mark.parametrize(("mode", "stopped"), [(None, 1), ("local", 0)])
def test_ctrl_c_stops_the_services_only_if_they_were_not_up_before(
    mode: str | None, stopped: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[object] = []

    def interrupted(config: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["demo.py", "--dataset", "generated"])
    monkeypatch.setattr(services, "mode", lambda config: mode)
    monkeypatch.setattr(services, "down", calls.append)
    monkeypatch.setattr(demo, "bring_up", interrupted)
    assert demo.main() == 130
    assert len(calls) == stopped
    assert ("stay so" in capsys.readouterr().err) is not bool(stopped)
