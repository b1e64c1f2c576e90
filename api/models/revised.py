"""GET /api/v1/revised-findings: what the old bundle called negative and the new one does not, until it was seen."""

from collections.abc import Sequence
from typing import Annotated
from uuid import UUID

from fastapi import Path, Query, Response
from sqlalchemy.orm import Session

from api.dependencies import Radiologist, SessionDep
from api.models.schemas import RevisedFindingsCount, RevisedFindingsPage, RevisedFindingView
from api.requests import API, Router
from shared.db.clock import db_now
from shared.errors import BadRequest, InvalidState
from shared.queries import revised as repository
from shared.queries.access import Key
from shared.queries.models import thresholds

router = Router(prefix=API, tags=["read"])
MAX_COUNTED = 100


@router.get("/revised-findings")
def revised_findings(
    key: Radiologist,
    session: SessionDep,
    after: Annotated[str | None, Query(description="the `next` of the page before", max_length=100)] = None,
    limit: Annotated[int, Query(ge=1, le=500, description="findings a page")] = 50,
    *,
    read: Annotated[bool | None, Query(description="only of studies that were read, or that were not")] = None,
) -> RevisedFindingsPage:
    """List revised findings that no radiologist has seen yet, the likeliest fracture first."""
    return revised_page(session, key, after, limit, read=read)


@router.get("/revised-findings/count")
def count(key: Radiologist, session: SessionDep) -> RevisedFindingsCount:
    """Count the revised findings that no radiologist has seen yet, for the navigation."""
    unseen = repository.unseen_count(session, key.site_id, MAX_COUNTED)
    return RevisedFindingsCount(unseen=unseen, at_least=unseen == MAX_COUNTED)


@router.post("/revised-findings/{revised_id}/seen", status_code=204)
def seen(
    revised_id: Annotated[UUID, Path(description="of a revised finding")], key: Radiologist, session: SessionDep
) -> Response:
    """Record that you have seen this revised finding. 404 if there is none, 409 if it was seen before."""
    if not mark_seen(session, key, revised_id):
        raise InvalidState("Somebody has seen this revised finding already", "seen-already")
    return Response(status_code=204)


def revised_page(
    session: Session, key: Key, after: str | None, limit: int, *, read: bool | None = None
) -> RevisedFindingsPage:
    """Build the response of GET /api/v1/revised-findings, which the page uses too.

    Args:
        session: the caller's transaction.
        key: of the reader.
        after: the `next` of the page before; None: the first page.
        limit: findings a page.
        read: only those whose study was read (True) or not (False); None: all.

    Returns:
        The page.

    Raises:
        BadRequest: `after` is no `next` of a page.
    """
    found = repository.unseen_findings(session, key.site_id, _decode(after), limit + 1, read=read)
    views = _views(session, found[:limit])
    last = found[limit - 1].finding if len(found) > limit else None
    return RevisedFindingsPage(
        revised_findings=views, alerts=views, next=f"{last.new_probability!r},{last.id}" if last else None
    )


def revised_of(session: Session, key: Key, study_id: UUID) -> list[RevisedFindingView]:
    """Read the revised findings of a study.

    Args:
        session: the caller's transaction.
        key: of the reader.
        study_id: the study.

    Returns:
        The findings, seen or not, the newest first.
    """
    return _views(session, repository.of_study(session, key.site_id, study_id))


def _views(session: Session, found: Sequence[repository.RevisedFinding]) -> list[RevisedFindingView]:
    points = thresholds(session, {name for one in found for name in (one.finding.old_bundle, one.finding.new_bundle)})
    return [RevisedFindingView.revised(one, points) for one in found]


def mark_seen(session: Session, key: Key, revised_id: UUID) -> bool:
    """Record that a reader has seen a revised finding.

    Args:
        session: the caller's transaction.
        key: of the reader.
        revised_id: the finding.

    Returns:
        False if a reader had seen it before.

    Raises:
        NotFound: there is no such finding.
    """
    return repository.mark_seen(session, key, revised_id, db_now(session))


def _decode(after: str | None) -> tuple[float, UUID] | None:
    if after is None:
        return None
    try:
        probability, _, revised_id = after.partition(",")
        return float(probability), UUID(revised_id)
    except ValueError:
        raise BadRequest("`after` must be the `next` of the page before") from None
