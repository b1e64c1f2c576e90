"""POST and GET /api/v1/studies/{id}/feedback: what readers say of the model's findings."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Annotated, NoReturn
from urllib.parse import parse_qsl
from uuid import UUID, uuid4

from fastapi import Header, Path, Query
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from sqlalchemy.orm import Session

from api.dependencies import PRINTABLE, LoginId, NamedStudy, Parts, PartsDep, Radiologist, SessionDep
from api.readers_summary import ReadersSummaryView, readers_summary_view
from api.requests import API, Router
from api.schemas import RowView
from api.worklist.filters import chosen_filter
from shared.db.tables import FindingRow
from shared.domain.feedback import OF_STUDY, Contradiction, Entry, Fracture, Mark, Verdict, contradictions
from shared.domain.findings import RESEARCH_USE, Assessment, Extent, gravity
from shared.errors import BadRequest, InvalidState, NotFound
from shared.queries import feedback, studies, worklist
from shared.queries.access import Key
from shared.queries.feedback import FeedbackDraft
from shared.queries.models import active_bundle
from shared.queries.reading_locks import AcquiredLock, LockHolder
from shared.queries.studies import InstanceView

router = Router(prefix=API, tags=["feedback"])
MAX_TEXT_LENGTH, MAX_MARKS = 4_000, 50
MAX_UPCOMING, MAX_PICTURES = 2, 4  # studies that a viewer loads ahead, and pictures of each
Share = Annotated[float, Field(ge=0, le=1)]
Worklist = Annotated[
    str, Query(max_length=2000, description="the worklist's query that `next_study` keeps to, e.g. assessment=positive")
]
IdempotencyKey = Annotated[
    str | None, Header(max_length=128, pattern=r"^[!-~]+$", description="made by the client; a retry sends it again")
]
Word = Annotated[str, StringConstraints(max_length=32, pattern=r"^[a-z][a-z -]*$")]


class MarkView(BaseModel):
    """A box on a frame, in shares of its width and height from the top left corner."""

    image: int = Field(ge=1, le=100_000, description="number of the image in its study, 1 for the first")
    frame: int = Field(1, ge=1, le=100_000, description="number of the frame in its image, 1 for the first")
    x: Share = Field(description="left edge, as a share of the width")
    y: Share = Field(description="top edge, as a share of the height")
    width: Annotated[float, Field(gt=0, le=1)] = Field(description="as a share of the image's width")
    height: Annotated[float, Field(gt=0, le=1)] = Field(description="as a share of the image's height")

    @model_validator(mode="after")
    def _inside(self) -> "MarkView":
        if self.x + self.width > 1.0003 or self.y + self.height > 1.0003:
            raise ValueError("the mark does not lie in the image: x + width and y + height are at most 1")
        return self


class FindingRef(BaseModel):
    """Which finding: of one frame, by one model bundle."""

    image: int = Field(ge=1, le=100_000, description="number of the image in its study, 1 for the first")
    frame: int = Field(1, ge=1, le=100_000, description="number of the frame in its image, 1 for the first")
    bundle: str = Field(max_length=64, pattern=PRINTABLE, description="name of the model bundle")


class OpenFindingsAction(StrEnum):
    """What a reader who is done says of positive findings without feedback of theirs."""

    AGREE = "agree"  # with all of them; an entry for each
    LEAVE = "leave"  # the study is read, and they stay without feedback


class OpenFindingsChoice(BaseModel):
    """A reader's choice about findings that they were asked about; it holds for these findings only."""

    model_config = ConfigDict(extra="forbid")

    choice: OpenFindingsAction = Field(description="a code")
    findings: list[FindingRef] = Field(max_length=100_000, description="the positive findings that it is for")


