"""Why studies and images are deleted, as codes."""

from enum import StrEnum

MAX_NOTE_LENGTH = 500  # characters


class DeletionReason(StrEnum):
    """Why a study or an image was deleted."""

    WRONG_PATIENT = "wrong-patient"
    BY_MISTAKE = "sent-by-mistake"
    PATIENT_ASKED = "patient-asked"
    TEST = "test"
    UNUSABLE = "unusable"
    OTHER = "other"


WORDS = {
    DeletionReason.WRONG_PATIENT: "it is of another patient",
    DeletionReason.BY_MISTAKE: "it was sent by mistake",
    DeletionReason.PATIENT_ASKED: "the patient asked for it",
    DeletionReason.TEST: "it was a test",
    DeletionReason.UNUSABLE: "it cannot be analysed, or is of no use",
    DeletionReason.OTHER: "another reason",
}
