"""Taking stored files in: studies, instances, identities."""

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import ARRAY, Text, Uuid, any_, bindparam, cast, or_, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from shared.db.notify import worklist_changed
from shared.db.tables import InstanceRow, StudyRow, UploadRow
from shared.db.tables.base import table_of
from shared.db.tables.studies import FILLED_VERSION
from shared.domain.analysis import AnalysisState
from shared.domain.findings import Assessment, Extent, StudySummary, abstention_of
from shared.domain.held import HeldKind
from shared.domain.identity import complete_identity, same_patient
from shared.domain.security import System
from shared.domain.study import (
    Header,
    Priority,
    Rejection,
    RejectionNote,
    StoredFile,
    StoredOnly,
    StoredStatus,
    StudyStatus,
)
from shared.domain.worklist import TurnaroundTargets, due_at
from shared.queries import analyses, completeness, rejections, series
from shared.queries.access import Key, Vault
from shared.queries.held import HeldFile, hold_file
from shared.queries.turnaround import targets_of

MAX_VIEWS_LENGTH = 64  # characters
# statements that are made once
_STUDIES, _INSTANCES = table_of(StudyRow), table_of(InstanceRow)
EXISTING = (
    select(
        _INSTANCES.c.sop_instance_uid, _INSTANCES.c.sha256, _INSTANCES.c.study_id, _INSTANCES.c.id,
        _INSTANCES.c.header_sha256, _INSTANCES.c.size_bytes, _STUDIES.c.study_instance_uid,
    )
    .join(_STUDIES, _STUDIES.c.id == _INSTANCES.c.study_id)
    .where(
        _INSTANCES.c.site_id == bindparam("site"),
        _INSTANCES.c.sop_instance_uid == any_(bindparam("uids", type_=ARRAY(Text))),
    )
)  # fmt: skip
ADD_STUDIES = insert(_STUDIES).on_conflict_do_nothing()
ADD_INSTANCES = insert(_INSTANCES).on_conflict_do_nothing().returning(_INSTANCES.c.sop_instance_uid)
# rows are locked in one order everywhere, so that two transactions cannot wait for each other in a ring
LOCK_STUDIES = (
    select(StudyRow)
    .where(
        StudyRow.site_id == bindparam("site"),
        or_(
            StudyRow.study_instance_uid == any_(bindparam("uids", type_=ARRAY(Text))),
            StudyRow.id == any_(cast(bindparam("ids", type_=ARRAY(Text)), ARRAY(Uuid))),
        ),
    )
    .order_by(StudyRow.id)
    .with_for_update()
)
STATUSES = select(StudyRow.id, analyses.STATUS).where(
    StudyRow.id == any_(cast(bindparam("ids", type_=ARRAY(Text)), ARRAY(Uuid)))
)


class IntakeState(StrEnum):
    """Whether an instance is stored already."""

    NEW = "new"
    DUPLICATE = "duplicate"  # the same bytes, or the same image
    HELD = "held"  # it waits for a decision


@dataclass(frozen=True)
class IntakeResult:
    """What became of one stored file."""

    known: IntakeState
    study_id: UUID
    held: HeldFile | None = None  # once it is


@dataclass(frozen=True)
class ExistingInstance:
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

    def compared(self, sha256: str) -> IntakeResult:
        """The outcome for a file with its UID and these bytes."""
        return IntakeResult(
            IntakeState.DUPLICATE if sha256 in (self.sha256, self.header_sha256) else IntakeState.HELD, self.study_id
        )


def find_existing(session: Session, site_id: UUID, sop_instance_uids: Collection[str]) -> dict[str, ExistingInstance]:
    """Find instances that are stored already.

    Args:
        session: the caller's transaction.
        site_id: the site.
        sop_instance_uids: of the instances.

    Returns:
        Those that exist, by SOP Instance UID.
    """
    if not sop_instance_uids:
        return {}
    rows = session.execute(EXISTING, {"site": site_id, "uids": list(sop_instance_uids)})
    return {row[0]: ExistingInstance(*row[1:]) for row in rows}


