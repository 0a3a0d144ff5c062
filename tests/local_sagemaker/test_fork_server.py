"""Model servers are forks; what a fork could get wrong."""

import os

import psutil
from local_sagemaker.fork_server import can_fork

from testing.waiting import eventually
from tests.local_sagemaker.conftest import ACTOR, Server, answer_or_none

TELLING = (
    ACTOR
    + """
import numpy as np
def predict_fn(data, model, context):
    return {"process": os.getpid(), "parent": os.getppid(), "session": os.getsid(0), "group": os.getpgid(0),
            "files": os.listdir("/proc/self/fd"), "folder": os.getcwd(),
            "environment": dict(os.environ), "drawn": float(np.random.rand())}
"""
)


def test_forks_share_nothing_that_they_should_not(server: Server) -> None:
    one = server.endpoint(server.config({"ModelName": server.model(TELLING, SECRET="first")}))
    two = server.endpoint(server.config({"ModelName": server.model(TELLING)}))
    first, second = server.invoke(one), server.invoke(two)
    assert first["parent"] == second["parent"] != server.aws.process_id("sagemaker")
    for told in (first, second):
        assert told["process"] == told["session"] == told["group"]
        assert len(told["files"]) < 15
    assert first["environment"]["SECRET"] == "first" and "SECRET" not in second["environment"]
    assert first["environment"]["AWS_ACCESS_KEY_ID"] != "test"  # the role's
    assert first["folder"] != second["folder"]
    assert first["drawn"] != second["drawn"]
    server.delete(one)
    server.delete(two)
    assert not psutil.pid_exists(first["process"])


def test_what_only_a_new_process_reads_gets_a_new_process(server: Server) -> None:
    assert can_fork({"ANSWER": "x"}) and not can_fork({"OMP_NUM_THREADS": "1"})
    name = server.endpoint(server.config({"ModelName": server.model(TELLING, PYTHONHASHSEED="7")}))
    told = server.invoke(name)
    assert told["parent"] == server.aws.process_id("sagemaker")
    assert told["environment"]["PYTHONHASHSEED"] == "7"
    server.delete(name)


def test_a_fork_server_that_dies_is_started_again_and_its_forks_are_replaced(server: Server) -> None:
    name = server.endpoint()
    first = server.invoke(name)["process"]
    parent = psutil.Process(first).ppid()
    os.kill(parent, 9)
    second = server.endpoint()
    assert psutil.Process(server.invoke(second)["process"]).ppid() != parent
    # Nobody can tell any more how the first one's process ended, so it is replaced.
    eventually(lambda: (answer := answer_or_none(server, name)) and answer["process"] != first)
    assert not psutil.pid_exists(first) or psutil.Process(first).status() == psutil.STATUS_ZOMBIE
    server.delete(name)
    server.delete(second)
