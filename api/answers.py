"""POST and GET /studies/{id}/answers: what readers say of the model's findings."""

from datetime import datetime
from typing import Annotated
from urllib.parse import parse_qsl
from uuid import UUID, uuid4

from fastapi import APIRouter, Header, HTTPException, Query
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from sqlalchemy.orm import Session

from api.dependencies import PRINTABLE, Desk, Parts, PartsDep, Radiologist
from api.filters import chosen_filter
from shared.answers import OF_STUDY, Entry, Fracture, Mark, Verdict
from shared.errors import BadRequest, NotFound
from shared.findings import RESEARCH_USE, Severity
from shared.repository import answers, reading
from shared.repository.access import Key
from shared.repository.answers import Said
from shared.repository.bundles import active_bundle
from shared.repository.reading import InstanceView

router = APIRouter(tags=["answer"])
LONGEST_WORDS, MOST_MARKS = 4_000, 50
Share = Annotated[float, Field(ge=0, le=1)]
Worklist = Annotated[
    str, Query(max_length=2000, description="the worklist's query that `next_study` keeps to, e.g. assessment=positive")
]
Word = Annotated[str, StringConstraints(max_length=32, pattern=r"^[a-z][a-z -]*$")]


class MarkView(BaseModel):
    """A box on a frame, in shares of its width and height from the top left corner."""

    image: int = Field(ge=1, description="number of the image in its study, 1 for the first")
    frame: int = Field(1, ge=1)
    x: Share
    y: Share
    width: Annotated[float, Field(gt=0, le=1)]
    height: Annotated[float, Field(gt=0, le=1)]

    @model_validator(mode="after")
    def _inside(self) -> "MarkView":
        if self.x + self.width > 1.0003 or self.y + self.height > 1.0003:
            raise ValueError("the mark does not lie in the image: x + width and y + height are at most 1")
        return self


