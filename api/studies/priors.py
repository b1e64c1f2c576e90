"""GET /api/v1/studies/{id}/priors: earlier examinations of the same patient and region."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from pydantic import BaseModel, Field
from sqlalchemy.orm import Session

from api.dependencies import Parts, PartsDep, Radiologist, SessionDep, StudyId
from api.readers_summary import ReadersSummaryView, readers_summary_view
from api.requests import API, Router
from api.schemas import ExaminationFields, InstanceReport, RowView
from api.studies.routes import instance_reports
from shared.dicom.header import one_line
from shared.domain.findings import RESEARCH_USE, Assessment, Extent, shown_score
from shared.domain.study import StudyStatus
from shared.queries import feedback, studies
from shared.queries.access import Key
from shared.queries.models import thresholds
from shared.queries.priors import find_priors

router = Router(prefix=API, tags=["read"])


class PriorView(RowView, ExaminationFields):
    """An earlier study of the same patient, of the same or a neighbouring region."""

    id: UUID = Field(description="of the prior study")
    url: str = Field(description="path of the prior study in the API")
    received_at: datetime = Field(description="when it came; its date if the header has none")
    description: str = Field(description="as the DICOM header says; free text")
    status: StudyStatus = Field(description="state of the study, a code")
    assessment: Assessment | None = Field(description="the gravest of its findings, a code; null: none yet")
    severity: Extent | None = Field(description="extent by annotation, a code")
    region: str = Field(description="of the finding that determines the study, a code; empty: none")
    instances: list[InstanceReport] = Field(description="its images")
    readers: ReadersSummaryView | None = Field(
        description="what readers say, once one of them contradicts the model; the study's headline from then on"
    )


class PriorsView(BaseModel):
    """A study's priors."""

    priors: list[PriorView] = Field(description="the newest three at most, newest first")
    notice: str = Field(RESEARCH_USE, description="the research use notice, in words")


@router.get("/studies/{study_id}/priors")
def priors(study_id: StudyId, parts: PartsDep, key: Radiologist, session: SessionDep) -> PriorsView:
    """Get the newest three earlier studies of the same patient and of the same or a neighbouring region.

    The patient is who has the same Patient ID of the same issuer at your site; a name or birth date that contradicts
    makes another one. Each prior's description is recorded as a reading of its identity.
    """
    row = studies.get(session, key.site_id, studies.named(session, key.site_id, study_id))
    return PriorsView(priors=describe(session, parts, key, prior_views(session, parts, key, row.id)))


def prior_views(session: Session, parts: Parts, key: Key, study_id: UUID) -> list[PriorView]:
    """Find a study's priors, without what the headers say in free text.

    Args:
        session: the caller's transaction.
        parts: of this application.
        key: of the reader.
        study_id: a study of their site.

    Returns:
        The priors, newest first.
    """
    found = find_priors(session, parts.vault, key.site_id, study_id)
    if not found:
        return []
    rows = studies.get_many(session, key.site_id, found)
    states = {row.id: row.status for row in studies.states(session, key.site_id, found)}
    views = studies.instances_of(session, found)
    bundles = {finding.bundle for its in views.values() for view in its for finding in view.findings}
    points = thresholds(session, bundles)
    answered = feedback.studies_with_feedback(session, found)
    return [
        PriorView.of_row(
            rows[one],
            url=f"{API}/studies/{one}",
            description="",
            status=states[one],
            score=None if (score := rows[one].score) is None else shown_score(score),
            instances=instance_reports(one, views[one], points),
            readers=readers_summary_view(session, one, views[one]) if one in answered else None,
        )
        for one in found
    ]


def describe(session: Session, parts: Parts, key: Key, priors: Sequence[PriorView]) -> list[PriorView]:
    """Add what the headers say in free text; each leaves a record that its identity was read.

    Args:
        session: the caller's transaction.
        parts: of this application.
        key: of the reader.
        priors: as `prior_views` found them.

    Returns:
        The priors with their descriptions, in the same order.
    """
    identities = parts.vault.identities(session, key, [prior.id for prior in priors]) if priors else {}
    told = {id_: one_line(identity.study_description) for id_, identity in identities.items()}
    return [prior.model_copy(update={"description": told.get(prior.id, "")}) for prior in priors]
