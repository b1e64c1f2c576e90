"""The limits of the server, on real sockets: who connects and does not get on takes nobody's place."""

import asyncio
import inspect
import itertools
import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from uvicorn.protocols.http import h11_impl

from api.server import Protocol
from shared.settings import raise_files
from tests.conftest import InProcessApi
from tests.integration.test_requests import read_response
from tests.pace import LIMIT_S, slowness, until
from tests.served import served

SHORT_S = 0.3 * slowness()
HALF_OPEN = [b"", b"G", b"GET /healthz HTTP/1.1\r\nHost: t\r\n", b"POST /login HTTP/1.1\r\nX: " + b"x" * 1000]


class Short(Protocol):
    """The same with limits that a test can wait for."""

    HEAD_S = PROGRESS_S = SHORT_S
    TICK_S = SHORT_S / 5
    LINGER_S = SHORT_S


class Longer(Short):
    """For clients that must get on: a test's own pauses must not look like theirs."""

    PROGRESS_S = 2 * SHORT_S


def connect(port: int, sent: bytes = b"") -> socket.socket:
    """A connection on which this was sent."""
    sock = socket.create_connection(("127.0.0.1", port), LIMIT_S)
    sock.sendall(sent)
    return sock


def closed(sock: socket.socket) -> bool:
    """Whether the other side ends the connection, once what it sent was read."""
    try:
        while sock.recv(65536):
            pass
    except ConnectionError:
        pass
    return True


