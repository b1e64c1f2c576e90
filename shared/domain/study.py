"""Studies and their instances, and the states of a study."""

from dataclasses import dataclass, field
from datetime import date, time
from enum import StrEnum


class Priority(StrEnum):
    """How soon a study is wanted; each has a queue of its own, served in this order."""

    URGENT = "urgent"
    ROUTINE = "routine"
    BACKLOG = "backlog"  # given by the backfill run only


class StudyStatus(StrEnum):
    """The state of a study, as it is shown. Its row says queued while its analysis is running or retrying."""

    QUEUED = "queued"  # has images to analyse and waits for a worker
    RUNNING = "running"  # a worker holds a lease on its analysis
    RETRYING = "retrying"  # failed with something that can heal; waits for its next attempt
    ANALYSED = "analysed"  # every image has a finding or an error of its own
    QUARANTINED = "quarantined"  # no image could be analysed, or the attempts are used up; the reason says why
    KEPT = "kept"  # holds nothing to analyse


class StoredStatus(StrEnum):
    """Where a study stands, as its row says: it changes at arrival, with a result, and when it is queued again."""

    QUEUED = "queued"  # an analysis of it is open
    ANALYSED = "analysed"
    QUARANTINED = "quarantined"
    KEPT = "kept"  # holds nothing to analyse: objects that are kept, or images that a document rejects


class QuarantineDecision(StrEnum):
    """What an administrator decided about a quarantined study."""

    DISMISSED = "dismissed"  # nothing is to be done about it; lists of what waits leave it out
    DELETED = "deleted"  # its rows are gone


class StoredOnly(StrEnum):
    """Why an instance is stored and not analysed."""

    NOT_AN_IMAGE = "not-an-image"  # a report, a presentation state, a selection of images, a document, a plan
    COLOUR = "colour"
    SECONDARY_CAPTURE = "secondary-capture"
    OTHER_MODALITY = "other-modality"
    OWN_RESULT = "own-result"  # made by Osteon itself, and sent back by an archive


class Rejection(StrEnum):
    """The title of a Key Object Selection Document that rejects the instances it names: a code value of DCM.

    Source: PS3.16 CID 7011.
    """

    QUALITY = "113001"  # Rejected for Quality Reasons
    SAFETY = "113037"  # Rejected for Patient Safety Reasons
    WORKLIST = "113038"  # Incorrect Modality Worklist Entry
    EXPIRED = "113039"  # Data Retention Policy Expired


@dataclass(frozen=True, repr=False)
class Examination:
    """What was examined, when and by which machine; "" or None if the header does not say.

    Every text is one line of printable characters. The series description is free text, which may hold a name: it is
    kept encrypted, and this has no repr.
    """

    sex: str = ""  # M, F or O (PS3.3 C.7.1.1)
    study_date: date | None = None
    study_time: time | None = None  # on the clock of the hospital; its zone is not known
    laterality: str = ""  # R, L or B
    view: str = ""  # View Position, or else the meaning of the view's code
    manufacturer: str = ""
    model: str = ""
    series_description: str = ""
    utc_offset: str = ""  # of the header's dates and times, "+0100"; empty if it does not say


@dataclass(frozen=True)
class ProcedureRequest:
    """What a series was made for: an item of the Request Attributes Sequence (PS3.3 10.6)."""

    scheduled_step_id: str = ""
    requested_procedure_id: str = ""


@dataclass(frozen=True, repr=False)
class Series:
    """What a header says of its series; "" or None where it does not say. Free text in it is kept encrypted."""

    instance_uid: str
    number: int | None = None
    description: str = ""
    protocol: str = ""
    series_date: date | None = None
    series_time: time | None = None
    performed_date: date | None = None  # start of the performed procedure step
    performed_time: time | None = None
    performed_step_id: str = ""
    performed_step_description: str = ""
    requests: tuple[ProcedureRequest, ...] = ()


@dataclass(frozen=True, repr=False)
class Identity:
    """Who the patient is. Kept encrypted in one table; has no repr, so that it cannot reach a log by mistake."""

    patient_name: str = ""
    patient_id: str = ""
    birth_date: str = ""
    accession_number: str = ""
    issuer: str = ""  # Issuer of Patient ID, or the sender's own
    study_description: str = ""  # free text, which may hold a name
    dicom_study_id: str = ""  # Study ID, which people give; not the id of a row
    referring_physician: str = ""

    @property
    def readable(self) -> bool:
        """Whether it could be decrypted."""
        return True


IDENTITY_KEYWORDS = {  # by field of Identity
    "patient_name": "PatientName",
    "patient_id": "PatientID",
    "issuer": "IssuerOfPatientID",
    "birth_date": "PatientBirthDate",
    "accession_number": "AccessionNumber",
    "study_description": "StudyDescription",
    "dicom_study_id": "StudyID",
    "referring_physician": "ReferringPhysicianName",
}


@dataclass(frozen=True, repr=False)
class UnreadableIdentity(Identity):
    """An identity that was encrypted with another key: it matches no other, and must not be overwritten."""

    @property
    def readable(self) -> bool:
        """Always False."""
        return False


@dataclass(frozen=True)
class RejectionNote:
    """What a Key Object Selection Document rejects."""

    title: Rejection
    sop_instance_uids: tuple[str, ...]


@dataclass(frozen=True)
class Header:
    """What a DICOM header says before its pixels are read. The patient is in `Identity`.

    Rows, columns and frames are 0 in an object without pixels.
    """

    study_instance_uid: str
    sop_instance_uid: str
    sop_class_uid: str
    transfer_syntax_uid: str
    modality: str
    body_part: str
    rows: int
    columns: int
    frames: int
    identity: Identity
    age_years: int | None = None  # the patient's at the study, at most 90; None if the header does not say
    scanner: str = ""  # manufacturer and model
    examination: Examination = field(default_factory=Examination)
    series: Series | None = None  # None: the header was kept by a version that did not read it
    instance_number: int | None = None
    bits_allocated: int = 0
    kept: StoredOnly | None = None  # why it is stored and not analysed; None: it is analysed
    rejects: RejectionNote | None = None
    # bytes of the file up to the value of its pixels, without pixels all of it; 0: a deflated file does not show it
    head_bytes: int = field(default=0, compare=False)


@dataclass(frozen=True)
class StoredFile:
    """A file whose bytes are durable in the object store."""

    sha256: str
    size_bytes: int
    header: Header
