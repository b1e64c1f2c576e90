"""Sentences for people, made of the codes and facts that are stored: the one place that knows both.

Answers of the API have a code as `reason` and its sentence as `detail`; pages, reports and the command line show the
sentence. Codes never change their meaning, sentences may. Abstentions have theirs in `shared.domain.findings`, because
`osteon predict` and the training reports show them without an API.
"""

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, Field

from shared.domain.analysis import SupersededReason
from shared.domain.backfill import RunEnd
from shared.domain.checks import CheckReason
from shared.domain.destinations import DeliveryReason, SetReason
from shared.domain.peers import CallerReason
from shared.domain.study import Rejection, StoredOnly
from shared.domain.worklist import ReadingEnd
from shared.errors import (
    BadBundle,
    DatabaseFull,
    DatabaseUnavailable,
    Locked,
    ObjectDamaged,
    OsteonError,
    Reason,
    Rejected,
    StoreUnavailable,
    Unavailable,
)

_RAISED: tuple[type[OsteonError], ...] = (
    *Rejected.__subclasses__(), StoreUnavailable, ObjectDamaged, DatabaseUnavailable, Locked, DatabaseFull, Unavailable,
    BadBundle,
)  # fmt: skip
REASONS: dict[Reason, str] = {
    # these are raised somewhere: their default message is the sentence
    **{kind.reason: str(kind()) for kind in _RAISED},
    Reason.DECODING_FAILED: "Decoding the image failed.",
    Reason.DECODING_TIMED_OUT: "Decoding the image took too long and was stopped.",
    Reason.DECODER_DIED: "Decoding the image ended its process.",
    Reason.DECODER_OUT_OF_MEMORY: "Decoding the image needs more memory than a decoder may take and was stopped.",
    Reason.OBJECT_MISSING: "The stored bytes of an image are not in the object store. Send the file again.",
    Reason.ANALYSIS_FAILED: "The analysis failed.",
    Reason.WORKER_DIED: "The attempts ended without a result: the worker died or hung each time.",
    Reason.NO_IMAGE: "The study has no image.",
    Reason.OTHER: "An earlier version noted this in words of its own, which are not known any more.",
}
# where the fact belongs into the sentence; elsewhere it follows in brackets
_WITH_DETAIL: dict[Reason, str] = {
    Reason.DECODING_TIMED_OUT: "Decoding the image took more than {} s and was stopped.",
    Reason.DECODER_OUT_OF_MEMORY: "Decoding the image needs more than {} of memory and was stopped.",
    Reason.WORKER_DIED: "{} attempts ended without a result: the worker died or hung each time.",
    Reason.OTHER: "{}",
}
SUPERSEDED = {
    SupersededReason.IMAGE_UNREAD: "An image could not be read again.",
    SupersededReason.IMAGES_MISSING: "Not every image could be read again.",
    SupersededReason.ANALYSED_ANEW: "The study is analysed again.",
    SupersededReason.SPEAKS_ALREADY: "The study's findings are this model's already.",
    SupersededReason.OTHER_BUNDLE: "Another model is active.",
    SupersededReason.IMAGE_DELETED: "An image of the study was deleted.",
    SupersededReason.IMAGE_REJECTED: "A document rejects an image of the study.",
}
RUN_ENDS = {
    RunEnd.NEXT_RUN: "the next backfill run began",
    RunEnd.RETIRED: "its model was retired",
    RunEnd.OTHER_BUNDLE: "another model became active",
    RunEnd.PROMOTED: "its model was promoted: backfill runs go on with what is left",
    RunEnd.WINDOW_CLOSED: "its window closed",
    RunEnd.HISTORY_ENDED: "history came to its end",
    RunEnd.COUNT_REACHED: "it chose as many studies as it may",
    RunEnd.OTHER: "an earlier version noted why in words that are not known any more",
}
READING_ENDS = {
    ReadingEnd.RELEASED: "given back unread",
    ReadingEnd.EXPIRED: "expired: its page was not open any more",
    ReadingEnd.TAKEN_OVER: "taken over by another reader or login",
    ReadingEnd.READ: "the study was read",
}

