"""Taking stored files in: studies, instances, identities."""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from uuid import UUID, uuid4

from sqlalchemy import or_, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from shared.findings import Assessment, Severity, StudySummary, abstention_of
from shared.repository.access import Vault
from shared.repository.allowances import allowances_of
from shared.repository.notices import worklist_changed
from shared.study import Header, Identity, Priority, StoredFile, StudyStatus, may_become
from shared.tables import InstanceRow, StudyRow
from shared.worklist import Allowances, due_at


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


@dataclass(frozen=True)
class Standing:
    """An instance that has a row."""

    sha256: str
    study_id: UUID

    def compared(self, sha256: str) -> Taken:
        """What a file with its UID and these bytes is."""
        return Taken(Known.DUPLICATE if self.sha256 == sha256 else Known.CONFLICT, self.study_id)


def look_up(session: Session, site_id: UUID, sop_instance_uids: Collection[str]) -> dict[str, Standing]:
    """Those of these instances that stand here already, by their SOP Instance UID."""
    if not sop_instance_uids:
        return {}
    rows = session.execute(
        select(InstanceRow.sop_instance_uid, InstanceRow.sha256, InstanceRow.study_id).where(
            InstanceRow.site_id == site_id, InstanceRow.sop_instance_uid.in_(set(sop_instance_uids))
        )
    )
    return {uid: Standing(sha256, study_id) for uid, sha256, study_id in rows}


def lock_upload(session: Session, site_id: UUID, idempotency_key: str) -> None:
    """Wait until no other transaction works on an upload with this key; held until this one ends."""
    digest = hashlib.sha256(f"{site_id}/{idempotency_key}".encode()).digest()
    number = int.from_bytes(digest[:8], "big", signed=True)
    session.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": number})


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
    allowances = allowances_of(session, [site_id])[site_id]
    _add_studies(session, site_id, priority, uids, now, allowances)
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
            _escalate(row, allowances)
    taken = _add_instances(session, site_id, studies, files, now)
    first: dict[UUID, Identity] = {}
    for file, outcome in zip(files, taken, strict=True):
        if outcome.known is Known.NEW:
            study = studies[file.header.study_instance_uid]
            if not study.images:
                first[study.id] = file.header.identity
            _grow(study, file.header, now, settle, allowances)
    vault.keep_identities(session, site_id, first)
    for row in studies.values():
        if not row.images:  # made for a file that another request was faster to conflict with
            session.delete(row)
    worklist_changed(session, [site_id])
    return taken


def _add_studies(
    session: Session, site_id: UUID, priority: Priority, uids: list[str], now: datetime, allowances: Allowances
) -> None:
    rows = [
        {
            "id": uuid4(),
            "site_id": site_id,
            "study_instance_uid": uid,
            "priority": priority,
            "queue": priority,
            "status": StudyStatus.QUEUED,
            "received_at": now,
            "queued_at": now,
            "due_at": due_at(now, priority, None, allowances),
        }
        for uid in uids
    ]
    if rows:
        session.execute(insert(StudyRow).on_conflict_do_nothing(), rows)


def _escalate(row: StudyRow, allowances: Allowances) -> None:
    if row.priority == row.queue == Priority.URGENT:
        return
    row.priority = row.queue = Priority.URGENT
    row.due_at = min(row.due_at, due_at(row.received_at, Priority.URGENT, _summary(row), allowances))
    row.sent_at = None  # its message waits in a slower queue; the next one overtakes it


def _summary(row: StudyRow) -> StudySummary | None:
    if row.status != StudyStatus.ANALYSED or row.assessment is None or row.severity is None:
        return None
    return StudySummary(
        Assessment(row.assessment),
        Severity(row.severity),
        row.region,
        row.fracture_probability or 0.0,
        row.score,
        abstention_of(row.abstention),
        row.abstention_detail,
    )


def _add_instances(
    session: Session, site_id: UUID, studies: dict[str, StudyRow], files: list[StoredFile], now: datetime
) -> list[Taken]:
    """Write the rows of new instances; what became of each file, in the order given."""
    firsts: dict[str, StoredFile] = {}  # of several with one UID the first counts
    for file in files:
        firsts.setdefault(file.header.sop_instance_uid, file)
    rows = [
        {
            "id": uuid4(),
            "site_id": site_id,
            "study_id": studies[header.study_instance_uid].id,
            "sop_instance_uid": header.sop_instance_uid,
            "sop_class_uid": header.sop_class_uid,
            "transfer_syntax_uid": header.transfer_syntax_uid,
            "sha256": firsts[uid].sha256,
            "size_bytes": firsts[uid].size_bytes,
            "modality": header.modality,
            "body_part": header.body_part,
            "rows": header.rows,
            "columns": header.columns,
            "frames": header.frames,
            "received_at": now,
        }
        for uid in sorted(firsts)  # in one order everywhere, as the studies
        for header in [firsts[uid].header]
    ]
    statement = insert(InstanceRow).on_conflict_do_nothing().returning(InstanceRow.sop_instance_uid)
    new = set(session.scalars(statement, rows)) if rows else set()
    # a row in conflict is committed, or our insert would still wait for it
    there = look_up(session, site_id, firsts.keys() - new)
    taken = []
    for file in files:
        uid = file.header.sop_instance_uid
        if uid in new:
            first = firsts[uid]
            standing = Standing(first.sha256, studies[first.header.study_instance_uid].id)
            taken.append(Taken(Known.NEW, standing.study_id) if file is first else standing.compared(file.sha256))
        else:
            taken.append(there[uid].compared(file.sha256))
    return taken


def _grow(study: StudyRow, header: Header, now: datetime, settle: timedelta, allowances: Allowances) -> None:
    """A study has got a new instance."""
    study.images += 1
    study.read_at = None  # whoever read it has not seen this one
    study.scanner = study.scanner or header.scanner
    if study.age_years is None:
        study.age_years = header.age_years
    study.modality = study.modality or header.modality
    if study.queue != study.priority:  # the nightly run had it; a new image is no backlog
        study.queue, study.sent_at = study.priority, None
    status = StudyStatus(study.status)
    if status not in (StudyStatus.QUEUED, StudyStatus.RUNNING) and may_become(status, StudyStatus.QUEUED):
        study.status, study.attempts, study.not_before, study.reason = StudyStatus.QUEUED, 0, None, ""
        study.sent_at, study.queued_at, study.queue = None, now, study.priority
        study.due_at = min(study.due_at, due_at(study.received_at, Priority(study.priority), None, allowances))
    if settle and study.status == StudyStatus.QUEUED and study.received_at < now and study.priority != Priority.URGENT:
        study.not_before, study.sent_at = now + settle, None
