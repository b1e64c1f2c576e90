"""Instances by their DICOM UIDs, as WADO-RS retrieves them."""

from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from sqlalchemy import Select, and_, func, or_, select
from sqlalchemy.orm import Session, aliased

from shared.db.tables import HeldFileRow, InstanceRow, SeriesRow, StudyRow
from shared.db.tables.studies import IS_SHOWN
from shared.domain.held import HeldState
from shared.domain.study import StoredOnly
from shared.errors import NotFound, Reason, reason_of


@dataclass(frozen=True)
class StoredInstance:
    """An instance, and the object whose header is in force."""

    id: UUID
    study_id: UUID
    study_instance_uid: str
    series_instance_uid: str  # "" until a worker has read the header of an image from before there were series
    sop_instance_uid: str
    sha256: str  # that its pictures are named by
    object_sha256: str  # of the corrected object, if a correction was applied; else the same
    size_bytes: int  # of that
    frames: int
    kept: StoredOnly | None  # why it is not analysed
    error: Reason | None  # why it cannot be analysed
    changed_at: datetime | None  # when an administrator last decided on a header of its study; None: never
    series: SeriesRow | None = field(repr=False)


def instances(
    session: Session,
    site_id: UUID,
    study_uid: str,
    series_uid: str | None = None,
    instance_uid: str | None = None,
    *,
    rejected: bool = False,
) -> list[StoredInstance]:
    """Find the instances of a study, of a series, or one.

    Args:
        session: the caller's transaction.
        site_id: the site.
        study_uid: Study Instance UID.
        series_uid: Series Instance UID; None: of all series.
        instance_uid: SOP Instance UID; None: all instances.
        rejected: whether to find also those that a document rejects.

    Returns:
        The instances in the order of their series' and their own numbers; at least one.

    Raises:
        NotFound: the site has none.
    """
    query = _query(site_id).where(StudyRow.study_instance_uid == study_uid)
    if not rejected:
        query = query.where(IS_SHOWN)
    if series_uid is not None:
        query = query.where(SeriesRow.series_instance_uid == series_uid)
    if instance_uid is not None:
        query = query.where(InstanceRow.sop_instance_uid == instance_uid)
    found = [
        StoredInstance(
            id=row.id,
            study_id=row.study_id,
            study_instance_uid=study_uid,
            series_instance_uid=series.series_instance_uid if series else "",
            sop_instance_uid=row.sop_instance_uid,
            sha256=row.sha256,
            object_sha256=row.header_sha256 or row.sha256,
            size_bytes=row.size_bytes if size is None else size,
            frames=row.frames,
            kept=StoredOnly(row.kept) if row.kept else None,
            error=reason_of(row.error_reason),
            changed_at=changed_at,
            series=series,
        )
        for row, series, size, changed_at in session.execute(query)
    ]
    if not found:
        raise NotFound(
            "There is no such instance here, or a document rejects it. Check the UIDs, and the site of your key"
        )
    return found


def _query(site_id: UUID) -> Select[InstanceRow, SeriesRow | None, int | None, datetime | None]:
    corrected, decided = aliased(HeldFileRow), aliased(HeldFileRow)
    last = (
        select(func.max(decided.decided_at))
        .where(
            decided.state.in_([HeldState.APPLIED, HeldState.SAME_PATIENT, HeldState.ANOTHER_STUDY]),
            # each is of all the study's images: further ones may have followed it by themselves
            or_(
                and_(decided.state != HeldState.ANOTHER_STUDY, decided.study_id == InstanceRow.study_id),
                and_(decided.state == HeldState.ANOTHER_STUDY, decided.new_study_id == InstanceRow.study_id),
            ),
        )
        .scalar_subquery()
    )
    return (
        select(InstanceRow, SeriesRow, corrected.size_bytes, last)
        .join(StudyRow, StudyRow.id == InstanceRow.study_id)
        .outerjoin(SeriesRow, SeriesRow.id == InstanceRow.series_id)
        .outerjoin(
            corrected,
            and_(corrected.site_id == InstanceRow.site_id, corrected.sha256 == InstanceRow.header_sha256),
        )
        .where(StudyRow.site_id == site_id)
        .order_by(
            SeriesRow.series_number,
            SeriesRow.series_instance_uid,
            InstanceRow.instance_number,
            InstanceRow.sop_instance_uid,
        )
    )
