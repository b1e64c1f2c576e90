"""Columns of studies from before they were there, filled from the stored originals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from shared.db.tables import HeldFileRow, InstanceRow, StudyRow
from shared.db.tables.studies import FILLED_VERSION
from shared.domain.identity import complete_identity, same_patient
from shared.domain.study import Header, Identity
from shared.queries.access import Vault
from shared.queries.intake import complete_examination, examination_columns
from shared.queries.series import series_ids


@dataclass(frozen=True)
class PendingExamination:
    """A study whose stored headers have not been read for the columns."""

    study_id: UUID
    # id of each instance, SHA-256 and size of the object whose header is in force; in order of arrival
    objects: list[tuple[UUID, str, int]]


def list_unfilled_studies(session: Session, limit: int) -> list[PendingExamination]:
    """Find studies that were taken in before there were columns for the examination, or for the series.

    Args:
        session: the caller's transaction.
        limit: how many studies.

    Returns:
        The studies with the objects of their images.
    """
    ids = session.scalars(
        select(StudyRow.id).where(StudyRow.filled_version < FILLED_VERSION).order_by(StudyRow.id).limit(limit)
    ).all()
    correction = (HeldFileRow.site_id == InstanceRow.site_id) & (HeldFileRow.sha256 == InstanceRow.header_sha256)
    rows = session.execute(
        select(
            InstanceRow.study_id,
            InstanceRow.id,
            func.coalesce(HeldFileRow.sha256, InstanceRow.sha256),
            func.coalesce(HeldFileRow.size_bytes, InstanceRow.size_bytes),
        )
        .outerjoin(HeldFileRow, correction)
        .where(InstanceRow.study_id.in_(ids))
        .order_by(InstanceRow.received_at, InstanceRow.sop_instance_uid)
    )
    found: dict[UUID, list[tuple[UUID, str, int]]] = {study_id: [] for study_id in ids}
    for study_id, instance_id, sha256, size_bytes in rows:
        found[study_id].append((instance_id, sha256, size_bytes))
    return [PendingExamination(study_id, objects) for study_id, objects in found.items()]


def fill_columns(session: Session, vault: Vault, headers: Mapping[UUID, Mapping[UUID, Header]]) -> int:
    """Write what headers say of the examination and the series; a study is filled once.

    An image without a header here, since its object is lost or cannot be read, is left out, and so is a study that
    another transaction has locked.

    Args:
        session: the caller's transaction.
        vault: encrypts texts and identities.
        headers: by study and instance.

    Returns:
        How many studies were filled.
    """
    studies = session.scalars(
        select(StudyRow)
        .where(StudyRow.id.in_(headers), StudyRow.filled_version < FILLED_VERSION)
        .order_by(StudyRow.id)
        .with_for_update(skip_locked=True)
    ).all()
    known = vault.stored_identities(session, [study.id for study in studies])
    for study in studies:
        headers_of_study = headers[study.id]
        its_series = series_ids(
            session, vault, study.site_id, [(study, header) for header in headers_of_study.values()]
        )
        for instance in session.scalars(select(InstanceRow).where(InstanceRow.id.in_(headers_of_study))):
            header = headers_of_study[instance.id]
            for name, value in examination_columns(vault, header).items():
                setattr(instance, name, value)
            instance.series_id = its_series[study.id, header.series.instance_uid] if header.series else None
        for header in headers_of_study.values():
            complete_examination(study, header)
        identity = _merged(known.get(study.id, Identity()), list(headers_of_study.values()))
        if identity != known.get(study.id):
            vault.change_identity(session, study.site_id, study.id, identity)
        study.header_version = max(1, study.header_version)
        study.filled_version = FILLED_VERSION
    return len(studies)


def _merged(identity: Identity, headers: Sequence[Header]) -> Identity:
    for header in headers:
        if same_patient(identity, header.identity):
            identity = complete_identity(identity, header.identity)
    return identity
