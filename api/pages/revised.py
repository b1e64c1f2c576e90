"""Revised findings as a page: what an older bundle called negative, until a radiologist has seen it."""

from urllib.parse import urlencode
from uuid import UUID

from fastapi import Request, Response
from fastapi.responses import RedirectResponse

from api.dependencies import NamedStudy, PartsDep, Radiologist, SessionDep
from api.models.revised import mark_seen, revised_page
from api.pages.render import header, render
from api.requests import Router
from shared.queries import studies

router = Router(include_in_schema=False)
ROWS = 50
PLACES = {  # of the page: whether its studies were read, and its words
    "read": (True, "Already read"),
    "unread": (False, "Not read yet"),
}


@router.get("/revised")
def show_revised(request: Request, parts: PartsDep, key: Radiologist, session: SessionDep) -> Response:
    """Show revised findings that no radiologist has seen; those of read studies apart: these are not opened again."""
    given = {name: request.query_params.get(name) or None for name in PLACES}
    found = [
        (place, revised_page(session, key, given[place], ROWS, read=read), words)
        for place, (read, words) in PLACES.items()
    ]
    shown = {finding.study_id for _, page, _ in found for finding in page.revised_findings}
    identities = parts.vault.identities(session, key, list(shown))
    rows = studies.get_many(session, key.site_id, list(shown))
    head = header(session, key)
    sections = [
        {
            "name": place,
            "words": words,
            "findings": page.revised_findings,
            "first_page": _address(given | {place: None}) if given[place] else "",
            "next_page": _address(given | {place: page.next}) if page.next else "",
        }
        for place, page, words in found
    ]
    return render("revised.html", 200, identities=identities, studies=rows, sections=sections, **head)


@router.post("/revised/{revised_id}/seen")
def seen(revised_id: UUID, key: Radiologist, session: SessionDep) -> Response:
    """Take a revised finding off the list; one that another reader has just seen is off it already."""
    mark_seen(session, key, revised_id)
    return RedirectResponse("/revised", 303)


@router.post("/view/{study_id}/seen/{revised_id}")
def seen_on_the_study(study_id: NamedStudy, revised_id: UUID, key: Radiologist, session: SessionDep) -> Response:
    """Take a revised finding off the list, from its study's page."""
    mark_seen(session, key, revised_id)
    return RedirectResponse(f"/view/{study_id}", 303)


def _address(places: dict[str, str | None]) -> str:
    query = urlencode({name: after for name, after in places.items() if after})
    return f"/revised?{query}" if query else "/revised"
