"""What runs beside the studies, every few seconds: the lost are sent again, the late moved up, runs fed."""

import logging
import threading
import time
from collections.abc import Callable
from datetime import timedelta

from shared.errors import OsteonError, Unavailable
from shared.jobs import Doorbell
from shared.repository import Database, work
from shared.settings import Settings
from shared.study import Priority
from worker.nights import feed
from worker.tasks import Load
from worker.watchdog import Standstill, end_process

log = logging.getLogger(__name__)
PROMOTED = 0.1  # share of the worker's studies that may come from those that waited too long
FORGETFUL = (
    "The broker of OSTEON_BROKER_URL was emptied or lost its file, or a worker died with them in hand. "
    "Check that it runs with `appendonly yes` and `maxmemory-policy noeviction`, and that nobody flushes it."
)
BEGUN_S = 1.0  # a message that a worker has just taken from its queue is claimed by then
SILENCE_S = 1.0  # a broker or a Postgres that takes so long to answer hangs, or did


def reconcile(database: Database, doorbell: Doorbell, grace: timedelta) -> int:
    """Send what stands in Postgres and is nowhere else; returns how many messages left. Raises Unavailable."""
    with database.transaction() as session:
        now = work.clock(session)  # before the look: what is sent from here on is not lost yet
    heads = doorbell.heads()
    with database.transaction() as session:
        in_no_queue = work.any_forgotten(session, heads, now, grace)
    if in_no_queue:  # or in a worker's hand: no queue has it then, and its row does not say so yet
        time.sleep(BEGUN_S)
    with database.transaction() as session:
        to_send = work.lost(session, heads, now, grace)
    if forgotten := sum(one.forgotten for one in to_send):
        log.warning("messages were lost and are sent again", extra={"count": forgotten, "why": FORGETFUL})
    return len(to_send) - _ring(database, doorbell, to_send)


def promote(database: Database, doorbell: Doorbell, limits: dict[Priority, timedelta], finished: int) -> int:
    """Move those up that waited too long, at most PROMOTED of what was finished meanwhile. Raises Unavailable."""
    with database.transaction() as session:
        to_send = work.promote(session, limits, work.clock(session), max(1, int(finished * PROMOTED)))
    _ring(database, doorbell, to_send)
    return len(to_send)


def _ring(database: Database, doorbell: Doorbell, to_send: list[work.ToSend]) -> int:
    failed = doorbell.ring(to_send)
    if failed:
        with database.transaction() as session:
            work.sending_failed(session, failed)
    return len(failed)


class Sweeper:
    """What a worker does every few seconds beside its studies: reconcile, promote, feed, and see whether it is deaf."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        doorbell: Doorbell,
        load: Load,
        places: int,
        end: Callable[[str], None] = end_process,
        beat: Callable[[], None] = lambda: None,
        compare: Callable[[], None] = lambda: None,
    ) -> None:
        """places: with so many messages in hand it may have to leave the backlog's.

        end: told why, when its consumer stands still.
        beat: called before each sweep; compare: after each. Both raise nothing.
        """
        self._beat, self._compare = beat, compare
        self._settings = settings
        self._every_s, self._grace = settings.reconcile_every_s, timedelta(seconds=settings.resend_grace_s)
        self._limits = {
            Priority.ROUTINE: timedelta(seconds=settings.routine_limit_s),
            Priority.BACKLOG: timedelta(seconds=settings.backlog_limit_s),
        }
        self._database, self._doorbell, self._load, self._places, self._end = database, doorbell, load, places, end
        self._counted = load.taken  # as of the last promotion
        self._standstill = Standstill(settings.standstill_s)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sweeper", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Sweep no more once the sweep under way is done; does not wait for it."""
        self._stop.set()

    def close(self) -> None:
        """Stop, and wait for the sweep under way."""
        self.stop()
        self._thread.join()

    def _run(self) -> None:
        self._beat()
        while not self._stop.wait(self._every_s):
            self._beat()
            try:
                self._sweep()
                self._compare()
            except OsteonError as wrong:
                log.warning("could not reconcile", extra={"why": str(wrong)})
            except Exception:
                log.exception("the sweeper met something unknown")  # and must outlive it

    def _sweep(self) -> None:
        waiting = self._waiting()
        free = self._load.in_hand < self._places
        if self._standstill.look(waiting, self._load.taken, free=free) and not self._stop.is_set():
            self._end("the consumer of messages stands still")
        began = time.monotonic()
        try:
            sent = reconcile(self._database, self._doorbell, self._grace)
            taken = self._load.taken
            promoted = promote(self._database, self._doorbell, self._limits, taken - self._counted)
            self._counted = taken  # even if what follows fails: no study counts for two promotions
            fed = feed(self._settings, self._database, self._doorbell)
        finally:
            if time.monotonic() - began > SILENCE_S + BEGUN_S:
                self._standstill.start_over()  # Postgres hung, and the studies' threads with it
        if sent or promoted or fed:
            log.info("swept", extra={"sent": sent, "promoted": promoted, "fed": fed})

    def _waiting(self) -> int:
        """Messages in all queues. For the time in which the broker gives none the consumer is not to blame."""
        asked = time.monotonic()
        try:
            waiting = sum(self._doorbell.waiting().values())
        except Unavailable:
            self._standstill.start_over()
            raise
        if time.monotonic() - asked > SILENCE_S:
            self._standstill.start_over()
        return waiting
