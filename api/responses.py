"""What the API answers, as pydantic models: the OpenAPI document is made from these."""

from datetime import date, datetime, time
from enum import StrEnum
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, computed_field
from pydantic.config import JsonDict

from api.readers import ReaderView
from shared.findings import RESEARCH_USE, AbstentionReason, Assessment, Severity, abstention_words
from shared.held import Kind, State
from shared.study import Priority, StudyStatus
from shared.worklist import ALLOWANCES

Shares = tuple[float, float, float, float]
# the OpenAPI document's examples; tests/integration/test_upload.py holds them to the models
STUDY_ID = "3f0c2b1e-6f0e-4a53-9c1c-0d7b1d0e8a11"
RECEIPT: JsonDict = {
    "stored": 1,
    "duplicate": 0,
    "rejected": 1,
    "conflict": 0,
    "correction": 0,
    "comparing": 0,
    "skipped": 0,
    "files": [
        {
            "file": "wrist.dcm",
            "outcome": "stored",
            "study_id": STUDY_ID,
            "sop_instance_uid": "1.2.826.0.1.3680043.8.498.1",
        },
        {
            "file": "report.dcm",
            "outcome": "rejected",
            "reason": "sop-class-not-supported",
            "failure": "0x0122",
            "text": "Comprehensive SR Storage is not analysed: only images are",
        },
    ],
    "studies": [
        {
            "id": STUDY_ID,
            "url": f"/studies/{STUDY_ID}",
            "status": "queued",
            "new_images": 1,
        }
    ],
}
STUDY: JsonDict = {
    "id": STUDY_ID,
    "study_instance_uid": "2.25.320700394461931768619125221097594913749",
    "status": "analysed",
    "priority": "routine",
    "received_at": "2026-01-12T08:00:00Z",
    "started_at": "2026-01-12T08:00:01Z",
    "analysed_at": "2026-01-12T08:00:02Z",
    "due_at": "2026-01-12T08:30:00Z",
    "attempts": 1,
    "reason": "",
    "assessment": "positive",
    "severity": "moderate",
    "region": "elbow",
    "fracture_probability": 0.91,
    "score": 9.2,
    "abstention": None,
    "abstention_detail": "",
    "abstention_words": "",
    "instances": [
        {
            "number": 1,
            "sop_instance_uid": "2.25.7",
            "modality": "CR",
            "rows": 2304,
            "columns": 2880,
            "frames": 1,
            "error": None,
            "error_reason": None,
            "findings": [
                {
                    "frame": 1,
                    "region": "elbow",
                    "region_probability": 0.99,
                    "fracture_probability": 0.91,
                    "assessment": "positive",
                    "sensitive_threshold": 0.11,
                    "specific_threshold": 0.64,
                    "severity": "moderate",
                    "score": 9.2,
                    "abstention": None,
                    "abstention_detail": "",
                    "abstention_words": "",
                    "bundle": "second-look",
                    "rows": 2500,
                    "columns": 2048,
                    "field": [0.0, 0.0, 1.0, 1.0],
                    "heatmap_url": f"/studies/{STUDY_ID}/heatmap.png?image=1&frame=1",
                    "preview_url": f"/studies/{STUDY_ID}/preview.jpg?image=1&frame=1",
                }
            ],
        }
    ],
    "notice": RESEARCH_USE,
}
WORKLIST: JsonDict = {
    "entries": [
        {
            "rank": 1,
            "study_id": STUDY_ID,
            "url": f"/studies/{STUDY_ID}",
            "why": "due 08:30 UTC: routine, positive, elbow, extent moderate",
            "due_at": "2026-01-12T08:30:00Z",
            "overdue": False,
            "received_at": "2026-01-12T08:00:00Z",
            "priority": "routine",
            "status": "analysed",
            "assessment": "positive",
            "severity": "moderate",
            "region": "elbow",
            "fracture_probability": 0.91,
            "score": 9.2,
            "abstention": None,
            "abstention_detail": "",
            "abstention_words": "",
            "modality": "CR",
            "images": 1,
            "failed_images": 0,
            "reason": "",
        }
    ],
    "next": "WyIyMDI2LTAxLTEyVDA4OjMwOjAwKzAwOjAwIiwgIjNmMGMyYjFlLTZmMGUtNGE1My05YzFjLTBkN2IxZDBlOGExMSJd",
    "counts": {"queued": 0, "running": 0, "retrying": 0, "analysed": 1, "quarantined": 0},
    "held": [],
    "notice": RESEARCH_USE,
}
STATES: JsonDict = {
    "studies": [{"id": STUDY_ID, "status": "analysed", "reason": "", "images": 2}],
    "unknown": ["9b1d3c52-8a3f-4a0e-8f0a-6f5d1c2b3a40"],
}
CLAIM: JsonDict = {
    "mine": True,
    "name": "dr-lovelace",
    "same_key": False,
    "own_since": None,
    "since": "2026-01-12T08:05:00Z",
    "until": "2026-01-12T08:07:30Z",
    "claim": "4f6c1d0e-8a4b-4c0c-9a53-2f3b8f7a1c55",
    "notice": RESEARCH_USE,
}
ALLOWANCES_IN_FORCE: JsonDict = {
    "minutes": {name: {str(priority): row[priority] for priority in Priority} for name, row in ALLOWANCES.items()},
    "classes": list(ALLOWANCES),
    "priorities": [str(priority) for priority in Priority],
    "longest_minutes": 2880,
    "most_minutes": 10080,
    "chosen_by": "head-of-radiology",
    "chosen_at": "2026-01-12T07:00:00Z",
    "moved": 118,
}


