"""Deleting a study, or one image of it: what is deleted with it, and what has to stay.

Rows are deleted at once. Feedback entries stay without their words, the audit of identities stays, and a row says
that something was deleted, which names no patient. Objects in the store are removed later: see shared.object_removal.
"""

import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Text,
    any_,
    bindparam,
    delete,
    exists,
    func,
    literal,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from shared.db.clock import db_now
from shared.db.notify import worklist_changed
from shared.db.tables import (
    DeletionRow,
    FeedbackRow,
    HeldFileRow,
    InstanceRow,
    LeftObjectRow,
    QuarantineDecisionRow,
    StudyRow,
    UploadRow,
)
from shared.db.tables.base import table_of
from shared.domain.analysis import SupersededReason
from shared.domain.deletion import DeletionReason
from shared.domain.held import HeldKind, HeldState
from shared.domain.security import EventKind, Subject
from shared.domain.study import StoredStatus
from shared.errors import InvalidState, NotFound
from shared.queries import analyses, feedback, rejections, series
from shared.queries.access import Key, Vault
from shared.queries.audit import State, Target, record

PROTECT = text("SELECT pg_advisory_xact_lock_shared(one) FROM unnest(CAST(:stripes AS bigint[])) AS one")
LEFT_OBJECTS = select(table_of(LeftObjectRow).c.sha256).where(
    table_of(LeftObjectRow).c.sha256 == any_(bindparam("sha256s", type_=ARRAY(Text)))
)
STRIPES, STRIPE_LOCKS = 64, 0x05_7E_0B_00  # uploads share them, a sweep has one alone
REMOVAL_DELAYS = (timedelta(hours=1), timedelta(hours=24))  # the last of them must outlast every upload
MAX_DUE = 100


@dataclass(frozen=True)
class DeletionResult:
    """What was deleted."""

    study_id: UUID
    whole: bool  # the study; else an image of it
    images: int
    feedback_entries: int  # that stay in the feedback log without their words
    analyse: bool = False  # the study waits for its analysis again


def delete_study(
    session: Session,
    vault: Vault,
    key: Key,
    study_id: UUID,
    reason: DeletionReason,
    note: str = "",
    *,
    only: StoredStatus | None = None,
) -> DeletionResult:
    """Delete a study of the key's site. A worker or a reader that has it just now writes nothing afterwards.

    Args:
        session: the caller's transaction.
        vault: encrypts the note.
        key: of the administrator.
        study_id: the study.
        reason: why.
        note: more in the administrator's words; kept encrypted.
        only: the status that the study must have; None: any.

    Returns:
        What was deleted.

    Raises:
        NotFound: there is no such study.
        InvalidState: it has another status, or files wait that may be another patient's.
    """
    study = _locked(session, key.site_id, study_id)
    if only and study.status != only:
        raise InvalidState(f"The study is {study.status}, not {only}; `osteon delete` deletes it all the same")
    instances = session.scalars(select(InstanceRow).where(InstanceRow.study_id == study_id)).all()
    held = HeldFileRow.study_id == study_id, HeldFileRow.new_study_id == study_id
    _add_left_objects(session, instances, _delete_held_files(session, or_(*held), study_id))
    session.execute(delete(UploadRow).where(UploadRow.study_ids.contains([study_id])))
    decisions = update(QuarantineDecisionRow).where(QuarantineDecisionRow.study_id == study_id)
    session.execute(decisions.values(why=vault.seal("")))
    session.flush()
    about, before = Target(Subject.STUDY, study_id), {"status": study.status, "images": len(instances)}
    session.delete(study)
    session.flush()
    entries = _erase_words(session, FeedbackRow.study_id == study_id)
    made = DeletionResult(study_id, True, len(instances), entries)
    _record_deletion(
        session, vault, key, made, sum(one.size_bytes for one in instances), reason, note, about, before, None
    )
    return made


