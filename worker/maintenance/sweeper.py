"""Work every few seconds beside the studies: lost messages, late studies, batches of history, complete studies."""

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from uuid import UUID

from shared.db.clock import db_now
from shared.db.engine import Database
from shared.domain.study import Priority
from shared.errors import Locked, OsteonError, Unavailable
from shared.logs import get_logger
from shared.queries import analyses, completeness
from shared.queue.publisher import TaskPublisher
from shared.settings import Settings
from worker.maintenance.backfill import send_batches
from worker.tasks import MessageCount
from worker.watchdog import StalledConsumer, end_process

log = get_logger(__name__)
PROMOTED_SHARE = 0.1  # share of the worker's studies that may come from those that waited too long
BROKER_EMPTIED = (
    "The broker of OSTEON_BROKER_URL was emptied or lost its file, or a worker died with them in hand. "
    "Check that it runs with `appendonly yes` and `maxmemory-policy noeviction`, and that nobody flushes it."
)
CLAIM_GRACE_S = 1.0  # a message that a worker has just taken from its queue is claimed by then
MAX_ROUNDS = 20  # of looks at what is being received, in one sweep
OUTAGE_S = 1.0  # a broker or a Postgres that takes so long to answer hangs, or did


def reconcile(database: Database, publisher: TaskPublisher, grace: timedelta, locked: set[UUID] | None = None) -> int:
    """Send the messages of analyses that are in no queue.

    Args:
        database: with the tables.
        publisher: takes the messages.
        grace: a message that was sent so short a time ago may still be on its way.
        locked: analyses whose rows others had locked at the last look; it is brought up to date. Their messages found
            nothing to do, and no broker lost them. None: not known.

    Returns:
        Number of messages sent.

    Raises:
        Unavailable: Postgres or the broker does not answer.
    """
    locked = set() if locked is None else locked
    with database.transaction() as session:
        now = db_now(session)  # before the look: what is sent from here on is not lost yet
    oldest = publisher.oldest_messages()
    with database.transaction() as session:
        in_no_queue = analyses.any_lost(session, oldest, now, grace)
    if in_no_queue:  # or in a worker's hand: no queue has it then, and its row does not say so yet
        time.sleep(CLAIM_GRACE_S)
    with database.transaction() as session:
        to_send = analyses.resend_lost(session, oldest, now, grace)
    with database.transaction() as session:
        held = analyses.lost_but_locked(session, oldest, now, grace) if in_no_queue else set()
    if lasting := held & locked:  # others are locked for a moment, as by a claim
        log.warning("analyses locked", count=len(lasting), why=Locked.HINT)
    before = set(locked)
    locked.clear()
    locked.update(held)
    if forgotten := sum(one.forgotten and one.analysis_id not in before for one in to_send):
        log.warning("lost messages resent", count=forgotten, why=BROKER_EMPTIED)
    return len(to_send) - _send(database, publisher, to_send)


def promote(database: Database, publisher: TaskPublisher, limits: dict[Priority, timedelta], finished: int) -> int:
    """Move studies up that waited too long, at most PROMOTED_SHARE of what was finished meanwhile.

    Args:
        database: with the tables.
        publisher: takes the messages.
        limits: longest wait in each queue.
        finished: studies that this worker has finished since the last call.

    Returns:
        Number of studies moved.

    Raises:
        Unavailable: Postgres or the broker does not answer.
    """
    with database.transaction() as session:
        to_send = analyses.promote_late(session, limits, db_now(session), max(1, int(finished * PROMOTED_SHARE)))
    _send(database, publisher, to_send)
    return len(to_send)


