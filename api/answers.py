"""POST and GET /studies/{id}/answers: what readers say of the model's findings."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Annotated, NoReturn
from urllib.parse import parse_qsl
from uuid import UUID, uuid4

from fastapi import APIRouter, Header, Query
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from sqlalchemy.orm import Session

from api.dependencies import PRINTABLE, Desk, Parts, PartsDep, Radiologist
from api.filters import chosen_filter
from api.readers import ReaderView, reader_view
from shared.answers import OF_STUDY, Contradiction, Entry, Fracture, Mark, Verdict, contradictions
from shared.errors import BadRequest, NotFound, NotNow
from shared.findings import RESEARCH_USE, Assessment, Severity
from shared.repository import answers, reading
from shared.repository.access import Key
from shared.repository.answers import Said
from shared.repository.bundles import active_bundle
from shared.repository.reading import InstanceView
from shared.repository.reading_room import Claimed, HeldBy
from shared.tables import FindingRow

router = APIRouter(tags=["answer"])
LONGEST_WORDS, MOST_MARKS = 4_000, 50
Share = Annotated[float, Field(ge=0, le=1)]
Worklist = Annotated[
    str, Query(max_length=2000, description="the worklist's query that `next_study` keeps to, e.g. assessment=positive")
]
RequestId = Annotated[
    str | None, Header(max_length=128, pattern=r"^[!-~]+$", description="made by the client; a retry sends it again")
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


class FindingRef(BaseModel):
    """Which finding: of one frame, by one model bundle."""

    image: int = Field(ge=1, le=100_000, description="number of the image in its study, 1 for the first")
    frame: int = Field(1, ge=1, le=100_000)
    bundle: str = Field(max_length=64, pattern=PRINTABLE)


class Unanswered(StrEnum):
    """What a reader who is done says of positive findings that they have not answered."""

    AGREE = "agree"  # with all of them; an entry for each
    LEAVE = "leave"  # the study is read, and they stay without an answer


class Choice(BaseModel):
    """A reader's choice about findings that they were asked about; it holds for these findings only."""

    model_config = ConfigDict(extra="forbid")

    choice: Unanswered
    findings: list[FindingRef] = Field(max_length=100_000)


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

    verdict: Annotated[Verdict, Field(description="`seen` is written by POST /alerts/{id}/seen")]
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
    unanswered: Choice | None = Field(
        None, description="with done: what to do about positive findings that you have not answered"
    )
    contradiction_meant: bool = Field(False, description="store an answer whose parts contradict each other as it is")

    @model_validator(mode="after")
    def _whole(self) -> "NewAnswer":
        if self.verdict is Verdict.SEEN:
            raise ValueError("say that you have seen a revised finding by POST /alerts/{id}/seen")
        if self.unanswered is not None and self.verdict is not Verdict.DONE:
            raise ValueError("`unanswered` goes with the verdict done")
        if self.verdict is Verdict.WITHDRAWN and self.supersedes is None:
            raise ValueError("a withdrawal says by `supersedes` which answer it takes back")
        if self.verdict is Verdict.WITHDRAWN and (self.text.strip() or self.marks or self.fracture):
            raise ValueError("a withdrawal says nothing of its own; correct the answer instead")
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
    readers: ReaderView | None = Field(None, description="what they say together, once one contradicts the model")
    next_study: str | None = Field(None, description="page of the study to read next; null when none waits")
    notice: str = RESEARCH_USE


class UndoneView(BaseModel):
    """A study that is back on the list."""

    url: str = Field(description="its page")
    mine: bool = Field(description="whether you hold it, as before")
    reader: str = Field(description="the name of the key that has taken it meanwhile; empty: nobody has")
    same_key: bool = Field(description="that is another login of your own key")
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
    idempotency_key: RequestId = None,
    worklist: Worklist = "",
) -> AnswersView:
    """Write one entry; sent again with its Idempotency-Key, it is written once.

    A verdict that repeats your standing one on the finding, without new words or marks, is not written again.

    409 with a `code`: `positive-unanswered`, a done study has positive findings without an answer of yours, which
    `findings` lists: answer them, or send them with your choice in `unanswered`. `contradictory`: the parts of the
    answer contradict each other, as `contradictions` says; correct it, or send it with contradiction_meant.
    `newer-finding`: another finding is shown by now; look at it, or send older_bundle. `newer-images`: a done study
    has other images by now than you were shown. `held`: somebody else reads the study; claim it with take_over first.
    `request-reused`: the Idempotency-Key came with another answer before.
    """
    request_id = idempotency_key or str(uuid4())
    with parts.database.transaction() as session:
        if said.verdict is Verdict.DONE:
            answers.hold(session, key.site_id, study_id)  # no image or finding may come between the look and the entry
        reading.study(session, key.site_id, study_id)
        views = reading.instances(session, study_id)
        entry = answers.of_request(session, key.site_id, request_id)
        if entry is None and said.verdict is Verdict.DONE:
            entry = _done(session, parts, key, request_id, study_id, said, views, desk)
        elif entry is None:
            entry = answers.append(session, key, request_id, _said(session, parts, study_id, said, views), desk)
        written = entry.request_id == request_id  # else it is the reader's standing entry, which says the same
        if written and (entry.key_id != key.id or not _same(parts, entry, study_id, said, views)):
            raise NotNow("This Idempotency-Key came with another answer before; make a new one", "request-reused")
        return answers_view(session, parts, key, study_id, desk=desk, worklist=worklist)


