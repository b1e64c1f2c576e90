"""Saved filters: a choice of filters under a name, of one key."""

from collections.abc import Mapping
from enum import StrEnum
from typing import TypeVar
from urllib.parse import parse_qsl, urlencode
from uuid import UUID

from fastapi import APIRouter, HTTPException

from api.dependencies import PartsDep, Radiologist
from api.responses import SavedFilter, SavedFilterView
from shared.errors import BadRequest
from shared.findings import Assessment, Severity
from shared.repository import reading_room
from shared.repository.reading import AgeBand, ReadState, WorklistFilter
from shared.study import Priority, StudyStatus

LONGEST = 400  # characters of a saved filter
router = APIRouter(tags=["read"])
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
)  # as they stand in addresses


def chosen_filter(given: Mapping[str, str]) -> WorklistFilter:
    """The filters of an address; the empty string is "any", as forms send it. Raises BadRequest for unknown words."""
    return WorklistFilter(
        status=_word(StudyStatus, given.get("status")),
        assessment=_word(Assessment, given.get("assessment")),
        region=_text(given.get("region"), 32),
        priority=_word(Priority, given.get("priority")),
        modality=_text(given.get("modality"), 16),
        severity=_word(Severity, given.get("severity")),
        age=_word(AgeBand, given.get("age")),
        state=_word(ReadState, given.get("state")) or ReadState.UNREAD,
    )


def only_filters(given: Mapping[str, str]) -> dict[str, str]:
    """What of an address filters; neither what is not chosen, nor what is anyway."""
    chosen = {name: given[name] for name in NAMES if given.get(name)}
    return {name: word for name, word in chosen.items() if (name, word) != ("state", ReadState.UNREAD)}


def _word(kind: type[Word], text: str | None) -> Word | None:
    try:
        return kind(text) if text else None
    except ValueError:
        raise BadRequest(f"Choose one of: {', '.join(kind)}") from None


def _text(text: str | None, longest: int) -> str | None:
    if text and not (text.isprintable() and len(text) <= longest):
        raise BadRequest("There is no such region or modality")
    return text or None


@router.get("/filters")
def saved(parts: PartsDep, key: Radiologist) -> list[SavedFilterView]:
    """Your saved filters, by name."""
    with parts.database.transaction() as session:
        rows = reading_room.saved_filters(session, key)
    return [SavedFilterView(id=row.id, name=row.name, query=row.query) for row in rows]


@router.post("/filters", status_code=201)
def save(parts: PartsDep, key: Radiologist, wanted: SavedFilter) -> list[SavedFilterView]:
    """Save a filter, in place of the one that had its name. Answers all of yours."""
    try:
        given = only_filters(dict(parse_qsl(wanted.query, max_num_fields=32)))
    except ValueError:
        raise BadRequest("These are too many filters") from None
    if len(urlencode(given)) > LONGEST:
        raise BadRequest("These filters are too long to be saved")
    chosen_filter(given)
    with parts.database.transaction() as session:
        if not reading_room.save_filter(session, key, wanted.name.strip(), urlencode(given)):
            raise HTTPException(409, f"At most {reading_room.MOST_FILTERS} filters can be saved; delete one first")
    return saved(parts, key)


@router.delete("/filters/{filter_id}", status_code=204)
def forget(filter_id: UUID, parts: PartsDep, key: Radiologist) -> None:
    """Delete one of your saved filters."""
    with parts.database.transaction() as session:
        if not reading_room.forget_filter(session, key, filter_id):
            raise HTTPException(404, "You have no such filter")
