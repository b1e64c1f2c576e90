"""One study, several of a site, and their images."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy import (
    Row,
    and_,
    exists,
    func,
    not_,
    or_,
    select,
    tuple_,
)
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.orm import Session

from shared.db.tables import AnalysisRow, BundleRow, FindingRow, HeldFileRow, InstanceRow, StudyRow
from shared.db.tables.studies import IS_ANALYSED
from shared.domain.findings import ExposedField, Heatmap
from shared.domain.held import HeldState
from shared.errors import BadRequest, NotFound
from shared.queries.analyses import ATTEMPTS, IS_CURRENT, REASON, REASON_DETAIL, STATUS

MAX_MATCHING_IDS = 5
SHORT_ID = re.compile(r"[0-9a-f]{4,32}")  # the first digits of an id, without dashes


@dataclass(frozen=True)
class InstanceView:
    """One instance with its newest findings, one per frame."""

    row: InstanceRow
    findings: list[FindingRow]


def get(session: Session, site_id: UUID, study_id: UUID) -> StudyRow:
    """Read a study.

    Args:
        session: the caller's transaction.
        site_id: the site.
        study_id: the study.

    Returns:
        Its row.

    Raises:
        NotFound: the site has no such study.
    """
    row = session.scalar(select(StudyRow).where(StudyRow.id == study_id, StudyRow.site_id == site_id))
    if row is None:
        raise NotFound(f"there is no study {study_id} here; check the id, and the site of your key")
    return row


def ids_starting_with(session: Session, site_id: UUID, start: str) -> list[UUID]:
    """Find studies by the first digits of their ids.

    Args:
        session: the caller's transaction.
        site_id: the site.
        start: at least four hexadecimal digits, dashes and spaces around them apart.

    Returns:
        At most MAX_MATCHING_IDS ids; none if `start` is no beginning of an id.
    """
    digits = start.strip().lower().replace("-", "")
    if not SHORT_ID.fullmatch(digits):
        return []
    first, last = UUID(digits.ljust(32, "0")), UUID(digits.ljust(32, "f"))
    found = session.scalars(
        select(StudyRow.id).where(StudyRow.site_id == site_id, StudyRow.id.between(first, last)).order_by(StudyRow.id)
    )
    return list(found.fetchmany(MAX_MATCHING_IDS))


def named(session: Session, site_id: UUID, start: str) -> UUID:
    """Find the one study whose id begins with these digits.

    Args:
        session: the caller's transaction.
        site_id: the site.
        start: at least four hexadecimal digits, dashes and spaces around them apart.

    Returns:
        Its id.

    Raises:
        NotFound: there is none.
        BadRequest: there are several, which the message names.
    """
    found = ids_starting_with(session, site_id, start)
    if not found:
        raise NotFound("no study here has an id that begins so")
    if len(found) > 1:
        more = ", …" if len(found) == MAX_MATCHING_IDS else ""
        raise BadRequest(f"several ids begin so: {', '.join(map(str, found))}{more}; give more of one")
    return found[0]


def get_many(session: Session, site_id: UUID, study_ids: Sequence[UUID]) -> dict[UUID, StudyRow]:
    """Read several studies.

    Args:
        session: the caller's transaction.
        site_id: the site.
        study_ids: the studies.

    Returns:
        The rows by id, of those that the site has.
    """
    rows = session.scalars(select(StudyRow).where(StudyRow.site_id == site_id, StudyRow.id.in_(study_ids)))
    return {row.id: row for row in rows}


def states(
    session: Session, site_id: UUID, study_ids: Sequence[UUID]
) -> Sequence[Row[UUID, str, str, str, int, str, int | None]]:
    """Read the state of several studies.

    Args:
        session: the caller's transaction.
        site_id: the site.
        study_ids: the studies.

    Returns:
        (id, status, reason, reason_detail, number of stored images, completeness, expected images) of those that the
        site has.
    """
    stored = select(func.count()).where(InstanceRow.study_id == StudyRow.id).scalar_subquery().label("stored")
    query = select(
        StudyRow.id, STATUS, REASON, REASON_DETAIL, stored, StudyRow.completeness, StudyRow.expected_images
    )  # fmt: skip
    return session.execute(query.where(StudyRow.site_id == site_id, StudyRow.id.in_(study_ids))).all()


@dataclass(frozen=True)
class ArrivedStudy:
    """A study as its sender may know it: where it stands, and since when; no finding."""

    id: UUID
    status: str
    reason: str
    reason_detail: str
    received_at: datetime
    analysed_at: datetime | None
    quarantined_at: datetime | None
    stored: int
    completeness: str
    expected_images: int | None


def arrived(
    session: Session, site_id: UUID, study_ids: Sequence[UUID] = (), study_instance_uid: str = ""
) -> list[ArrivedStudy]:
    """Read what became of studies that a sender asks for.

    Args:
        session: the caller's transaction.
        site_id: the site.
        study_ids: the studies.
        study_instance_uid: of one more; empty: none.

    Returns:
        Those that the site has, the latest first.
    """
    stored = select(func.count()).where(InstanceRow.study_id == StudyRow.id).scalar_subquery()
    query = select(
        StudyRow.id, STATUS, REASON, REASON_DETAIL, StudyRow.received_at, StudyRow.analysed_at,
        StudyRow.quarantined_at, stored, StudyRow.completeness, StudyRow.expected_images,
    )  # fmt: skip
    by_uid = StudyRow.study_instance_uid == study_instance_uid  # which no study has empty
    rows = session.execute(
        query.where(StudyRow.site_id == site_id, or_(StudyRow.id.in_(study_ids), by_uid)).order_by(
            StudyRow.received_at.desc(), StudyRow.id
        )
    )
    return [ArrivedStudy(*row) for row in rows]


def status_of(session: Session, study_id: UUID) -> Row[str, str, str, int, datetime | None]:
    """Read where a study stands.

    Args:
        session: the caller's transaction.
        study_id: a study that exists.

    Returns:
        Status, reason and its detail as they are shown, and attempts and beginning of its current analysis.
    """
    begun = select(AnalysisRow.started_at).where(IS_CURRENT).scalar_subquery().label("started_at")
    query = select(STATUS, REASON, REASON_DETAIL, ATTEMPTS, begun).where(StudyRow.id == study_id)
    return session.execute(query).one()


@dataclass(frozen=True)
class Arrival:
    """A study's arrival, and what is known of it now."""

    received_at: datetime
    study_id: UUID
    priority: str
    assessment: str | None
    severity: str | None
    fracture_probability: float | None


