"""Held files: storing them, deciding about them, and what a decision means for files that come later."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date, datetime, time, timedelta
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import (
    ARRAY,
    Text,
    Uuid,
    any_,
    bindparam,
    cast,
    func,
    literal,
    or_,
    select,
    tuple_,
    union_all,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from shared.db.notify import worklist_changed
from shared.db.tables import HeldFileRow, HeldTokenRow, InstanceRow, KeyRow, StudyRow
from shared.domain.held import POSSIBLE_DECISIONS, STATE_OF, HeldDecision, HeldKind, HeldState
from shared.domain.identity import same_patient
from shared.domain.study import (
    Examination,
    Header,
    Identity,
    ProcedureRequest,
    Rejection,
    RejectionNote,
    Series,
    StoredFile,
    StoredOnly,
)
from shared.errors import InvalidState, NotFound
from shared.queries.access import SEARCHED, Key, Vault

COMPARISON_LEASE = timedelta(minutes=2)  # a worker that took a file to compare and said nothing more
MAX_COMPARED = 4  # files at a time
MAX_ALIKE = 8  # held files with one SOP Instance UID with which one more is compared


@dataclass(frozen=True)
class HeldFile:
    """A held file as its sender sees it."""

    kind: HeldKind
    state: HeldState
    study_id: UUID | None  # that it came for; None: that was deleted
    new_study_id: UUID | None
    sha256: str = ""
    size_bytes: int = 0

    @property
    def belongs_to(self) -> UUID:
        """The study that it came for, or that it belongs to now."""
        found = self.study_id or self.new_study_id
        assert found is not None, "a held file goes with its study, unless another one has it"
        return found


def sealed_header(vault: Vault, header: Header) -> bytes:
    """Encrypt a header, as it is kept until a decision.

    Args:
        vault: encrypts it.
        header: of the file.

    Returns:
        Ciphertext.
    """
    return vault.seal(asdict(header))


def opened_header(vault: Vault, sealed: bytes) -> Header | None:
    """Decrypt what `sealed_header` returned.

    Args:
        vault: decrypts it.
        sealed: ciphertext.

    Returns:
        The header; None if another key encrypted it.
    """
    values: Any = vault.open(sealed)
    if values is None:
        return None
    examination, series = Examination(**_with_dates(values["examination"])), None
    if values.get("series"):
        requests = tuple(ProcedureRequest(**one) for one in values["series"]["requests"])
        series = Series(**{**_with_dates(values["series"]), "requests": requests})
    identity = Identity(**values["identity"])
    kept = StoredOnly(values["kept"]) if values.get("kept") else None
    rejects = None
    if values.get("rejects"):
        rejects = RejectionNote(Rejection(values["rejects"]["title"]), tuple(values["rejects"]["sop_instance_uids"]))
    read = {"identity": identity, "examination": examination, "series": series, "kept": kept, "rejects": rejects}
    return Header(**{**values, **read})


def _with_dates(values: dict[str, Any]) -> dict[str, Any]:
    """The values with dates and times in place of their texts."""
    read: dict[str, Callable[[str], date | time]] = {"_date": date.fromisoformat, "_time": time.fromisoformat}
    return {name: read[name[-5:]](value) if value and name[-5:] in read else value for name, value in values.items()}


def find_held(session: Session, site_id: UUID, sha256s: Collection[str]) -> dict[str, HeldFile]:
    """Find files that are or were held.

    Args:
        session: the caller's transaction.
        site_id: the site.
        sha256s: of the files.

    Returns:
        Those that are known, by SHA-256.
    """
    if not sha256s:
        return {}
    rows = session.scalars(
        select(HeldFileRow).where(HeldFileRow.site_id == site_id, HeldFileRow.sha256.in_(set(sha256s)))
    )
    return {row.sha256: _held(row) for row in rows}


def _held(row: HeldFileRow) -> HeldFile:
    return HeldFile(
        HeldKind(row.kind), HeldState(row.state), row.study_id, row.new_study_id, row.sha256, row.size_bytes
    )


def hold_file(
    session: Session,
    vault: Vault,
    site_id: UUID,
    file: StoredFile,
    kind: HeldKind,
    priority: str,
    study_id: UUID,
    instance_id: UUID | None = None,
) -> HeldFile:
    """Keep a stored file until an administrator decides; a file with the same bytes is held once.

    Args:
        session: the caller's transaction.
        vault: encrypts the header.
        site_id: the site.
        file: whose bytes are in the object store.
        kind: why it is held.
        priority: as the sender asked for.
        study_id: the study that it came for.
        instance_id: the stored image with its SOP Instance UID; None: there is none.

    Returns:
        The held file, which an earlier request may have brought.
    """
    header = file.header
    values = {
        "id": uuid4(),
        "site_id": site_id,
        "study_id": study_id,
        "instance_id": instance_id,
        "kind": kind,
        "state": HeldState.OPEN,
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
    return find_held(session, site_id, [file.sha256])[file.sha256]


@dataclass(frozen=True)
class RelatedNames:
    """What some held files refer to, each by its id."""

    key_names: Mapping[UUID, str]  # of the keys that decided
    instances: Mapping[UUID, InstanceRow]  # that a file would replace, or became
    study_uids: Mapping[UUID, str]  # Study Instance UIDs of the studies that a decision made


def related_names(session: Session, rows: Collection[HeldFileRow]) -> RelatedNames:
    """Look up in three queries what held files refer to.

    Args:
        session: the caller's transaction.
        rows: the held files.

    Returns:
        Names of keys, instances and studies, by id.
    """
    keys = select(KeyRow.id, KeyRow.name).where(KeyRow.id.in_({row.decided_by for row in rows}))
    images = {one for row in rows for one in (row.instance_id, row.new_instance_id) if one}
    instances = session.scalars(select(InstanceRow).where(InstanceRow.id.in_(images)))
    made = {row.new_study_id for row in rows}
    uids = select(StudyRow.id, StudyRow.study_instance_uid).where(StudyRow.id.in_(made))
    return RelatedNames(
        {row.id: row.name for row in session.execute(keys)},
        {one.id: one for one in instances},
        {row.id: row.study_instance_uid for row in session.execute(uids)},
    )


ROUTING = (HeldState.ANOTHER_STUDY, HeldState.SAME_PATIENT, HeldState.APPLIED)  # decisions that further files follow

_NAMED = HeldFileRow.sop_instance_uid == any_(bindparam("named", type_=ARRAY(Text)))
BEFORE = (  # what is or was held of some files, and with their UIDs; made once
    select(HeldFileRow, StudyRow.study_instance_uid)
    .outerjoin(StudyRow, StudyRow.id == HeldFileRow.study_id)
    .where(
        HeldFileRow.id.in_(
            union_all(
                select(HeldFileRow.id).where(
                    HeldFileRow.site_id == bindparam("site"),
                    HeldFileRow.sha256 == any_(bindparam("sha256s", type_=ARRAY(Text))),
                ),
                select(HeldFileRow.id)
                .join(StudyRow, StudyRow.id == HeldFileRow.study_id)
                .where(
                    StudyRow.site_id == bindparam("site"),
                    StudyRow.study_instance_uid == any_(bindparam("uids", type_=ARRAY(Text))),
                    or_(HeldFileRow.state.in_(ROUTING), _NAMED),
                ),
                select(HeldFileRow.id).where(
                    HeldFileRow.study_id == any_(cast(bindparam("ids", type_=ARRAY(Text)), ARRAY(Uuid))), _NAMED
                ),
            )
        )
    )
    .order_by(HeldFileRow.decided_at.desc(), HeldFileRow.id)
)


@dataclass(frozen=True)
class EarlierDecisions:
    """What earlier decisions say of new files, by the files' numbers."""

    headers: dict[int, Header]  # of files whose patient was given another study
    trusted: frozenset[int]  # files whose patient was said to be the study's


