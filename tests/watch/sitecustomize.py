"""Writes down each look-up of a foreign name and each message to a foreign address of the Python process it is loaded in.

Python loads it at its start where its folder stands in PYTHONPATH. It writes to the file that TESTS_OUTBOUND names, a
line for each: the process, what it did, with whom. What C libraries do of themselves it does not see; that is what
tests/systems/test_outbound.py counts packets for.
"""

import ipaddress
import os
import socket
import sys
from typing import Any

LOOKUPS = ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr")
MESSAGES = ("socket.connect", "socket.sendto", "socket.sendmsg")
_file = os.environ.get("TESTS_OUTBOUND", "")


def is_elsewhere(host: object) -> bool:
    """Whether this name or address leads out of this machine; that of the machine itself is not asked of others."""
    name = host.decode() if isinstance(host, bytes) else str(host or "")
    if name in ("", "localhost", "<broadcast>", socket.gethostname()):
        return False
    try:
        address = ipaddress.ip_address(name.split("%")[0])
    except ValueError:
        return True
    return not (address.is_loopback or address.is_unspecified)


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event in LOOKUPS:
        host = arguments[0]
    elif event in MESSAGES and isinstance(arguments[1], tuple):  # a Unix socket's address is text
        host = arguments[1][0]
    else:
        return
    if is_elsewhere(host):
        line = f"{os.getpid()} {sys.argv[:4]} {event} {host!r}\n"
        descriptor = os.open(_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(descriptor, line.encode())
        os.close(descriptor)


if _file:
    sys.addaudithook(_watch)