def arrivals(
    session: Session, site_id: UUID, since: datetime, until: datetime, after: tuple[datetime, UUID] | None, limit: int
) -> list[Arrival]:
    """Read a page of a site's studies in order of arrival.

    Args:
        session: the caller's transaction.
        site_id: the site.
        since: those that came at this time or later.
        until: those that came before this time.
        after: time and id of the last study of the page before; None: the first page.
        limit: how many studies.

    Returns:
        The studies.
    """
    row = StudyRow
    query = select(row.received_at, row.id, row.priority, row.assessment, row.severity, row.fracture_probability).where(
        row.site_id == site_id, row.received_at >= since, row.received_at < until
    )
    if after is not None:
        query = query.where(tuple_(row.received_at, row.id) > after)
    return [Arrival(*found) for found in session.execute(query.order_by(row.received_at, row.id).limit(limit))]


def decided_header(session: Session, study_id: UUID) -> str | None:
    """Find the object whose header says who a study's patient is, where somebody has decided about that.

    It is the last correction in force; or, where images of another header were taken for the same patient's, the first
    image of the study.

    Args:
        session: the caller's transaction.
        study_id: the study.

    Returns:
        Its SHA-256; None: nobody has, and each image says it itself.
    """
    decided = HeldFileRow.study_id == study_id
    in_force = (InstanceRow.id == HeldFileRow.instance_id) & (InstanceRow.header_sha256 == HeldFileRow.sha256)
    applied = session.scalar(
        select(HeldFileRow.sha256)
        .join(InstanceRow, in_force)
        .where(decided, HeldFileRow.state == HeldState.APPLIED)
        .order_by(HeldFileRow.decided_at.desc(), HeldFileRow.received_at.desc(), HeldFileRow.id.desc())
        .limit(1)
    )
    same = exists().where(decided, HeldFileRow.state == HeldState.SAME_PATIENT)
    if applied is not None or not session.scalar(select(same)):
        return applied
    return first_header(session, study_id) or None


