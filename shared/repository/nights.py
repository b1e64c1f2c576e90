"""Runs over history, the night's and a shadow bundle's: fed in small portions, stopped by their window, resumed."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, Select, and_, exists, func, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from shared.backlog import LookState, Purpose, Stage
from shared.errors import NotNow
from shared.repository import second_looks
from shared.repository.bundles import active_bundle, bundle_to_change
from shared.repository.portions import MOST, Portion, choose, left_of_count
from shared.repository.reports import NIGHT, SHADOW, report
from shared.study import Priority, StudyStatus
from shared.tables import BacklogRunRow, SecondLookRow, StudyRow

FEEDER_LOCK = 0x05_7E_0A_02
PACE_OVER = timedelta(minutes=1)
OPEN = BacklogRunRow.finished_at.is_(None)
OUT = (LookState.QUEUED, LookState.RUNNING)
LEFTOVERS = (Purpose.FAILED, Purpose.STRANDED)


@dataclass(frozen=True)
class Feeding:
    """How runs are fed."""

    in_flight: int  # studies of one run that are out at a time
    every_s: float  # between two portions: at the pace of the last minute, four times as much may be out
    grace: timedelta  # for a message on its way from the row to the queue and back


def begin_night(session: Session, night: date, now: datetime, bundle: str, hours: float, most: int) -> UUID | None:
    """Open this night's run, or None if it was opened before. It goes on where the last of this bundle stopped."""
    run_id: UUID | None = session.scalar(
        insert(BacklogRunRow)
        .values(
            night=night, started_at=now, ends_at=now + timedelta(hours=hours), bundle=bundle, most=most,
            stage=Stage.LEFTOVERS,
        )
        .on_conflict_do_nothing()
        .returning(BacklogRunRow.id)
    )  # fmt: skip
    if run_id is None:
        return None
    nightly = select(BacklogRunRow).where(BacklogRunRow.purpose == NIGHT, BacklogRunRow.id != run_id)
    for late in session.scalars(nightly.where(OPEN).with_for_update(key_share=True)):
        _account(session, late, now)
        _stop(session, late, "the next night began", now)
        _give_up_account(session, late, now)
        _close(session, late, now)
    before = session.scalar(nightly.order_by(BacklogRunRow.night.desc()).limit(1))
    if before is not None and before.bundle == bundle and before.stage != Stage.EXHAUSTED:
        run = session.get_one(BacklogRunRow, run_id)
        run.cursor_day, run.cursor_probability = before.cursor_day, before.cursor_probability
        run.cursor_study = before.cursor_study
    return run_id


def has_night(session: Session, night: date) -> bool:
    """Whether this night's run was opened."""
    return bool(session.scalar(select(exists().where(BacklogRunRow.night == night))))


def begin_shadow(session: Session, bundle: str, now: datetime, since: date | None, most: int | None) -> UUID:
    """Let a bundle look at history unseen. Raises NotFound, NotNow if it is active or looks already."""
    row = bundle_to_change(session, bundle)
    if row.active:
        raise NotNow(f"bundle {bundle} is the active one; only another one can be a shadow")
    if session.scalar(_shadow_runs(bundle).where(OPEN)) is not None:
        raise NotNow(f"bundle {bundle} is looking at history already; retire it first to begin anew")
    row.shadow = True
    run = BacklogRunRow(
        purpose=SHADOW, started_at=now, bundle=bundle, since=since, most=most, stage=Stage.HISTORY,
    )  # fmt: skip
    session.add(run)
    session.flush()
    return run.id


def retire(session: Session, bundle: str, now: datetime) -> None:
    """Stop a shadow's looking; what it found stays, unseen. Raises NotFound, NotNow if the bundle is no shadow."""
    row = bundle_to_change(session, bundle)
    if not row.shadow:
        raise NotNow(f"bundle {bundle} is no shadow; there is nothing to retire")
    row.shadow = False
    for run in session.scalars(_shadow_runs(bundle).where(OPEN).with_for_update(key_share=True)):
        _stop(session, run, "retired", now)
        if not _out(session, run):
            _close(session, run, now)


def _shadow_runs(bundle: str) -> Select[BacklogRunRow]:
    return select(BacklogRunRow).where(BacklogRunRow.purpose == SHADOW, BacklogRunRow.bundle == bundle)


def any_open(session: Session) -> bool:
    """Whether a run has something out or to do."""
    return bool(session.scalar(select(exists().where(OPEN))))


