"""What people and programs read: the worklist, one study, its pictures."""

import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    DateTime,
    Float,
    Integer,
    Row,
    Select,
    func,
    literal_column,
    or_,
    select,
    text,
    tuple_,
)
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.orm import Session

from shared.errors import BadRequest, NotFound
from shared.findings import Assessment, ExposedField, Heatmap, Severity, abstention_of
from shared.study import Priority, StudyStatus
from shared.tables import BundleRow, FindingRow, InstanceRow, SiteRow, StudyRow
from shared.tables.studies import AGE_BAND, CALMNESS, DUE_MINUTE
from shared.worklist import WorklistEntry

Query = TypeVar("Query", bound=Select[*tuple[Any, ...]])


class ReadState(StrEnum):
    """Which half of the list."""

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
    """What to show; None shows all, but of the two halves, which are never mixed."""

    status: StudyStatus | None = None
    assessment: Assessment | None = None
    region: str | None = None
    priority: Priority | None = None
    modality: str | None = None
    severity: Severity | None = None
    age: AgeBand | None = None
    state: ReadState = ReadState.UNREAD


# the columns of WorklistEntry, in its order: whole rows would cost as much again
_SHOWN = select(
    StudyRow.id,
    StudyRow.priority,
    StudyRow.status,
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
    StudyRow.reason,
    StudyRow.read_at,
    StudyRow.sex,
    StudyRow.age_years,
    StudyRow.study_date,
    StudyRow.study_time,
    StudyRow.body_part,
    StudyRow.laterality,
    StudyRow.views,
    StudyRow.header_version,
)
MOST_ALIKE = 5
SHORT_ID = re.compile(r"[0-9a-f]{4,32}")  # the first digits of an id, without dashes
_HOLDERS = text("""
    SELECT study_id, name, claimed_at, key_id, desk FROM study_claims JOIN api_keys ON api_keys.id = key_id
    WHERE ended_at IS NULL AND until >= now() AND api_keys.site_id = :site
""")
# one subquery for all states: planning five takes longer than counting
_COUNTS = text("""
    SELECT word, (
        SELECT count(*) FROM (
            SELECT FROM studies WHERE site_id = :site AND read_at IS NULL AND status = word LIMIT :most
        ) AS found
    ) FROM unnest(CAST(:words AS text[])) AS word
""")
# the place of what is unread, as its indexes have it
PLACE = (literal_column(DUE_MINUTE, DateTime), literal_column(CALMNESS, Float), StudyRow.id)
_age_band = literal_column(AGE_BAND, Integer)  # as the index has it


@dataclass(frozen=True)
class Place:
    """A row's place in one of the two halves of the list."""

    time: datetime  # when it was read; of what is unread the minute in which it is due, in UTC without a zone
    calmness: float  # of what is unread its score, negated
    study_id: UUID


@dataclass(frozen=True)
class InstanceView:
    """One instance with its newest findings, one per frame."""

    row: InstanceRow
    findings: list[FindingRow]


def worklist(
    session: Session, site_id: UUID, chosen: WorklistFilter, after: Place | None, limit: int
) -> list[WorklistEntry]:
    """A page of the worklist, starting behind the place of the last row of the page before (`place_of`).

    What is unread comes by (due minute, score descending, id), the most urgent first; what was read by (read_at, id),
    the last first.
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
    return _with_readers(session, site_id, [_entry(*row) for row in session.execute(query.limit(limit))])


def place_of(entry: WorklistEntry, state: ReadState) -> Place:
    """Where a row of the list stands: what `worklist` takes to go on behind it."""
    if state is ReadState.READ:
        assert entry.read_at is not None
        return Place(entry.read_at, 0.0, entry.study_id)
    minute = entry.due_at.astimezone(UTC).replace(second=0, microsecond=0, tzinfo=None)
    return Place(minute, -(entry.score or 0.0), entry.study_id)


def worklist_of(session: Session, site_id: UUID, study_ids: Sequence[UUID]) -> list[WorklistEntry]:
    """These studies of a site, read or not: what is unread first, in the order of the list."""
    query = _SHOWN.where(StudyRow.site_id == site_id, StudyRow.id.in_(study_ids))
    rows = session.execute(query.order_by(StudyRow.read_at.is_not(None), *PLACE))
    return _with_readers(session, site_id, [_entry(*row) for row in rows])


def _with_readers(session: Session, site_id: UUID, entries: list[WorklistEntry]) -> list[WorklistEntry]:
    """The same rows, with who reads them now. A site has as many open claims as readers: all are fetched."""
    held = session.execute(_HOLDERS, {"site": site_id})
    readers = {study_id: reader for study_id, *reader in held}
    names = ("reader", "reading_since", "reader_key", "reader_desk")
    return [
        replace(entry, **dict(zip(names, readers[entry.study_id], strict=True))) if entry.study_id in readers else entry
        for entry in entries
    ]


def modalities(session: Session, site_id: UUID) -> list[str]:
    """Which modalities a site's unread studies have, however many there are: one step through the index for each."""
    first = select(func.min(StudyRow.modality).label("word")).where(*_unread(site_id)).cte("found", recursive=True)
    following = select(func.min(StudyRow.modality)).where(*_unread(site_id), StudyRow.modality > first.c.word)
    found = first.union_all(select(following.scalar_subquery()).where(first.c.word.is_not(None)))
    return [word for word in session.scalars(select(found.c.word)) if word]