class Outcome(StrEnum):
    """What became of a file."""

    STORED = "stored"
    DUPLICATE = "duplicate"
    REJECTED = "rejected"
    # stored too, but no image of a study until somebody decides
    CONFLICT = "conflict"  # of another patient, or with other pixels
    CORRECTION = "correction"  # a stored image with another header
    COMPARING = "comparing"  # a worker will tell what it is
    SKIPPED = "skipped"  # no image by design: a DICOMDIR, or what lies beside the images in an archive


class FileReceipt(BaseModel):
    """One line of a receipt."""

    file: str = Field(description="the file's name as it was sent; of archive members, archive!member")
    outcome: Outcome
    reason: str | None = Field(None, description="stable word for scripts, when rejected, skipped or held")
    failure: str | None = Field(None, description="DICOM Failure Reason (0008,1197), hexadecimal, when rejected")
    text: str | None = Field(None, description="what was wrong and what to do, in plain words")
    study_id: UUID | None = None
    sop_instance_uid: str | None = None


class StudyReceipt(BaseModel):
    """A study that the request touched."""

    id: UUID
    url: str
    status: StudyStatus
    new_images: int


class Receipt(BaseModel):
    """The answer to an upload; "stored" means durable in object store and database."""

    model_config = ConfigDict(json_schema_extra={"example": RECEIPT})

    stored: int
    duplicate: int
    rejected: int
    conflict: int = Field(0, description="stored, of another patient or with other pixels: an administrator decides")
    correction: int = Field(0, description="stored, an image with another header: an administrator applies it")
    comparing: int = Field(0, description="stored, and compared with the image of its UID by a worker")
    skipped: int = Field(0, description="no images by design, as a DICOMDIR; no failure")
    files: list[FileReceipt]
    studies: list[StudyReceipt]


class Scored(BaseModel):
    """How strong a finding is, and why the model abstains, where it does."""

    score: float | None = Field(
        None, description="0 to 10: unclear from 3, positive from 7; raw where the model abstains, null if meaningless"
    )
    abstention: AbstentionReason | None = Field(
        None, description="why it is outside the validated scope, a code; beside positive a caveat"
    )
    abstention_detail: str = Field("", description="the value that the reason is about, as the body part")

    @computed_field  # type: ignore[prop-decorator]
    @property
    def abstention_words(self) -> str:
        """The reason in words, as pages and reports show it."""
        return abstention_words(self.abstention, self.abstention_detail, self.score)


