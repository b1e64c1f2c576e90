"""What a list shows: filters, order and columns, as its address has them; and saved views of it, of one key."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, TypeVar
from urllib.parse import parse_qsl, urlencode
from uuid import UUID
from zoneinfo import ZoneInfo

from fastapi import Depends, HTTPException, Path, Query

from api.dependencies import PRINTABLE, Radiologist, SessionDep
from api.requests import API, Router
from api.schemas import FilterName, SavedFilter, SavedFilterView
from shared.domain.findings import Extent
from shared.domain.study import Priority, StudyStatus
from shared.errors import BadRequest
from shared.queries import reading_locks
from shared.queries.worklist import (
    AgeBand,
    Arrived,
    Assessed,
    Order,
    ReadBy,
    ReadState,
    SortBy,
    WorklistFilter,
    usual_order,
)

MAX_FILTER_LENGTH = 400  # characters of a saved view
MAX_REGIONS = 16
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
    "arrived",
    "sender",
    "reader",
)  # of filters, as addresses have them
VIEW_NAMES = (*NAMES, "sort", "columns")  # what a saved view may hold
HISTORY_IS_UNSORTED = (
    "What was read before today stands by when it was read, the last first, and in no other order: sort what was read "
    "today (state=today), or what is unread"
)


class Column(StrEnum):
    """A column that can be chosen. The due time and the patient are always shown."""

    PICTURE = "picture"
    ASSESSMENT = "assessment"
    EXAMINATION = "examination"
    REGION = "region"
    SEVERITY = "severity"
    PRIORITY = "priority"
    READING = "reading"
    ACCESSION = "accession"
    ARRIVED = "arrived"
    IMAGES = "images"


USUAL_COLUMNS = (
    Column.PICTURE,
    Column.ASSESSMENT,
    Column.EXAMINATION,
    Column.REGION,
    Column.SEVERITY,
    Column.PRIORITY,
    Column.READING,
)


@dataclass(frozen=True)
class Listing:
    """Which studies, and in which order."""

    chosen: WorklistFilter
    order: Order


def chosen_filter(given: Mapping[str, str], zone: str = "UTC") -> WorklistFilter:
    """Read the filters of an address.

    Args:
        given: values by name; an empty value means any, as forms send it.
        zone: of the reader, whose day "today" is: a name of the time zone database.

    Returns:
        The filter.

    Raises:
        BadRequest: a value is not known.
    """
    return WorklistFilter(
        status=_word(StudyStatus, given.get("status")),
        assessment=_word(Assessed, given.get("assessment")),
        regions=_regions(given.get("region")),
        priority=_word(Priority, given.get("priority")),
        modality=_text(given.get("modality"), 16),
        severity=_word(Extent, given.get("severity")),
        age=_word(AgeBand, given.get("age")),
        state=_word(ReadState, given.get("state")) or ReadState.UNREAD,
        arrived=_word(Arrived, given.get("arrived")),
        sender=_text(given.get("sender"), 128),
        reader=_word(ReadBy, given.get("reader")),
        midnight=midnight(zone),
    )


def chosen_order(given: Mapping[str, str], state: ReadState) -> Order:
    """Read the order of an address.

    Args:
        given: values by name; of these `sort`: a word of SortBy, with "-" before it for the other direction.
        state: the half of the list.

    Returns:
        The order; the usual one of that half where none is given.

    Raises:
        BadRequest: there is no such order, or not in this half.
    """
    sort = given.get("sort")
    if not sort:
        return usual_order(state)
    by = _word(SortBy, sort.removeprefix("-"))
    assert by is not None
    order = Order(by, descending=sort.startswith("-"))
    if state is ReadState.READ and by is not SortBy.READ:
        raise BadRequest(HISTORY_IS_UNSORTED)
    if state is ReadState.UNREAD and by is SortBy.READ:
        raise BadRequest("What is unread cannot be sorted by when it was read; choose another order")
    return order


def order_word(order: Order) -> str:
    """An order as addresses have it."""
    return f"-{order.by}" if order.descending else str(order.by)


def chosen_columns(text: str | None) -> tuple[Column, ...]:
    """Read the columns of an address.

    Args:
        text: words of Column with "," between; empty or None: the usual ones.

    Returns:
        The columns, each once, in the order of the page.

    Raises:
        BadRequest: there is no such column.
    """
    wanted = {_word(Column, word.strip()) for word in text.split(",")} if text else set(USUAL_COLUMNS)
    return tuple(column for column in Column if column in wanted)


def midnight(zone: str) -> datetime:
    """When this day began in a zone. Raises BadRequest for an unknown zone."""
    try:
        now = datetime.now(UTC if zone == "UTC" else ZoneInfo(zone))
    except (ValueError, OSError, LookupError):
        raise BadRequest("There is no such time zone; write its name as Europe/Berlin") from None
    return now.replace(hour=0, minute=0, second=0, microsecond=0).astimezone(UTC)


def _listing(
    status: Annotated[StudyStatus | None, Query(description="only studies in this state")] = None,
    assessment: Annotated[
        Assessed | None, Query(description="only with this assessment by the model; `pending`: with none")
    ] = None,
    region: Annotated[
        str | None,
        Query(max_length=200, pattern=PRINTABLE, description="only of this body region, or of several: `leg,elbow`"),
    ] = None,
    priority: Annotated[Priority | None, Query(description="only with this priority")] = None,
    modality: Annotated[
        str | None, Query(max_length=16, pattern=PRINTABLE, description="only of this modality")
    ] = None,
    severity: Annotated[Extent | None, Query(description="only with this extent, by annotation")] = None,
    age: Annotated[AgeBand | None, Query(description="of the patient at the study, in years")] = None,
    state: Annotated[
        ReadState, Query(description="what waits for its reader, or what was read; `today`: since midnight in `zone`")
    ] = ReadState.UNREAD,
    arrived: Annotated[Arrived | None, Query(description="only what came in the last hour, day or week")] = None,
    sender: Annotated[
        str | None, Query(max_length=128, pattern=PRINTABLE, description="only what this key or DICOM peer sent first")
    ] = None,
    reader: Annotated[ReadBy | None, Query(description="only what somebody, or nobody, reads now")] = None,
    sort: Annotated[
        str | None,
        Query(
            max_length=16,
            pattern=f"^-?({'|'.join(SortBy)})$",
            description=f"the order: one of {', '.join(f'`{word}`' for word in SortBy)}; with `-` the other direction. "
            "Studies that are alike in it stand by their due time, and what is not known last. Default: `due`, of what "
            "was read `-read`. What was read before today has no other order",
        ),
    ] = None,
    zone: Annotated[
        str, Query(max_length=64, pattern=PRINTABLE, description="whose day `today` is, as Europe/Berlin")
    ] = "UTC",
) -> Listing:
    """Read what a list shows from the parameters of a request."""
    chosen = WorklistFilter(
        status, assessment, _regions(region), priority, modality, severity, age, state, arrived, sender or None, reader,
        midnight(zone),
    )  # fmt: skip
    return Listing(chosen, chosen_order({"sort": sort or ""}, state))


ListingDep = Annotated[Listing, Depends(_listing)]


def only_filters(given: Mapping[str, str]) -> dict[str, str]:
    """The filters of an address that restrict the list, by name."""
    return {name: word for name, word in only_view(given).items() if name in NAMES}


def only_view(given: Mapping[str, str]) -> dict[str, str]:
    """What of an address makes a view of the list: filters, order and columns, by name."""
    chosen = {name: given[name] for name in VIEW_NAMES if given.get(name)}
    return {name: word for name, word in chosen.items() if (name, word) != ("state", ReadState.UNREAD)}


def _word(kind: type[Word], text: str | None) -> Word | None:
    try:
        return kind(text) if text else None
    except ValueError:
        raise BadRequest(f"Choose one of: {', '.join(kind)}") from None


def _text(text: str | None, longest: int) -> str | None:
    if text and not (text.isprintable() and len(text) <= longest):
        raise BadRequest("There is no such region, modality or sender; choose one that the list has")
    return text or None


def _regions(text: str | None) -> tuple[str, ...]:
    words = dict.fromkeys(word.strip() for word in (text or "").split(",") if word.strip())
    if len(words) > MAX_REGIONS:
        raise BadRequest(f"These are too many regions; choose {MAX_REGIONS} at most")
    return tuple(found for word in words if (found := _text(word, 32)))


@router.get("/filters")
def saved(key: Radiologist, session: SessionDep) -> list[SavedFilterView]:
    """List your saved views of the worklist, by name."""
    rows = reading_locks.saved_filters(session, key)
    return [SavedFilterView.of_row(row) for row in rows]


@router.post("/filters", status_code=201)
def save(key: Radiologist, session: SessionDep, body: SavedFilter) -> list[SavedFilterView]:
    """Save a view of the worklist: filters, order, columns. It replaces one of the same name.

    The response lists all your views.
    """
    try:
        given = only_view(dict(parse_qsl(body.query, max_num_fields=32)))
    except ValueError:
        raise BadRequest("These are too many filters; save fewer") from None
    if len(urlencode(given)) > MAX_FILTER_LENGTH:
        raise BadRequest("These filters are too long to be saved; save fewer")
    chosen_order(given, chosen_filter(given).state)
    chosen_columns(given.get("columns"))
    if not reading_locks.save_filter(session, key, body.name.strip(), urlencode(given)):
        raise HTTPException(409, f"At most {reading_locks.MAX_FILTERS} filters can be saved; delete one first")
    return saved(key, session)


FilterId = Annotated[UUID, Path(description="of a saved view")]
NO_SUCH_VIEW = "You have no such filter; GET /api/v1/filters lists yours"


@router.patch("/filters/{filter_id}")
def rename(filter_id: FilterId, key: Radiologist, session: SessionDep, body: FilterName) -> list[SavedFilterView]:
    """Give one of your saved views another name; its address stays. 409 if another one of yours has that name.

    The response lists all your views.
    """
    renamed = reading_locks.rename_filter(session, key, filter_id, body.name.strip())
    if renamed is None:
        raise HTTPException(404, NO_SUCH_VIEW)
    if not renamed:
        raise HTTPException(409, "Another of your views has this name; choose another one")
    return saved(key, session)


@router.delete("/filters/{filter_id}", status_code=204)
def forget(filter_id: FilterId, key: Radiologist, session: SessionDep) -> None:
    """Delete one of your saved views."""
    if not reading_locks.delete_filter(session, key, filter_id):
        raise HTTPException(404, NO_SUCH_VIEW)