class NewFeedback(BaseModel):
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

    verdict: Annotated[Verdict, Field(description="`seen` is written by POST /api/v1/revised-findings/{id}/seen")]
    image: int | None = Field(
        None, ge=1, le=100_000, description="number of the image in its study; null: it is about the study"
    )
    frame: int | None = Field(None, ge=1, le=100_000, description="number of the frame; null: it is about the study")
    bundle: str | None = Field(None, max_length=64, pattern=PRINTABLE, description="whose finding the reader saw")
    older_bundle: bool = Field(
        False, description="give feedback on that bundle's finding even where a newer one is shown now"
    )
    fracture: Fracture | None = Field(None, description="what the reader sees instead")
    region: Word | None = Field(None, description="what you say of the region, a code; null: nothing")
    severity: Extent | None = Field(None, description="extent by annotation, a code")
    marks: list[MarkView] = Field([], max_length=MAX_MARKS, description="boxes that the reader drew")
    text: str = Field(
        "", max_length=MAX_TEXT_LENGTH, description="free text; kept encrypted, for it may name a patient"
    )
    model_shown: bool = Field(True, description="whether the model's words were on the screen")
    supersedes: UUID | None = Field(None, description="the entry that this one corrects")
    images: int | None = Field(None, ge=0, le=100_000, description="with done: how many images the reader was shown")
    unanswered: OpenFindingsChoice | None = Field(
        None, description="with done: what to do about positive findings without feedback of yours"
    )
    contradiction_meant: bool = Field(False, description="store feedback whose parts contradict each other as it is")

    @model_validator(mode="after")
    def _whole(self) -> "NewFeedback":
        if self.verdict is Verdict.SEEN:
            raise ValueError("say that you have seen a revised finding by POST /api/v1/revised-findings/{id}/seen")
        if self.unanswered is not None and self.verdict is not Verdict.DONE:
            raise ValueError("`unanswered` goes with the verdict done")
        if self.verdict is Verdict.WITHDRAWN and self.supersedes is None:
            raise ValueError("a withdrawal says by `supersedes` which entry it takes back")
        if self.verdict is Verdict.WITHDRAWN and (self.text.strip() or self.marks or self.fracture):
            raise ValueError("a withdrawal says nothing of its own; correct the entry instead")
        about_finding = None not in (self.image, self.frame, self.bundle)
        if (self.verdict in OF_STUDY) == about_finding or (not about_finding and (self.image or self.frame)):
            raise ValueError("give image, frame and bundle of a finding, or verdict done or reopened without them")
        if self.verdict is Verdict.SUPPLEMENT and not (
            self.text.strip() or self.marks or self.fracture or self.region or self.severity
        ):
            raise ValueError("a supplement says something: give text, a mark, or what the model leaves out")
        return self


class FeedbackView(RowView):
    """One entry of the feedback log."""

    id: UUID = Field(description="its id")
    number: int = Field(description="its place in the site's feedback, from 1")
    answered_at: datetime = Field(description="when the reader said so")
    reader: str = Field(description="the name of the reader's key")
    mine: bool = Field(description="it was given with your key")
    verdict: Verdict = Field(description="what the reader says of the finding, a code")
    image: int | None = Field(description="number of the image in its study; null: it is about the study")
    frame: int | None = Field(description="number of the frame; null: it is about the study")
    bundle: str | None = Field(description="whose finding it is about; null: it is about the study")
    fracture: Fracture | None = Field(description="what the reader sees: yes, no or unclear; null: not said")
    region: str | None = Field(description="what the reader says of the region, a code; null: not said")
    severity: Extent | None = Field(description="extent by annotation, a code")
    marks: list[MarkView] = Field(description="boxes that the reader drew")
    text: str = Field(description="the reader's words; empty: none")
    model_shown: bool = Field(description="whether the reader saw the model's finding before")
    supersedes: UUID | None = Field(description="id of the entry that it replaces; null: none")
    superseded_by: UUID | None = Field(description="id of the entry that replaced it; null: it is in force")
    hash: str = Field(description="SHA-256 over this entry and the one before it in the site's feedback log")


