"""The worklist as a page, and the search for a patient's studies."""

import json
from collections.abc import Mapping
from enum import StrEnum
from urllib.parse import urlencode

from fastapi import Request, Response
from fastapi.responses import RedirectResponse
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from api.dependencies import LoginId, Parts, PartsDep, Radiologist, SessionDep
from api.models.revised import MAX_COUNTED
from api.pages.render import render, version_of
from api.requests import Router, form_fields
from api.schemas import WorklistPage
from api.worklist.filters import chosen_filter, only_filters
from api.worklist.routes import found_page, noted_search, worklist_page
from shared.domain.findings import Assessment, Extent
from shared.domain.study import Priority, StudyStatus
from shared.errors import BadRequest
from shared.queries import reading_locks, worklist
from shared.queries.access import Key
from shared.queries.models import active_bundle
from shared.queries.revised import unseen_count
from shared.queries.worklist import AgeBand, ReadState

router = Router(include_in_schema=False)
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
def show_worklist(request: Request, parts: PartsDep, key: Radiologist, session: SessionDep, login: LoginId) -> Response:
    """Show the worklist. With the ETag of what is on the screen, identities are read only if the list has changed."""
    given = request.query_params
    number = _number(parts, key, given["search"]) if given.get("search") else ""
    chosen = chosen_filter({} if number else given)
    if number:
        page = found_page(parts, session, key, login, number)
    else:
        page = worklist_page(parts, session, key, login, chosen, given.get("after") or None, ROWS)
    saved = [(row.id, row.name, row.query) for row in reading_locks.saved_filters(session, key)]
    revised = unseen_count(session, key.site_id, MAX_COUNTED)
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
        "most_counted": MAX_COUNTED,
        "labels": LABELS,
        "options": options,
        "number": number,
        "version": version,
        **_paging(page, filters, given.get("after")),
    }
    return render("worklist.html", 200, {"ETag": version}, **context)


@router.post("/search")
async def search(request: Request, parts: PartsDep, key: Radiologist) -> Response:
    """Search for a number, and redirect to the result; the number in its address is encrypted, so it names nobody."""
    number = (await form_fields(request, FORM_BYTES)).get("number", "").strip()
    if not number:
        return RedirectResponse("/", 303)
    if len(number) > 64 or "\0" in number:
        raise BadRequest("No accession number or patient id is so long, or has a NUL character in it")
    sealed = await run_in_threadpool(_search, parts, key, number)
    return RedirectResponse(f"/?{urlencode({'search': sealed})}", 303)


def _search(parts: Parts, key: Key, number: str) -> str:
    with parts.database.transaction() as session:
        noted_search(parts, session, key, number)
    return parts.vault.seal(["search", str(key.site_id), number]).decode()


def _number(parts: Parts, key: Key, sealed: str) -> str:
    """What `_search` sealed. Raises BadRequest for anything else, and for what another site searched for."""
    match parts.vault.open(sealed.encode()):
        case ["search", site, str(number)] if site == str(key.site_id):
            return number
    raise BadRequest("This is no search of your site. Search again")


def _options(session: Session, key: Key, chosen: worklist.WorklistFilter) -> Mapping[str, list[tuple[str, str]]]:
    """The choices of each filter as (value, words)."""
    bundle = active_bundle(session)
    regions = list(bundle.manifest.get("regions", [])) if bundle else []
    words: dict[str, list[str]] = {
        "region": _with(regions, chosen.region),
        "modality": _with(worklist.modalities(session, key.site_id), chosen.modality),
    }
    kinds: dict[str, type[StrEnum]] = {
        "assessment": Assessment, "severity": Extent, "age": AgeBand, "priority": Priority, "status": StudyStatus
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
