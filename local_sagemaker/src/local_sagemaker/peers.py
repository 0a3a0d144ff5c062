"""Tells who is at the other end of a connection: the ports of containers and functions take no signatures.

They are for processes of this installation. A web page is known by the name it asks for or by its Origin, and another
account of this machine by the owner of its socket, which Linux tells.
"""

import os
import socket
import sys
from http.server import BaseHTTPRequestHandler
from pathlib import Path

# https://docs.kernel.org/networking/proc_net_tcp.html
SOCKETS = Path("/proc/net/tcp")
LOCAL_ADDRESS, REMOTE_ADDRESS, OWNER = 1, 2, 7


def accepted(handler: BaseHTTPRequestHandler) -> bool:
    """Returns whether a request that was parsed comes from this account's programs, and answers 403 if not."""
    host = (handler.headers.get("Host") or "").rsplit(":", 1)[0]
    # Browsers send Sec-Fetch-Site with requests without Origin too, such as for a picture.
    page = "Origin" in handler.headers or handler.headers.get("Sec-Fetch-Site", "none") != "none"
    if page or host not in ("127.0.0.1", "localhost"):
        handler.send_error(403, "requests of web pages are refused")
    elif not same_account(handler.client_address, handler.connection.getsockname()):
        handler.send_error(403, "requests of other accounts are refused")
    else:
        return True
    handler.close_connection = True
    return False


def same_account(peer: tuple[str, int], own: tuple[str, int]) -> bool:
    """Returns whether the process at the other end runs as this one's account; True where no system tells it.

    peer, own: both ends of the connection, as two connections of different accounts may share one of them.
    """
    if not SOCKETS.exists():
        return True
    wanted = (_as_listed(peer), _as_listed(own), str(os.getuid()))
    rows = (line.split() for line in SOCKETS.read_text().splitlines())
    return any((row[LOCAL_ADDRESS], row[REMOTE_ADDRESS], row[OWNER]) == wanted for row in rows)


def _as_listed(address: tuple[str, int]) -> str:
    """Returns an address as the kernel lists it: in the byte order of this machine, and the port."""
    return f"{int.from_bytes(socket.inet_aton(address[0]), sys.byteorder):08X}:{address[1]:04X}"
