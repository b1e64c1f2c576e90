"""GET /api/v1/worklist: what to read next.

POST /api/v1/worklist/search: studies by number, or by parts of names, numbers and descriptions.
"""

import base64
import binascii
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

from fastapi import Query
from sqlalchemy.orm import Session

from api.dependencies import LoginId, Parts, PartsDep, Radiologist, SessionDep
from api.reasons import reason_fields
from api.requests import API, Router
from api.schemas import HeldFileMatch, Search, WorklistPage, WorklistRow
from api.worklist.filters import Listing, ListingDep, order_word
from shared.db.tables import HeldFileRow
from shared.domain.findings import shown_score
from shared.domain.held import HeldKind, HeldState
from shared.domain.worklist import WorklistEntry
from shared.errors import BadRequest
from shared.queries import held, studies, worklist
from shared.queries.access import Key, record_search
from shared.queries.search import (
    MAX_COMPARED,
    MAX_WORDS,
    FoundStudies,
    SearchWords,
    find_by_words,
    parse_search,
)
from shared.queries.worklist import Order, SortBy, WorklistCursor, cursor_after

router = Router(prefix=API, tags=["read"])
SHOWN_DIGITS = 8  # of an id, where it is shown short: so many find its study
MAX_CURSOR = 400  # characters


@router.get("/worklist")
def list_worklist(
    parts: PartsDep,
    key: Radiologist,
    session: SessionDep,
    login: LoginId,
    listing: ListingDep,
    after: Annotated[str | None, Query(description="the `next` of the page before", max_length=MAX_CURSOR)] = None,
    before: Annotated[
        str | None, Query(description="the `previous` of the page behind; not with `after`", max_length=MAX_CURSOR)
    ] = None,
    limit: Annotated[int, Query(ge=1, le=500, description="studies a page")] = 50,
) -> WorklistPage:
    """List studies by due time, the earliest first; every row says why it is there. Read studies come last read first.

    `sort` chooses another order. Paging is by key, not by offset: a study that arrives meanwhile neither repeats nor
    hides another. The same list as a table for other programs: GET /api/v1/worklist.csv.
    """
    return worklist_page(parts, session, key, login, listing, Place(after, before), limit)


@router.post("/worklist/search")
def search(parts: PartsDep, key: Radiologist, session: SessionDep, login: LoginId, body: Search) -> WorklistPage:
    """Find studies, read or not: by accession number or patient ID, or the first digits of their ids; or by words.

    `understood` says what was looked for by words. At most 200 studies are found. Each search is recorded.
    """
    found = search_of(parts, session, key, body)
    record_search(session, key, len(found.study_ids) + len(found.held))
    return found_page(parts, session, key, login, found)


@dataclass(frozen=True)
class Place:
    """Where a page of the list begins, or ends; both None: the first page."""

    after: str | None = None  # the `next` of the page before
    before: str | None = None  # the `previous` of the page behind


@dataclass(frozen=True)
class Found:
    """What a search found."""

    study_ids: Sequence[UUID]
    held: Sequence[HeldFileRow]
    understood: str  # what was looked for, in words; empty: one whole number
    note: str = ""  # why it is nothing, or not all


def search_of(parts: Parts, session: Session, key: Key, wanted: Search) -> Found:
    """Search; the caller records it.

    Args:
        parts: of this application.
        session: the caller's transaction.
        key: of the reader.
        wanted: a whole number, or words.

    Returns:
        What was found: studies, and files that wait for a decision or were rejected.
    """
    whole = wanted.number if wanted.number is not None else wanted.words or ""
    ids = dict.fromkeys(parts.vault.find_by_number(session, key, whole))
    if len(whole.strip()) >= SHOWN_DIGITS:
        ids |= dict.fromkeys(studies.ids_starting_with(session, key.site_id, whole))
    waiting = held.find_by_number(session, parts.vault, key, whole)
    if wanted.words is None:
        return Found(list(ids), waiting, "")
    words = parse_search(wanted.words)
    found = find_by_words(session, parts.vault, key, words)
    ids |= dict.fromkeys(found.ids)
    return Found(list(ids), waiting, understood(words), _note(words, found, nothing=not ids))


def understood(words: SearchWords) -> str:
    """What a search looks for, in words."""
    quoted = " and ".join(f"“{word}”" for word in words.words)
    text = f"{quoted} in names, IDs, accession numbers and descriptions" if quoted else ""
    days = " or ".join(f"{day.day} {day:%b %Y}" for day in words.dates)
    return "; ".join(part for part in (text, f"studies of {days}" if days else "") if part)


def _note(words: SearchWords, found: FoundStudies, *, nothing: bool) -> str:
    """Why a search found nothing, or not all; empty where it found all there is."""
    if words.no_dates:
        return f"{', '.join(words.no_dates)} is no date. Write the day as 2026-11-28 or 28.11.2026."
    if words.too_many:
        return f"Search for {MAX_WORDS} words at most."
    if not found.whole:
        return f"These are not all: of what may fit, the newest {MAX_COMPARED:,} were compared. Add a word or a date."
    return _why_nothing(words) if nothing else ""


def _why_nothing(words: SearchWords) -> str:
    if not (words.words or words.dates):
        return "There is no letter and no digit to search for."
    short = [word for word in words.words if len(word) == 1]
    if short:
        return f"One letter is looked for at beginnings only; write more than {', '.join(short)}."
    if len(words.words) + bool(words.dates) > 1:
        return "Each word, and one of the dates, must be of the same study: leave one out."
    return "Only studies of this site are searched, those that were read too; deleted ones are gone."


