"""Columns of studies from before they were there, filled from the stored originals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from shared.identity import completed, same_patient
from shared.repository.access import Vault
from shared.repository.intake import described, examined
from shared.study import Header, Identity
from shared.tables import InstanceRow, StudyRow
from shared.tables.studies import HEADER_VERSION


@dataclass(frozen=True)
class Unfilled:
    """A study whose stored headers have not been read for the columns."""

    study_id: UUID
    objects: list[tuple[UUID, str, int]]  # id, SHA-256 and size of each instance, in order of arrival


def unfilled(session: Session, most: int) -> list[Unfilled]:
    """Up to `most` studies that were taken in before there were columns for the examination."""
    ids = session.scalars(
        select(StudyRow.id).where(StudyRow.header_version == 0).order_by(StudyRow.id).limit(most)
    ).all()
    rows = session.execute(
        select(InstanceRow.study_id, InstanceRow.id, InstanceRow.sha256, InstanceRow.size_bytes)
        .where(InstanceRow.study_id.in_(ids))
        .order_by(InstanceRow.received_at, InstanceRow.sop_instance_uid)
    )
    found: dict[UUID, list[tuple[UUID, str, int]]] = {study_id: [] for study_id in ids}
    for study_id, instance_id, sha256, size_bytes in rows:
        found[study_id].append((instance_id, sha256, size_bytes))
    return [Unfilled(study_id, objects) for study_id, objects in found.items()]


def fill(session: Session, vault: Vault, headers: Mapping[UUID, Mapping[UUID, Header]]) -> None:
    """Write what the headers of these studies' images tell, by study and instance; a study is filled once.

    An image without a header here, since its object is lost or cannot be read, is passed over.
    """
    studies = session.scalars(
        select(StudyRow)
        .where(StudyRow.id.in_(headers), StudyRow.header_version == 0)
        .order_by(StudyRow.id)
        .with_for_update()
    ).all()
    known = vault.stored_identities(session, [study.id for study in studies])
    for study in studies:
        told = headers[study.id]
        for instance in session.scalars(select(InstanceRow).where(InstanceRow.id.in_(told))):
            for name, value in described(vault, told[instance.id]).items():
                setattr(instance, name, value)
        for header in told.values():
            examined(study, header)
        identity = _merged(known.get(study.id, Identity()), list(told.values()))
        if identity != known.get(study.id):
            vault.change_identity(session, study.site_id, study.id, identity)
        study.header_version = HEADER_VERSION


def _merged(identity: Identity, headers: Sequence[Header]) -> Identity:
    for header in headers:
        if same_patient(identity, header.identity):
            identity = completed(identity, header.identity)
    return identity
