"""Requests for storage commitment that wait for their report. Source: PS3.4 J.3."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from sqlalchemy import and_, delete, func, or_, select, true, update
from sqlalchemy.orm import Session, joinedload

from shared.db.clock import db_now
from shared.db.tables import CommitmentRow, PeerRow
from shared.domain.peers import PeerRule
from shared.queries.peers import lock, rule_of

# that wait, of all peers and of one: so that none keeps the others out
MAX_REQUESTS, MAX_PEER_REQUESTS = 1000, 200
MAX_INSTANCES, MAX_PEER_INSTANCES = 400_000, 100_000
REPORT_LEASE = timedelta(seconds=150)  # a report in work: who took it on may have died


@dataclass(frozen=True)
class DueReport:
    """A report that is to be tried now."""

    id: UUID
    site_id: UUID
    peer_id: UUID
    rule: PeerRule  # says where to
    enabled: bool  # whether the peer may still have it
    transaction_uid: str
    instances: list[tuple[str, str]]  # SOP class, SOP instance
    duplicate: bool
    failed: int  # reports before it that did not arrive


def add_request(
    session: Session, peer_id: UUID, transaction_uid: str, instances: Sequence[tuple[str, str]], wait: timedelta
) -> UUID | None:
    """Keep a request until it is reported on.

    The same request again changes nothing. One with the UID of a transaction that is in work, but other instances, is
    kept as a duplicate, of which the report confirms nothing.

    Args:
        session: the caller's transaction; other requests wait until it ends.
        peer_id: who asks.
        transaction_uid: by which the peer knows the report.
        instances: SOP class and SOP instance of each.
        wait: how long the report waits at least.

    Returns:
        The id by which the report comes; None: too many wait.
    """
    lock(session, "dicom_commitments")
    its = CommitmentRow.peer_id == peer_id
    references = [list(one) for one in instances]
    same = select(CommitmentRow).where(its, CommitmentRow.transaction_uid == transaction_uid)
    known = session.scalars(same.order_by(CommitmentRow.duplicate)).all()
    for row in known:
        if row.instances == references or row.duplicate:
            return row.id
    for chosen, max_requests, max_instances in (
        (true(), MAX_REQUESTS, MAX_INSTANCES), (its, MAX_PEER_REQUESTS, MAX_PEER_INSTANCES)
    ):  # fmt: skip
        rows, size = session.execute(select(func.count(), func.sum(CommitmentRow.count)).where(chosen)).one()
        if rows >= max_requests or (size or 0) + len(references) > max_instances:
            return None
    row = CommitmentRow(
        peer_id=peer_id, transaction_uid=transaction_uid, duplicate=bool(known), instances=references,
        count=len(references), due_at=db_now(session) + wait,
    )  # fmt: skip
    session.add(row)
    session.flush()
    return row.id


def take_due(session: Session, own: Collection[UUID] = (), sooner: timedelta = timedelta(0)) -> DueReport | None:
    """Take the report on that is due first; nobody else does for REPORT_LEASE.

    Args:
        session: the caller's transaction; the report is sent after it.
        own: requests whose associations the caller has.
        sooner: by so much these are due sooner.

    Returns:
        The report; None: none is due.
    """
    now = db_now(session)
    its = and_(CommitmentRow.id.in_(own), CommitmentRow.due_at <= now + sooner)
    due = or_(CommitmentRow.due_at <= now, its) if own else CommitmentRow.due_at <= now
    row = session.scalars(
        select(CommitmentRow).where(due).order_by(CommitmentRow.due_at)
        .options(joinedload(CommitmentRow.peer, innerjoin=True).joinedload(PeerRow.key, innerjoin=True))
        .limit(1).with_for_update(of=CommitmentRow, skip_locked=True)
    ).first()  # fmt: skip
    if row is None:
        return None
    row.due_at = now + REPORT_LEASE
    peer = row.peer
    return DueReport(
        row.id, peer.site_id, peer.id, rule_of(peer), peer.disabled_at is None and peer.key.revoked_at is None,
        row.transaction_uid, [(sop_class, sop_instance) for sop_class, sop_instance in row.instances], row.duplicate,
        row.failed,
    )  # fmt: skip


def delete_request(session: Session, report_id: UUID) -> None:
    """Forget a request: its report has arrived, or is given up.

    Args:
        session: the caller's transaction.
        report_id: of the report.
    """
    session.execute(delete(CommitmentRow).where(CommitmentRow.id == report_id))


def postpone(session: Session, report_id: UUID, wait: timedelta) -> None:
    """Note that a report did not arrive, and try it again later.

    Args:
        session: the caller's transaction.
        report_id: of the report.
        wait: how long it waits.
    """
    session.execute(
        update(CommitmentRow).where(CommitmentRow.id == report_id)
        .values(failed=CommitmentRow.failed + 1, due_at=db_now(session) + wait)
    )  # fmt: skip
