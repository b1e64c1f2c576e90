"""Revised findings as a page: what an older bundle called negative, until a radiologist has seen it."""

from urllib.parse import urlencode
from uuid import UUID

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from api.alerts import alert_page, mark_seen
from api.dependencies import PartsDep, Radiologist
from api.pages.render import header, render
from shared.repository import reading

router = APIRouter(include_in_schema=False)
ROWS = 50
PLACES = {  # of the page: whether its studies were read, and its words
    "read": (True, "Already read"),
    "unread": (False, "Not read yet"),
}


@router.get("/second-looks")
def alerts(request: Request, parts: PartsDep, key: Radiologist) -> Response:
    """The revised findings that nobody has seen, those of studies that were read apart: nobody comes back to them."""
    given = {name: request.query_params.get(name) or None for name in PLACES}
    found = [
        (place, alert_page(parts, key, given[place], ROWS, read=read), words) for place, (read, words) in PLACES.items()
    ]
    with parts.database.transaction() as session:
        shown = {alert.study_id for _, page, _ in found for alert in page.alerts}
        identities = parts.vault.identities(session, key, list(shown))
        studies = reading.studies(session, key.site_id, list(shown))
        head = header(parts, session, key)
    sections = [
        {
            "name": place,
            "words": words,
            "alerts": page.alerts,
            "first_page": _address(given | {place: None}) if given[place] else "",
            "next_page": _address(given | {place: page.next}) if page.next else "",
        }
        for place, page, words in found
    ]
    return render("alerts.html", 200, identities=identities, studies=studies, sections=sections, **head)


@router.post("/second-looks/{alert_id}/seen")
def seen(alert_id: UUID, parts: PartsDep, key: Radiologist) -> Response:
    """Take a revised finding off the list; one that somebody else has just seen is gone all the same."""
    mark_seen(parts, key, alert_id)
    return RedirectResponse("/second-looks", 303)


@router.post("/view/{study_id}/seen/{alert_id}")
def seen_on_the_study(study_id: UUID, alert_id: UUID, parts: PartsDep, key: Radiologist) -> Response:
    """The same, from the study's own page."""
    mark_seen(parts, key, alert_id)
    return RedirectResponse(f"/view/{study_id}", 303)


def _address(places: dict[str, str | None]) -> str:
    query = urlencode({name: after for name, after in places.items() if after})
    return f"/second-looks?{query}" if query else "/second-looks"
