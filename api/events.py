"""From Postgres' NOTIFY to open pages: one connection listens, many streams report."""

import asyncio
import selectors
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from types import FrameType
from uuid import UUID

import psycopg2
from psycopg2.extensions import ISOLATION_LEVEL_AUTOCOMMIT

from shared.db.engine import REQUESTS, connect_arguments
from shared.db.notify import CHANNEL, REVISED
from shared.errors import Unavailable
from shared.logs import get_logger
from shared.queries.logins import Holder

log = get_logger(__name__)
RECONNECT_DELAY_S = 2.0  # between attempts to connect
NOTIFICATION_WAIT_S = 15.0  # the longest wait for a notice
COALESCE_S = 1.0  # at most one event in this time, however much happens
VALIDITY_CHECK_INTERVAL_S = 3.0  # between two looks whether keys and logins of open streams are valid still
MAX_STREAM_S = 600.0  # then the browser comes again, and shows its key again


class Change(StrEnum):
    """What a stream reports."""

    WORKLIST = "worklist"  # something in the list
    REVISED = "revised"  # how many revised findings wait to be seen


class _Stream:
    """One open stream."""

    def __init__(self, holder: Holder) -> None:
        self.woken = asyncio.Event()
        self.holder = holder
        self.since = time.monotonic()
        self.changes: set[Change] = set()  # since its last report


class Events:
    """Notifies open pages of changes to their site's worklist."""

    def __init__(self, database_url: str, valid: Callable[[set[Holder]], set[Holder]]) -> None:
        """database_url: SQLAlchemy's; it is connected to when the first page listens.

        valid: tells which holders of open streams may go on. It may raise Unavailable; then nobody's stream ends.
        """
        self._valid = valid
        self._found_valid: set[Holder] = set()
        self._looked_at = 0.0
        self._looking = False
        self._url = database_url.replace("+psycopg2", "")
        self._waiting: dict[UUID, set[_Stream]] = {}  # by site
        self._open: Counter[UUID] = Counter()  # by key
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._wake, self._woken = socket.socketpair()

    @contextmanager
    def open(self) -> Iterator[None]:
        """While the application runs. The first signal to stop ends streams: a server waits for open responses."""
        self._loop = asyncio.get_running_loop()
        handlers = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                handlers[number] = signal.signal(number, self._end_streams_before(signal.getsignal(number)))
        try:
            yield
        finally:
            self._end_streams()
            for number, handler in handlers.items():
                signal.signal(number, handler)
            if self._thread is not None:
                self._thread.join(5)
            self._wake.close()
            self._woken.close()

    def _end_streams_before(self, handler: object):  # type: ignore[no-untyped-def]  # noqa: ANN202 - a signal handler
        def end_first(number: int, frame: FrameType | None) -> None:
            self._end_streams()
            if callable(handler):
                handler(number, frame)

        return end_first

    def _end_streams(self) -> None:
        self._stopping = True
        with suppress(OSError):
            self._wake.send(b"x")
        self._notify_streams(None)

    def is_full(self, key_id: UUID, max_streams: int) -> bool:
        """Check whether a key may open no more streams.

        Args:
            key_id: of the key.
            max_streams: how many it may have open.

        Returns:
            Whether it has as many open.
        """
        return self._open[key_id] >= max_streams

    @contextmanager
    def count_stream(self, key_id: UUID) -> Iterator[None]:
        """Count a stream of a key while it is open."""
        self._open[key_id] += 1
        try:
            yield
        finally:
            self._open[key_id] -= 1
            if not self._open[key_id]:
                del self._open[key_id]

    async def changes(self, site_id: UUID, holder: Holder) -> AsyncGenerator[list[Change], None]:
        """Report changes to a site's worklist, at most once in COALESCE_S.

        The stream ends within seconds after its holder's key or login, and at the latest after MAX_STREAM_S.

        Args:
            site_id: the site.
            holder: whose stream this is.

        Yields:
            What changed since the last report.
        """
        if self._thread is None:
            self._thread = threading.Thread(target=self._listen, name="listener", daemon=True)
            self._thread.start()
        stream = _Stream(holder)
        self._waiting.setdefault(site_id, set()).add(stream)
        assert self._loop is not None
        end = self._loop.time() + MAX_STREAM_S
        try:
            while not self._stopping and self._loop.time() < end:
                with suppress(TimeoutError):
                    await asyncio.wait_for(stream.woken.wait(), VALIDITY_CHECK_INTERVAL_S)
                if self._stopping or await self._is_over(stream):
                    return
                if not stream.woken.is_set():
                    continue
                stream.woken.clear()
                changes, stream.changes = sorted(stream.changes, reverse=True), set()
                yield changes
                await asyncio.sleep(COALESCE_S)
        finally:
            self._waiting[site_id].discard(stream)

    async def _is_over(self, stream: _Stream) -> bool:
        """Whether its key or login has ended; one query for all streams of this process."""
        now = time.monotonic()
        if now - self._looked_at >= VALIDITY_CHECK_INTERVAL_S and not self._looking:
            self._looking = True
            try:
                holders = {each.holder for waiting in self._waiting.values() for each in waiting}
                self._found_valid = await asyncio.to_thread(self._valid, holders)
                self._looked_at = now
            except Unavailable:
                return False
            finally:
                self._looking = False
        return stream.since < self._looked_at and stream.holder not in self._found_valid

    def _notify_streams(self, site_id: UUID | None, changes: Iterable[Change] = Change) -> None:
        """Wake those who wait for a site, or all; from any thread."""

        def wake() -> None:
            for site, waiting in self._waiting.items():
                if site_id in (None, site):
                    for stream in waiting:
                        stream.changes.update(changes)
                        stream.woken.set()

        if self._loop is not None:
            with suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(wake)

    def _listen(self) -> None:
        while not self._stopping:
            try:
                self._listen_once()
            except Exception as error:  # noqa: BLE001 - without this thread every list would be stale
                log.warning("change listener disconnected", error=type(error).__name__)
                time.sleep(RECONNECT_DELAY_S)

    def _listen_once(self) -> None:
        arguments = connect_arguments(self._url, REQUESTS) | {"application_name": "osteon listener"}
        connection = psycopg2.connect(self._url, **arguments)
        try:
            connection.set_isolation_level(ISOLATION_LEVEL_AUTOCOMMIT)
            connection.cursor().execute(f"LISTEN {CHANNEL}")
            self._notify_streams(None)  # changes while there was no connection
            with selectors.DefaultSelector() as sources:
                for source in (connection, self._woken):
                    sources.register(source, selectors.EVENT_READ)
                while not self._stopping:
                    sources.select(NOTIFICATION_WAIT_S)
                    connection.poll()
                    payloads = {notice.payload for notice in connection.notifies}
                    connection.notifies.clear()
                    for payload in payloads:
                        site, _, more = payload.partition(" ")
                        self._notify_streams(UUID(site), Change if more == REVISED else [Change.WORKLIST])
        finally:
            connection.close()