class StudyFeedbackView(BaseModel):
    """All that readers said of a study, oldest first."""

    entries: list[FeedbackView] = Field(description="all feedback on the study, the first one first")
    read_at: datetime | None = Field(description="when the study was done, unless it was reopened since")
    regions: list[str] = Field(description="words to choose from")
    readers: ReadersSummaryView | None = Field(
        None, description="what they say together, once one contradicts the model"
    )
    next_study: str | None = Field(None, description="page of the study to read next; null when none waits")
    notice: str = Field(RESEARCH_USE, description="the research use notice, in words")


class UpcomingPicture(BaseModel):
    """A picture that a study opens with."""

    preview_url: str = Field(description="path of the preview, a JPEG")
    frame_url: str | None = Field(description="path of the full-resolution frame; null: there are previews only")


class UpcomingStudy(BaseModel):
    """A study that is read next, unless somebody else takes it before."""

    url: str = Field(description="its page")
    pictures: list[UpcomingPicture] = Field(description="of its gravest images, each with its gravest frame")


class UndoView(BaseModel):
    """A study that is back on the list."""

    url: str = Field(description="its page")
    mine: bool = Field(description="whether you hold it, as before")
    reader: str = Field(description="the name of the key that has taken it meanwhile; empty: nobody has")
    same_key: bool = Field(description="that is another login of your own key")
    notice: str = Field(RESEARCH_USE, description="the research use notice, in words")


@router.get("/studies/{study_id}/feedback")
def history(
    study_id: NamedStudy,
    parts: PartsDep,
    key: Radiologist,
    session: SessionDep,
    login: LoginId,
    worklist: Worklist = "",
) -> StudyFeedbackView:
    """List readers' feedback on a study: who said what, and when. Entries are never changed, only superseded."""
    return feedback_view(session, parts, key, study_id, login=login, worklist=worklist)


@router.get("/studies/{study_id}/upcoming")
def upcoming(
    study_id: NamedStudy,
    parts: PartsDep,
    key: Radiologist,
    session: SessionDep,
    login: LoginId,
    worklist: Worklist = "",
) -> list[UpcomingStudy]:
    """List the studies that are read after this one, with what a viewer may load before they are opened.

    They are looked up when you ask, and held for nobody: whoever opens them first reads them.
    """
    studies.get(session, key.site_id, study_id)
    following = feedback.next_unread(session, key, study_id, login, _filter(worklist), MAX_UPCOMING)
    return [
        UpcomingStudy(url=f"/view/{one}", pictures=_pictures(session, one, frames=parts.settings.full_frames))
        for one in following
    ]


def _pictures(session: Session, study_id: UUID, *, frames: bool) -> list[UpcomingPicture]:
    """The gravest images' pictures, MAX_PICTURES of them."""

    def grave(finding: FindingRow) -> tuple[int, float]:
        return -gravity(Assessment(finding.assessment), finding.score), -finding.fracture_probability

    views = studies.instances(session, study_id)
    gravest = [(number, min(view.findings, key=grave)) for number, view in enumerate(views, start=1) if view.findings]
    path = f"{API}/studies/{study_id}"
    return [
        UpcomingPicture(
            preview_url=f"{path}/preview.jpg?image={number}&frame={finding.frame}",
            frame_url=f"{path}/frame?image={number}&frame={finding.frame}" if frames else None,
        )
        for number, finding in sorted(gravest, key=lambda one: grave(one[1]))[:MAX_PICTURES]
    ]


