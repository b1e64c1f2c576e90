"""A receipt: what became of each file."""

from uuid import UUID

from sqlalchemy.orm import Session

from api.backends import Backends
from api.reasons import kept_words
from api.request_metrics import count_files
from api.schemas import FileReceipt, Outcome, Receipt, StudyReceipt
from shared.domain.held import HeldKind, HeldState
from shared.domain.study import StoredOnly
from shared.errors import Rejected, Unavailable
from shared.logs import get_logger
from shared.queries.intake import IntakeResult, IntakeState, statuses_of
from shared.queries.operations import record_rejections

log = get_logger(__name__)
HELD_OUTCOMES = {  # outcome, reason and words of a file that waits for a decision
    HeldKind.PATIENT: (
        Outcome.CONFLICT,
        "other-patient",
        (
            "Stored as a conflict: under its Study Instance UID is another patient's study. It is not analysed until "
            "an administrator has decided; there is no need to send it again"
        ),
    ),
    HeldKind.PIXELS: (
        Outcome.CONFLICT,
        "other-image",
        (
            "Stored as a conflict: its SOP Instance UID is that of another stored image. It is not analysed until an "
            "administrator has decided; there is no need to send it again"
        ),
    ),
    HeldKind.CORRECTION: (
        Outcome.CORRECTION,
        "other-header",
        (
            "Stored as a correction: the image is here already, with another header. It counts once an administrator "
            "has applied it; there is no need to send it again"
        ),
    ),
    HeldKind.COMPARING: (
        Outcome.COMPARING,
        "to-be-compared",
        (
            "Stored: a file with its SOP Instance UID is here already. A worker compares both and tells the "
            "administrator what it is; there is no need to send it again"
        ),
    ),
}
DECIDED_TEXTS = {  # words of a file that was held and is sent again
    HeldState.ANOTHER_STUDY: "An administrator has made it an image of a study of its own",
    HeldState.SAME_PATIENT: "An administrator has made it an image of this study",
    HeldState.APPLIED: "An administrator has applied it as a correction",
    HeldState.REJECTED: "An administrator has rejected it, with a reason; it is stored and not analysed",
    HeldState.DUPLICATE: "It holds the same as a file that is stored already",
}


def receipt_line(
    name: str, taken: IntakeResult, sop_instance_uid: str | None, kept: StoredOnly | None = None
) -> FileReceipt:
    """Say what became of a file that was not rejected.

    Args:
        name: as the client called it.
        taken: what became of it.
        sop_instance_uid: of its header.
        kept: why it is not analysed; None: it is.

    Returns:
        Its line.
    """
    held = taken.held
    if taken.known is IntakeState.NEW and kept is not None:
        return FileReceipt(
            file=name, outcome=Outcome.KEPT, reason=kept, study_id=taken.study_id, sop_instance_uid=sop_instance_uid,
            text=f"Stored, and not analysed: {kept_words(kept)}",
        )  # fmt: skip
    if taken.known is not IntakeState.HELD or held is None:
        outcome = Outcome.STORED if taken.known is IntakeState.NEW else Outcome.DUPLICATE
        return FileReceipt(file=name, outcome=outcome, study_id=taken.study_id, sop_instance_uid=sop_instance_uid)
    if held.state is not HeldState.OPEN:
        # of another study, the one that it was given; who sends it again has nothing more to do
        study_id = held.new_study_id or (None if held.state is HeldState.REJECTED else held.study_id)
        return FileReceipt(
            file=name, outcome=Outcome.DUPLICATE, reason=held.state, text=DECIDED_TEXTS[held.state], study_id=study_id,
            sop_instance_uid=sop_instance_uid,
        )  # fmt: skip
    outcome, reason, text = HELD_OUTCOMES[held.kind]
    # whose study a conflict came for is not told: it is another patient's
    study_id = held.study_id if held.kind is HeldKind.CORRECTION else None
    return FileReceipt(
        file=name, outcome=outcome, reason=reason, text=text, study_id=study_id, sop_instance_uid=sop_instance_uid
    )


def rejection_line(name: str, why: Rejected) -> FileReceipt:
    """Say why a file was rejected.

    Args:
        name: as the client called it.
        why: the reason.

    Returns:
        Its line.
    """
    return FileReceipt(
        file=name,
        outcome=Outcome.REJECTED,
        reason=why.reason,
        failure=f"0x{why.failure:04X}",
        text=str(why),
        fact=why.detail,
    )


def receipt_of(session: Session, lines: list[FileReceipt], new: dict[UUID, int]) -> Receipt:
    """Sum up a receipt.

    Args:
        session: the transaction that wrote the rows.
        lines: one a file.
        new: how many images each study got, 0 for those whose images were there.

    Returns:
        The receipt.
    """
    count = {outcome: sum(line.outcome is outcome for line in lines) for outcome in Outcome}
    statuses = statuses_of(session, new)
    studies = [
        StudyReceipt(id=study_id, url=f"/api/v1/studies/{study_id}", status=statuses[study_id], new_images=images)
        for study_id, images in new.items()
    ]
    return Receipt(
        stored=count[Outcome.STORED],
        duplicate=count[Outcome.DUPLICATE],
        rejected=count[Outcome.REJECTED],
        kept=count[Outcome.KEPT],
        conflict=count[Outcome.CONFLICT],
        correction=count[Outcome.CORRECTION],
        comparing=count[Outcome.COMPARING],
        skipped=count[Outcome.SKIPPED],
        files=lines,
        studies=studies,
    )


def record_outcomes(backends: Backends, site_id: UUID, lines: list[FileReceipt]) -> None:
    """Count the files of a request, and record why some were rejected; names stay in the receipt. Fails no upload.

    Args:
        backends: of this process.
        site_id: the site.
        lines: of the receipt.
    """
    for line in lines:
        count_files(line.outcome, line.reason)
    rejected = [
        (line.reason or "", line.failure or "", line.fact) for line in lines if line.outcome is Outcome.REJECTED
    ]
    try:
        if rejected:
            with backends.database.transaction() as session:
                record_rejections(session, site_id, rejected)
    except Unavailable as error:
        log.warning("rejections not recorded", files=len(rejected), why=str(error))
    except Exception:
        log.exception("rejections not recorded", files=len(rejected))
