"""GET /worklist: what to read next. POST /worklist/search: the studies of one accession number or patient."""

import base64
import binascii
import json
import math
from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query

from api.dependencies import PRINTABLE, Desk, Parts, PartsDep, Radiologist
from api.responses import HeldFound, Search, WorklistPage, WorklistRow
from shared.errors import BadRequest
from shared.findings import Assessment, Severity, shown_score
from shared.held import Kind, State
from shared.repository import held, reading
from shared.repository.access import Key
from shared.repository.reading import AgeBand, Place, ReadState, place_of
from shared.study import Priority, StudyStatus
from shared.worklist import WorklistEntry

router = APIRouter(tags=["read"])
SHOWN_DIGITS = 8  # of an id, where it is shown short: so many find its study


@router.get("/worklist")
def worklist(
    parts: PartsDep,
    key: Radiologist,
    desk: Desk,
    status: StudyStatus | None = None,
    assessment: Assessment | None = None,
    region: Annotated[str | None, Query(max_length=32, pattern=PRINTABLE)] = None,
    priority: Priority | None = None,
    modality: Annotated[str | None, Query(max_length=16, pattern=PRINTABLE)] = None,
    severity: Severity | None = None,
    age: Annotated[AgeBand | None, Query(description="of the patient at the study, in years")] = None,
    state: Annotated[ReadState, Query(description="what waits for its reader, or what was read")] = ReadState.UNREAD,
    after: Annotated[str | None, Query(description="the `next` of the page before", max_length=200)] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
) -> WorklistPage:
    """Studies by due time, earliest first; every row says why it stands there. Those read come last read first.

    Paging is by key, not by offset: a study that arrives meanwhile neither repeats nor hides another.
    """
    chosen = reading.WorklistFilter(status, assessment, region, priority, modality, severity, age, state)
    return worklist_page(parts, key, desk, chosen, after, limit)


@router.post("/worklist/search")
def search(parts: PartsDep, key: Radiologist, desk: Desk, wanted: Search) -> WorklistPage:
    """The studies with exactly this accession number or patient id, read or not, or whose own id begins so.

    Each search is on record.
    """
    noted_search(parts, key, wanted.number)
    return found_page(parts, key, desk, wanted.number)


def noted_search(parts: Parts, key: Key, number: str) -> None:
    """Leave an audit row of a search."""
    with parts.database.transaction() as session:
        waiting = held.matching(session, parts.vault, key, number)
        parts.vault.search(session, key, number, len(waiting))


def found_page(parts: Parts, key: Key, desk: str, number: str) -> WorklistPage:
    """The rows of studies with this number, and the files with it that wait for a decision or were rejected."""
    with parts.database.transaction() as session:
        found = parts.vault.matching(session, key, number)
        if len(number.strip()) >= SHOWN_DIGITS:
            found += reading.starting_with(session, key.site_id, number)
        waiting = held.matching(session, parts.vault, key, number)
        entries = reading.worklist_of(session, key.site_id, found)
        counts = parts.counts.of(session, key.site_id)
    now = datetime.now(UTC)
    return WorklistPage(
        entries=[_row(rank, entry, now, (key.id, desk)) for rank, entry in enumerate(entries, start=1)],
        next=None,
        counts=counts,
        held=[
            HeldFound(
                kind=Kind(row.kind),
                state=State(row.state),
                received_at=row.received_at,
                study_id=row.study_id if row.kind == Kind.CORRECTION else None,
            )
            for row in waiting
        ],
    )


def worklist_page(
    parts: Parts, key: Key, desk: str, chosen: reading.WorklistFilter, after: str | None, limit: int
) -> WorklistPage:
    """What GET /worklist answers; the page shows the same. Raises BadRequest for a foreign `after`."""
    with parts.database.transaction() as session:
        entries = reading.worklist(session, key.site_id, chosen, _decode(after, chosen.state), limit + 1)
        counts = parts.counts.of(session, key.site_id)
    more, entries = len(entries) > limit, entries[:limit]
    now = datetime.now(UTC)
    return WorklistPage(
        entries=[_row(rank, entry, now, (key.id, desk)) for rank, entry in enumerate(entries, start=1)],
        next=_encode(entries[-1], chosen.state) if more else None,
        counts=counts,
    )


def _row(rank: int, entry: WorklistEntry, now: datetime, asking: tuple[UUID, str]) -> WorklistRow:
    """asking: key and desk of who asks."""
    return WorklistRow(
        rank=rank,
        study_id=entry.study_id,
        url=f"/studies/{entry.study_id}",
        why=entry.why(),
        due_at=entry.due_at,
        overdue=entry.due_at < now and entry.read_at is None,
        received_at=entry.received_at,
        priority=entry.priority,
        status=entry.status,
        assessment=entry.assessment,
        severity=entry.severity,
        region=entry.region,
        fracture_probability=entry.fracture_probability,
        score=None if entry.score is None else shown_score(entry.score),
        abstention=entry.abstention,
        abstention_detail=entry.abstention_detail,
        modality=entry.modality,
        images=entry.images,
        failed_images=entry.failed_images,
        reason=entry.reason,
        read_at=entry.read_at,
        reader=entry.reader,
        reading_since=entry.reading_since,
        mine=(entry.reader_key, entry.reader_desk) == asking,
        sex=entry.sex,
        age_years=entry.age_years,
        study_date=entry.study_date,
        study_time=entry.study_time,
        body_part=entry.body_part,
        laterality=entry.laterality,
        views=entry.views,
        header_version=entry.header_version,
    )


def _encode(entry: WorklistEntry, state: ReadState) -> str:
    place = place_of(entry, state)
    told = [place.time.isoformat(), place.calmness, str(place.study_id)]
    return base64.urlsafe_b64encode(json.dumps(told).encode()).decode()


def _decode(after: str | None, state: ReadState) -> Place | None:
    if after is None:
        return None
    if len(after) > 200:
        raise BadRequest("`after` must be the `next` of the page before")
    try:
        time, calmness, study_id = json.loads(base64.urlsafe_b64decode(after))
        place = Place(datetime.fromisoformat(time), float(calmness), UUID(study_id))
    except (ValueError, TypeError, AttributeError, binascii.Error):
        raise BadRequest("`after` must be the `next` of the page before") from None
    if (place.time.tzinfo is None) != (state is ReadState.UNREAD) or not math.isfinite(place.calmness):
        raise BadRequest("`after` is of the other half of the list: read studies, or unread ones")
    return place
