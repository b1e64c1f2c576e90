"""GET /api/v1/worklist: what to read next.

POST /api/v1/worklist/search: the studies of one accession number or patient.
"""

import base64
import binascii
import json
import math
from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

from fastapi import Query
from sqlalchemy.orm import Session

from api.dependencies import PRINTABLE, LoginId, Parts, PartsDep, Radiologist, SessionDep
from api.reasons import reason_fields
from api.requests import API, Router
from api.schemas import HeldFileMatch, Search, WorklistPage, WorklistRow
from shared.domain.findings import Assessment, Extent, shown_score
from shared.domain.held import HeldKind, HeldState
from shared.domain.study import Priority, StudyStatus
from shared.domain.worklist import WorklistEntry
from shared.errors import BadRequest
from shared.queries import held, studies, worklist
from shared.queries.access import Key
from shared.queries.worklist import AgeBand, ReadState, WorklistCursor, cursor_after

router = Router(prefix=API, tags=["read"])
SHOWN_DIGITS = 8  # of an id, where it is shown short: so many find its study


@router.get("/worklist")
def list_worklist(
    parts: PartsDep,
    key: Radiologist,
    session: SessionDep,
    login: LoginId,
    status: Annotated[StudyStatus | None, Query(description="only studies in this state")] = None,
    assessment: Annotated[Assessment | None, Query(description="only with this assessment by the model")] = None,
    region: Annotated[
        str | None, Query(max_length=32, pattern=PRINTABLE, description="only of this body region")
    ] = None,
    priority: Annotated[Priority | None, Query(description="only with this priority")] = None,
    modality: Annotated[
        str | None, Query(max_length=16, pattern=PRINTABLE, description="only of this modality")
    ] = None,
    severity: Annotated[Extent | None, Query(description="only with this extent, by annotation")] = None,
    age: Annotated[AgeBand | None, Query(description="of the patient at the study, in years")] = None,
    state: Annotated[ReadState, Query(description="what waits for its reader, or what was read")] = ReadState.UNREAD,
    after: Annotated[str | None, Query(description="the `next` of the page before", max_length=200)] = None,
    limit: Annotated[int, Query(ge=1, le=500, description="studies a page")] = 50,
) -> WorklistPage:
    """List studies by due time, the earliest first; every row says why it is there. Read studies come last read first.

    Paging is by key, not by offset: a study that arrives meanwhile neither repeats nor hides another.
    """
    chosen = worklist.WorklistFilter(status, assessment, region, priority, modality, severity, age, state)
    return worklist_page(parts, session, key, login, chosen, after, limit)


@router.post("/worklist/search")
def search(parts: PartsDep, key: Radiologist, session: SessionDep, login: LoginId, body: Search) -> WorklistPage:
    """Find studies by accession number or patient ID, read or not, or by the first digits of their ids.

    Each search is recorded.
    """
    noted_search(parts, session, key, body.number)
    return found_page(parts, session, key, login, body.number)


def noted_search(parts: Parts, session: Session, key: Key, number: str) -> None:
    """Record a search.

    Args:
        parts: of this application.
        session: the caller's transaction.
        key: of the reader.
        number: that was searched for; it is not recorded.
    """
    waiting = held.find_by_number(session, parts.vault, key, number)
    parts.vault.search(session, key, number, len(waiting))


def found_page(parts: Parts, session: Session, key: Key, login: str, number: str) -> WorklistPage:
    """Find studies by a number, and files with it that wait for a decision or were rejected.

    Args:
        parts: of this application.
        session: the caller's transaction.
        key: of the reader.
        login: the login of the reader's key; "" for a program.
        number: accession number or patient ID, or the first digits of a study's id.

    Returns:
        The studies as a page of the worklist, and the files.
    """
    found = parts.vault.find_by_number(session, key, number)
    if len(number.strip()) >= SHOWN_DIGITS:
        found += studies.ids_starting_with(session, key.site_id, number)
    waiting = held.find_by_number(session, parts.vault, key, number)
    entries = worklist.entries_of(session, key.site_id, found)
    counts = parts.counts.of(session, key.site_id)
    now = datetime.now(UTC)
    return WorklistPage(
        entries=[_row(rank, entry, now, (key.id, login)) for rank, entry in enumerate(entries, start=1)],
        next=None,
        counts=counts,
        held=[
            HeldFileMatch(
                kind=HeldKind(row.kind),
                state=HeldState(row.state),
                received_at=row.received_at,
                study_id=row.study_id if row.kind == HeldKind.CORRECTION else None,
            )
            for row in waiting
        ],
    )


def worklist_page(
    parts: Parts, session: Session, key: Key, login: str, chosen: worklist.WorklistFilter, after: str | None, limit: int
) -> WorklistPage:
    """Build the response of GET /api/v1/worklist, which the page uses too.

    Args:
        parts: of this application.
        session: the caller's transaction.
        key: of the reader.
        login: the login of the reader's key; "" for a program.
        chosen: which studies.
        after: the `next` of the page before; None: the first page.
        limit: studies a page.

    Returns:
        The page.

    Raises:
        BadRequest: `after` is no `next` of a page.
    """
    entries = worklist.entries(session, key.site_id, chosen, _decode(after, chosen.state), limit + 1)
    counts = parts.counts.of(session, key.site_id)
    more, entries = len(entries) > limit, entries[:limit]
    now = datetime.now(UTC)
    return WorklistPage(
        entries=[_row(rank, entry, now, (key.id, login)) for rank, entry in enumerate(entries, start=1)],
        next=_encode(entries[-1], chosen.state) if more else None,
        counts=counts,
    )


def _row(rank: int, entry: WorklistEntry, now: datetime, asking: tuple[UUID, str]) -> WorklistRow:
    """asking: key and login of who asks."""
    return WorklistRow.of_row(
        entry,
        rank=rank,
        url=f"/api/v1/studies/{entry.study_id}",
        why=entry.why(),
        summary=entry.summary(),
        overdue=entry.due_at < now and entry.read_at is None,
        severity=entry.extent,
        score=None if entry.score is None else shown_score(entry.score),
        **reason_fields(entry.reason, entry.reason_detail),
        mine=(entry.reader_key, entry.reader_login) == asking,
    )


def _encode(entry: WorklistEntry, state: ReadState) -> str:
    place = cursor_after(entry, state)
    values = [place.time.isoformat(), place.calmness, str(place.study_id)]
    return base64.urlsafe_b64encode(json.dumps(values).encode()).decode()


def _decode(after: str | None, state: ReadState) -> WorklistCursor | None:
    if after is None:
        return None
    if len(after) > 200:
        raise BadRequest("`after` must be the `next` of the page before")
    try:
        time, calmness, study_id = json.loads(base64.urlsafe_b64decode(after))
        place = WorklistCursor(datetime.fromisoformat(time), float(calmness), UUID(study_id))
    except (ValueError, TypeError, AttributeError, OverflowError, binascii.Error):
        raise BadRequest("`after` must be the `next` of the page before") from None
    if (place.time.tzinfo is None) != (state is ReadState.UNREAD) or not math.isfinite(place.calmness):
        raise BadRequest("`after` is of the other half of the list: read studies, or unread ones")
    return place
