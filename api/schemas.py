"""What the API answers, as pydantic models: the OpenAPI document is made from these."""

from collections.abc import Mapping
from datetime import date, datetime, time
from enum import StrEnum
from typing import Annotated, Literal, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema, computed_field, model_validator
from pydantic.config import JsonDict
from pydantic.json_schema import SkipJsonSchema

from api.readers_summary import ReadersSummaryView
from api.reasons import WithReason
from shared.domain.completeness import Completeness
from shared.domain.findings import RESEARCH_USE, AbstentionReason, Assessment, Extent, abstention_words
from shared.domain.held import HeldKind, HeldState
from shared.domain.study import Priority, Rejection, StoredOnly, StudyStatus
from shared.domain.worklist import TURNAROUND_TARGETS, ReadingEnd
from shared.errors import Reason

# JSON Schema's format time has an offset, which DICOM lacks
LocalTime = Annotated[time, WithJsonSchema({"type": "string", "pattern": r"^\d\d:\d\d:\d\d(\.\d{1,6})?$"})]
Shares = tuple[float, float, float, float]
TURN = "degrees, clockwise, by which the field lies askew in the image, about its own middle"
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
            "url": f"/api/v1/studies/{STUDY_ID}",
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
    "completeness": "complete",
    "expected_images": 1,
    "stored_instances": 1,
    "last_received_at": "2026-01-12T08:00:00Z",
    "attempts": 1,
    "reason": "",
    "detail": "",
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
                    "field_turn": 0.0,
                    "heatmap_url": f"/api/v1/studies/{STUDY_ID}/heatmap.png?image=1&frame=1",
                    "preview_url": f"/api/v1/studies/{STUDY_ID}/preview.jpg?image=1&frame=1",
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
            "url": f"/api/v1/studies/{STUDY_ID}",
            "why": "due 08:30 UTC: routine, positive, elbow, extent moderate",
            "summary": "routine, positive, elbow, extent moderate",
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
            "completeness": "complete",
            "expected_images": 1,
            "stored_instances": 1,
            "reason": "",
            "detail": "",
        }
    ],
    "next": "WyIyMDI2LTAxLTEyVDA4OjMwOjAwKzAwOjAwIiwgIjNmMGMyYjFlLTZmMGUtNGE1My05YzFjLTBkN2IxZDBlOGExMSJd",
    "counts": {"queued": 0, "running": 0, "retrying": 0, "analysed": 1, "quarantined": 0},
    "held": [],
    "notice": RESEARCH_USE,
}
STATES: JsonDict = {
    "studies": [
        {
            "id": STUDY_ID,
            "status": "analysed",
            "reason": "",
            "detail": "",
            "images": 2,
            "completeness": "receiving",
            "expected_images": 3,
        }
    ],
    "unknown": ["9b1d3c52-8a3f-4a0e-8f0a-6f5d1c2b3a40"],
}
READING_LOCK: JsonDict = {
    "mine": True,
    "name": "dr-lovelace",
    "same_key": False,
    "own_since": None,
    "since": "2026-01-12T08:05:00Z",
    "until": "2026-01-12T08:07:30Z",
    "token": "4f6c1d0e-8a4b-4c0c-9a53-2f3b8f7a1c55",
    "claim": "4f6c1d0e-8a4b-4c0c-9a53-2f3b8f7a1c55",
    "notice": RESEARCH_USE,
}
TARGETS_IN_FORCE: JsonDict = {
    "minutes": {
        name: {str(priority): row[priority] for priority in Priority} for name, row in TURNAROUND_TARGETS.items()
    },
    "classes": list(TURNAROUND_TARGETS),
    "priorities": [str(priority) for priority in Priority],
    "longest_minutes": 2880,
    "most_minutes": 10080,
    "chosen_by": "head-of-radiology",
    "chosen_at": "2026-01-12T07:00:00Z",
    "moved": 118,
}


class _Attributes:
    """What a call names, then the attributes of a row."""

    __slots__ = ("_named", "_row")

    def __init__(self, row: object, named: Mapping[str, object]) -> None:
        self._row, self._named = row, named

    def __getattr__(self, name: str) -> object:
        if name in self._named:
            return self._named[name]
        try:
            return getattr(self._row, name)
        except AttributeError:
            if name == "notice":  # the same in each answer: its default
                raise
            raise LookupError(f"neither {type(self._row).__name__} nor the call has {name}") from None


