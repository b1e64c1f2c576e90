"""Taking stored files in: studies, instances, identities."""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from uuid import UUID, uuid4

from sqlalchemy import or_, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from shared.findings import Assessment, Severity, StudySummary, abstention_of
from shared.held import Kind
from shared.identity import completed, same_patient
from shared.repository.access import Vault
from shared.repository.allowances import allowances_of
from shared.repository.held import HeldFile, hold
from shared.repository.notices import worklist_changed
from shared.study import Header, Priority, StoredFile, StudyStatus, may_become
from shared.tables import InstanceRow, StudyRow
from shared.tables.studies import HEADER_VERSION
from shared.worklist import Allowances, due_at

LONGEST_VIEWS = 64  # characters


class Known(StrEnum):
    """What we have of an instance already."""

    NEW = "new"
    DUPLICATE = "duplicate"  # the same bytes, or the same image
    HELD = "held"  # it waits for a decision


@dataclass(frozen=True)
class Taken:
    """What became of one stored file."""

    known: Known
    study_id: UUID
    held: HeldFile | None = None  # once it is


@dataclass(frozen=True)
class Standing:
    """An instance that has a row."""

    sha256: str
    study_id: UUID
    instance_id: UUID | None = None
    header_sha256: str | None = None  # of a correction in force
    size_bytes: int = 0
    study_instance_uid: str = ""

    @property
    def current(self) -> str:
        """The object whose header is in force."""
        return self.header_sha256 or self.sha256

    def compared(self, sha256: str) -> Taken:
        """What a file with its UID and these bytes is."""
        return Taken(Known.DUPLICATE if sha256 in (self.sha256, self.header_sha256) else Known.HELD, self.study_id)


def look_up(session: Session, site_id: UUID, sop_instance_uids: Collection[str]) -> dict[str, Standing]:
    """Those of these instances that stand here already, by their SOP Instance UID."""
    if not sop_instance_uids:
        return {}
    rows = session.execute(
        select(
            InstanceRow.sop_instance_uid, InstanceRow.sha256, InstanceRow.study_id, InstanceRow.id,
            InstanceRow.header_sha256, InstanceRow.size_bytes, StudyRow.study_instance_uid,
        )
        .join(StudyRow, StudyRow.id == InstanceRow.study_id)
        .where(InstanceRow.site_id == site_id, InstanceRow.sop_instance_uid.in_(set(sop_instance_uids)))
    )  # fmt: skip
    return {row[0]: Standing(*row[1:]) for row in rows}


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
    kinds: Mapping[str, Kind | None] | None = None,
    trusted: Collection[str] = (),
) -> list[Taken]:
    """Write the rows of stored files, in their order; two senders of one study do not disturb each other.

    A study that was done is opened again for its new images, and an urgent file makes its study urgent, even one that
    was there already: sent_again are the studies of such files. A request is whole when it ends; a study that gets
    images from a further one waits until none came for `settle`, unless it is urgent: one analysis instead of many.

    A file of another patient than its study's is held, unless it is trusted (by SHA-256), and so is one whose SOP
    Instance UID is a stored image's. kinds: what comparing with that image has shown, by SHA-256: why it is held, or
    None for one that is the same; where nothing is said, a worker compares.
    """
    uids = sorted({file.header.study_instance_uid for file in files})
    allowances = allowances_of(session, [site_id])[site_id]
    _add_studies(session, site_id, priority, uids, now, allowances)
    kinds = kinds or {}
    there = look_up(session, site_id, {file.header.sop_instance_uid for file in files if file.sha256 in kinds})
    # rows are locked in one order everywhere, so that two transactions cannot wait for each other in a ring
    again = set(sent_again) if priority is Priority.URGENT else set()
    touched = again | {one.study_id for one in there.values()}
    rows = session.scalars(
        select(StudyRow)
        .where(StudyRow.site_id == site_id, or_(StudyRow.study_instance_uid.in_(uids), StudyRow.id.in_(touched)))
        .order_by(StudyRow.id)
        .with_for_update()
    ).all()
    studies = {row.study_instance_uid: row for row in rows}
    taking = _Taking(session, vault, site_id, studies, kinds, frozenset(trusted))
    taken = taking.take(files, there, now)
    if priority is Priority.URGENT:
        its_own = {one.study_id for one in taken if one.known is not Known.HELD}
        for row in rows:
            if row.id in again | its_own:
                _escalate(row, allowances)
    for file, outcome in zip(files, taken, strict=True):
        if outcome.known is Known.NEW:
            _grow(studies[file.header.study_instance_uid], file.header, now, settle, allowances)
    taking.keep_identities()
    for place, file in enumerate(files):
        if taken[place].known is Known.HELD:
            kind, study_id, instance_id = taking.held[file.sha256]
            kept = hold(session, vault, site_id, file, kind, priority, study_id, instance_id)
            taken[place] = replace(taken[place], held=kept)
    for row in rows:
        if not row.images:  # made for files that are all held, or images of another study
            session.delete(row)
    worklist_changed(session, [site_id])
    return taken


