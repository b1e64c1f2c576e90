"""Held files: keeping them, deciding on them, and what a decision means for files that come later."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date, datetime, time, timedelta
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from shared.errors import NotFound, NotNow
from shared.held import POSSIBLE, STATE_OF, Decision, Kind, State
from shared.identity import same_patient
from shared.repository.access import Key, Vault
from shared.repository.notices import worklist_changed
from shared.study import Examination, Header, Identity, StoredFile
from shared.tables import HeldFileRow, HeldTokenRow, InstanceRow, StudyRow

AGAIN_AFTER = timedelta(minutes=2)  # a worker that took a file to compare and said nothing more
MOST_COMPARED = 4  # files at a time


@dataclass(frozen=True)
class HeldFile:
    """A held file as the sender of its bytes is told of it."""

    kind: Kind
    state: State
    study_id: UUID  # that it came for
    new_study_id: UUID | None


def sealed_header(vault: Vault, header: Header) -> bytes:
    """A header as it is kept until a decision."""
    return vault.seal(asdict(header))


def opened_header(vault: Vault, sealed: bytes) -> Header:
    """Undo sealed_header."""
    told: dict[str, Any] = vault.open(sealed)  # type: ignore[assignment]
    seen = told["examination"]
    seen["study_date"] = date.fromisoformat(seen["study_date"]) if seen["study_date"] else None
    seen["study_time"] = time.fromisoformat(seen["study_time"]) if seen["study_time"] else None
    return Header(**{**told, "identity": Identity(**told["identity"]), "examination": Examination(**seen)})


def known_files(session: Session, site_id: UUID, sha256s: Collection[str]) -> dict[str, HeldFile]:
    """Those of these files that are or were held, by SHA-256."""
    if not sha256s:
        return {}
    rows = session.scalars(
        select(HeldFileRow).where(HeldFileRow.site_id == site_id, HeldFileRow.sha256.in_(set(sha256s)))
    )
    return {row.sha256: _held(row) for row in rows}


def _held(row: HeldFileRow) -> HeldFile:
    return HeldFile(Kind(row.kind), State(row.state), row.study_id, row.new_study_id)


def hold(
    session: Session,
    vault: Vault,
    site_id: UUID,
    file: StoredFile,
    kind: Kind,
    priority: str,
    study_id: UUID,
    instance_id: UUID | None = None,
) -> HeldFile:
    """Keep a stored file until somebody decides; one with the same bytes is held once, whoever is first."""
    header = file.header
    values = {
        "id": uuid4(),
        "site_id": site_id,
        "study_id": study_id,
        "instance_id": instance_id,
        "kind": kind,
        "state": State.OPEN,
        "sop_instance_uid": header.sop_instance_uid,
        "study_instance_uid": header.study_instance_uid,
        "sha256": file.sha256,
        "size_bytes": file.size_bytes,
        "priority": priority,
        "patient": vault.patient_token(site_id, header.identity),
        "header": sealed_header(vault, header),
    }
    held_id = session.scalar(insert(HeldFileRow).values(values).on_conflict_do_nothing().returning(HeldFileRow.id))
    if held_id is not None:
        tokens = [
            {"held_id": held_id, "kind": kind_, "token": token}
            for kind_, token in vault.tokens(site_id, header.identity).items()
        ]
        session.execute(insert(HeldTokenRow), tokens)
        worklist_changed(session, [site_id])
    return known_files(session, site_id, [file.sha256])[file.sha256]


@dataclass(frozen=True)
class Routed:
    """Where files go by what was decided before."""

    headers: dict[int, Header]  # of files whose patient was given another study
    trusted: frozenset[int]  # files whose patient was said to be the study's


def routed(session: Session, vault: Vault, site_id: UUID, headers: Mapping[int, Header]) -> Routed:
    """What earlier decisions say of new files, by their number: nobody is asked twice about one patient of a study."""
    uids = {header.study_instance_uid for header in headers.values()}
    rows = session.execute(
        select(HeldFileRow, StudyRow.study_instance_uid)
        .join(StudyRow, StudyRow.id == HeldFileRow.study_id)
        .where(
            StudyRow.site_id == site_id,
            StudyRow.study_instance_uid.in_(uids),
            HeldFileRow.state.in_((State.ANOTHER_STUDY, State.SAME_PATIENT, State.APPLIED)),
        )
        .order_by(HeldFileRow.decided_at.desc(), HeldFileRow.id)
    ).all()
    if not rows:
        return Routed({}, frozenset())
    decided: dict[str, list[tuple[Identity, HeldFileRow]]] = {}
    for row, uid in rows:
        for identity in _identities(vault, row):
            decided.setdefault(uid, []).append((identity, row))
    current = vault.stored_identities(session, [row.study_id for row, _ in rows])
    new_uids = _uids(session, [row.new_study_id for row, _ in rows if row.new_study_id])
    moved: dict[int, Header] = {}
    trusted: set[int] = set()
    for number, header in headers.items():
        choices = decided.get(header.study_instance_uid, [])
        if not choices or same_patient(current.get(choices[0][1].study_id, Identity()), header.identity):
            continue
        for identity, row in choices:
            if not same_patient(identity, header.identity):
                continue
            if row.state != State.ANOTHER_STUDY:
                trusted.add(number)
            elif row.new_study_id in new_uids:
                moved[number] = replace(header, study_instance_uid=new_uids[row.new_study_id])
            break
    return Routed(moved, frozenset(trusted))


def _identities(vault: Vault, row: HeldFileRow) -> list[Identity]:
    """Who a decided file's patient is; of a correction who its patient was said to be before."""
    if row.state == State.APPLIED:
        before: dict[str, Any] = vault.open(row.before) if row.before else {}  # type: ignore[assignment]
        return [Identity(**before["identity"])] if before.get("identity") else []
    return [opened_header(vault, row.header).identity] if row.kind == Kind.PATIENT else []


