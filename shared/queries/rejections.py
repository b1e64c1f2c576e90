"""Instances that a Key Object Selection Document rejects: they leave the list, the statistics and the results.

Source: IHE RAD TF-3 4.66 (Image Object Change Management), PS3.16 CID 7011.
"""

from collections.abc import Collection, Mapping
from datetime import datetime
from uuid import UUID

from sqlalchemy import ARRAY, Text, any_, bindparam, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from shared.db.tables import InstanceRow, RejectedInstanceRow, StudyRow
from shared.db.tables.base import table_of
from shared.domain.analysis import SupersededReason
from shared.domain.security import EventKind, Subject, System
from shared.domain.study import Rejection, RejectionNote
from shared.queries import analyses
from shared.queries.access import Key
from shared.queries.audit import Target, record

_REJECTED = table_of(RejectedInstanceRow)
TITLES = (  # of documents that reject some instances
    select(_REJECTED.c.sop_instance_uid, _REJECTED.c.title)
    .where(
        _REJECTED.c.site_id == bindparam("site"),
        _REJECTED.c.sop_instance_uid == any_(bindparam("uids", type_=ARRAY(Text))),
    )
    .order_by(_REJECTED.c.title.desc())
)


def studies_named(session: Session, site_id: UUID, notes: Collection[RejectionNote]) -> set[UUID]:
    """Find the studies of the instances that documents reject; lock them before `reject_instances`.

    Args:
        session: the caller's transaction.
        site_id: the site.
        notes: of the documents.

    Returns:
        Ids of the studies.
    """
    uids = {uid for note in notes for uid in note.sop_instance_uids}
    if not uids:
        return set()
    named_instances = InstanceRow.site_id == site_id, InstanceRow.sop_instance_uid.in_(uids)
    return set(session.scalars(select(InstanceRow.study_id).where(*named_instances)))


def rejected_before(session: Session, site_id: UUID, sop_instance_uids: Collection[str]) -> dict[str, Rejection]:
    """Find which instances were rejected before they came.

    Args:
        session: the caller's transaction.
        site_id: the site.
        sop_instance_uids: of the instances.

    Returns:
        The title of a document that rejects each of them, by SOP Instance UID.
    """
    if not sop_instance_uids:
        return {}
    found = session.execute(TITLES, {"site": site_id, "uids": list(sop_instance_uids)})
    return {uid: Rejection(title) for uid, title in found}


def reject_instances(
    session: Session, site_id: UUID, notes: Mapping[UUID, RejectionNote], now: datetime, actor: Key | System
) -> None:
    """Take what documents reject off the list, also while it is analysed. What was rejected before stays as it is.

    Args:
        session: the caller's transaction, which has locked the studies.
        site_id: the site.
        notes: of new documents, by their ids as instances.
        now: Postgres' time.
        actor: whoever sent the documents.
    """
    for instance_id, note in notes.items():
        rows = [
            {"instance_id": instance_id, "sop_instance_uid": uid, "site_id": site_id, "title": note.title}
            for uid in note.sop_instance_uids
        ]
        if not rows:
            continue
        session.execute(insert(RejectedInstanceRow).on_conflict_do_nothing(), rows)
        found = session.scalars(
            select(InstanceRow)
            .where(
                InstanceRow.site_id == site_id,
                InstanceRow.sop_instance_uid.in_(note.sop_instance_uids),
                InstanceRow.rejected_by_ko == "",
            )
            .order_by(InstanceRow.id)
        ).all()
        for one in found:
            one.rejected_by_ko = note.title
        session.flush()
        instances_of = {
            study_id: [one for one in found if one.study_id == study_id] for study_id in {f.study_id for f in found}
        }
        for study_id, its in sorted(instances_of.items()):
            study = session.get_one(StudyRow, study_id)
            if any(not one.kept for one in its):
                analyses.summarise_again(session, study, SupersededReason.IMAGE_REJECTED, now)
            record_rejected(session, site_id, study_id, note.title, len(its), actor)


def record_rejected(
    session: Session, site_id: UUID, study_id: UUID, title: Rejection, instances: int, actor: Key | System
) -> None:
    """Record that a document rejects instances.

    Args:
        session: the caller's transaction.
        site_id: the site.
        study_id: of the instances.
        title: of the document.
        instances: how many.
        actor: whoever sent the last of both.
    """
    record(
        session, EventKind.INSTANCES_REJECTED, actor, about=Target(Subject.STUDY, study_id), study_id=study_id,
        site_id=site_id, after={"rejected": title}, instances=instances,
    )  # fmt: skip


def undo_rejection(session: Session, instance_id: UUID, now: datetime) -> set[UUID]:
    """Undo what a document rejects that is about to be deleted, unless another one rejects it too.

    Args:
        session: the caller's transaction.
        instance_id: of the document.
        now: Postgres' time.

    Returns:
        The studies that are analysed again.
    """
    row = RejectedInstanceRow
    rows = session.scalars(select(row).where(row.instance_id == instance_id)).all()
    if not rows:
        return set()
    site_id, uids = rows[0].site_id, {one.sop_instance_uid for one in rows}
    for note in rows:
        session.delete(note)
    session.flush()
    uids -= rejected_before(session, site_id, uids).keys()
    named_instances = (
        InstanceRow.site_id == site_id,
        InstanceRow.sop_instance_uid.in_(uids),
        InstanceRow.rejected_by_ko != "",
    )
    found = session.scalars(select(InstanceRow).where(*named_instances)).all()
    studies = session.scalars(
        select(StudyRow).where(StudyRow.id.in_({one.study_id for one in found})).order_by(StudyRow.id).with_for_update()
    ).all()
    for one in found:
        one.rejected_by_ko = ""
    session.flush()
    touched = {one.study_id for one in found if not one.kept}
    return {
        study.id
        for study in studies
        if study.id in touched and analyses.summarise_again(session, study, SupersededReason.IMAGE_REJECTED, now)
    }
