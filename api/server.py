"""The server under the application: uvicorn, with limits that uvicorn lacks (ADR 36). Run it by -m api.server."""

import asyncio
import contextlib
import fcntl
import http
import json
import socket
import struct
import termios
from typing import Any, cast

import h11
import uvicorn
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from api.app import HEADERS, create_app
from shared.settings import Settings, one_sentence, raise_files

SPARE_FILES = 512  # descriptors for databases, stores, spools and logs
STOP_S = 50  # for requests in progress to end
IDLE_S = 75  # that a connection may wait for its next request
# a peer that has gone without a word is noticed within two minutes. Source: tcp(7)
KEEPALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4, "TCP_USER_TIMEOUT": 60_000}

_waiting: dict["Protocol", None] = {}  # connections without a request in progress, the longest waiting first


def problem(status: int, detail: str) -> bytes:
    """Make a whole response in problem+json, for requests that never reach the application. Source: RFC 9457.

    Args:
        status: HTTP status.
        detail: what is wrong and what to do, as a sentence.

    Returns:
        The response's bytes, headers included.
    """
    title = http.HTTPStatus(status).phrase
    body = json.dumps({"title": title, "status": status, "detail": detail}).encode()
    own = {"Content-Type": "application/problem+json", "Content-Length": str(len(body)), "Connection": "close"}
    lines = [f"{name}: {value}" for name, value in (own | HEADERS | {"Cache-Control": "no-store"}).items()]
    return f"HTTP/1.1 {status} {title}\r\n".encode() + "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class StrictConnection(h11.Connection):
    """h11, but it refuses a request with two lengths: proxies before us might believe the other one.

    Source: RFC 9112 6.3, number 3 of the list; RFC 9112 6.1 for HTTP/1.0.
    """

    def next_event(self) -> Any:  # noqa: ANN401 - h11's own
        """As h11 has it. Raises RemoteProtocolError."""
        event = super().next_event()
        if isinstance(event, h11.Request):
            names = {name for name, _ in event.headers}
            if b"transfer-encoding" in names and (b"content-length" in names or event.http_version < b"1.1"):
                raise h11.RemoteProtocolError("Content-Length and Transfer-Encoding contradict each other")
        return event


