"""From Postgres' NOTIFY to whoever looks at a worklist: one connection that listens, many that are told."""

import asyncio
import logging
import selectors
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from types import FrameType
from uuid import UUID

import psycopg2
from psycopg2.extensions import ISOLATION_LEVEL_AUTOCOMMIT

from shared.repository.notices import CHANNEL, REVISED

log = logging.getLogger(__name__)
AGAIN_S = 2.0  # between attempts to connect
HEARTBEAT_S = 15.0  # proxies close what is silent for longer
COALESCE_S = 1.0  # at most one event in this time, however much happens
LIFE_S = 600.0  # then the browser comes again, and shows its key again


class Change(StrEnum):
    """What a stream tells of."""

    WORKLIST = "worklist"  # something in the list
    REVISED = "revised"  # how many revised findings wait to be seen


class _Ear:
    """One open stream."""

    def __init__(self) -> None:
        self.woken = asyncio.Event()
        self.changes: set[Change] = set()  # since it was told last


class Events:
    """Tells open pages that their site's worklist changed."""

    def __init__(self, database_url: str) -> None:
        """database_url: SQLAlchemy's; it is connected to when the first page listens."""
        self._url = database_url.replace("+psycopg2", "")
        self._waiting: dict[UUID, set[_Ear]] = {}  # by site
        self._open: Counter[UUID] = Counter()  # by key
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._wake, self._woken = socket.socketpair()

    @contextmanager
    def open(self) -> Iterator[None]:
        """While the application lives. Streams end at the first signal to stop: a server waits for open answers."""
        self._loop = asyncio.get_running_loop()
        handlers = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                handlers[number] = signal.signal(number, self._before(signal.getsignal(number)))
        try:
            yield
        finally:
            self._end()
            for number, handler in handlers.items():
                signal.signal(number, handler)
            if self._thread is not None:
                self._thread.join(5)
            self._wake.close()
            self._woken.close()

    def _before(self, handler: object):  # type: ignore[no-untyped-def]  # noqa: ANN202 - a signal handler
        def end_first(number: int, frame: FrameType | None) -> None:
            self._end()
            if callable(handler):
                handler(number, frame)

        return end_first

    def _end(self) -> None:
        self._stopping = True
        with suppress(OSError):
            self._wake.send(b"x")
        self._poke(None)

    def full(self, key_id: UUID, most: int) -> bool:
        """Whether a key has that many streams open."""
        return self._open[key_id] >= most

    @contextmanager
    def place(self, key_id: UUID) -> Iterator[None]:
        """While a stream of a key is open."""
        self._open[key_id] += 1
        try:
            yield
        finally:
            self._open[key_id] -= 1
            if not self._open[key_id]:
                del self._open[key_id]

    async def changes(self, site_id: UUID) -> AsyncIterator[list[Change]]:
        """What changed at the site, at most once in COALESCE_S; empty as a sign of life."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._listen, name="listener", daemon=True)
            self._thread.start()
        ear = _Ear()
        self._waiting.setdefault(site_id, set()).add(ear)
        assert self._loop is not None
        end = self._loop.time() + LIFE_S
        try:
            yield []  # the answer begins
            while not self._stopping and self._loop.time() < end:
                try:
                    await asyncio.wait_for(ear.woken.wait(), HEARTBEAT_S)
                except TimeoutError:
                    yield []
                    continue
                ear.woken.clear()
                if self._stopping:
                    return
                told, ear.changes = sorted(ear.changes, reverse=True), set()
                yield told
                await asyncio.sleep(COALESCE_S)
        finally:
            self._waiting[site_id].discard(ear)

    def _poke(self, site_id: UUID | None, changes: Iterable[Change] = Change) -> None:
        """Wake those who wait for a site, or all; from any thread."""

        def wake() -> None:
            for site, waiting in self._waiting.items():
                if site_id in (None, site):
                    for ear in waiting:
                        ear.changes.update(changes)
                        ear.woken.set()

        if self._loop is not None:
            with suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(wake)

    def _listen(self) -> None:
        while not self._stopping:
            try:
                self._listen_once()
            except Exception as wrong:  # noqa: BLE001 - without this thread every list would be stale
                log.warning("cannot listen for changes; trying again", extra={"why": type(wrong).__name__})
                time.sleep(AGAIN_S)

    def _listen_once(self) -> None:
        connection = psycopg2.connect(
            self._url, connect_timeout=5, application_name="osteon listener", keepalives=1, keepalives_idle=10,
            keepalives_interval=5, keepalives_count=3,
        )  # fmt: skip
        try:
            connection.set_isolation_level(ISOLATION_LEVEL_AUTOCOMMIT)
            connection.cursor().execute(f"LISTEN {CHANNEL}")
            self._poke(None)  # what changed while nobody listened
            with selectors.DefaultSelector() as sources:
                for source in (connection, self._woken):
                    sources.register(source, selectors.EVENT_READ)
                while not self._stopping:
                    sources.select(HEARTBEAT_S)
                    connection.poll()
                    payloads = {notice.payload for notice in connection.notifies}
                    connection.notifies.clear()
                    for payload in payloads:
                        site, _, more = payload.partition(" ")
                        self._poke(UUID(site), Change if more == REVISED else [Change.WORKLIST])
        finally:
            connection.close()
