"""The backfill run: history is sent in small batches, so that live work goes before it at any time."""

from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy.orm import Session

from shared.db.clock import db_now
from shared.db.engine import Database
from shared.domain.backfill import day_of, window_began
from shared.domain.security import EventKind, Subject, System
from shared.logs import get_logger
from shared.queries import analyses, backfill
from shared.queries.audit import Target, record
from shared.queries.backfill_batches import Batch
from shared.queries.models import active_bundle, any_active_before
from shared.queue.publisher import TaskPublisher
from shared.settings import Settings

log = get_logger(__name__)
MAX_ROUNDS = 16  # transactions a sweep, where studies are merely switched and leave their place at once


def start_run(
    settings: Settings, database: Database, publisher: TaskPublisher, now: datetime | None = None
) -> int | None:
    """Open tonight's run and send its first batch.

    Args:
        settings: hour and size of the run.
        database: with the tables.
        publisher: takes the messages.
        now: for tests; None, and in service always: Postgres' time.

    Returns:
        Number of messages sent; None if the run was opened before, or no bundle is active.

    Raises:
        Unavailable: Postgres or the broker does not answer.
    """
    with database.transaction() as session:
        at = now or db_now(session)
        active = active_bundle(session)
        if active is None:
            return None
        day = day_of(at, settings.backfill_timezone)
        hours, max_studies = settings.backfill_hours, settings.backfill_max_studies
        run = backfill.open_backfill_run(session, day, at, active.name, hours, max_studies)
        if run is None:
            return None
        _note(session, System.BEAT, run, active.name, max_studies)
    log.info("backfill run started", day=str(day), bundle=active.name, by=System.BEAT)
    return send_batches(settings, database, publisher, now)


def send_batches(settings: Settings, database: Database, publisher: TaskPublisher, now: datetime | None = None) -> int:
    """Send the next batch of every open run. Any number of workers may call it.

    A run whose message was lost is opened here.

    Args:
        settings: hour and size of the run.
        database: with the tables.
        publisher: takes the messages.
        now: for tests; None, and in service always: Postgres' time.

    Returns:
        Number of messages sent.

    Raises:
        Unavailable: Postgres or the broker does not answer.
    """
    _open_missed(settings, database, now)
    pacing = backfill.Pacing(
        settings.backfill_in_flight, settings.reconcile_every_s, timedelta(seconds=settings.resend_grace_s)
    )
    left = 0
    for _ in range(MAX_ROUNDS):
        with database.transaction() as session:
            if not backfill.any_run_open(session):
                break
            at = now or db_now(session)  # before the look: what is sent from here on is not lost yet
        oldest = publisher.oldest_messages()
        with database.transaction() as session:
            batch = backfill.next_batch(session, pacing, oldest, at)
        if batch is None:
            break
        left += _send(database, publisher, batch)
        if not batch.again:
            break
    return left


def _open_missed(settings: Settings, database: Database, now: datetime | None) -> None:
    """Open the window's run if nobody did: the message of beat only notifies.

    Not where no bundle was active before the window: such a system is new, and has no history to look at.
    """
    with database.transaction() as session:
        at = now or db_now(session)
        began = window_began(at, settings.backfill_timezone, settings.backfill_hour)
        ends, day = began + timedelta(hours=settings.backfill_hours), day_of(began, settings.backfill_timezone)
        if at >= ends or backfill.has_backfill(session, day):
            return
        active = active_bundle(session)
        if active is None or not any_active_before(session, began):
            return
        hours = (ends - at) / timedelta(hours=1)
        max_studies = settings.backfill_max_studies
        opened = backfill.open_backfill_run(session, day, at, active.name, hours, max_studies)
        if opened is not None:
            _note(session, System.SWEEPER, opened, active.name, max_studies)
    if opened is not None:
        log.info("backfill run started", day=str(day), bundle=active.name, by=System.SWEEPER)


def _note(session: Session, actor: System, run: UUID, model: str, max_studies: int) -> None:
    after = {"model": model, "studies at most": max_studies}
    record(session, EventKind.RUN_BEGUN, actor, about=Target(Subject.RUN, run), everywhere=True, after=after)


def _send(database: Database, publisher: TaskPublisher, batch: Batch) -> int:
    failed = publisher.send(batch.to_send)
    if failed:
        with database.transaction() as session:
            analyses.mark_not_sent(session, failed)
    return len(batch.to_send) - len(failed)