class ManagedTransport:
    """A connection's transport as uvicorn sees it: the protocol decides when it is closed."""

    def __init__(self, transport: asyncio.Transport, protocol: "Protocol") -> None:
        self._transport, self._protocol = transport, protocol

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the transport has
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send, and count."""
        self._protocol.written += len(data)
        self._transport.write(data)

    def close(self) -> None:
        """Close it once the client has received the response."""
        self._protocol.finish()

    def is_closing(self) -> bool:
        """Whether it is closed, or will be."""
        return self._protocol.ending or self._transport.is_closing()


class Protocol(H11Protocol):
    """uvicorn's protocol, with limits of time and number that it lacks.

    If there are max_connections, a new connection replaces the one that waits longest for a request; those with a
    request in progress are never replaced. Tests set the limits by subclassing.
    """

    max_connections = 1000
    HEAD_S = 20.0  # for a request's head, from its first byte, or from the start of the connection
    # at least so many bytes of a body come, or of a response go, in each window
    PROGRESS_S, PROGRESS_BYTES = 30.0, 2**14
    LINGER_S, LINGER_BYTES = 1.0, 2**18  # for a client that still sends: it has the response by then
    TICK_S = 1.0

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        limit = config.h11_max_incomplete_event_size
        self.conn = StrictConnection(h11.SERVER, **({} if limit is None else {"max_incomplete_event_size": limit}))
        self.ending = False  # no more is parsed, and the connection closes
        self._plain: asyncio.Transport | None = None
        self._lingered = 0  # bytes thrown away since
        self._head_since: float | None = None
        self._window_since = self._window_bytes = 0.0  # of the body that comes
        self.written = 0  # bytes of responses
        self._taken_since, self._taken = 0.0, 0  # bytes of them that the client had when the window began
        self._ticking: asyncio.TimerHandle | None = None

    # what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Accept it, perhaps in place of the one that waits longest, or refuse it with 503."""
        self._plain = cast("asyncio.Transport", transport)
        super().connection_made(cast("asyncio.Transport", ManagedTransport(self._plain, self)))
        _keep_alive(self._plain.get_extra_info("socket"))
        self._head_since = self.loop.time()
        self._ticking = self.loop.call_later(self.TICK_S, self._tick)
        if len(self.connections) > self.max_connections:
            oldest = next((one for one in _waiting if one.connections is self.connections), None)
            if oldest is None and len(self.connections) > self.max_connections + SPARE_FILES // 4:
                self._plain.abort()
                return
            if oldest is None:
                self.refuse(503, "Too many requests are in progress; try again in some seconds")
                return
            oldest.finish()
        _waiting[self] = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self.ending = True
        _waiting.pop(self, None)
        if self._ticking is not None:
            self._ticking.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Handle bytes of a request; after its response, count what the client still sends."""
        if self.ending:
            self._lingered += len(data)
            if self._lingered > self.LINGER_BYTES:
                self.flow.pause_reading()
            return
        self._window_bytes += len(data)
        if self._head_since is None and not self._in_progress:
            self._head_since = self.loop.time()
        super().data_received(data)

    def handle_events(self) -> None:
        """See `H11Protocol.handle_events`."""
        before = self.cycle
        super().handle_events()
        if self.cycle is not before and self._in_progress:
            self._head_since = None
            self._window_since, self._window_bytes = self.loop.time(), 0.0
            _waiting.pop(self, None)

    # what uvicorn calls

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        if self._unread and not self.ending:  # the rest of the body is not needed
            self._linger()
        if not self.ending and not self._in_progress:
            _waiting[self] = None

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP."""
        self.refuse(400, msg)

    # ours

    @property
    def _in_progress(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def _unread(self) -> bool:
        """Whether the client may still be sending."""
        return self.conn.their_state in (h11.SEND_BODY, h11.ERROR)

    def refuse(self, status: int, detail: str) -> None:
        """Answer a request in place of the application, unless that has begun to, and close the connection.

        Args:
            status: HTTP status.
            detail: what is wrong and what to do, as a sentence.
        """
        if not (self._in_progress and self.cycle.response_started):
            self.transport.write(problem(status, detail))
        if self._in_progress:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self._linger()

    def finish(self) -> None:
        """Close the connection after what was written has been sent."""
        if self._unread:
            self._linger()
        elif self._plain is not None:
            self.ending = True
            _waiting.pop(self, None)
            self._plain.close()

    def _linger(self) -> None:
        """Let the client read the response before it learns that nothing more is read: closing at once would lose both.

        Source: RFC 9112 9.6, the reset problem.
        """
        if self.ending or self._plain is None:
            return
        self.ending = True
        _waiting.pop(self, None)
        self._unset_keepalive_if_required()
        if self._plain.is_closing() or not self._plain.can_write_eof():
            self._plain.close()
            return
        with contextlib.suppress(OSError):
            self._plain.write_eof()
        self.flow.resume_reading()
        self.loop.call_later(self.LINGER_S, self._plain.close)

    def _tick(self) -> None:
        """End connections that make no progress; runs once a TICK_S."""
        self._ticking = self.loop.call_later(self.TICK_S, self._tick)
        now = self.loop.time()
        self._watch_response(now)
        if self.ending:
            return
        if self._head_since is not None and now - self._head_since > self.HEAD_S:
            if self.conn.trailing_data[0]:
                self.refuse(408, f"The head of the request did not come within {self.HEAD_S:.0f} s")
            else:
                self.finish()
        elif self._in_progress and self.cycle.more_body:
            self._watch_body(now)

    def _watch_body(self, now: float) -> None:
        # it is we who do not read, or have not asked for the body yet (RFC 9110 10.1.1)
        if self.flow.read_paused or self.cycle.waiting_for_100_continue:
            self._window_since, self._window_bytes = now, 0.0
        elif now - self._window_since > self.PROGRESS_S:
            if self._window_bytes < self.PROGRESS_BYTES:
                self.refuse(408, f"Less than {self.PROGRESS_BYTES} bytes of the body came in {self.PROGRESS_S:.0f} s")
            self._window_since, self._window_bytes = now, 0.0

    def _watch_response(self, now: float) -> None:
        assert self._plain is not None
        left = self._plain.get_write_buffer_size()
        taken = self.written - left - _queued(self._plain.get_extra_info("socket"))
        if left == 0 or taken >= self._taken + self.PROGRESS_BYTES:
            self._taken_since, self._taken = now, taken
        elif now - self._taken_since > self.PROGRESS_S:
            self._plain.abort()


def _queued(sock: socket.socket | None) -> int:
    """Bytes that the kernel has and the peer has not acknowledged; 0 if that is not known. Source: tcp(7), SIOCOUTQ."""
    if sock is None or not hasattr(termios, "TIOCOUTQ"):
        return 0
    with contextlib.suppress(OSError):
        return int(struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)))[0])
    return 0


def _keep_alive(sock: socket.socket | None) -> None:
    """Make the kernel find peers that are gone. Options that it lacks are left out."""
    if sock is None or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        with contextlib.suppress(OSError, AttributeError):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def main() -> None:
    """Serve at OSTEON_API_HOST and OSTEON_API_PORT until SIGTERM."""
    with one_sentence():
        settings = Settings()
        app = create_app(settings)
    Protocol.max_connections = max(1, min(settings.max_connections, raise_files() - SPARE_FILES))
    config = Config(
        app, settings.api_host, settings.api_port, http=Protocol, ws="none", access_log=False, log_config=None,
        server_header=False, proxy_headers=False, timeout_keep_alive=IDLE_S, timeout_graceful_shutdown=STOP_S,
    )  # fmt: skip
    uvicorn.Server(config).run()


if __name__ == "__main__":
    main()
