"""Taking stored files in: studies, instances, identities."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from uuid import UUID, uuid4

from sqlalchemy import or_, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from shared.findings import Call, Severity, StudySummary
from shared.repository.access import Vault
from shared.study import Header, Priority, StoredFile, StudyStatus, may_become
from shared.tables import InstanceRow, StudyRow
from shared.worklist import due_at


class Known(StrEnum):
    """What we have of an instance already."""

    NEW = "new"
    DUPLICATE = "duplicate"  # the same bytes
    CONFLICT = "conflict"  # the same SOP Instance UID, other bytes


@dataclass(frozen=True)
class Taken:
    """What became of one stored file."""

    known: Known
    study_id: UUID


def look_up(session: Session, site_id: UUID, header: Header, sha256: str) -> Taken | None:
    """Whether this instance stands here already; None if it is new."""
    row = session.execute(
        select(InstanceRow.sha256, InstanceRow.study_id).where(
            InstanceRow.site_id == site_id, InstanceRow.sop_instance_uid == header.sop_instance_uid
        )
    ).one_or_none()
    if row is None:
        return None
    return Taken(Known.DUPLICATE if row.sha256 == sha256 else Known.CONFLICT, row.study_id)


def take_in(
    session: Session,
    vault: Vault,
    site_id: UUID,
    priority: Priority,
    files: list[StoredFile],
    now: datetime,
    sent_again: Collection[UUID] = (),
    settle: timedelta = timedelta(),
) -> list[Taken]:
    """Write the rows of stored files, in their order; two senders of one study do not disturb each other.

    A study that was done is opened again for its new images, and an urgent file makes its study urgent, even one that
    was there already: sent_again are the studies of such files. A request is whole when it ends; a study that gets
    images from a further one waits until none came for `settle`, unless it is urgent: one analysis instead of many.
    """
    uids = sorted({file.header.study_instance_uid for file in files})
    for uid in uids:
        _add_study(session, site_id, priority, uid, now)
    # rows are locked in one order everywhere, so that two transactions cannot wait for each other in a ring
    again = sent_again if priority is Priority.URGENT else ()
    rows = session.scalars(
        select(StudyRow)
        .where(StudyRow.site_id == site_id, or_(StudyRow.study_instance_uid.in_(uids), StudyRow.id.in_(again)))
        .order_by(StudyRow.id)
        .with_for_update()
    )
    studies = {row.study_instance_uid: row for row in rows}
    if priority is Priority.URGENT:
        for row in studies.values():
            _escalate(row)
    taken: dict[int, Taken] = {}
    for index, file in sorted(enumerate(files), key=lambda pair: pair[1].header.sop_instance_uid):
        taken[index] = _instance(session, vault, studies[file.header.study_instance_uid], file, now, settle)
    for row in studies.values():
        if not row.images:  # made for a file that another request was faster to conflict with
            session.delete(row)
    return [taken[index] for index in range(len(files))]


def _add_study(session: Session, site_id: UUID, priority: Priority, uid: str, now: datetime) -> None:
    values = {
        "id": uuid4(),
        "site_id": site_id,
        "study_instance_uid": uid,
        "priority": priority,
        "queue": priority,
        "status": StudyStatus.QUEUED,
        "received_at": now,
        "queued_at": now,
        "due_at": due_at(now, priority, None),
    }
    session.execute(insert(StudyRow).values(values).on_conflict_do_nothing())


def _escalate(row: StudyRow) -> None:
    if row.priority == row.queue == Priority.URGENT:
        return
    row.priority = row.queue = Priority.URGENT
    row.due_at = min(row.due_at, due_at(row.received_at, Priority.URGENT, _summary(row)))
    row.sent_at = None  # its message waits in a slower queue; the next one overtakes it


def _summary(row: StudyRow) -> StudySummary | None:
    if row.status != StudyStatus.ANALYSED or row.call is None or row.severity is None:
        return None
    return StudySummary(Call(row.call), Severity(row.severity), row.region, row.fracture_probability or 0.0, row.scope)


def _instance(
    session: Session, vault: Vault, study: StudyRow, file: StoredFile, now: datetime, settle: timedelta
) -> Taken:
    header = file.header
    values = {
        "id": uuid4(),
        "site_id": study.site_id,
        "study_id": study.id,
        "sop_instance_uid": header.sop_instance_uid,
        "sop_class_uid": header.sop_class_uid,
        "transfer_syntax_uid": header.transfer_syntax_uid,
        "sha256": file.sha256,
        "size_bytes": file.size_bytes,
        "modality": header.modality,
        "body_part": header.body_part,
        "rows": header.rows,
        "columns": header.columns,
        "frames": header.frames,
        "received_at": now,
    }
    new = session.scalar(insert(InstanceRow).values(values).on_conflict_do_nothing().returning(InstanceRow.id))
    if new is None:
        there = look_up(session, study.site_id, header, file.sha256)
        assert there is not None  # the conflicting row is committed, or our insert would still wait for it
        return there
    study.images += 1
    study.modality = study.modality or header.modality
    if study.images == 1:
        vault.keep_identity(session, study.id, header.identity)
    if study.queue != study.priority:  # the nightly run had it; a new image is no backlog
        study.queue, study.sent_at = study.priority, None
    status = StudyStatus(study.status)
    if status not in (StudyStatus.QUEUED, StudyStatus.RUNNING) and may_become(status, StudyStatus.QUEUED):
        study.status, study.attempts, study.not_before, study.reason = StudyStatus.QUEUED, 0, None, ""
        study.sent_at, study.queued_at, study.queue = None, now, study.priority
        study.due_at = min(study.due_at, due_at(study.received_at, Priority(study.priority), None))
    if settle and study.status == StudyStatus.QUEUED and study.received_at < now and study.priority != Priority.URGENT:
        study.not_before, study.sent_at = now + settle, None
    return Taken(Known.NEW, study.id)
