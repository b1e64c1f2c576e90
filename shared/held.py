"""Files that are stored, but are no image of any study until somebody decides."""

from enum import StrEnum


class Kind(StrEnum):
    """Why a file is held."""

    PATIENT = "patient"  # its study, by the UID, is another patient's
    PIXELS = "pixels"  # its SOP Instance UID is a stored image's, with other pixels or of another study
    CORRECTION = "correction"  # as a stored image, but for its header
    COMPARING = "comparing"  # its SOP Instance UID is a stored image's; a worker decodes and compares both


class State(StrEnum):
    """What has become of a held file."""

    OPEN = "open"
    ANOTHER_STUDY = "another-study"  # an image of a study of its own, under a new Study Instance UID
    SAME_PATIENT = "same-patient"  # an image of the study that it came for
    APPLIED = "applied"  # a correction, now in force
    REJECTED = "rejected"
    DUPLICATE = "duplicate"  # a worker found that it equals the stored image


class Decision(StrEnum):
    """What an administrator can decide; each leads to the state of the same meaning."""

    ANOTHER_STUDY = "another-study"
    SAME_PATIENT = "same-patient"
    APPLY = "apply"
    REJECT = "reject"


STATE_OF = {
    Decision.ANOTHER_STUDY: State.ANOTHER_STUDY,
    Decision.SAME_PATIENT: State.SAME_PATIENT,
    Decision.APPLY: State.APPLIED,
    Decision.REJECT: State.REJECTED,
}
POSSIBLE: dict[Kind, tuple[Decision, ...]] = {
    Kind.PATIENT: (Decision.ANOTHER_STUDY, Decision.SAME_PATIENT, Decision.REJECT),
    Kind.PIXELS: (Decision.ANOTHER_STUDY, Decision.SAME_PATIENT, Decision.REJECT),
    Kind.CORRECTION: (Decision.APPLY, Decision.REJECT),
    Kind.COMPARING: (),  # once the worker is through
}