@router.post("/studies/{study_id}/feedback", status_code=201, max_body_size=2**20)
def give_feedback(
    study_id: NamedStudy,
    statement: NewFeedback,
    parts: PartsDep,
    key: Radiologist,
    session: SessionDep,
    login: LoginId,
    idempotency_key: IdempotencyKey = None,
    worklist: Worklist = "",
) -> StudyFeedbackView:
    """Write an entry. The same request again, with its Idempotency-Key, writes nothing more.

    A verdict that repeats your last one on the finding, without new words or marks, is not written again.

    409 with a `code`: `positive-unanswered`, a done study has positive findings without feedback of yours, which
    `findings` lists: give feedback on them, or send them with your choice in `unanswered`. `contradictory`: the parts
    of the feedback contradict each other, as `contradictions` says; correct it, or send it with contradiction_meant.
    `newer-finding`: another finding is shown by now; look at it, or send older_bundle. `newer-images`: a done study
    has other images by now than you were shown. `held`: somebody else reads the study; lock it with take_over first.
    `request-reused`: the Idempotency-Key came with other feedback before.
    """
    request_id = idempotency_key or str(uuid4())
    if statement.verdict is Verdict.DONE:
        feedback.lock_study(session, key.site_id, study_id)  # no image or finding may come before the entry
    studies.get(session, key.site_id, study_id)
    views = studies.instances(session, study_id)
    entry = feedback.entry_of_request(session, key.site_id, request_id)
    if entry is None and statement.verdict is Verdict.DONE:
        entry = _append_done(session, parts, key, request_id, study_id, statement, views, login)
    elif entry is None:
        entry = feedback.append_entry(
            session, key, request_id, _feedback_draft(session, parts, study_id, statement, views), login
        )
    written = entry.request_id == request_id  # else it is the reader's standing entry, which says the same
    if written and (entry.key_id != key.id or not _is_same_feedback(parts, entry, study_id, statement, views)):
        raise InvalidState("This Idempotency-Key came with other feedback before; make a new one", "request-reused")
    return feedback_view(session, parts, key, study_id, login=login, worklist=worklist)


@router.post("/studies/{study_id}/feedback/{entry_id}/undo")
def undo(
    study_id: NamedStudy,
    entry_id: Annotated[UUID, Path(description="of the entry `done`")],
    parts: PartsDep,
    key: Radiologist,
    session: SessionDep,
    login: LoginId,
    idempotency_key: IdempotencyKey = None,
) -> UndoView:
    """Take your `done` back: the study is on the list as before, lock included; what it agreed with is open again.

    The same request again, with its Idempotency-Key, changes nothing more. 404 if that entry is no `done` of yours on
    this study; 409 with code `undone-already` or `read-by-another` if it is not in force any more.
    """
    lease = timedelta(seconds=parts.settings.reading_lock_s)
    studies.get(session, key.site_id, study_id)
    undone = feedback.undo_done(session, key, study_id, entry_id, idempotency_key or str(uuid4()), login, lease)
    holder = undone.holder
    return UndoView(
        url=f"/view/{study_id}", mine=isinstance(holder, AcquiredLock),
        reader=holder.name if isinstance(holder, LockHolder) else "",
        same_key=isinstance(holder, LockHolder) and holder.same_key,
    )  # fmt: skip


def _append_done(
    session: Session, parts: Parts, key: Key, request_id: str, study_id: UUID, statement: NewFeedback,
    views: list[InstanceView], login: str,
) -> Entry:  # fmt: skip
    """Write that a study is done, and what its reader agrees with at that.

    Raises InvalidState for what must be asked.
    """
    if statement.images not in (None, len(views)):
        raise InvalidState(
            f"This study has {len(views)} images by now; load the page again and look at all", "newer-images"
        )
    left = _unanswered_findings(session, key, study_id, views)
    chosen = (
        {(one.image, one.frame, one.bundle) for one in statement.unanswered.findings} if statement.unanswered else set()
    )
    if any((number, one.frame, one.bundle) not in chosen for number, one in left):
        _raise_unanswered(left)
    if statement.unanswered and statement.unanswered.choice is OpenFindingsAction.AGREE:
        for _, one in left:
            agreed = FeedbackDraft(
                study_id, Verdict.AGREE, one.instance_id, one.frame, one.bundle, model_shown=statement.model_shown
            )
            its_request = feedback.agreement_request_id(request_id, one.instance_id, one.frame, one.bundle)
            feedback.append_entry(session, key, its_request, agreed)
    return feedback.append_entry(
        session, key, request_id, _feedback_draft(session, parts, study_id, statement, views), login
    )