def feed(
    session: Session, feeding: Feeding, heads: Mapping[Priority, datetime | None], now: datetime
) -> Portion | None:
    """Send each open run's next portion, find its lost messages, end it when it is over. None: another one feeds.

    One round a transaction, with rows in one order: what waits for a lock of ours waits a moment.
    """
    if not session.scalar(text("SELECT pg_try_advisory_xact_lock(:lock)"), {"lock": FEEDER_LOCK}):
        return None
    portion = Portion()
    runs = session.scalars(
        select(BacklogRunRow).where(OPEN).order_by(BacklogRunRow.purpose).with_for_update(key_share=True)
    ).all()
    active = active_bundle(session)
    night_feeds = False
    for run in runs:  # the night's first
        _account(session, run, now)
        if why := _over(run, active.name if active else "", now):
            _stop(session, run, why, now)
        elif not night_feeds:
            room = _room(session, run, feeding, now)
            if room > 0:
                choose(session, run, min(room, MOST), heads, feeding.grace, now, portion)
            night_feeds = run.purpose == NIGHT and not _chosen_all(run)
        if (run.ended_by or _chosen_all(run)) and not _out(session, run):
            _close(session, run, now)
    session.flush()  # what was stopped just now is lost to nobody
    portion.looks += second_looks.lost(session, heads[Priority.BACKLOG], now, feeding.grace)
    return portion


def _over(run: BacklogRunRow, active: str, now: datetime) -> str:
    if run.ended_by:
        return run.ended_by
    if run.purpose == NIGHT and run.bundle != active:
        return "another bundle became active"
    if run.purpose == SHADOW and run.bundle == active:
        return "promoted: the nights go on with what is left"
    if run.ends_at is not None and now >= run.ends_at:
        return "the window closed"
    return ""


def _stop(session: Session, run: BacklogRunRow, why: str, now: datetime) -> None:
    """Send nothing more, and take back what is out and not begun. Messages that are left find nothing to do.

    Failed and stranded studies are not taken back: they stay queued themselves, and the run waits for their answers.
    """
    run.ended_by = why
    # locked in the order in which workers lock them
    looks = session.scalars(
        select(SecondLookRow)
        .where(
            SecondLookRow.run_id == run.id,
            SecondLookRow.purpose.not_in(LEFTOVERS),
            or_(
                SecondLookRow.state == LookState.QUEUED,
                (SecondLookRow.state == LookState.RUNNING) & (SecondLookRow.lease_until < now),
            ),
        )
        .order_by(SecondLookRow.study_id, SecondLookRow.bundle)
        .with_for_update()
    )
    for look in looks:
        look.state, look.sent_at, look.lease_token, look.lease_until = LookState.HELD, None, None, None


def _close(session: Session, run: BacklogRunRow, now: datetime) -> None:
    run.ended_by = run.ended_by or ("history came to its end" if run.stage == Stage.EXHAUSTED else "the night's count")
    session.flush()
    run.finished_at, run.report = now, report(session, run.id)


def _chosen_all(run: BacklogRunRow) -> bool:
    return run.stage == Stage.EXHAUSTED or left_of_count(run) <= 0


def _room(session: Session, run: BacklogRunRow, feeding: Feeding, now: datetime) -> int:
    lately = select(func.count()).where(
        SecondLookRow.run_id == run.id,
        SecondLookRow.state == LookState.DONE,
        SecondLookRow.finished_at > now - PACE_OVER,
    )
    pace = (session.scalar(lately) or 0) / PACE_OVER.total_seconds()
    return max(feeding.in_flight, int(4 * feeding.every_s * pace)) - _out(session, run)


def _out(session: Session, run: BacklogRunRow) -> int:
    query = select(func.count()).where(SecondLookRow.run_id == run.id, SecondLookRow.state.in_(OUT))
    return session.scalar(query) or 0


def _unanswered(run: BacklogRunRow) -> ColumnElement[bool]:
    """Failed and stranded studies of a run whose answer it waits for."""
    return and_(
        SecondLookRow.run_id == run.id,
        SecondLookRow.purpose.in_(LEFTOVERS),
        SecondLookRow.state == LookState.QUEUED,
    )


def _account(session: Session, run: BacklogRunRow, now: datetime) -> None:
    """What became of the failed and stranded studies, which go the way of all studies."""
    became = {StudyStatus.ANALYSED: LookState.DONE, StudyStatus.QUARANTINED: LookState.FAILED}
    for status, state in became.items():
        session.execute(
            update(SecondLookRow)
            .where(_unanswered(run), SecondLookRow.study_id == StudyRow.id, StudyRow.status == status)
            .values(state=state, finished_at=now, new_assessment=StudyRow.assessment, reason=StudyRow.reason)
            .execution_options(synchronize_session=False)
        )


def _give_up_account(session: Session, run: BacklogRunRow, now: datetime) -> None:
    """Failed and stranded studies that have no answer yet are the next run's, or their own queue's."""
    session.execute(
        update(SecondLookRow)
        .where(_unanswered(run))
        .values(state=LookState.OVERTAKEN, finished_at=now, reason="still in its queue when the next night began")
        .execution_options(synchronize_session=False)
    )
