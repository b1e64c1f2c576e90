"""What an administrator decides of studies that were set aside: dismissed, or deleted, each with a reason on record."""

from collections.abc import Sequence
from enum import StrEnum
from uuid import UUID

from sqlalchemy import ColumnElement, delete, exists, func, select, tuple_
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from shared.errors import NotFound, NotNow
from shared.repository.access import Key, Vault
from shared.repository.notices import worklist_changed
from shared.study import StudyStatus
from shared.tables import QuarantineDecisionRow, StudyRow


class Decision(StrEnum):
    """What became of a study of the quarantine."""

    DISMISSED = "dismissed"  # nothing is to be done about it; it stands in no list of what waits
    DELETED = "deleted"  # its rows are gone


def dismissed() -> ColumnElement[bool]:
    """Whether a study of the quarantine was dismissed since it came there."""
    return exists().where(
        QuarantineDecisionRow.study_id == StudyRow.id,
        QuarantineDecisionRow.decision == Decision.DISMISSED,
        QuarantineDecisionRow.decided_at >= StudyRow.quarantined_at,
    )


def waiting(session: Session, site_id: UUID, after: UUID | None, most: int) -> Sequence[StudyRow]:
    """The site's studies in quarantine, but those dismissed, the latest first; after: the last of the page before."""
    query = select(StudyRow).where(
        StudyRow.site_id == site_id, StudyRow.status == StudyStatus.QUARANTINED, ~dismissed()
    )
    since = func.coalesce(StudyRow.quarantined_at, StudyRow.received_at)
    if after is not None:
        place = select(since, StudyRow.id).where(StudyRow.id == after, StudyRow.site_id == site_id).subquery()
        query = query.where(tuple_(since, StudyRow.id) < select(*place.c).scalar_subquery())
    return session.scalars(query.order_by(since.desc(), StudyRow.id.desc()).limit(most)).all()


def decide(session: Session, vault: Vault, key: Key, study_id: UUID, decision: Decision, why: str) -> None:
    """Dismiss or delete a study of the quarantine; why: on record, encrypted, for it may name a patient.

    A dismissed one counts as read, until a late image opens it again. Of a deleted one all rows go, with the patient's
    identity; the bytes of its images stay in the object store, where no row names them any more, for an upload that is
    under way may count on them. Raises NotFound, and NotNow for a study that is not in quarantine, or that readers have
    answered: their answers cannot be deleted.
    """
    row = session.scalar(
        select(StudyRow).where(StudyRow.id == study_id, StudyRow.site_id == key.site_id).with_for_update()
    )
    if row is None:
        raise NotFound(f"there is no study {study_id} here")
    if row.status != StudyStatus.QUARANTINED:
        raise NotNow(f"The study is {row.status}, not quarantined; only what was set aside is dismissed or deleted")
    session.add(
        QuarantineDecisionRow(
            site_id=key.site_id,
            study_id=study_id,
            decision=decision,
            set_aside_for=row.reason,
            why=vault.seal(why),
            key_id=key.id,
            decided_at=func.clock_timestamp(),
        )
    )
    session.flush()
    if decision is Decision.DISMISSED:
        row.read_at = func.clock_timestamp()
    else:
        try:
            with session.begin_nested():
                session.execute(delete(StudyRow).where(StudyRow.id == study_id))
        except IntegrityError:
            raise NotNow(
                "Readers have answered this study, or a file that waits belongs to it; dismiss it instead"
            ) from None
    worklist_changed(session, [key.site_id])
