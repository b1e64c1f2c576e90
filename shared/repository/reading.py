"""What people and programs read: the worklist, one study, its pictures."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import Select, func, select, tuple_
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.orm import Session

from shared.errors import NotFound
from shared.findings import Call, Heatmap, Severity
from shared.study import Priority, StudyStatus
from shared.tables import FindingRow, InstanceRow, StudyRow
from shared.worklist import WorklistEntry


@dataclass(frozen=True)
class WorklistFilter:
    """What to show; None shows all."""

    status: StudyStatus | None = None
    call: Call | None = None
    region: str | None = None
    priority: Priority | None = None
    modality: str | None = None


@dataclass(frozen=True)
class InstanceView:
    """One instance with its newest findings, one per frame."""

    row: InstanceRow
    findings: list[FindingRow]


def worklist(
    session: Session, site_id: UUID, chosen: WorklistFilter, after: tuple[datetime, UUID] | None, limit: int
) -> list[WorklistEntry]:
    """A page of the worklist, most urgent first, starting behind the (due_at, id) of the page before."""
    query = _chosen(select(StudyRow), site_id, chosen)
    if after is not None:
        query = query.where(tuple_(StudyRow.due_at, StudyRow.id) > after)
    rows = session.scalars(query.order_by(StudyRow.due_at, StudyRow.id).limit(limit))
    return [entry(row) for row in rows]


def status_counts(session: Session, site_id: UUID) -> dict[StudyStatus, int]:
    """How many studies of a site stand in each status."""
    rows = session.execute(
        select(StudyRow.status, func.count()).where(StudyRow.site_id == site_id).group_by(StudyRow.status)
    )
    return dict.fromkeys(StudyStatus, 0) | {StudyStatus(status): count for status, count in rows}


def _chosen(query: Select[StudyRow], site_id: UUID, chosen: WorklistFilter) -> Select[StudyRow]:
    query = query.where(StudyRow.site_id == site_id)
    for column, value in (
        (StudyRow.status, chosen.status),
        (StudyRow.call, chosen.call),
        (StudyRow.region, chosen.region),
        (StudyRow.priority, chosen.priority),
        (StudyRow.modality, chosen.modality),
    ):
        if value is not None:
            query = query.where(column == value)
    return query


def entry(row: StudyRow) -> WorklistEntry:
    """A study as a row of the worklist."""
    return WorklistEntry(
        study_id=row.id,
        priority=Priority(row.priority),
        status=StudyStatus(row.status),
        received_at=row.received_at,
        due_at=row.due_at,
        call=Call(row.call) if row.call else None,
        severity=Severity(row.severity) if row.severity else None,
        region=row.region,
        fracture_probability=row.fracture_probability,
        scope=row.scope,
        modality=row.modality,
        images=row.images,
        failed_images=row.failed_images,
        reason=row.reason,
    )


def study(session: Session, site_id: UUID, study_id: UUID) -> StudyRow:
    """One study of this site. Raises NotFound."""
    row = session.scalar(select(StudyRow).where(StudyRow.id == study_id, StudyRow.site_id == site_id))
    if row is None:
        raise NotFound(f"there is no study {study_id} here")
    return row


def instances(session: Session, study_id: UUID) -> list[InstanceView]:
    """A study's instances in order of arrival, each frame with the finding that the study's summary rests on.

    That is the one of the study's bundle; of a frame without it, the newest.
    """
    newest = (
        select(FindingRow)
        .join(InstanceRow)
        .join(StudyRow)
        .where(InstanceRow.study_id == study_id)
        .ext(distinct_on(FindingRow.instance_id, FindingRow.frame))
        .order_by(
            FindingRow.instance_id,
            FindingRow.frame,
            (FindingRow.bundle == StudyRow.bundle).desc(),
            FindingRow.created_at.desc(),
            FindingRow.id,
        )
    )
    found: dict[UUID, list[FindingRow]] = {}
    for finding in session.scalars(newest):
        found.setdefault(finding.instance_id, []).append(finding)
    rows = session.scalars(
        select(InstanceRow)
        .where(InstanceRow.study_id == study_id)
        .order_by(InstanceRow.received_at, InstanceRow.sop_instance_uid)
    )
    return [InstanceView(row, found.get(row.id, [])) for row in rows]


def picture(session: Session, site_id: UUID, study_id: UUID, instance: int, frame: int) -> tuple[InstanceRow, Heatmap]:
    """The instance behind a picture (its number in the study, 1 for the first) and its frame's newest heatmap.

    Raises NotFound if there is no such image, or it has no finding yet.
    """
    study(session, site_id, study_id)
    views = instances(session, study_id)
    if not 1 <= instance <= len(views):
        raise NotFound(f"the study has {len(views)} image(s); there is no image {instance}")
    view = views[instance - 1]
    for finding in view.findings:
        if finding.frame == frame:
            return view.row, Heatmap(finding.heatmap, finding.heatmap_height, finding.heatmap_width)
    raise NotFound(view.row.error_text or f"image {instance} frame {frame} has no finding yet")