def delete_image(
    session: Session,
    vault: Vault,
    key: Key,
    study_id: UUID,
    sop_instance_uid: str,
    reason: DeletionReason,
    note: str = "",
) -> DeletionResult:
    """Delete an image, and the study if it was the only one. A worker sums up the others again.

    Args:
        session: the caller's transaction.
        vault: encrypts the note.
        key: of the administrator.
        study_id: the study.
        sop_instance_uid: of the image.
        reason: why.
        note: more in the administrator's words; kept encrypted.

    Returns:
        What was deleted.

    Raises:
        NotFound: there is no such study or image.
        InvalidState: a file waits for a decision that is about this image.
    """
    study = _locked(session, key.site_id, study_id)
    instances = session.scalars(select(InstanceRow).where(InstanceRow.study_id == study_id)).all()
    gone = next((one for one in instances if one.sop_instance_uid == sop_instance_uid), None)
    if gone is None:
        raise NotFound("the study has no image with this SOP Instance UID")
    if len(instances) == 1:
        return delete_study(session, vault, key, study_id, reason, note)
    held = HeldFileRow.instance_id == gone.id, HeldFileRow.new_instance_id == gone.id
    _add_left_objects(session, [gone], _delete_held_files(session, or_(*held), study_id, gone.id))
    before = {"status": study.status, "images": len(instances)}
    analysed = not gone.kept and not gone.rejected_by_ko
    now = db_now(session)
    lifted = rejections.undo_rejection(session, gone.id, now)
    session.delete(gone)
    session.flush()
    if analysed:
        again = analyses.summarise_again(session, study, SupersededReason.IMAGE_DELETED, now)
    else:
        again, study.kept = study_id in lifted, study.kept - 1
    session.flush()
    series.remove_empty(session, [study_id])
    entries = _erase_words(session, FeedbackRow.instance_id == gone.id)
    made = DeletionResult(study_id, False, 1, entries, analyse=again)
    after = {"status": study.status, "images": len(instances) - 1}
    _record_deletion(
        session, vault, key, made, gone.size_bytes, reason, note, Target(Subject.IMAGE, gone.id), before, after
    )
    return made


def _locked(session: Session, site_id: UUID, study_id: UUID) -> StudyRow:
    """The study, locked after what others lock before it. Raises NotFound."""
    feedback.lock_study(session, site_id, study_id)
    analyses.lock_analyses(session, study_id)
    row = session.scalar(select(StudyRow).where(StudyRow.id == study_id, StudyRow.site_id == site_id))
    if row is None:
        raise NotFound(f"there is no study {study_id} here; check the id, and the site of your key")
    return row


def _delete_held_files(
    session: Session, which: ColumnElement[bool], study_id: UUID, instance_id: UUID | None = None
) -> list[HeldFileRow]:
    """Delete the held files of what is deleted; return them. Files that are images of other studies stay.

    Raises InvalidState while one waits that may be another patient's.
    """
    rows = session.scalars(select(HeldFileRow).where(which).with_for_update()).all()
    waiting = [row for row in rows if row.state == HeldState.OPEN and row.kind in (HeldKind.PATIENT, HeldKind.PIXELS)]
    if waiting:
        raise InvalidState(
            f"{len(waiting)} file(s) wait that may be of another patient, or hold other pixels: decide on them first, "
            "on the operations page (Conflicts and corrections)",
            "files-wait",
        )
    gone = []
    for row in rows:
        elsewhere = row.new_study_id not in (None, study_id)
        if instance_id is not None:
            elsewhere = row.new_instance_id not in (None, instance_id)
        if elsewhere:
            row.instance_id = None
            if instance_id is None:
                row.study_id = None
        else:
            gone.append(row)
            session.delete(row)
    session.flush()
    return gone


def _add_left_objects(session: Session, instances: Sequence[InstanceRow], held: Sequence[HeldFileRow]) -> None:
    """Record what the store may remove."""
    frames: dict[str, int] = {row.sha256: 0 for row in held}
    for one in instances:
        made = 0 if one.kept else one.frames  # of what is not analysed there is no picture
        frames[one.sha256] = max(made, frames.get(one.sha256, 0))
        if one.header_sha256:
            frames.setdefault(one.header_sha256, 0)
    rows = [{"sha256": sha256, "frames": count} for sha256, count in sorted(frames.items())]
    if rows:
        new = insert(LeftObjectRow)
        columns = {
            "frames": func.greatest(LeftObjectRow.frames, new.excluded.frames),
            "due_at": func.clock_timestamp(),
            "passes": 0,
        }
        session.execute(new.on_conflict_do_update(index_elements=["sha256"], set_=columns), rows)


def _erase_words(session: Session, which: ColumnElement[bool]) -> int:
    """Remove the words from feedback entries, whose chain holds their digest; return the number of entries."""
    words = update(FeedbackRow).where(which, FeedbackRow.words.is_not(None), FeedbackRow.words_sha256.is_not(None))
    session.execute(words.values(words=None).execution_options(synchronize_session=False))
    return session.scalar(select(func.count()).select_from(FeedbackRow).where(which)) or 0


