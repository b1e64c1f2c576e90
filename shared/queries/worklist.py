"""The worklist: its rows in reading order, its filters, and how many studies have each status."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    DateTime,
    Float,
    Integer,
    Select,
    func,
    literal_column,
    select,
    text,
    tuple_,
)
from sqlalchemy.orm import Session

from shared.db.tables import AnalysisRow, StudyRow
from shared.db.tables.access import is_counted
from shared.db.tables.studies import AGE_BAND, CALMNESS, DUE_MINUTE
from shared.domain.analysis import WAITING
from shared.domain.findings import Assessment, Extent, abstention_of
from shared.domain.study import Priority, StoredStatus, StudyStatus
from shared.domain.worklist import WorklistEntry
from shared.errors import reason_of
from shared.queries.analyses import IS_FIRST, IS_QUEUED, REASON, REASON_DETAIL, STATUS

Query = TypeVar("Query", bound=Select[*tuple[Any, ...]])


class ReadState(StrEnum):
    """Which half of the list. A study of which nothing is analysed stands in neither."""

    UNREAD = "unread"  # earliest due time first
    READ = "read"  # last read first


class AgeBand(StrEnum):
    """The patient's age at the study, in years."""

    CHILD = "0-17"
    YOUNG = "18-39"
    MIDDLE = "40-64"
    OLD = "65+"


@dataclass(frozen=True)
class WorklistFilter:
    """What to show. None shows all, but for `state`: the two halves of the list are never mixed."""

    status: StudyStatus | None = None
    assessment: Assessment | None = None
    region: str | None = None
    priority: Priority | None = None
    modality: str | None = None
    severity: Extent | None = None
    age: AgeBand | None = None
    state: ReadState = ReadState.UNREAD


# the columns of WorklistEntry, in its order: whole rows would cost as much again
_SHOWN = select(
    StudyRow.id,
    StudyRow.priority,
    STATUS,
    StudyRow.received_at,
    StudyRow.due_at,
    StudyRow.assessment,
    StudyRow.severity,
    StudyRow.region,
    StudyRow.fracture_probability,
    StudyRow.score,
    StudyRow.abstention,
    StudyRow.abstention_detail,
    StudyRow.modality,
    StudyRow.images,
    StudyRow.failed_images,
    REASON,
    REASON_DETAIL,
    StudyRow.read_at,
    StudyRow.sex,
    StudyRow.age_years,
    StudyRow.study_date,
    StudyRow.study_time,
    StudyRow.body_part,
    StudyRow.laterality,
    StudyRow.views,
    StudyRow.header_version,
    StudyRow.completeness,
    StudyRow.expected_images,
    StudyRow.images + StudyRow.kept,
)
# the last columns of WorklistEntry, in its order
_HOLDERS = text("""
    SELECT study_id, name, locked_at, key_id, login FROM reading_locks JOIN api_keys ON api_keys.id = key_id
    WHERE ended_at IS NULL AND until >= now() AND api_keys.site_id = :site
""")
# each status by its name, for Postgres knows how rare it is. "queued" are those of that status that are neither running
# nor retrying, which only their analyses tell: of the former so many more are counted. Of the few that run or are tried
# again those are left out that were read before: next to none are, and an index lists them, so no study is looked up
_COUNTS = text("""
    SELECT 'queued', (SELECT count(*) FROM (
        SELECT FROM studies WHERE site_id = :site AND read_at IS NULL AND status = 'queued' LIMIT 3 * :most) AS found)
    UNION ALL SELECT 'analysed', (SELECT count(*) FROM (
        SELECT FROM studies WHERE site_id = :site AND read_at IS NULL AND status = 'analysed' LIMIT :most) AS found)
    UNION ALL SELECT 'quarantined', (SELECT count(*) FROM (
        SELECT FROM studies WHERE site_id = :site AND read_at IS NULL AND status = 'quarantined' LIMIT :most) AS found)
    UNION ALL SELECT 'running', (SELECT count(*) FROM (
        SELECT FROM analyses WHERE site_id = :site AND purpose = 'first' AND state = 'running' AND study_id NOT IN (
            SELECT id FROM studies WHERE site_id = :site AND status = 'queued' AND read_at IS NOT NULL
        ) LIMIT :most) AS found)
    UNION ALL SELECT 'retrying', (SELECT count(*) FROM (
        SELECT FROM analyses WHERE site_id = :site AND purpose = 'first' AND state = 'retrying' AND study_id NOT IN (
            SELECT id FROM studies WHERE site_id = :site AND status = 'queued' AND read_at IS NOT NULL
        ) LIMIT :most) AS found)
""")
# the place of what is unread, as its indexes have it
LISTED = StudyRow.status != StoredStatus.KEPT  # in the words of the indexes
PLACE = (literal_column(DUE_MINUTE, DateTime), literal_column(CALMNESS, Float), StudyRow.id)
_age_band = literal_column(AGE_BAND, Integer)  # as the index has it