@dataclass(frozen=True)
class StoredContent:
    """An instance that has a row, and where its bytes should be."""

    sop_class_uid: str
    sha256: str


def stored_contents(session: Session, site_id: UUID, sop_instance_uids: Collection[str]) -> dict[str, StoredContent]:
    """Find instances by UID, as storage commitment does. What is only held for a decision is none of them.

    Args:
        session: the caller's transaction.
        site_id: the site.
        sop_instance_uids: of the instances.

    Returns:
        Those that exist, by SOP Instance UID.
    """
    rows = session.execute(
        select(InstanceRow.sop_instance_uid, InstanceRow.sop_class_uid, InstanceRow.sha256)
        .where(InstanceRow.site_id == site_id, InstanceRow.sop_instance_uid.in_(set(sop_instance_uids)))
    )  # fmt: skip
    return {uid: StoredContent(sop_class, sha256) for uid, sop_class, sha256 in rows}


def lock_upload(session: Session, site_id: UUID, idempotency_key: str) -> None:
    """Wait until no other transaction works on an upload with this key; keep others waiting until this one ends.

    Args:
        session: the caller's transaction.
        site_id: the site.
        idempotency_key: of the request.
    """
    digest = hashlib.sha256(f"{site_id}/{idempotency_key}".encode()).digest()
    number = int.from_bytes(digest[:8], "big", signed=True)
    session.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": number})


def find_receipt(session: Session, site_id: UUID, idempotency_key: str) -> UploadRow | None:
    """Find an earlier request with the same idempotency key.

    Args:
        session: the caller's transaction.
        site_id: the site.
        idempotency_key: of the request.

    Returns:
        Its row with the sealed receipt; None if there was none.
    """
    return session.get(UploadRow, (site_id, idempotency_key))


def save_receipt(
    session: Session,
    *,
    site_id: UUID,
    idempotency_key: str,
    content_sha256: str,
    receipt: bytes,
    study_ids: Collection[UUID],
) -> None:
    """Keep a receipt, in place of an earlier one under the same key.

    Args:
        session: the caller's transaction.
        site_id: the site.
        idempotency_key: of the request.
        content_sha256: of the request's body, hexadecimal.
        receipt: sealed.
        study_ids: of the studies in it.
    """
    columns = {"receipt": receipt, "study_ids": list(study_ids)}
    keys = {"site_id": site_id, "idempotency_key": idempotency_key}
    new = insert(UploadRow).values(**keys, content_sha256=content_sha256, **columns)
    session.execute(new.on_conflict_do_update(index_elements=list(keys), set_=columns))


def statuses_of(session: Session, study_ids: Collection[UUID]) -> dict[UUID, StudyStatus]:
    """Read the status of studies.

    Args:
        session: the caller's transaction.
        study_ids: the studies.

    Returns:
        The status by study, of those that exist.
    """
    rows = session.execute(STATUSES, {"ids": list(map(str, study_ids))}) if study_ids else ()
    return {row.id: StudyStatus(row.status) for row in rows}


