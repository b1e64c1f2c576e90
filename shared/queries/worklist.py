"""The worklist: its rows in any order, its filters, and how many studies each part of it has."""

import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from datetime import time as time_of_day
from enum import StrEnum
from typing import Any, Generic, TypeVar
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    DateTime,
    Float,
    Integer,
    Select,
    and_,
    case,
    func,
    literal,
    literal_column,
    or_,
    select,
    text,
    tuple_,
    union_all,
)
from sqlalchemy.orm import InstrumentedAttribute, Session

from shared.db.tables import AnalysisRow, KeyRow, PeerRow, ReadingLockRow, StudyRow
from shared.db.tables.access import is_counted
from shared.db.tables.studies import AGE_BAND, CALMNESS, DUE_MINUTE
from shared.domain.analysis import WAITING
from shared.domain.findings import Assessment, Extent, abstention_of
from shared.domain.security import Role
from shared.domain.study import Priority, StoredStatus, StudyStatus
from shared.domain.worklist import PENDING, WorklistEntry
from shared.errors import reason_of
from shared.queries.analyses import IS_FIRST, IS_QUEUED, REASON, REASON_DETAIL, STATUS

Query = TypeVar("Query", bound=Select[*tuple[Any, ...]])
Word = TypeVar("Word", bound=StrEnum)


class ReadState(StrEnum):
    """Which half of the list. A study of which nothing is analysed stands in neither."""

    UNREAD = "unread"  # earliest due time first
    READ = "read"  # last read first
    TODAY = "today"  # of those that were read: since midnight


class Assessed(StrEnum):
    """What the model made of a study; PENDING: nothing yet, or it could not be analysed."""

    POSITIVE = Assessment.POSITIVE
    UNCLEAR = Assessment.UNCLEAR
    NEGATIVE = Assessment.NEGATIVE
    ABSTAINED = Assessment.ABSTAINED
    PENDING = PENDING


class Arrived(StrEnum):
    """How long ago a study came, at most."""

    HOUR = "hour"
    DAY = "day"
    WEEK = "week"


class ReadBy(StrEnum):
    """Who reads a study now."""

    SOMEBODY = "somebody"
    NOBODY = "nobody"


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
    assessment: Assessment | Assessed | None = None
    regions: Sequence[str] = ()  # any of them; empty: all
    priority: Priority | None = None
    modality: str | None = None
    severity: Extent | None = None
    age: AgeBand | None = None
    state: ReadState = ReadState.UNREAD
    arrived: Arrived | None = None
    sender: str | None = None  # name of the key or peer that sent it first
    reader: ReadBy | None = None
    midnight: datetime | None = None  # with a zone; when the day of TODAY began


class SortBy(StrEnum):
    """What the list is sorted by. Studies that are alike in it stand in the order of their due times."""

    DUE = "due"
    READ = "read"  # of the half that was read
    ASSESSMENT = "assessment"  # positive, unclear, abstained, negative
    SEVERITY = "severity"  # severe first
    PRIORITY = "priority"  # urgent first
    REGION = "region"
    AGE = "age"
    EXAMINED = "examined"  # date and time of the study
    ARRIVED = "arrived"


@dataclass(frozen=True)
class Order:
    """The order of the list. What is not known of a study stands last, whichever way it is sorted."""

    by: SortBy = SortBy.DUE
    descending: bool = False


DUE_FIRST = Order()
READ_LAST = Order(SortBy.READ, descending=True)


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
# how many studies each tab of the page has, counted as above
_OF_TAB = """
    SELECT '{word}', (SELECT count(*) FROM (
        SELECT FROM studies WHERE site_id = :site AND status <> 'kept' AND {condition} LIMIT :most) AS found)
"""
_TAB_CONDITIONS: dict[str, str] = {
    **{str(word): f"read_at IS NULL AND assessment = '{word}'" for word in Assessment},
    PENDING: "read_at IS NULL AND assessment IS NULL",
    ReadState.TODAY: "read_at IS NOT NULL AND read_at >= :midnight",
}
_TAB_COUNTS = text(
    "UNION ALL".join(_OF_TAB.format(word=word, condition=condition) for word, condition in _TAB_CONDITIONS.items())
)
# the place of what is unread, as its indexes have it
LISTED = StudyRow.status != StoredStatus.KEPT  # in the words of the indexes
PLACE = (literal_column(DUE_MINUTE, DateTime), literal_column(CALMNESS, Float), StudyRow.id)
_age_band = literal_column(AGE_BAND, Integer)  # as the index has it


