"""GET /api/v1/studies/{id}/priors: earlier examinations of the same patient and region."""

from collections.abc import Sequence
from datetime import datetime
from typing import Self
from uuid import UUID

from pydantic import BaseModel, Field
from sqlalchemy.orm import Session

from api.dependencies import Parts, PartsDep, Radiologist, SessionDep, StudyId
from api.readers_summary import ReadersSummaryView
from api.requests import API, Router
from api.schemas import ExaminationFields, InstanceReport, RowView, StudyReport
from api.studies.routes import study_report
from shared.dicom.header import one_line
from shared.domain.findings import RESEARCH_USE, Assessment, Extent
from shared.domain.study import Identity, StudyStatus
from shared.queries import studies
from shared.queries.access import Key
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

    @classmethod
    def of_report(cls, report: StudyReport, identity: Identity) -> Self:
        """Build it.

        Args:
            report: of the prior study.
            identity: of its patient, which the caller records as read.

        Returns:
            The model.
        """
        return cls.of_row(report, url=f"{API}/studies/{report.id}", description=one_line(identity.study_description))


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
    return PriorsView(priors=shown_priors(session, parts, key, prior_reports(session, parts, key, row.id)))


def prior_reports(session: Session, parts: Parts, key: Key, study_id: UUID) -> list[StudyReport]:
    """Find a study's priors, with nothing of their identities.

    Args:
        session: the caller's transaction.
        parts: of this application.
        key: of the reader.
        study_id: a study of their site.

    Returns:
        The priors' reports, newest first.
    """
    found = find_priors(session, parts.vault, key.site_id, study_id)
    return [study_report(session, key, prior) for prior in found]


def shown_priors(session: Session, parts: Parts, key: Key, reports: Sequence[StudyReport]) -> list[PriorView]:
    """Add what the headers say in free text; each leaves a record that its identity was read.

    Args:
        session: the caller's transaction.
        parts: of this application.
        key: of the reader.
        reports: of the priors.

    Returns:
        The priors, in the same order.
    """
    identities = parts.vault.identities(session, key, [report.id for report in reports]) if reports else {}
    return [PriorView.of_report(report, identities.get(report.id, Identity())) for report in reports]
