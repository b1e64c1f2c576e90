"""MLLP against a server that misbehaves in each way: every wait ends, and each end is told apart."""

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from shared.domain.destinations import Destination, DestinationKind
from shared.settings import Settings
from tests.certificates import Certificates
from tests.pace import limit_s
from worker.delivery.connections import client_context
from worker.delivery.hl7 import Message, Verdict
from worker.delivery.mllp import (
    BEGIN,
    CONNECT_S,
    END,
    MAX_ADDRESSES,
    MAX_ANSWER_BYTES,
    Cut,
    Endpoint,
    Silent,
    Unintelligible,
    WrongCertificate,
    exchange,
)

MESSAGE = Message("ID1", b"MSH|^~\\&|\rPID|1\r")
WAIT_S = 0.4  # where nothing will come
Act = Callable[[socket.socket, bytes], None]


def ack(code: str = "AA", control_id: str = "ID1") -> bytes:
    return BEGIN + f"MSH|^~\\&|RIS\rMSA|{code}|{control_id}|words\r".encode() + END


@contextmanager
def receiver(act: Act, context: ssl.SSLContext | None = None) -> Iterator[Endpoint]:
    """A server for one connection: it reads a frame, then acts."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            try:
                connection, _ = server.accept()
                with context.wrap_socket(connection, server_side=True) if context else connection as talking:
                    received = b""
                    while not received.endswith(END) and (piece := talking.recv(4096)):
                        received += piece
                    act(talking, received)
            except OSError:
                pass

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield Endpoint("127.0.0.1", server.getsockname()[1])
        finally:
            with suppress(OSError):  # wakes a server that nobody has called
                server.shutdown(socket.SHUT_RDWR)
    thread.join(limit_s(10))


def answering(*pieces: bytes, pause_s: float = 0.0) -> Act:
    def act(talking: socket.socket, _received: bytes) -> None:
        for piece in pieces:
            talking.sendall(piece)
            time.sleep(pause_s)

    return act


def test_a_message_in_its_frame() -> None:
    """0B, the message, 1C 0D; and the acknowledgement that comes back."""
    seen: list[bytes] = []
    with receiver(lambda talking, received: (seen.append(received), talking.sendall(ack()))[-1]) as endpoint:
        assert exchange(endpoint, MESSAGE, limit_s(10)).verdict is Verdict.ACCEPTED
    assert seen == [b"\x0bMSH|^~\\&|\rPID|1\r\x1c\x0d"]


@pytest.mark.parametrize(
    ("pieces", "verdict"),
    [
        ([ack("AE")], Verdict.REFUSED),
        ([ack("AR")], Verdict.LATER),
        ([ack("CA")], Verdict.ACCEPTED),
        ([bytes([byte]) for byte in ack()], Verdict.ACCEPTED),  # a byte at a time
        ([ack("AE", "OTHER") + ack("AA")], Verdict.ACCEPTED),  # another message's before ours
        ([b"noise\r\n" + ack("AA")], Verdict.ACCEPTED),
    ],
)
def test_each_acknowledgement(pieces: list[bytes], verdict: Verdict) -> None:
    """By its code, however it is cut into pieces, and whatever comes before it."""
    with receiver(answering(*pieces)) as endpoint:
        assert exchange(endpoint, MESSAGE, limit_s(10)).verdict is verdict


def idle(talking: socket.socket, _received: bytes) -> None:
    talking.recv(1)


def endless(talking: socket.socket, _received: bytes) -> None:
    while True:
        talking.sendall(b"x" * 4096)


def slow(talking: socket.socket, _received: bytes) -> None:
    talking.sendall(BEGIN)
    while True:
        talking.sendall(b"x")
        time.sleep(WAIT_S / 20)


@pytest.mark.parametrize(
    ("act", "wait_s", "end"),
    [
        (idle, WAIT_S, Silent),
        (slow, WAIT_S, Silent),  # something comes all the time, and never the end
        (answering(ack("AA", "OTHER"), pause_s=2 * WAIT_S), WAIT_S, Silent),  # of another message alone
        (answering(), 10.0, Cut),
        (answering(ack()[:-1]), 10.0, Cut),  # half a frame, then the end
        (answering(ack()[:9]), 10.0, Cut),
        (answering(ack("AA", "OTHER")), 10.0, Cut),
        (answering(b"HTTP/1.1 400 Bad Request\r\n\r\n"), 10.0, Cut),
        (answering(BEGIN + b"hello" + END), 10.0, Unintelligible),
        (answering(BEGIN + END), 10.0, Unintelligible),
        (endless, 10.0, Unintelligible),
        (answering(BEGIN + b"x" * (MAX_ANSWER_BYTES + 1)), 10.0, Unintelligible),
    ],
    ids=["silent", "slow", "another one's, then silent", "closed", "half a frame", "a beginning", "another one's", "HTTP", "garbage", "empty", "endless", "too long"],
)  # fmt: skip
def test_each_misbehaviour_ends(act: Act, wait_s: float, end: type[Exception]) -> None:
    """With an exception of its own, and nothing of what was received in it."""
    with receiver(act) as endpoint, pytest.raises(end) as wrong:
        exchange(endpoint, MESSAGE, wait_s if wait_s == WAIT_S else limit_s(wait_s))
    assert "hello" not in str(wrong.value)


def test_nobody_there() -> None:
    """A port on which nobody listens, and a name that nobody knows."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(ConnectionRefusedError):
        exchange(Endpoint("127.0.0.1", port), MESSAGE, limit_s(10))
    for name in ("nobody.invalid", "a" * 64 + ".example"):
        with pytest.raises(socket.gaierror):
            exchange(Endpoint(name, port), MESSAGE, limit_s(10))