@dataclass(frozen=True)
class HeldBefore:
    """What is known of new files from those that are or were held."""

    files: dict[str, HeldFile]  # those of them that are or were held, by SHA-256
    # held files with their SOP Instance UIDs, by these: one may be the same file in another encoding
    alike: dict[str, list[HeldFile]]
    decisions: EarlierDecisions


def held_before(
    session: Session,
    vault: Vault,
    site_id: UUID,
    headers: Mapping[int, Header],
    sha256s: Collection[str],
    study_ids: Collection[UUID],
) -> HeldBefore:
    """Find in one query whether new files are held, and what was decided about others before.

    Args:
        session: the caller's transaction.
        vault: decrypts headers and identities.
        site_id: the site.
        headers: of the files, by their number.
        sha256s: of the files.
        study_ids: studies of the site that have instances with the files' SOP Instance UIDs.

    Returns:
        The files that are or were held, and what earlier decisions say of the others.
    """
    uids = {header.study_instance_uid for header in headers.values()}
    given = {
        "site": site_id, "uids": list(uids), "sha256s": list(sha256s), "ids": list(map(str, study_ids)),
        "named": list({header.sop_instance_uid for header in headers.values()}),
    }  # fmt: skip
    rows = session.execute(BEFORE, given).all()
    known = {row.sha256: _held(row) for row, _ in rows if row.sha256 in sha256s}
    alike: dict[str, list[HeldFile]] = {}
    for row, _ in rows:  # what equals a duplicate equals what that is one of
        if row.state != HeldState.DUPLICATE:
            alike.setdefault(row.sop_instance_uid, []).append(_held(row))
    routing = [(row, uid) for row, uid in rows if row.state in ROUTING and uid in uids]
    return HeldBefore(known, alike, _routed(session, vault, headers, routing))


