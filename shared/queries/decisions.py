"""Decisions about held files: they become images or corrections, or are rejected."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import select
from sqlalchemy.orm import Session

from shared.db.notify import worklist_changed
from shared.db.tables import HeldFileRow, InstanceRow, SeriesRow, StudyRow
from shared.db.tables.studies import IS_ANALYSED
from shared.dicom.header import scanner_of
from shared.domain.held import STATE_OF, HeldDecision, HeldKind, HeldState
from shared.domain.identity import same_patient
from shared.domain.security import EventKind, Subject
from shared.domain.study import Header, Identity, Priority, StoredFile
from shared.errors import InvalidState
from shared.queries import outbox, series
from shared.queries.access import Key, Vault
from shared.queries.audit import Target, record
from shared.queries.held import lock_group, opened_header, record_decision
from shared.queries.intake import IntakeState, complete_examination, examination_columns, find_existing, take_in

UNREADABLE_FILE = (
    "This file's header cannot be decrypted: it was encrypted with another OSTEON_IDENTITY_KEY. Set that key again, "
    "or reject the file and send it again"
)
CHANGED = (  # of a study
    "sex", "age_years", "study_date", "study_time", "body_part", "laterality", "views", "scanner", "modality",
)  # fmt: skip


@dataclass(frozen=True)
class DecisionResult:
    """What a decision led to."""

    files: int  # that it was about; 0 if it had been made before
    study_ids: list[UUID]  # studies that got images


def decide(
    session: Session, vault: Vault, key: Key, held_id: UUID, decision: HeldDecision, reason: str, now: datetime
) -> DecisionResult:
    """Decide about a held file and all that belong together with it. The same decision again changes nothing.

    What cannot be decrypted, since another identity key encrypted it, can only be rejected.

    Args:
        session: the caller's transaction.
        vault: decrypts the files' headers.
        key: of the administrator.
        held_id: the file.
        decision: what to do.
        reason: in the administrator's words; kept encrypted, may be empty.
        now: Postgres' time.

    Returns:
        How many files this was about, and which studies got images.

    Raises:
        NotFound: there is no such file.
        InvalidState: the decision is not possible, or another one was made.
    """
    rows = lock_group(session, key.site_id, held_id, decision)
    if not rows:
        return DecisionResult(0, [])
    record_decision(vault, rows, decision, key, reason, now)
    studies: list[UUID] = []
    if decision is HeldDecision.ANOTHER_STUDY:
        studies = _another_study(session, vault, rows, now)
    elif decision is HeldDecision.SAME_PATIENT:
        studies = _same_patient(session, vault, rows, now)
    elif decision is HeldDecision.APPLY:
        _apply(session, vault, rows, now)
    record(
        session, EventKind.HELD_DECIDED, key, about=Target(Subject.HELD_FILE, held_id), study_id=rows[0].study_id,
        before={"state": HeldState.OPEN}, after={"state": STATE_OF[decision]}, held=rows[0].kind, files=len(rows),
    )  # fmt: skip
    worklist_changed(session, [key.site_id])
    return DecisionResult(len(rows), studies)


def _another_study(session: Session, vault: Vault, rows: Sequence[HeldFileRow], now: datetime) -> list[UUID]:
    """Make the files images of a study of their own: the one that the patient was given before, if there is one."""
    uid = _earlier_study(session, vault, rows[0]) or f"2.25.{uuid4().int}"
    return _take(session, vault, rows, uid, now)


def _earlier_study(session: Session, vault: Vault, row: HeldFileRow) -> str | None:
    earlier = session.execute(
        select(HeldFileRow, StudyRow.study_instance_uid)
        .join(StudyRow, StudyRow.id == HeldFileRow.new_study_id)
        .where(
            HeldFileRow.study_id == row.study_id,
            HeldFileRow.kind == HeldKind.PATIENT,
            HeldFileRow.state == HeldState.ANOTHER_STUDY,
        )
        .order_by(HeldFileRow.decided_at.desc(), HeldFileRow.id)
    )
    who = _header(vault, row).identity
    if row.kind != HeldKind.PATIENT:
        return None
    headers = ((opened_header(vault, one.header), uid) for one, uid in earlier)
    return next((uid for header, uid in headers if header and same_patient(header.identity, who)), None)


def _header(vault: Vault, row: HeldFileRow) -> Header:
    """Decrypt a held file's header. Raises InvalidState if another key encrypted it."""
    header = opened_header(vault, row.header)
    if header is None:
        raise InvalidState(UNREADABLE_FILE)
    return header


def _same_patient(session: Session, vault: Vault, rows: Sequence[HeldFileRow], now: datetime) -> list[UUID]:
    """Make the files images of the study that they came for; searches for their numbers find it, too, from now on."""
    study = session.get_one(StudyRow, rows[0].study_id)
    for row in rows:
        vault.add_search_tokens(session, row.site_id, study.id, _header(vault, row).identity)
    return _take(session, vault, rows, study.study_instance_uid, now)


