"""Who is served when: routine before backlog, nobody never, and no study rung for again and again while it waits.

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
from benchmarks.line import Line
from benchmarks.measure import Case, Goal, Result, Say
from benchmarks.plant import Plant
from shared.errors import StackError
from shared.jobs import Doorbell
from shared.study import Priority
from worker.sweeps import PROMOTED

GOAL = Goal(">=", 1.0)  # all of them
MESSAGES, SHARE = Goal("<=", 1.05), Goal("<=", PROMOTED)
BUSY = {"PAUSE_S": "0.1", "OSTEON_WORKER_THREADS": "8", "OSTEON_BATCH_SIZE": "4"}  # at most 80 studies/s
ROUTINE_S, BACKLOG_S = 3.0, 5.0  # limits of the second part
URGENT_AHEAD = 40  # urgent studies that always wait there
FILM = ["0" * 64]  # never fetched
# backlog studies that started although a routine one had been waiting, and still waited a good while later: half a
# second is what claims and messages on their way may take
INVERTED = """
    SELECT count(*) FROM studies b WHERE b.priority = 'backlog' AND b.started_at IS NOT NULL AND EXISTS (
        SELECT 1 FROM studies r WHERE r.priority = 'routine' AND r.sent_at < b.started_at - interval '0.5 s'
        AND coalesce(r.started_at, now()) > b.started_at + interval '0.5 s')
"""
STARTED = "SELECT count(*) FROM studies WHERE priority = 'backlog' AND started_at IS NOT NULL"
SET_ASIDE = "UPDATE studies SET status = 'quarantined' WHERE status <> 'analysed'"
SERVED = """
    SELECT analysed_at, extract(epoch FROM analysed_at - queued_at), priority FROM studies
    WHERE id = ANY(CAST(:ids AS uuid[])) AND status = 'analysed'
"""
FINISHED = "SELECT count(*) FROM studies WHERE analysed_at BETWEEN :since AND :until"


@dataclass(frozen=True)
class Order:
    """What a long backlog with routine studies came to."""

    started: int  # backlog studies
    inverted: int  # of those, started while a routine one waited
    queued: int  # studies
    messages: int


@dataclass(frozen=True)
class Starving:
    """What became of studies beyond their limit while urgent ones kept coming."""

    waiting: int  # routine and backlog studies
    served: int  # of those, while urgent ones waited
    finished: int  # studies of all kinds meanwhile
    longest: dict[str, float]  # wait by priority, s
    fewest: int  # urgent messages that waited at any look


def run(quick: bool, say: Say) -> Result:  # noqa: FBT001 - one signature for all
    """First a long backlog into which routine studies arrive; then an urgent queue that never empties."""
    backlog, seconds, routine, late = (1200, 8.0, 100, (20, 4)) if quick else (10_000, 65.0, 600, (200, 40))
    with Plant() as plant:
        line = Line(plant)
        try:
            with line.database.transaction() as session:
                session.execute(text(BUNDLE))
            say(f"{backlog} backlog studies wait, then {routine} routine ones and more of them")
            order = _order(line, backlog, routine, seconds)
            say(f"urgent ones come without an end, {sum(late)} others wait beyond their limits")
            starving = _starving(line, *late)
        finally:
            line.close()
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
            Case.of(f"messages, {order.queued} studies", "messages", [order.messages], [order.queued], goal=MESSAGES),
            Case.of("worker's share of those", "studies", [starving.served], [starving.finished], goal=SHARE),
        ),
        details,
        quick,
    )


def _order(line: Line, backlog: int, routine: int, seconds: float) -> Order:
    """The backlog stands first; routine studies stand behind it, and arrive one a second."""
    with redis.Redis.from_url(line.plant.valkey.url) as broker:
        broker.config_resetstat()
        line.queue(FILM, backlog, "backlog")
        line.queue(FILM, routine)
        since = time.monotonic()
        worker = line.plant.worker(INSTANT, **BUSY)
        line.wait(routine // 2)
        while time.monotonic() - since < seconds or line.done() < routine + 40:
            line.queue(FILM, 1)
            time.sleep(1)
            if not worker.running or time.monotonic() - since > seconds + 120:
                raise worker.failure(f"has analysed {line.done()} studies in {seconds + 120:.0f} s")
        with line.database.transaction() as session:
            inverted, started = (int(session.scalar(text(query)) or 0) for query in (INVERTED, STARTED))
        messages = int(broker.info("commandstats")["cmdstat_lpush"]["calls"])
        worker.stop()
        broker.flushall()
    with line.database.transaction() as session:
        session.execute(text(SET_ASIDE))
    return Order(started, inverted, line.queued, messages)


def _starving(line: Line, routine: int, backlog: int) -> Starving:
    limits = {"OSTEON_ROUTINE_LIMIT_S": str(ROUTINE_S), "OSTEON_BACKLOG_LIMIT_S": str(BACKLOG_S)}
    line.queue(FILM, 2 * URGENT_AHEAD, "urgent")
    worker = line.plant.worker(INSTANT, **BUSY, **limits)
    waiting_before = line.done()
    while line.done() == waiting_before:  # it takes seconds to start
        if not worker.running:
            raise worker.failure("ended while starting")
        time.sleep(0.1)
    with Urgent(line) as urgent:
        late = [*line.queue(FILM, routine, "routine"), *line.queue(FILM, backlog, "backlog")]
        since = time.monotonic()
        # the tenth that they may take, and twice as long
        limit_s = BACKLOG_S + 10 + 2 * len(late) / 8
        while len(_served(line, late)) < len(late) and time.monotonic() - since < limit_s:
            time.sleep(0.5)
            if not worker.running:
                raise worker.failure("ended")
    rows = _served(line, late)
    longest: dict[str, float] = {}
    for _, wait, priority in rows:
        longest[priority] = max(wait, longest.get(priority, 0.0))
    with line.database.transaction() as session:
        values = {"since": urgent.since, "until": max((at for at, _, _ in rows), default=urgent.since)}
        finished = session.scalar(text(FINISHED), values) or 0
    return Starving(len(late), len(rows), max(1, finished), longest, urgent.fewest)


def _served(line: Line, ids: list[UUID]) -> list[tuple[datetime, float, str]]:
    """When each of those that are analysed was, how long it had waited, and its priority."""
    with line.database.transaction() as session:
        rows = session.execute(text(SERVED), {"ids": [str(one) for one in ids]})
        return [(at, float(wait), priority) for at, wait, priority in rows]


class Urgent(threading.Thread):
    """Keeps urgent studies waiting for as long as the block lasts. Raises what stopped it, at the block's end."""

    def __init__(self, line: Line) -> None:
        super().__init__(name="urgent", daemon=True)
        self.fewest = 2 * URGENT_AHEAD
        with line.database.transaction() as session:
            self.since: datetime = session.scalar(text("SELECT now()"))
        self._line, self._doorbell = line, Doorbell(line.doorbell.app)
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
        """Look five times a second."""
        try:
            self._line.queue(FILM, 2 * URGENT_AHEAD, "urgent")
            while not self._stop_now.wait(0.2):
                waiting = self._doorbell.waiting()[Priority.URGENT]
                self.fewest = min(self.fewest, waiting)
                if waiting < 2 * URGENT_AHEAD:
                    self._line.queue(FILM, URGENT_AHEAD, "urgent")
        except Exception as wrong:  # noqa: BLE001 - told at the end
            self._wrong = wrong
