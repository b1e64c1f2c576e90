"""Storage commitment for results that were sent: what is to be asked, and what destinations report.

Source: PS3.4 Annex J. A request is a row before it is sent, so that its report is known however early it comes, and by
which association. No report means that nothing is confirmed; nothing is sent again for it.
"""

from dataclasses import dataclass
from uuid import UUID, uuid4

from sqlalchemy import select
from sqlalchemy.orm import Session

from shared.db.clock import db_now
from shared.db.tables import (
    CommitmentRequestRow,
    DeliveryObjectRow,
    DeliveryRow,
    DestinationRow,
    ResultObjectRow,
)
from shared.dicom.commitment import Instance, Report
from shared.domain.destinations import (
    BY_DICOM,
    HALTS,
    HEALS,
    OPEN,
    Answer,
    Confirmation,
    DeliveryReason,
    next_wait,
)
from shared.domain.peers import Caller
from shared.queries import deliveries
from shared.queries.deliveries import Work

MAX_REPORTERS = 50  # destinations of all sites that one caller may be


@dataclass(frozen=True)
class Ask:
    """A request for storage commitment that is to be sent."""

    delivery_id: UUID
    transaction_uid: str
    instances: tuple[Instance, ...]


# -- the process that sends


def begin_next(session: Session, work: Work) -> Ask | None:
    """Find the next delivery that a destination is to confirm, and write down that it is asked.

    Args:
        session: the caller's transaction; the request is sent after it.
        work: as `deliveries.take` gave it.

    Returns:
        The request; None if none is due, or the destination is another process' by now.
    """
    if not deliveries.is_held(session, work, DestinationRow.confirm.is_(True)):
        return None
    while True:
        row = deliveries.lock_next(session, work, DeliveryRow.confirmation == Confirmation.DUE)
        if row is None:
            return None
        found = session.execute(
            select(ResultObjectRow.sop_class_uid, ResultObjectRow.sop_instance_uid)
            .join(DeliveryObjectRow, DeliveryObjectRow.object_id == ResultObjectRow.id)
            .where(
                DeliveryObjectRow.delivery_id == row.id,
                DeliveryObjectRow.accepted_at.is_not(None),
                DeliveryObjectRow.confirmed_at.is_(None),
            )
            .order_by(DeliveryObjectRow.place, ResultObjectRow.id)
        ).all()
        if not found:  # what it was asked about before it has confirmed, and it refuses the class of what was lacking
            row.confirmation, row.confirmed_at, row.reason = Confirmation.CONFIRMED, db_now(session), ""
            session.flush()
            continue
        # nobody can guess it: a report is taken for its Transaction UID, whoever brings it under the titles
        ask = Ask(row.id, f"2.25.{uuid4().int}", tuple((one, other) for one, other in found))
        session.add(CommitmentRequestRow(transaction_uid=ask.transaction_uid, delivery_id=row.id))
        session.flush()
        return ask


def record_asked(session: Session, ask: Ask) -> None:
    """Note that the destination has taken a request, unless its report was faster.

    Args:
        session: the caller's transaction.
        ask: as `begin_next` gave it.
    """
    row = _lock_delivery(session, ask.delivery_id)
    if row is not None and row.confirmation == Confirmation.DUE:
        row.confirmation, row.reason, row.status, row.words = Confirmation.ASKED, "", "", ""


def record_refusal(session: Session, ask: Ask, answer: Answer) -> Confirmation | None:
    """Note that a destination did not take a request: what can heal is asked again, as long as a delivery is tried.

    Args:
        session: the caller's transaction.
        ask: as `begin_next` gave it.
        answer: why.

    Returns:
        Where the delivery stands; None: a report was faster, or the delivery is gone.
    """
    row = _lock_delivery(session, ask.delivery_id)
    if row is None or row.confirmation != Confirmation.DUE or answer.reason is None:
        return None
    now = db_now(session)
    row.attempts += 1
    row.reason, row.status, row.words = answer.reason, answer.status, answer.words
    if answer.reason not in HEALS | HALTS:
        row.confirmation = Confirmation.FAILED
    elif now >= row.tried_until:
        row.confirmation, row.reason = Confirmation.FAILED, DeliveryReason.GAVE_UP
    else:
        row.next_at = now + next_wait(row.attempts)
    session.flush()
    return Confirmation(row.confirmation)


