"""DELETE /api/v1/studies/{id} and /api/v1/studies/{id}/images/{uid}: for good, with a reason.

GET /api/v1/deletions: what was deleted.
"""

import contextlib
from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import BackgroundTasks, Path, Query
from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from sqlalchemy.orm import Session

from api.dependencies import Admin, Parts, PartsDep, SessionDep, StudyId
from api.messages import send_tasks
from api.requests import API, Router
from api.schemas import STUDY_ID, Problem, RowView
from shared.domain.deletion import MAX_NOTE_LENGTH, DeletionReason
from shared.errors import Unavailable
from shared.object_removal import remove_left_objects
from shared.queries import deletions, studies
from shared.queries.access import Key

router = Router(prefix=API, tags=["administer"])
LISTED = 100
Reason = Annotated[DeletionReason, Query(description="why, a code")]
Uid = Annotated[str, Path(max_length=64, pattern=r"^[0-9.]{1,64}$", description="the image's SOP Instance UID")]


class DeletionNote(BaseModel):
    """More of why."""

    note: Annotated[
        str, StringConstraints(strip_whitespace=True, max_length=MAX_NOTE_LENGTH, pattern=r"^[^\x00]*$")
    ] = Field("", description="without anything that names a patient; kept encrypted all the same")


class DeletionResultView(RowView):
    """What was deleted."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"id": STUDY_ID, "whole": True, "images": 2, "feedback_entries": 1}}
    )

    id: UUID = Field(description="of the study")
    whole: bool = Field(description="the study was deleted; else an image of it, and the others are summed up again")
    images: int = Field(description="number of images that were deleted")
    feedback_entries: int = Field(description="entries of readers, which stay in the feedback log without their words")
    answers: int = Field(deprecated=True, description="as `feedback_entries`; until 0.3.0")


class DeletionView(DeletionResultView):
    """A deletion on record. It names no patient."""

    reason: DeletionReason = Field(description="why, a code")
    size_bytes: int = Field(description="of the files that were deleted")
    deleted_at: datetime = Field(description="when")
    deleted_by: UUID = Field(description="id of the key")


REFUSED = {
    404: {"model": Problem, "description": "there is none here"},
    409: {"model": Problem, "description": "files wait for a decision that may be another patient's: decide first"},
}


@router.delete("/studies/{study_id}", responses=REFUSED)  # type: ignore[arg-type]
def delete_study(
    study_id: StudyId,
    reason: Reason,
    parts: PartsDep,
    key: Admin,
    session: SessionDep,
    later: BackgroundTasks,
    note: DeletionNote | None = None,
) -> DeletionResultView:
    """Delete a study for good: rows, identity, search tokens, findings, pictures, held files and pending work.

    The object store removes its bytes some time later, unless another site or study has the same ones. What readers
    answered stays on record without their words, and the audit of who read the identity stays. If the study is sent
    again, it is accepted as a new one.
    """
    return deleted(parts, session, key, later, study_id, None, reason, note.note if note else "")


@router.delete("/studies/{study_id}/images/{sop_instance_uid}", responses=REFUSED)  # type: ignore[arg-type]
def delete_image(
    study_id: StudyId, sop_instance_uid: Uid, reason: Reason, parts: PartsDep, key: Admin, session: SessionDep,
    later: BackgroundTasks, note: DeletionNote | None = None,
) -> DeletionResultView:  # fmt: skip
    """Delete an image for good, as a study is deleted. Deleting a study's only image deletes the study."""
    return deleted(parts, session, key, later, study_id, sop_instance_uid, reason, note.note if note else "")


def deleted(
    parts: Parts,
    session: Session,
    key: Key,
    later: BackgroundTasks,
    study_id: str,
    uid: str | None,
    reason: DeletionReason,
    note: str,
) -> DeletionResultView:
    """Delete a study or an image, as the API and the page do.

    Args:
        parts: of this application.
        session: the caller's transaction.
        key: of the administrator.
        later: runs what follows after the response was sent.
        study_id: the study's id, or its first digits.
        uid: the image's SOP Instance UID; None: the whole study.
        reason: why.
        note: more in the administrator's words; kept encrypted.

    Returns:
        What was deleted.

    Raises:
        NotFound: there is no such study or image.
        InvalidState: files wait for a decision that may be another patient's.
    """
    study = studies.named(session, key.site_id, study_id)
    if uid is None:
        made = deletions.delete_study(session, parts.vault, key, study, reason, note)
    else:
        made = deletions.delete_image(session, parts.vault, key, study, uid, reason, note)
    if made.analyse:
        later.add_task(send_tasks, parts, [made.study_id])
    later.add_task(sweep, parts)
    return DeletionResultView.of_row(made, id=made.study_id, answers=made.feedback_entries)


def sweep(parts: Parts) -> None:
    """Remove from the object store at once what can be removed; a worker removes the rest."""
    with contextlib.suppress(Unavailable):  # a worker tries again
        remove_left_objects(parts.database, parts.store)


@router.get("/deletions")
def recorded(
    key: Admin,
    session: SessionDep,
    limit: Annotated[int, Query(ge=1, le=LISTED, description="entries at most")] = LISTED,
) -> list[DeletionView]:
    """List what was deleted at your site, the latest first."""
    return [
        DeletionView.of_row(row, id=row.study_id, answers=row.feedback_entries, deleted_by=row.key_id)
        for row in deletions.list_deletions(session, key.site_id, limit)
    ]