def take_in(
    session: Session,
    vault: Vault,
    site_id: UUID,
    priority: Priority,
    files: list[StoredFile],
    now: datetime,
    sent_again: Collection[UUID] = (),
    debounce: timedelta = timedelta(),
    kinds: Mapping[str, HeldKind | None] | None = None,
    trusted: Collection[str] = (),
    admit: Callable[[int, int], None] = lambda _studies, _urgent: None,
    actor: Key | System = System.INTAKE,
) -> list[IntakeResult]:
    """Write the rows of stored files, in their order; two senders of one study do not disturb each other.

    What is kept, or rejected by a document, has no study analysed. A study that was done is opened again for its
    new images, and an urgent file makes its study urgent, also one that existed already. A request is complete when
    it ends; a study that gets images from a further one waits until none came for `debounce`, unless it is urgent:
    one analysis instead of many.

    A file of another patient than its study's is held, unless it is trusted, and so is one whose SOP Instance UID is a
    stored image's.

    Args:
        session: the caller's transaction.
        vault: encrypts identities and free text.
        site_id: the site.
        priority: of new studies.
        files: whose bytes are in the object store.
        now: Postgres' time.
        sent_again: studies of files that the request held and that are stored already; an urgent request makes them
            urgent.
        debounce: how long a study waits for further images.
        kinds: what a comparison with the stored image showed, by SHA-256: why the file is held, or None if it is the
            same. Without an entry, a worker compares.
        trusted: SHA-256 of files that are known to be of their study's patient.
        admit: called with the number of new studies and of those that became urgent, once all is written; it may raise.
        actor: whoever sent them.

    Returns:
        What became of each file.
    """
    uids = sorted({file.header.study_instance_uid for file in files})
    targets = targets_of(session, [site_id])[site_id]
    _add_studies(session, site_id, priority, uids, now, targets, actor)
    kinds = kinds or {}
    existing = find_existing(session, site_id, {file.header.sop_instance_uid for file in files if file.sha256 in kinds})
    again = set(sent_again) if priority is Priority.URGENT else set()
    touched = again | {one.study_id for one in existing.values()}
    touched |= rejections.studies_named(
        session, site_id, [file.header.rejects for file in files if file.header.rejects]
    )
    rows = session.scalars(LOCK_STUDIES, {"site": site_id, "uids": uids, "ids": list(map(str, touched))}).all()
    before = {row.id: (row.images, row.images + row.kept, row.priority) for row in rows}
    waiting = analyses.lock_open(session, [row.id for row in rows if row.images])
    studies = {row.study_instance_uid: row for row in rows}
    taking = _ImageSorter(session, vault, site_id, studies, kinds, frozenset(trusted))
    taken = taking.take(files, existing, now)
    if priority is Priority.URGENT:
        its_own = {one.study_id for one in taken if one.known is not IntakeState.HELD}
        for row in rows:
            if row.id in again | its_own:
                _escalate(session, row, waiting.get(row.id), targets)
    grown: dict[UUID, StudyRow] = {}
    for file, outcome in zip(files, taken, strict=True):
        if outcome.known is IntakeState.NEW:
            study = studies[file.header.study_instance_uid]
            if _count_instance(study, file.header, rejected=file.header.sop_instance_uid in taking.rejected):
                grown[study.id] = study
    completeness.record_received(grown.values(), now)
    _queue_studies(session, list(grown.values()), before, waiting, now, debounce, targets)
    taking.keep_identities()
    kept: dict[str, HeldFile] = {}
    for place, file in enumerate(files):
        if taken[place].known is IntakeState.HELD:
            first = taking.repeated.get(file.sha256, file.sha256)
            if first not in kept:
                kind, study_id, instance_id = taking.held[file.sha256]
                kept[first] = hold_file(session, vault, site_id, file, kind, priority, study_id, instance_id)
            taken[place] = replace(taken[place], held=kept[first])
    taking.note_rejected(actor)
    rejections.reject_instances(session, site_id, taking.notes, now, actor)
    new, urgent = _settle(session, rows, before)
    admit(new, urgent)
    worklist_changed(session, [site_id])
    return taken


def _settle(session: Session, rows: Sequence[StudyRow], before: Mapping[UUID, tuple[int, int, str]]) -> tuple[int, int]:
    """Remove studies that got nothing, and mark those that hold nothing to analyse; count the new and urgent ones."""
    for row in rows:
        if not row.images + row.kept:  # made for files that are all held, or images of another study
            session.delete(row)
        elif not row.images:
            row.status = StoredStatus.KEPT
    new = {row.id for row in rows if row.images + row.kept and not before[row.id][1]}
    urgent = [
        row for row in rows
        if row.images and row.priority == Priority.URGENT and (row.id in new or before[row.id][2] != row.priority)
    ]  # fmt: skip
    return len(new), len(urgent)


