"""Tells who is at the other end of a connection: the ports of containers and functions take no signatures.

They are for processes of this installation. A web page is known by the name it asks for or by its Origin, and another
account of this machine by the owner of its socket, which Linux tells.
"""

import os
from http.server import BaseHTTPRequestHandler
from pathlib import Path

# https://docs.kernel.org/networking/proc_net_tcp.html
SOCKETS = Path("/proc/net/tcp")
LOCAL_ADDRESS, OWNER = 1, 7


def accepted(handler: BaseHTTPRequestHandler) -> bool:
    """Returns whether a request that was parsed comes from this account's programs, and answers 403 if not."""
    host = (handler.headers.get("Host") or "").rsplit(":", 1)[0]
    if "Origin" in handler.headers or host not in ("127.0.0.1", "localhost"):
        handler.send_error(403, "requests of web pages are refused")
    elif not same_account(handler.client_address):
        handler.send_error(403, "requests of other accounts are refused")
    else:
        return True
    handler.close_connection = True
    return False


def same_account(peer: tuple[str, int]) -> bool:
    """Returns whether the process at the other end runs as this one's account; True where no system tells it."""
    if not SOCKETS.exists():
        return True
    # As the kernel prints it: the address in the machine's byte order, and the port.
    address = "".join(f"{int(part):02X}" for part in reversed(peer[0].split("."))) + f":{peer[1]:04X}"
    rows = (line.split() for line in SOCKETS.read_text().splitlines())
    return any(row[LOCAL_ADDRESS] == address and row[OWNER] == str(os.getuid()) for row in rows)
