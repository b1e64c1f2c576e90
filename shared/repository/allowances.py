"""How long a site lets its studies wait, and what a change of that moves."""

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, Integer, case, cast, func, literal, select, update
from sqlalchemy.dialects.postgresql import JSONB, distinct_on
from sqlalchemy.orm import Session

from shared.errors import BadRequest
from shared.findings import POSITIVE_FROM, UNCLEAR_FROM, Assessment, Severity
from shared.repository.access import Key
from shared.repository.notices import worklist_changed
from shared.study import Priority, StudyStatus
from shared.tables import AllowancesRow, KeyRow, StudyRow
from shared.worklist import ALLOWANCES, PENDING, Allowances, objections

AT_ONCE = 5000  # studies a transaction: those that write meanwhile wait for no more


def allowances_of(session: Session, site_ids: Collection[UUID]) -> dict[UUID, Allowances]:
    """The table of each site, as it stands now: its own, or the one that is built in."""
    newest = (
        select(AllowancesRow.site_id, AllowancesRow.minutes)
        .where(AllowancesRow.site_id.in_(site_ids))
        .ext(distinct_on(AllowancesRow.site_id))
        .order_by(AllowancesRow.site_id, AllowancesRow.id.desc())
    )
    own = {site_id: _table(minutes) for site_id, minutes in session.execute(newest)}
    return {site_id: own.get(site_id, ALLOWANCES) for site_id in site_ids}


def chosen_by(session: Session, site_id: UUID) -> tuple[str, datetime] | None:
    """Who chose the site's table, and when; None for the one that is built in."""
    row = session.execute(
        select(KeyRow.name, AllowancesRow.chosen_at)
        .join(KeyRow, KeyRow.id == AllowancesRow.key_id)
        .where(AllowancesRow.site_id == site_id)
        .order_by(AllowancesRow.id.desc())
        .limit(1)
    ).one_or_none()
    return (row[0], row[1]) if row else None


def choose_allowances(session: Session, key: Key, allowances: Allowances) -> None:
    """Give the key's site another table; earlier ones stay on record. Commit, then `redue` until nothing moves.

    Raises BadRequest, in words, for a table that is not sound.
    """
    if wrong := objections(allowances):
        raise BadRequest("; ".join(wrong))
    minutes = {name: {str(priority): row[priority] for priority in Priority} for name, row in allowances.items()}
    session.add(AllowancesRow(site_id=key.site_id, minutes=minutes, key_id=key.id))


def redue(session: Session, site_id: UUID, most: int = AT_ONCE) -> int:
    """Put up to `most` unread studies of a site where its table wants them; returns how many moved.

    Whoever ends an analysis locks the study's row before they read the table. So once the table is committed, such a
    study is either written by it, or moved here; one that is just being taken in has its place when it is analysed.
    """
    table = allowances_of(session, [site_id])[site_id]
    due = StudyRow.received_at + _allowed(table)
    # rows are locked in one order everywhere, so that two transactions cannot wait for each other in a ring
    misplaced = (
        select(StudyRow.id)
        .where(StudyRow.site_id == site_id, StudyRow.read_at.is_(None), StudyRow.due_at != due)
        .order_by(StudyRow.id)
        .limit(most)
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


def _table(minutes: Mapping[str, Mapping[str, int]]) -> Allowances:
    return {name: {Priority(word): each for word, each in row.items()} for name, row in minutes.items()}


def _allowed(table: Allowances) -> ColumnElement[timedelta]:
    """What `urgency_class` and a table say of a row, in SQL.

    A study with findings that is queued again, for a late image, keeps the earlier of both its places.
    """
    plain = {name: {str(priority): each for priority, each in row.items()} for name, row in table.items()}
    minutes = cast(literal(plain, JSONB), JSONB)

    def of(urgency: ColumnElement[str] | str) -> ColumnElement[int]:
        return cast(minutes[urgency][StudyRow.priority].astext, Integer)

    severe = (StudyRow.assessment == Assessment.POSITIVE) & (StudyRow.severity == Severity.SEVERE)
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
