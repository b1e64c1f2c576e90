"""Measures the order of work: routine before backlog, no study starves, and none is sent again while it waits.

One worker with an instant model that pauses, so that queues stand for as long as they are looked at; the order of work
is the real one: Celery's queues, claims, the sweeper.
"""

import threading
import time
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Self
from uuid import UUID

import redis
from sqlalchemy import text

from benchmarks.control_plane import BUNDLE, INSTANT
from benchmarks.measure import Case, Goal, Result, Say
from benchmarks.workload import Workload
from infra.embedded.live_stack import LiveStack
from shared.domain.study import Priority
from shared.errors import StackError
from shared.queue.publisher import TaskPublisher
from worker.maintenance.sweeper import PROMOTED_SHARE

GOAL = Goal(">=", 1.0)  # all of them
MESSAGES_GOAL, PROMOTED_GOAL = Goal("<=", 1.05), Goal("<=", PROMOTED_SHARE)
BUSY = {"PAUSE_S": "0.1", "OSTEON_WORKER_THREADS": "8", "OSTEON_BATCH_SIZE": "4"}  # at most 80 studies/s
ROUTINE_S, BACKLOG_S = 3.0, 5.0  # limits of the second part
URGENT_AHEAD = 40  # urgent studies that always wait there
RADIOGRAPH = ["0" * 64]  # never fetched
# backlog studies that started although a routine one had been waiting, and still waited a good while later: half a
# second is what claims and messages on their way may take
INVERTED = """
    WITH asked AS (
        SELECT studies.priority, sent_at, started_at FROM studies JOIN analyses ON analyses.id = current_analysis_id
    )
    SELECT count(*) FROM asked b WHERE b.priority = 'backlog' AND b.started_at IS NOT NULL AND EXISTS (
        SELECT 1 FROM asked r WHERE r.priority = 'routine' AND r.sent_at < b.started_at - interval '0.5 s'
        AND coalesce(r.started_at, now()) > b.started_at + interval '0.5 s')
"""
STARTED = """
    SELECT count(*) FROM studies JOIN analyses ON analyses.id = current_analysis_id
    WHERE studies.priority = 'backlog' AND started_at IS NOT NULL
"""
SET_ASIDE = """
    WITH gone AS (
        UPDATE analyses SET state = 'failed', finished_at = now() WHERE finished_at IS NULL RETURNING study_id
    )
    UPDATE studies SET status = 'quarantined' FROM gone WHERE id = study_id
"""
SERVED = """
    SELECT analysed_at, extract(epoch FROM analysed_at - queued_at), studies.priority
    FROM studies JOIN analyses ON analyses.id = current_analysis_id
    WHERE studies.id = ANY(CAST(:ids AS uuid[])) AND status = 'analysed'
"""
FINISHED = "SELECT count(*) FROM studies WHERE analysed_at BETWEEN :since AND :until"


@dataclass(frozen=True)
class Order:
    """Result of a long backlog into which routine studies arrive."""

    started: int  # backlog studies
    inverted: int  # of those, started while a routine one waited
    queued: int  # studies
    messages: int


@dataclass(frozen=True)
class Starvation:
    """Result for studies that waited beyond their limit while urgent ones kept coming."""

    waiting: int  # routine and backlog studies
    served: int  # of those, while urgent ones waited
    finished: int  # studies of all kinds meanwhile
    longest: dict[str, float]  # wait by priority, s
    fewest: int  # urgent messages that waited at any look


def run(quick: bool, say: Say) -> Result:  # noqa: FBT001 - one signature for all
    """Queue a long backlog into which routine studies arrive; then keep an urgent queue that never empties.

    Args:
        quick: 1,200 backlog studies instead of 10,000.
        say: is called with a line of progress.

    Returns:
        Studies served in order, studies served beyond their limits, messages a study.

    Raises:
        StackError: A worker ended, or did not do its studies in time.
    """
    backlog, seconds, routine, late = (1200, 8.0, 100, (20, 4)) if quick else (10_000, 65.0, 600, (200, 40))
    with LiveStack() as live_stack:
        workload = Workload(live_stack)
        try:
            with workload.database.transaction() as session:
                session.execute(text(BUNDLE))
            say(f"{backlog} backlog studies wait, then {routine} routine ones and more of them")
            order = _order(workload, backlog, routine, seconds)
            say(f"urgent ones come without an end, {sum(late)} others wait beyond their limits")
            starving = _starving(workload, *late)
        finally:
            workload.close()
    details: dict[str, Any] = {
        "longest wait, s, by priority": {name: round(wait, 1) for name, wait in starving.longest.items()},
        "limits, s": {"routine": ROUTINE_S, "backlog": BACKLOG_S},
        "fewest urgent studies waiting meanwhile": starving.fewest,
    }
    in_order = order.started - order.inverted
    return Result(
        "fairness",
        "backlog studies that let every routine one go first, and studies beyond their limits that are done though "
        "urgent ones keep coming, to all of them",
        GOAL,
        (
            Case.of("routine before backlog", "studies", [in_order], [order.started]),
            Case.of("served beyond their limits", "studies", [starving.served], [starving.waiting]),
            Case.of(
                f"messages, {order.queued} studies", "messages", [order.messages], [order.queued], goal=MESSAGES_GOAL
            ),
            Case.of("worker's share of those", "studies", [starving.served], [starving.finished], goal=PROMOTED_GOAL),
        ),
        details,
        quick,
    )