class _ImageSorter:
    """Telling new images from those that are there already, and from those that must be held."""

    def __init__(
        self,
        session: Session,
        vault: Vault,
        site_id: UUID,
        studies: dict[str, StudyRow],
        kinds: Mapping[str, HeldKind | None],
        trusted: frozenset[str],
    ) -> None:
        self.session, self.vault, self.site_id, self.studies = session, vault, site_id, studies
        self.kinds, self.trusted = kinds, trusted
        self.held: dict[str, tuple[HeldKind, UUID, UUID | None]] = {}  # by SHA-256: why, and for what it came
        self.repeated: dict[str, str] = {}  # by SHA-256: the file before that is held, which this one is, written anew
        self.rejected: Mapping[str, Rejection] = {}  # new instances that a document rejects, by SOP Instance UID
        self.came_rejected: list[tuple[UUID, Rejection]] = []  # study and title of each of them
        self.notes: dict[UUID, RejectionNote] = {}  # of new documents, by their ids
        filled = [row.id for row in studies.values() if row.images + row.kept]
        self.before = vault.stored_identities(session, filled) if filled else {}
        self.identities = dict(self.before)

    def take(
        self, files: list[StoredFile], existing: Mapping[str, ExistingInstance], now: datetime
    ) -> list[IntakeResult]:
        """What becomes of each file, in the order given; the rows of new instances are written."""
        firsts: dict[str, StoredFile] = {}  # of several with one UID the first counts
        others: dict[str, UUID] = {}  # of another patient, by SHA-256: for which study they came
        first_others: dict[str, str] = {}  # SHA-256 of the first of them by SOP Instance UID
        for file in files:
            uid = file.header.sop_instance_uid
            if uid in existing or uid in firsts:
                continue
            study = self.studies[file.header.study_instance_uid]
            identity = self.identities.get(study.id)
            if (
                identity is not None
                and file.sha256 not in self.trusted
                and not same_patient(identity, file.header.identity)
            ):
                others[file.sha256] = study.id
                first = first_others.setdefault(uid, file.sha256)
                if self.kinds.get(file.sha256, HeldKind.COMPARING) is None and first != file.sha256:
                    self.repeated[file.sha256] = first
                continue
            firsts[uid] = file
            if identity is None:
                self.identities[study.id] = file.header.identity
            elif file.sha256 not in self.trusted:
                self.identities[study.id] = complete_identity(identity, file.header.identity)
        new = self._add_instances(firsts, now)
        # a row in conflict is committed, or our insert would still wait for it
        uids = [file.header.sop_instance_uid for file in files]
        repeated = {uid for uid, file in zip(uids, files, strict=True) if firsts.get(uid) is not file}
        existing = {
            **existing,
            **find_existing(self.session, self.site_id, (firsts.keys() - new) | (firsts.keys() & repeated)),
        }
        return [self._taken(file, existing, firsts, new, others) for file in files]

    def _taken(
        self,
        file: StoredFile,
        existing: Mapping[str, ExistingInstance],
        firsts: Mapping[str, StoredFile],
        new: Collection[str],
        others: Mapping[str, UUID],
    ) -> IntakeResult:
        uid = file.header.sop_instance_uid
        if file.sha256 in others:
            # a worker tells whether a held file is the same, in another encoding
            compare = self.kinds.get(file.sha256) is HeldKind.COMPARING
            self.held[file.sha256] = HeldKind.COMPARING if compare else HeldKind.PATIENT, others[file.sha256], None
            return IntakeResult(IntakeState.HELD, others[file.sha256])
        if uid in new and firsts[uid] is file:
            return IntakeResult(IntakeState.NEW, self.studies[file.header.study_instance_uid].id)
        standing = existing[uid]
        outcome = standing.compared(file.sha256)
        if outcome.known is not IntakeState.HELD:
            return outcome
        kind = self.kinds.get(file.sha256, HeldKind.COMPARING)
        if kind is None:
            return replace(outcome, known=IntakeState.DUPLICATE)
        if kind is HeldKind.CORRECTION and standing.study_instance_uid != file.header.study_instance_uid:
            kind = HeldKind.PIXELS  # to move an image to another study is for a person to decide
        self.held[file.sha256] = kind, standing.study_id, standing.instance_id
        return outcome

    def _add_instances(self, firsts: Mapping[str, StoredFile], now: datetime) -> set[str]:
        """Write the rows of new instances; return the UIDs of those that no other request wrote meanwhile."""
        whose = [(self.studies[file.header.study_instance_uid], file.header) for file in firsts.values()]
        its_series = series.series_ids(self.session, self.vault, self.site_id, whose)
        for study, header in whose:
            if header.series is None:  # a worker or the next start reads its original
                study.filled_version = 0
        self.rejected = rejections.rejected_before(self.session, self.site_id, firsts.keys())
        rows: list[dict[str, Any]] = [
            {
                "id": uuid4(),
                "site_id": self.site_id,
                "study_id": study.id,
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
                "kept": header.kept or "",
                "rejected_by_ko": self.rejected.get(uid, ""),
                "series_id": its_series.get((study.id, header.series.instance_uid)) if header.series else None,
                **examination_columns(self.vault, header),
            }
            for uid in sorted(firsts)  # in one order everywhere, as the studies
            for header in [firsts[uid].header]
            for study in [self.studies[header.study_instance_uid]]
        ]
        new = set(self.session.scalars(ADD_INSTANCES, rows)) if rows else set()
        for row in rows:
            uid = str(row["sop_instance_uid"])
            if uid not in new:
                continue
            if note := firsts[uid].header.rejects:
                self.notes[row["id"]] = note
            if uid in self.rejected:
                self.came_rejected.append((row["study_id"], self.rejected[uid]))
        if len(new) < len(rows):
            series.remove_empty(self.session, {study.id for study, _ in whose})
        return new

    def note_rejected(self, actor: Key | System) -> None:
        """Record the new instances that were rejected before they came."""
        counted = Counter(self.came_rejected)
        for (study_id, title), instances in counted.items():
            rejections.record_rejected(self.session, self.site_id, study_id, title, instances, actor)

    def keep_identities(self) -> None:
        """Write the identities of new studies, and what later instances add to those of others."""
        filled = {row.id: row.images + row.kept for row in self.studies.values()}
        new = {id_: who for id_, who in self.identities.items() if id_ not in self.before and filled[id_]}
        self.vault.store_identities(self.session, self.site_id, new)
        for study_id, identity in self.identities.items():
            if study_id in self.before and identity != self.before[study_id]:
                self.vault.change_identity(self.session, self.site_id, study_id, identity)