class _Taking:
    """Telling new images from those that are there already, and from those that must be held."""

    def __init__(
        self,
        session: Session,
        vault: Vault,
        site_id: UUID,
        studies: dict[str, StudyRow],
        kinds: Mapping[str, Kind | None],
        trusted: frozenset[str],
    ) -> None:
        self.session, self.vault, self.site_id, self.studies = session, vault, site_id, studies
        self.kinds, self.trusted = kinds, trusted
        self.held: dict[str, tuple[Kind, UUID, UUID | None]] = {}  # by SHA-256: why, and for what it came
        filled = [row.id for row in studies.values() if row.images]
        self.before = vault.stored_identities(session, filled) if filled else {}
        self.identities = dict(self.before)

    def take(self, files: list[StoredFile], there: Mapping[str, Standing], now: datetime) -> list[Taken]:
        """What becomes of each file, in the order given; the rows of new instances are written."""
        firsts: dict[str, StoredFile] = {}  # of several with one UID the first counts
        others: dict[str, UUID] = {}  # of another patient, by SHA-256: for which study they came
        for file in files:
            uid = file.header.sop_instance_uid
            if uid in there or uid in firsts:
                continue
            study = self.studies[file.header.study_instance_uid]
            known = self.identities.get(study.id)
            if known is not None and file.sha256 not in self.trusted and not same_patient(known, file.header.identity):
                others[file.sha256] = study.id
                continue
            firsts[uid] = file
            if known is None:
                self.identities[study.id] = file.header.identity
            elif file.sha256 not in self.trusted:
                self.identities[study.id] = completed(known, file.header.identity)
        new = self._add_instances(firsts, now)
        # a row in conflict is committed, or our insert would still wait for it
        uids = [file.header.sop_instance_uid for file in files]
        repeated = {uid for uid, file in zip(uids, files, strict=True) if firsts.get(uid) is not file}
        there = {**there, **look_up(self.session, self.site_id, (firsts.keys() - new) | (firsts.keys() & repeated))}
        return [self._taken(file, there, firsts, new, others) for file in files]

    def _taken(
        self,
        file: StoredFile,
        there: Mapping[str, Standing],
        firsts: Mapping[str, StoredFile],
        new: Collection[str],
        others: Mapping[str, UUID],
    ) -> Taken:
        uid = file.header.sop_instance_uid
        if file.sha256 in others:
            self.held[file.sha256] = Kind.PATIENT, others[file.sha256], None
            return Taken(Known.HELD, others[file.sha256])
        if uid in new and firsts[uid] is file:
            return Taken(Known.NEW, self.studies[file.header.study_instance_uid].id)
        standing = there[uid]
        outcome = standing.compared(file.sha256)
        if outcome.known is not Known.HELD:
            return outcome
        kind = self.kinds.get(file.sha256, Kind.COMPARING)
        if kind is None:
            return replace(outcome, known=Known.DUPLICATE)
        if kind is Kind.CORRECTION and standing.study_instance_uid != file.header.study_instance_uid:
            kind = Kind.PIXELS  # to move an image to another study is for a person to decide
        self.held[file.sha256] = kind, standing.study_id, standing.instance_id
        return outcome

    def _add_instances(self, firsts: Mapping[str, StoredFile], now: datetime) -> set[str]:
        """Write the rows of new instances; the UIDs of those that nobody else wrote meanwhile."""
        rows = [
            {
                "id": uuid4(),
                "site_id": self.site_id,
                "study_id": self.studies[header.study_instance_uid].id,
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
                **described(self.vault, header),
            }
            for uid in sorted(firsts)  # in one order everywhere, as the studies
            for header in [firsts[uid].header]
        ]
        statement = insert(InstanceRow).on_conflict_do_nothing().returning(InstanceRow.sop_instance_uid)
        return set(self.session.scalars(statement, rows)) if rows else set()

    def keep_identities(self) -> None:
        """Write who the patients of new studies are, and what later images told of the others."""
        images = {row.id: row.images for row in self.studies.values()}
        new = {id_: who for id_, who in self.identities.items() if id_ not in self.before and images[id_]}
        self.vault.keep_identities(self.session, self.site_id, new)
        for study_id, identity in self.identities.items():
            if study_id in self.before and identity != self.before[study_id]:
                self.vault.change_identity(self.session, self.site_id, study_id, identity)


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
            "header_version": HEADER_VERSION,
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


def described(vault: Vault, header: Header) -> dict[str, object]:
    """What an instance's row says of its examination; free text is encrypted."""
    told = header.examination
    return {
        "laterality": told.laterality,
        "view": told.view,
        "manufacturer": told.manufacturer,
        "model": told.model,
        "description": vault.seal(told.series_description) if told.series_description else None,
    }


def examined(study: StudyRow, header: Header) -> None:
    """Let a study's row say of the examination what it lacks and this image's header tells."""
    told = header.examination
    study.scanner = study.scanner or header.scanner
    study.body_part = study.body_part or header.body_part
    study.sex = study.sex or told.sex
    if study.age_years is None:
        study.age_years = header.age_years
    if study.study_date is None:
        study.study_date, study.study_time = told.study_date, told.study_time
    if told.laterality and told.laterality != study.laterality:
        study.laterality = "B" if study.laterality else told.laterality
    views = study.views.split(", ") if study.views else []
    if told.view and told.view not in views and len(joined := ", ".join([*views, told.view])) <= LONGEST_VIEWS:
        study.views = joined


def _grow(study: StudyRow, header: Header, now: datetime, settle: timedelta, allowances: Allowances) -> None:
    """A study has got a new instance."""
    study.images += 1
    study.read_at = None  # whoever read it has not seen this one
    study.modality = study.modality or header.modality
    examined(study, header)
    if study.queue != study.priority:  # the nightly run had it; a new image is no backlog
        study.queue, study.sent_at = study.priority, None
    status = StudyStatus(study.status)
    if status not in (StudyStatus.QUEUED, StudyStatus.RUNNING) and may_become(status, StudyStatus.QUEUED):
        study.status, study.attempts, study.not_before, study.reason = StudyStatus.QUEUED, 0, None, ""
        study.sent_at, study.queued_at, study.queue = None, now, study.priority
        study.due_at = min(study.due_at, due_at(study.received_at, Priority(study.priority), None, allowances))
    if settle and study.status == StudyStatus.QUEUED and study.received_at < now and study.priority != Priority.URGENT:
        study.not_before, study.sent_at = now + settle, None
