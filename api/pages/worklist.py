"""The worklist as a page, and the search for a patient's studies."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil
from urllib.parse import urlencode
from uuid import UUID

from fastapi import Request, Response
from fastapi.responses import RedirectResponse
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from api.dependencies import LoginId, Parts, PartsDep, Radiologist, SessionDep
from api.models.revised import MAX_COUNTED
from api.pages.render import render, version_of
from api.requests import Router, form_fields
from api.schemas import Search, WorklistPage
from api.worklist.filters import (
    Column,
    Listing,
    chosen_columns,
    chosen_filter,
    chosen_order,
    midnight,
    only_filters,
    only_view,
    order_word,
)
from api.worklist.routes import Place, found_page, rows_page, search_of
from shared.domain.findings import OUTSIDE, Assessment, Extent
from shared.domain.study import Priority, StudyStatus
from shared.errors import BadRequest, NotFound
from shared.queries import reading_locks, worklist
from shared.queries.access import Key, record_search
from shared.queries.models import active_bundle
from shared.queries.revised import unseen_count
from shared.queries.worklist import AgeBand, Arrived, Order, ReadBy, ReadState, SortBy, Tab

router = Router(include_in_schema=False)
ROWS = 50
FORM_BYTES = 1024
MAX_SEARCH = 64  # characters
MAX_TOTAL = 1000  # studies that fit filters are counted so far
ZONE_COOKIE, COLUMNS_COOKIE = "zone", "worklist-columns"  # what this browser prefers; its script writes them
# a tab, as the filters of its address
TABS: Mapping[Tab, Mapping[str, str]] = {
    Tab.ALL: {},
    **{Tab(word): {"assessment": word} for word in (Assessment.POSITIVE, Assessment.UNCLEAR)},
    **{Tab(word): {"assessment": word} for word in (Assessment.NEGATIVE, Assessment.ABSTAINED)},
    Tab.PENDING: {"assessment": "pending"},
    Tab.TODAY: {"state": "today"},
}
WORDS: Mapping[str, Mapping[str, str]] = {  # of filters whose values are codes
    "arrived": {Arrived.HOUR: "last hour", Arrived.DAY: "last 24 hours", Arrived.WEEK: "last 7 days"},
    "reader": {ReadBy.SOMEBODY: "somebody", ReadBy.NOBODY: "nobody"},
    "state": {ReadState.TODAY: "today", ReadState.READ: "at any time"},
    "assessment": {"pending": "not analysed"},
}  # fmt: skip
LABELS = {
    "state": "Read",
    "assessment": "Assessment",
    "region": "Region",
    "severity": "Severity",
    "priority": "Priority",
    "arrived": "Arrived",
    "sender": "Sender",
    "reader": "Reader",
    "age": "Age",
    "modality": "Modality",
    "status": "State",
}
HEADS: Mapping[str, tuple[str, SortBy | None]] = {  # of columns: the words, and what they are sorted by
    Column.PICTURE: ("Picture", None),
    Column.ASSESSMENT: ("Assessment", SortBy.ASSESSMENT),
    "patient": ("Patient", SortBy.AGE),  # names are encrypted
    Column.EXAMINATION: ("Examination", SortBy.EXAMINED),
    Column.REGION: ("Region", SortBy.REGION),
    Column.SEVERITY: ("Severity", SortBy.SEVERITY),
    Column.PRIORITY: ("Priority", SortBy.PRIORITY),
    Column.READING: ("Reading", None),
    Column.ACCESSION: ("Accession", None),
    Column.ARRIVED: ("Arrived", SortBy.ARRIVED),
    Column.IMAGES: ("Images", None),
}


@dataclass(frozen=True)
class TabLink:
    """A tab of the page."""

    tab: Tab
    count: int
    url: str
    current: bool


@dataclass(frozen=True)
class Option:
    """A value that a filter may have."""

    words: str
    url: str
    chosen: bool


@dataclass(frozen=True)
class Chip:
    """A filter of the page."""

    label: str
    value: str  # what it is set to, in words; empty: to nothing
    off: str  # address without it
    options: list[Option]


@dataclass(frozen=True)
class Head:
    """The head of a column."""

    column: str
    words: str
    url: str  # sorts by it, the other way if it is sorted by it; empty: it cannot be sorted by
    direction: str  # ascending or descending, if the list is sorted by it
    hint: str


@router.get("/")
def show_worklist(request: Request, parts: PartsDep, key: Radiologist, session: SessionDep, login: LoginId) -> Response:
    """Show the worklist. With the ETag of what is on the screen, identities are read only if the list has changed."""
    given = request.query_params
    if given.get("view"):
        return RedirectResponse(f"/?{_saved_query(session, key, given['view'])}", 303)
    words = _words(parts, key, given["search"]) if given.get("search") else ""
    wanted = {} if words else given
    zone = _zone(request)
    chosen = chosen_filter(wanted, zone)
    listing = Listing(chosen, chosen_order(wanted, chosen.state))
    columns = _columns(request)
    note = ""
    if words:
        found = search_of(parts, session, key, Search(words=words))
        page, note = found_page(parts, session, key, login, found), found.note
    else:
        found = None
        place = Place(given.get("after") or None, given.get("before") or None)
        page = rows_page(session, key, login, listing, place, ROWS)
    view = {} if words else only_view(given)
    counts = parts.tabs.of(session, key.site_id, midnight(zone))
    current = None if words else _tab_of(listing)
    total, at_least = (len(page.entries), False) if words else _total(session, key, listing, view, counts, current)
    saved = [(row.id, row.name, row.query) for row in reading_locks.saved_filters(session, key)]
    revised = unseen_count(session, key.site_id, MAX_COUNTED)
    beside = [revised, *((str(id_), *rest) for id_, *rest in saved), counts, total, columns]
    version = version_of(page, key, json.dumps(beside))
    before = request.headers.get("if-none-match")  # sent by a list that renews itself
    if before == version:
        return Response(status_code=304, headers={"ETag": version})
    shown = [entry.study_id for entry in page.entries]
    identities = parts.vault.identities(session, key, shown, renewed=before is not None)
    full_view = {**view, "columns": ",".join(columns)}
    context = {
        "key": key,
        "tabs": [
            TabLink(tab, counts[tab], _tab_address(view, its), tab is current) for tab, its in TABS.items()
        ],
        "page": page,
        "identities": identities,
        "filters": only_filters(view),
        "saved": [(id_, name, f"/?view={id_}", query == urlencode(view)) for id_, name, query in saved],
        "query": urlencode(full_view),
        "csv": f"/api/v1/worklist.csv?{urlencode({**full_view, 'zone': zone})}",
        "revised": revised,
        "most_counted": MAX_COUNTED,
        "chips": [] if words else list(_chips(session, key, listing, view)),
        "heads": list(_heads(listing.order, chosen.state, columns, view, searching=bool(words))),
        "columns": columns,
        "all_columns": [(column, HEADS[column][0]) for column in Column],
        "is_read": chosen.state is not ReadState.UNREAD,
        "words": words,
        "found": found,
        "note": note,
        "version": version,
        "reason_words": _reason_words,
        "total": total,
        "at_least": at_least,
        **_paging(page, view, given, total),
    }  # fmt: skip
    return render("worklist.html", 200, {"ETag": version}, **context)


@router.post("/search")
async def search(request: Request, parts: PartsDep, key: Radiologist) -> Response:
    """Search, and redirect to the result; what is searched for is encrypted in its address, so that it names nobody."""
    words = (await form_fields(request, FORM_BYTES)).get("words", "").strip()
    if not words:
        return RedirectResponse("/", 303)
    if len(words) > MAX_SEARCH or "\0" in words:
        raise BadRequest(f"Search for {MAX_SEARCH} characters at most, and for no NUL character")
    sealed = await run_in_threadpool(_search, parts, key, words)
    return RedirectResponse(f"/?{urlencode({'search': sealed})}", 303)


def _search(parts: Parts, key: Key, words: str) -> str:
    with parts.database.transaction() as session:
        found = search_of(parts, session, key, Search(words=words))
        record_search(session, key, len(found.study_ids) + len(found.held))
    return parts.vault.seal(["search", str(key.site_id), words]).decode()


def _words(parts: Parts, key: Key, sealed: str) -> str:
    """What `_search` sealed. Raises BadRequest for anything else, and for what another site searched for."""
    match parts.vault.open(sealed.encode()):
        case ["search", site, str(words)] if site == str(key.site_id) and words:
            return words
    raise BadRequest("This is no search of your site. Search again")


def _saved_query(session: Session, key: Key, view: str) -> str:
    try:
        row = reading_locks.filter_of(session, key, UUID(view))
    except ValueError:
        row = None
    if row is None:
        raise NotFound("you have no such view; it may have been deleted, or belongs to another key")
    return row.query


def _zone(request: Request) -> str:
    """The zone that the page's script told of; UTC until it has."""
    zone = request.cookies.get(ZONE_COOKIE, "UTC")
    try:
        midnight(zone)
    except BadRequest:
        return "UTC"
    return zone