def _routed(
    session: Session, vault: Vault, headers: Mapping[int, Header], rows: Sequence[tuple[HeldFileRow, str]]
) -> EarlierDecisions:
    """Apply earlier decisions to new files: nobody has to decide twice about one patient of a study."""
    if not rows:
        return EarlierDecisions({}, frozenset())
    decided: dict[str, list[tuple[Identity, HeldFileRow]]] = {}
    for row, uid in rows:
        for identity in _identities(vault, row):
            decided.setdefault(uid, []).append((identity, row))
    current = vault.stored_identities(session, [row.study_id for row, _ in rows if row.study_id])
    new_uids = _uids(session, [row.new_study_id for row, _ in rows if row.new_study_id])
    moved: dict[int, Header] = {}
    trusted: set[int] = set()
    for number, header in headers.items():
        choices = decided.get(header.study_instance_uid, [])
        study_id = choices[0][1].study_id if choices else None
        if study_id is None or same_patient(current.get(study_id, Identity()), header.identity):
            continue
        for identity, row in choices:
            if not same_patient(identity, header.identity):
                continue
            if row.state != HeldState.ANOTHER_STUDY:
                trusted.add(number)
            elif row.new_study_id in new_uids:
                moved[number] = replace(header, study_instance_uid=new_uids[row.new_study_id])
            break
    return EarlierDecisions(moved, frozenset(trusted))


def _identities(vault: Vault, row: HeldFileRow) -> list[Identity]:
    """The patient of a decided file; of a correction the patient before it."""
    if row.state == HeldState.APPLIED:
        before: Any = vault.open(row.before) if row.before else None
        return [Identity(**before["identity"])] if before and before.get("identity") else []
    header = opened_header(vault, row.header) if row.kind == HeldKind.PATIENT else None
    return [header.identity] if header else []


def _uids(session: Session, study_ids: Sequence[UUID]) -> dict[UUID, str]:
    rows = session.execute(select(StudyRow.id, StudyRow.study_instance_uid).where(StudyRow.id.in_(study_ids)))
    return {study_id: uid for study_id, uid in rows}  # noqa: C416 - rows are no tuples to the type checker


# -- what administrators see


@dataclass(frozen=True)
class HeldGroup:
    """Files that are decided on together: of one study, one kind and one patient."""

    row: HeldFileRow  # the first that came
    files: int


def waiting_groups(session: Session, site_id: UUID, limit: int) -> list[HeldGroup]:
    """Read what waits for a decision, or for a worker to compare it.

    Args:
        session: the caller's transaction.
        site_id: the site.
        limit: how many groups.

    Returns:
        The groups, the oldest first.
    """
    grouped = (HeldFileRow.study_id, HeldFileRow.kind, HeldFileRow.patient)
    number = func.row_number().over(partition_by=grouped, order_by=(HeldFileRow.received_at, HeldFileRow.id))
    files = func.count().over(partition_by=grouped)
    ranked = (
        select(HeldFileRow.id, number.label("number"), files.label("files"))
        .where(HeldFileRow.site_id == site_id, HeldFileRow.state == HeldState.OPEN)
        .subquery()
    )
    rows = session.execute(
        select(HeldFileRow, ranked.c.files)
        .join(ranked, ranked.c.id == HeldFileRow.id)
        .where(ranked.c.number == 1)
        .order_by(HeldFileRow.received_at, HeldFileRow.id)
        .limit(limit)
    )
    return [HeldGroup(row, files) for row, files in rows]


def open_counts(session: Session, site_id: UUID) -> dict[HeldKind, int]:
    """Count a site's files that wait.

    Args:
        session: the caller's transaction.
        site_id: the site.

    Returns:
        The number by kind, of kinds that there are.
    """
    rows = session.execute(
        select(HeldFileRow.kind, func.count())
        .where(HeldFileRow.site_id == site_id, HeldFileRow.state == HeldState.OPEN)
        .group_by(HeldFileRow.kind)
    )
    return {HeldKind(kind): count for kind, count in rows}


