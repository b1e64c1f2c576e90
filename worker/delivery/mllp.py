"""MLLP: sends an HL7 message over a connection of its own, and waits for its acknowledgement.

A frame is 0B, the message, 1C 0D. Every wait ends: with the deadline of the whole, whatever the receiver sends
meanwhile. Source: HL7 v2 Transport Specification, MLLP release 1.
"""

import socket
import ssl
import time
from dataclasses import dataclass

from worker.delivery.hl7 import Acknowledgement, Message, NoAcknowledgement, acknowledgement

BEGIN, END = b"\x0b", b"\x1c\x0d"
CONNECT_S = 10.0
MAX_ADDRESSES = 4  # of one name that are tried
MAX_ANSWER_BYTES = 64 * 1024  # bytes of everything that a receiver may send, frames and what is between them
PIECE = 4096


class Silent(Exception):
    """The receiver has not acknowledged the message in time. It may have it."""


class Cut(Exception):
    """The connection ended before the acknowledgement. The receiver may have the message."""


class Unintelligible(Exception):
    """What the receiver sent is no acknowledgement, or too long."""


class WrongCertificate(Exception):
    """The receiver's certificate is not the one that was agreed on, or no authority that we trust has signed it."""


@dataclass(frozen=True)
class Endpoint:
    """Where a receiver listens. tls: as `connections.client_context` makes it; None: without."""

    host: str
    port: int
    tls: ssl.SSLContext | None = None


def exchange(endpoint: Endpoint, message: Message, wait_s: float) -> Acknowledgement:
    """Send a message and wait for what the receiver answers.

    Args:
        endpoint: where it listens.
        message: to send.
        wait_s: how long all of this may take, in seconds.

    Returns:
        The acknowledgement, which names this message.

    Raises:
        OSError: there is no connection; socket.gaierror: nobody knows the name.
        WrongCertificate: another one than agreed, or one that nobody trusts.
        Silent: nothing came in time that names this message.
        Cut: the connection ended before.
        Unintelligible: what came is no acknowledgement.
    """
    ends = time.monotonic() + wait_s
    with _open_socket(endpoint, ends) as connection:
        try:
            connection.settimeout(_seconds_left(ends))
            connection.sendall(BEGIN + message.content + END)
            return _read_acknowledgement(connection, message, ends)
        except TimeoutError:
            raise Silent from None
        except (ConnectionError, ssl.SSLError):
            raise Cut from None


def connect(endpoint: Endpoint, wait_s: float) -> socket.socket:
    """Connect to a receiver, and send nothing.

    Args:
        endpoint: where it listens.
        wait_s: how long this may take, in seconds.

    Returns:
        The connection; close it.

    Raises:
        OSError: there is none; socket.gaierror: nobody knows the name.
        WrongCertificate: another one than agreed, or one that nobody trusts.
        Silent: it took too long.
    """
    return _open_socket(endpoint, time.monotonic() + wait_s)


def _open_socket(endpoint: Endpoint, ends: float) -> socket.socket:
    plain = _connect_first(endpoint, ends)
    if endpoint.tls is None:
        return plain
    try:
        plain.settimeout(_seconds_left(ends))
        return endpoint.tls.wrap_socket(plain, server_hostname=endpoint.host)
    except ssl.SSLCertVerificationError:
        plain.close()
        raise WrongCertificate from None
    except OSError:
        plain.close()
        raise


def _connect_first(endpoint: Endpoint, ends: float) -> socket.socket:
    """A connection to the first of its addresses that takes one; all of them together have the time of one."""
    try:
        found = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
    except UnicodeError:  # a part of the name is too long
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known") from None
    addresses = list(dict.fromkeys(str(one[4][0]) for one in found))[:MAX_ADDRESSES]
    until = min(ends, time.monotonic() + CONNECT_S)
    for left, address in zip(range(len(addresses), 0, -1), addresses, strict=True):
        try:
            return socket.create_connection((address, endpoint.port), timeout=_seconds_left(until) / left)
        except OSError:
            if left == 1:
                raise
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


def _read_acknowledgement(connection: socket.socket, message: Message, ends: float) -> Acknowledgement:
    """The acknowledgement of this message: others are passed by. Raises as `exchange`."""
    received, taken = b"", 0
    while True:
        frame, received = _frame(received)
        if frame is not None:
            try:
                acknowledged = acknowledgement(frame, message.codec)
            except NoAcknowledgement as error:
                raise Unintelligible(str(error)) from None
            if acknowledged.control_id == message.control_id:
                return acknowledged
            continue
        connection.settimeout(_seconds_left(ends))
        piece = connection.recv(PIECE)
        taken += len(piece)
        if not piece:
            raise Cut
        if taken > MAX_ANSWER_BYTES:
            raise Unintelligible("it is too long")
        received += piece


def _frame(received: bytes) -> tuple[bytes | None, bytes]:
    """The first whole frame, and what follows it; None and everything from its beginning on if none is whole."""
    start = received.find(BEGIN)
    if start < 0:
        return None, b""  # what stands before a frame is none
    end = received.find(END, start)
    if end < 0:
        return None, received[start:]
    return received[start + 1 : end], received[end + len(END) :]


def _seconds_left(ends: float) -> float:
    """Seconds until the deadline. Raises Silent once it has passed."""
    left = ends - time.monotonic()
    if left <= 0:
        raise Silent
    return left
