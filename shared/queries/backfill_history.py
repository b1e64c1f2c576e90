"""What another bundle than the one asked about speaks for, in the order in which it is looked at again."""

from collections.abc import Sequence
from datetime import date
from uuid import UUID

from sqlalchemy import Date, Row, Select, func, lateral, literal, literal_column, select, tuple_
from sqlalchemy.orm import Session

from shared.db.tables import BackfillRunRow, BundleRow, StudyRow
from shared.db.tables.access import is_counted

ARRIVED_ON = literal_column("date(timezone('UTC'::text, studies.received_at))", Date())  # as its index has it
ORDER = (ARRIVED_ON, StudyRow.fracture_probability, StudyRow.id)


def outdated(session: Session, run: BackfillRunRow, limit: int) -> Sequence[Row[UUID, UUID, date, float]]:
    """Read the next analysed studies whose findings are another bundle's, after the run's cursor.

    An index holds them in this order for each bundle, so that a page costs the same wherever in a million studies it
    is, however many are up to date.

    Args:
        session: the caller's transaction.
        run: with its bundle and cursor.
        limit: how many studies.

    Returns:
        (id, site_id, day, probability): the newest day of arrival first, within a day the likeliest fracture first.
    """
    day, probability = ARRIVED_ON.label("day"), StudyRow.fracture_probability.label("probability")
    of_bundle = select(StudyRow.id, StudyRow.site_id, day, probability)
    page = lateral(_after_cursor(of_bundle, run).order_by(*(column.desc() for column in ORDER)).limit(limit))
    return session.execute(
        select(page.c.id, page.c.site_id, page.c.day, page.c.probability)
        .select_from(BundleRow)
        .join(page, literal(value=True))
        .where(BundleRow.name != run.bundle)
        .order_by(page.c.day.desc(), page.c.probability.desc(), page.c.id.desc())
        .limit(limit)
    ).all()


def count_outdated(session: Session, run: BackfillRunRow, limit: int) -> int:
    """Count what `outdated` would still return.

    Args:
        session: the caller's transaction.
        run: with its bundle and cursor.
        limit: where to stop counting, for each other bundle.

    Returns:
        The number.
    """
    some = lateral(_after_cursor(select(literal(1).label("one")), run).limit(limit))
    query = select(func.count()).select_from(BundleRow).join(some, literal(value=True))
    return session.scalar(query.where(BundleRow.name != run.bundle)) or 0


def _after_cursor(query: "Select[*tuple[object, ...]]", run: BackfillRunRow) -> "Select[*tuple[object, ...]]":
    query = query.where(
        StudyRow.bundle == BundleRow.name,
        StudyRow.status == literal_column("'analysed'"),
        StudyRow.fracture_probability.is_not(None),
        is_counted(StudyRow.site_id),
    ).correlate(BundleRow)
    if run.cursor_study is not None:
        query = query.where(tuple_(*ORDER) < tuple_(run.cursor_day, run.cursor_probability, run.cursor_study))
    return query if run.since is None else query.where(run.since <= ARRIVED_ON)