def _columns(request: Request) -> tuple[Column, ...]:
    """Those of the address, else those that this browser was told to remember."""
    if request.query_params.get("columns"):
        return chosen_columns(request.query_params["columns"])
    try:
        return chosen_columns(request.cookies.get(COLUMNS_COOKIE, "").replace(".", ","))
    except BadRequest:  # of another version
        return chosen_columns(None)


def _address(view: Mapping[str, str], **changes: str) -> str:
    changed = {name: word for name, word in {**view, **changes}.items() if word}
    return f"/?{urlencode(changed)}" if changed else "/"


def _tab_of(listing: Listing) -> Tab | None:
    """The tab that is open; None: what was read at any time, which has none."""
    chosen = listing.chosen
    if chosen.state is ReadState.READ:
        return None
    if chosen.state is ReadState.TODAY:
        return Tab.TODAY
    return next((tab for tab, its in TABS.items() if its.get("assessment") == chosen.assessment), Tab.ALL)


def _tab_address(view: Mapping[str, str], its: Mapping[str, str]) -> str:
    """The other filters stay; the order only within one half of the list."""
    stays = its.get("state", "") == view.get("state", "")
    return _address(view, **{"state": "", "assessment": "", **its}, sort=view.get("sort", "") if stays else "")


def _total(
    session: Session,
    key: Key,
    listing: Listing,
    view: Mapping[str, str],
    counts: Mapping[Tab, int],
    current: Tab | None,
) -> tuple[int | None, bool]:
    """How many studies the whole list has, None if that is not counted; and whether it is that many at least."""
    names = set(only_filters(view))
    if current is not None and names <= ({"state"} if current is Tab.TODAY else {"assessment"}):
        return counts[current], False
    if listing.chosen.state is ReadState.READ:
        return None, False
    count = worklist.count_up_to(session, key.site_id, listing.chosen, MAX_TOTAL)
    return count, count == MAX_TOTAL