def decided_files(session: Session, site_id: UUID, limit: int) -> Sequence[HeldFileRow]:
    """Read what was decided.

    Args:
        session: the caller's transaction.
        site_id: the site.
        limit: how many files.

    Returns:
        The rows, the latest decision first.
    """
    return session.scalars(
        select(HeldFileRow)
        .where(HeldFileRow.site_id == site_id, HeldFileRow.decided_at.is_not(None))
        .order_by(HeldFileRow.decided_at.desc(), HeldFileRow.id)
        .limit(limit)
    ).all()


def corrections(session: Session, study_id: UUID) -> Sequence[HeldFileRow]:
    """Read a study's corrections that are in force, and files of another patient that were accepted as its own.

    Args:
        session: the caller's transaction.
        study_id: the study.

    Returns:
        The rows in order of decision.
    """
    states = HeldState.APPLIED, HeldState.SAME_PATIENT
    return session.scalars(
        select(HeldFileRow)
        .where(HeldFileRow.study_id == study_id, HeldFileRow.state.in_(states))
        .order_by(HeldFileRow.decided_at, HeldFileRow.id)
    ).all()


def waiting(session: Session, study_id: UUID) -> dict[HeldKind, int]:
    """Count the files that came for a study and wait.

    Args:
        session: the caller's transaction.
        study_id: the study.

    Returns:
        The number by kind, of kinds that there are.
    """
    rows = session.execute(
        select(HeldFileRow.kind, func.count())
        .where(HeldFileRow.study_id == study_id, HeldFileRow.state == HeldState.OPEN)
        .group_by(HeldFileRow.kind)
    )
    return {HeldKind(kind): count for kind, count in rows}


def find_by_number(
    session: Session, vault: Vault, reader: Key, number: str, limit: int = 50, kinds: Sequence[str] = SEARCHED
) -> Sequence[HeldFileRow]:
    """Find held files, open or rejected, by a number.

    Args:
        session: the caller's transaction.
        vault: makes the search tokens.
        reader: who searches; only their site is searched.
        number: accession number or patient ID, the whole of it.
        limit: how many files.
        kinds: of numbers, of SEARCHED.

    Returns:
        The rows, the oldest first.
    """
    tokens = vault.tokens_of_number(reader.site_id, number, kinds)
    return session.scalars(
        select(HeldFileRow)
        .where(
            HeldFileRow.id.in_(select(HeldTokenRow.held_id).where(HeldTokenRow.token.in_(tokens))),
            HeldFileRow.site_id == reader.site_id,
            HeldFileRow.state.in_((HeldState.OPEN, HeldState.REJECTED)),
        )
        .order_by(HeldFileRow.received_at, HeldFileRow.id)
        .limit(limit)
    ).all()


# -- decisions


def lock_group(session: Session, site_id: UUID, held_id: UUID, decision: HeldDecision) -> list[HeldFileRow]:
    """Lock the open files that a decision on one of them is about.

    The study's row is locked first, as intake does it, so that of two who decide at once one waits and sees the
    other's.

    Args:
        session: the caller's transaction.
        site_id: the site.
        held_id: one of the files.
        decision: what is to be decided.

    Returns:
        The rows, the oldest first; [] if that is what was decided already.

    Raises:
        NotFound: there is no such file.
        InvalidState: the decision is not possible for this kind of file, or another one was made.
    """
    study_id = session.scalar(
        select(HeldFileRow.study_id).where(HeldFileRow.id == held_id, HeldFileRow.site_id == site_id)
    )
    if study_id is None:
        raise NotFound(f"there is no held file {held_id} here; GET /api/v1/held-files lists them")
    session.execute(select(StudyRow.id).where(StudyRow.id == study_id).with_for_update())
    fresh = {"populate_existing": True}
    asked = session.scalars(
        select(HeldFileRow).where(HeldFileRow.id == held_id).with_for_update().execution_options(**fresh)
    ).one()
    if asked.state == STATE_OF[decision]:
        return []
    if asked.state != HeldState.OPEN:
        raise InvalidState(
            f"Another administrator has decided about this file already: {asked.state}. Load the page again"
        )
    if decision not in POSSIBLE_DECISIONS[HeldKind(asked.kind)]:
        possible = ", ".join(POSSIBLE_DECISIONS[HeldKind(asked.kind)]) or "nothing, until a worker has compared it"
        raise InvalidState(f"For this file one can decide: {possible}")
    rows = session.scalars(
        select(HeldFileRow)
        .where(
            HeldFileRow.study_id == study_id,
            HeldFileRow.kind == asked.kind,
            HeldFileRow.patient == asked.patient,
            HeldFileRow.state == HeldState.OPEN,
        )
        .order_by(HeldFileRow.received_at, HeldFileRow.id)
        .with_for_update()
        .execution_options(**fresh)
    )
    return list(rows)


