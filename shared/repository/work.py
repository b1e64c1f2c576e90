"""A study's way through the workers: sent, claimed, finished, retried, found again when lost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import Literal
from uuid import UUID, uuid4

from sqlalchemy import ColumnElement, and_, case, exists, func, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from shared.findings import Call, Finding, Heatmap, InstanceResult, Severity, summarise
from shared.study import Claim, InstanceToAnalyse, Priority, StudyStatus, may_become
from shared.tables import FindingRow, InstanceRow, StudyRow
from shared.worklist import due_at

RECONCILER_LOCK = 0x05_7E_0A_01
DIED = "attempts ended without a result: the worker died or hung each time"
FASTER = {Priority.ROUTINE: Priority.URGENT, Priority.BACKLOG: Priority.ROUTINE}
URGENT_FIRST = case({queue: place for place, queue in enumerate(Priority)}, value=StudyRow.queue)


class _NotAlone(Enum):
    NOT_ALONE = "not alone"


NOT_ALONE = _NotAlone.NOT_ALONE
Answer = Claim | Literal[_NotAlone.NOT_ALONE] | None


@dataclass(frozen=True)
class ToSend:
    """A study whose message should leave now."""

    study_id: UUID
    queue: Priority
    sent_at: datetime  # as its row says, by Postgres' clock


def unsent(session: Session, study_ids: Sequence[UUID], now: datetime) -> list[ToSend]:
    """Which of these studies need a message, marking them as sent; send after the commit."""
    rows = session.scalars(
        select(StudyRow)
        .where(
            StudyRow.id.in_(study_ids),
            StudyRow.status == StudyStatus.QUEUED,
            StudyRow.sent_at.is_(None),
            _due(now),
        )
        .order_by(StudyRow.id)
        .with_for_update()
    )
    return [_mark_sent(row, now) for row in rows]


def sending_failed(session: Session, study_ids: Sequence[UUID]) -> None:
    """The broker did not take these messages: the reconciler will send them, at once unless a row is locked."""
    free = select(StudyRow.id).where(StudyRow.id.in_(study_ids)).with_for_update(skip_locked=True)
    session.execute(
        update(StudyRow).where(StudyRow.id.in_(free)).values(sent_at=None).execution_options(synchronize_session=False)
    )


def clock(session: Session) -> datetime:
    """Postgres' time: the one clock that all hosts agree on, so that a lease means the same on each."""
    return session.scalar(select(func.clock_timestamp()))  # type: ignore[return-value]


def claim(
    session: Session,
    study_ids: Sequence[UUID],
    bundle: str,
    now: datetime,
    lease: timedelta,
    *,
    max_attempts: int,
    alone: bool = False,
) -> list[Answer]:
    """Take studies for analysis, each None if it is done, held by another, not yet due for its retry, or given up.

    alone: nothing else is analysed in this process. A study whose last attempt ended without a word may have killed its
    worker, so it is given out only then; otherwise the answer is NOT_ALONE, and nothing has changed.
    """
    # waits for rows that are locked: their messages are spent here, and nobody else would ring soon
    rows = session.scalars(
        select(StudyRow).where(StudyRow.id.in_(study_ids)).order_by(StudyRow.id).with_for_update()
    ).all()
    given: dict[UUID, _NotAlone | None] = {}
    taken: list[StudyRow] = []
    for row in rows:
        status = StudyStatus(row.status)
        abandoned = status is StudyStatus.RUNNING and row.lease_until is not None and row.lease_until < now
        waiting = status in (StudyStatus.QUEUED, StudyStatus.RETRYING) and (
            row.not_before is None or row.not_before <= now
        )
        if abandoned and row.attempts >= max_attempts:
            _quarantine(row, f"{row.attempts} {DIED}")
        elif abandoned and not alone:
            given[row.id] = NOT_ALONE
        elif waiting or abandoned:
            _move(row, StudyStatus.RUNNING)
            row.attempts += 1
            row.lease_token, row.lease_until, row.started_at = uuid4(), now + lease, now
            taken.append(row)
    instances = _unanswered(session, [row.id for row in taken], bundle)
    claims = {
        row.id: Claim(
            row.id, row.lease_token, row.attempts, Priority(row.queue), row.received_at, instances.get(row.id, [])
        )
        for row in taken
        if row.lease_token
    }
    return [claims.pop(study_id, None) or given.get(study_id) for study_id in study_ids]