class FindingView(Scored):
    """One frame's finding."""

    frame: int
    region: str
    region_probability: float
    fracture_probability: float = Field(description="calibrated, 0..1")
    assessment: Assessment
    sensitive_threshold: float | None = Field(None, description="unclear from here on")
    specific_threshold: float | None = Field(None, description="positive from here on")
    severity: Severity = Field(description="extent, by annotation; not a clinical grade")
    bundle: str
    rows: int = Field(description="of the image in square pixels, as people see it")
    columns: int
    field: Shares = Field(
        description="left, top, width, height of the exposed field, in shares of the image; the model saw nothing else"
    )
    heatmap_url: str
    preview_url: str


class HeatmapView(BaseModel):
    """One frame's heatmap as numbers, row by row. It covers the network's square, in which the field lies centred."""

    height: int
    width: int
    cells: list[float] = Field(description="each cell's own fracture probability, uncalibrated, at most `full`")
    full: float = Field(description="the greatest that a cell's probability is told as")
    local: list[float] = Field(
        description="what the film's calibrated probability would be with the evidence around this cell alone"
    )
    film: Shares = Field(description="left, top, width, height of the whole image, in cells; may reach beyond the map")
    field: Shares = Field(description="the same of the exposed field, outside of which the map says nothing")
    assessment: Assessment
    sensitive_threshold: float
    specific_threshold: float


class InstanceReport(BaseModel):
    """One image object of a study."""

    number: int = Field(description="1 for the first; used in picture URLs")
    sop_instance_uid: str
    modality: str
    rows: int
    columns: int
    frames: int
    body_part: str = ""
    laterality: str = Field("", description="R, L or B")
    view: str = ""
    manufacturer: str = ""
    model: str = ""
    findings: list[FindingView]
    error: str | None = Field(None, description="why this image can never be analysed")
    error_reason: str | None = None


class Examined(Scored):
    """Scored, with what was examined, of whom and when, as the header tells it."""

    sex: str = Field("", description="M, F or O; empty: not told")
    age_years: int | None = Field(None, description="of the patient at the study; 90 for all who are older")
    study_date: date | None = None
    study_time: time | None = Field(None, description="on the clock of the hospital")
    body_part: str = ""
    laterality: str = Field("", description="R, L, or B for both sides")
    views: str = Field("", description="of all images, each once")
    header_version: int = Field(0, description="changes when a correction of the header is applied")


class StudyReport(Examined):
    """A study's state and findings."""

    model_config = ConfigDict(json_schema_extra={"example": STUDY})

    id: UUID
    study_instance_uid: str
    status: StudyStatus
    priority: Priority
    received_at: datetime
    started_at: datetime | None
    analysed_at: datetime | None
    due_at: datetime
    attempts: int
    reason: str = Field(description="why the study is retrying or quarantined")
    assessment: Assessment | None
    severity: Severity | None
    region: str
    fracture_probability: float | None
    failed_images: int = Field(0, description="images that can never be analysed")
    scanner: str = Field("", description="manufacturer and model")
    instances: list[InstanceReport]
    readers: ReaderView | None = Field(
        None, description="what readers say, once one of them contradicts the model; the study's headline from then on"
    )
    notice: str = RESEARCH_USE


class StatesWanted(BaseModel):
    """The studies whose states a sender asks for."""

    ids: list[UUID] = Field(max_length=1000)


class StudyState(BaseModel):
    """Where one study stands."""

    id: UUID
    status: StudyStatus
    reason: str = Field(description="why the study is retrying or quarantined")
    images: int = Field(description="how many are stored")


class StudyStates(BaseModel):
    """Where many studies stand; unknown are those that are not here, or another site's."""

    model_config = ConfigDict(json_schema_extra={"example": STATES})

    studies: list[StudyState]
    unknown: list[UUID]