def _unanswered_findings(
    session: Session, key: Key, study_id: UUID, views: Sequence[InstanceView]
) -> list[tuple[int, FindingRow]]:
    """Number of the image and finding, of each positive finding that is shown and without feedback of this reader."""
    answered = feedback.findings_with_feedback_by(session, key, study_id)
    return [
        (number, finding)
        for number, view in enumerate(views, start=1)
        for finding in view.findings
        if finding.assessment == Assessment.POSITIVE
        and (finding.instance_id, finding.frame, finding.bundle) not in answered
    ]


def _raise_unanswered(left: Sequence[tuple[int, FindingRow]]) -> NoReturn:
    images = sorted({number for number, _ in left})
    one = len(images) == 1
    raise InvalidState(
        f"{len(images)} positive image{'' if one else 's'} of this study {'has' if one else 'have'} no feedback: "
        f"image{'' if one else 's'} {', '.join(map(str, images))}",
        "positive-unanswered",
        findings=[
            {"image": number, "frame": finding.frame, "bundle": finding.bundle, "region": finding.region}
            for number, finding in left
        ],
    )


def feedback_view(
    session: Session, parts: Parts, key: Key, study_id: UUID, *, words: bool = True, login: str = "", worklist: str = ""
) -> StudyFeedbackView:
    """Build the response of GET /api/v1/studies/{id}/feedback, which the report uses too.

    Args:
        session: the caller's transaction.
        parts: of this application.
        key: of the reader.
        study_id: the study.
        words: whether to decrypt free texts, which leaves an audit row; False: all are empty.
        login: the login of the reader's key; "" for a program.
        worklist: query of the list that the reader came from, for the study to read next.

    Returns:
        The entries, and what readers say together.

    Raises:
        NotFound: there is no such study.
        BadRequest: `worklist` has unknown filters.
    """
    row = studies.get(session, key.site_id, study_id)
    views = studies.instances(session, study_id)
    numbers = {view.row.id: number for number, view in enumerate(views, start=1)}
    entries = feedback.history(session, study_id)
    if words and any(one.entry.words for one in entries):
        feedback.record_words_read(session, key, study_id)
    bundle = active_bundle(session)
    following = feedback.next_unread(session, key, study_id, login, _filter(worklist))
    return StudyFeedbackView(
        entries=[_view(parts, key, one, numbers, words=words) for one in entries],
        read_at=row.read_at,
        regions=list(bundle.manifest.get("regions", [])) if bundle else [],
        readers=readers_summary_view(session, study_id, views),
        next_study=f"/view/{following[0]}" if following else None,
    )


def _filter(worklist: str) -> worklist.WorklistFilter:
    """The filters of a worklist's query; of a search none. Raises BadRequest for unknown words."""
    given = dict(parse_qsl(worklist.removeprefix("?")))
    return chosen_filter({} if "search" in given else given)


def _view(parts: Parts, key: Key, one: feedback.HistoryEntry, numbers: dict[UUID, int], *, words: bool) -> FeedbackView:
    entry = one.entry
    return FeedbackView.of_row(
        entry,
        reader=one.reader,
        mine=entry.key_id == key.id,
        superseded_by=one.superseded_by,
        hash=one.hash,
        image=numbers.get(entry.instance_id) if entry.instance_id else None,
        text=_decrypted_text(parts, entry) if words else "",
        marks=[mark | {"image": numbers[UUID(mark["instance"])]} for mark in entry.marks],
    )


def _decrypted_text(parts: Parts, entry: Entry) -> str:
    return parts.vault.text(entry.words)