def _chips(session: Session, key: Key, listing: Listing, view: Mapping[str, str]) -> Iterator[Chip]:
    chosen = listing.chosen
    bundle = active_bundle(session)
    values: dict[str, list[str]] = {
        "region": _with(list(bundle.manifest.get("regions", [])) if bundle else [], *chosen.regions),
        "severity": list(Extent),
        "priority": list(Priority),
        "arrived": list(Arrived),
        "sender": _with(list(worklist.senders(session, key.site_id)), chosen.sender),
        "reader": list(ReadBy),
        "age": list(AgeBand),
        "modality": _with(worklist.modalities(session, key.site_id), chosen.modality),
        "status": [status for status in StudyStatus if status is not StudyStatus.KEPT],
    }
    if chosen.state is not ReadState.UNREAD:
        values = {"state": [ReadState.TODAY, ReadState.READ], "assessment": list(Assessment), **values}
    for name, several in values.items():
        words = WORDS.get(name, {})
        chosen_values = list(chosen.regions) if name == "region" else [view[name]] if view.get(name) else []
        yield Chip(
            LABELS[name],
            ", ".join(words.get(value, value) for value in chosen_values),
            _address(view, **{name: "", **({"sort": ""} if name == "state" else {})}),
            [
                Option(words.get(value, value), _toggled(view, name, value, chosen_values), value in chosen_values)
                for value in several
            ],
        )


def _toggled(view: Mapping[str, str], name: str, value: str, chosen: list[str]) -> str:
    """The address that chooses a value; regions can be several."""
    if name == "region":
        rest = [one for one in chosen if one != value]
        return _address(view, region=",".join(rest if value in chosen else [*rest, value]))
    changes = {name: value, **({"sort": ""} if name == "state" else {})}
    return _address(view, **changes)


def _with(words: list[str], *chosen: str | None) -> list[str]:
    return [*words, *(word for word in chosen if word and word not in words)]


def _heads(
    order: Order, state: ReadState, columns: tuple[Column, ...], view: Mapping[str, str], *, searching: bool
) -> Iterator[Head]:
    first = ("Due", SortBy.DUE) if state is ReadState.UNREAD else ("Read", SortBy.READ)
    shown = {"due": first} | {name: head for name, head in HEADS.items() if name == "patient" or name in columns}
    for name, (words, by) in shown.items():
        if searching or by is None or (state is ReadState.READ and by is not SortBy.READ):
            yield Head(name, words, "", "", "")
            continue
        is_by = order.by is by
        turned = order_word(Order(by, not order.descending if is_by else by is SortBy.READ))
        direction = ("descending" if order.descending else "ascending") if is_by else ""
        hint = "by age: names are encrypted, and cannot be sorted" if name == "patient" else ""
        yield Head(name, words, _address(view, sort=turned), direction, hint)


def _paging(
    page: WorklistPage, view: Mapping[str, str], given: Mapping[str, str], total: int | None
) -> dict[str, object]:
    cursors = given.get("after") or given.get("before")
    number = int(given["page"]) if cursors and given.get("page", "").isdecimal() and len(given["page"]) < 7 else 1
    number = number if page.previous else 1
    previous = _address(view, before=page.previous or "", page=str(number - 1)) if number > 2 else _address(view)
    return {
        "number": number,
        "pages": ceil(total / ROWS) if total else 1,
        "first_row": (number - 1) * ROWS + 1,
        "first_page": _address(view) if cursors else "",
        "previous_page": previous if page.previous else "",
        "next_page": _address(view, after=page.next, page=str(number + 1)) if page.next else "",
    }


def _reason_words(words: str) -> str:
    """Why the model abstains, in the few words that a row has room for."""
    return words.removeprefix(OUTSIDE).partition(". Raw score")[0]
