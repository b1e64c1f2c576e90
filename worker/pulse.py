"""A worker's heartbeat, and the history that whichever worker comes first writes once a minute."""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from uuid import uuid4

from shared.errors import OsteonError
from shared.repository import Database, operations, samples, work
from worker.tasks import Load

log = logging.getLogger(__name__)
BEAT_EVERY_S = 5.0
SAMPLE_EVERY_S = 10.0  # so that a minute is written soon after it is over
WORKERS_KEPT_FOR = timedelta(days=30)


class Heart:
    """Tells Postgres that this process lives and what it does. Its troubles are never the caller's."""

    def __init__(self, database: Database, load: Load, *, device: str, threads: int, bundle: Callable[[], str]) -> None:
        """bundle: the name of the one in memory, "" before the first."""
        self._database, self._load, self._bundle = database, load, bundle
        self._id, self._device, self._threads = uuid4(), device, threads
        self._beat_at = self._sample_at = float("-inf")
        self._counter: threading.Thread | None = None

    def beat(self) -> None:
        """To be called every few seconds, from one thread."""
        now = time.monotonic()
        if now - self._beat_at >= BEAT_EVERY_S:
            self._beat_at = now
            self._quietly(self._say)
        if now - self._sample_at >= SAMPLE_EVERY_S:
            self._sample_at = now
            self._quietly(self._sample)

    def stop(self) -> None:
        """Say that this process ends as it should."""
        self._quietly(lambda: self._say(stopped=True))

    def _say(self, *, stopped: bool = False) -> None:
        pulse = operations.Pulse(
            self._id,
            socket.gethostname(),
            os.getpid(),
            self._device,
            self._bundle(),
            self._threads,
            self._load.taken,
            self._load.in_hand,
            stopped,
        )
        with self._database.transaction() as session:
            operations.beat(session, pulse)

    def _sample(self) -> None:
        with self._database.transaction() as session:
            now = work.clock(session)
            behind = samples.sample(session, now)
        if behind:
            self._sample_at = float("-inf")  # go on at the next beat
            return
        if self._counter is None or not self._counter.is_alive():
            # a count reads every image's row, and the sweeper, whose thread this is, must not wait for it
            self._counter = threading.Thread(
                target=self._quietly, args=(self._count, "what is stored was not counted"), name="counter", daemon=True
            )
            self._counter.start()

    def _count(self) -> None:
        with self._database.transaction() as session:
            if not samples.count_stored(session):  # once an hour
                return
        with self._database.transaction() as session:
            now = work.clock(session)
            samples.forget(session, now - samples.KEPT_FOR)
            samples.forget_receipts(session, now - samples.RECEIPTS_KEPT_FOR)
            operations.forget_workers(session, now - WORKERS_KEPT_FOR)

    @staticmethod
    def _quietly(step: Callable[[], None], failed: str = "no heartbeat") -> None:
        try:
            step()
        except OsteonError as wrong:
            log.warning(failed, extra={"why": str(wrong)})
        except Exception:
            log.exception(failed)  # and the sweeper must outlive it
