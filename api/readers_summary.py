"""What readers say of a study once they contradict its model: one word, and who says it."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from pydantic import BaseModel, Field
from sqlalchemy.orm import Session

from shared.domain.feedback import ReadersAssessment, ReadersSummary, Verdict, readers_summary
from shared.domain.findings import Assessment, Extent
from shared.queries import feedback
from shared.queries.studies import InstanceView


class ReadersSummaryView(BaseModel):
    """What readers say of a study. It stands before the model's word wherever the study is summed up."""

    reading: ReadersAssessment = Field(
        description="the gravest that readers see; `open`: no fracture so far, but a positive finding has no feedback"
    )
    words: str = Field(description="the same in words, with who says it")
    region: str = Field(description="that readers name, a code; empty: none")
    severity: Extent | None = Field(description="extent, as a reader chose it")
    readers: list[str] = Field(description="names of the keys whose feedback this rests on")
    answered_at: datetime = Field(description="time of the last of these entries")
    unanswered: int = Field(description="positive findings without feedback")


def readers_summary_view(session: Session, study_id: UUID, views: Sequence[InstanceView]) -> ReadersSummaryView | None:
    """Sum up what readers say of a study.

    Args:
        session: the caller's transaction.
        study_id: the study.
        views: its images with the findings that are shown.

    Returns:
        The summary; None if no feedback in force contradicts a finding that is shown.
    """
    entries = [one for one in feedback.history(session, study_id) if one.superseded_by is None]
    word = readers_summary(
        {
            (finding.instance_id, finding.frame, finding.bundle): (Assessment(finding.assessment), finding.region)
            for view in views
            for finding in view.findings
        },
        [one.entry for one in entries if one.entry.verdict != Verdict.WITHDRAWN],
    )
    if word is None:
        return None
    names = {one.entry.key_id: one.reader for one in entries}
    readers = [names[key] for key in word.readers]
    return ReadersSummaryView(
        reading=word.reading, words=_words(word, readers), region=word.region,
        severity=Extent(word.severity) if word.severity else None, readers=readers, answered_at=word.answered_at,
        unanswered=word.unanswered,
    )  # fmt: skip


def _words(word: ReadersSummary, readers: Sequence[str]) -> str:
    """As "No fracture, elbow, says dr-ada."."""
    region = f", {word.region}" if word.region else ""
    extent = f", extent {word.severity}" if word.severity and word.severity != Extent.NONE else ""
    left = f"{word.unanswered} positive finding{'' if word.unanswered == 1 else 's'}"
    what = {
        ReadersAssessment.FRACTURE: f"Fracture{region}{extent}",
        ReadersAssessment.NO_FRACTURE: f"No fracture{region}",
        ReadersAssessment.UNSURE: f"Unsure whether there is a fracture{region}",
        ReadersAssessment.DIFFER: f"Readers differ on whether there is a fracture{region}",
        ReadersAssessment.OPEN: f"No fracture on what has feedback{region}",
    }[word.reading]
    who = " and ".join(filter(None, [", ".join(readers[:-1]), readers[-1]]))
    says = "" if word.reading is ReadersAssessment.DIFFER else f", {'says' if len(readers) == 1 else 'say'} {who}"
    named = f": {who}" if word.reading is ReadersAssessment.DIFFER else ""
    return f"{what}{says}{named}.{f' {left} without feedback.' if word.unanswered else ''}"