def _uids(session: Session, study_ids: Sequence[UUID]) -> dict[UUID, str]:
    rows = session.execute(select(StudyRow.id, StudyRow.study_instance_uid).where(StudyRow.id.in_(study_ids)))
    return {study_id: uid for study_id, uid in rows}  # noqa: C416 - rows are no tuples to the type checker


# -- what administrators see


@dataclass(frozen=True)
class Group:
    """Files that are decided on together: of one study, one kind and one patient."""

    row: HeldFileRow  # the first that came
    files: int


def groups(session: Session, site_id: UUID, most: int) -> list[Group]:
    """What waits for a decision, or for a worker to compare it, the oldest first."""
    grouped = (HeldFileRow.study_id, HeldFileRow.kind, HeldFileRow.patient)
    number = func.row_number().over(partition_by=grouped, order_by=(HeldFileRow.received_at, HeldFileRow.id))
    files = func.count().over(partition_by=grouped)
    ranked = (
        select(HeldFileRow.id, number.label("number"), files.label("files"))
        .where(HeldFileRow.site_id == site_id, HeldFileRow.state == State.OPEN)
        .subquery()
    )
    rows = session.execute(
        select(HeldFileRow, ranked.c.files)
        .join(ranked, ranked.c.id == HeldFileRow.id)
        .where(ranked.c.number == 1)
        .order_by(HeldFileRow.received_at, HeldFileRow.id)
        .limit(most)
    )
    return [Group(row, files) for row, files in rows]


def open_counts(session: Session, site_id: UUID) -> dict[Kind, int]:
    """How many files of a site wait, by why."""
    rows = session.execute(
        select(HeldFileRow.kind, func.count())
        .where(HeldFileRow.site_id == site_id, HeldFileRow.state == State.OPEN)
        .group_by(HeldFileRow.kind)
    )
    return {Kind(kind): count for kind, count in rows}


def decided(session: Session, site_id: UUID, most: int) -> Sequence[HeldFileRow]:
    """What was decided, the latest first."""
    return session.scalars(
        select(HeldFileRow)
        .where(HeldFileRow.site_id == site_id, HeldFileRow.decided_at.is_not(None))
        .order_by(HeldFileRow.decided_at.desc(), HeldFileRow.id)
        .limit(most)
    ).all()


def corrections(session: Session, study_id: UUID) -> Sequence[HeldFileRow]:
    """The corrections of a study's images that are in force, and the files of others that were said to be its own."""
    states = State.APPLIED, State.SAME_PATIENT
    return session.scalars(
        select(HeldFileRow)
        .where(HeldFileRow.study_id == study_id, HeldFileRow.state.in_(states))
        .order_by(HeldFileRow.decided_at, HeldFileRow.id)
    ).all()


def waiting(session: Session, study_id: UUID) -> dict[Kind, int]:
    """How many files that came for a study wait, by why."""
    rows = session.execute(
        select(HeldFileRow.kind, func.count())
        .where(HeldFileRow.study_id == study_id, HeldFileRow.state == State.OPEN)
        .group_by(HeldFileRow.kind)
    )
    return {Kind(kind): count for kind, count in rows}