def _order(workload: Workload, backlog: int, routine: int, seconds: float) -> Order:
    """Queue the backlog, then routine studies behind it, and one more each second."""
    with redis.Redis.from_url(workload.live_stack.valkey.url) as broker:
        broker.config_resetstat()
        workload.queue(RADIOGRAPH, backlog, "backlog")
        workload.queue(RADIOGRAPH, routine)
        since = time.monotonic()
        worker = workload.live_stack.worker(INSTANT, **BUSY)
        workload.wait(routine // 2)
        while time.monotonic() - since < seconds or workload.done() < routine + 40:
            workload.queue(RADIOGRAPH, 1)
            time.sleep(1)
            if not worker.running or time.monotonic() - since > seconds + 120:
                raise worker.failure(f"has analysed {workload.done()} studies in {seconds + 120:.0f} s")
        with workload.database.transaction() as session:
            inverted, started = (int(session.scalar(text(query)) or 0) for query in (INVERTED, STARTED))
        messages = int(broker.info("commandstats")["cmdstat_lpush"]["calls"])
        worker.stop()
        broker.flushall()
    with workload.database.transaction() as session:
        session.execute(text(SET_ASIDE))
    return Order(started, inverted, workload.queued, messages)


def _starving(workload: Workload, routine: int, backlog: int) -> Starvation:
    limits = {"OSTEON_ROUTINE_LIMIT_S": str(ROUTINE_S), "OSTEON_BACKLOG_LIMIT_S": str(BACKLOG_S)}
    workload.queue(RADIOGRAPH, 2 * URGENT_AHEAD, "urgent")
    worker = workload.live_stack.worker(INSTANT, **BUSY, **limits)
    waiting_before = workload.done()
    while workload.done() == waiting_before:  # it takes seconds to start
        if not worker.running:
            raise worker.failure("ended while starting")
        time.sleep(0.1)
    with Urgent(workload) as urgent:
        late = [*workload.queue(RADIOGRAPH, routine, "routine"), *workload.queue(RADIOGRAPH, backlog, "backlog")]
        since = time.monotonic()
        # the tenth that they may take, and twice as long
        limit_s = BACKLOG_S + 10 + 2 * len(late) / 8
        while len(_served(workload, late)) < len(late) and time.monotonic() - since < limit_s:
            time.sleep(0.5)
            if not worker.running:
                raise worker.failure("ended")
    rows = _served(workload, late)
    longest: dict[str, float] = {}
    for _, wait, priority in rows:
        longest[priority] = max(wait, longest.get(priority, 0.0))
    with workload.database.transaction() as session:
        values = {"since": urgent.since, "until": max((at for at, _, _ in rows), default=urgent.since)}
        finished = session.scalar(text(FINISHED), values) or 0
    return Starvation(len(late), len(rows), max(1, finished), longest, urgent.fewest)


def _served(workload: Workload, ids: list[UUID]) -> list[tuple[datetime, float, str]]:
    """List when each analysed study was done, how long it had waited, and its priority."""
    with workload.database.transaction() as session:
        rows = session.execute(text(SERVED), {"ids": [str(one) for one in ids]})
        return [(at, float(wait), priority) for at, wait, priority in rows]


class Urgent(threading.Thread):
    """Keeps urgent studies waiting during the block; raises at its end what stopped it."""

    def __init__(self, workload: Workload) -> None:
        super().__init__(name="urgent", daemon=True)
        self.fewest = 2 * URGENT_AHEAD
        with workload.database.transaction() as session:
            self.since: datetime = session.scalar(text("SELECT now()"))
        self._workload, self._publisher = workload, TaskPublisher(workload.publisher.app)
        self._wrong: Exception | None = None
        self._stop_now = threading.Event()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_now.set()
        self.join()
        if self._wrong:
            raise StackError("urgent studies could not be sent") from self._wrong

    def run(self) -> None:
        """Add urgent studies where few wait, five times a second."""
        try:
            self._workload.queue(RADIOGRAPH, 2 * URGENT_AHEAD, "urgent")
            while not self._stop_now.wait(0.2):
                waiting = self._publisher.waiting()[Priority.URGENT]
                self.fewest = min(self.fewest, waiting)
                if waiting < 2 * URGENT_AHEAD:
                    self._workload.queue(RADIOGRAPH, URGENT_AHEAD, "urgent")
        except Exception as error:  # noqa: BLE001 - told at the end
            self._wrong = error