def _unread(site_id: UUID) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return StudyRow.site_id == site_id, StudyRow.read_at.is_(None)


def status_counts(session: Session, site_id: UUID, most: int | None = None) -> dict[StudyStatus, int]:
    """How many unread studies of a site stand in each status; with `most`, none is counted further than that."""
    rows = session.execute(_COUNTS, {"site": site_id, "most": most, "words": list(StudyStatus)})
    return {StudyStatus(status): count for status, count in rows}


def all_status_counts(session: Session) -> dict[StudyStatus, int]:
    """How many studies of all sites stand in each status but "analysed", of which there are too many to count."""
    open_ones = StudyRow.status != StudyStatus.ANALYSED
    rows = session.execute(select(StudyRow.status, func.count()).where(open_ones).group_by(StudyRow.status))
    found = {status: count for status, count in rows}  # noqa: C416 - rows are no tuples to the type checker
    return {status: found.get(status, 0) for status in StudyStatus if status is not StudyStatus.ANALYSED}


class StatusCounts:
    """How many unread studies of a site stand in each status, at once however many there are.

    To FEW it is counted anew each time. Above, where counting takes long and one study more tells nobody anything, it
    is counted every RECOUNT_S seconds, and never for more than a hundredth of the time.
    """

    FEW = 250
    RECOUNT_S = 2.0

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: dict[UUID, tuple[float, dict[StudyStatus, int]]] = {}  # by site: when to count again, and counts
        self._counting = threading.Lock()

    def of(self, session: Session, site_id: UUID) -> dict[StudyStatus, int]:
        """The counts of a site."""
        counts = status_counts(session, site_id, self.FEW + 1)
        many = [status for status, count in counts.items() if count > self.FEW]
        if not many:
            return counts
        known = self._all(session, site_id)
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
    """The query of studies, only for those of a site that fit the filter."""
    read = StudyRow.read_at.is_not(None) if chosen.state is ReadState.READ else StudyRow.read_at.is_(None)
    query = query.where(StudyRow.site_id == site_id, read)
    if chosen.age is not None:
        query = query.where(_age_band == list(AgeBand).index(chosen.age))
    for column, value in (
        (StudyRow.status, chosen.status),
        (StudyRow.assessment, chosen.assessment),
        (StudyRow.region, chosen.region),
        (StudyRow.priority, chosen.priority),
        (StudyRow.modality, chosen.modality),
        (StudyRow.severity, chosen.severity),
    ):
        if value is not None:
            query = query.where(column == value)
    return query


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
        Severity(severity) if severity else None,
        region,
        probability,
        score,
        abstention_of(abstention),
        *rest,
    )


def study(session: Session, site_id: UUID, study_id: UUID) -> StudyRow:
    """One study of this site. Raises NotFound."""
    row = session.scalar(select(StudyRow).where(StudyRow.id == study_id, StudyRow.site_id == site_id))
    if row is None:
        raise NotFound(f"there is no study {study_id} here")
    return row


def starting_with(session: Session, site_id: UUID, start: str) -> list[UUID]:
    """The site's studies whose ids begin so, at most MOST_ALIKE of them; none for what is no beginning of an id."""
    digits = start.strip().lower().replace("-", "")
    if not SHORT_ID.fullmatch(digits):
        return []
    first, last = UUID(digits.ljust(32, "0")), UUID(digits.ljust(32, "f"))
    found = session.scalars(
        select(StudyRow.id).where(StudyRow.site_id == site_id, StudyRow.id.between(first, last)).order_by(StudyRow.id)
    )
    return list(found.fetchmany(MOST_ALIKE))


def named(session: Session, site_id: UUID, start: str) -> UUID:
    """The one study whose id begins so. Raises NotFound, and BadRequest, which names them, where there are several."""
    found = starting_with(session, site_id, start)
    if not found:
        raise NotFound(f"there is no study {start} here")
    if len(found) > 1:
        more = ", …" if len(found) == MOST_ALIKE else ""
        raise BadRequest(f"{start} begins several ids: {', '.join(map(str, found))}{more}; give more of one")
    return found[0]


def studies(session: Session, site_id: UUID, study_ids: Sequence[UUID]) -> dict[UUID, StudyRow]:
    """These studies of a site, by id."""
    rows = session.scalars(select(StudyRow).where(StudyRow.site_id == site_id, StudyRow.id.in_(study_ids)))
    return {row.id: row for row in rows}


