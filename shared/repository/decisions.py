"""Deciding on held files: they become images, corrections, or stay what they are."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import select
from sqlalchemy.orm import Session

from shared.dicom import scanner_of
from shared.held import Decision, Kind, State
from shared.identity import same_patient
from shared.repository.access import Key, Vault
from shared.repository.held import close, locked_group, opened_header
from shared.repository.intake import Known, described, examined, look_up, take_in
from shared.repository.notices import worklist_changed
from shared.study import Header, Identity, Priority, StoredFile
from shared.tables import HeldFileRow, InstanceRow, StudyRow

CHANGED = ("sex", "age_years", "study_date", "study_time", "body_part", "laterality", "views", "scanner")  # of a study


@dataclass(frozen=True)
class Decided:
    """What a decision led to."""

    files: int  # that it was about; 0 if it had been made before
    study_ids: list[UUID]  # studies that got images


def decide(
    session: Session, vault: Vault, key: Key, held_id: UUID, decision: Decision, reason: str, now: datetime
) -> Decided:
    """Decide on a held file and all that belong together with it. Made again, the same decision changes nothing.

    Raises NotFound, and NotNow for what cannot be decided, or was decided otherwise.
    """
    rows = locked_group(session, key.site_id, held_id, decision)
    if not rows:
        return Decided(0, [])
    close(vault, rows, decision, key, reason, now)
    studies: list[UUID] = []
    if decision is Decision.ANOTHER_STUDY:
        studies = _another_study(session, vault, rows, now)
    elif decision is Decision.SAME_PATIENT:
        studies = _same_patient(session, vault, rows, now)
    elif decision is Decision.APPLY:
        _apply(session, vault, rows)
    worklist_changed(session, [key.site_id])
    return Decided(len(rows), studies)


def _another_study(session: Session, vault: Vault, rows: Sequence[HeldFileRow], now: datetime) -> list[UUID]:
    """Make the files images of a study of their own; of a patient who was given one before, of that."""
    uid = _earlier_study(session, vault, rows[0]) or f"2.25.{uuid4().int}"
    return _take(session, vault, rows, uid, now)


def _earlier_study(session: Session, vault: Vault, row: HeldFileRow) -> str | None:
    earlier = session.execute(
        select(HeldFileRow, StudyRow.study_instance_uid)
        .join(StudyRow, StudyRow.id == HeldFileRow.new_study_id)
        .where(
            HeldFileRow.study_id == row.study_id,
            HeldFileRow.kind == Kind.PATIENT,
            HeldFileRow.state == State.ANOTHER_STUDY,
        )
        .order_by(HeldFileRow.decided_at.desc(), HeldFileRow.id)
    )
    who = opened_header(vault, row.header).identity
    if row.kind != Kind.PATIENT:
        return None
    found = (uid for one, uid in earlier if same_patient(opened_header(vault, one.header).identity, who))
    return next(found, None)


def _same_patient(session: Session, vault: Vault, rows: Sequence[HeldFileRow], now: datetime) -> list[UUID]:
    """Make the files images of the study that they came for, which is found by their numbers too from now on."""
    study = session.get_one(StudyRow, rows[0].study_id)
    for row in rows:
        vault.also_found(session, row.site_id, study.id, opened_header(vault, row.header).identity)
    return _take(session, vault, rows, study.study_instance_uid, now)


def _take(session: Session, vault: Vault, rows: Sequence[HeldFileRow], uid: str, now: datetime) -> list[UUID]:
    """Take the files in as images of the study with this UID; where a SOP Instance UID is taken, under a new one."""
    taken_uids = set(look_up(session, rows[0].site_id, [row.sop_instance_uid for row in rows]))
    by_priority: dict[Priority, list[tuple[HeldFileRow, StoredFile]]] = {}
    for row in rows:
        header = replace(opened_header(vault, row.header), study_instance_uid=uid)
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
        there = look_up(session, site_id, [file.header.sop_instance_uid for file in files])
        for (row, file), outcome in zip(several, taken, strict=True):
            assert outcome.known is not Known.HELD, "it is trusted, and its UID is free"
            row.new_study_id = outcome.study_id
            row.new_instance_id = there[file.header.sop_instance_uid].instance_id
            studies.add(outcome.study_id)
    return sorted(studies)


def _apply(session: Session, vault: Vault, rows: Sequence[HeldFileRow]) -> None:
    """Let the corrected headers speak for their images, and the last one's identity for the study; the old are kept."""
    study = session.get_one(StudyRow, rows[0].study_id)
    known = vault.stored_identities(session, [study.id]).get(study.id, Identity())
    seen: dict[str, Any] = {name: getattr(study, name) for name in CHANGED}
    header = None
    for row in rows:
        assert row.instance_id is not None, "a correction is of an image"
        instance = session.get_one(InstanceRow, row.instance_id)
        header = opened_header(vault, row.header)
        row.before = vault.seal(
            {
                "identity": asdict(known),
                "study": seen,
                "sha256": instance.header_sha256 or instance.sha256,
                "body_part": instance.body_part,
                "laterality": instance.laterality,
                "view": instance.view,
                "description": vault.open(instance.description) if instance.description else "",
            }
        )
        for name, value in described(vault, header).items():
            setattr(instance, name, value)
        instance.body_part, instance.header_sha256 = header.body_part, row.sha256
    assert header is not None
    study.header_version += 1
    session.flush()
    _renew(session, study, header)
    if header.identity != known:
        vault.change_identity(session, study.site_id, study.id, header.identity)


def _renew(session: Session, study: StudyRow, header: Header) -> None:
    """Write what the correction says of the patient, and what all images say of themselves, into the study's row."""
    told = header.examination
    study.sex = told.sex or study.sex
    study.age_years = study.age_years if header.age_years is None else header.age_years
    if told.study_date is not None:
        study.study_date, study.study_time = told.study_date, told.study_time
    study.body_part = study.laterality = study.views = study.scanner = ""
    instances = session.scalars(
        select(InstanceRow)
        .where(InstanceRow.study_id == study.id)
        .order_by(InstanceRow.received_at, InstanceRow.sop_instance_uid)
    )
    for one in instances:
        seen = replace(
            told, sex="", study_date=None, laterality=one.laterality, view=one.view, manufacturer=one.manufacturer,
            model=one.model,
        )  # fmt: skip
        scanner = scanner_of(one.manufacturer, one.model)
        examined(study, replace(header, examination=seen, body_part=one.body_part, scanner=scanner, age_years=None))
