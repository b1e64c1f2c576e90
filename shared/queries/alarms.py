"""What people are told of that only time makes so: nobody writes it down when it begins, so somebody looks.

A positive study that nobody has read within its target is told once. A late queue and failing deliveries last: that
they begin is told once, and that they end. Whoever looks holds a lock until its notices are there, so that of two
processes one sees what the other one wrote.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, and_, func, literal, or_, select, text
from sqlalchemy.dialects.postgresql import distinct_on, insert
from sqlalchemy.orm import Session

from shared.db.clock import db_now
from shared.db.tables import AnalysisRow, DestinationRow, NoticeRow, SiteRow, StudyRow
from shared.db.tables.access import is_counted
from shared.db.tables.studies import DUE_MINUTE
from shared.domain.analysis import WAITING
from shared.domain.findings import Assessment
from shared.domain.notices import BEGUN_BY, OVERDUE_WITHIN, WAITS_TOO_LONG, Event, NoticeContent
from shared.domain.study import Priority, StoredStatus
from shared.queries import deliveries
from shared.queries.analyses import IS_FIRST

ALARMS_LOCK = 0x05_7E_0A_07
# what has begun ends well below its limit, or it would begin and end with every study that just passes it
END_SHARE = 0.5


def record_alarms(session: Session, limits: Mapping[Priority, timedelta]) -> int:
    """Look at every site, and write down what people are told of now.

    Args:
        session: the caller's transaction, for this alone.
        limits: how long the oldest study of each queue should wait at most.

    Returns:
        How many notices were written; 0 too while another process looks.
    """
    if not session.scalar(text("SELECT pg_try_advisory_xact_lock(:lock)"), {"lock": ALARMS_LOCK}):
        return 0
    now = db_now(session)
    written = _record_overdue(session, now)
    late = _count_late(session, limits, now)
    written += _record_changes(session, Event.QUEUE_ON_TIME, late[1.0], late[END_SHARE], now)
    failing = _count_failing(session, now)
    return written + _record_changes(session, Event.DELIVERY_WELL, failing[1.0], failing[END_SHARE], now)


# by site, and the destination or None: how many, and the destination's name
Counts = dict[tuple[UUID, UUID | None], tuple[int, str]]


def _record_overdue(session: Session, now: datetime) -> int:
    """Write a notice of each positive study that nobody has read within its target, and that has none."""
    since = func.greatest(StudyRow.due_at, StudyRow.analysed_at, StudyRow.revised_at)
    found = (
        select(
            func.gen_random_uuid(), StudyRow.site_id, StudyRow.id, literal(Event.OVERDUE.value), literal(""), since
        )
        .join(SiteRow, SiteRow.id == StudyRow.site_id)
        .where(
            ~SiteRow.checks, StudyRow.read_at.is_(None), StudyRow.status == StoredStatus.ANALYSED,
            StudyRow.status != StoredStatus.KEPT,  # as the index has it
            text(f"{DUE_MINUTE} <= timezone('UTC'::text, :now)").bindparams(now=now),
            StudyRow.assessment == Assessment.POSITIVE, since <= now, since > now - OVERDUE_WITHIN,
        )
    )  # fmt: skip
    columns = ["id", "site_id", "study_id", "event", "when", "happened_at"]
    # the index of overdue notices tells which are there: each is looked up once, however many there are
    made = insert(NoticeRow).from_select(columns, found, include_defaults=False).on_conflict_do_nothing()
    return len(session.scalars(made.returning(NoticeRow.id)).all())


def _count_late(session: Session, limits: Mapping[Priority, timedelta], now: datetime) -> dict[float, Counts]:
    """How many studies of each site wait longer for the model than their queue should let them, and than half of it."""

    def is_late(share: float) -> ColumnElement[bool]:
        return or_(
            *(
                and_(AnalysisRow.priority == queue, AnalysisRow.queued_at < now - limit * share)
                for queue, limit in limits.items()
            )
        )

    shares = 1.0, END_SHARE
    rows = session.execute(
        select(AnalysisRow.site_id, *(func.count().filter(is_late(share)) for share in shares))
        .where(
            IS_FIRST, AnalysisRow.state.in_(WAITING), is_counted(AnalysisRow.site_id), is_late(END_SHARE),
            or_(AnalysisRow.not_before.is_(None), AnalysisRow.not_before <= now),
        )
        .group_by(AnalysisRow.site_id)
    ).all()  # fmt: skip
    found: dict[float, Counts] = {share: {} for share in shares}
    for site_id, *counts in rows:
        for share, count in zip(shares, counts, strict=True):
            if count:
                found[share][site_id, None] = int(count), ""
    return found


def _count_failing(session: Session, now: datetime) -> dict[float, Counts]:
    """How many deliveries to each destination have failed, are held, or wait too long, and half as long."""
    rows = session.execute(
        select(DestinationRow.id, DestinationRow.site_id, DestinationRow.name).where(
            DestinationRow.disabled_at.is_(None), is_counted(DestinationRow.site_id)
        )
    ).all()
    figures = deliveries.figures(session, [row.id for row in rows])
    found: dict[float, Counts] = {1.0: {}, END_SHARE: {}}
    for row in rows:
        its = figures[row.id]
        for share, counts in found.items():
            waits = its.oldest_at is not None and now - its.oldest_at > WAITS_TOO_LONG * share
            count = its.failed + its.held + (its.waiting if waits else 0)
            if count:
                counts[row.site_id, row.id] = count, row.name
    return found


def _record_changes(session: Session, end: Event, beginning: Counts, lasting: Counts, now: datetime) -> int:
    """Write that something begins where it was not so, and ends where it was."""
    begin = BEGUN_BY[end]
    on = _find_lasting(session, begin, end)
    begun = {where: said for where, said in beginning.items() if where not in on}
    ended = {where: (0, on[where]) for where in on if where not in lasting}
    session.add_all([*_rows(begin, begun.items(), now), *_rows(end, ended.items(), now)])
    session.flush()
    return len(begun) + len(ended)


def _find_lasting(session: Session, begin: Event, end: Event) -> dict[tuple[UUID, UUID | None], str]:
    """Where something has begun and not ended, with the name of what it is about."""
    rows = session.execute(
        select(NoticeRow.site_id, NoticeRow.about_id, NoticeRow.event, func.coalesce(DestinationRow.name, ""))
        .outerjoin(DestinationRow, DestinationRow.id == NoticeRow.about_id)
        .where(NoticeRow.event.in_((begin, end)))
        .ext(distinct_on(NoticeRow.site_id, NoticeRow.about_id))
        .order_by(NoticeRow.site_id, NoticeRow.about_id, NoticeRow.noted_at.desc(), NoticeRow.id)
    )
    return {(site_id, about_id): name for site_id, about_id, event, name in rows if event == begin}


def _rows(
    event: Event, found: Iterable[tuple[tuple[UUID, UUID | None], tuple[int, str]]], now: datetime
) -> list[NoticeRow]:
    return [
        NoticeRow(
            site_id=site_id, about_id=about_id, event=event, happened_at=now,
            told=NoticeContent(event, now, now, "", count=count, about=name).as_json(),
        )
        for (site_id, about_id), (count, name) in found
    ]  # fmt: skip
