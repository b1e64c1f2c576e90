"""The nightly run: one a night, over what failed, was stranded, or is outdated."""

from collections.abc import Sequence
from datetime import date, datetime, timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, func, or_, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from shared.backlog import BacklogRun
from shared.repository.work import DIED
from shared.study import Priority, StudyStatus, may_become
from shared.tables import BacklogRunRow, InstanceRow, StudyRow


def begin_night(session: Session, night: date, now: datetime, bundle: str) -> UUID | None:
    """Open this night's run, or None if it was opened before."""
    return session.scalar(
        insert(BacklogRunRow)
        .values(night=night, started_at=now, bundle=bundle)
        .on_conflict_do_nothing()
        .returning(BacklogRunRow.id)
    )


def gather(session: Session, run_id: UUID, bundle: str, stranded_before: datetime, most: int) -> list[UUID]:
    """Put up to `most` studies on the backlog queue and count them in the run; returns their ids, to be sent.

    Failed ones are quarantined studies of which images without an error of their own may have healed.
    """
    run = session.get_one(BacklogRunRow, run_id, with_for_update=True)
    chosen: list[UUID] = []
    # a study that killed its workers would do so every night, with its neighbours: it is left to people
    failed = (StudyRow.status == StudyStatus.QUARANTINED) & ~StudyRow.reason.contains(DIED, autoescape=True)
    # an image that can never be analysed does not become readable overnight
    healable = select(InstanceRow.study_id).where(InstanceRow.error_reason == "")
    stranded = (StudyRow.status == StudyStatus.QUEUED) & or_(
        StudyRow.sent_at < stranded_before, StudyRow.sent_at.is_(None) & (StudyRow.received_at < stranded_before)
    )
    outdated = (StudyRow.status == StudyStatus.ANALYSED) & (StudyRow.bundle != bundle)
    # stranded ones first: the others become queued here, and would count as stranded too
    run.stranded = _requeue(session, stranded, most - len(chosen), chosen)
    run.failed = _requeue(session, failed & StudyRow.id.in_(healable), most - len(chosen), chosen)
    run.outdated = _requeue(session, outdated, most - len(chosen), chosen)
    return chosen


def _requeue(session: Session, where: ColumnElement[bool], most: int, chosen: list[UUID]) -> int:
    rows = session.scalars(
        select(StudyRow)
        .where(where)
        .order_by(StudyRow.received_at.desc())
        .limit(most)
        .with_for_update(skip_locked=True)
    ).all()
    for row in rows:
        if may_become(StudyStatus(row.status), StudyStatus.QUEUED):
            row.status = StudyStatus.QUEUED
            row.queue, row.queued_at = Priority.BACKLOG, func.now()
        # a stranded study keeps its queue: it is late, not unimportant
        row.attempts, row.sent_at, row.not_before = 0, None, None
        chosen.append(row.id)
    return len(rows)


def end_night(session: Session, run_id: UUID, now: datetime) -> None:
    """Close the run."""
    session.get_one(BacklogRunRow, run_id).finished_at = now


def nights(session: Session, limit: int = 30) -> Sequence[BacklogRun]:
    """The latest runs, newest first."""
    rows = session.scalars(select(BacklogRunRow).order_by(BacklogRunRow.night.desc()).limit(limit))
    return [
        BacklogRun(r.id, r.night, r.started_at, r.finished_at, r.failed, r.stranded, r.outdated, r.bundle) for r in rows
    ]


STRANDED_AFTER = timedelta(hours=6)
