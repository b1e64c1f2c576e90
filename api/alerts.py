"""GET /alerts: what the old bundle called negative and the new one does not, until a radiologist has seen it."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Response

from api.dependencies import Parts, PartsDep, Radiologist
from api.retrospect import AlertPage, AlertView
from shared.errors import BadRequest, NotNow
from shared.repository import alerts as repository
from shared.repository import work
from shared.repository.access import Key
from shared.repository.bundles import thresholds

router = APIRouter(tags=["read"])


@router.get("/alerts")
def alerts(
    parts: PartsDep,
    key: Radiologist,
    after: Annotated[str | None, Query(description="the `next` of the page before", max_length=100)] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
) -> AlertPage:
    """Alerts that nobody has seen yet, the likeliest fracture first."""
    return alert_page(parts, key, after, limit)


@router.post("/alerts/{alert_id}/seen", status_code=204)
def seen(alert_id: UUID, parts: PartsDep, key: Radiologist) -> Response:
    """Note who has seen this alert, and when; it is shown no more. 404 if there is none, 409 if it was seen before."""
    if not mark_seen(parts, key, alert_id):
        raise NotNow("Somebody has seen this alert already")
    return Response(status_code=204)


def alert_page(parts: Parts, key: Key, after: str | None, limit: int) -> AlertPage:
    """What GET /alerts answers; the page shows the same. Raises BadRequest for a foreign `after`."""
    with parts.database.transaction() as session:
        rows = repository.unseen(session, key.site_id, _decode(after), limit + 1)
        points = thresholds(session, {name for row in rows for name in (row.old_bundle, row.new_bundle)})
    shown = rows[:limit]
    more = f"{shown[-1].new_probability!r},{shown[-1].id}" if len(rows) > limit else None
    return AlertPage(alerts=[AlertView.of(row, points) for row in shown], next=more)


def mark_seen(parts: Parts, key: Key, alert_id: UUID) -> bool:
    """False if somebody had seen it before. Raises NotFound."""
    with parts.database.transaction() as session:
        return repository.mark_seen(session, key, alert_id, work.clock(session))


def _decode(after: str | None) -> tuple[float, UUID] | None:
    if after is None:
        return None
    try:
        probability, _, alert_id = after.partition(",")
        return float(probability), UUID(alert_id)
    except ValueError:
        raise BadRequest("`after` must be the `next` of the page before") from None
