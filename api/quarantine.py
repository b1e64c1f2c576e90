"""GET /quarantine and what an administrator decides of it: dismiss, delete. Release stands in api/studies.py."""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from api.dependencies import Admin, Parts, PartsDep
from api.studies import StudyId
from shared.repository import quarantine, reading
from shared.repository.access import Key
from shared.repository.quarantine import Decision

router = APIRouter(tags=["administer"])


class SetAside(BaseModel):
    """A study of the quarantine."""

    id: UUID
    reason: str
    attempts: int
    images: int
    since: datetime | None


class QuarantinePage(BaseModel):
    """A page; `next` is the `after` of the following one, null on the last."""

    studies: list[SetAside]
    next: UUID | None


class DecisionWanted(BaseModel):
    """Why."""

    reason: str = Field(min_length=1, max_length=2000, pattern=r"^[^\x00]*\S[^\x00]*$", description="kept encrypted")


class Decided(BaseModel):
    """What was done."""

    id: UUID
    decision: Decision


@router.get("/quarantine")
def quarantined(
    parts: PartsDep, key: Admin, after: UUID | None = None, limit: Annotated[int, Query(ge=1, le=500)] = 50
) -> QuarantinePage:
    """Your site's studies that were set aside and not dismissed, the latest first."""
    with parts.database.transaction() as session:
        rows = quarantine.waiting(session, key.site_id, after, limit + 1)
        studies = [
            SetAside(id=row.id, reason=row.reason, attempts=row.attempts, images=row.images, since=row.quarantined_at)
            for row in rows[:limit]
        ]
    return QuarantinePage(studies=studies, next=studies[-1].id if len(rows) > limit else None)


@router.post("/quarantine/{study_id}/dismiss")
def dismiss(study_id: StudyId, wanted: DecisionWanted, parts: PartsDep, key: Admin) -> Decided:
    """Nothing is to be done about this study: it leaves the quarantine and the list. A late image opens it again.

    404 if it is unknown, 409 if it is not in quarantine.
    """
    return _decided(parts, key, study_id, Decision.DISMISSED, wanted.reason)


@router.post("/quarantine/{study_id}/delete")
def delete(study_id: StudyId, wanted: DecisionWanted, parts: PartsDep, key: Admin) -> Decided:
    """Delete a study that was set aside, with the patient's identity. Nothing brings it back but sending it again.

    404 if it is unknown, 409 if it is not in quarantine or readers have answered it.
    """
    return _decided(parts, key, study_id, Decision.DELETED, wanted.reason)


def _decided(parts: Parts, key: Key, start: str, decision: Decision, why: str) -> Decided:
    with parts.database.transaction() as session:
        study_id = reading.named(session, key.site_id, start)
        quarantine.decide(session, parts.vault, key, study_id, decision, why)
    return Decided(id=study_id, decision=decision)