def found_page(parts: Parts, session: Session, key: Key, login: str, found: Found) -> WorklistPage:
    """Show what a search found.

    Args:
        parts: of this application.
        session: the caller's transaction.
        key: of the reader.
        login: the login of the reader's key; "" for a program.
        found: as `search_of` found it.

    Returns:
        The studies as a page of the worklist, and the files.
    """
    entries = worklist.entries_of(session, key.site_id, found.study_ids)
    now = datetime.now(UTC)
    return WorklistPage(
        entries=[_row(rank, entry, now, (key.id, login)) for rank, entry in enumerate(entries, start=1)],
        next=None,
        counts=parts.counts.of(session, key.site_id),
        understood=". ".join(part for part in (found.understood, found.note) if part),
        held=[
            HeldFileMatch(
                kind=HeldKind(row.kind),
                state=HeldState(row.state),
                received_at=row.received_at,
                study_id=row.study_id if row.kind == HeldKind.CORRECTION else None,
            )
            for row in found.held
        ],
    )


def worklist_page(
    parts: Parts, session: Session, key: Key, login: str, listing: Listing, place: Place, limit: int
) -> WorklistPage:
    """Build the response of GET /api/v1/worklist.

    Args:
        parts: of this application.
        session: the caller's transaction.
        key: of the reader.
        login: the login of the reader's key; "" for a program.
        listing: which studies, and in which order.
        place: which page.
        limit: studies a page.

    Returns:
        The page.

    Raises:
        BadRequest: the place is none of this list.
    """
    page = rows_page(session, key, login, listing, place, limit)
    return page.model_copy(update={"counts": parts.counts.of(session, key.site_id)})


def rows_page(session: Session, key: Key, login: str, listing: Listing, place: Place, limit: int) -> WorklistPage:
    """Read a page without counts, which pages for people show otherwise.

    Args:
        session: the caller's transaction.
        key: of the reader.
        login: the login of the reader's key; "" for a program.
        listing: which studies, and in which order.
        place: which page.
        limit: studies a page.

    Returns:
        The page.

    Raises:
        BadRequest: the place is none of this list.
    """
    if place.after is not None and place.before is not None:
        raise BadRequest("Give `after` or `before`, not both")
    backward, order = place.before is not None, listing.order
    at = _decode(place.before if backward else place.after, order)
    entries = worklist.entries(session, key.site_id, listing.chosen, at, limit + 1, order, backward=backward)
    more = len(entries) > limit
    entries = (entries[1:] if backward else entries[:limit]) if more else entries
    now = datetime.now(UTC)
    before, behind = (more, True) if backward else (at is not None, more)
    return WorklistPage(
        entries=[_row(rank, entry, now, (key.id, login)) for rank, entry in enumerate(entries, start=1)],
        next=_encode(entries[-1], order) if behind and entries else None,
        previous=_encode(entries[0], order) if before and entries else None,
        counts={},
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


def _encode(entry: WorklistEntry, order: Order) -> str:
    place = cursor_after(entry, order)
    values = [order_word(order), place.time.isoformat(), place.calmness, str(place.study_id)]
    if place.key is not None:
        unknown, value = place.key
        values += [unknown, value.isoformat() if isinstance(value, datetime) else value]
    return base64.urlsafe_b64encode(json.dumps(values, ensure_ascii=False).encode()).decode()


def _decode(text: str | None, order: Order) -> WorklistCursor | None:
    if text is None:
        return None
    foreign = BadRequest("`after` must be the `next`, and `before` the `previous`, of a page of this list")
    if len(text) > MAX_CURSOR:
        raise foreign
    try:
        word, time, calmness, study_id, *key = json.loads(base64.urlsafe_b64decode(text))
        place = WorklistCursor(
            _time_of(time), float(calmness), UUID(study_id), _sort_key(order.by, key) if key else None
        )
    except (ValueError, TypeError, AttributeError, OverflowError, binascii.Error):
        raise foreign from None
    is_aware = place.time.tzinfo is not None
    if word != order_word(order) or is_aware != (order.by is SortBy.READ) or not math.isfinite(place.calmness):
        raise BadRequest("`after` is of the other half of the list, or of another order. Ask for the first page again")
    if (place.key is None) != (order.by in (SortBy.DUE, SortBy.READ)):
        raise foreign
    return place


def _time_of(text: str) -> datetime:
    """A time of a cursor; one with a zone in UTC, for Postgres takes no zone that is 16 hours or more from it."""
    at = datetime.fromisoformat(text)
    return at if at.tzinfo is None else at.astimezone(UTC)


def _sort_key(by: SortBy, values: Sequence[object]) -> worklist.SortKey:
    """What a cursor says of what is sorted by. Raises ValueError for what no row can have."""
    match by, values:
        case SortBy.REGION, [int(unknown), str(value)] if value.isprintable():
            return unknown % 2, value
        case ((SortBy.EXAMINED | SortBy.ARRIVED), [int(unknown), str(value)]):
            at = _time_of(value)
            if (at.tzinfo is not None) == (by is SortBy.ARRIVED):
                return unknown % 2, at
        case ((SortBy.AGE | SortBy.ASSESSMENT | SortBy.SEVERITY | SortBy.PRIORITY), [int(unknown), int(value)]):
            if 0 <= value < 1000:
                return unknown % 2, value
    raise ValueError("no row has such a place")