# sorts whose values are few: the column, and its values in their order. What is null stands behind them
_RANKED: dict[SortBy, tuple[InstrumentedAttribute[Any], Sequence[str]]] = {
    SortBy.ASSESSMENT: (
        StudyRow.assessment,
        (Assessment.POSITIVE, Assessment.UNCLEAR, Assessment.ABSTAINED, Assessment.NEGATIVE),
    ),
    SortBy.SEVERITY: (StudyRow.severity, (Extent.SEVERE, Extent.MODERATE, Extent.MILD, Extent.NONE)),
    SortBy.PRIORITY: (StudyRow.priority, tuple(Priority)),
}
_EXAMINED = "study_date + COALESCE(study_time, '00:00'::time)"
# the others: whether the value is not known, and the value, which is never null
_SORTED: dict[SortBy, tuple[ColumnElement[bool], ColumnElement[Any]]] = {
    SortBy.REGION: (StudyRow.region == "", StudyRow.region.expression),
    SortBy.AGE: (StudyRow.age_years.is_(None), func.coalesce(StudyRow.age_years, 0)),
    SortBy.EXAMINED: (
        StudyRow.study_date.is_(None),
        literal_column(f"COALESCE({_EXAMINED}, '0001-01-01'::timestamp)", DateTime),
    ),
    SortBy.ARRIVED: (literal(False), StudyRow.received_at.expression),
}
SortKey = tuple[int, int | str | datetime]  # whether it is not known, and what is sorted by


@dataclass(frozen=True)
class WorklistCursor:
    """A row's place in the list, in one order."""

    time: datetime  # when it was read, if that is the order; else the minute in which it is due, in UTC without a zone
    calmness: float  # its score, negated
    study_id: UUID
    key: SortKey | None = None  # of orders but DUE and READ


@dataclass(frozen=True)
class _Line:
    """How an order sorts: by a key, if it has one, then by a place that no two studies share."""

    key: Sequence[tuple[ColumnElement[Any], bool]]  # expressions, and whether they descend
    place: Sequence[Any]
    falls: bool  # whether the place descends

    @classmethod
    def of(cls, order: Order, *, backward: bool) -> "_Line":
        if order.by is SortBy.READ:
            return cls((), (StudyRow.read_at, StudyRow.id), order.descending != backward)
        if order.by is SortBy.DUE:
            return cls((), PLACE, order.descending != backward)
        unknown, value = _SORTED[order.by] if order.by in _SORTED else _rank(order.by)
        key = [(case((unknown, 1), else_=0), backward), (value, order.descending != backward)]
        return cls(key, PLACE, backward)

    def terms(self) -> list[Any]:
        """What ORDER BY says."""
        place = [one.desc() for one in self.place] if self.falls else list(self.place)
        return [one.desc() if falls else one for one, falls in self.key] + place

    def beyond(self, after: WorklistCursor) -> ColumnElement[bool]:
        """What stands behind a place."""
        behind = self.beyond_place(after)
        for (one, falls), value in reversed(list(zip(self.key, after.key or (), strict=True))):
            behind = or_(one < value if falls else one > value, and_(one == value, behind))
        return behind

    def beyond_place(self, after: WorklistCursor) -> ColumnElement[bool]:
        """What stands behind a place among those with the same key."""
        if len(self.place) < len(PLACE):
            place, mark = tuple_(*self.place), (after.time, after.study_id)
            return place < mark if self.falls else place > mark
        if self.falls:
            return tuple_(*PLACE) < (after.time, after.calmness, after.study_id)
        return tuple_(*PLACE) > (after.time, after.calmness, after.study_id)


def _rank(by: SortBy) -> tuple[ColumnElement[bool], ColumnElement[int]]:
    column, words = _RANKED[by]
    return column.is_(None), case({word: rank for rank, word in enumerate(words)}, value=column, else_=len(words))