KEPT = {
    StoredOnly.NOT_AN_IMAGE: "it is no image",
    StoredOnly.COLOUR: "it is in colour",
    StoredOnly.SECONDARY_CAPTURE: "it is a secondary capture, no radiograph as it was taken",
    StoredOnly.OTHER_MODALITY: "it is of another modality than radiography",
    StoredOnly.OWN_RESULT: "Osteon made it itself",
}
REJECTIONS = {
    Rejection.QUALITY: "rejected for quality reasons",
    Rejection.SAFETY: "rejected for patient safety reasons",
    Rejection.WORKLIST: "rejected as an incorrect entry of the modality worklist",
    Rejection.EXPIRED: "rejected since its retention has expired",
}

CALLERS = {
    CallerReason.BAD_TITLE: "One of its AE titles is none: correct it on the device.",
    CallerReason.CALLING_AE: "No peer has its AE title.",
    CallerReason.CALLED_AE: "The peer is known, but calls Osteon by another AE title than agreed.",
    CallerReason.ADDRESS: "The peer is known, but comes from another address.",
    CallerReason.CERTIFICATE: "The peer is known by its certificate, and showed none or another one.",
    CallerReason.DISABLED: "The peer is disabled.",
}

DELIVERIES = {
    DeliveryReason.UNREACHABLE: "It takes no connection: check its address, and that it runs.",
    DeliveryReason.UNKNOWN_NAME: "The name of its host is not known: check it, and DNS.",
    DeliveryReason.REJECTED_FOR_NOW: "It takes no association just now.",
    DeliveryReason.NO_ANSWER: "It took the connection and did not answer in time.",
    DeliveryReason.CUT: "It closed the connection in the middle.",
    DeliveryReason.BUSY: "It has no room or no time just now, as its answer says.",
    DeliveryReason.FULL: "The disk of the folder is full.",
    DeliveryReason.STORE_UNAVAILABLE: "Osteon's own store does not answer.",
    DeliveryReason.REJECTED: "It rejects the association: check both AE titles, there and here.",
    DeliveryReason.NOTHING_TAKEN: "It takes no kind of object that it is sent: choose other kinds, or change it there.",
    DeliveryReason.REFUSED: "It refuses what it was sent, as its answer says.",
    DeliveryReason.CERTIFICATE: "Its certificate is not the one that was agreed on, or nobody we trust has signed it.",
    DeliveryReason.ACCESS: "It wants a login, or forbids this.",
    DeliveryReason.BAD_ADDRESS: "There is nothing at its URL that takes this.",
    DeliveryReason.NO_FOLDER: "Its folder is missing, or cannot be written to.",
    DeliveryReason.OBJECT_MISSING: "The object is not in Osteon's store any more.",
    DeliveryReason.GAVE_UP: "It did not succeed for three days.",
    DeliveryReason.NO_COMMITMENT: "It takes no requests for storage commitment: allow it there, or ask for none.",
    DeliveryReason.COMMITMENT_REFUSED: "It was sent, and refuses to say whether it keeps it, as its answer says.",
    DeliveryReason.NOT_KEPT: "It was sent, and says that it does not keep all of it: send what it lacks again.",
    DeliveryReason.NOT_NAMED: "It was sent, and its report leaves objects out: ask it again.",
    DeliveryReason.PATIENT_DIFFERS: "It has the study under another patient: compare both before it is sent.",
    DeliveryReason.UNINTELLIGIBLE: "It answered with something that is no acknowledgement.",
    DeliveryReason.UNSUPPORTED: "It takes no ORU^R01 of HL7 2.5.1, or not this MSH-11: allow that there.",
    DeliveryReason.NO_KEY: "Webhooks cannot be signed: set OSTEON_WEBHOOK_KEY for the process that sends.",
    DeliveryReason.NO_MAIL_SERVER: "Mail cannot be sent: set OSTEON_MAIL_HOST, OSTEON_MAIL_FROM and a login that can "
    "be used, for the process that sends.",
    DeliveryReason.NO_ACCESSION_NUMBER: "The study has no accession number: nobody could tell which order this is of.",
    DeliveryReason.NOT_ENCODABLE: "Its character set lacks letters of an identifier: choose UNICODE UTF-8.",
    DeliveryReason.NO_HEADER: "The header of the study's first image cannot be read, so the patient is not known.",
    DeliveryReason.ADDRESS_NOT_ALLOWED: "Its name leads into a network that is not allowed: an operator may add it.",
    DeliveryReason.STUDY_GONE: "The study was rejected, or could not be analysed again, before it was sent.",
    DeliveryReason.NOT_TRUE_NOW: "What was to be told ended before it was told, or a reader has seen it.",
    DeliveryReason.NOT_SENT: "Sending failed with an error of Osteon's own; its log has more.",
}