def matching(session: Session, vault: Vault, reader: Key, number: str, most: int = 50) -> Sequence[HeldFileRow]:
    """The held files of the reader's site, open or rejected, with exactly this accession number or patient id."""
    tokens = vault.tokens_of_number(reader.site_id, number)
    return session.scalars(
        select(HeldFileRow)
        .where(
            HeldFileRow.id.in_(select(HeldTokenRow.held_id).where(HeldTokenRow.token.in_(tokens))),
            HeldFileRow.site_id == reader.site_id,
            HeldFileRow.state.in_((State.OPEN, State.REJECTED)),
        )
        .order_by(HeldFileRow.received_at, HeldFileRow.id)
        .limit(most)
    ).all()


# -- decisions


def locked_group(session: Session, site_id: UUID, held_id: UUID, decision: Decision) -> list[HeldFileRow]:
    """The open files that a decision on this one is about; [] if that is what was decided already.

    The study's row is locked first, as intake does it, so that of two who decide at once one waits and is told.
    Raises NotFound, and NotNow for a decision that this kind of file does not have, or where another one was made.
    """
    study_id = session.scalar(
        select(HeldFileRow.study_id).where(HeldFileRow.id == held_id, HeldFileRow.site_id == site_id)
    )
    if study_id is None:
        raise NotFound(f"there is no held file {held_id} here")
    session.execute(select(StudyRow.id).where(StudyRow.id == study_id).with_for_update())
    fresh = {"populate_existing": True}
    asked = session.scalars(
        select(HeldFileRow).where(HeldFileRow.id == held_id).with_for_update().execution_options(**fresh)
    ).one()
    if asked.state == STATE_OF[decision]:
        return []
    if asked.state != State.OPEN:
        raise NotNow(f"Somebody has decided on this file already: {asked.state}")
    if decision not in POSSIBLE[Kind(asked.kind)]:
        possible = ", ".join(POSSIBLE[Kind(asked.kind)]) or "nothing, until a worker has compared it"
        raise NotNow(f"For this file one can decide: {possible}")
    rows = session.scalars(
        select(HeldFileRow)
        .where(
            HeldFileRow.study_id == study_id,
            HeldFileRow.kind == asked.kind,
            HeldFileRow.patient == asked.patient,
            HeldFileRow.state == State.OPEN,
        )
        .order_by(HeldFileRow.received_at, HeldFileRow.id)
        .with_for_update()
        .execution_options(**fresh)
    )
    return list(rows)


def close(vault: Vault, rows: Sequence[HeldFileRow], decision: Decision, key: Key, reason: str, now: datetime) -> None:
    """Note who has decided what, when and why."""
    for row in rows:
        row.state = STATE_OF[decision]
        row.decided_at, row.decided_by = now, key.id
        row.reason = vault.seal(reason) if reason else None


# -- comparing


@dataclass(frozen=True)
class Pair:
    """Two objects to compare, by their SHA-256."""

    held_id: UUID
    stored: str
    held: str
    attempt: int  # 1 for the first


def to_compare(session: Session, now: datetime) -> list[Pair]:
    """Take a few files that no other worker compares now; they are anybody's again after AGAIN_AFTER."""
    rows = session.execute(
        select(HeldFileRow, InstanceRow)
        .join(InstanceRow, InstanceRow.id == HeldFileRow.instance_id)
        .where(
            HeldFileRow.state == State.OPEN,
            HeldFileRow.kind == Kind.COMPARING,
            (HeldFileRow.not_before.is_(None)) | (HeldFileRow.not_before <= now),
        )
        .order_by(HeldFileRow.received_at, HeldFileRow.id)
        .limit(MOST_COMPARED)
        .with_for_update(skip_locked=True, of=HeldFileRow)
    ).all()
    pairs = []
    for row, instance in rows:
        row.attempts += 1
        row.not_before = now + AGAIN_AFTER
        pairs.append(Pair(row.id, instance.header_sha256 or instance.sha256, row.sha256, row.attempts))
    return pairs


def compared(session: Session, held_id: UUID, kind: Kind | None) -> None:
    """Write what a comparison showed: the kind that a file is of, or None for one that equals the stored image."""
    row = session.scalars(select(HeldFileRow).where(HeldFileRow.id == held_id).with_for_update()).one()
    if (row.state, row.kind) != (State.OPEN, Kind.COMPARING):
        return
    if kind is None:
        row.state = State.DUPLICATE
    else:
        row.kind = _kind(session, row, kind)
    worklist_changed(session, [row.site_id])


def _kind(session: Session, row: HeldFileRow, kind: Kind) -> Kind:
    """A correction that names another study would have to move its image: that is for a person to decide."""
    uid = session.scalar(select(StudyRow.study_instance_uid).where(StudyRow.id == row.study_id))
    return kind if kind is not Kind.CORRECTION or uid == row.study_instance_uid else Kind.PIXELS
