"""Files that are stored, but belong to no study until an administrator decides."""

from enum import StrEnum


class HeldKind(StrEnum):
    """Why a file is held."""

    PATIENT = "patient"  # its study, by the UID, is another patient's
    PIXELS = "pixels"  # its SOP Instance UID is a stored image's, with other pixels or of another study
    CORRECTION = "correction"  # as a stored image, but for its header
    # its SOP Instance UID is a stored image's, or it is another patient's and that of a held file: a worker decodes and
    # compares both
    COMPARING = "comparing"


class HeldState(StrEnum):
    """What has become of a held file."""

    OPEN = "open"
    ANOTHER_STUDY = "another-study"  # an image of a study of its own, under a new Study Instance UID
    SAME_PATIENT = "same-patient"  # an image of the study that it came for
    APPLIED = "applied"  # a correction, now in force
    REJECTED = "rejected"
    DUPLICATE = "duplicate"  # a worker found that it equals the stored image, or another held file


class HeldDecision(StrEnum):
    """What an administrator can decide; each leads to the state of the same meaning."""

    ANOTHER_STUDY = "another-study"
    SAME_PATIENT = "same-patient"
    APPLY = "apply"
    REJECT = "reject"


STATE_OF = {
    HeldDecision.ANOTHER_STUDY: HeldState.ANOTHER_STUDY,
    HeldDecision.SAME_PATIENT: HeldState.SAME_PATIENT,
    HeldDecision.APPLY: HeldState.APPLIED,
    HeldDecision.REJECT: HeldState.REJECTED,
}
POSSIBLE_DECISIONS: dict[HeldKind, tuple[HeldDecision, ...]] = {
    HeldKind.PATIENT: (HeldDecision.ANOTHER_STUDY, HeldDecision.SAME_PATIENT, HeldDecision.REJECT),
    HeldKind.PIXELS: (HeldDecision.ANOTHER_STUDY, HeldDecision.SAME_PATIENT, HeldDecision.REJECT),
    HeldKind.CORRECTION: (HeldDecision.APPLY, HeldDecision.REJECT),
    HeldKind.COMPARING: (),  # once the worker is through
}