def states(session: Session, site_id: UUID, study_ids: Sequence[UUID]) -> Sequence[Row[UUID, str, str, int]]:
    """(id, status, reason, how many images are stored) of those of these studies that are this site's."""
    stored = select(func.count()).where(InstanceRow.study_id == StudyRow.id).scalar_subquery().label("stored")
    query = select(StudyRow.id, StudyRow.status, StudyRow.reason, stored)
    return session.execute(query.where(StudyRow.site_id == site_id, StudyRow.id.in_(study_ids))).all()


def arrived(
    session: Session, site: str, since: datetime, until: datetime
) -> Sequence[Row[datetime, str, str | None, str | None, float | None]]:
    """(received_at, priority, assessment, severity, probability of fracture) of a site's studies, in order."""
    query = select(
        StudyRow.received_at, StudyRow.priority, StudyRow.assessment, StudyRow.severity, StudyRow.fracture_probability
    ).join(SiteRow, SiteRow.id == StudyRow.site_id)
    chosen = query.where(SiteRow.name == site, StudyRow.received_at >= since, StudyRow.received_at < until)
    return session.execute(chosen.order_by(StudyRow.received_at, StudyRow.id)).all()


def instances(session: Session, study_id: UUID) -> list[InstanceView]:
    """A study's instances in order of arrival, each frame with the finding that the study's summary rests on.

    That is the one of the study's bundle; of a frame without it, the newest. What a bundle found that was never active,
    as a shadow, is nobody's to see.
    """
    newest = (
        select(FindingRow)
        .join(InstanceRow)
        .join(StudyRow)
        .join(BundleRow, BundleRow.name == FindingRow.bundle)
        .where(
            InstanceRow.study_id == study_id,
            or_(FindingRow.bundle == StudyRow.bundle, BundleRow.activated_at.is_not(None)),
        )
        .ext(distinct_on(FindingRow.instance_id, FindingRow.frame))
        .order_by(
            FindingRow.instance_id,
            FindingRow.frame,
            (FindingRow.bundle == StudyRow.bundle).desc(),
            FindingRow.created_at.desc(),
            FindingRow.id,
        )
    )
    found: dict[UUID, list[FindingRow]] = {}
    for finding in session.scalars(newest):
        found.setdefault(finding.instance_id, []).append(finding)
    rows = session.scalars(
        select(InstanceRow)
        .where(InstanceRow.study_id == study_id)
        .order_by(InstanceRow.received_at, InstanceRow.sop_instance_uid)
    )
    return [InstanceView(row, found.get(row.id, [])) for row in rows]


def image(session: Session, site_id: UUID, study_id: UUID, number: int, frame: int) -> InstanceRow:
    """The instance with this number in its study (1 for the first), which has such a frame. Raises NotFound."""
    study(session, site_id, study_id)
    rows = session.scalars(
        select(InstanceRow)
        .where(InstanceRow.study_id == study_id)
        .order_by(InstanceRow.received_at, InstanceRow.sop_instance_uid)
    ).all()
    if not 1 <= number <= len(rows):
        raise NotFound(f"the study has {len(rows)} image(s); there is no image {number}")
    row = rows[number - 1]
    if not 1 <= frame <= row.frames:
        raise NotFound(f"image {number} has {row.frames} frame(s); there is no frame {frame}")
    return row


def sha256_of_instance(session: Session, instance_id: UUID) -> str | None:
    """The key of an instance's bytes; None if there is no such instance any more."""
    return session.scalar(select(InstanceRow.sha256).where(InstanceRow.id == instance_id))


def picture(
    session: Session, site_id: UUID, study_id: UUID, instance: int, frame: int
) -> tuple[InstanceRow, Heatmap, ExposedField]:
    """The instance behind a picture (its number in the study, 1 for the first), its frame's newest heatmap and field.

    Raises NotFound as `frame_finding`.
    """
    row, finding = frame_finding(session, site_id, study_id, instance, frame)
    found = Heatmap(finding.heatmap, finding.heatmap_height, finding.heatmap_width)
    return row, found, field_of(finding, row)


def field_of(finding: FindingRow, image: InstanceRow) -> ExposedField:
    """Where in the image the model looked for a finding."""
    return ExposedField(*finding.field) if finding.field else ExposedField.whole(image.rows, image.columns)


def frame_finding(
    session: Session, site_id: UUID, study_id: UUID, instance: int, frame: int
) -> tuple[InstanceRow, FindingRow]:
    """An instance (its number in the study, 1 for the first) and its frame's newest finding.

    Raises NotFound if there is no such image, or it has no finding yet.
    """
    study(session, site_id, study_id)
    views = instances(session, study_id)
    if not 1 <= instance <= len(views):
        raise NotFound(f"the study has {len(views)} image(s); there is no image {instance}")
    view = views[instance - 1]
    for finding in view.findings:
        if finding.frame == frame:
            return view.row, finding
    raise NotFound(view.row.error_text or f"image {instance} frame {frame} has no finding yet")
