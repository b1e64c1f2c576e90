"""A worker's heartbeat, and statistics of each minute, which the first worker to come writes."""

import os
import socket
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from uuid import uuid4

from shared.db.clock import db_now
from shared.db.engine import Database
from shared.errors import OsteonError
from shared.logs import get_logger
from shared.queries import operations, statistics
from worker.tasks import MessageCount

log = get_logger(__name__)
BEAT_EVERY_S = 5.0
STATISTICS_EVERY_S = 10.0  # so that a minute is written soon after it is over
WORKERS_KEPT_FOR = timedelta(days=30)


class HeartbeatWriter:
    """Writes to Postgres that this process lives and what it does. Its errors are logged, never raised."""

    def __init__(
        self, database: Database, load: MessageCount, *, device: str, threads: int, bundle: Callable[[], str]
    ) -> None:
        """Prepare; `beat` writes.

        Args:
            database: with the tables.
            load: of this worker.
            device: that the model runs on.
            threads: of this worker.
            bundle: gives the name of the one in memory, "" before the first.
        """
        self._database, self._load, self._bundle = database, load, bundle
        self._id, self._device, self._threads = uuid4(), device, threads
        self._beat_at = self._statistics_at = float("-inf")
        self._counter: threading.Thread | None = None

    def beat(self) -> None:
        """Write what is due; to be called every few seconds, from one thread."""
        now = time.monotonic()
        if now - self._beat_at >= BEAT_EVERY_S:
            self._beat_at = now
            self._log_errors_of(self._write_heartbeat, "heartbeat")
        if now - self._statistics_at >= STATISTICS_EVERY_S:
            self._statistics_at = now
            self._log_errors_of(self._write_statistics, "statistics")

    def stop(self) -> None:
        """Write that this process ends as it should."""
        self._log_errors_of(lambda: self._write_heartbeat(stopped=True), "heartbeat")

    def _write_heartbeat(self, *, stopped: bool = False) -> None:
        heartbeat = operations.Heartbeat(
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
            operations.write_heartbeat(session, heartbeat)

    def _write_statistics(self) -> None:
        with self._database.transaction() as session:
            now = db_now(session)
            behind = statistics.write_statistics(session, now)
        if behind:
            self._statistics_at = float("-inf")  # go on at the next beat
            return
        if self._counter is None or not self._counter.is_alive():
            # a count reads every image's row, and the sweeper, whose thread this is, must not wait for it
            self._counter = threading.Thread(
                target=self._log_errors_of, args=(self._count, "count"), name="counter", daemon=True
            )
            self._counter.start()

    def _count(self) -> None:
        with self._database.transaction() as session:
            if not statistics.count_stored(session):  # once an hour
                return
        with self._database.transaction() as session:
            now = db_now(session)
            statistics.delete_old_statistics(session, now - statistics.KEPT_FOR)
            statistics.delete_old_receipts(session, now - statistics.RECEIPTS_KEPT_FOR)
            operations.forget_workers(session, now - WORKERS_KEPT_FOR)

    @staticmethod
    def _log_errors_of(step: Callable[[], None], name: str) -> None:
        try:
            step()
        except OsteonError as error:
            log.warning("heartbeat step failed", step=name, why=str(error))
        except Exception:
            log.exception("heartbeat step failed", step=name)  # and the sweeper must outlive it