def complete_studies(database: Database, settings: Settings) -> int:
    """Find studies whose images have all come, or that were waited for long enough.

    Args:
        database: with the tables.
        settings: the quiet time and the longest time.

    Returns:
        Number of studies that are complete now.

    Raises:
        Unavailable: Postgres does not answer.
    """
    quiet, limit = timedelta(seconds=settings.quiet_s), timedelta(seconds=settings.force_complete_s)
    completed, after = 0, None
    for _ in range(MAX_ROUNDS):
        with database.transaction() as session:
            number, after = completeness.complete_studies(session, quiet, limit, after)
        completed += number
        if after is None:
            break
    return completed


def _send(database: Database, publisher: TaskPublisher, to_send: list[analyses.DueMessage]) -> int:
    failed = publisher.send(to_send)
    if failed:
        with database.transaction() as session:
            analyses.mark_not_sent(session, failed)
    return len(failed)


class Sweeper:
    """Calls the functions above and `send_batches` every few seconds; ends the process if its consumer is stuck."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        publisher: TaskPublisher,
        load: MessageCount,
        slots: int,
        end: Callable[[str], None] = end_process,
        beat: Callable[[], None] = lambda: None,
        compare: Callable[[], None] = lambda: None,
        let_go: Callable[[], object] = lambda: None,
    ) -> None:
        """Start the thread.

        Args:
            settings: intervals and limits.
            database: with the tables.
            publisher: takes the messages.
            load: of this worker.
            slots: with so many messages in hand the worker may have to leave those of the backlog.
            end: is called with the reason, when the consumer is stuck.
            beat: is called before each sweep; raises nothing.
            compare: is called after each sweep; raises nothing.
            let_go: removes deleted objects from the store; is called after each sweep, and may raise Unavailable.
        """
        self._beat, self._compare, self._let_go = beat, compare, let_go
        self._settings = settings
        self._every_s, self._grace = settings.reconcile_every_s, timedelta(seconds=settings.resend_grace_s)
        self._limits = {
            Priority.ROUTINE: timedelta(seconds=settings.routine_limit_s),
            Priority.BACKLOG: timedelta(seconds=settings.backlog_limit_s),
        }
        self._database, self._publisher, self._load, self._slots, self._end = database, publisher, load, slots, end
        self._counted = load.taken  # as of the last promotion
        self._locked: set[UUID] = set()
        self._stalled = StalledConsumer(settings.stalled_consumer_s)
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
            for steps in ((self._sweep, self._compare, self._let_go), (self._complete,)):  # which needs no broker
                try:
                    for step in steps:
                        step()
                except OsteonError as error:
                    log.warning("sweep failed", why=str(error))
                except Exception:
                    log.exception("sweep failed")  # and must outlive it

    def _complete(self) -> None:
        if completed := complete_studies(self._database, self._settings):
            log.info("studies completed", count=completed)

    def _sweep(self) -> None:
        waiting = self._waiting()
        free = self._load.in_hand < self._slots
        if self._stalled.check(waiting, self._load.taken, free=free) and not self._stop.is_set():
            self._end("the consumer of messages stands still")
        began = time.monotonic()
        try:
            sent = reconcile(self._database, self._publisher, self._grace, self._locked)
            taken = self._load.taken
            promoted = promote(self._database, self._publisher, self._limits, taken - self._counted)
            self._counted = taken  # even if what follows fails: no study counts for two promotions
            backfill = send_batches(self._settings, self._database, self._publisher)
        finally:
            if time.monotonic() - began > OUTAGE_S + CLAIM_GRACE_S:
                self._stalled.reset()  # Postgres hung, and the studies' threads with it
        if sent or promoted or backfill:
            log.info("sweep finished", sent=sent, promoted=promoted, backfill=backfill)

    def _waiting(self) -> int:
        """Count the messages in all queues. While the broker does not answer, the consumer is not regarded as stuck."""
        asked = time.monotonic()
        try:
            waiting = sum(self._publisher.waiting().values())
        except Unavailable:
            self._stalled.reset()
            raise
        if time.monotonic() - asked > OUTAGE_S:
            self._stalled.reset()
        return waiting