def _unanswered(session: Session, study_ids: Sequence[UUID], bundle: str) -> dict[UUID, list[InstanceToAnalyse]]:
    """The instances that have neither a finding of this bundle nor an error, by study."""
    if not study_ids:
        return {}
    answered = exists().where(FindingRow.instance_id == InstanceRow.id, FindingRow.bundle == bundle)
    rows = session.execute(
        select(
            InstanceRow.study_id,
            InstanceRow.id,
            InstanceRow.sha256,
            InstanceRow.modality,
            InstanceRow.rows * InstanceRow.columns * InstanceRow.frames,
        )
        .where(InstanceRow.study_id.in_(study_ids), InstanceRow.error_reason == "", ~answered)
        .order_by(InstanceRow.received_at, InstanceRow.id)
    )
    found: dict[UUID, list[InstanceToAnalyse]] = {}
    for study_id, instance_id, sha256, modality, pixels in rows:
        found.setdefault(study_id, []).append(InstanceToAnalyse(instance_id, sha256, modality, pixels))
    return found


def renew(session: Session, tokens: Sequence[UUID], until: datetime) -> None:
    """Prolong the leases of a living worker. A row that is locked just now waits for the next time: no deadlocks."""
    held = (
        select(StudyRow.id)
        .where(StudyRow.status == StudyStatus.RUNNING, StudyRow.lease_token.in_(tokens))
        .with_for_update(skip_locked=True)
    )
    session.execute(
        update(StudyRow)
        .where(StudyRow.id.in_(held))
        .values(lease_until=until)
        .execution_options(synchronize_session=False)
    )


@dataclass(frozen=True)
class Analysed:
    """What one attempt at a study came to."""

    claim: Claim
    results: Sequence[InstanceResult]
    bundle: str


def finish(session: Session, done: Sequence[Analysed], now: datetime) -> list[bool]:
    """Write all results of these studies at once. False, and nothing written, where the lease went to somebody else."""
    rows = session.scalars(
        select(StudyRow)
        .where(StudyRow.lease_token.in_([one.claim.token for one in done]))
        .order_by(StudyRow.id)
        .with_for_update()
    )
    held = {row.lease_token: row for row in rows}
    # one token, one writer: should the same attempt stand here twice, the last has it
    mine = {one.claim.token: one for one in done if one.claim.token in held}
    findings = [
        {
            "instance_id": result.instance_id,
            "frame": finding.frame,
            "bundle": finding.bundle,
            "region": finding.region,
            "region_probability": finding.region_probability,
            "fracture_probability": finding.fracture_probability,
            "call": finding.call,
            "severity": finding.severity,
            "scope": finding.scope,
            "heatmap": finding.heatmap.values,
            "heatmap_height": finding.heatmap.height,
            "heatmap_width": finding.heatmap.width,
        }
        for one in mine.values()
        for result in one.results
        for finding in result.findings
    ]
    if findings:
        session.execute(insert(FindingRow).on_conflict_do_nothing(), findings)
    for one in mine.values():
        for result in one.results:
            if result.error_reason:
                session.execute(
                    update(InstanceRow)
                    .where(InstanceRow.id == result.instance_id)
                    .values(error_reason=result.error_reason, error_text=result.error_text)
                )
    _conclude(session, [(held[token], one) for token, one in mine.items()], now)
    return [mine.get(one.claim.token) is one for one in done]


def retry(
    session: Session, claimed: Claim, reason: str, not_before: datetime, max_attempts: int, *, blameless: bool = False
) -> str:
    """Give a study back after something that can heal; the last attempt quarantines it instead. Returns what it did.

    blameless: this attempt does not count.
    """
    row = _held(session, claimed)
    if row is None:
        return "lease lost"
    if row.attempts >= max_attempts and not blameless:
        _quarantine(row, reason)
        return "quarantined"
    row.attempts -= blameless
    _move(row, StudyStatus.RETRYING)
    row.reason, row.not_before, row.sent_at = reason, not_before, None
    row.lease_token = row.lease_until = None
    return "will retry"


def lost(session: Session, heads: dict[Priority, datetime | None], now: datetime, grace: timedelta) -> list[ToSend]:
    """Studies that stand here but in no queue, marked as sent; empty if another reconciler is at work.

    heads: when the oldest message of each queue was sent, None for an empty queue. Queues are first in, first out, so
    a study sent before its queue's oldest message cannot be waiting behind it: only that is sent again, and a long
    queue is never flooded.
    """
    if not session.scalar(text("SELECT pg_try_advisory_xact_lock(:lock)"), {"lock": RECONCILER_LOCK}):
        return []
    # in no queue: none left, or one sent after it is the oldest already
    nowhere = or_(
        StudyRow.sent_at.is_(None),
        *(
            and_(StudyRow.queue == queue, StudyRow.sent_at < min(head or now, now) - grace)
            for queue, head in heads.items()
        ),
    )
    rows = session.scalars(
        select(StudyRow)
        .where(
            or_(
                and_(StudyRow.status.in_((StudyStatus.QUEUED, StudyStatus.RETRYING)), _due(now), nowhere),
                and_(
                    StudyRow.status == StudyStatus.RUNNING,
                    StudyRow.lease_until < now,
                    # the message that led to this attempt is spent
                    or_(StudyRow.sent_at < StudyRow.lease_until, nowhere),
                ),
            )
        )
        .order_by(URGENT_FIRST, StudyRow.received_at)
        .limit(1000)
        .with_for_update(skip_locked=True)
    )
    return [_mark_sent(row, now) for row in rows]