class NewAnswer(BaseModel):
    """What a reader says: of one finding (image, frame and bundle), or that the whole study is done or reopened."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {
                "verdict": "disagree", "image": 1, "frame": 1, "bundle": "second-look", "fracture": "yes",
                "region": "elbow", "text": "fat pad sign", "marks": [
                    {"image": 1, "frame": 1, "x": 0.41, "y": 0.37, "width": 0.12, "height": 0.08}
                ],
            }
        },
    )  # fmt: skip

    verdict: Verdict
    image: int | None = Field(None, ge=1, le=100_000)
    frame: int | None = Field(None, ge=1, le=100_000)
    bundle: str | None = Field(None, max_length=64, pattern=PRINTABLE, description="whose finding the reader saw")
    older_bundle: bool = Field(False, description="answer that bundle's finding even where a newer one is shown now")
    fracture: Fracture | None = Field(None, description="what the reader sees instead")
    region: Word | None = None
    severity: Severity | None = None
    marks: list[MarkView] = Field([], max_length=MOST_MARKS)
    text: str = Field("", max_length=LONGEST_WORDS, description="free text; kept encrypted, for it may name a patient")
    model_shown: bool = Field(True, description="whether the model's words were on the screen")
    supersedes: UUID | None = Field(None, description="the entry that this one corrects")
    images: int | None = Field(None, ge=0, description="with done: how many images the reader was shown")

    @model_validator(mode="after")
    def _whole(self) -> "NewAnswer":
        about_finding = None not in (self.image, self.frame, self.bundle)
        if (self.verdict in OF_STUDY) == about_finding or (not about_finding and (self.image or self.frame)):
            raise ValueError("give image, frame and bundle of a finding, or verdict done or reopened without them")
        if self.verdict is Verdict.SUPPLEMENT and not (
            self.text.strip() or self.marks or self.fracture or self.region or self.severity
        ):
            raise ValueError("a supplement says something: give text, a mark, or what the model leaves out")
        return self


class AnswerView(BaseModel):
    """One entry of the ledger."""

    id: UUID
    number: int
    answered_at: datetime
    reader: str = Field(description="the name of the key that answered")
    mine: bool
    verdict: Verdict
    image: int | None
    frame: int | None
    bundle: str | None
    fracture: Fracture | None
    region: str | None
    severity: Severity | None
    marks: list[MarkView]
    text: str
    model_shown: bool
    supersedes: UUID | None
    superseded_by: UUID | None
    hash: str = Field(description="SHA-256 over this entry and the one before it in the site's ledger")


class AnswersView(BaseModel):
    """All that readers said of a study, oldest first."""

    entries: list[AnswerView]
    read_at: datetime | None = Field(description="when the study was done, unless it was reopened since")
    regions: list[str] = Field(description="words to choose from")
    next_study: str | None = Field(None, description="page of the study to read next; null when none waits")
    notice: str = RESEARCH_USE


@router.get("/studies/{study_id}/answers")
def history(study_id: UUID, parts: PartsDep, key: Radiologist, desk: Desk, worklist: Worklist = "") -> AnswersView:
    """What readers answered, who and when; entries are never changed, only superseded."""
    with parts.database.transaction() as session:
        return answers_view(session, parts, key, study_id, desk=desk, worklist=worklist)


@router.post("/studies/{study_id}/answers", status_code=201)
def answer(
    study_id: UUID,
    said: NewAnswer,
    parts: PartsDep,
    key: Radiologist,
    desk: Desk,
    idempotency_key: Annotated[
        str | None,
        Header(max_length=128, pattern=r"^[!-~]+$", description="made by the client; a retry sends it again"),
    ] = None,
    worklist: Worklist = "",
) -> AnswersView:
    """Write one entry; sent again with its Idempotency-Key, it is written once.

    A verdict that repeats your standing one on the finding, without new words or marks, is not written again.
    409 if the finding is not the one that is shown now (send older_bundle to answer it all the same), if a study
    that is done has other images by now than the reader was shown or is held by somebody else (claim it with take_over
    first), or if the Idempotency-Key came with another answer
    before.
    """
    request_id = idempotency_key or str(uuid4())
    with parts.database.transaction() as session:
        if said.verdict is Verdict.DONE:
            answers.hold(session, key.site_id, study_id)  # no image may come between the look and the entry
        reading.study(session, key.site_id, study_id)
        views = reading.instances(session, study_id)
        entry = answers.of_request(session, key.site_id, request_id)
        if entry is None:
            if said.verdict is Verdict.DONE and said.images not in (None, len(views)):
                raise HTTPException(
                    409, f"This study has {len(views)} images by now; load the page again and look at all"
                )
            entry = answers.append(session, key, request_id, _said(session, parts, study_id, said, views), desk)
        written = entry.request_id == request_id  # else it is the reader's standing verdict, which says the same
        if written and (entry.key_id != key.id or not _same(parts, entry, study_id, said, views)):
            raise HTTPException(409, "This Idempotency-Key came with another answer before; make a new one")
        return answers_view(session, parts, key, study_id, desk=desk, worklist=worklist)


def answers_view(
    session: Session, parts: Parts, key: Key, study_id: UUID, *, words: bool = True, desk: str = "", worklist: str = ""
) -> AnswersView:
    """What GET /studies/{id}/answers answers; the report shows the same. Raises NotFound.

    words: whether to open the free texts, which leaves an audit row; without, all are empty.
    desk, worklist: which login asks, and the query of the list that it came with, for the study to read next.
    """
    row = reading.study(session, key.site_id, study_id)
    views = reading.instances(session, study_id)
    numbers = {view.row.id: number for number, view in enumerate(views, start=1)}
    told = answers.history(session, study_id)
    if words and any(one.entry.words for one in told):
        answers.words_were_read(session, key, study_id)
    bundle = active_bundle(session)
    following = answers.next_unread(session, key, study_id, desk, _filter(worklist))
    return AnswersView(
        entries=[_view(parts, key, one, numbers, words=words) for one in told],
        read_at=row.read_at,
        regions=list(bundle.manifest.get("regions", [])) if bundle else [],
        next_study=f"/view/{following}" if following else None,
    )


def _filter(worklist: str) -> reading.WorklistFilter:
    """The filters of a worklist's query; of a search none. Raises BadRequest for unknown words."""
    given = dict(parse_qsl(worklist.removeprefix("?")))
    return chosen_filter({} if "search" in given else given)