def usual_order(state: ReadState) -> Order:
    """The order of a half of the list where nobody chose another."""
    return DUE_FIRST if state is ReadState.UNREAD else READ_LAST


def entries(
    session: Session,
    site_id: UUID,
    chosen: WorklistFilter,
    after: WorklistCursor | None,
    limit: int,
    order: Order | None = None,
    *,
    backward: bool = False,
) -> list[WorklistEntry]:
    """Read a page of the worklist.

    Unread studies are ordered by (due minute, score descending, id), the most urgent first; read ones by (read_at, id),
    the last first. In another order it is by its key, then by (due minute, score descending, id).

    Args:
        session: the caller's transaction.
        site_id: the site.
        chosen: which studies.
        after: the place of the last row of the page before (`cursor_after`); None: the first page.
        limit: how many rows.
        order: None: `usual_order`.
        backward: the page that ends before `after` instead.

    Returns:
        The rows, in their order.
    """
    order = order or usual_order(chosen.state)
    line = _Line.of(order, backward=backward)
    query = choose(_SHOWN, site_id, chosen)
    if after is not None:
        query = query.where(line.beyond(after))
    if chosen.state is ReadState.UNREAD and (order.by in _RANKED or order.by is SortBy.REGION):
        values = _values(session, site_id, order.by)
        query = query.where(StudyRow.id.in_(_first_of_each(site_id, chosen, values, line, after, limit)))
    found = _entries(session, site_id, query.order_by(*line.terms()).limit(limit))
    return found[::-1] if backward else found


def _values(session: Session, site_id: UUID, by: SortBy) -> list[tuple[SortKey, ColumnElement[bool]]]:
    """The few values that unread studies have of what is sorted by, each with its condition."""
    if by is SortBy.REGION:
        words = _distinct(session, site_id, StudyRow.region)
        return [((int(not word), word), StudyRow.region == word) for word in words]
    column, ranked = _RANKED[by]
    keys: list[tuple[SortKey, ColumnElement[bool]]] = [((0, rank), column == word) for rank, word in enumerate(ranked)]
    return [*keys, ((1, len(ranked)), column.is_(None))]


def _first_of_each(
    site_id: UUID,
    chosen: WorklistFilter,
    values: Sequence[tuple[SortKey, ColumnElement[bool]]],
    line: _Line,
    after: WorklistCursor | None,
    limit: int,
) -> Select[UUID]:
    """Ids among which a page's rows are: of each value the first ones, each off the index of that value.

    Postgres would else sort all that is unread for a page.
    """
    parts = []
    for key, condition in values:
        if after is not None and after.key is not None and not _may_follow(key, after.key, line):
            continue
        part = choose(select(StudyRow.id), site_id, chosen).where(condition)
        if after is not None and after.key == key:
            part = part.where(line.beyond_place(after))
        place = [one.desc() for one in line.place] if line.falls else line.place
        parts.append(select(part.order_by(*place).limit(limit).subquery().c.id))
    return select(union_all(*parts).subquery().c[0]) if parts else select(StudyRow.id).where(literal(False))


def _may_follow(key: SortKey, place: SortKey, line: _Line) -> bool:
    """Whether studies of this key can stand behind a place. Of words Postgres knows the order, not Python."""
    if isinstance(key[1], str):
        return True
    for mine, its, (_, falls) in zip(key, place, line.key, strict=True):
        if mine != its:
            return bool(mine < its if falls else mine > its)  # type: ignore[operator]
    return True


def cursor_after(entry: WorklistEntry, order: Order) -> WorklistCursor:
    """Find where a row of the list is, for `entries` to go on behind it.

    Args:
        entry: the row.
        order: of the list.

    Returns:
        Its place.
    """
    if order.by is SortBy.READ:
        assert entry.read_at is not None
        return WorklistCursor(entry.read_at, 0.0, entry.study_id)
    minute = entry.due_at.astimezone(UTC).replace(second=0, microsecond=0, tzinfo=None)
    key = None if order.by is SortBy.DUE else _key(entry, order.by)
    return WorklistCursor(minute, -(entry.score or 0.0), entry.study_id, key)


