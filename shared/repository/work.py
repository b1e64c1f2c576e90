"""A study's way through the workers: sent, claimed, finished, retried, found again when lost."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import Literal
from uuid import UUID, uuid4

from sqlalchemy import ColumnElement, and_, case, func, or_, select, text, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from shared.findings import Call, Finding, Heatmap, InstanceResult, Severity, summarise
from shared.study import Claim, InstanceToAnalyse, Priority, StudyStatus, may_become
from shared.tables import FindingRow, InstanceRow, StudyRow
from shared.worklist import due_at

RECONCILER_LOCK = 0x05_7E_0A_01
DIED = "attempts ended without a result: the worker died or hung each time"
URGENT_FIRST = case({queue: place for place, queue in enumerate(Priority)}, value=StudyRow.queue)


class _NotAlone(Enum):
    NOT_ALONE = "not alone"


NOT_ALONE = _NotAlone.NOT_ALONE


@dataclass(frozen=True)
class ToSend:
    """A study whose message should leave now."""

    study_id: UUID
    queue: Priority


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


def claim(
    session: Session, study_id: UUID, bundle: str, now: datetime, lease: timedelta, *, max_attempts: int, alone: bool
) -> Claim | Literal[_NotAlone.NOT_ALONE] | None:
    """Take a study for analysis, or None if it is done, held by another, not yet due for its retry, or given up.

    alone: nothing else is analysed in this process. A study whose last attempt ended without a word may have killed its
    worker, so it is given out only then; otherwise the answer is NOT_ALONE, and nothing has changed.
    """
    # waits for a row that is locked: its message is spent here, and nobody else would ring soon
    row = session.scalar(select(StudyRow).where(StudyRow.id == study_id).with_for_update())
    if row is None:
        return None
    status = StudyStatus(row.status)
    abandoned = status is StudyStatus.RUNNING and row.lease_until is not None and row.lease_until < now
    waiting = status in (StudyStatus.QUEUED, StudyStatus.RETRYING) and (row.not_before is None or row.not_before <= now)
    if not (waiting or abandoned):
        return None
    if abandoned and row.attempts >= max_attempts:
        _quarantine(row, f"{row.attempts} {DIED}")
        return None
    if abandoned and not alone:
        return NOT_ALONE
    _move(row, StudyStatus.RUNNING)
    row.attempts += 1
    row.lease_token, row.lease_until, row.started_at = uuid4(), now + lease, now
    done = select(FindingRow.instance_id).where(FindingRow.bundle == bundle)
    instances = session.scalars(
        select(InstanceRow)
        .where(InstanceRow.study_id == study_id, InstanceRow.error_reason == "", InstanceRow.id.not_in(done))
        .order_by(InstanceRow.received_at, InstanceRow.id)
    )
    return Claim(
        study_id,
        row.lease_token,
        row.attempts,
        Priority(row.queue),
        row.received_at,
        [InstanceToAnalyse(i.id, i.sha256, i.modality, i.rows * i.columns * i.frames) for i in instances],
    )


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


def finish(session: Session, claimed: Claim, results: Sequence[InstanceResult], bundle: str, now: datetime) -> bool:
    """Write all results of a study at once. False, and nothing written, if the lease went to somebody else."""
    row = _held(session, claimed)
    if row is None:
        return False
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
        for result in results
        for finding in result.findings
    ]
    if findings:
        session.execute(insert(FindingRow).on_conflict_do_nothing(), findings)
    for result in results:
        if result.error_reason:
            session.execute(
                update(InstanceRow)
                .where(InstanceRow.id == result.instance_id)
                .values(error_reason=result.error_reason, error_text=result.error_text)
            )
    _conclude(session, row, bundle, now)
    return True


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


def _due(now: datetime) -> ColumnElement[bool]:
    """Neither waiting for its next attempt nor for images that still trickle in."""
    return or_(StudyRow.not_before.is_(None), StudyRow.not_before <= now)


def _mark_sent(row: StudyRow, now: datetime) -> ToSend:
    row.sent_at = now
    return ToSend(row.id, Priority(row.queue))


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


def _conclude(session: Session, row: StudyRow, bundle: str, now: datetime) -> None:
    """Sum the study up from all its instances, those of earlier attempts too."""
    found = session.scalars(
        select(FindingRow).join(InstanceRow).where(InstanceRow.study_id == row.id, FindingRow.bundle == bundle)
    ).all()
    answered = {finding.instance_id for finding in found}
    total, failed = session.execute(
        select(func.count(), func.count().filter(InstanceRow.error_reason != "")).where(InstanceRow.study_id == row.id)
    ).one()
    row.failed_images = failed
    row.lease_token = row.lease_until = row.not_before = None
    if len(answered) + failed < total:  # an image arrived while this ran
        _move(row, StudyStatus.QUEUED)
        row.sent_at, row.attempts = None, 0
        return
    if not answered:
        error = session.scalar(
            select(InstanceRow.error_text)
            .where(InstanceRow.study_id == row.id)
            .order_by(InstanceRow.received_at)
            .limit(1)
        )
        _quarantine(row, error or "the study has no image")
        return
    summary = summarise([_finding(finding) for finding in found])
    assert summary is not None
    _move(row, StudyStatus.ANALYSED)
    row.call, row.severity, row.region = summary.call, summary.severity, summary.region
    row.fracture_probability, row.scope = summary.fracture_probability, summary.scope
    row.bundle, row.analysed_at, row.reason = bundle, now, ""
    row.due_at = due_at(row.received_at, Priority(row.priority), summary)


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
