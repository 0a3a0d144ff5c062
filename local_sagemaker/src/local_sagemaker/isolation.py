"""Network isolation of a container: it reaches no address, and has none of its role's credentials.

SageMaker downloads a container's data and uploads what it writes; the container itself "can't make any outbound network
calls, even to other AWS services such as Amazon S3. Additionally, no AWS credentials are made available to the
container runtime environment" (SageMaker's developer guide, "Run training and inference containers in internet-free
mode"). Here an audit hook refuses what Python code attempts. It tells of code that would fail on AWS and keeps no
attacker in: other programs that the code starts are not stopped.
"""

import errno
import ipaddress
import os
import sys
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from local_sagemaker.closed_imports import python_path

# The ports of this machine on which AWS's services answer, with commas between. Without it nothing is isolated.
VARIABLE = "LOCAL_SAGEMAKER_ISOLATED_FROM"
KEPT = frozenset({"AWS_REGION", "AWS_DEFAULT_REGION"})


def variables(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment that isolates a process and every Python process that it starts.

    environment: what it has besides. The server's own settings of AWS are hidden from it.
    """
    hidden = {name: "" for name in os.environ if name.startswith("AWS_") and name not in KEPT}
    urls = [value for name, value in os.environ.items() if name.startswith("AWS_ENDPOINT_URL")]
    ports = sorted({str(port) for url in urls if (port := urlsplit(url).port)})
    return {**hidden, VARIABLE: ",".join(["0", *ports]), "PYTHONPATH": python_path(environment)}


def isolate() -> None:
    """Isolates this process, if the environment says so. It cannot be undone."""
    text = os.environ.get(VARIABLE)
    if not text:
        return
    closed = {int(port) for port in text.split(",")}

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
            address = arguments[1]
        elif event == "socket.getaddrinfo":
            address = arguments[:2]
        else:
            return
        if isinstance(address, tuple) and not _within(address[0], address[1], closed):
            raise OSError(errno.ENETUNREACH, f"network isolation: {address[0]} can't be reached from this container")

    sys.addaudithook(refuse)


def _within(host: str | bytes | None, port: object, closed: set[int]) -> bool:
    """Whether an address is the container's own."""
    if isinstance(host, bytes):
        host = host.decode("ascii", "replace")
    if port in closed and port != 0:
        return False
    if not host or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
