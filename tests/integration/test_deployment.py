"""A deployment through the worker, which is killed in the middle."""

import time
from typing import Any

from tasks.model.registry import REJECTED, decide
from tasks.serving.endpoint import find, serving
from testing.flow_runs import ended, processes_of, started
from tests.rollouts import clients_of, leftovers, slow_artifact, version_named


def test_a_deployment_whose_process_is_killed_goes_back(installed: Any) -> None:
    """SIGKILL while the endpoint is being updated; the worker's hook undoes it."""
    before = serving(installed)
    again = slow_artifact(installed, version_named(before.model_version))
    with clients_of(installed) as invoking:
        run = started("deploy-endpoint/local", {"version": again.number}, {})
        while str(getattr(find(installed.endpoint), "endpoint_status", "")) != "Updating":
            time.sleep(0.1)
        killed = processes_of(run)
        for process in killed:
            process.kill()
        assert killed
        ended(run, "Crashed")
        deadline = time.monotonic() + 60
        while serving(installed) != before or leftovers(installed):
            assert time.monotonic() < deadline, leftovers(installed)
            time.sleep(0.5)
    assert invoking.errors == []
    decide(again, REJECTED, "was only for this test")