def _record_deletion(
    session: Session,
    vault: Vault,
    key: Key,
    made: DeletionResult,
    size_bytes: int,
    reason: DeletionReason,
    note: str,
    about: Target,
    before: State,
    after: State | None,
) -> None:
    session.add(
        DeletionRow(
            site_id=key.site_id, study_id=made.study_id, whole=made.whole, reason=reason, key_id=key.id,
            note=vault.seal(note) if note else None, images=made.images, size_bytes=size_bytes,
            feedback_entries=made.feedback_entries,
        )
    )  # fmt: skip
    kind = EventKind.STUDY_DELETED if made.whole else EventKind.IMAGE_DELETED
    record(
        session, kind, key, about=about, study_id=made.study_id, before=before, after=after, reason=reason,
        images=made.images, feedback_entries=made.feedback_entries,
    )  # fmt: skip
    worklist_changed(session, [key.site_id])


def list_deletions(session: Session, site_id: UUID, limit: int) -> Sequence[DeletionRow]:
    """Read what was deleted at a site.

    Args:
        session: the caller's transaction.
        site_id: the site.
        limit: how many deletions.

    Returns:
        The rows, the latest first.
    """
    query = select(DeletionRow).where(DeletionRow.site_id == site_id)
    return session.scalars(query.order_by(DeletionRow.deleted_at.desc(), DeletionRow.id).limit(limit)).all()


# -- the store: what uploads rely on, and what a sweep may remove


def protect_objects(session: Session, sha256s: Collection[str]) -> list[str]:
    """Keep the store from removing these contents until the transaction ends, which writes rows that name them.

    Args:
        session: the caller's transaction.
        sha256s: of the contents.

    Returns:
        Those that the store may have removed: store them again before the transaction ends.
    """
    if not sha256s:
        return []
    stripes = sorted({_stripe(sha256) for sha256 in sha256s})
    session.execute(PROTECT, {"stripes": stripes})
    return list(session.scalars(LEFT_OBJECTS, {"sha256s": list(sha256s)}))


def due_for_removal(session: Session, limit: int = MAX_DUE) -> Sequence[str]:
    """Find contents that the store may remove now.

    Args:
        session: the caller's transaction.
        limit: how many.

    Returns:
        Their SHA-256, the one that waits longest first.
    """
    due = select(LeftObjectRow.sha256).where(LeftObjectRow.due_at <= func.clock_timestamp())
    return session.scalars(due.order_by(LeftObjectRow.due_at, LeftObjectRow.sha256).limit(limit)).all()


def lock_left_object(session: Session, sha256: str) -> LeftObjectRow | None:
    """Lock a content until the transaction ends.

    Args:
        session: the caller's transaction.
        sha256: of the content.

    Returns:
        Its row; None if another transaction uses it, or it is not due any more.
    """
    alone = select(func.pg_try_advisory_xact_lock(literal(_stripe(sha256))))
    if not session.scalar(alone):
        return None
    row = select(LeftObjectRow).where(LeftObjectRow.sha256 == sha256, LeftObjectRow.due_at <= func.clock_timestamp())
    return session.scalar(row.with_for_update(skip_locked=True))


def is_named(session: Session, sha256: str) -> bool:
    """Check whether a content is in use.

    Args:
        session: the caller's transaction.
        sha256: of the content.

    Returns:
        Whether a row of any site names it.
    """
    return bool(
        session.scalar(
            select(
                or_(
                    exists().where(InstanceRow.sha256 == sha256),
                    exists().where(InstanceRow.header_sha256 == sha256),
                    exists().where(HeldFileRow.sha256 == sha256),
                )
            )
        )
    )


def record_removal(session: Session, row: LeftObjectRow) -> None:
    """Record that a content was removed once more, or is in use: it is due again later, or its row is deleted.

    Args:
        session: the caller's transaction.
        row: its row, as `lock_left_object` returned it.
    """
    if row.passes < len(REMOVAL_DELAYS):
        now: Any = session.scalar(select(func.clock_timestamp()))
        row.due_at, row.passes = now + REMOVAL_DELAYS[row.passes], row.passes + 1
    else:
        session.delete(row)


def _stripe(sha256: str) -> int:
    return STRIPE_LOCKS + zlib.crc32(sha256.encode()) % STRIPES