class RowView(BaseModel):
    """A response model whose fields come by their names from what a query returned, a row or a value."""

    model_config = ConfigDict(from_attributes=True)

    @classmethod
    def of_row(cls, row: object, **more: object) -> Self:
        """Build it.

        Args:
            row: has attributes with the names of the model's fields. A stored code becomes its enum.
            **more: fields that the row does not have, or has with another meaning.

        Returns:
            The model.

        Raises:
            ValidationError: neither has a field, or a value does not fit it. No field takes its default silently.
        """
        return cls.model_validate(_Attributes(row, more))


class Outcome(StrEnum):
    """What became of a file."""

    STORED = "stored"
    KEPT = "kept"  # stored, and not analysed
    DUPLICATE = "duplicate"
    REJECTED = "rejected"
    # stored too, but no image of a study until an administrator decides
    CONFLICT = "conflict"  # of another patient, or with other pixels
    CORRECTION = "correction"  # a stored image with another header
    COMPARING = "comparing"  # a worker compares it with the stored image
    SKIPPED = "skipped"  # no image by design: a DICOMDIR, or what lies beside the images in an archive


class FileReceipt(BaseModel):
    """One line of a receipt."""

    file: str = Field(description="the file's name as it was sent; of archive members, archive!member")
    outcome: Outcome = Field(description="what became of the file, a code")
    reason: str | None = Field(None, description="stable word for scripts, when kept, rejected, skipped or held")
    failure: str | None = Field(None, description="DICOM Failure Reason (0008,1197), hexadecimal, when rejected")
    text: str | None = Field(None, description="what was wrong and what to do, in plain words")
    fact: str = Field("", exclude=True)  # in the text, as shared.errors.Cause has it; kept for the administrator
    study_id: UUID | None = Field(None, description="of the study that it belongs to; null: none")
    sop_instance_uid: str | None = Field(None, description="DICOM SOP Instance UID; null: not read")


class StudyReceipt(BaseModel):
    """A study that the request touched."""

    id: UUID = Field(description="of the study")
    url: str = Field(description="path of the study in the API")
    status: StudyStatus = Field(description="state of the study, a code")
    new_images: int = Field(description="images that it got by this request")


class Receipt(BaseModel):
    """The response to an upload; "stored" means durable in object store and database."""

    model_config = ConfigDict(json_schema_extra={"example": RECEIPT})

    stored: int = Field(description="number of files that are stored now")
    duplicate: int = Field(description="number of files that were stored before")
    rejected: int = Field(description="number of files that cannot be taken")
    kept: int = Field(0, description="stored, and not analysed: no image, or none of a radiograph")
    conflict: int = Field(0, description="stored, of another patient or with other pixels: an administrator decides")
    correction: int = Field(0, description="stored, an image with another header: an administrator applies it")
    comparing: int = Field(0, description="stored, and compared with the image of its UID by a worker")
    skipped: int = Field(0, description="no images by design, as a DICOMDIR; no failure")
    files: list[FileReceipt] = Field(description="one line for each file, in their order")
    studies: list[StudyReceipt] = Field(description="the studies that got images")


class ScoreFields(BaseModel):
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


class FindingView(RowView, ScoreFields):
    """One frame's finding."""

    frame: int = Field(description="number of the frame in its image, 1 for the first")
    region: str = Field(description="body region, a code; empty: none")
    region_probability: float = Field(description="of the region, 0 to 1")
    fracture_probability: float = Field(description="calibrated, 0..1")
    assessment: Assessment = Field(description="by the model, a code")
    sensitive_threshold: float | None = Field(None, description="unclear from here on")
    specific_threshold: float | None = Field(None, description="positive from here on")
    severity: Extent = Field(description="extent, by annotation; not a clinical grade")
    bundle: str = Field(description="name of the model bundle")
    rows: int = Field(description="of the image in square pixels, as people see it")
    columns: int = Field(description="width of the image, in pixels")
    field: Shares = Field(
        description="left, top, width, height of the exposed field, in shares of the image; the model saw nothing else"
    )
    field_turn: float = Field(description=TURN)
    heatmap_url: str = Field(description="path of the heatmap, a PNG")
    preview_url: str = Field(description="path of the preview, a JPEG")


class HeatmapView(BaseModel):
    """One frame's heatmap as numbers, row by row. It covers the network's square, in which the field lies centred."""

    height: int = Field(description="rows of the map, in cells")
    width: int = Field(description="columns of the map, in cells")
    cells: list[float] = Field(description="each cell's own fracture probability, uncalibrated, at most `full`")
    full: float = Field(description="the greatest that a cell's probability is told as")
    local: list[float] = Field(
        description="what the radiograph's calibrated probability would be with the evidence around this cell alone"
    )
    frame: Shares = Field(description="left, top, width, height of the whole image, in cells; may reach beyond the map")
    film: Shares = Field(
        deprecated="Renamed to `frame`; gone with 0.3.0.",
        description="left, top, width and height of the whole image, in cells of the map",
    )
    field: Shares = Field(description="the same of the exposed field, outside of which the map says nothing")
    field_turn: float = Field(description=TURN)
    assessment: Assessment = Field(description="by the model, a code")
    sensitive_threshold: float = Field(description="probability from which on it is unclear")
    specific_threshold: float = Field(description="probability from which on it is positive")


