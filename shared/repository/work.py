"""A study's way through the workers: sent, claimed, finished, retried, found again when lost."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import Enum
from itertools import groupby
from typing import Any, Literal
from uuid import UUID

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Row,
    Text,
    Uuid,
    and_,
    any_,
    case,
    cast,
    exists,
    func,
    literal,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from shared.findings import (
    Assessment,
    ExposedField,
    Finding,
    Heatmap,
    InstanceResult,
    Severity,
    abstention_of,
    summarise,
)
from shared.repository.allowances import allowances_of
from shared.repository.notices import worklist_changed
from shared.study import Claim, InstanceToAnalyse, Priority, StudyStatus, may_become
from shared.tables import FindingRow, InstanceRow, StudyRow
from shared.worklist import Allowances, due_at

RECONCILER_LOCK = 0x05_7E_0A_01
DECODING_FAILED = "decoding-failed"  # error_reason of an image that broke its decoder each time
DIED = "attempts ended without a result: the worker died or hung each time"
FASTER = {Priority.ROUTINE: Priority.URGENT, Priority.BACKLOG: Priority.ROUTINE}
HELD = (  # what `finish` needs of a row
    StudyRow.id,
    StudyRow.site_id,
    StudyRow.status,
    StudyRow.lease_token,
    StudyRow.priority,
    StudyRow.received_at,
    StudyRow.images,
    StudyRow.failed_images,
)
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
    bundle: str = ""  # of a second look: who looks; "": the study itself is to be analysed
    forgotten: bool = False  # it was sent before, was not begun, and is in no queue any more


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
    # plain columns and one statement for all: this runs for every study there is
    columns = (
        StudyRow.id,
        StudyRow.status,
        StudyRow.attempts,
        StudyRow.lease_until,
        StudyRow.not_before,
    )
    # waits for rows that are locked: their messages are spent here, and nobody else would ring soon
    rows = session.execute(
        select(*columns).where(StudyRow.id == any_(uuids(study_ids))).order_by(StudyRow.id).with_for_update()
    ).all()
    answers: dict[UUID, Answer] = {}
    free: list[UUID] = []
    given_up: list[UUID] = []
    for row in rows:
        status = StudyStatus(row.status)
        abandoned = status is StudyStatus.RUNNING and row.lease_until is not None and row.lease_until < now
        waiting = status in (StudyStatus.QUEUED, StudyStatus.RETRYING) and (
            row.not_before is None or row.not_before <= now
        )
        if abandoned and row.attempts >= max_attempts:
            given_up.append(row.id)
        elif abandoned and not alone:
            answers[row.id] = NOT_ALONE
        elif waiting or abandoned:
            free.append(row.id)
    for study_id in given_up:
        gone = session.get_one(StudyRow, study_id)
        _quarantine(gone, f"{gone.attempts} {DIED}")
        worklist_changed(session, [gone.site_id])
    claims = _take(session, free, now, lease) if free else {}
    if claims:
        for study_id, instance in unanswered(session, free, bundle):
            claims[study_id].instances.append(instance)
    answers |= claims
    return [answers.pop(study_id, None) for study_id in study_ids]


def _take(session: Session, free: Sequence[UUID], now: datetime, lease: timedelta) -> dict[UUID, Claim]:
    """Lease studies that are locked and may run; the claim of each, without its instances."""
    rows = session.execute(
        update(StudyRow)
        .where(StudyRow.id == any_(uuids(free)))
        .values(
            status=StudyStatus.RUNNING,
            attempts=StudyRow.attempts + 1,
            lease_token=func.gen_random_uuid(),
            lease_until=now + lease,
            started_at=now,
        )
        .returning(StudyRow.id, StudyRow.lease_token, StudyRow.attempts, StudyRow.queue, StudyRow.queued_at)
        .execution_options(synchronize_session=False)
    )
    return {
        row.id: Claim(row.id, row.lease_token, row.attempts, Priority(row.queue), row.queued_at, []) for row in rows
    }


def uuids(values: Sequence[UUID]) -> ColumnElement[Sequence[UUID]]:
    """One parameter for however many ids, so that the statement is always the same."""
    return cast(literal([str(value) for value in values], ARRAY(Text)), ARRAY(Uuid))


def unanswered(session: Session, study_ids: Sequence[UUID], bundle: str) -> Iterator[tuple[UUID, InstanceToAnalyse]]:
    """The instances that have neither a finding of this bundle nor an error, each after its study's id."""
    answered = exists().where(FindingRow.instance_id == InstanceRow.id, FindingRow.bundle == bundle)
    rows = session.execute(
        select(
            InstanceRow.study_id,
            InstanceRow.id,
            InstanceRow.sha256,
            InstanceRow.frames,
            InstanceRow.rows * InstanceRow.columns * InstanceRow.frames,
        )
        .where(InstanceRow.study_id == any_(uuids(study_ids)), InstanceRow.error_reason == "", ~answered)
        .order_by(InstanceRow.received_at, InstanceRow.id)
    )
    for study_id, instance_id, sha256, frames, pixels in rows:
        yield study_id, InstanceToAnalyse(instance_id, sha256, frames, pixels)


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


