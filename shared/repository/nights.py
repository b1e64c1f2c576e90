"""Runs over history, the night's and a shadow bundle's: fed in small portions, stopped by their window, resumed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, Select, exists, func, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from shared.backlog import LookState, Purpose, Stage
from shared.errors import NotNow
from shared.repository import second_looks
from shared.repository.bundles import active_bundle, bundle_to_change
from shared.repository.history import outdated
from shared.repository.reports import NIGHT, SHADOW, report
from shared.repository.work import DIED, ToSend, unanswered
from shared.study import Priority, StudyStatus, may_become
from shared.tables import BacklogRunRow, InstanceRow, SecondLookRow, StudyRow

FEEDER_LOCK = 0x05_7E_0A_02
STRANDED_AFTER = timedelta(hours=6)
PACE_OVER = timedelta(minutes=1)
PORTION = 1000  # rows a transaction
OPEN = BacklogRunRow.finished_at.is_(None)
OUT = (LookState.QUEUED, LookState.RUNNING)
LEFTOVERS = (Purpose.FAILED, Purpose.STRANDED)


@dataclass(frozen=True)
class Feeding:
    """How runs are fed."""

    in_flight: int  # studies of one run that are out at a time
    every_s: float  # between two portions: at the pace of the last minute, four times as much may be out
    grace: timedelta  # for a message on its way from the row to the queue and back


@dataclass
class Portion:
    """What one transaction of the feeder came to."""

    studies: list[ToSend] = field(default_factory=list)
    looks: list[ToSend] = field(default_factory=list)
    again: bool = False  # there is room for more at once


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
    for late in session.scalars(nightly.where(OPEN).with_for_update()):
        _stop(session, late, "the next night began", now)
        _close(session, late, now)
    before = session.scalar(nightly.order_by(BacklogRunRow.night.desc()).limit(1))
    if before is not None and before.bundle == bundle and before.stage != Stage.EXHAUSTED:
        run = session.get_one(BacklogRunRow, run_id)
        run.cursor_day, run.cursor_probability = before.cursor_day, before.cursor_probability
        run.cursor_study = before.cursor_study
    return run_id


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
    for run in session.scalars(_shadow_runs(bundle).where(OPEN).with_for_update()):
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
    runs = session.scalars(select(BacklogRunRow).where(OPEN).order_by(BacklogRunRow.purpose).with_for_update()).all()
    active = active_bundle(session)
    night_feeds = False
    for run in runs:  # the night's first
        _account(session, run, now)
        if why := _over(run, active.name if active else "", now):
            _stop(session, run, why, now)
        elif not night_feeds:
            room = _room(session, run, feeding, now)
            if room > 0:
                _choose(session, run, min(room, PORTION), heads, feeding.grace, now, portion)
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
    """Send nothing more, and take back what is out and not begun. Messages that are left find nothing to do."""
    run.ended_by = why
    # locked in the order in which workers lock them
    looks = session.scalars(
        select(SecondLookRow)
        .where(
            SecondLookRow.run_id == run.id,
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
    return run.stage == Stage.EXHAUSTED or _left_of_count(run) <= 0


def _left_of_count(run: BacklogRunRow) -> int:
    chosen = run.failed + run.stranded + run.outdated - run.switched
    return PORTION if run.most is None else run.most - chosen


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


def _account(session: Session, run: BacklogRunRow, now: datetime) -> None:
    """What became of the failed and stranded studies, which go the way of all studies."""
    became = {StudyStatus.ANALYSED: LookState.DONE, StudyStatus.QUARANTINED: LookState.FAILED}
    for status, state in became.items():
        session.execute(
            update(SecondLookRow)
            .where(
                SecondLookRow.run_id == run.id,
                SecondLookRow.purpose.in_(LEFTOVERS),
                SecondLookRow.state == LookState.QUEUED,
                SecondLookRow.study_id == StudyRow.id,
                StudyRow.status == status,
            )
            .values(state=state, finished_at=now, new_call=StudyRow.call, reason=StudyRow.reason)
            .execution_options(synchronize_session=False)
        )


def _choose(
    session: Session,
    run: BacklogRunRow,
    room: int,
    heads: Mapping[Priority, datetime | None],
    grace: timedelta,
    now: datetime,
    portion: Portion,
) -> None:
    """Fill the room: failed and stranded studies, those taken back last night, then history from the cursor on."""
    if run.stage == Stage.LEFTOVERS:
        chosen = _leftovers(session, run, min(room, _left_of_count(run)), heads, grace, now)
        portion.studies += chosen
        room -= len(chosen)
        if room and _left_of_count(run) > 0:
            run.stage = Stage.HISTORY
    if run.stage == Stage.HISTORY and room and _left_of_count(run) > 0:
        held = _held(session, run, min(room, _left_of_count(run)), now)
        portion.looks += held
        room -= len(held)
    if run.stage == Stage.HISTORY and room and _left_of_count(run) > 0:
        looks, full = _history(session, run, min(room, _left_of_count(run)), now)
        portion.looks += looks
        portion.again |= full and len(looks) < room


def _leftovers(
    session: Session,
    run: BacklogRunRow,
    most: int,
    heads: Mapping[Priority, datetime | None],
    grace: timedelta,
    now: datetime,
) -> list[ToSend]:
    """Failed and stranded studies back to the queue, each once a run.

    Failed ones are quarantined studies of which images without an error of their own may have healed.
    """
    new = ~exists().where(
        SecondLookRow.study_id == StudyRow.id, SecondLookRow.bundle == run.bundle, SecondLookRow.run_id == run.id
    )
    # a study that killed its workers would do so every night, with its neighbours: it is left to people
    failed = (StudyRow.status == StudyStatus.QUARANTINED) & ~StudyRow.reason.contains(DIED, autoescape=True)
    # an image that can never be analysed does not become readable overnight
    healable = select(InstanceRow.study_id).where(InstanceRow.error_reason == "")
    before = now - STRANDED_AFTER
    # what merely waits in a long queue is not stranded: see `work.lost`
    nowhere = [
        (StudyRow.queue == queue) & (StudyRow.sent_at < min(head or now, now) - grace) for queue, head in heads.items()
    ]
    stranded = (StudyRow.status == StudyStatus.QUEUED) & or_(
        (StudyRow.sent_at < before) & or_(*nowhere), StudyRow.sent_at.is_(None) & (StudyRow.received_at < before)
    )
    # stranded ones first: the others become queued here, and would count as stranded too
    first = _requeue(session, run, Purpose.STRANDED, stranded & new, most, now)
    then = _requeue(session, run, Purpose.FAILED, failed & StudyRow.id.in_(healable) & new, most - len(first), now)
    run.stranded, run.failed = run.stranded + len(first), run.failed + len(then)
    return first + then


def _requeue(
    session: Session, run: BacklogRunRow, purpose: Purpose, where: ColumnElement[bool], most: int, now: datetime
) -> list[ToSend]:
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
            row.queue, row.queued_at = Priority.BACKLOG, now
        # a stranded study keeps its queue: it is late, not unimportant
        row.attempts, row.sent_at, row.not_before = 0, now, None
    _look(session, run, purpose, [(row.id, row.site_id) for row in rows], now)
    return [ToSend(row.id, Priority(row.queue), now) for row in rows]


def _held(session: Session, run: BacklogRunRow, most: int, now: datetime) -> list[ToSend]:
    """What was taken back when an earlier window of this bundle closed."""
    looks = session.scalars(
        select(SecondLookRow)
        .where(
            SecondLookRow.state == LookState.HELD,
            SecondLookRow.bundle == run.bundle,
            SecondLookRow.purpose == (Purpose.OUTDATED if run.purpose == NIGHT else Purpose.SHADOW),
        )
        .order_by(SecondLookRow.queued_at, SecondLookRow.study_id)
        .limit(most)
        .with_for_update(skip_locked=True)
    ).all()
    for look in looks:
        look.state, look.run_id = LookState.QUEUED, run.id
    run.outdated += len(looks)
    return [second_looks.sent(look, now) for look in looks]


def _history(session: Session, run: BacklogRunRow, most: int, now: datetime) -> tuple[list[ToSend], bool]:
    """The next of history, and whether there may be more. Those that the bundle has seen are switched at once."""
    page = outdated(session, run, most)
    if page:
        run.cursor_day, run.cursor_probability, run.cursor_study = page[-1].day, page[-1].probability, page[-1].id
    if len(page) < most:
        run.stage = Stage.EXHAUSTED
    purpose = Purpose.OUTDATED if run.purpose == NIGHT else Purpose.SHADOW
    chosen = _look(session, run, purpose, [(row.id, row.site_id) for row in page], now)
    if not chosen:
        return [], run.stage != Stage.EXHAUSTED
    unseen = {study_id for study_id, _ in unanswered(session, chosen, run.bundle)}
    looks = session.scalars(
        select(SecondLookRow)
        .where(SecondLookRow.study_id.in_(chosen), SecondLookRow.bundle == run.bundle)
        .order_by(SecondLookRow.study_id)
        .execution_options(populate_existing=True)
    ).all()
    ready = [look for look in looks if look.study_id not in unseen]
    second_looks.settle(session, ready, now)
    run.outdated, run.switched = run.outdated + len(chosen), run.switched + len(ready)
    place = {row.id: place for place, row in enumerate(page)}
    to_send = sorted((look for look in looks if look.study_id in unseen), key=lambda look: place[look.study_id])
    return [second_looks.sent(look, now) for look in to_send], run.stage != Stage.EXHAUSTED


def _look(
    session: Session, run: BacklogRunRow, purpose: Purpose, studies: Sequence[tuple[UUID, UUID]], now: datetime
) -> list[UUID]:
    """Write a second look for each (study, site); returns those that were free to be looked at.

    What ended before may be looked at again, but for a study that killed its workers, and a shadow's that is done.
    """
    if not studies:
        return []
    rows = [
        {
            "study_id": study_id, "site_id": site_id, "bundle": run.bundle, "run_id": run.id, "purpose": purpose,
            "state": LookState.QUEUED, "queued_at": now, "sent_at": now,
        }
        for study_id, site_id in sorted(studies, key=lambda one: one[0].int)  # in the order in which all lock studies
    ]  # fmt: skip
    statement = insert(SecondLookRow).values(
        [row | {"reason": "", "attempts": 0, "region": "", "old_bundle": ""} for row in rows]
    )
    again = [LookState.FAILED, LookState.OVERTAKEN, LookState.HELD] + [LookState.DONE] * (purpose != Purpose.SHADOW)
    free: ColumnElement[bool] = SecondLookRow.state.in_(again)
    if purpose == Purpose.OUTDATED:
        free |= SecondLookRow.purpose == Purpose.SHADOW  # promoted: it may be out still
    free &= ~SecondLookRow.reason.contains(DIED, autoescape=True)
    fresh = {name: statement.excluded[name] for name in ("run_id", "purpose", "state", "queued_at", "sent_at")}
    return list(
        session.scalars(
            statement.on_conflict_do_update(
                index_elements=["study_id", "bundle"],
                set_=fresh | {
                    "attempts": 0, "reason": "", "not_before": None, "lease_token": None, "lease_until": None,
                    "finished_at": None,
                },
                where=free,
            ).returning(SecondLookRow.study_id)
        )
    )  # fmt: skip
