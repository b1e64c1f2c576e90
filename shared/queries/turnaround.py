"""How long a site's studies may wait, and which studies move when that changes."""

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Integer,
    Text,
    Uuid,
    any_,
    bindparam,
    case,
    cast,
    func,
    literal,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB, distinct_on
from sqlalchemy.orm import Session

from shared.db.notify import worklist_changed
from shared.db.tables import KeyRow, SiteRow, StudyRow, TurnaroundTargetsRow
from shared.db.tables.base import table_of
from shared.domain.findings import POSITIVE_FROM, UNCLEAR_FROM, Assessment, Extent
from shared.domain.security import EventKind, Subject
from shared.domain.study import Priority, StoredStatus, StudyStatus
from shared.domain.worklist import PENDING, TURNAROUND_TARGETS, TurnaroundTargets, target_errors
from shared.errors import BadRequest
from shared.queries.access import Key
from shared.queries.audit import State, Target, difference, record

TARGETS = "turnaround-targets"  # the code of this setting
_TARGETS = table_of(TurnaroundTargetsRow)
NEWEST = (  # the table of each of some sites
    select(_TARGETS.c.site_id, _TARGETS.c.minutes)
    .where(_TARGETS.c.site_id == any_(cast(bindparam("sites", type_=ARRAY(Text)), ARRAY(Uuid))))
    .ext(distinct_on(_TARGETS.c.site_id))
    .order_by(_TARGETS.c.site_id, _TARGETS.c.id.desc())
)
BATCH_STUDIES = 5000  # studies a transaction: those that write meanwhile wait for no more


def targets_of(session: Session, site_ids: Collection[UUID]) -> dict[UUID, TurnaroundTargets]:
    """Read the turnaround targets of some sites.

    Args:
        session: the caller's transaction.
        site_ids: the sites.

    Returns:
        The table of each: its own, or the built-in one.
    """
    own = {
        site_id: _table(minutes) for site_id, minutes in session.execute(NEWEST, {"sites": list(map(str, site_ids))})
    }
    return {site_id: own.get(site_id, TURNAROUND_TARGETS) for site_id in site_ids}


def chosen_by(session: Session, site_id: UUID) -> tuple[str, datetime] | None:
    """Find who chose a site's table.

    Args:
        session: the caller's transaction.
        site_id: the site.

    Returns:
        Name of the key, and when; None for the built-in table.
    """
    row = session.execute(
        select(KeyRow.name, TurnaroundTargetsRow.chosen_at)
        .join(KeyRow, KeyRow.id == TurnaroundTargetsRow.key_id)
        .where(TurnaroundTargetsRow.site_id == site_id)
        .order_by(TurnaroundTargetsRow.id.desc())
        .limit(1)
    ).one_or_none()
    return (row[0], row[1]) if row else None


def choose_targets(session: Session, key: Key, targets: TurnaroundTargets) -> None:
    """Give the key's site another table; earlier ones stay on record.

    Commit, then call `update_due_times` until nothing moves.

    The table that is in force already changes nothing.

    Args:
        session: the caller's transaction.
        key: of the administrator.
        targets: minutes by urgency class and priority.

    Raises:
        BadRequest: the table is not sound; the message says why.
    """
    if errors := target_errors(targets):
        raise BadRequest("; ".join(errors))
    minutes = {name: {str(priority): row[priority] for priority in Priority} for name, row in targets.items()}
    # one at a time: what this one found before is what the one before it chose
    session.execute(select(SiteRow.id).where(SiteRow.id == key.site_id).with_for_update(key_share=True))
    own = chosen_by(session, key.site_id) is not None
    before, after = difference(
        _state(targets_of(session, [key.site_id])[key.site_id], own=own), _state(targets, own=True)
    )
    if not after:
        return
    session.add(TurnaroundTargetsRow(site_id=key.site_id, minutes=minutes, key_id=key.id))
    record(
        session, EventKind.SETTING_CHANGED, key, about=Target(Subject.SETTING, TARGETS), before=before, after=after,
        setting=TARGETS,
    )  # fmt: skip


def _state(table: TurnaroundTargets, *, own: bool) -> State:
    """A table as events record it: minutes by class and priority, and whether the site has chosen it."""
    minutes = {f"{name}, {priority}": row[priority] for name, row in table.items() for priority in Priority}
    return {"table": "chosen" if own else "built-in", **minutes}


def update_due_times(session: Session, site_id: UUID, limit: int = BATCH_STUDIES) -> int:
    """Move unread studies of a site to where its table wants them.

    Whoever ends an analysis locks the study's row before they read the table. So once the table is committed, such a
    study is either written by it, or moved here; one that is just being taken in has its place when it is analysed.

    Args:
        session: the caller's transaction.
        site_id: the site.
        limit: how many studies to move at most.

    Returns:
        How many were moved.
    """
    table = targets_of(session, [site_id])[site_id]
    due = StudyRow.received_at + _allowed_wait(table)
    # rows are locked in one order everywhere, so that two transactions cannot wait for each other in a ring
    misplaced = (
        select(StudyRow.id)
        .where(
            StudyRow.site_id == site_id,
            StudyRow.read_at.is_(None),
            StudyRow.status != StoredStatus.KEPT,
            StudyRow.due_at != due,
        )
        .order_by(StudyRow.id)
        .limit(limit)
        .with_for_update()
    )
    moved = session.execute(
        update(StudyRow)
        .where(StudyRow.id.in_(misplaced))
        .values(due_at=due)
        .execution_options(synchronize_session=False)
    ).rowcount  # type: ignore[attr-defined]
    if moved:
        worklist_changed(session, [site_id])
    return int(moved)


def _table(minutes: Mapping[str, Mapping[str, int]]) -> TurnaroundTargets:
    return {name: {Priority(word): each for word, each in row.items()} for name, row in minutes.items()}


def _allowed_wait(table: TurnaroundTargets) -> ColumnElement[timedelta]:
    """What `urgency_class` and a table say of a row, in SQL.

    A study with findings that is queued again, for a late image, keeps the earlier of both its places.
    """
    plain = {name: {str(priority): each for priority, each in row.items()} for name, row in table.items()}
    minutes = cast(literal(plain, JSONB), JSONB)

    def of(urgency: ColumnElement[str] | str) -> ColumnElement[int]:
        return cast(minutes[urgency][StudyRow.priority].astext, Integer)

    severe = (StudyRow.assessment == Assessment.POSITIVE) & (StudyRow.severity == Extent.SEVERE)
    abstains = StudyRow.assessment == Assessment.ABSTAINED  # ranked by its raw score, if that is graver: `ranked_as`
    found = of(
        case(
            (severe, "positive severe"),
            (abstains & (StudyRow.score >= POSITIVE_FROM), Assessment.POSITIVE),
            (abstains & (StudyRow.score >= UNCLEAR_FROM), Assessment.UNCLEAR),
            else_=StudyRow.assessment,
        )
    )
    both = case((StudyRow.status == StudyStatus.ANALYSED, found), else_=func.least(found, of(literal(PENDING))))
    return func.make_interval(0, 0, 0, 0, 0, func.coalesce(both, of(literal(PENDING))))
