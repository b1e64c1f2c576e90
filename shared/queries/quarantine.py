"""Decisions of an administrator about quarantined studies: dismissed or deleted, each with a reason on record."""

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import ColumnElement, Row, exists, func, select, tuple_
from sqlalchemy.orm import Session

from shared.db.notify import worklist_changed
from shared.db.tables import QuarantineDecisionRow, StudyRow
from shared.domain.deletion import DeletionReason
from shared.domain.security import EventKind, Subject
from shared.domain.study import QuarantineDecision, StoredStatus
from shared.errors import InvalidState, NotFound
from shared.queries import deletions
from shared.queries.access import Key, Vault
from shared.queries.analyses import ATTEMPTS
from shared.queries.audit import Target, record


def dismissed() -> ColumnElement[bool]:
    """Whether a quarantined study was dismissed since it was set aside."""
    return exists().where(
        QuarantineDecisionRow.study_id == StudyRow.id,
        QuarantineDecisionRow.decision == QuarantineDecision.DISMISSED,
        QuarantineDecisionRow.decided_at >= StudyRow.quarantined_at,
    )


def waiting(session: Session, site_id: UUID, after: UUID | None, limit: int) -> Sequence[Row[StudyRow, int]]:
    """Read a page of a site's quarantined studies, without those that were dismissed, each with the attempts at it.

    Args:
        session: the caller's transaction.
        site_id: the site.
        after: the last study of the page before; None: the first page.
        limit: how many studies.

    Returns:
        The rows, the latest first.
    """
    query = select(StudyRow, ATTEMPTS).where(
        StudyRow.site_id == site_id, StudyRow.status == StoredStatus.QUARANTINED, ~dismissed()
    )
    since = func.coalesce(StudyRow.quarantined_at, StudyRow.received_at)
    if after is not None:
        place = select(since, StudyRow.id).where(StudyRow.id == after, StudyRow.site_id == site_id).subquery()
        query = query.where(tuple_(since, StudyRow.id) < select(*place.c).scalar_subquery())
    return session.execute(query.order_by(since.desc(), StudyRow.id.desc()).limit(limit)).all()


def decide(session: Session, vault: Vault, key: Key, study_id: UUID, decision: QuarantineDecision, why: str) -> None:
    """Dismiss or delete a quarantined study. A dismissed one counts as read, until a late image opens it again.

    Args:
        session: the caller's transaction.
        vault: encrypts the reason.
        key: of the administrator.
        study_id: the study.
        decision: what to do.
        why: the reason in the administrator's words; kept encrypted, for it may name a patient.

    Raises:
        NotFound: there is no such study.
        InvalidState: it is not in quarantine, or cannot be deleted now, as deletions.delete_study says.
    """
    if decision is QuarantineDecision.DELETED:
        reason, only = DeletionReason.UNUSABLE, StoredStatus.QUARANTINED
        deletions.delete_study(session, vault, key, study_id, reason, why, only=only)
        return
    row = session.scalar(
        select(StudyRow).where(StudyRow.id == study_id, StudyRow.site_id == key.site_id).with_for_update()
    )
    if row is None:
        raise NotFound(f"there is no study {study_id} here; check the id, and the site of your key")
    if row.status != StoredStatus.QUARANTINED:
        raise InvalidState(f"The study is {row.status}, not quarantined; only a quarantined study can be dismissed")
    known = session.scalar(select(dismissed()).where(StudyRow.id == study_id))
    before = QuarantineDecision.DISMISSED if known else row.status
    session.add(
        QuarantineDecisionRow(
            site_id=key.site_id,
            study_id=study_id,
            decision=decision,
            set_aside_for=row.reason,
            set_aside_detail=row.reason_detail,
            why=vault.seal(why),
            key_id=key.id,
            decided_at=func.clock_timestamp(),
        )
    )
    after = {"status": QuarantineDecision.DISMISSED}
    record(
        session, EventKind.STUDY_DISMISSED, key, about=Target(Subject.STUDY, study_id), study_id=study_id,
        before={"status": before}, after=after,
    )  # fmt: skip
    session.flush()
    row.read_at = func.clock_timestamp()
    worklist_changed(session, [key.site_id])