def write_findings(session: Session, done: Iterable[Analysed]) -> None:
    """Write what was found; a finding that stands already stays as it is."""
    findings = [
        {
            "instance_id": result.instance_id,
            "frame": finding.frame,
            "bundle": finding.bundle,
            "region": finding.region,
            "region_probability": finding.region_probability,
            "fracture_probability": finding.fracture_probability,
            "assessment": finding.assessment,
            "severity": finding.severity,
            "score": finding.score,
            "abstention": finding.abstention,
            "abstention_detail": finding.abstention_detail,
            "heatmap": finding.heatmap.values,
            "heatmap_height": finding.heatmap.height,
            "heatmap_width": finding.heatmap.width,
            "field": finding.field.numbers if finding.field else None,
        }
        for one in done
        for result in one.results
        for finding in result.findings
    ]
    if findings:
        session.execute(insert(FindingRow).on_conflict_do_nothing(), findings)


def finish(session: Session, done: Sequence[Analysed], now: datetime) -> list[bool]:
    """Write all results of these studies at once. False, and nothing written, where the lease went to somebody else."""
    claimed = [one.claim.study_id for one in done]
    rows = session.execute(
        select(*HELD).where(StudyRow.id == any_(uuids(claimed))).order_by(StudyRow.id).with_for_update()
    ).all()
    held = {row.lease_token: row for row in rows}
    # one token, one writer: should the same attempt stand here twice, the last has it
    mine = {one.claim.token: one for one in done if one.claim.token in held}
    write_findings(session, mine.values())
    for one in mine.values():
        for result in one.results:
            if result.error_reason:
                session.execute(
                    update(InstanceRow)
                    .where(InstanceRow.id == result.instance_id)
                    .values(error_reason=result.error_reason, error_text=result.error_text)
                )
    # read once the rows are ours, see `redue`; for all of them together
    allowances = allowances_of(session, {held[token].site_id for token in mine})
    ends = [
        _end(session, row, one, now, allowances[row.site_id]) for token, one in mine.items() for row in [held[token]]
    ]
    # one UPDATE for those that end alike, which nearly all do
    for _, alike in groupby(sorted(ends, key=len), key=len):
        session.execute(update(StudyRow), list(alike))
    worklist_changed(session, allowances)
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
    worklist_changed(session, [row.site_id])
    if row.attempts >= max_attempts and not blameless:
        _quarantine(row, reason)
        return "quarantined"
    row.attempts -= blameless
    _move(row, StudyStatus.RETRYING)
    row.reason, row.not_before, row.sent_at = reason, not_before, None
    row.lease_token = row.lease_until = None
    return "will retry"


def release(session: Session, site_id: UUID, study_id: UUID, now: datetime) -> ToSend | None:
    """Give a study all its attempts again, as an administrator asks; None if nothing of it was set aside.

    That is a quarantined study, or an analysed one of which an image was set aside because it broke its decoder: such
    images are tried again, those that can never be read are not.
    """
    row = session.scalar(select(StudyRow).where(StudyRow.id == study_id, StudyRow.site_id == site_id).with_for_update())
    if row is None or row.status not in (StudyStatus.QUARANTINED, StudyStatus.ANALYSED):
        return None
    again = session.scalars(
        update(InstanceRow)
        .where(InstanceRow.study_id == study_id, InstanceRow.error_reason == DECODING_FAILED)
        .values(error_reason="", error_text="")
        .returning(InstanceRow.id)
    ).all()
    if row.status == StudyStatus.ANALYSED and not again:
        return None
    row.failed_images = (
        session.scalar(select(func.count()).where(InstanceRow.study_id == study_id, InstanceRow.error_reason != ""))
        or 0
    )
    _move(row, StudyStatus.QUEUED)
    row.attempts, row.reason, row.not_before, row.queued_at = 0, "", None, now
    row.queue = row.priority
    worklist_changed(session, [site_id])
    return _mark_sent(row, now)