def _take(session: Session, vault: Vault, rows: Sequence[HeldFileRow], uid: str, now: datetime) -> list[UUID]:
    """Store the files as images of the study with this UID; if a SOP Instance UID is taken, under a new one."""
    taken_uids = set(find_existing(session, rows[0].site_id, [row.sop_instance_uid for row in rows]))
    by_priority: dict[Priority, list[tuple[HeldFileRow, StoredFile]]] = {}
    for row in rows:
        header = replace(_header(vault, row), study_instance_uid=uid)
        if row.sop_instance_uid in taken_uids:
            header = replace(header, sop_instance_uid=f"2.25.{uuid4().int}")
        taken_uids.add(row.sop_instance_uid)
        file = StoredFile(row.sha256, row.size_bytes, header)
        by_priority.setdefault(Priority(row.priority), []).append((row, file))
    studies: set[UUID] = set()
    for priority, several in by_priority.items():
        files = [file for _, file in several]
        site_id = several[0][0].site_id
        taken = take_in(session, vault, site_id, priority, files, now, trusted=frozenset(file.sha256 for file in files))
        there = find_existing(session, site_id, [file.header.sop_instance_uid for file in files])
        for (row, file), outcome in zip(several, taken, strict=True):
            assert outcome.known is not IntakeState.HELD, "it is trusted, and its UID is free"
            row.new_study_id = outcome.study_id
            row.new_instance_id = there[file.header.sop_instance_uid].instance_id
            studies.add(outcome.study_id)
    return sorted(studies)


def _apply(session: Session, vault: Vault, rows: Sequence[HeldFileRow], now: datetime) -> None:
    """Use the corrected headers for their images, and the last one's identity for the study; the old ones are kept."""
    study = session.get_one(StudyRow, rows[0].study_id)
    known = vault.stored_identities(session, [study.id]).get(study.id, Identity())
    if not known.readable:
        raise InvalidState(
            "The identity of this study cannot be decrypted: it was encrypted with another OSTEON_IDENTITY_KEY. Set "
            "that key again before the correction overwrites it, or reject the file"
        )
    seen: dict[str, Any] = {name: getattr(study, name) for name in CHANGED}
    header = None
    for row in rows:
        assert row.instance_id is not None, "a correction is of an image"
        instance = session.get_one(InstanceRow, row.instance_id)
        header = _header(vault, row)
        its_series = session.get(SeriesRow, instance.series_id) if instance.series_id else None
        row.before = vault.seal(
            {
                "identity": asdict(known),
                "study": seen,
                "sha256": instance.header_sha256 or instance.sha256,
                "body_part": instance.body_part,
                "laterality": instance.laterality,
                "view": instance.view,
                "description": vault.text(instance.description),
                "series": asdict(series.open_series(vault, its_series)) if its_series else None,
            }
        )
        for name, value in examination_columns(vault, header).items():
            setattr(instance, name, value)
        instance.body_part, instance.header_sha256 = header.body_part, row.sha256
        instance.sop_class_uid, instance.modality = header.sop_class_uid, header.modality
        _correct_series(session, vault, study, instance, header)
    assert header is not None
    study.header_version += 1
    study.revised_at = now
    outbox.record_correction(session, study.id)
    session.flush()
    series.remove_empty(session, [study.id])
    _renew(session, study, header)
    if header.identity != known:
        vault.change_identity(session, study.site_id, study.id, header.identity)


def _correct_series(session: Session, vault: Vault, study: StudyRow, instance: InstanceRow, header: Header) -> None:
    """Write what the correction says of its image's series; the image moves if the correction names another one."""
    if header.series is None:  # the file came before there were series: its object is read instead
        study.filled_version, instance.series_id = 0, None
        return
    session.flush()
    found = series.series_ids(session, vault, study.site_id, [(study, header)])[study.id, header.series.instance_uid]
    row = session.get_one(SeriesRow, found)
    for name, value in series.series_columns(vault, header.series, header.modality).items():
        setattr(row, name, value)
    instance.series_id = found


def _renew(session: Session, study: StudyRow, header: Header) -> None:
    """Write what the correction says of the patient, and what all images' headers say, into the study's row."""
    examination = header.examination
    study.sex = examination.sex or study.sex
    study.utc_offset = examination.utc_offset or study.utc_offset
    study.age_years = study.age_years if header.age_years is None else header.age_years
    if examination.study_date is not None:
        study.study_date, study.study_time = examination.study_date, examination.study_time
    study.body_part = study.laterality = study.views = study.scanner = study.modality = ""
    instances = session.scalars(
        select(InstanceRow)
        .where(InstanceRow.study_id == study.id, *IS_ANALYSED)
        .order_by(InstanceRow.received_at, InstanceRow.sop_instance_uid)
    )
    for one in instances:
        seen = replace(
            examination, sex="", study_date=None, laterality=one.laterality, view=one.view,
            manufacturer=one.manufacturer, model=one.model,
        )  # fmt: skip
        scanner = scanner_of(one.manufacturer, one.model)
        study.modality = study.modality or one.modality
        complete_examination(
            study,
            replace(header, examination=seen, body_part=one.body_part, scanner=scanner, age_years=None, kept=None),
        )