class KeptInstance(RowView):
    """An object of a study that is stored and not analysed."""

    sop_instance_uid: str = Field(description="DICOM SOP Instance UID of the object")
    sop_class_uid: str = Field(description="DICOM SOP Class UID of the object")
    sop_class: str = Field(description="name of the SOP class; empty: not known")
    modality: str = Field(description="DICOM code, such as SR or US")
    received_at: datetime = Field(description="when it came")
    kept: StoredOnly | None = Field(description="why it is not analysed, a code; null: a document rejects it")
    rejected_by_ko: Rejection | None = Field(
        description="code (DCM) of the Key Object Selection Document that rejects it; null: none does"
    )
    words: str = Field(description="why it is not analysed, in words")


class InstanceReport(RowView):
    """One image object of a study."""

    number: int = Field(description="1 for the first; used in picture URLs")
    sop_instance_uid: str = Field(description="DICOM SOP Instance UID of the image")
    modality: str = Field(description="DICOM code, such as DX or CR")
    rows: int = Field(description="height, in pixels")
    columns: int = Field(description="width, in pixels")
    frames: int = Field(description="how many frames it has")
    body_part: str = Field("", description="as the DICOM header says")
    laterality: str = Field("", description="R, L or B")
    view: str = Field("", description="projection, as the DICOM header says")
    manufacturer: str = Field("", description="of the device, as the DICOM header says")
    model: str = Field("", description="of the device, as the DICOM header says")
    findings: list[FindingView] = Field(description="one for each frame and bundle")
    error: str | None = Field(None, description="why this image can never be analysed, as a sentence")
    error_reason: Reason | None = Field(None, description="the same as a code")


class ExaminationFields(ScoreFields):
    """Scored, with the examination and the patient as the header describes them."""

    sex: str = Field("", description="M, F or O; empty: not told")
    age_years: int | None = Field(None, description="of the patient at the study; 90 for all who are older")
    study_date: date | None = Field(None, description="as the DICOM header says")
    study_time: LocalTime | None = Field(None, description="on the clock of the hospital")
    body_part: str = Field("", description="as the DICOM header says")
    laterality: str = Field("", description="R, L, or B for both sides")
    views: str = Field("", description="of all images, each once")
    header_version: int = Field(0, description="changes when a correction of the header is applied")


class StudyReport(RowView, WithReason, ExaminationFields):
    """A study's state and findings."""

    model_config = ConfigDict(json_schema_extra={"example": STUDY})

    id: UUID = Field(description="of the study")
    study_instance_uid: str = Field(description="DICOM Study Instance UID")
    status: StudyStatus = Field(description="state of the study, a code")
    priority: Priority = Field(description="urgent, routine or backlog")
    received_at: datetime = Field(description="when it came")
    started_at: datetime | None = Field(description="when it began; null: not yet")
    analysed_at: datetime | None = Field(description="when its analysis ended; null: not yet")
    due_at: datetime = Field(description="when it should be read at the latest")
    attempts: int = Field(description="how often it was tried")
    assessment: Assessment | None = Field(description="the gravest of its findings, a code; null: none yet")
    severity: Extent | None = Field(description="extent by annotation, a code")
    region: str = Field(description="of the finding that determines the study, a code; empty: none")
    fracture_probability: float | None = Field(description="calibrated, 0 to 1; null: none yet")
    failed_images: int = Field(0, description="images that can never be analysed")
    completeness: Completeness = Field(description="whether more images are expected, a code")
    expected_images: int | None = Field(description="how many a DICOM sender counted; null: nobody did")
    stored_instances: int = Field(description="how many are stored, those that are not analysed included")
    last_received_at: datetime | None = Field(description="when its last image came; null: not known")
    scanner: str = Field("", description="manufacturer and model")
    instances: list[InstanceReport] = Field(description="its images")
    kept: list[KeptInstance] = Field(default=[], description="its objects that are kept and not analysed")
    readers: ReadersSummaryView | None = Field(
        None, description="what readers say, once one of them contradicts the model; the study's headline from then on"
    )
    notice: str = Field(RESEARCH_USE, description="the research use notice, in words")