class WorklistRow(Examined):
    """One row of the worklist."""

    rank: int = Field(description="place within this page's list, 1 for the most urgent of the page")
    study_id: UUID
    url: str
    why: str
    due_at: datetime
    overdue: bool
    received_at: datetime
    priority: Priority
    status: StudyStatus
    assessment: Assessment | None
    severity: Severity | None
    region: str
    fracture_probability: float | None
    modality: str
    images: int
    failed_images: int
    reason: str
    read_at: datetime | None = None
    reader: str = Field("", description="the name of the key that reads this study now; empty: nobody does")
    reading_since: datetime | None = None
    mine: bool = Field(False, description="whether you read it, at this login of your key")


class HeldFound(BaseModel):
    """A file that was searched for, and that is no image of a study until an administrator decides."""

    kind: Kind
    state: State = Field(description="open, or rejected")
    received_at: datetime
    study_id: UUID | None = Field(description="of a correction, the study that it is about")


class WorklistPage(BaseModel):
    """A page of the worklist; `next` is the `after` of the following page, null on the last."""

    model_config = ConfigDict(json_schema_extra={"example": WORKLIST})

    entries: list[WorklistRow]
    next: str | None
    counts: dict[StudyStatus, int]
    held: list[HeldFound] = Field(default_factory=list, description="of a search: files that wait for a decision")
    notice: str = RESEARCH_USE


class ClaimView(BaseModel):
    """Who reads a study."""

    model_config = ConfigDict(json_schema_extra={"example": CLAIM})

    mine: bool = Field(description="whether the study is yours now")
    name: str = Field(description="the name of the reader's key; empty: nobody reads the study")
    same_key: bool = Field(False, description="another login of your own key has it, or had it until now")
    own_since: datetime | None = Field(None, description="since when that other login had it, if it is yours now")
    since: datetime | None
    until: datetime | None = Field(description="when the claim ends unless it is made again")
    claim: UUID | None = Field(None, description="gives the study back: DELETE /studies/{id}/claim/{claim}")
    notice: str = RESEARCH_USE


class PastClaimView(BaseModel):
    """One reader in a study's history."""

    name: str
    claimed_at: datetime
    taken_from: str | None = Field(description="whose study it was until this reader took it over")
    ended_at: datetime | None
    ended: str = Field(description="released, expired, taken over, read; empty while it lasts")


class Search(BaseModel):
    """What to search by; in a body, for addresses are logged."""

    number: str = Field(min_length=1, max_length=64, description="an accession number or a patient id, whole")


class SavedFilter(BaseModel):
    """A choice of filters under a name."""

    name: str = Field(min_length=1, max_length=40, pattern=r"^[^\x00-\x1f]*[^\x00-\x20][^\x00-\x1f]*$")
    query: str = Field(
        max_length=400, description="as in the worklist's address, e.g. `assessment=positive&region=hand`"
    )


class SavedFilterView(SavedFilter):
    """A saved filter."""

    id: UUID


class AllowancesChoice(BaseModel):
    """Minutes that a study may wait for its reader, by class (the gravest first) and priority."""

    minutes: dict[str, dict[Priority, int]]


class AllowancesView(AllowancesChoice):
    """The table in force."""

    model_config = ConfigDict(json_schema_extra={"example": ALLOWANCES_IN_FORCE})

    classes: list[str] = Field(description="the rows, the gravest first; none may wait longer than the next")
    priorities: list[Priority] = Field(description="the columns, the soonest first; none may wait longer than the next")
    longest_minutes: int = Field(description="the hard maximum of this table: nobody waits longer on a kept-up list")
    most_minutes: int = Field(description="the most that any table may allow")
    chosen_by: str | None = Field(description="whose choice it is; null for the table that is built in")
    chosen_at: datetime | None
    moved: int | None = Field(None, description="after a change: how many unread studies got another place")


class Health(BaseModel):
    """Whether the parts answer; the value is "ok" or what is wrong."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"ready": True, "parts": {"database": "ok", "store": "ok", "broker": "ok"}}}
    )

    ready: bool
    parts: dict[str, str]


class Problem(BaseModel):
    """An error, in the form of RFC 9457."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"title": "Not found", "status": 404, "detail": "there is no study here"}}
    )

    title: str
    status: int
    detail: str
    code: str | None = Field(None, description="stable word for programs, where they can go on from here")