@dataclass(frozen=True)
class WorklistCursor:
    """A row's place in one of the two halves of the list."""

    time: datetime  # when it was read; of what is unread the minute in which it is due, in UTC without a zone
    calmness: float  # of what is unread its score, negated
    study_id: UUID


def entries(
    session: Session, site_id: UUID, chosen: WorklistFilter, after: WorklistCursor | None, limit: int
) -> list[WorklistEntry]:
    """Read a page of the worklist.

    Unread studies are ordered by (due minute, score descending, id), the most urgent first; read ones by (read_at, id),
    the last first.

    Args:
        session: the caller's transaction.
        site_id: the site.
        chosen: which studies.
        after: the place of the last row of the page before (`cursor_after`); None: the first page.
        limit: how many rows.

    Returns:
        The rows.
    """
    query = choose(_SHOWN, site_id, chosen)
    if chosen.state is ReadState.READ:
        if after is not None:
            query = query.where(tuple_(StudyRow.read_at, StudyRow.id) < (after.time, after.study_id))
        query = query.order_by(StudyRow.read_at.desc(), StudyRow.id.desc())
    else:
        if after is not None:
            query = query.where(tuple_(*PLACE) > (after.time, after.calmness, after.study_id))
        query = query.order_by(*PLACE)
    return _entries(session, site_id, query.limit(limit))


def cursor_after(entry: WorklistEntry, state: ReadState) -> WorklistCursor:
    """Find where a row of the list is, for `entries` to go on behind it.

    Args:
        entry: the row.
        state: the half of the list that it is from.

    Returns:
        Its place.
    """
    if state is ReadState.READ:
        assert entry.read_at is not None
        return WorklistCursor(entry.read_at, 0.0, entry.study_id)
    minute = entry.due_at.astimezone(UTC).replace(second=0, microsecond=0, tzinfo=None)
    return WorklistCursor(minute, -(entry.score or 0.0), entry.study_id)


def entries_of(session: Session, site_id: UUID, study_ids: Sequence[UUID]) -> list[WorklistEntry]:
    """Read studies of a site, read or not, as rows of the list.

    Args:
        session: the caller's transaction.
        site_id: the site.
        study_ids: the studies.

    Returns:
        The rows: unread ones first, in the order of the list.
    """
    query = _SHOWN.where(StudyRow.site_id == site_id, StudyRow.id.in_(study_ids))
    return _entries(session, site_id, query.order_by(StudyRow.read_at.is_not(None), *PLACE))


def _entries(session: Session, site_id: UUID, query: Select[*tuple[Any, ...]]) -> list[WorklistEntry]:
    """Rows of `_SHOWN`, each with who reads it now. A site has as many open locks as readers: all are fetched."""
    readers = {study_id: reader for study_id, *reader in session.execute(_HOLDERS, {"site": site_id})}
    return [_entry(*row, *readers.get(row[0], ())) for row in map(tuple, session.execute(query))]


def modalities(session: Session, site_id: UUID) -> list[str]:
    """List the modalities of a site's unread studies, by one step through the index for each.

    Args:
        session: the caller's transaction.
        site_id: the site.

    Returns:
        DICOM's codes, in alphabetical order.
    """
    first = select(func.min(StudyRow.modality).label("word")).where(*_unread(site_id)).cte("found", recursive=True)
    following = select(func.min(StudyRow.modality)).where(*_unread(site_id), StudyRow.modality > first.c.word)
    found = first.union_all(select(following.scalar_subquery()).where(first.c.word.is_not(None)))
    return [word for word in session.scalars(select(found.c.word)) if word]


def _unread(site_id: UUID) -> tuple[ColumnElement[bool], ...]:
    return StudyRow.site_id == site_id, StudyRow.read_at.is_(None), LISTED


def status_counts(session: Session, site_id: UUID, limit: int | None = None) -> dict[StudyStatus, int]:
    """Count a site's unread studies by status.

    Args:
        session: the caller's transaction.
        site_id: the site.
        limit: where to stop counting; None: never.

    Returns:
        The number for each status.
    """
    rows = session.execute(_COUNTS, {"site": site_id, "most": limit})
    counts = {StudyStatus(status): count for status, count in rows}
    counts[StudyStatus.QUEUED] -= counts[StudyStatus.RUNNING] + counts[StudyStatus.RETRYING]
    return counts if limit is None else {status: min(count, limit) for status, count in counts.items()}