def _add_studies(
    session: Session,
    site_id: UUID,
    priority: Priority,
    uids: list[str],
    now: datetime,
    targets: TurnaroundTargets,
    actor: Key | System,
) -> None:
    rows = [
        {
            "id": uuid4(),
            "site_id": site_id,
            "study_instance_uid": uid,
            "priority": priority,
            "status": StoredStatus.QUEUED,
            "sender": actor.name if isinstance(actor, Key) else "",
            "received_at": now,
            "due_at": due_at(now, priority, None, targets),
            "header_version": 1,
            "filled_version": FILLED_VERSION,
        }
        for uid in uids
    ]
    if rows:
        session.execute(ADD_STUDIES, rows)


def _queue_studies(
    session: Session,
    grown: Sequence[StudyRow],
    before: Mapping[UUID, tuple[int, int, str]],
    waiting: Mapping[UUID, analyses.AnyRow],
    now: datetime,
    debounce: timedelta,
    targets: TurnaroundTargets,
) -> None:
    """Have studies analysed that have got new images.

    before: their images, instances and priority; waiting: what is open.
    """
    new = []
    for study in grown:
        if not before[study.id][0]:
            if before[study.id][1]:  # what came before was kept: its wait begins now
                study.received_at, study.status = now, StoredStatus.QUEUED
                study.due_at = due_at(now, Priority(study.priority), None, targets)
            row = analyses.first_analysis_values(study.id, study.site_id, Priority(study.priority), now)
            study.current_analysis_id = row["id"]
            new.append(row)
            continue
        its, settling = waiting.get(study.id), {}
        if debounce and study.received_at < now and study.priority != Priority.URGENT:
            settling["not_before"] = now + debounce
        if its is None or its.state == AnalysisState.RETRYING:
            analyses.reopen_analysis(session, study, now, its, **settling)
            study.due_at = min(study.due_at, due_at(study.received_at, Priority(study.priority), None, targets))
        elif its.state == AnalysisState.QUEUED and settling:
            analyses.requeue(session, its, priority=study.priority, **settling)
        elif its.priority != study.priority:  # a backfill run had it; a new image is no backlog
            analyses.requeue(session, its, priority=study.priority)
    session.flush()
    analyses.add_analyses(session, new)


