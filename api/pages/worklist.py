"""The worklist as a page, and the search for a patient's studies."""

import json
from collections.abc import Mapping
from enum import StrEnum
from urllib.parse import parse_qs, urlencode

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from api.alerts import MOST_COUNTED
from api.dependencies import Desk, Parts, PartsDep, Radiologist
from api.filters import chosen_filter, only_filters
from api.pages.render import render, version_of
from api.responses import WorklistPage
from api.worklist import found_page, noted_search, worklist_page
from shared.errors import BadRequest, OsteonError
from shared.findings import Assessment, Severity
from shared.repository import reading, reading_room
from shared.repository.access import Key
from shared.repository.alerts import unseen_count
from shared.repository.bundles import active_bundle
from shared.repository.reading import AgeBand, ReadState
from shared.study import Priority, StudyStatus

router = APIRouter(include_in_schema=False)
ROWS = 50
FORM_BYTES = 1024
LABELS = {
    "state": "Show",
    "assessment": "Finding",
    "severity": "Extent",
    "region": "Region",
    "age": "Age",
    "modality": "Modality",
    "priority": "Priority",
    "status": "State",
}


@router.get("/")
def worklist(request: Request, parts: PartsDep, key: Radiologist, desk: Desk) -> Response:
    """The worklist. Asked again with the ETag of what is on the screen, it reads identities only if that changed."""
    given = request.query_params
    number = _number(parts, key, given["search"]) if given.get("search") else ""
    chosen = chosen_filter({} if number else given)
    if number:
        page = found_page(parts, key, desk, number)
    else:
        page = worklist_page(parts, key, desk, chosen, given.get("after") or None, ROWS)
    with parts.database.transaction() as session:
        saved = [(row.id, row.name, row.query) for row in reading_room.saved_filters(session, key)]
        revised = unseen_count(session, key.site_id, MOST_COUNTED)
        beside = [revised, *((str(id_), *rest) for id_, *rest in saved)]
        version = version_of(page, key, json.dumps(beside))
        before = request.headers.get("if-none-match")  # sent by a list that renews itself
        if before == version:
            return Response(status_code=304, headers={"ETag": version})
        shown = [entry.study_id for entry in page.entries]
        identities = parts.vault.identities(session, key, shown, renewed=before is not None)
        options = _options(session, key, chosen)
    filters = {} if number else only_filters(given)
    context = {
        "key": key,
        "counts": page.counts,
        "page": page,
        "identities": identities,
        "filters": filters,
        "query": urlencode(filters),
        "saved": saved,
        "revised": revised,
        "most_counted": MOST_COUNTED,
        "labels": LABELS,
        "options": options,
        "number": number,
        "version": version,
        **_paging(page, filters, given.get("after")),
    }
    return render("worklist.html", 200, {"ETag": version}, **context)


@router.post("/search")
async def search(request: Request, parts: PartsDep, key: Radiologist) -> Response:
    """Look a number up, and show what was found under an address that names nobody: it is sealed with our key."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > FORM_BYTES:
            raise BadRequest("No accession number or patient id is so long")
    try:
        number = parse_qs(body.decode("ascii"), max_num_fields=4).get("number", [""])[0].strip()
    except ValueError:
        raise BadRequest("The search form cannot be read") from None
    if not number:
        return RedirectResponse("/", 303)
    if len(number) > 64:
        raise BadRequest("No accession number or patient id is so long")
    sealed = await run_in_threadpool(_search, parts, key, number)
    return RedirectResponse(f"/?{urlencode({'search': sealed})}", 303)


def _search(parts: Parts, key: Key, number: str) -> str:
    noted_search(parts, key, number)
    return parts.vault.seal(["search", str(key.site_id), number]).decode()


def _number(parts: Parts, key: Key, sealed: str) -> str:
    """What `_search` sealed. Raises BadRequest for anything else, and for what another site searched for."""
    try:
        opened = parts.vault.open(sealed.encode())
    except OsteonError:
        opened = None
    match opened:
        case ["search", site, str(number)] if site == str(key.site_id):
            return number
    raise BadRequest("This is no search of your site. Search again")


def _options(session: Session, key: Key, chosen: reading.WorklistFilter) -> Mapping[str, list[tuple[str, str]]]:
    """The choices of each filter as (value, words)."""
    bundle = active_bundle(session)
    regions = list(bundle.manifest.get("regions", [])) if bundle else []
    words: dict[str, list[str]] = {
        "region": _with(regions, chosen.region),
        "modality": _with(reading.modalities(session, key.site_id), chosen.modality),
    }
    kinds: dict[str, type[StrEnum]] = {
        "assessment": Assessment, "severity": Severity, "age": AgeBand, "priority": Priority, "status": StudyStatus
    }  # fmt: skip
    words |= {name: list(kind) for name, kind in kinds.items()}
    options = {name: [("", "any"), *((word, word) for word in found)] for name, found in words.items()}
    return {**options, "state": [("", ReadState.UNREAD), (ReadState.READ, ReadState.READ)]}


def _with(words: list[str], chosen: str | None) -> list[str]:
    return [*words, chosen] if chosen and chosen not in words else words


def _paging(page: WorklistPage, filters: dict[str, str], after: str | None) -> dict[str, str]:
    return {
        "first_page": f"/?{urlencode(filters)}" if after else "",
        "next_page": f"/?{urlencode({**filters, 'after': page.next})}" if page.next else "",
    }