def record_decision(
    vault: Vault, rows: Sequence[HeldFileRow], decision: HeldDecision, key: Key, reason: str, now: datetime
) -> None:
    """Record who has decided what, when and why.

    Args:
        vault: encrypts the reason.
        rows: the files, locked.
        decision: what was decided.
        key: of the administrator.
        reason: in the administrator's words; may be empty.
        now: Postgres' time.
    """
    for row in rows:
        row.state = STATE_OF[decision]
        row.decided_at, row.decided_by = now, key.id
        row.reason = vault.seal(reason) if reason else None


# -- comparing


@dataclass(frozen=True)
class HeldComparison:
    """A held file to compare with others; objects are named by their SHA-256."""

    held_id: UUID
    held: str
    stored: str | None  # the image with its SOP Instance UID; None: another patient's file, for which there is none
    others: Sequence[str]  # that it may equal, too: the image before a correction, held files
    attempt: int  # 1 for the first


def take_to_compare(session: Session, now: datetime) -> list[HeldComparison]:
    """Take at most MAX_COMPARED files that no worker compares now; another may take them after COMPARISON_LEASE.

    Args:
        session: the caller's transaction.
        now: Postgres' time.

    Returns:
        The objects to compare, the oldest first.
    """
    rows = session.execute(
        select(HeldFileRow, InstanceRow)
        .outerjoin(InstanceRow, InstanceRow.id == HeldFileRow.instance_id)
        .where(
            HeldFileRow.state == HeldState.OPEN,
            HeldFileRow.kind == HeldKind.COMPARING,
            (HeldFileRow.not_before.is_(None)) | (HeldFileRow.not_before <= now),
        )
        .order_by(HeldFileRow.received_at, HeldFileRow.id)
        .limit(MAX_COMPARED)
        .with_for_update(skip_locked=True, of=HeldFileRow)
    ).all()
    pairs = []
    for row, instance in rows:
        row.attempts += 1
        row.not_before = now + COMPARISON_LEASE
        others = [instance.sha256] if instance is not None and instance.header_sha256 else []
        others += _held_alike(session, row)
        stored = None if instance is None else instance.header_sha256 or instance.sha256
        pairs.append(HeldComparison(row.id, row.sha256, stored, others, row.attempts))
    return pairs


def _held_alike(session: Session, row: HeldFileRow) -> Sequence[str]:
    """Files with its SOP Instance UID that stay if it is the same: the compared ones, and of others the earlier."""
    return session.scalars(
        select(HeldFileRow.sha256)
        .where(
            HeldFileRow.study_id == row.study_id,
            HeldFileRow.sop_instance_uid == row.sop_instance_uid,
            HeldFileRow.id != row.id,
            HeldFileRow.state != HeldState.DUPLICATE,
            or_(
                HeldFileRow.kind != HeldKind.COMPARING,
                tuple_(HeldFileRow.received_at, HeldFileRow.id) < tuple_(literal(row.received_at), literal(row.id)),
            ),
        )
        .order_by(HeldFileRow.received_at.desc(), HeldFileRow.id)
        .limit(MAX_ALIKE)
    ).all()


def record_comparison(session: Session, held_id: UUID, kind: HeldKind | None) -> None:
    """Write what a comparison showed; a file that was deleted or decided meanwhile stays as it is.

    Args:
        session: the caller's transaction.
        held_id: the file.
        kind: why it is held; None: it equals the stored image, or another held file.
    """
    row = session.scalar(select(HeldFileRow).where(HeldFileRow.id == held_id).with_for_update())
    if row is None or (row.state, row.kind) != (HeldState.OPEN, HeldKind.COMPARING):  # it was deleted, or decided on
        return
    if kind is None:
        row.state = HeldState.DUPLICATE
    else:
        row.kind = _kind(session, row, kind)
    worklist_changed(session, [row.site_id])


def _kind(session: Session, row: HeldFileRow, kind: HeldKind) -> HeldKind:
    """Treat a correction that names another study as other pixels: a person has to decide about moving its image."""
    uid = session.scalar(select(StudyRow.study_instance_uid).where(StudyRow.id == row.study_id))
    return kind if kind is not HeldKind.CORRECTION or uid == row.study_instance_uid else HeldKind.PIXELS
