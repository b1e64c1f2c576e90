"""Studies that are being received: what came for them, what their senders count, and when they are complete."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import delete, exists, func, or_, select, text, update
from sqlalchemy.orm import Session

from shared.db.clock import db_now
from shared.db.notify import worklist_changed
from shared.db.tables import InstanceRow, PeerRow, SendingRow, SeriesRow, StudyRow
from shared.domain.completeness import Completeness, Reception, Sending, completeness, is_count_due
from shared.domain.destinations import Occasion
from shared.domain.peers import PeerRule
from shared.queries import outbox
from shared.queries.peers import rule_of

BATCH_STUDIES = 500  # studies of a transaction
MAX_COUNTS = 20  # that one look takes on
# those of duplicates alone are not locked yet: none is completed while its row is written
SENDING = text("""
    INSERT INTO dicom_sendings (association_id, study_id, peer_id, began_at)
    SELECT given.association, studies.id, CAST(:peer AS uuid), clock_timestamp()
    FROM unnest(CAST(:associations AS uuid[]), CAST(:studies AS uuid[])) AS given (association, study)
    JOIN studies ON studies.id = given.study
    WHERE studies.completeness = 'receiving'
    ORDER BY studies.id
    FOR SHARE OF studies
    ON CONFLICT DO NOTHING""")


@dataclass(frozen=True)
class DueCount:
    """A question to a peer: how many instances does it have of a study?"""

    study_id: UUID
    study_instance_uid: str
    peer_id: UUID
    rule: PeerRule  # says where to ask


@dataclass(frozen=True)
class SeriesCount:
    """A peer's answer for one series. instances: None: it did not say."""

    series_instance_uid: str
    modality: str
    instances: int | None


# -- the intake


def record_received(rows: Iterable[StudyRow], now: datetime) -> None:
    """Note that instances of studies have come: more are expected from now on.

    Args:
        rows: changed in place; a study that was complete is opened again.
        now: Postgres' time.
    """
    for row in rows:
        if row.completeness != Completeness.RECEIVING or row.completeness_since is None:
            row.completeness, row.completeness_since = Completeness.RECEIVING, now
        row.last_received_at = now


# -- the listener


def record_sending(session: Session, peer_id: UUID, by_association: Mapping[UUID, Collection[UUID]]) -> None:
    """Note which associations bring which studies, as far as these are being received.

    Args:
        session: the transaction that stores the instances, which has locked those that got some.
        peer_id: of the sender.
        by_association: the studies of what came, by association.
    """
    pairs = {(association, study) for association, ids in by_association.items() for study in ids}
    if pairs:
        given = {"associations": [str(one) for one, _ in pairs], "studies": [str(one) for _, one in pairs]}
        session.execute(SENDING, given | {"peer": str(peer_id)})


def record_ended(session: Session, association_ids: Collection[UUID], *, released: bool) -> None:
    """Note that associations have ended.

    Args:
        session: the caller's transaction.
        association_ids: as `record_sending` had it.
        released: as agreed; otherwise they were aborted or cut.
    """
    its = SendingRow.association_id.in_(association_ids), SendingRow.ended_at.is_(None)
    if association_ids:
        session.execute(update(SendingRow).where(*its).values(ended_at=func.clock_timestamp(), released=released))


def take_due_counts(session: Session, busy: Collection[UUID] = ()) -> list[DueCount]:
    """Find which peers should be asked for their counts now; they count as asked once the transaction commits.

    Args:
        session: the caller's transaction.
        busy: peers that are not asked now.

    Returns:
        At most MAX_COUNTS questions, one a study and peer.
    """
    now = db_now(session)
    open_ = select(SendingRow.study_id).where(SendingRow.ended_at.is_(None))
    candidates = session.scalars(
        select(SendingRow.study_id).join(PeerRow, PeerRow.id == SendingRow.peer_id)
        .where(PeerRow.query_host != "", SendingRow.study_id.not_in(open_)).distinct()
    ).all()  # fmt: skip
    receptions = _receptions(session, candidates)
    peers_of: dict[UUID, set[UUID]] = defaultdict(set)
    for study_id, reception in receptions.items():
        for one in reception.sendings:
            if one.countable and one.peer not in busy and is_count_due(reception, one.peer, now):
                peers_of[study_id].add(one.peer)
    chosen = [(study, peer) for study, peers in sorted(peers_of.items()) for peer in sorted(peers)][:MAX_COUNTS]
    due = []
    for study_id, peer_id in chosen:
        # whoever else looks at the same time waits here, and then finds it asked
        its = (SendingRow.study_id == study_id, SendingRow.peer_id == peer_id)
        fresh = or_(SendingRow.asked_at.is_(None), SendingRow.asked_at < now)
        if session.scalars(
            update(SendingRow).where(*its, fresh).values(asked_at=now).returning(SendingRow.study_id)
        ).first():
            peer = session.get_one(PeerRow, peer_id)
            uid = session.get_one(StudyRow, study_id).study_instance_uid
            due.append(DueCount(study_id, uid, peer_id, rule_of(peer)))
    return due