def promote(session: Session, limits: Mapping[Priority, timedelta], now: datetime, most: int) -> list[ToSend]:
    """Move up to `most` studies that waited beyond their queue's limit one queue up, longest wait first.

    The queues are served in strict order, so without this a slower one could starve. Because `most` is a small share of
    what workers finish, those promoted delay an urgent study by little, however many wait.
    """
    promoted: list[ToSend] = []
    for queue, limit in limits.items():
        rows = session.scalars(
            select(StudyRow)
            .where(
                StudyRow.status.in_((StudyStatus.QUEUED, StudyStatus.RETRYING)),
                StudyRow.queue == queue,
                StudyRow.queued_at < now - limit,
                _due(now),
            )
            .order_by(StudyRow.queued_at, StudyRow.id)
            .limit(most - len(promoted))
            .with_for_update(skip_locked=True)
        )
        for row in rows:
            row.queue = FASTER[queue]
            promoted.append(_mark_sent(row, now))  # its message in the slower queue will find nothing to do
    return promoted


def _due(now: datetime) -> ColumnElement[bool]:
    """Neither waiting for its next attempt nor for images that still trickle in."""
    return or_(StudyRow.not_before.is_(None), StudyRow.not_before <= now)


def _mark_sent(row: StudyRow, now: datetime) -> ToSend:
    row.sent_at = now
    return ToSend(row.id, Priority(row.queue), now)


def _held(session: Session, claimed: Claim) -> StudyRow | None:
    return session.scalar(
        select(StudyRow).where(StudyRow.id == claimed.study_id, StudyRow.lease_token == claimed.token).with_for_update()
    )


def _move(row: StudyRow, status: StudyStatus) -> None:
    assert may_become(StudyStatus(row.status), status), f"{row.status} may not become {status}"
    row.status = status


def _quarantine(row: StudyRow, reason: str) -> None:
    _move(row, StudyStatus.QUARANTINED)
    row.reason, row.lease_token, row.lease_until, row.not_before = reason, None, None, None


def _conclude(session: Session, done: Sequence[tuple[StudyRow, Analysed]], now: datetime) -> None:
    """Sum studies up from all their instances, those of earlier attempts too."""
    ids = [row.id for row, _ in done]
    counted = session.execute(
        select(InstanceRow.study_id, func.count(), func.count().filter(InstanceRow.error_reason != ""))
        .where(InstanceRow.study_id.in_(ids))
        .group_by(InstanceRow.study_id)
    )
    images = {study_id: (total, failed) for study_id, total, failed in counted}
    for row, one in done:
        total, failed = images.get(row.id, (0, 0))
        row.failed_images = failed
        row.lease_token = row.lease_until = row.not_before = None
        found = [finding for result in one.results for finding in result.findings]
        answered = sum(1 for result in one.results if result.findings)
        if answered + failed < total:  # earlier attempts may have answered the others
            earlier = session.scalars(
                select(FindingRow)
                .join(InstanceRow)
                .where(InstanceRow.study_id == row.id, FindingRow.bundle == one.bundle)
            ).all()
            found, answered = [_finding(each) for each in earlier], len({each.instance_id for each in earlier})
        if answered + failed < total:  # an image arrived while this ran
            _move(row, StudyStatus.QUEUED)
            row.sent_at, row.queued_at, row.attempts = None, now, 0
        elif summary := summarise(found):
            _move(row, StudyStatus.ANALYSED)
            row.call, row.severity, row.region = summary.call, summary.severity, summary.region
            row.fracture_probability, row.scope = summary.fracture_probability, summary.scope
            row.bundle, row.analysed_at, row.reason = one.bundle, now, ""
            row.due_at = due_at(row.received_at, Priority(row.priority), summary)
        else:
            _quarantine(row, _first_error(session, row.id) or "the study has no image")


def _first_error(session: Session, study_id: UUID) -> str | None:
    return session.scalar(
        select(InstanceRow.error_text)
        .where(InstanceRow.study_id == study_id)
        .order_by(InstanceRow.received_at)
        .limit(1)
    )


def _finding(row: FindingRow) -> Finding:
    return Finding(
        row.frame,
        row.bundle,
        row.region,
        row.region_probability,
        row.fracture_probability,
        Call(row.call),
        Severity(row.severity),
        row.scope,
        Heatmap(row.heatmap, row.heatmap_height, row.heatmap_width),
    )
