"""GET /api/v1/quarantine and an administrator's decisions about it: dismiss, delete.

Release is in api/studies/routes.py.
"""

from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import BackgroundTasks, Query
from pydantic import BaseModel, Field
from sqlalchemy.orm import Session

from api.dependencies import Admin, Parts, PartsDep, SessionDep, StudyId
from api.reasons import WithReason, reason_fields
from api.requests import API, Router
from api.studies.deletions import sweep
from shared.domain.study import QuarantineDecision
from shared.queries import quarantine, studies
from shared.queries.access import Key

router = Router(prefix=API, tags=["administer"])


class QuarantineEntry(WithReason):
    """A quarantined study."""

    id: UUID = Field(description="of the study")
    attempts: int = Field(description="how often it was tried")
    images: int = Field(description="how many images it has")
    since: datetime | None = Field(description="when it was set aside")


class QuarantinePage(BaseModel):
    """A page; `next` is the `after` of the following one, null on the last."""

    studies: list[QuarantineEntry] = Field(description="the latest first")
    next: UUID | None = Field(description="the `after` of the next page; null: this is the last one")


class DecisionReason(BaseModel):
    """Why."""

    reason: str = Field(min_length=1, max_length=2000, pattern=r"^[^\x00]*\S[^\x00]*$", description="kept encrypted")


class DecisionView(BaseModel):
    """What was done."""

    id: UUID = Field(description="of the study")
    decision: QuarantineDecision = Field(description="what was decided, a code")


@router.get("/quarantine")
def quarantined(
    key: Admin,
    session: SessionDep,
    after: Annotated[UUID | None, Query(description="the `next` of the page before")] = None,
    limit: Annotated[int, Query(ge=1, le=500, description="studies a page")] = 50,
) -> QuarantinePage:
    """List your site's quarantined studies that were not dismissed, the latest first."""
    rows = quarantine.waiting(session, key.site_id, after, limit + 1)
    studies = [
        QuarantineEntry(
            id=row.id,
            attempts=attempts,
            images=row.images,
            since=row.quarantined_at,
            **reason_fields(row.reason, row.reason_detail),
        )
        for row, attempts in rows[:limit]
    ]
    return QuarantinePage(studies=studies, next=studies[-1].id if len(rows) > limit else None)


@router.post("/quarantine/{study_id}/dismiss")
def dismiss(study_id: StudyId, body: DecisionReason, parts: PartsDep, key: Admin, session: SessionDep) -> DecisionView:
    """Dismiss a study for which nothing can be done: it leaves quarantine and list. A late image opens it again.

    404 if it is unknown, 409 if it is not in quarantine.
    """
    return _decided(parts, session, key, study_id, QuarantineDecision.DISMISSED, body.reason)


@router.post("/quarantine/{study_id}/delete")
def delete(
    study_id: StudyId, body: DecisionReason, parts: PartsDep, key: Admin, session: SessionDep, later: BackgroundTasks
) -> DecisionView:
    """Delete a quarantined study, as DELETE /api/v1/studies/{id}. It comes back only if it is sent again.

    404 if it is unknown, 409 if it is not in quarantine, or files of it wait for a decision.
    """
    later.add_task(sweep, parts)
    return _decided(parts, session, key, study_id, QuarantineDecision.DELETED, body.reason)


def _decided(
    parts: Parts, session: Session, key: Key, start: str, decision: QuarantineDecision, why: str
) -> DecisionView:
    study_id = studies.named(session, key.site_id, start)
    quarantine.decide(session, parts.vault, key, study_id, decision, why)
    return DecisionView(id=study_id, decision=decision)
