"""Runs over history, backfill and shadow: sent in small batches, stopped by their window, resumed."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from uuid import UUID

from sqlalchemy import Select, exists, func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from shared.db.tables import AnalysisRow, BackfillRunRow
from shared.domain.analysis import OPEN, AnalysisState
from shared.domain.backfill import RunEnd, Stage
from shared.domain.study import Priority
from shared.errors import InvalidState
from shared.queries import analyses
from shared.queries.backfill_batches import MAX_BATCH_STUDIES, Batch, fill_batch, studies_left
from shared.queries.backfill_reports import BACKFILL, SHADOW, report
from shared.queries.models import active_bundle, lock_bundle

BATCH_LOCK = 0x05_7E_0A_02
PACE_WINDOW = timedelta(minutes=1)
UNFINISHED = BackfillRunRow.finished_at.is_(None)


@dataclass(frozen=True)
class Pacing:
    """How much of a run is sent at a time."""

    in_flight: int  # studies of one run that are out at a time
    every_s: float  # between two batches: at the pace of the last minute, four times as much may be out
    grace: timedelta  # for a message on its way from the row to the queue and back


def open_backfill_run(
    session: Session, day: date, now: datetime, bundle: str, hours: float, max_studies: int
) -> UUID | None:
    """Open this day's run. It goes on where the last run of this bundle stopped.

    Args:
        session: the caller's transaction.
        day: the date, in the hospital's time zone.
        now: Postgres' time.
        bundle: that analyses.
        hours: length of the window.
        max_studies: how many studies the run may choose.

    Returns:
        The run's id; None if it was opened before.
    """
    run_id: UUID | None = session.scalar(
        insert(BackfillRunRow)
        .values(
            day=day, started_at=now, ends_at=now + timedelta(hours=hours), bundle=bundle, most=max_studies,
            stage=Stage.LEFTOVERS,
        )
        .on_conflict_do_nothing()
        .returning(BackfillRunRow.id)
    )  # fmt: skip
    if run_id is None:
        return None
    backfills = select(BackfillRunRow).where(BackfillRunRow.purpose == BACKFILL, BackfillRunRow.id != run_id)
    for late in session.scalars(backfills.where(UNFINISHED).with_for_update(key_share=True)):
        _stop_run(session, late, RunEnd.NEXT_RUN, now)
        _close_run(session, late, now)
    before = session.scalar(backfills.order_by(BackfillRunRow.day.desc()).limit(1))
    if before is not None and before.bundle == bundle and before.stage != Stage.EXHAUSTED:
        run = session.get_one(BackfillRunRow, run_id)
        run.cursor_day, run.cursor_probability = before.cursor_day, before.cursor_probability
        run.cursor_study = before.cursor_study
    return run_id


def has_backfill(session: Session, day: date) -> bool:
    """Check whether a day's run was opened.

    Args:
        session: the caller's transaction.
        day: the date, in the hospital's time zone.

    Returns:
        Whether it was.
    """
    return bool(session.scalar(select(exists().where(BackfillRunRow.day == day))))


def open_shadow_run(session: Session, bundle: str, now: datetime, since: date | None, max_studies: int | None) -> UUID:
    """Make a bundle a shadow: it analyses history, and no reader sees its findings.

    Args:
        session: the caller's transaction.
        bundle: its name.
        now: Postgres' time.
        since: only studies that arrived on this day (UTC) or later; None: all.
        max_studies: how many studies; None: all.

    Returns:
        The run's id.

    Raises:
        NotFound: there is no such bundle.
        InvalidState: it is active, or a shadow already.
    """
    row = lock_bundle(session, bundle)
    if row.active:
        raise InvalidState(f"bundle {bundle} is the active one; only another one can be a shadow")
    if session.scalar(_shadow_runs(bundle).where(UNFINISHED)) is not None:
        raise InvalidState(f"bundle {bundle} is looking at history already; retire it first to begin again")
    row.shadow = True
    run = BackfillRunRow(
        purpose=SHADOW, started_at=now, bundle=bundle, since=since, most=max_studies, stage=Stage.HISTORY,
    )  # fmt: skip
    session.add(run)
    session.flush()
    return run.id


def retire_shadow(session: Session, bundle: str, now: datetime) -> None:
    """End a bundle's time as a shadow; its findings stay, unseen.

    Args:
        session: the caller's transaction.
        bundle: its name.
        now: Postgres' time.

    Raises:
        NotFound: there is no such bundle.
        InvalidState: it is no shadow.
    """
    row = lock_bundle(session, bundle)
    if not row.shadow:
        raise InvalidState(f"bundle {bundle} is no shadow; there is nothing to retire")
    row.shadow = False
    for run in session.scalars(_shadow_runs(bundle).where(UNFINISHED).with_for_update(key_share=True)):
        _stop_run(session, run, RunEnd.RETIRED, now)
        if not _in_flight(session, run):
            _close_run(session, run, now)


def _shadow_runs(bundle: str) -> Select[BackfillRunRow]:
    return select(BackfillRunRow).where(BackfillRunRow.purpose == SHADOW, BackfillRunRow.bundle == bundle)


def any_run_open(session: Session) -> bool:
    """Whether a run has something out or to do."""
    return bool(session.scalar(select(exists().where(UNFINISHED))))


def next_batch(
    session: Session, pacing: Pacing, oldest: Mapping[Priority, datetime | None], now: datetime
) -> Batch | None:
    """Send each open run's next batch, and end it when it is over.

    One round a transaction, with rows locked in one order: other transactions wait only for a moment.

    Args:
        session: the caller's transaction.
        pacing: how much is sent at a time.
        oldest: when the oldest waiting message of each queue was sent; None: the queue is empty.
        now: Postgres' time.

    Returns:
        What to send after the commit; None if another worker does this just now.
    """
    if not session.scalar(text("SELECT pg_try_advisory_xact_lock(:lock)"), {"lock": BATCH_LOCK}):
        return None
    batch = Batch()
    runs = session.scalars(
        select(BackfillRunRow).where(UNFINISHED).order_by(BackfillRunRow.purpose).with_for_update(key_share=True)
    ).all()
    active = active_bundle(session)
    backfill_sends = False
    for run in runs:  # the backfill run first
        if why := _run_end(run, active.name if active else "", now):
            _stop_run(session, run, why, now)
        elif not backfill_sends:
            free = _free_slots(session, run, pacing, now)
            if free > 0:
                fill_batch(session, run, min(free, MAX_BATCH_STUDIES), oldest, pacing.grace, now, batch)
            backfill_sends = run.purpose == BACKFILL and not _has_chosen_all(run)
        if (run.ended_by or _has_chosen_all(run)) and not _in_flight(session, run):
            _close_run(session, run, now)
    return batch


def _run_end(run: BackfillRunRow, active: str, now: datetime) -> RunEnd | None:
    if run.ended_by:
        return RunEnd(run.ended_by)
    if run.purpose == BACKFILL and run.bundle != active:
        return RunEnd.OTHER_BUNDLE
    if run.purpose == SHADOW and run.bundle == active:
        return RunEnd.PROMOTED  # backfill runs go on with what is left
    if run.ends_at is not None and now >= run.ends_at:
        return RunEnd.WINDOW_CLOSED
    return None


def _stop_run(session: Session, run: BackfillRunRow, why: RunEnd, now: datetime) -> None:
    """Send nothing more, and take back what is out and not begun. Messages that are left find nothing to do.

    What is locked just now is passed by: the next round comes to it. Failed and stranded studies are not taken back:
    they stay queued themselves, and the run waits for their results.
    """
    run.ended_by = why
    analyses.pause_unbegun(session, run.id, now)


def _close_run(session: Session, run: BackfillRunRow, now: datetime) -> None:
    run.ended_by = run.ended_by or (RunEnd.HISTORY_ENDED if run.stage == Stage.EXHAUSTED else RunEnd.COUNT_REACHED)
    session.flush()
    run.finished_at, run.report = now, report(session, run.id)


def _has_chosen_all(run: BackfillRunRow) -> bool:
    return run.stage == Stage.EXHAUSTED or studies_left(run) <= 0


def _free_slots(session: Session, run: BackfillRunRow, pacing: Pacing, now: datetime) -> int:
    lately = select(func.count()).where(
        AnalysisRow.run_id == run.id,
        AnalysisRow.state == AnalysisState.DONE,
        AnalysisRow.finished_at > now - PACE_WINDOW,
    )
    pace = (session.scalar(lately) or 0) / PACE_WINDOW.total_seconds()
    return max(pacing.in_flight, int(4 * pacing.every_s * pace)) - _in_flight(session, run)


def _in_flight(session: Session, run: BackfillRunRow) -> int:
    query = select(func.count()).where(AnalysisRow.run_id == run.id, AnalysisRow.state.in_(OPEN))
    return session.scalar(query) or 0
