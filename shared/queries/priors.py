"""Earlier examinations of a study's patient."""

from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from shared.db.tables import IdentityTokenRow, StudyRow
from shared.domain.findings import abstention_of
from shared.domain.identity import same_patient, same_patient_id
from shared.domain.priors import MAX_OF_PATIENT, MAX_PRIORS, DatedStudy, choose_priors, regions_of
from shared.domain.study import StoredStatus
from shared.queries.access import Vault

_DATED = select(
    StudyRow.id,
    StudyRow.study_date,
    StudyRow.study_time,
    StudyRow.received_at,
    StudyRow.region,
    StudyRow.abstention,
    StudyRow.body_part,
)


def find_priors(session: Session, vault: Vault, site_id: UUID, study_id: UUID) -> list[UUID]:
    """Find the newest earlier studies of a study's patient, of the same or a neighbouring region.

    The patient is the one with the same Patient ID and issuer, at the same site, whose name and birth date do not
    contradict. Identities are compared and shown to nobody, so no reading is recorded.

    Args:
        session: the caller's transaction.
        vault: decrypts identities.
        site_id: the study's site.
        study_id: the study.

    Returns:
        Ids of at most MAX_PRIORS studies, newest first; none if more than MAX_OF_PATIENT studies have its Patient ID.
        A study of which nothing is analysed, or of which documents reject all images, is none.
    """
    identity = vault.stored_identities(session, [study_id]).get(study_id)
    token = vault.tokens(site_id, identity)["patient_id"] if identity and identity.readable else b""
    if identity is None or not token:
        return []
    rows = session.execute(
        _DATED.join(IdentityTokenRow, IdentityTokenRow.study_id == StudyRow.id)
        .where(
            IdentityTokenRow.token == token,
            IdentityTokenRow.kind == "patient_id",
            StudyRow.site_id == site_id,
            StudyRow.status != StoredStatus.KEPT,
            StudyRow.images > 0,
        )
        .limit(MAX_OF_PATIENT + 1)
    ).all()
    if len(rows) > MAX_OF_PATIENT:
        return []
    dated = {
        row.id: DatedStudy(
            row.id,
            row.study_date,
            row.study_time,
            row.received_at,
            regions_of(row.region, abstention_of(row.abstention), row.body_part),
        )
        for row in rows
    }
    if study_id not in dated:
        return []
    found: list[UUID] = []
    candidates = choose_priors(dated[study_id], dated.values())
    for first in range(0, len(candidates), MAX_PRIORS):
        some = candidates[first : first + MAX_PRIORS]
        identities = vault.stored_identities(session, some)
        found += [
            one
            for one in some
            if (who := identities.get(one)) and same_patient_id(who, identity) and same_patient(who, identity)
        ]
        if len(found) >= MAX_PRIORS:
            break
    return found[:MAX_PRIORS]