@router.post("/studies/{study_id}/answers/{entry_id}/undo")
def undo(
    study_id: UUID, entry_id: UUID, parts: PartsDep, key: Radiologist, desk: Desk, idempotency_key: RequestId = None
) -> UndoneView:
    """Take your `done` back: the study is on the list as before, claim included; what it agreed with is open again.

    Sent again with its Idempotency-Key, it is done once. 404 if that entry is no `done` of yours on this study; 409
    with code `undone-already` or `read-by-another` if it does not stand any more.
    """
    lease = timedelta(seconds=parts.settings.claim_lease_s)
    with parts.database.transaction() as session:
        reading.study(session, key.site_id, study_id)
        undone = answers.undo_done(session, key, study_id, entry_id, idempotency_key or str(uuid4()), desk, lease)
    holder = undone.holder
    return UndoneView(
        url=f"/view/{study_id}", mine=isinstance(holder, Claimed),
        reader=holder.name if isinstance(holder, HeldBy) else "",
        same_key=isinstance(holder, HeldBy) and holder.same_key,
    )  # fmt: skip


def _done(
    session: Session, parts: Parts, key: Key, request_id: str, study_id: UUID, said: NewAnswer,
    views: list[InstanceView], desk: str,
) -> Entry:  # fmt: skip
    """Write that a study is done, and what its reader agrees with at that. Raises NotNow for what must be asked."""
    if said.images not in (None, len(views)):
        raise NotNow(f"This study has {len(views)} images by now; load the page again and look at all", "newer-images")
    left = _unanswered(session, key, study_id, views)
    chosen = {(one.image, one.frame, one.bundle) for one in said.unanswered.findings} if said.unanswered else set()
    if any((number, one.frame, one.bundle) not in chosen for number, one in left):
        _ask(left)
    if said.unanswered and said.unanswered.choice is Unanswered.AGREE:
        for _, one in left:
            agreed = Said(study_id, Verdict.AGREE, one.instance_id, one.frame, one.bundle, model_shown=said.model_shown)
            its_request = answers.agree_request(request_id, one.instance_id, one.frame, one.bundle)
            answers.append(session, key, its_request, agreed)
    return answers.append(session, key, request_id, _said(session, parts, study_id, said, views), desk)


def _unanswered(
    session: Session, key: Key, study_id: UUID, views: Sequence[InstanceView]
) -> list[tuple[int, FindingRow]]:
    """Number of the image and finding, of each positive finding that is shown and that this reader has not answered."""
    said = answers.answered_by(session, key, study_id)
    return [
        (number, finding)
        for number, view in enumerate(views, start=1)
        for finding in view.findings
        if finding.assessment == Assessment.POSITIVE
        and (finding.instance_id, finding.frame, finding.bundle) not in said
    ]


def _ask(left: Sequence[tuple[int, FindingRow]]) -> NoReturn:
    images = sorted({number for number, _ in left})
    one = len(images) == 1
    raise NotNow(
        f"{len(images)} positive image{'' if one else 's'} of this study {'is' if one else 'are'} not answered: "
        f"image{'' if one else 's'} {', '.join(map(str, images))}",
        "positive-unanswered",
        findings=[
            {"image": number, "frame": finding.frame, "bundle": finding.bundle, "region": finding.region}
            for number, finding in left
        ],
    )


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
        readers=reader_view(session, study_id, views),
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
    """The answer with our ids in place of image numbers. Raises BadRequest, NotFound, NotNow."""
    instance = _instance(views, said.image) if said.image else None
    if instance and not any(f.frame == said.frame and f.bundle == said.bundle for f in instance.findings):
        shown = next((f.bundle for f in instance.findings if f.frame == said.frame), None)
        if shown is None:
            raise NotFound(f"image {said.image} frame {said.frame} has no finding yet")
        older = said.older_bundle and answers.has_finding(session, instance.row.id, said.frame or 1, said.bundle or "")
        if not older:
            raise NotNow(
                f"Meanwhile the finding of {shown} is shown here, not that of {said.bundle}. Load the page again.",
                "newer-finding",
            )
    marks = _marks(said, views)
    text = said.text.strip()
    if instance and not said.contradiction_meant:
        assessment = answers.assessment_of(session, instance.row.id, said.frame or 1, said.bundle or "")
        _object(
            contradictions(
                assessment, said.verdict, said.fracture, said.severity, len(marks), more=bool(text or said.region)
            )
        )
    return Said(
        study_id=study_id, verdict=said.verdict, instance_id=instance.row.id if instance else None, frame=said.frame,
        bundle=said.bundle, fracture=said.fracture, region=said.region, severity=said.severity, marks=marks,
        words=parts.vault.seal(text) if text else None, model_shown=said.model_shown, supersedes=said.supersedes,
    )  # fmt: skip


OBJECTIONS = {
    Contradiction.BOX_WITHOUT_FRACTURE: "It says that there is no fracture, and a box is drawn.",
    Contradiction.EXTENT_WITHOUT_FRACTURE: "It says that there is no fracture, and gives it an extent.",
    Contradiction.FRACTURE_WITHOUT_EXTENT: "It says that there is a fracture, of the extent “none”.",
    Contradiction.AGREES_WITH_THE_OPPOSITE: "It agrees with the model, and says the opposite.",
    Contradiction.DISAGREES_WITH_THE_SAME: "It disagrees with the model, and says the same.",
}


def _object(found: Sequence[Contradiction]) -> None:
    if found:
        words = " ".join(OBJECTIONS[one] for one in found)
        raise NotNow(f"This answer contradicts itself. {words}", "contradictory", contradictions=list(found))


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
