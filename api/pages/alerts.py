"""Second looks as a page: what an older bundle called negative, until a radiologist has seen it."""

from urllib.parse import urlencode
from uuid import UUID

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from api.alerts import alert_page, mark_seen
from api.dependencies import PartsDep, Radiologist
from api.pages.render import render

router = APIRouter(include_in_schema=False)
ROWS = 50


@router.get("/second-looks")
def alerts(request: Request, parts: PartsDep, key: Radiologist) -> Response:
    """The alerts that nobody has seen."""
    after = request.query_params.get("after") or None
    page = alert_page(parts, key, after, ROWS)
    with parts.database.transaction() as session:
        identities = parts.vault.identities(session, key, [alert.study_id for alert in page.alerts])
        counts = parts.counts.of(session, key.site_id)
    context = {
        "key": key,
        "counts": counts,
        "page": page,
        "identities": identities,
        "first_page": "/second-looks" if after else "",
        "next_page": f"/second-looks?{urlencode({'after': page.next})}" if page.next else "",
    }
    return render("alerts.html", 200, **context)


@router.post("/second-looks/{alert_id}/seen")
def seen(alert_id: UUID, parts: PartsDep, key: Radiologist) -> Response:
    """Take an alert off the list; one that somebody else has just seen is gone all the same."""
    mark_seen(parts, key, alert_id)
    return RedirectResponse("/second-looks", 303)