def _escalate(session: Session, row: StudyRow, its: analyses.AnyRow | None, targets: TurnaroundTargets) -> None:
    """Make a study urgent. its: the analysis that is open."""
    if row.priority == Priority.URGENT and (its is None or its.priority == Priority.URGENT):
        return
    row.due_at = min(row.due_at, due_at(row.received_at, Priority.URGENT, _summary(row), targets))
    row.priority = Priority.URGENT
    if its is not None:  # its message waits in a slower queue; the next one overtakes it
        analyses.requeue(session, its, priority=Priority.URGENT)


def _summary(row: StudyRow) -> StudySummary | None:
    if row.status != StoredStatus.ANALYSED or row.assessment is None or row.severity is None:
        return None
    return StudySummary(
        Assessment(row.assessment),
        Extent(row.severity),
        row.region,
        row.fracture_probability or 0.0,
        row.score,
        abstention_of(row.abstention),
        row.abstention_detail,
    )


def examination_columns(vault: Vault, header: Header) -> dict[str, object]:
    """Collect the examination's columns of an instance's row.

    Args:
        vault: encrypts free text.
        header: of the instance.

    Returns:
        Values by column.
    """
    examination = header.examination
    return {
        "laterality": examination.laterality,
        "view": examination.view,
        "manufacturer": examination.manufacturer,
        "model": examination.model,
        "description": vault.seal(examination.series_description) if examination.series_description else None,
        "instance_number": header.instance_number,
        "bits_allocated": header.bits_allocated,
    }


def complete_examination(study: StudyRow, header: Header) -> None:
    """Complete the examination's columns of a study's row from a header.

    Args:
        study: changed in place; what it has stays.
        header: of one of its instances; one that is kept tells of patient and time only.
    """
    examination = header.examination
    study.sex = study.sex or examination.sex
    study.utc_offset = study.utc_offset or examination.utc_offset
    if study.age_years is None:
        study.age_years = header.age_years
    if study.study_date is None:
        study.study_date, study.study_time = examination.study_date, examination.study_time
    if header.kept:
        return
    study.scanner = study.scanner or header.scanner
    study.body_part = study.body_part or header.body_part
    if examination.laterality and examination.laterality != study.laterality:
        study.laterality = "B" if study.laterality else examination.laterality
    views = study.views.split(", ") if study.views else []
    if (
        examination.view
        and examination.view not in views
        and len(joined := ", ".join([*views, examination.view])) <= MAX_VIEWS_LENGTH
    ):
        study.views = joined


def _count_instance(study: StudyRow, header: Header, *, rejected: bool) -> bool:
    """Count a new instance of a study; return whether it is analysed."""
    if header.kept or rejected:
        study.kept += 1
        complete_examination(study, replace(header, kept=header.kept or StoredOnly.NOT_AN_IMAGE))
        return False
    study.images += 1
    study.read_at = None  # its reader has not seen this one
    study.modality = study.modality or header.modality
    complete_examination(study, header)
    return True