# -- reports


def find_reporters(session: Session, caller: Caller) -> tuple[UUID, ...]:
    """Find the destinations that a caller may be: its titles are theirs, the other way round.

    Titles are no secret. Whoever has them may bring reports and nothing else, and a report counts for its Transaction
    UID alone.

    Args:
        session: the caller's transaction.
        caller: as the association request shows it.

    Returns:
        The ids of enabled destinations that are asked for storage commitment.
    """
    return tuple(
        session.scalars(
            select(DestinationRow.id)
            .where(
                DestinationRow.called_ae == caller.calling_ae.strip(" "),
                DestinationRow.calling_ae == caller.called_ae.strip(" "),
                DestinationRow.confirm, DestinationRow.disabled_at.is_(None), DestinationRow.kind.in_(BY_DICOM),
            )
            .order_by(DestinationRow.id)
            .limit(MAX_REPORTERS)
        )
    )  # fmt: skip


def record_report(session: Session, destination_ids: tuple[UUID, ...], report: Report) -> bool:
    """Note a report. The same one again changes nothing; what it says of others' instances is not read.

    A delivery that is being sent again, or that an earlier report has confirmed, stays as it is.

    Args:
        session: the caller's transaction.
        destination_ids: who may have sent it.
        report: as it came.

    Returns:
        Whether we asked one of these destinations in a transaction of this UID.
    """
    delivery_id = session.scalar(
        select(CommitmentRequestRow.delivery_id)
        .join(DeliveryRow, DeliveryRow.id == CommitmentRequestRow.delivery_id)
        .where(
            CommitmentRequestRow.transaction_uid == report.transaction_uid,
            DeliveryRow.destination_id.in_(destination_ids),
        )
    )
    row = _lock_delivery(session, delivery_id) if delivery_id is not None else None
    if row is None:
        return False
    asked = session.get_one(CommitmentRequestRow, report.transaction_uid, populate_existing=True)
    if asked.reported_at is not None:
        return True
    asked.reported_at = now = db_now(session)
    if row.confirmation not in (*OPEN, Confirmation.FAILED):
        return True
    objects = session.execute(
        select(DeliveryObjectRow, ResultObjectRow.sop_class_uid, ResultObjectRow.sop_instance_uid)
        .join(ResultObjectRow, ResultObjectRow.id == DeliveryObjectRow.object_id)
        .where(DeliveryObjectRow.delivery_id == row.id, DeliveryObjectRow.accepted_at.is_not(None))
        .order_by(DeliveryObjectRow.place, ResultObjectRow.id)
    ).all()
    for one, sop_class, sop_instance in objects:
        if (sop_class, sop_instance) in report.kept:
            one.confirmed_at, one.failure = one.confirmed_at or now, ""
        elif sop_instance in report.failed:
            one.confirmed_at, one.failure = None, f"{report.failed[sop_instance]:04X}"
    failures = [one.failure for one, _, _ in objects if one.failure]
    row.words, row.status = "", failures[0] if failures else ""
    if failures:
        row.confirmation, row.reason = Confirmation.FAILED, DeliveryReason.NOT_KEPT
    elif all(one.confirmed_at is not None for one, _, _ in objects):
        row.confirmation, row.confirmed_at, row.reason = Confirmation.CONFIRMED, now, ""
    else:
        row.confirmation, row.reason = Confirmation.FAILED, DeliveryReason.NOT_NAMED
    session.flush()
    return True


def _lock_delivery(session: Session, delivery_id: UUID) -> DeliveryRow | None:
    return session.scalar(
        select(DeliveryRow)
        .where(DeliveryRow.id == delivery_id)
        .with_for_update()
        .execution_options(populate_existing=True)
    )
