"""POST /api/v1/studies/arrived: whether a study has arrived, and what became of it, for whoever sent it."""

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Annotated
from uuid import UUID

from fastapi import HTTPException
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pydantic.json_schema import SkipJsonSchema

from api.dependencies import PartsDep, SessionDep, Submitter
from api.reasons import WithReason, reason_fields
from api.requests import API, Router
from api.schemas import ONE_OF_BOTH, OneOfBoth, RowView, without_null
from shared.domain.completeness import Completeness
from shared.domain.held import HeldState
from shared.domain.study import StudyStatus
from shared.queries import held, studies
from shared.queries.access import ACCESSION, count_searches, record_search

router = Router(prefix=API, tags=["upload"])
MINUTE = timedelta(minutes=1)
MAX_SEARCHES = 60  # of one key within a minute
BUSY = {"description": f"your key has asked {MAX_SEARCHES} times within a minute"}

Number = Annotated[str, StringConstraints(max_length=64, pattern=r"\S")]
Uid = Annotated[str, StringConstraints(max_length=64, pattern=r"^[0-9.]+$")]


class Stage(StrEnum):
    """What has become of a study or a file, as its sender may know it."""

    RECEIVED = "received"  # stored, and waits to be analysed
    ANALYSING = "analysing"
    ANALYSED = "analysed"
    KEPT = "kept"  # stored, and holds nothing that is analysed
    FAILED = "failed"  # could not be analysed; the reason says why
    HELD = "held"  # stored, until an administrator decides
    REJECTED = "rejected"  # by an administrator


STAGES = {
    StudyStatus.QUEUED: Stage.RECEIVED,
    StudyStatus.RUNNING: Stage.ANALYSING,
    StudyStatus.RETRYING: Stage.ANALYSING,
    StudyStatus.ANALYSED: Stage.ANALYSED,
    StudyStatus.QUARANTINED: Stage.FAILED,
    StudyStatus.KEPT: Stage.KEPT,
}


class ArrivalQuestion(OneOfBoth):
    """What to look for, one of both; in a body, for addresses are logged."""

    model_config = ConfigDict(json_schema_extra={"example": {"accession_number": "ACC-2026-77"}, **ONE_OF_BOTH})

    accession_number: Number | SkipJsonSchema[None] = Field(
        None, description="the whole of it", json_schema_extra=without_null
    )
    study_instance_uid: Uid | SkipJsonSchema[None] = Field(
        None, description="Study Instance UID", json_schema_extra=without_null
    )


class ArrivedStudyView(RowView, WithReason):
    """A study that has arrived. It has no finding, and names no patient."""

    id: UUID = Field(description="of the study")
    stage: Stage = Field(description="what has become of it")
    received_at: datetime = Field(description="when its first file came")
    ended_at: datetime | None = Field(description="when it was analysed, or could not be; null: not yet")
    images: int = Field(description="how many are stored")
    completeness: Completeness = Field(description="whether more images are expected, a code")
    expected_images: int | None = Field(description="how many a DICOM sender counted; null: nobody did")


class HeldArrival(BaseModel):
    """A file that is no image of a study until an administrator decides, or was rejected by one."""

    stage: Stage = Field(description="held or rejected")
    received_at: datetime = Field(description="when it came")
    ended_at: datetime | None = Field(description="when an administrator rejected it; null: not yet")


class Arrivals(BaseModel):
    """What has arrived under a number; nothing: no file of it is stored here."""

    studies: list[ArrivedStudyView] = Field(description="the latest first")
    held: list[HeldArrival] = Field(description="files, the oldest first, 50 at most")


@router.post("/studies/arrived", responses={429: BUSY})
def arrived(body: ArrivalQuestion, key: Submitter, session: SessionDep, parts: PartsDep) -> Arrivals:
    """Ask whether a study has arrived at your site, and what became of it: states and times, no finding, no identity.

    Each question is recorded, without what was asked for. A file that was rejected when it came is not stored: the
    receipt of its upload says why.
    """
    if count_searches(session, key, MINUTE) >= MAX_SEARCHES:
        words = f"Your key has asked {MAX_SEARCHES} times within a minute: wait a minute"
        raise HTTPException(429, words, headers={"Retry-After": "60"})
    ids: list[UUID] = []
    waiting: list[HeldArrival] = []
    if body.accession_number:
        ids = parts.vault.find_by_number(session, key, body.accession_number, [ACCESSION])
        waiting = [
            HeldArrival(
                stage=Stage.HELD if row.state == HeldState.OPEN else Stage.REJECTED, received_at=row.received_at,
                ended_at=None if row.state == HeldState.OPEN else row.decided_at,
            )
            for row in held.find_by_number(session, parts.vault, key, body.accession_number, kinds=[ACCESSION])
        ]  # fmt: skip
    found = studies.arrived(session, key.site_id, ids, body.study_instance_uid or "")
    record_search(session, key, len(found) + len(waiting))
    return Arrivals(studies=[_view(one) for one in found], held=waiting)


def _view(one: studies.ArrivedStudy) -> ArrivedStudyView:
    stage = STAGES[StudyStatus(one.status)]
    ends = {Stage.ANALYSED: one.analysed_at, Stage.FAILED: one.quarantined_at}
    return ArrivedStudyView(
        id=one.id, stage=stage, received_at=one.received_at, ended_at=ends.get(stage), images=one.stored,
        completeness=Completeness(one.completeness), expected_images=one.expected_images,
        **reason_fields(one.reason, one.reason_detail),
    )  # fmt: skip