class StudyStatesRequest(BaseModel):
    """The studies whose states a sender asks for."""

    ids: list[UUID] = Field(max_length=1000, description="ids of studies, at most 1,000")


class StudyState(WithReason):
    """The state of a study."""

    id: UUID = Field(description="of the study")
    status: StudyStatus = Field(description="state of the study, a code")
    images: int = Field(description="how many are stored")
    completeness: Completeness = Field(Completeness.COMPLETE, description="whether more images are expected, a code")
    expected_images: int | None = Field(None, description="how many a DICOM sender counted; null: nobody did")


class StudyStates(BaseModel):
    """Where many studies stand; unknown are those that are not here, or another site's."""

    model_config = ConfigDict(json_schema_extra={"example": STATES})

    studies: list[StudyState] = Field(description="where each of them stands")
    unknown: list[UUID] = Field(description="ids that are not known here")


class WorklistRow(RowView, WithReason, ExaminationFields):
    """One row of the worklist."""

    rank: int = Field(description="place within this page's list, 1 for the most urgent of the page")
    study_id: UUID = Field(description="of the study")
    url: str = Field(description="path of the study in the API")
    why: str = Field(description="why it stands here, in words")
    summary: str = Field(description="`why` without the due time")
    due_at: datetime = Field(description="when it should be read at the latest")
    overdue: bool = Field(description="it is past its time and not read")
    received_at: datetime = Field(description="when it came")
    priority: Priority = Field(description="urgent, routine or backlog")
    status: StudyStatus = Field(description="state of the study, a code")
    assessment: Assessment | None = Field(description="by the model, a code")
    severity: Extent | None = Field(description="extent by annotation, a code")
    region: str = Field(description="body region, a code; empty: none")
    fracture_probability: float | None = Field(description="calibrated, 0 to 1; null: none yet")
    modality: str = Field(description="DICOM code, such as DX or CR")
    images: int = Field(description="how many images it has")
    failed_images: int = Field(description="how many images cannot be analysed")
    completeness: Completeness = Field(description="whether more images are expected, a code")
    expected_images: int | None = Field(description="how many a DICOM sender counted; null: nobody did")
    stored_instances: int = Field(description="how many are stored, those that are not analysed included")
    read_at: datetime | None = Field(None, description="when it was read; null: not yet")
    reader: str = Field("", description="the name of the key that reads this study now; empty: nobody does")
    reading_since: datetime | None = Field(None, description="since when somebody reads it; null: nobody does")
    mine: bool = Field(False, description="whether you read it, at this login of your key")


class HeldFileMatch(BaseModel):
    """A file that was searched for, and that is no image of a study until an administrator decides."""

    kind: HeldKind = Field(description="why the file waits, a code")
    state: HeldState = Field(description="open, or rejected")
    received_at: datetime = Field(description="when it came")
    study_id: UUID | None = Field(description="of a correction, the study that it is about")


class WorklistPage(BaseModel):
    """A page of the worklist; `next` is the `after` of the following page, null on the last."""

    model_config = ConfigDict(json_schema_extra={"example": WORKLIST})

    entries: list[WorklistRow] = Field(description="the study to read first comes first")
    next: str | None = Field(description="the `after` of the next page; null: this is the last one")
    counts: dict[StudyStatus, int] = Field(description="how many studies there are, by state")
    previous: str | None = Field(None, description="the `before` of the page before; null: this is the first one")
    held: list[HeldFileMatch] = Field(default_factory=list, description="of a search: files that wait for a decision")
    understood: str = Field("", description="of a search by words: what was looked for, in words")
    notice: str = Field(RESEARCH_USE, description="the research use notice, in words")


class ReadingLockView(BaseModel):
    """Who reads a study."""

    model_config = ConfigDict(json_schema_extra={"example": READING_LOCK})

    mine: bool = Field(description="whether the study is yours now")
    name: str = Field(description="the name of the reader's key; empty: nobody reads the study")
    same_key: bool = Field(False, description="another login of your own key has it, or had it until now")
    own_since: datetime | None = Field(None, description="since when that other login had it, if it is yours now")
    since: datetime | None = Field(description="when the lock began; null: nobody reads the study")
    until: datetime | None = Field(description="when the lock ends unless it is renewed")
    token: UUID | None = Field(None, description="gives the study back: DELETE /api/v1/studies/{id}/lock/{token}")
    claim: UUID | None = Field(None, deprecated=True, description="as `token`; until 0.3.0")
    notice: str = Field(RESEARCH_USE, description="the research use notice, in words")