RESULT_SETS = {
    SetReason.NO_RULE: "No rule of a destination wants it.",
    SetReason.NOT_ANALYSED: "The study has no result any more.",
    SetReason.CONTRADICTED: "A reader contradicts the model, or has reopened the study.",
    SetReason.SAME_ASSESSMENT: "A newer model says what was sent before.",
    SetReason.NEVER_SENT: "A newer model has nothing to correct: nothing was sent.",
    SetReason.SOURCE_LACKS: "The radiograph lacks what the objects need.",
    SetReason.NOT_MADE: "Making the objects failed: an original could not be decoded, or by an error of Osteon's own.",
    SetReason.STORE_UNAVAILABLE: "The object store did not answer.",
}


CHECKS = {
    CheckReason.API_AWAY: "The API does not answer.",
    CheckReason.REFUSED: "The API answers otherwise than it should.",
    CheckReason.NO_MODEL: "No bundle is active.",
    CheckReason.NO_WORKER: "No worker is alive.",
    CheckReason.NOT_ANALYSED: "The reference study was not analysed in time, though little else was.",
    CheckReason.QUEUE_FULL: "So much else is to be done that its turn did not come: look at the queues.",
    CheckReason.QUARANTINED: "The reference study could not be analysed.",
    CheckReason.CODES_DIFFER: "Regions, assessments or other codes are not those that are expected.",
    CheckReason.VALUES_DIFFER: "Probabilities or heatmaps differ by more than they may from those that are expected.",
    CheckReason.NOT_MADE: "The objects of its results were not made: look whether the process results runs.",
    CheckReason.WRONG_STATEMENT: "The objects of its results state another assessment than was found.",
    CheckReason.NOT_DELIVERED: "Its results did not arrive: look whether the process deliver runs.",
    CheckReason.NOT_EQUAL: "What was received is not what is stored.",
    CheckReason.NOT_DELETED: "The reference study could not be deleted.",
    CheckReason.DIED: "Its process ended in the middle.",
    CheckReason.ERROR: "It ended with an error of Osteon's own; its log has more.",
}


def check_words(reason: CheckReason | None, detail: str = "") -> str:
    """Say why a check did not end well.

    Args:
        reason: as stored; None: it ended well.
        detail: the fact that is stored with it.

    Returns:
        A sentence; "" for no reason.
    """
    return _with_detail(CHECKS[reason], detail) if reason else ""


def reason_words(reason: str | None, detail: str = "") -> str:
    """Make a sentence of a stored code.

    A code that this version does not know, as of a newer worker during an update, is returned as it is.

    Args:
        reason: of shared.errors.Reason or shared.domain.analysis; None or "" for none.
        detail: the fact that is stored with it.

    Returns:
        A sentence; "" for no reason.
    """
    if not reason:
        return ""
    if reason in set(SupersededReason):
        return _with_detail(SUPERSEDED[SupersededReason(reason)], detail)
    if reason not in set(Reason):
        return _with_detail(reason, detail)
    code = Reason(reason)
    if detail and code in _WITH_DETAIL:
        return _WITH_DETAIL[code].format(detail)
    return _with_detail(REASONS[code], detail)


def kept_words(kept: StoredOnly) -> str:
    """Why an object is stored and not analysed, as a clause."""
    return KEPT[kept]


def rejection_words(title: Rejection) -> str:
    """Why a document rejects an instance, as a phrase."""
    return REJECTIONS[title]


def run_end_words(end: RunEnd | None) -> str:
    """Why a run over history ended; "" while it runs."""
    return RUN_ENDS[end] if end else ""


def _with_detail(sentence: str, detail: str) -> str:
    return f"{sentence} ({detail})" if detail else sentence


class WithReason(BaseModel):
    """What is retrying, in quarantine, or will not be analysed: a code for programs, a sentence for people."""

    reason: Reason | Literal[""] = Field("", description="why it is retrying or quarantined, a code; empty: it is not")
    detail: str = Field("", description="the reason as a sentence")


def reason_fields(reason: str | None, detail: str = "") -> Mapping[str, str]:
    """Make the two fields of `WithReason`.

    Args:
        reason: as stored; None or "" for none.
        detail: the fact that is stored with it.

    Returns:
        `reason` and `detail`.
    """
    return {"reason": reason or "", "detail": reason_words(reason, detail)}
