"""What a run sends next: failed and stranded studies, what was taken back, then history from its cursor on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, exists, or_, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from shared.backlog import LookState, Purpose, Stage
from shared.repository import second_looks
from shared.repository.history import ORDER, outdated
from shared.repository.quarantine import dismissed
from shared.repository.reports import NIGHT
from shared.repository.work import DIED, ToSend, unanswered
from shared.study import Priority, StudyStatus, may_become
from shared.tables import BacklogRunRow, InstanceRow, SecondLookRow, StudyRow

STRANDED_AFTER = timedelta(hours=6)
MOST = 1000  # studies a transaction


@dataclass
class Portion:
    """What one transaction of the feeder came to."""

    studies: list[ToSend] = field(default_factory=list)
    looks: list[ToSend] = field(default_factory=list)
    again: bool = False  # there is room for more at once


def left_of_count(run: BacklogRunRow) -> int:
    """How many studies a run may still choose; those that are merely switched cost nothing and do not count."""
    chosen = run.failed + run.stranded + run.outdated - run.switched
    return MOST if run.most is None else run.most - chosen


def choose(
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
        # half of a night is kept for history: were more studies broken than a night may choose, it would never come
        share = max(0, left_of_count(run) - (run.most or 0) // 2)
        chosen = _leftovers(session, run, min(room, share), heads, grace, now)
        portion.studies += chosen
        room -= len(chosen)
        if room and left_of_count(run) > 0:
            run.stage = Stage.HISTORY
    if run.stage == Stage.HISTORY and room and left_of_count(run) > 0:
        held = _held(session, run, min(room, left_of_count(run)), now)
        portion.looks += held
        room -= len(held)
    if run.stage == Stage.HISTORY and room and left_of_count(run) > 0:
        looks, full = _history(session, run, min(room, left_of_count(run)), now)
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
    failed = (
        (StudyRow.status == StudyStatus.QUARANTINED) & ~StudyRow.reason.contains(DIED, autoescape=True) & ~dismissed()
    )
    # an image that can never be analysed does not become readable overnight
    healable = select(InstanceRow.study_id).where(InstanceRow.error_reason == "")
    before = now - STRANDED_AFTER
    # what merely waits in a long queue is not stranded: see `work.lost`
    nowhere = [
        (StudyRow.queue == queue) & (StudyRow.sent_at < min(head or now, now) - grace) for queue, head in heads.items()
    ]
    stranded = (StudyRow.status == StudyStatus.QUEUED) & or_(
        (StudyRow.sent_at < before) & or_(*nowhere), StudyRow.sent_at.is_(None) & (StudyRow.queued_at < before)
    )
    stranded &= or_(StudyRow.not_before.is_(None), StudyRow.not_before <= now)  # others wait for their images
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
        .join(StudyRow, StudyRow.id == SecondLookRow.study_id)
        .where(
            SecondLookRow.state == LookState.HELD,
            SecondLookRow.bundle == run.bundle,
            SecondLookRow.purpose == (Purpose.OUTDATED if run.purpose == NIGHT else Purpose.SHADOW),
        )
        .order_by(*(column.desc() for column in ORDER))
        .limit(most)
        .with_for_update(skip_locked=True, of=SecondLookRow)
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
    ended = SecondLookRow.state.in_((LookState.FAILED, LookState.OVERTAKEN, LookState.HELD))
    killed = SecondLookRow.reason.contains(DIED, autoescape=True)
    free: dict[Purpose, ColumnElement[bool]] = {
        Purpose.SHADOW: ended & ~killed,
        # of a shadow that was promoted it may be out still
        Purpose.OUTDATED: or_(ended, SecondLookRow.state == LookState.DONE, SecondLookRow.purpose == Purpose.SHADOW)
        & ~killed,
    }
    fresh = {name: statement.excluded[name] for name in ("run_id", "purpose", "state", "queued_at", "sent_at")}
    return list(
        session.scalars(
            statement.on_conflict_do_update(
                index_elements=["study_id", "bundle"],
                set_=fresh | {
                    "attempts": 0, "reason": "", "not_before": None, "lease_token": None, "lease_until": None,
                    "finished_at": None,
                },
                # of the others only the account is kept here
                where=free.get(purpose, SecondLookRow.state != LookState.RUNNING),
            ).returning(SecondLookRow.study_id)
        )
    )  # fmt: skip