class PastReadingLockView(RowView):
    """One reader in a study's history."""

    name: str = Field(description="of the key that read it")
    locked_at: datetime = Field(description="when the reader opened it")
    claimed_at: datetime = Field(deprecated=True, description="as `locked_at`; until 0.3.0")
    taken_from: str | None = Field(description="whose study it was until this reader took it over")
    ended_at: datetime | None = Field(description="when the lock ended; null: it has not")
    ended: ReadingEnd | Literal[""] = Field(description="how it ended, a code; empty while it lasts")
    detail: str = Field("", description="how it ended, in words")


ONE_OF_BOTH: JsonDict = {"minProperties": 1, "maxProperties": 1}  # for the JSON schema of a OneOfBoth


def without_null(schema: JsonDict) -> None:
    """Say in a property's JSON schema that null is no value which may be sent."""
    schema.pop("default", None)


class OneOfBoth(BaseModel):
    """A request that states one of two properties."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=ONE_OF_BOTH)

    @model_validator(mode="before")
    @classmethod
    def _is_one_of_both(cls, given: object) -> object:
        if isinstance(given, dict) and (len(given) != 1 or None in given.values()):
            raise ValueError(f"give {' or '.join(f'`{name}`' for name in cls.model_fields)}, one of both")
        return given


class Search(OneOfBoth):
    """What to search by, one of both; in a body, for addresses are logged."""

    number: str | SkipJsonSchema[None] = Field(
        None,
        min_length=1,
        max_length=64,
        description="an accession number or a patient id, whole",
        json_schema_extra=without_null,
    )
    words: str | SkipJsonSchema[None] = Field(
        None,
        min_length=1,
        max_length=64,
        description="parts of a name, an id, an accession number or a description, and a date as 2026-11-28 or "
        "28.11.2026; each of them must be found",
        json_schema_extra=without_null,
    )


class FilterName(BaseModel):
    """The name of a saved view."""

    name: str = Field(
        min_length=1,
        max_length=40,
        pattern=r"^[^\x00-\x1f]*[^\x00-\x20][^\x00-\x1f]*$",
        description="one of yours is replaced if it has this name",
    )


class SavedFilter(FilterName):
    """A view of the worklist under a name."""

    query: str = Field(
        max_length=400,
        description="filters, order and columns as in the worklist's address, e.g. `assessment=positive&sort=-age`",
    )


class SavedFilterView(RowView, SavedFilter):
    """A saved view; the page `/?view=ID` opens it."""

    id: UUID = Field(description="its id")


Minutes = Annotated[int, Field(ge=-(2**31), lt=2**31)]  # which are possible is said in words


class TurnaroundTargetsChoice(BaseModel):
    """Minutes that a study may wait for its reader, by class (the gravest first) and priority."""

    minutes: dict[str, dict[Priority, Minutes]] = Field(
        description="minutes by class and priority; the urgent and the grave wait no longer than others"
    )


class TurnaroundTargetsView(TurnaroundTargetsChoice):
    """The table in force."""

    model_config = ConfigDict(json_schema_extra={"example": TARGETS_IN_FORCE})

    classes: list[str] = Field(description="the rows, the gravest first; none may wait longer than the next")
    priorities: list[Priority] = Field(description="the columns, the soonest first; none may wait longer than the next")
    longest_minutes: int = Field(description="the hard maximum of this table: nobody waits longer on a kept-up list")
    most_minutes: int = Field(description="the most that any table may allow")
    chosen_by: str | None = Field(description="whose choice it is; null for the table that is built in")
    chosen_at: datetime | None = Field(
        description="when the table was chosen; null: it is the one that Osteon comes with"
    )
    moved: int | None = Field(None, description="after a change: how many unread studies got another place")


class Health(BaseModel):
    """Whether the parts answer; the value is "ok" or what is wrong."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"ready": True, "parts": {"database": "ok", "store": "ok", "broker": "ok"}}}
    )

    ready: bool = Field(description="every part answers")
    parts: dict[str, str] = Field(description="the state of each part: ok, or what is wrong")


class InputError(BaseModel):
    """One value that is not allowed."""

    where: str = Field(description="as query.limit or body.marks.0.x; ? for a name that is none of ours")
    why: str = Field(description="what is wrong, in words")


class Problem(BaseModel):
    """An error, in the form of RFC 9457; some kinds have further members."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"title": "Not found", "status": 404, "detail": "there is no study here"}}
    )

    title: str = Field(description="the status in words")
    status: int = Field(description="the HTTP status")
    detail: str = Field(description="what is wrong, and what to do about it")
    code: str | None = Field(None, description="stable word for programs, where they can go on from here")
    errors: list[InputError] | None = Field(None, description="with 422: each value that is not allowed")