def record_count(session: Session, question: DueCount, answer: Collection[SeriesCount] | int | None) -> int | None:
    """Note what a peer answered.

    Only series that radiographs can be in are compared: a peer's reports, our own among them, are not expected here.

    Args:
        session: the caller's transaction.
        question: from `take_due_counts`.
        answer: the study's series, or the number of its instances; None: no answer of use.

    Returns:
        How many instances the study should have; None: nobody knows.
    """
    row = session.scalar(select(StudyRow).where(StudyRow.id == question.study_id).with_for_update())
    if row is None or row.completeness != Completeness.RECEIVING:
        return None
    number = answer
    if number is not None and not isinstance(number, int):
        number = _expected(session, row, number)
    its = SendingRow.study_id == row.id, SendingRow.peer_id == question.peer_id
    session.execute(update(SendingRow).where(*its).values(answered_at=func.clock_timestamp(), counted=number))
    all_ = session.scalar(select(func.max(SendingRow.counted)).where(SendingRow.study_id == row.id))
    if all_ != row.expected_images:
        row.expected_images = all_
        worklist_changed(session, [row.site_id])
    return all_


# -- the worker


def complete_studies(
    session: Session, quiet: timedelta, limit: timedelta, after: UUID | None = None
) -> tuple[int, UUID | None]:
    """Decide about studies that are being received, BATCH_STUDIES of them.

    Args:
        session: the caller's transaction.
        quiet: how long nothing must have come.
        limit: how long a study is received at most.
        after: where the last call ended; None: from the beginning.

    Returns:
        How many are complete now, and where to go on; None: that was the last.
    """
    now = db_now(session)
    stored = StudyRow.images + StudyRow.kept
    sent = exists().where(SendingRow.study_id == StudyRow.id, SendingRow.ended_at.is_(None))
    query = select(StudyRow.id).where(
        StudyRow.completeness == Completeness.RECEIVING,
        # what `completeness` would leave as it is: most of those for which images come just now
        or_(
            StudyRow.expected_images == stored,
            StudyRow.completeness_since <= now - limit,
            (StudyRow.last_received_at <= now - quiet) & ~sent,
        ),
    )
    if after is not None:
        query = query.where(StudyRow.id > after)
    found = session.scalars(query.order_by(StudyRow.id).limit(BATCH_STUDIES)).all()
    decided = _decide(_receptions(session, found), now, quiet, limit)
    # those are locked that are decided; what came meanwhile is looked at once more
    decided = _decide(_receptions(session, decided, lock=True), now, quiet, limit)
    sites: set[UUID] = set()
    for state in (Completeness.COMPLETE, Completeness.FORCED):
        ids = [study_id for study_id, its in decided.items() if its is state]
        if ids:
            change = update(StudyRow).where(StudyRow.id.in_(ids)).values(completeness=state, completeness_since=now)
            sites |= set(session.scalars(change.returning(StudyRow.site_id)))
    if decided:
        session.execute(delete(SendingRow).where(SendingRow.study_id.in_(decided)))
        outbox.record_due(session, decided, Occasion.COMPLETE)
        worklist_changed(session, sites)
    return len(decided), found[-1] if len(found) == BATCH_STUDIES else None


def _decide(
    receptions: Mapping[UUID, Reception], now: datetime, quiet: timedelta, limit: timedelta
) -> dict[UUID, Completeness]:
    states = {study_id: completeness(reception, now, quiet, limit) for study_id, reception in receptions.items()}
    return {study_id: state for study_id, state in states.items() if state is not Completeness.RECEIVING}


def _receptions(session: Session, study_ids: Collection[UUID], *, lock: bool = False) -> dict[UUID, Reception]:
    """Read what is known of studies that are being received; lock: those that nobody else has locked, and lock them."""
    if not study_ids:
        return {}
    query = select(
        StudyRow.id, StudyRow.images + StudyRow.kept, StudyRow.completeness_since, StudyRow.last_received_at,
        StudyRow.expected_images,
    ).where(StudyRow.id.in_(study_ids), StudyRow.completeness == Completeness.RECEIVING)  # fmt: skip
    if lock:
        query = query.order_by(StudyRow.id).with_for_update(skip_locked=True)
    rows = session.execute(query).all()
    sendings: dict[UUID, list[Sending]] = defaultdict(list)
    its = select(SendingRow, PeerRow.query_host != "").join(PeerRow, PeerRow.id == SendingRow.peer_id)
    for row, countable in session.execute(its.where(SendingRow.study_id.in_([row[0] for row in rows]))):
        sendings[row.study_id].append(
            Sending(
                row.peer_id, row.began_at, row.ended_at, row.released, countable, row.asked_at, row.answered_at
            )
        )  # fmt: skip
    return {
        study_id: Reception(stored, since, last, expected, sendings[study_id])
        for study_id, stored, since, last, expected in rows
        if since is not None and last is not None
    }


def _expected(session: Session, row: StudyRow, series: Collection[SeriesCount]) -> int | None:
    """What the study should have: its own instances, and those that the peer has more in series of radiographs."""
    if any(one.instances is None for one in series):
        return None
    rows = session.execute(
        select(SeriesRow.series_instance_uid, SeriesRow.modality, func.count(InstanceRow.id))
        .outerjoin(InstanceRow, InstanceRow.series_id == SeriesRow.id)
        .where(SeriesRow.study_id == row.id).group_by(SeriesRow.id)
    ).all()  # fmt: skip
    stored_counts = {uid: number for uid, _, number in rows}
    modalities = {modality for _, modality, _ in rows}
    missing = sum(
        max(0, (one.instances or 0) - stored_counts.get(one.series_instance_uid, 0))
        for one in series
        if one.series_instance_uid in stored_counts or one.modality in modalities
    )
    return row.images + row.kept + missing