def _feedback_draft(
    session: Session, parts: Parts, study_id: UUID, statement: NewFeedback, views: list[InstanceView]
) -> FeedbackDraft:
    """The feedback with our ids in place of image numbers. Raises BadRequest, NotFound, InvalidState."""
    instance = _instance_by_number(views, statement.image) if statement.image else None
    if instance and not any(f.frame == statement.frame and f.bundle == statement.bundle for f in instance.findings):
        shown = next((f.bundle for f in instance.findings if f.frame == statement.frame), None)
        if shown is None:
            raise NotFound(f"image {statement.image} frame {statement.frame} has no finding yet")
        older = statement.older_bundle and feedback.has_finding(
            session, instance.row.id, statement.frame or 1, statement.bundle or ""
        )
        if not older:
            raise InvalidState(
                f"Meanwhile the finding of {shown} is shown here, not that of {statement.bundle}. Load the page again.",
                "newer-finding",
            )
    marks = _marks(statement, views)
    text = statement.text.strip()
    if instance and not statement.contradiction_meant:
        assessment = feedback.assessment_of(session, instance.row.id, statement.frame or 1, statement.bundle or "")
        _raise_contradiction(
            contradictions(
                assessment,
                statement.verdict,
                statement.fracture,
                statement.severity,
                len(marks),
                more=bool(text or statement.region),
            )
        )
    return FeedbackDraft(
        study_id=study_id, verdict=statement.verdict, instance_id=instance.row.id if instance else None,
        frame=statement.frame, bundle=statement.bundle, fracture=statement.fracture, region=statement.region,
        severity=statement.severity, marks=marks, words=parts.vault.seal(text) if text else None,
        model_shown=statement.model_shown, supersedes=statement.supersedes,
    )  # fmt: skip


OBJECTIONS = {
    Contradiction.BOX_WITHOUT_FRACTURE: "It says that there is no fracture, and a box is drawn.",
    Contradiction.EXTENT_WITHOUT_FRACTURE: "It says that there is no fracture, and gives it an extent.",
    Contradiction.FRACTURE_WITHOUT_EXTENT: "It says that there is a fracture, of the extent “none”.",
    Contradiction.AGREES_WITH_THE_OPPOSITE: "It agrees with the model, and says the opposite.",
    Contradiction.DISAGREES_WITH_THE_SAME: "It disagrees with the model, and says the same.",
}


def _raise_contradiction(found: Sequence[Contradiction]) -> None:
    if found:
        words = " ".join(OBJECTIONS[one] for one in found)
        raise InvalidState(f"This feedback contradicts itself. {words}", "contradictory", contradictions=list(found))


def _marks(statement: NewFeedback, views: list[InstanceView]) -> list[Mark]:
    marks = []
    for mark in statement.marks:
        row = _instance_by_number(views, mark.image).row
        if mark.frame > row.frames:
            raise BadRequest(f"image {mark.image} has {row.frames} frame(s); a mark is on frame {mark.frame}")
        marks.append(Mark(row.id, mark.frame, mark.x, mark.y, mark.width, mark.height))
    return marks


def _instance_by_number(views: list[InstanceView], number: int) -> InstanceView:
    if number > len(views):
        raise NotFound(f"the study has {len(views)} image(s); there is no image {number}")
    return views[number - 1]


def _is_same_feedback(
    parts: Parts, entry: Entry, study_id: UUID, statement: NewFeedback, views: list[InstanceView]
) -> bool:
    """Whether the entry says what was sent; one that was written just now does."""
    instance = _instance_by_number(views, statement.image).row.id if statement.image else None
    sent = (
        study_id,
        statement.verdict,
        instance,
        statement.frame,
        statement.bundle,
        statement.fracture,
        statement.region,
        statement.severity,
    )
    kept = (
        entry.study_id, entry.verdict, entry.instance_id, entry.frame, entry.bundle, entry.fracture, entry.region,
        entry.severity,
    )  # fmt: skip
    marks = [mark.stored() for mark in _marks(statement, views)]
    return sent == kept and marks == entry.marks and _decrypted_text(parts, entry) == statement.text.strip()