async def alive(_scope: Any, _receive: Any, send: Any) -> None:
    """An application that answers at once."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def test_half_open_connections_give_way() -> None:
    """1,100 connections that send nothing, or half a head, and stay: each request between them is answered."""

    class Few(Protocol):
        max_connections = 100
        most = 0

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            type(self).most = max(self.most, len(self.connections))

    raise_files()
    with served(alive, Few) as port, ExitStack() as held:  # type: ignore[arg-type]
        for number, sent in zip(range(1100), itertools.cycle(HALF_OPEN), strict=False):
            held.enter_context(connect(port, sent))
            if number % 50 == 49:
                assert httpx.get(f"http://127.0.0.1:{port}/", timeout=LIMIT_S, trust_env=False).text == "ok"
        assert 100 <= Few.most < 200


def test_requests_in_progress_keep_their_place() -> None:
    """Where all connections have requests in progress, the next is told 503 in the one form; none of them is ended."""
    inside, go_on = [], asyncio.Event()

    async def waiting(scope: Any, receive: Any, send: Any) -> None:
        inside.append(scope)
        await go_on.wait()
        await alive(scope, receive, send)

    class Few(Protocol):
        max_connections = 3
        loops: list[asyncio.AbstractEventLoop] = []  # noqa: RUF012 - a test's own

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.loops.append(self.loop)
            super().connection_made(transport)

    with served(waiting, Few) as port, ExitStack() as held:  # type: ignore[arg-type]
        busy = [held.enter_context(connect(port, b"GET / HTTP/1.1\r\nHost: t\r\n\r\n")) for _ in range(3)]
        until(lambda: len(inside) == 3, LIMIT_S)
        refused = read_response(held.enter_context(connect(port)))
        assert (refused.status, refused.headers["content-type"]) == (503, "application/problem+json")
        Few.loops[0].call_soon_threadsafe(go_on.set)
        assert [read_response(sock).status for sock in busy] == [200, 200, 200]


@pytest.mark.parametrize("sent", HALF_OPEN)
def test_a_head_has_its_time(sent: bytes) -> None:
    """A head that does not come: 408 if it had begun, and the connection ends."""
    with served(alive, Short) as port, connect(port, sent) as sock:  # type: ignore[arg-type]
        if sent:
            assert read_response(sock).status == 408
        assert closed(sock)


def test_a_second_head_has_its_time_too() -> None:
    """On a connection that was used before, and one byte after the other does not help."""
    with served(alive, Short) as port, connect(port, b"GET / HTTP/1.1\r\nHost: t\r\n\r\n") as sock:  # type: ignore[arg-type]
        assert read_response(sock).status == 200
        sock.settimeout(SHORT_S / 10)
        for byte in itertools.cycle(b"X: aaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n"):
            sock.sendall(bytes([byte]))
            try:
                data = sock.recv(65536)
            except TimeoutError:
                continue
            assert data.startswith(b"HTTP/1.1 408")
            return


def test_a_stalled_body_ends(in_process: InProcessApi) -> None:
    """An upload that stands still is ended with 408, and nothing of it is left; a slow one that gets on is not."""
    assert isinstance(in_process.http.app, FastAPI)
    head = (
        f"POST /api/v1/studies HTTP/1.1\r\nHost: t\r\nAuthorization: Bearer {in_process.keys['submitter']}\r\n"
        "Content-Type: multipart/form-data; boundary=line\r\nContent-Length: 400000\r\n\r\n--line\r\n"
    )
    with served(in_process.http.app, Short) as port, connect(port, head.encode()) as sock:
        assert read_response(sock).status == 408
        assert closed(sock)
    with served(in_process.http.app, Longer) as port, connect(port, head.encode()) as sock:
        for _ in range(15):
            sock.sendall(bytes(10_000))
            time.sleep(SHORT_S / 5)
        sock.settimeout(SHORT_S / 10)
        with pytest.raises(TimeoutError):  # it is still listened to
            sock.recv(1)


def test_a_response_that_nobody_reads_ends() -> None:
    """A client that asks for much and does not read it loses the connection; one that reads slowly has it whole."""
    size = 20 * 2**20

    async def much(_scope: Any, _receive: Any, send: Any) -> None:
        length = str(size).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
        for _ in range(20):
            await send({"type": "http.response.body", "body": bytes(2**20), "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    connections: list[Protocol] = []

    class Noted(Short):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            connections.append(self)
            super().connection_made(transport)
            # the kernel's own limit is another one
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 0)

    with served(much, Noted) as port, connect(port, b"GET / HTTP/1.1\r\nHost: t\r\n\r\n"):  # type: ignore[arg-type]
        until(lambda: bool(connections) and not connections[0].connections, LIMIT_S)
    with served(much, Longer) as port:  # type: ignore[arg-type]
        with connect(port, b"GET / HTTP/1.1\r\nHost: t\r\n\r\n") as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            read = 0
            while read < size:
                data = sock.recv(2**18)
                assert data
                read += len(data)
                time.sleep(SHORT_S / 300)


def test_the_kernel_watches_over_peers() -> None:
    """Keepalives find peers that have gone without a word."""
    options: list[tuple[int, ...]] = []

    class Noted(Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            sock = transport.get_extra_info("socket")
            kept = [sock.getsockopt(socket.IPPROTO_TCP, one) for one in (socket.TCP_KEEPIDLE, socket.TCP_USER_TIMEOUT)]
            options.append((sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), *kept))

    with served(alive, Noted) as port, connect(port):  # type: ignore[arg-type]
        until(lambda: bool(options), LIMIT_S)
    assert options == [(1, 60, 60_000)]


def test_what_is_overridden_is_there() -> None:
    """uvicorn promises none of these names: another version that lacks one must not lose a limit unnoticed."""
    ours = [
        "connection_made", "connection_lost", "data_received", "handle_events", "on_response_complete", "send_400_response",
    ]  # fmt: skip
    for name in ours:
        theirs = inspect.signature(getattr(h11_impl.H11Protocol, name))
        assert [*theirs.parameters] == [*inspect.signature(getattr(Protocol, name)).parameters], name
    cycle = inspect.getsource(h11_impl.RequestResponseCycle)
    protocol = inspect.getsource(h11_impl.H11Protocol)
    for name in ("response_started", "response_complete", "more_body", "disconnected", "message_event"):
        assert re.search(rf"self\.{name} = ", cycle), name
    for name in ("conn", "cycle", "flow", "transport", "connections", "loop"):
        assert re.search(rf"self\.{name}(: .*)? = ", protocol), name
    assert "self.transport.close()" in cycle  # what ManagedTransport stands in for
    assert "self.transport.write(" in cycle  # what it counts


def test_each_byte_alone(in_process: InProcessApi) -> None:
    """A request that comes byte by byte is answered as any other."""
    assert isinstance(in_process.http.app, FastAPI)

    def pieces() -> Iterator[bytes]:
        yield from (bytes([one]) for one in b"GET /healthz HTTP/1.1\r\nHost: t\r\n\r\n")

    with served(in_process.http.app) as port, connect(port) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in pieces():
            sock.sendall(piece)
        assert read_response(sock).status == 200