def all_status_counts(session: Session) -> dict[StudyStatus, int]:
    """How many studies of all sites have each status but "analysed", of which there are too many to count."""
    its_own = select(func.count()).where(IS_FIRST, is_counted(AnalysisRow.site_id))
    busy = {
        status: session.scalar(its_own.where(AnalysisRow.state == status)) or 0
        for status in (StudyStatus.RUNNING, StudyStatus.RETRYING)
    }
    # counted together: the index that holds what waits need not be left for its rows
    waiting = session.scalar(its_own.where(AnalysisRow.state.in_(WAITING))) or 0
    set_aside = StudyRow.status == StoredStatus.QUARANTINED, is_counted(StudyRow.site_id)
    aside = session.scalar(select(func.count()).where(*set_aside)) or 0
    return {
        StudyStatus.QUEUED: waiting - busy[StudyStatus.RETRYING], **busy, StudyStatus.QUARANTINED: aside,
    }  # fmt: skip


class StatusCounts:
    """Counts a site's unread studies by status, quickly however many there are.

    Up to FEW they are counted each time. Above, where counting takes long and one more makes no difference, they
    are counted every RECOUNT_S seconds, and never for more than a hundredth of the time.
    """

    FEW = 250
    RECOUNT_S = 2.0

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: dict[UUID, tuple[float, dict[StudyStatus, int]]] = {}  # by site: when to count again, and counts
        self._counting = threading.Lock()

    def of(self, session: Session, site_id: UUID) -> dict[StudyStatus, int]:
        """Count a site's unread studies.

        Args:
            session: the caller's transaction.
            site_id: the site.

        Returns:
            The number for each status.
        """
        counts = status_counts(session, site_id, self.FEW + 1)
        many = [status for status, count in counts.items() if count > self.FEW]
        if not many:
            return counts
        known = self._all(session, site_id)
        if StudyStatus.RETRYING in many:  # more than were taken off those that are queued
            many = [status for status in many if status is not StudyStatus.QUEUED]
            counts |= {StudyStatus.QUEUED: known[StudyStatus.QUEUED]}
        return counts | {status: max(self.FEW + 1, known[status]) for status in many}

    def _all(self, session: Session, site_id: UUID) -> dict[StudyStatus, int]:
        again_at, counts = self._known.get(site_id, (0.0, {}))
        # one counts; the others meanwhile show what was counted last, or wait if nothing was
        if (not counts or self._clock() >= again_at) and self._counting.acquire(blocking=not counts):
            try:
                again_at, counts = self._known.get(site_id, (0.0, {}))
                start = self._clock()
                if not counts or start >= again_at:
                    counts = status_counts(session, site_id)
                    now = self._clock()
                    self._known[site_id] = now + max(self.RECOUNT_S, 100 * (now - start)), counts
            finally:
                self._counting.release()
        return counts


def choose(query: Query, site_id: UUID, chosen: WorklistFilter) -> Query:
    """Restrict a query of studies to those that fit a filter.

    Args:
        query: selects from studies.
        site_id: the site.
        chosen: the filter.

    Returns:
        The query with its conditions.
    """
    read = StudyRow.read_at.is_not(None) if chosen.state is ReadState.READ else StudyRow.read_at.is_(None)
    query = query.where(StudyRow.site_id == site_id, read, LISTED)
    if chosen.status is not None:
        query = query.where(*_standing(site_id, chosen.status))
    if chosen.age is not None:
        query = query.where(_age_band == list(AgeBand).index(chosen.age))
    for column, value in (
        (StudyRow.assessment, chosen.assessment),
        (StudyRow.region, chosen.region),
        (StudyRow.priority, chosen.priority),
        (StudyRow.modality, chosen.modality),
        (StudyRow.severity, chosen.severity),
    ):
        if value is not None:
            query = query.where(column == value)
    return query


def _standing(site_id: UUID, status: StudyStatus) -> Sequence[ColumnElement[bool]]:
    """Which studies stand so. Few run or are tried again: they are found by their analyses."""
    if status in (StudyStatus.RUNNING, StudyStatus.RETRYING):
        busy = AnalysisRow.site_id == site_id, IS_FIRST, AnalysisRow.state == status
        return IS_QUEUED, StudyRow.id.in_(select(AnalysisRow.study_id).where(*busy))
    if status is StudyStatus.QUEUED:
        return IS_QUEUED, STATUS.in_([status])
    return (StudyRow.status == status,)


def _entry(
    study_id: UUID,
    priority: str,
    status: str,
    received_at: datetime,
    due_at: datetime,
    assessment: str | None,
    severity: str | None,
    region: str,
    probability: float | None,
    score: float | None,
    abstention: str | None,
    abstention_detail: str,
    modality: str,
    images: int,
    failed_images: int,
    reason: str,
    *rest: Any,  # noqa: ANN401 - as WorklistEntry has them
) -> WorklistEntry:
    """A study's columns of `_SHOWN` as a row of the worklist."""
    return WorklistEntry(
        study_id,
        Priority(priority),
        StudyStatus(status),
        received_at,
        due_at,
        Assessment(assessment) if assessment else None,
        Extent(severity) if severity else None,
        region,
        probability,
        score,
        abstention_of(abstention),
        abstention_detail,
        modality,
        images,
        failed_images,
        reason_of(reason),
        *rest,
    )
