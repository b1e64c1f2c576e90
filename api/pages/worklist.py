"""The worklist as a page."""

from collections.abc import Mapping
from enum import StrEnum
from typing import TypeVar
from urllib.parse import urlencode

from fastapi import APIRouter, Request, Response

from api.dependencies import PartsDep, Radiologist
from api.pages.render import render, version_of
from api.worklist import worklist_page
from shared.errors import BadRequest
from shared.findings import Call
from shared.repository import reading
from shared.repository.bundles import active_bundle
from shared.study import Priority, StudyStatus

router = APIRouter(include_in_schema=False)
ROWS = 50
Word = TypeVar("Word", bound=StrEnum)


@router.get("/")
def worklist(request: Request, parts: PartsDep, key: Radiologist) -> Response:
    """The worklist. Asked again with the ETag of what is on the screen, it reads identities only if that changed."""
    given = request.query_params
    chosen = _filter(given)
    page = worklist_page(parts, key, chosen, given.get("after") or None, ROWS)
    version = version_of(page, key)
    if request.headers.get("if-none-match") == version:
        return Response(status_code=304, headers={"ETag": version})
    with parts.database.transaction() as session:
        identities = parts.vault.identities(session, key, [entry.study_id for entry in page.entries])
        bundle = active_bundle(session)
    regions = list(bundle.manifest.get("regions", [])) if bundle else []
    if chosen.region and chosen.region not in regions:
        regions.append(chosen.region)
    filters = {name: given[name] for name in FILTERS if given.get(name)}
    context = {
        "key": key,
        "counts": page.counts,
        "page": page,
        "identities": identities,
        "filters": filters,
        "options": {"status": StudyStatus, "call": Call, "region": regions, "priority": Priority},
        "version": version,
        "first_page": f"/?{urlencode(filters)}" if given.get("after") else "",
        "next_page": f"/?{urlencode({**filters, 'after': page.next})}" if page.next else "",
    }
    return render("worklist.html", 200, {"ETag": version}, **context)


FILTERS = ("status", "call", "region", "priority")


def _filter(given: Mapping[str, str]) -> reading.WorklistFilter:
    """The chosen filters; a form sends the empty string for "any". Raises BadRequest for words that do not exist."""
    region = given.get("region") or None
    if region and not (region.isprintable() and len(region) <= 32):
        raise BadRequest("There is no such region")
    return reading.WorklistFilter(
        _word(StudyStatus, given.get("status")), _word(Call, given.get("call")), region,
        _word(Priority, given.get("priority")),
    )  # fmt: skip


def _word(kind: type[Word], text: str | None) -> Word | None:
    try:
        return kind(text) if text else None
    except ValueError:
        raise BadRequest(f"Choose one of: {', '.join(kind)}") from None
