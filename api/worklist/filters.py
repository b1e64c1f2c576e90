"""Saved filters: a choice of filters under a name, of one key."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, TypeVar
from urllib.parse import parse_qsl, urlencode
from uuid import UUID

from fastapi import HTTPException, Path

from api.dependencies import Radiologist, SessionDep
from api.requests import API, Router
from api.schemas import SavedFilter, SavedFilterView
from shared.domain.findings import Assessment, Extent
from shared.domain.study import Priority, StudyStatus
from shared.errors import BadRequest
from shared.queries import reading_locks
from shared.queries.worklist import AgeBand, ReadState, WorklistFilter

MAX_FILTER_LENGTH = 400  # characters of a saved filter
router = Router(prefix=API, tags=["read"])
Word = TypeVar("Word", bound=StrEnum)
NAMES = (
    "state",
    "status",
    "assessment",
    "severity",
    "region",
    "age",
    "modality",
    "priority",
)  # as addresses have them


def chosen_filter(given: Mapping[str, str]) -> WorklistFilter:
    """The filters of an address; an empty value means any, as forms send it. Raises BadRequest for unknown values."""
    return WorklistFilter(
        status=_word(StudyStatus, given.get("status")),
        assessment=_word(Assessment, given.get("assessment")),
        region=_text(given.get("region"), 32),
        priority=_word(Priority, given.get("priority")),
        modality=_text(given.get("modality"), 16),
        severity=_word(Extent, given.get("severity")),
        age=_word(AgeBand, given.get("age")),
        state=_word(ReadState, given.get("state")) or ReadState.UNREAD,
    )


def only_filters(given: Mapping[str, str]) -> dict[str, str]:
    """The filters of an address that restrict the list, by name."""
    chosen = {name: given[name] for name in NAMES if given.get(name)}
    return {name: word for name, word in chosen.items() if (name, word) != ("state", ReadState.UNREAD)}


def _word(kind: type[Word], text: str | None) -> Word | None:
    try:
        return kind(text) if text else None
    except ValueError:
        raise BadRequest(f"Choose one of: {', '.join(kind)}") from None


def _text(text: str | None, longest: int) -> str | None:
    if text and not (text.isprintable() and len(text) <= longest):
        raise BadRequest("There is no such region or modality; choose one that the list has")
    return text or None


@router.get("/filters")
def saved(key: Radiologist, session: SessionDep) -> list[SavedFilterView]:
    """List your saved filters, by name."""
    rows = reading_locks.saved_filters(session, key)
    return [SavedFilterView.of_row(row) for row in rows]


@router.post("/filters", status_code=201)
def save(key: Radiologist, session: SessionDep, body: SavedFilter) -> list[SavedFilterView]:
    """Save a filter; it replaces one of the same name. The response lists all your filters."""
    try:
        given = only_filters(dict(parse_qsl(body.query, max_num_fields=32)))
    except ValueError:
        raise BadRequest("These are too many filters; save fewer") from None
    if len(urlencode(given)) > MAX_FILTER_LENGTH:
        raise BadRequest("These filters are too long to be saved; save fewer")
    chosen_filter(given)
    if not reading_locks.save_filter(session, key, body.name.strip(), urlencode(given)):
        raise HTTPException(409, f"At most {reading_locks.MAX_FILTERS} filters can be saved; delete one first")
    return saved(key, session)


@router.delete("/filters/{filter_id}", status_code=204)
def forget(
    filter_id: Annotated[UUID, Path(description="of a saved filter")], key: Radiologist, session: SessionDep
) -> None:
    """Delete one of your saved filters."""
    if not reading_locks.delete_filter(session, key, filter_id):
        raise HTTPException(404, "You have no such filter; GET /api/v1/filters lists yours")