def first_header(session: Session, study_id: UUID) -> str:
    """Find the object whose header is that of a study's first image now.

    Args:
        session: the caller's transaction.
        study_id: the study.

    Returns:
        Its SHA-256; empty: there is none.
    """
    found = session.scalar(
        select(func.coalesce(InstanceRow.header_sha256, InstanceRow.sha256))
        .where(InstanceRow.study_id == study_id, *IS_ANALYSED)
        .order_by(InstanceRow.received_at, InstanceRow.sop_instance_uid)
        .limit(1)
    )
    return found or ""


def instances(session: Session, study_id: UUID) -> list[InstanceView]:
    """Read a study's images that are analysed, as `instances_of` does.

    Args:
        session: the caller's transaction.
        study_id: the study.

    Returns:
        The instances in order of arrival.
    """
    return instances_of(session, [study_id])[study_id]


def instances_of(session: Session, study_ids: Sequence[UUID]) -> dict[UUID, list[InstanceView]]:
    """Read images of studies that are analysed, each frame with the finding that its study's summary uses.

    That is the one of the study's bundle; of a frame without it, the newest. What a bundle found that was never active,
    as a shadow, is shown to nobody.

    Args:
        session: the caller's transaction.
        study_ids: the studies.

    Returns:
        The instances by study, each study's in order of arrival.
    """
    newest = (
        select(FindingRow)
        .join(InstanceRow)
        .join(StudyRow)
        .join(BundleRow, BundleRow.name == FindingRow.bundle)
        .where(
            InstanceRow.study_id.in_(study_ids),
            *IS_ANALYSED,
            or_(FindingRow.bundle == StudyRow.bundle, BundleRow.activated_at.is_not(None)),
        )
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
        .where(InstanceRow.study_id.in_(study_ids), *IS_ANALYSED)
        .order_by(InstanceRow.received_at, InstanceRow.sop_instance_uid)
    )
    views: dict[UUID, list[InstanceView]] = {study_id: [] for study_id in study_ids}
    for row in rows:
        views[row.study_id].append(InstanceView(row, found.get(row.id, [])))
    return views


def kept(session: Session, study_id: UUID) -> Sequence[InstanceRow]:
    """Read a study's instances that are not analysed: kept from the first, or rejected by a document.

    Args:
        session: the caller's transaction.
        study_id: the study.

    Returns:
        The instances in order of arrival.
    """
    return session.scalars(
        select(InstanceRow)
        .where(InstanceRow.study_id == study_id, not_(and_(*IS_ANALYSED)))
        .order_by(InstanceRow.received_at, InstanceRow.sop_instance_uid)
    ).all()


def missing_studies(session: Session, study_ids: Sequence[UUID]) -> set[UUID]:
    """Find which studies do not exist.

    Args:
        session: the caller's transaction.
        study_ids: the studies.

    Returns:
        Those that have no row.
    """
    if not study_ids:
        return set()
    return set(study_ids) - set(session.scalars(select(StudyRow.id).where(StudyRow.id.in_(study_ids))))