def _key(entry: WorklistEntry, by: SortBy) -> SortKey:
    """What Postgres sorts this row by, see `_SORTED` and `_RANKED`."""
    if by in _RANKED:
        word = {
            SortBy.ASSESSMENT: entry.assessment, SortBy.SEVERITY: entry.extent, SortBy.PRIORITY: entry.priority
        }[by]  # fmt: skip
        words = _RANKED[by][1]
        return (1, len(words)) if word is None else (0, words.index(word))
    if by is SortBy.REGION:
        return int(not entry.region), entry.region
    if by is SortBy.AGE:
        return int(entry.age_years is None), entry.age_years or 0
    if by is SortBy.ARRIVED:
        return 0, entry.received_at
    if entry.study_date is None:
        return 1, datetime(1, 1, 1)  # noqa: DTZ001 - on the clock of the hospital
    return 0, datetime.combine(entry.study_date, entry.study_time or time_of_day())


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
    return [word for word in _distinct(session, site_id, StudyRow.modality) if word]


def _distinct(session: Session, site_id: UUID, column: InstrumentedAttribute[str]) -> list[str]:
    first = select(func.min(column).label("word")).where(*_unread(site_id)).cte("found", recursive=True)
    following = select(func.min(column)).where(*_unread(site_id), column > first.c.word)
    found = first.union_all(select(following.scalar_subquery()).where(first.c.word.is_not(None)))
    return [word for word in session.scalars(select(found.c.word)) if word is not None]


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


class _Counts(Generic[Word]):
    """Counts a site's studies by a word, quickly however many there are.

    Up to FEW they are counted each time. Above, where counting takes long and one more makes no difference, they
    are counted every RECOUNT_S seconds, and never for more than a hundredth of the time.
    """

    FEW = 250
    RECOUNT_S = 2.0
    MAX_KNOWN = 1000  # counts are forgotten above: of some, the day is over

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # when to count again, and counts, by what they are of
        self._known: dict[Hashable, tuple[float, dict[Word, int]]] = {}
        self._counting = threading.Lock()

    def _all(self, of: Hashable, count: Callable[[], dict[Word, int]]) -> dict[Word, int]:
        again_at, counts = self._known.get(of, (0.0, {}))
        # one counts; the others meanwhile show what was counted last, or wait if nothing was
        if (not counts or self._clock() >= again_at) and self._counting.acquire(blocking=not counts):
            try:
                again_at, counts = self._known.get(of, (0.0, {}))
                start = self._clock()
                if not counts or start >= again_at:
                    if len(self._known) >= self.MAX_KNOWN:
                        self._known.clear()
                    counts = count()
                    now = self._clock()
                    self._known[of] = now + max(self.RECOUNT_S, 100 * (now - start)), counts
            finally:
                self._counting.release()
        return counts


class StatusCounts(_Counts[StudyStatus]):
    """Counts a site's unread studies by status; see `_Counts`."""

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
        known = self._all(site_id, lambda: status_counts(session, site_id))
        if StudyStatus.RETRYING in many:  # more than were taken off those that are queued
            many = [status for status in many if status is not StudyStatus.QUEUED]
            counts |= {StudyStatus.QUEUED: known[StudyStatus.QUEUED]}
        return counts | {status: max(self.FEW + 1, known[status]) for status in many}


class Tab(StrEnum):
    """A part of the list that the page has a tab for."""

    ALL = "all unread"
    POSITIVE = "positive"
    UNCLEAR = "unclear"
    NEGATIVE = "negative"
    ABSTAINED = "abstained"
    PENDING = "not analysed"
    TODAY = "read today"


class TabCounts(_Counts[Tab]):
    """Counts a site's studies by tab; see `_Counts`."""

    def of(self, session: Session, site_id: UUID, midnight: datetime) -> dict[Tab, int]:
        """Count a site's studies.

        Args:
            session: the caller's transaction.
            site_id: the site.
            midnight: when the day began, with a zone.

        Returns:
            The number for each tab.
        """
        counts = _tab_counts(session, site_id, midnight, self.FEW + 1)
        many = [tab for tab, count in counts.items() if count > self.FEW]
        if many:
            known = self._all((site_id, midnight), lambda: _tab_counts(session, site_id, midnight, None))
            counts |= {tab: max(self.FEW + 1, known[tab]) for tab in many}
        return {Tab.ALL: sum(count for tab, count in counts.items() if tab is not Tab.TODAY), **counts}


