"""Studies and their instances, and the life that a study leads."""

from dataclasses import dataclass, field
from datetime import date, datetime, time
from enum import StrEnum
from uuid import UUID


class Priority(StrEnum):
    """How soon a study is wanted; each has a queue of its own, served in this order."""

    URGENT = "urgent"
    ROUTINE = "routine"
    BACKLOG = "backlog"  # given by the nightly run only


class StudyStatus(StrEnum):
    """Where a study stands."""

    QUEUED = "queued"  # has images to analyse and waits for a worker
    RUNNING = "running"  # a worker holds a lease on it
    RETRYING = "retrying"  # failed with something that can heal; waits for its next attempt
    ANALYSED = "analysed"  # every image has a finding or an error of its own
    QUARANTINED = "quarantined"  # no image could be analysed, or the attempts are used up; the reason says why


TRANSITIONS: dict[StudyStatus, frozenset[StudyStatus]] = {
    StudyStatus.QUEUED: frozenset({StudyStatus.RUNNING}),
    StudyStatus.RUNNING: frozenset(
        {
            StudyStatus.RUNNING,  # a lease ran out and another worker took over
            StudyStatus.QUEUED,  # an image came while it ran
            StudyStatus.RETRYING,
            StudyStatus.ANALYSED,
            StudyStatus.QUARANTINED,
        }
    ),
    StudyStatus.RETRYING: frozenset({StudyStatus.RUNNING, StudyStatus.QUEUED}),
    StudyStatus.ANALYSED: frozenset({StudyStatus.QUEUED}),  # a late image, or one that is tried again
    StudyStatus.QUARANTINED: frozenset({StudyStatus.QUEUED}),  # a late image, or the nightly run
}


def may_become(now: StudyStatus, then: StudyStatus) -> bool:
    """Whether a study may go from one status to the other."""
    return then in TRANSITIONS[now]


@dataclass(frozen=True, repr=False)
class Examination:
    """What was examined, when and by which machine; "" or None where the header does not tell.

    Every text is one line of characters that can be seen. The series description is free text, which may hold a name:
    it is kept encrypted, and this has no repr.
    """

    sex: str = ""  # M, F or O (PS3.3 C.7.1.1)
    study_date: date | None = None
    study_time: time | None = None  # on the clock of the hospital; its zone is not known
    laterality: str = ""  # R, L or B
    view: str = ""  # View Position, or else the meaning of the view's code
    manufacturer: str = ""
    model: str = ""
    series_description: str = ""


@dataclass(frozen=True, repr=False)
class Identity:
    """Who the patient is. Kept encrypted in one table; has no repr, so that it cannot slip into a log."""

    patient_name: str = ""
    patient_id: str = ""
    birth_date: str = ""
    accession_number: str = ""
    issuer: str = ""  # Issuer of Patient ID, or the sender's own
    study_description: str = ""  # free text, which may hold a name


@dataclass(frozen=True)
class Header:
    """What a DICOM header tells before its pixels are touched. Identity stands apart, in `Identity`."""

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
    age_years: int | None = None  # the patient's at the study, at most 90; None where the header does not tell
    scanner: str = ""  # manufacturer and model
    examination: Examination = field(default_factory=Examination)


@dataclass(frozen=True)
class StoredFile:
    """A file whose bytes are durable in the object store."""

    sha256: str
    size_bytes: int
    header: Header


@dataclass(frozen=True)
class InstanceToAnalyse:
    """One instance that still lacks findings of the bundle that is to look at it."""

    id: UUID
    sha256: str
    frames: int  # as the header says
    pixels: int  # rows x columns x frames


@dataclass(frozen=True)
class Claim:
    """A worker's right to analyse one study until its lease runs out."""

    study_id: UUID
    token: UUID  # the final write is accepted from the holder of this token only
    attempt: int  # 1 for the first
    priority: Priority
    waits_since: datetime  # for this answer: not since it first came, if it was opened again
    instances: list[InstanceToAnalyse]