def _view(parts: Parts, key: Key, one: answers.Answered, numbers: dict[UUID, int], *, words: bool) -> AnswerView:
    entry = one.entry
    shown = {name: getattr(entry, name) for name in AnswerView.model_fields if hasattr(entry, name)}
    return AnswerView.model_validate(
        shown | {
            "reader": one.reader, "mine": entry.key_id == key.id, "superseded_by": one.superseded_by, "hash": one.hash,
            "image": numbers.get(entry.instance_id) if entry.instance_id else None,
            "text": _words(parts, entry) if words else "",
            "marks": [mark | {"image": numbers[UUID(mark["instance"])]} for mark in entry.marks],
        }
    )  # fmt: skip


def _words(parts: Parts, entry: Entry) -> str:
    return str(parts.vault.open(bytes(entry.words))) if entry.words else ""


def _said(session: Session, parts: Parts, study_id: UUID, said: NewAnswer, views: list[InstanceView]) -> Said:
    """The answer with our ids in place of image numbers. Raises BadRequest, NotFound, HTTPException 409."""
    instance = _instance(views, said.image) if said.image else None
    if instance and not any(f.frame == said.frame and f.bundle == said.bundle for f in instance.findings):
        shown = next((f.bundle for f in instance.findings if f.frame == said.frame), None)
        if shown is None:
            raise NotFound(f"image {said.image} frame {said.frame} has no finding yet")
        older = said.older_bundle and answers.has_finding(session, instance.row.id, said.frame or 1, said.bundle or "")
        if not older:
            raise HTTPException(
                409, f"Meanwhile the finding of {shown} is shown here, not that of {said.bundle}. Load the page again."
            )
    marks = _marks(said, views)
    text = said.text.strip()
    return Said(
        study_id=study_id, verdict=said.verdict, instance_id=instance.row.id if instance else None, frame=said.frame,
        bundle=said.bundle, fracture=said.fracture, region=said.region, severity=said.severity, marks=marks,
        words=parts.vault.seal(text) if text else None, model_shown=said.model_shown, supersedes=said.supersedes,
    )  # fmt: skip


def _marks(said: NewAnswer, views: list[InstanceView]) -> list[Mark]:
    marks = []
    for mark in said.marks:
        row = _instance(views, mark.image).row
        if mark.frame > row.frames:
            raise BadRequest(f"image {mark.image} has {row.frames} frame(s); a mark is on frame {mark.frame}")
        marks.append(Mark(row.id, mark.frame, mark.x, mark.y, mark.width, mark.height))
    return marks


def _instance(views: list[InstanceView], number: int) -> InstanceView:
    if number > len(views):
        raise NotFound(f"the study has {len(views)} image(s); there is no image {number}")
    return views[number - 1]


def _same(parts: Parts, entry: Entry, study_id: UUID, said: NewAnswer, views: list[InstanceView]) -> bool:
    """Whether the entry says what was sent; one that was written just now does."""
    instance = _instance(views, said.image).row.id if said.image else None
    sent = (study_id, said.verdict, instance, said.frame, said.bundle, said.fracture, said.region, said.severity)
    kept = (
        entry.study_id, entry.verdict, entry.instance_id, entry.frame, entry.bundle, entry.fracture, entry.region,
        entry.severity,
    )  # fmt: skip
    marks = [mark.stored() for mark in _marks(said, views)]
    return sent == kept and marks == entry.marks and _words(parts, entry) == said.text.strip()
