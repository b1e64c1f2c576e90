"""What readers say of a study once they contradict its model: one word, and who says it."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from pydantic import BaseModel, Field
from sqlalchemy.orm import Session

from shared.answers import ReadersWord, Reading, Verdict, readers_word
from shared.findings import Assessment, Severity
from shared.repository import answers
from shared.repository.reading import InstanceView


class ReaderView(BaseModel):
    """What readers say of a study. It stands before the model's word wherever the study is summed up."""

    reading: Reading = Field(
        description="the gravest that readers see; `open`: no fracture so far, but a positive finding is not answered"
    )
    words: str = Field(description="the same in words, with who says it")
    region: str
    severity: Severity | None = Field(description="extent, as a reader chose it")
    readers: list[str] = Field(description="names of the keys whose answers this rests on")
    answered_at: datetime = Field(description="the last of these answers")
    unanswered: int = Field(description="positive findings that no reader has answered")


def reader_view(session: Session, study_id: UUID, views: Sequence[InstanceView]) -> ReaderView | None:
    """What readers say of a study, or None while no standing answer contradicts a finding that is shown.

    views: the study's images with the findings that are shown.
    """
    told = [one for one in answers.history(session, study_id) if one.superseded_by is None]
    word = readers_word(
        {
            (finding.instance_id, finding.frame, finding.bundle): (Assessment(finding.assessment), finding.region)
            for view in views
            for finding in view.findings
        },
        [one.entry for one in told if one.entry.verdict != Verdict.WITHDRAWN],
    )
    if word is None:
        return None
    names = {one.entry.key_id: one.reader for one in told}
    readers = [names[key] for key in word.readers]
    return ReaderView(
        reading=word.reading, words=_words(word, readers), region=word.region,
        severity=Severity(word.severity) if word.severity else None, readers=readers, answered_at=word.answered_at,
        unanswered=word.unanswered,
    )  # fmt: skip


def _words(word: ReadersWord, readers: Sequence[str]) -> str:
    """As "No fracture, elbow, says dr-ada."."""
    region = f", {word.region}" if word.region else ""
    extent = f", extent {word.severity}" if word.severity and word.severity != Severity.NONE else ""
    left = f"{word.unanswered} positive finding{'' if word.unanswered == 1 else 's'}"
    what = {
        Reading.FRACTURE: f"Fracture{region}{extent}",
        Reading.NO_FRACTURE: f"No fracture{region}",
        Reading.UNSURE: f"Unsure whether there is a fracture{region}",
        Reading.DIFFER: f"Readers differ on whether there is a fracture{region}",
        Reading.OPEN: f"No fracture on what was answered{region}",
    }[word.reading]
    who = " and ".join(filter(None, [", ".join(readers[:-1]), readers[-1]]))
    says = "" if word.reading is Reading.DIFFER else f", {'says' if len(readers) == 1 else 'say'} {who}"
    named = f": {who}" if word.reading is Reading.DIFFER else ""
    return f"{what}{says}{named}.{f' {left} not answered.' if word.unanswered else ''}"
