"""Ray Serve from the package index serves the archive that train.py writes, as AWS's image `ray` does.

`make test-ray` installs it in an environment of its own and runs this; without that environment it is skipped.
"""

import json
import os
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from local_aws.config import free_port
from tests.unit.test_classifier import ask, encoded, picture, run_training

RAY = os.environ.get("RAY_PYTHON", "")
pytestmark = [
    pytest.mark.skipif(not RAY, reason="`make test-ray` runs it, with Ray Serve in an environment of its own"),
    pytest.mark.timeout(300),
]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the archive of a trained model is unpacked into: /opt/ml/model on AWS."""
    folder = tmp_path_factory.mktemp("training")
    done = run_training(folder)
    assert done.returncode == 0, done.stderr
    return folder / "model"


@pytest.fixture(scope="module")
def url(archive: Path) -> Iterator[str]:
    """Where the application answers, started by the commands of the image's entry point.

    https://github.com/aws/deep-learning-containers/blob/master/scripts/ray/sagemaker_entrypoint.sh
    """
    cluster, http = free_port(), free_port()
    with tempfile.TemporaryDirectory(prefix="ray-") as temporary:  # Ray's sockets need a short path
        environment = {
            **{name: value for name, value in os.environ.items() if not name.upper().endswith("_PROXY")},
            "PATH": f"{Path(RAY).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(archive),
            "RAY_ADDRESS": f"127.0.0.1:{cluster}",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        started: list[subprocess.Popen[bytes]] = []

        def start(*command: str) -> subprocess.Popen[bytes]:
            with (Path(temporary) / "log").open("ab") as log:
                process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
            started.append(process)
            return process

        try:
            # As there, except that nothing listens on other addresses than this machine's own.
            head = ("--head", f"--port={cluster}", "--node-ip-address=127.0.0.1", f"--temp-dir={temporary}")
            start("ray", "start", *head, "--include-dashboard=False", "--num-cpus=2", "--num-gpus=0", "--block")
            wait_until(lambda: answers(f"127.0.0.1:{cluster}"), started, temporary)
            serve = start("serve", "start", "--http-host=127.0.0.1", f"--http-port={http}")
            assert serve.wait(60) == 0, (Path(temporary) / "log").read_text()
            started.remove(serve)
            start("serve", "run", str(archive / "config.yaml"))
            wait_until(lambda: healthy(f"http://127.0.0.1:{http}"), started, temporary)
            yield f"http://127.0.0.1:{http}/"
        finally:
            for process in [each for root in started for each in family(root.pid)]:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            for root in started:
                root.wait(10)


def family(pid: int) -> list[psutil.Process]:
    """A process and all that came of it."""
    try:
        root = psutil.Process(pid)
        return [*root.children(recursive=True), root]
    except psutil.NoSuchProcess:
        return []


def wait_until(ready: Callable[[], bool], started: list[subprocess.Popen[bytes]], folder: str) -> None:
    deadline = time.monotonic() + 120
    while not ready():
        log = (Path(folder) / "log").read_text()
        assert all(process.poll() is None for process in started), log
        assert time.monotonic() < deadline, log
        time.sleep(0.5)


def answers(address: str) -> bool:
    host, port = address.split(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def healthy(url: str) -> bool:
    try:
        status, body = request(f"{url}/", b"")
    except OSError:
        return False
    return status == 400 and b"neither a PNG nor a JPEG" in body


def request(url: str, body: bytes) -> tuple[int, bytes]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    sent = urllib.request.Request(url, body, {"Content-Type": "application/x-image"}, method="POST")
    try:
        with opener.open(sent, timeout=30) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_ray_serve_answers_as_the_pytorch_toolkit_does(url: str, archive: Path) -> None:
    images = [encoded(picture().resize(size), kind) for size in ((32, 32), (300, 200)) for kind in ("PNG", "JPEG")]
    answered = [request(url, image) for image in images]
    assert [status for status, _ in answered] == [200] * len(images)
    assert [json.loads(body) for _, body in answered] == [
        pytest.approx(each, abs=1e-6) for each in ask(archive, images)
    ]


def test_what_is_no_image_is_refused_with_400(url: str, archive: Path) -> None:
    for body in (b"", b"text", b"\x89PNG\r\n\x1a\n" + b"x" * 100):
        status, message = request(url, body)
        assert [[status, message.decode()]] == ask(archive, [body])
        assert status == 400