def test_all_addresses_of_a_name_share_one_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name with a hundred of them does not hold up its destination a hundred times as long."""
    found = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (f"192.0.2.{number}", 2575)) for number in range(100)]
    waited: list[float] = []

    def away(_address: tuple[str, int], timeout: float) -> socket.socket:
        waited.append(timeout)
        raise TimeoutError

    monkeypatch.setattr(socket, "getaddrinfo", lambda *_a, **_k: found)
    monkeypatch.setattr(socket, "create_connection", away)
    with pytest.raises(TimeoutError):
        exchange(Endpoint("ris.example", 2575), MESSAGE, 60.0)
    assert len(waited) == MAX_ADDRESSES
    assert all(one <= CONNECT_S / left for left, one in zip(range(MAX_ADDRESSES, 0, -1), waited, strict=True))


def test_tls(tmp_path: Path) -> None:
    """By an authority or by the fingerprint; another certificate, and a server without TLS, get no message."""
    made = Certificates(tmp_path)
    certificate, key, fingerprint = made.make("receiver")
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)
    settings = Settings(delivery_tls_authorities=certificate)

    def context(agreed: str = "", config: Settings = settings) -> ssl.SSLContext:
        return client_context(config, Destination(DestinationKind.HL7_TLS, tls_fingerprint=agreed))

    seen: list[bytes] = []

    def act(talking: socket.socket, received: bytes) -> None:
        seen.append(received)
        talking.sendall(ack())

    for host, tls in (("localhost", context()), ("127.0.0.1", context(fingerprint))):
        with receiver(act, server) as endpoint:
            secured = Endpoint(host, endpoint.port, tls)
            assert exchange(secured, MESSAGE, limit_s(10)).verdict is Verdict.ACCEPTED
    assert len(seen) == 2
    for tls in (context(config=Settings()), context("0" * 64)):
        with receiver(act, server) as endpoint, pytest.raises(WrongCertificate):
            exchange(Endpoint("localhost", endpoint.port, tls), MESSAGE, limit_s(10))
    with receiver(answering(ack())) as endpoint, pytest.raises(OSError):
        exchange(Endpoint("localhost", endpoint.port, context(fingerprint)), MESSAGE, WAIT_S)
    assert len(seen) <= 2 or all(one == b"" for one in seen[2:])