def image_numbers(session: Session, study_ids: Sequence[UUID]) -> dict[UUID, int]:
    """Number the images of studies, as `image` counts.

    Args:
        session: the caller's transaction.
        study_ids: the studies.

    Returns:
        By instance's id its number, 1 for a study's first.
    """
    place = func.row_number().over(
        partition_by=InstanceRow.study_id, order_by=(InstanceRow.received_at, InstanceRow.sop_instance_uid)
    )
    rows = session.execute(select(InstanceRow.id, place).where(InstanceRow.study_id.in_(study_ids), *IS_ANALYSED))
    return {id_: number for id_, number in rows}  # noqa: C416 - rows are no tuples to the type checker


def image(session: Session, site_id: UUID, study_id: UUID, number: int, frame: int) -> InstanceRow:
    """Find an instance by its number, and check that it has a frame.

    Args:
        session: the caller's transaction.
        site_id: the site.
        study_id: the study.
        number: of the image in its study, from 1.
        frame: number of the frame, from 1.

    Returns:
        The instance's row.

    Raises:
        NotFound: there is no such study, image or frame.
    """
    get(session, site_id, study_id)
    rows = session.scalars(
        select(InstanceRow)
        .where(InstanceRow.study_id == study_id, *IS_ANALYSED)
        .order_by(InstanceRow.received_at, InstanceRow.sop_instance_uid)
    ).all()
    if not 1 <= number <= len(rows):
        raise NotFound(f"the study has {len(rows)} image(s); there is no image {number}")
    row = rows[number - 1]
    if not 1 <= frame <= row.frames:
        raise NotFound(f"image {number} has {row.frames} frame(s); there is no frame {frame}")
    return row


def sha256_of_instance(session: Session, instance_id: UUID) -> str | None:
    """Find the bytes of an instance.

    Args:
        session: the caller's transaction.
        instance_id: the instance.

    Returns:
        Their SHA-256; None if there is no such instance any more.
    """
    return session.scalar(select(InstanceRow.sha256).where(InstanceRow.id == instance_id))


def picture(
    session: Session, site_id: UUID, study_id: UUID, instance: int, frame: int
) -> tuple[InstanceRow, Heatmap, ExposedField]:
    """Find what a picture is made of.

    Args:
        session: the caller's transaction.
        site_id: the site.
        study_id: the study.
        instance: number of the image in its study, from 1.
        frame: number of the frame, from 1.

    Returns:
        The instance's row, the frame's newest heatmap, and the field that the model saw.

    Raises:
        NotFound: there is no such image, or it has no finding yet.
    """
    row, finding = frame_finding(session, site_id, study_id, instance, frame)
    found = Heatmap(finding.heatmap, finding.heatmap_height, finding.heatmap_width)
    return row, found, field_of(finding, row)


def field_of(finding: FindingRow, image: InstanceRow) -> ExposedField:
    """Find which part of an image the model saw.

    Args:
        finding: of a frame.
        image: the instance that the frame is of.

    Returns:
        The exposed field; the whole image if none was stored.
    """
    return ExposedField(*finding.field) if finding.field else ExposedField.whole(image.rows, image.columns)


def frame_finding(
    session: Session, site_id: UUID, study_id: UUID, instance: int, frame: int
) -> tuple[InstanceRow, FindingRow]:
    """Find a frame's newest finding.

    Args:
        session: the caller's transaction.
        site_id: the site.
        study_id: the study.
        instance: number of the image in its study, from 1.
        frame: number of the frame, from 1.

    Returns:
        The instance's row, and the finding's.

    Raises:
        NotFound: there is no such image, or it has no finding yet.
    """
    get(session, site_id, study_id)
    views = instances(session, study_id)
    if not 1 <= instance <= len(views):
        raise NotFound(f"the study has {len(views)} image(s); there is no image {instance}")
    view = views[instance - 1]
    for finding in view.findings:
        if finding.frame == frame:
            return view.row, finding
    why = f"could not be analysed: {view.row.error_reason}" if view.row.error_reason else "has no finding yet"
    raise NotFound(f"image {instance} frame {frame} {why}")
