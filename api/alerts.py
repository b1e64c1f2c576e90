"""GET /alerts: what the old bundle called negative and the new one does not, until a radiologist has seen it."""

from collections.abc import Sequence
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Response
from sqlalchemy.orm import Session

from api.dependencies import Parts, PartsDep, Radiologist
from api.retrospect import AlertCount, AlertPage, AlertView
from shared.errors import BadRequest, NotNow
from shared.repository import alerts as repository
from shared.repository import work
from shared.repository.access import Key
from shared.repository.bundles import thresholds

router = APIRouter(tags=["read"])
MOST_COUNTED = 100


@router.get("/alerts")
def alerts(
    parts: PartsDep,
    key: Radiologist,
    after: Annotated[str | None, Query(description="the `next` of the page before", max_length=100)] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    *,
    read: Annotated[bool | None, Query(description="only of studies that were read, or that were not")] = None,
) -> AlertPage:
    """Revised findings that nobody has seen yet, the likeliest fracture first."""
    return alert_page(parts, key, after, limit, read=read)


@router.get("/alerts/count")
def count(parts: PartsDep, key: Radiologist) -> AlertCount:
    """How many revised findings nobody has seen yet, as the navigation shows it."""
    with parts.database.transaction() as session:
        unseen = repository.unseen_count(session, key.site_id, MOST_COUNTED)
    return AlertCount(unseen=unseen, at_least=unseen == MOST_COUNTED)


@router.post("/alerts/{alert_id}/seen", status_code=204)
def seen(alert_id: UUID, parts: PartsDep, key: Radiologist) -> Response:
    """Note in the ledger who has seen this revised finding, and when. 404 if there is none, 409 if it was before."""
    if not mark_seen(parts, key, alert_id):
        raise NotNow("Somebody has seen this revised finding already", "seen-already")
    return Response(status_code=204)


def alert_page(parts: Parts, key: Key, after: str | None, limit: int, *, read: bool | None = None) -> AlertPage:
    """What GET /alerts answers; the page shows the same. Raises BadRequest for a foreign `after`."""
    with parts.database.transaction() as session:
        found = repository.unseen(session, key.site_id, _decode(after), limit + 1, read=read)
        views = _views(session, found[:limit])
    last = found[limit - 1].alert if len(found) > limit else None
    return AlertPage(alerts=views, next=f"{last.new_probability!r},{last.id}" if last else None)


def revised_of(parts: Parts, key: Key, study_id: UUID) -> list[AlertView]:
    """The revised findings of a study, seen or not, the newest first."""
    with parts.database.transaction() as session:
        return _views(session, repository.of_study(session, key.site_id, study_id))


def _views(session: Session, found: Sequence[repository.Revised]) -> list[AlertView]:
    points = thresholds(session, {name for one in found for name in (one.alert.old_bundle, one.alert.new_bundle)})
    return [AlertView.revised(one, points) for one in found]


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