def any_forgotten(session: Session, heads: Mapping[Priority, datetime | None], now: datetime, grace: timedelta) -> bool:
    """Whether a study that nobody has begun is in no queue, though it was sent: see `lost`, which would take it."""
    waiting = and_(StudyRow.status.in_((StudyStatus.QUEUED, StudyStatus.RETRYING)), _due(now))
    return bool(session.scalar(select(exists().where(waiting, _in_no_queue(heads, now, grace)))))


def lost(session: Session, heads: Mapping[Priority, datetime | None], now: datetime, grace: timedelta) -> list[ToSend]:
    """Studies that stand here but in no queue, marked as sent; empty if another reconciler is at work.

    heads: when the oldest message of each queue was sent, None for an empty queue. Queues are first in, first out, so
    a study sent before its queue's oldest message cannot be waiting behind it: only that is sent again, and a long
    queue is never flooded. One that was in hand when its worker died was at its queue's front, so it goes one queue up
    rather than to the end.
    """
    if not session.scalar(text("SELECT pg_try_advisory_xact_lock(:lock)"), {"lock": RECONCILER_LOCK}):
        return []
    nowhere = or_(StudyRow.sent_at.is_(None), _in_no_queue(heads, now, grace))
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
    ).all()
    forgotten = {row.id for row in rows if row.status != StudyStatus.RUNNING and row.sent_at is not None}
    for row in rows:
        # once an attempt: a message that was sent since then was not at the front
        if row.status == StudyStatus.RUNNING and row.sent_at and row.lease_until and row.sent_at < row.lease_until:
            row.queue = FASTER.get(Priority(row.queue), row.queue)
    return [replace(_mark_sent(row, now), forgotten=row.id in forgotten) for row in rows]


def _in_no_queue(heads: Mapping[Priority, datetime | None], now: datetime, grace: timedelta) -> ColumnElement[bool]:
    """Sent, and no queue has it: none is left there, or one sent after it is the oldest already."""
    return or_(
        *(
            and_(StudyRow.queue == queue, StudyRow.sent_at < min(head or now, now) - grace)
            for queue, head in heads.items()
        )
    )


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
    _check_move(row.status, status)
    row.status = status


def _check_move(now: str, then: StudyStatus) -> None:
    assert may_become(StudyStatus(now), then), f"{now} may not become {then}"


def _quarantine(row: StudyRow, reason: str) -> None:
    _move(row, StudyStatus.QUARANTINED)
    row.reason, row.lease_token, row.lease_until, row.not_before = reason, None, None, None
    row.quarantined_at = func.clock_timestamp()


def _end(
    session: Session, row: Row[*tuple[Any, ...]], done: Analysed, now: datetime, allowances: Allowances
) -> dict[str, Any]:
    """The new values of a study's row, summed up from all its instances, those of earlier attempts too."""
    found = [finding for result in done.results for finding in result.findings]
    answered = sum(1 for result in done.results if result.findings)
    failed = row.failed_images + sum(1 for result in done.results if result.error_reason)
    if answered + failed < row.images:  # earlier attempts may have answered the others
        earlier = session.scalars(
            select(FindingRow).join(InstanceRow).where(InstanceRow.study_id == row.id, FindingRow.bundle == done.bundle)
        ).all()
        found, answered = [_finding(each) for each in earlier], len({each.instance_id for each in earlier})
    values = {"id": row.id, "failed_images": failed, "lease_token": None, "lease_until": None, "not_before": None}
    if answered + failed < row.images:  # an image arrived while this ran
        values |= {"status": StudyStatus.QUEUED, "sent_at": None, "queued_at": now, "attempts": 0}
    elif summary := summarise(found, failed):
        values |= {
            "status": StudyStatus.ANALYSED,
            "assessment": summary.assessment,
            "severity": summary.severity,
            "region": summary.region,
            "fracture_probability": summary.fracture_probability,
            "score": summary.score,
            "abstention": summary.abstention,
            "abstention_detail": summary.abstention_detail,
            "bundle": done.bundle,
            "analysed_at": now,
            "read_at": None,  # whoever read the study without this result has not seen it
            "reason": "",
            "due_at": due_at(row.received_at, Priority(row.priority), summary, allowances),
        }
    else:
        reason = _first_error(session, row.id) or "the study has no image"
        values |= {"status": StudyStatus.QUARANTINED, "reason": reason, "quarantined_at": now}
    _check_move(row.status, values["status"])
    return values


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
        Assessment(row.assessment),
        Severity(row.severity),
        Heatmap(row.heatmap, row.heatmap_height, row.heatmap_width),
        row.score,
        abstention_of(row.abstention),
        row.abstention_detail,
        ExposedField(*row.field) if row.field else None,
    )