def _tab_counts(session: Session, site_id: UUID, midnight: datetime, limit: int | None) -> dict[Tab, int]:
    rows = session.execute(_TAB_COUNTS, {"site": site_id, "midnight": midnight, "most": limit})
    names = {word: Tab(word) for word in Assessment} | {PENDING: Tab.PENDING, str(ReadState.TODAY): Tab.TODAY}
    return {names[word]: count for word, count in rows}


def count_up_to(session: Session, site_id: UUID, chosen: WorklistFilter, limit: int) -> int:
    """Count what fits a filter.

    Args:
        session: the caller's transaction.
        site_id: the site.
        chosen: which studies.
        limit: where to stop counting.

    Returns:
        How many there are, `limit` at most.
    """
    some = choose(select(StudyRow.id), site_id, chosen).limit(limit).subquery()
    return session.scalar(select(func.count()).select_from(some)) or 0


def senders(session: Session, site_id: UUID) -> Sequence[str]:
    """List what may have sent studies to a site.

    Args:
        session: the caller's transaction.
        site_id: the site.

    Returns:
        The names of its keys that send, those of DICOM peers too, in alphabetical order.
    """
    is_peer = KeyRow.id.in_(select(PeerRow.key_id))
    sends = KeyRow.role.in_((Role.SUBMITTER, Role.ADMIN)) | is_peer
    return session.scalars(select(KeyRow.name).where(KeyRow.site_id == site_id, sends).order_by(KeyRow.name)).all()


def choose(query: Query, site_id: UUID, chosen: WorklistFilter) -> Query:
    """Restrict a query of studies to those that fit a filter.

    Args:
        query: selects from studies.
        site_id: the site.
        chosen: the filter.

    Returns:
        The query with its conditions.
    """
    read = StudyRow.read_at.is_(None) if chosen.state is ReadState.UNREAD else StudyRow.read_at.is_not(None)
    query = query.where(StudyRow.site_id == site_id, read, LISTED)
    for condition in _conditions(site_id, chosen):
        query = query.where(condition)
    for column, value in (
        (StudyRow.priority, chosen.priority),
        (StudyRow.modality, chosen.modality),
        (StudyRow.severity, chosen.severity),
        (StudyRow.sender, chosen.sender),
    ):
        if value is not None:
            query = query.where(column == value)
    return query


_AGO: Mapping[Arrived, timedelta] = {
    Arrived.HOUR: timedelta(hours=1), Arrived.DAY: timedelta(days=1), Arrived.WEEK: timedelta(days=7)
}  # fmt: skip


def _conditions(site_id: UUID, chosen: WorklistFilter) -> Iterator[ColumnElement[bool]]:
    """What a filter asks for that is not the value of one column."""
    if chosen.state is ReadState.TODAY:
        assert chosen.midnight is not None
        yield StudyRow.read_at >= chosen.midnight
    if chosen.status is not None:
        yield from _standing(site_id, chosen.status)
    if chosen.assessment == Assessed.PENDING:
        yield StudyRow.assessment.is_(None)
    elif chosen.assessment is not None:
        yield StudyRow.assessment == chosen.assessment
    if chosen.regions:
        several = len(chosen.regions) > 1
        yield StudyRow.region.in_(chosen.regions) if several else StudyRow.region == chosen.regions[0]
    if chosen.age is not None:
        yield _age_band == list(AgeBand).index(chosen.age)
    if chosen.arrived is not None:
        yield StudyRow.received_at >= func.now() - _AGO[chosen.arrived]
    if chosen.reader is not None:
        held = ReadingLockRow.ended_at.is_(None), ReadingLockRow.until >= func.now()
        read_now = StudyRow.id.in_(select(ReadingLockRow.study_id).where(*held))
        yield read_now if chosen.reader is ReadBy.SOMEBODY else ~read_now


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
