"""The queue of analyses: opened, sent, claimed, finished, retried, found again when lost.

`move` alone changes the state of one. What an analysis came to is written by `finish`, in the transaction that ends it.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import Any, Literal
from uuid import UUID, uuid4

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Row,
    Text,
    Uuid,
    and_,
    any_,
    bindparam,
    case,
    cast,
    delete,
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

from shared.db.bulk import update_each
from shared.db.clock import db_now
from shared.db.notify import findings_revised, worklist_changed
from shared.db.tables import AnalysisRow, FindingRow, InstanceRow, RevisedFindingRow, StudyRow
from shared.db.tables.base import table_of
from shared.db.tables.studies import IS_ANALYSED
from shared.domain.analysis import (
    ENDED,
    OPEN,
    WAITING,
    AnalysisState,
    Claim,
    InstanceToAnalyse,
    InvalidTransition,
    LeftoverKind,
    Purpose,
    SupersededReason,
    TaskOutcome,
    may_move,
)
from shared.domain.backfill import newly_positive
from shared.domain.destinations import Occasion
from shared.domain.findings import (
    Assessment,
    Extent,
    Finding,
    Heatmap,
    InstanceResult,
    StudySummary,
    abstention_of,
    ranked_as,
    summarise,
)
from shared.domain.notices import Event
from shared.domain.security import EventKind, Subject
from shared.domain.study import Priority, StoredStatus
from shared.domain.worklist import TurnaroundTargets, due_at
from shared.errors import DECODING, Cause, Reason
from shared.queries import outbox
from shared.queries.access import Key
from shared.queries.audit import State, Target, record
from shared.queries.models import active_bundle
from shared.queries.outbox import SITE_DELIVERS
from shared.queries.turnaround import targets_of

RECONCILER_LOCK = 0x05_7E_0A_01
MAX_SENT = 1000  # lost analyses, by one transaction
NEXT_FASTER_QUEUE = {Priority.ROUTINE: Priority.URGENT, Priority.BACKLOG: Priority.ROUTINE}
IS_FIRST = AnalysisRow.purpose == Purpose.FIRST
ADD = insert(table_of(AnalysisRow))
NOT_ENDED = (*OPEN, AnalysisState.PAUSED)
QUEUE = (  # what the queue needs of a row
    AnalysisRow.id,
    AnalysisRow.study_id,
    AnalysisRow.site_id,
    AnalysisRow.purpose,
    AnalysisRow.model,
    AnalysisRow.state,
    AnalysisRow.priority,
    AnalysisRow.attempts,
    AnalysisRow.queued_at,
    AnalysisRow.sent_at,
    AnalysisRow.not_before,
    AnalysisRow.lease_token,
    AnalysisRow.lease_until,
    AnalysisRow.reason,
    AnalysisRow.run_id,
)
LOCK_OPEN = (
    select(*(table_of(AnalysisRow).c[column.key] for column in QUEUE))
    .where(
        table_of(AnalysisRow).c.study_id == any_(cast(bindparam("studies", type_=ARRAY(Text)), ARRAY(Uuid))),
        table_of(AnalysisRow).c.purpose == Purpose.FIRST,
        table_of(AnalysisRow).c.state.in_(OPEN),
    )
    .order_by(table_of(AnalysisRow).c.study_id)
    .with_for_update()
)
STUDY = (  # what the end of an analysis needs of its study
    StudyRow.id,
    StudyRow.site_id,
    StudyRow.status,
    StudyRow.priority,
    StudyRow.received_at,
    StudyRow.due_at,
    StudyRow.read_at,
    StudyRow.images,
    StudyRow.failed_images,
    StudyRow.bundle,
    StudyRow.assessment,
    StudyRow.severity,
    StudyRow.region,
    StudyRow.fracture_probability,
    SITE_DELIVERS.label("delivers"),
)
AnyRow = Row[*tuple[Any, ...]]
MIN_HISTORY_AGE = timedelta(days=1)  # the age of a study that a run looks at for its own sake, not because it is late
UNLEASED: dict[str, Any] = {"lease_token": None, "lease_until": None, "not_before": None}
FRESH_START: dict[str, Any] = UNLEASED | {"attempts": 0, "reason": "", "reason_detail": "", "finished_at": None}
URGENT_FIRST = case({queue: place for place, queue in enumerate(Priority)}, value=AnalysisRow.priority)
# of a study: what its current analysis tells
IS_CURRENT = AnalysisRow.id == StudyRow.current_analysis_id
IS_BEGUN = AnalysisRow.state.in_((AnalysisState.RUNNING, AnalysisState.RETRYING))
ATTEMPTS = func.coalesce(select(AnalysisRow.attempts).where(IS_CURRENT).scalar_subquery(), 0).label("attempts")
IS_QUEUED = StudyRow.status == StoredStatus.QUEUED
STATUS = case(
    (
        IS_QUEUED,
        func.coalesce(select(AnalysisRow.state).where(IS_CURRENT, IS_BEGUN).scalar_subquery(), StudyRow.status),
    ),
    else_=StudyRow.status,
).label("status")  # StudyStatus, as it is shown
REASON, REASON_DETAIL = (
    case((IS_QUEUED, func.coalesce(select(its).where(IS_CURRENT).scalar_subquery(), "")), else_=of_study).label(its.key)
    for its, of_study in (
        (AnalysisRow.reason, StudyRow.reason),
        (AnalysisRow.reason_detail, StudyRow.reason_detail),
    )
)
NO_HEATMAP = Heatmap(b"", 0, 0)  # a summary needs none


class NotClaimed(Enum):
    """Why there is something to do and it was not given out."""

    NOT_ALONE = "not-alone"
    LOCKED = "locked"  # by another transaction


NOT_ALONE, LOCKED = NotClaimed.NOT_ALONE, NotClaimed.LOCKED
ClaimResult = Claim | NotClaimed | None
Written = bool | Literal[NotClaimed.LOCKED]


@dataclass(frozen=True)
class DueMessage:
    """An analysis whose message should leave now."""

    analysis_id: UUID
    study_id: UUID
    queue: Priority
    sent_at: datetime  # as its row says, by Postgres' clock
    forgotten: bool = False  # it was sent before, was not begun, and is in no queue any more


@dataclass(frozen=True)
class AnalysisResult:
    """What one attempt came to."""

    claim: Claim
    results: Sequence[InstanceResult]


# -- states


def move(
    session: Session,
    rows: Sequence[AnyRow],
    then: AnalysisState,
    values_of_row: Mapping[UUID, Mapping[str, Any]] | None = None,
    **values: Any,  # noqa: ANN401 - columns
) -> Sequence[AnyRow]:
    """Move analyses to another state. Only this function changes a state, by the table in shared/domain/analysis.py.

    Args:
        session: the caller's transaction, which has locked the rows.
        rows: of analyses, with the columns of QUEUE.
        then: the state that all of them go to.
        values_of_row: by id, further columns of one.
        **values: further columns of all.

    Returns:
        id, lease_token and attempts of each, as they are now; nothing where `values_of_row` is given.

    Raises:
        InvalidTransition: One of them may not go there; nothing is written.
    """
    for row in rows:
        if not may_move(Purpose(row.purpose), AnalysisState(row.state), then):
            raise InvalidTransition(f"a {row.purpose} analysis that is {row.state} may not become {then}")
    if not rows:
        return []
    if values_of_row is not None:
        update_each(
            session, AnalysisRow, [{"id": row.id, "state": then} | values | dict(values_of_row[row.id]) for row in rows]
        )
        return []
    return session.execute(
        update(AnalysisRow)
        .where(AnalysisRow.id == any_(uuid_array([row.id for row in rows])))
        .values(state=then, **values)
        .returning(AnalysisRow.id, AnalysisRow.lease_token, AnalysisRow.attempts)
        .execution_options(synchronize_session=False)
    ).all()


def first_analysis_values(
    study_id: UUID,
    site_id: UUID,
    priority: Priority,
    now: datetime,
    **more: Any,  # noqa: ANN401
) -> dict[str, Any]:
    """Make the row of a study's own analysis that is to begin, for `add_analyses`; its study's row must name it.

    Args:
        study_id: of the study.
        site_id: of the same study.
        priority: the queue that it waits in.
        now: Postgres' time.
        **more: further columns.

    Returns:
        Columns by name, with a new id.
    """
    return {
        "id": uuid4(), "study_id": study_id, "site_id": site_id, "purpose": Purpose.FIRST, "priority": priority,
        "state": AnalysisState.QUEUED, "queued_at": now,
    } | more  # fmt: skip


def add_analyses(session: Session, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write new analyses.

    Args:
        session: the caller's transaction.
        rows: columns by name, the same ones in each; may be empty.
    """
    if rows:
        session.execute(ADD, list(rows))


def reopen_analysis(
    session: Session,
    study: StudyRow,
    now: datetime,
    running: AnyRow | None = None,
    **more: Any,  # noqa: ANN401
) -> UUID:
    """Have a study analysed, by the analysis that is open or by a new one.

    Args:
        session: the caller's transaction, which has locked the study's row.
        study: gets no reason, and becomes queued.
        now: Postgres' time.
        running: the open analysis, as `lock_open` returns it; a worker that has it in hand can write nothing any more.
            None: there is none.
        **more: columns of the analysis.

    Returns:
        Id of the analysis.
    """
    priority = more.pop("priority", Priority(study.priority))
    study.reason = study.reason_detail = ""
    if running is not None:
        values = FRESH_START | {"priority": priority, "queued_at": now, "sent_at": None} | more
        move(session, [running], AnalysisState.QUEUED, **values)
        return running.id  # type: ignore[no-any-return]
    row = first_analysis_values(study.id, study.site_id, priority, now, **more)
    study.status, study.current_analysis_id = StoredStatus.QUEUED, row["id"]
    session.flush()
    add_analyses(session, [row])
    return row["id"]  # type: ignore[no-any-return]


def lock_open(session: Session, study_ids: Sequence[UUID]) -> dict[UUID, AnyRow]:
    """Lock the open analyses of studies: until the transaction ends nobody claims or ends them.

    Args:
        session: the caller's transaction.
        study_ids: may be empty.

    Returns:
        The columns of QUEUE, by study; studies without an open analysis are left out.
    """
    if not study_ids:
        return {}
    return {row.study_id: row for row in session.execute(LOCK_OPEN, {"studies": list(map(str, study_ids))})}


def requeue(session: Session, row: AnyRow, **values: Any) -> None:  # noqa: ANN401
    """Change where an analysis waits; it gets a new message.

    Args:
        session: the caller's transaction, which has locked the row.
        row: of the analysis.
        **values: columns to change, e.g. priority, not_before.
    """
    changed = update(AnalysisRow).where(AnalysisRow.id == row.id).values(sent_at=None, **values)
    session.execute(changed.execution_options(synchronize_session=False))


def summarise_again(session: Session, study: StudyRow, why: SupersededReason, now: datetime) -> bool:
    """Have a study that lost images summed up from those that are left; until then it has no finding.

    No lease on it is valid any more, and a worker that has it in hand writes nothing.

    Args:
        session: the caller's transaction, which has locked the study's row, and has written what its images are now.
        study: counted and emptied here; without an image it is a study that is kept.
        why: stored as the reason of its reruns and shadows.
        now: Postgres' time.

    Returns:
        Whether it is analysed again.
    """
    rows = session.scalars(
        select(InstanceRow)
        .where(InstanceRow.study_id == study.id)
        .order_by(InstanceRow.received_at, InstanceRow.sop_instance_uid)
    ).all()
    left = [row for row in rows if not row.kept and not row.rejected_by_ko]
    study.images, study.kept = len(left), len(rows) - len(left)
    study.failed_images = sum(bool(one.error_reason) for one in left)
    study.assessment = study.severity = study.score = study.fracture_probability = study.abstention = None
    study.region = study.abstention_detail = study.bundle = ""
    study.views = ", ".join(dict.fromkeys(one.view for one in left if one.view))[:64]
    sides = {one.laterality for one in left if one.laterality}
    study.laterality = "B" if len(sides) > 1 else next(iter(sides), "")
    running = lock_open(session, [study.id]).get(study.id)
    if left:
        reopen_analysis(session, study, now, running)
        targets = targets_of(session, [study.site_id])[study.site_id]
        study.due_at = min(study.due_at, due_at(study.received_at, Priority(study.priority), None, targets))
    else:
        study.status, study.reason, study.reason_detail = StoredStatus.KEPT, "", ""
        study.analysed_at = study.current_analysis_id = None
        session.flush()
        if running is not None:  # it never was: no worker has ended it, and none may count it
            session.execute(delete(AnalysisRow).where(AnalysisRow.id == running.id))
    supersede(session, study.id, why)
    return bool(left)


# -- messages


def mark_unsent_as_sent(session: Session, study_ids: Sequence[UUID], now: datetime) -> list[DueMessage]:
    """Mark the analyses of studies as sent, where they still need a message; send after the commit.

    One whose row is locked is left to the reconciler.

    Args:
        session: the caller's transaction.
        study_ids: of the studies.
        now: Postgres' time.

    Returns:
        The messages to send.
    """
    queued_firsts = (
        AnalysisRow.study_id == any_(uuid_array(study_ids)),
        IS_FIRST,
        AnalysisRow.state == AnalysisState.QUEUED,
    )
    rows = session.execute(
        select(*QUEUE)
        .where(*queued_firsts, AnalysisRow.sent_at.is_(None), _is_due(now))
        .order_by(AnalysisRow.study_id)
        .with_for_update(skip_locked=True)
    ).all()
    return mark_sent(session, rows, now)


def mark_sent(session: Session, rows: Sequence[AnyRow], now: datetime, **values: Any) -> list[DueMessage]:  # noqa: ANN401
    """Mark analyses as sent; send after the commit.

    Args:
        session: the caller's transaction, which has locked the rows.
        rows: of analyses, with the columns of QUEUE.
        now: Postgres' time.
        **values: further columns to write.

    Returns:
        The messages to send, in order.
    """
    if rows:
        sent = update(AnalysisRow).where(AnalysisRow.id == any_(uuid_array([row.id for row in rows])))
        session.execute(sent.values(sent_at=now, **values).execution_options(synchronize_session=False))
    return [DueMessage(row.id, row.study_id, values.get("priority", Priority(row.priority)), now) for row in rows]


def mark_not_sent(session: Session, analysis_ids: Sequence[UUID]) -> None:
    """Note that the broker did not take messages: the reconciler sends them, at once unless a row is locked.

    Args:
        session: the caller's transaction.
        analysis_ids: of these messages.
    """
    free = (
        select(AnalysisRow.id).where(AnalysisRow.id == any_(uuid_array(analysis_ids))).with_for_update(skip_locked=True)
    )
    session.execute(
        update(AnalysisRow)
        .where(AnalysisRow.id.in_(free))
        .values(sent_at=None)
        .execution_options(synchronize_session=False)
    )


def find_for_old_message(session: Session, study_id: UUID, model: str = "") -> UUID | None:
    """Find the analysis that a message of a version before 0.2.0 asks for.

    Args:
        session: the caller's transaction.
        study_id: in the message.
        model: whose rerun is asked for; "" for the study's own analysis.

    Returns:
        Its id; None if it is not open.
    """
    which = (AnalysisRow.model == model) & ~IS_FIRST if model else IS_FIRST
    open_ones = AnalysisRow.study_id == study_id, which, AnalysisRow.state.in_(OPEN)
    return session.scalar(select(AnalysisRow.id).where(*open_ones))


# -- a worker's turn


def claim(
    session: Session,
    analysis_ids: Sequence[UUID],
    model: str,
    now: datetime,
    lease: timedelta,
    *,
    max_attempts: int,
    alone: bool = False,
) -> list[ClaimResult]:
    """Claim analyses for a worker. Those that another transaction has locked do not hold up the others.

    Args:
        session: the caller's transaction.
        analysis_ids: those that are wanted.
        model: the active bundle's name, which makes first analyses.
        now: Postgres' time.
        lease: for how long they are the caller's.
        max_attempts: an analysis is given up after so many attempts that ended without a result or an error.
        alone: nothing else is analysed in this process. An analysis whose last attempt ended without a result or an
            error may have killed its worker, and is claimed only then.

    Returns:
        For each id a claim; None if it is done, claimed by another worker, not yet due, given up or superseded; LOCKED
        if another transaction has locked it; NOT_ALONE if it must be claimed alone, and nothing has changed.
    """
    # plain columns and one statement for all: this runs for every study there is
    open_ones = AnalysisRow.id == any_(uuid_array(analysis_ids)), AnalysisRow.state.in_(OPEN)
    rows = session.execute(
        select(*QUEUE).where(*open_ones).order_by(AnalysisRow.id).with_for_update(skip_locked=True)
    ).all()
    results: dict[UUID, ClaimResult] = {}
    if len(rows) < len(set(analysis_ids)):
        present = set(session.scalars(select(AnalysisRow.id).where(*open_ones)))
        results |= dict.fromkeys(present - {row.id for row in rows}, LOCKED)
    needless = _superseded_reasons(session, [row for row in rows if row.purpose != Purpose.FIRST])
    free: list[AnyRow] = []
    given_up: list[AnyRow] = []
    for row in rows:
        running = row.state == AnalysisState.RUNNING
        abandoned = running and row.lease_until is not None and row.lease_until < now
        if not abandoned and (running or (row.not_before is not None and row.not_before > now)):
            continue
        if row.id in needless:
            _end(session, row, AnalysisState.SUPERSEDED, Cause(needless[row.id]), now)
        elif abandoned and row.attempts >= max_attempts:
            given_up.append(row)
        elif abandoned and not alone:
            results[row.id] = NOT_ALONE
        else:
            free.append(row)
    unlocked = lock_studies(session, [row.study_id for row in given_up if row.purpose == Purpose.FIRST])
    for row in given_up:
        why = Cause(Reason.WORKER_DIED, str(row.attempts))
        if row.purpose != Purpose.FIRST:
            _end(session, row, AnalysisState.FAILED, why, now)
        elif row.study_id in unlocked:
            _quarantine(session, row, why, now)
        else:
            results[row.id] = LOCKED
    results |= _lease(session, free, model, now, lease)
    return [results.pop(id_, None) for id_ in analysis_ids]


def _lease(
    session: Session, free: Sequence[AnyRow], model: str, now: datetime, lease: timedelta
) -> Mapping[UUID, ClaimResult]:
    """Lease analyses that are locked and may run."""
    claims: dict[UUID, Claim] = {}
    by_id = {row.id: row for row in free}
    its_own = {row.id: row.model if row.purpose != Purpose.FIRST else model for row in free}
    for name in set(its_own.values()):
        of_model = [row for row in free if its_own[row.id] == name]
        leased: dict[str, Any] = {
            "attempts": AnalysisRow.attempts + 1, "lease_token": func.gen_random_uuid(), "lease_until": now + lease,
            "started_at": now, "model": name,
        }  # fmt: skip
        for id_, token, attempt in move(session, of_model, AnalysisState.RUNNING, **leased):
            row = by_id[id_]
            claims[id_] = Claim(
                id_, row.study_id, Purpose(row.purpose), name, token, attempt, Priority(row.priority), row.queued_at, []
            )
        images: dict[UUID, list[InstanceToAnalyse]] = {}
        for study_id, instance in instances_without_findings(session, [row.study_id for row in of_model], name):
            images.setdefault(study_id, []).append(instance)
        for row in of_model:
            claims[row.id].instances.extend(images.get(row.study_id, []))
    return claims


def instances_without_findings(
    session: Session, study_ids: Sequence[UUID], model: str
) -> Iterator[tuple[UUID, InstanceToAnalyse]]:
    """Find the instances that have neither a finding of a model nor an error.

    Args:
        session: the caller's transaction.
        study_ids: of the studies.
        model: name of the bundle.

    Yields:
        Id of the study, and the instance.
    """
    with_findings = exists().where(FindingRow.instance_id == InstanceRow.id, FindingRow.bundle == model)
    rows = session.execute(
        select(
            InstanceRow.study_id,
            InstanceRow.id,
            InstanceRow.sha256,
            InstanceRow.frames,
            InstanceRow.rows * InstanceRow.columns * InstanceRow.frames,
        )
        .where(
            InstanceRow.study_id == any_(uuid_array(study_ids)),
            *IS_ANALYSED,
            InstanceRow.error_reason == "",
            ~with_findings,
        )
        .order_by(InstanceRow.received_at, InstanceRow.id)
    )
    for study_id, instance_id, sha256, frames, pixels in rows:
        yield study_id, InstanceToAnalyse(instance_id, sha256, frames, pixels)


def renew_leases(session: Session, tokens: Sequence[UUID], until: datetime) -> None:
    """Prolong the leases of a living worker.

    A row that is locked at the moment is left for the next time, so that there are no deadlocks.

    Args:
        session: the caller's transaction.
        tokens: of the leases.
        until: new end of all of them.
    """
    held = (
        select(AnalysisRow.id)
        .where(AnalysisRow.state == AnalysisState.RUNNING, AnalysisRow.lease_token == any_(uuid_array(tokens)))
        .with_for_update(skip_locked=True)
    )
    session.execute(
        update(AnalysisRow)
        .where(AnalysisRow.id.in_(held))
        .values(lease_until=until)
        .execution_options(synchronize_session=False)
    )


def retry(
    session: Session, claimed: Claim, why: Cause, not_before: datetime, max_attempts: int, *, blameless: bool = False
) -> TaskOutcome:
    """Give an analysis back after a failure that can heal; the last attempt ends it instead.

    Args:
        session: the caller's transaction.
        claimed: the analysis.
        why: the failure.
        not_before: when it may be tried again.
        max_attempts: so many are made at most.
        blameless: this attempt does not count.

    Returns:
        WILL_RETRY, QUARANTINED or FAILED; LEASE_LOST if nothing was written, for it is another worker's by now.
    """
    last = claimed.attempt >= max_attempts and not blameless
    if last and claimed.purpose is Purpose.FIRST:
        session.execute(select(StudyRow.id).where(StudyRow.id == claimed.study_id).with_for_update())
    held = AnalysisRow.id == claimed.analysis_id, AnalysisRow.lease_token == claimed.token
    row = session.execute(select(*QUEUE).where(*held).with_for_update()).one_or_none()
    if row is None:
        return TaskOutcome.LEASE_LOST
    if last and claimed.purpose is Purpose.FIRST:
        _quarantine(session, row, why, db_now(session))
        return TaskOutcome.QUARANTINED
    if last:
        _end(session, row, AnalysisState.FAILED, why, db_now(session))
        return TaskOutcome.FAILED
    given_back = UNLEASED | {
        "attempts": row.attempts - blameless, "reason": why.reason, "reason_detail": why.detail,
        "not_before": not_before, "sent_at": None,
    }  # fmt: skip
    move(session, [row], AnalysisState.RETRYING, **given_back)
    if claimed.purpose is Purpose.FIRST:
        worklist_changed(session, [row.site_id])
    return TaskOutcome.WILL_RETRY


def _end(session: Session, row: AnyRow, state: AnalysisState, why: Cause, now: datetime) -> None:
    move(session, [row], state, **UNLEASED, finished_at=now, reason=why.reason, reason_detail=why.detail)


def _quarantine(session: Session, row: AnyRow, why: Cause, now: datetime) -> None:
    """End a study's own analysis and set the study aside, whose row is locked too."""
    _end(session, row, AnalysisState.FAILED, why, now)
    aside = {"reason": why.reason, "reason_detail": why.detail, "quarantined_at": func.clock_timestamp()}
    session.execute(
        update(StudyRow)
        .where(StudyRow.id == row.study_id)
        .values(status=StoredStatus.QUARANTINED, **aside)
        .execution_options(synchronize_session=False)
    )
    if row.run_id is None:  # a run over history tells nobody
        outbox.record_event(session, [row.study_id], Event.QUARANTINED)
    worklist_changed(session, [row.site_id])


# -- results


def finish(session: Session, done: Sequence[AnalysisResult], now: datetime) -> list[Written]:
    """Write all results at once, and what follows from them. Locked rows do not hold up the others.

    An image that cannot be read fails a rerun, whose study keeps its earlier result.

    Args:
        session: the caller's transaction.
        done: claims with their results.
        now: Postgres' time.

    Returns:
        For each True if it was written; False if the lease is another worker's by now; LOCKED if another transaction
        has locked the analysis or its study. In both cases nothing of it was written.
    """
    tokens = [one.claim.token for one in done]
    its = (
        AnalysisRow.id == any_(uuid_array([one.claim.analysis_id for one in done])),
        AnalysisRow.state == AnalysisState.RUNNING,
    )
    rows = session.execute(select(*QUEUE).where(*its).order_by(AnalysisRow.id).with_for_update(skip_locked=True)).all()
    studies = lock_studies(session, [row.study_id for row in rows])
    held = {row.lease_token: row for row in rows if row.study_id in studies}
    locked: Collection[UUID | None] = ()
    if len(held) < len(set(tokens)):  # ours still, as far as was committed
        locked = set(session.scalars(select(AnalysisRow.lease_token).where(*its))) - held.keys()
    # one token, one writer: should the same attempt stand here twice, the last has it
    own_results = {one.claim.token: one for one in done if one.claim.token in held}
    _write_findings(session, own_results.values())
    # read once the studies are ours, see `redue`; for all of them together
    targets = targets_of(session, {held[token].site_id for token in own_results})
    rows_with_results = [(held[token], one) for token, one in own_results.items()]
    _finish_firsts(
        session, [(row, one) for row, one in rows_with_results if row.purpose == Purpose.FIRST], studies, targets, now
    )
    _finish_reruns(
        session, [(row, one) for row, one in rows_with_results if row.purpose != Purpose.FIRST], studies, targets, now
    )

    def written(one: AnalysisResult) -> Written:
        if one.claim.token in locked:
            return NotClaimed.LOCKED
        return own_results.get(one.claim.token) is one

    return [written(one) for one in done]


def lock_studies(session: Session, study_ids: Sequence[UUID], *, to_refer: bool = False) -> dict[UUID, AnyRow]:
    """Lock the rows of studies, without waiting for those that another transaction has locked.

    Args:
        session: the caller's transaction.
        study_ids: may be empty.
        to_refer: lock only as far as rows that name the studies need it.

    Returns:
        The columns of STUDY, by id, of those that are locked now.
    """
    if not study_ids:
        return {}
    query = select(*STUDY).where(StudyRow.id == any_(uuid_array(study_ids))).order_by(StudyRow.id)
    rows = session.execute(query.with_for_update(skip_locked=True, read=to_refer, key_share=to_refer))
    return {row.id: row for row in rows}


def _write_findings(session: Session, done: Iterable[AnalysisResult]) -> None:
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
            "severity": finding.extent,
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


def _finish_firsts(
    session: Session,
    done: Sequence[tuple[AnyRow, AnalysisResult]],
    studies: Mapping[UUID, AnyRow],
    targets: Mapping[UUID, TurnaroundTargets],
    now: datetime,
) -> None:
    """End studies' own analyses, and sum up their studies."""
    if not done:
        return
    for result in (result for _, one in done for result in one.results if result.error_reason):
        session.execute(
            update(InstanceRow)
            .where(InstanceRow.id == result.instance_id)
            .values(error_reason=result.error_reason, error_detail=result.error_detail)
        )
    ends: dict[AnalysisState, list[AnyRow]] = {}
    results: dict[UUID, Mapping[str, Any]] = {}
    values = []
    for row, one in done:
        study, state, results[row.id] = _end_first(session, studies[row.study_id], one, now, targets[row.site_id])
        values.append(study)
        ends.setdefault(state, []).append(row)
    update_each(session, StudyRow, values)
    for state, rows in ends.items():
        move(session, rows, state, results, **UNLEASED)
    fresh = [
        row.study_id for row in ends.get(AnalysisState.DONE, ()) if _results_are_due(row, studies[row.study_id], now)
    ]
    outbox.record_due(session, fresh, Occasion.ANALYSED, Occasion.COMPLETE)
    aside = [
        row.study_id for row in ends.get(AnalysisState.FAILED, ()) if _results_are_due(row, studies[row.study_id], now)
    ]
    outbox.record_event(session, aside, Event.QUARANTINED)
    worklist_changed(session, targets)


def _results_are_due(row: AnyRow, study: AnyRow, now: datetime) -> bool:
    """Whether a study's own results go out: not where a run over history made them, unless the study has just come."""
    return bool(study.delivers) and (row.run_id is None or now - study.received_at < MIN_HISTORY_AGE)


def _end_first(
    session: Session, study: AnyRow, done: AnalysisResult, now: datetime, targets: TurnaroundTargets
) -> tuple[dict[str, Any], AnalysisState, dict[str, Any]]:
    """The new values of a study's row, summed up from all its instances, those of earlier attempts too.

    And its analysis' state with the values of that.
    """
    found = [finding for result in done.results for finding in result.findings]
    with_findings = sum(1 for result in done.results if result.findings)
    failed = study.failed_images + sum(1 for result in done.results if result.error_reason)
    if with_findings + failed < study.images:  # earlier attempts may have analysed the others
        earlier = _findings_by_study(session, [study.id], done.claim.model).get(study.id, [])
        found, with_findings = [finding for _, finding in earlier], len({instance_id for instance_id, _ in earlier})
    values = {"id": study.id, "failed_images": failed}
    if with_findings + failed < study.images:  # an image arrived while this ran
        return values, AnalysisState.QUEUED, {"sent_at": None, "queued_at": now, "attempts": 0}
    if summary := summarise(found, failed):
        values |= _study_columns(summary, done.claim.model) | {
            "status": StoredStatus.ANALYSED,
            "analysed_at": now,
            "read_at": None,  # whoever read the study without this result has not seen it
            "reason": "",
            "reason_detail": "",
            "due_at": due_at(study.received_at, Priority(study.priority), summary, targets),
        }
        return (
            values,
            AnalysisState.DONE,
            {"finished_at": now, "reason": "", "reason_detail": ""} | _analysis_columns(summary),
        )
    why = _first_error(session, study.id)
    because = {"reason": why.reason, "reason_detail": why.detail}
    values |= because | {"status": StoredStatus.QUARANTINED, "quarantined_at": now}
    return values, AnalysisState.FAILED, {"finished_at": now} | because


def _finish_reruns(
    session: Session,
    done: Sequence[tuple[AnyRow, AnalysisResult]],
    studies: Mapping[UUID, AnyRow],
    targets: Mapping[UUID, TurnaroundTargets],
    now: datetime,
) -> None:
    """End reruns and shadows; one of which an image could not be read fails, and its study is left alone."""
    complete_rows = []
    for row, one in done:
        unread = [result.error_reason for result in one.results if result.error_reason]
        if unread:
            _end(session, row, AnalysisState.FAILED, Cause(SupersededReason.IMAGE_UNREAD, unread[0]), now)
        else:
            complete_rows.append(row)
    finish_comparisons(session, complete_rows, studies, targets, now)


def finish_comparisons(
    session: Session,
    rows: Sequence[AnyRow],
    studies: Mapping[UUID, AnyRow],
    targets: Mapping[UUID, TurnaroundTargets],
    now: datetime,
) -> None:
    """End reruns and shadows whose findings are written: compare, and give the study of a rerun its new summary.

    Summary, comparison and alert are written in one transaction with the findings. A study that was read does not come
    back into the worklist: an alert reports it. One that is unread moves up if its new class requires it.

    Args:
        session: the caller's transaction, which has locked rows and studies.
        rows: of the analyses, with the columns of QUEUE.
        studies: the columns of STUDY, by id.
        targets: turnaround targets by site.
        now: Postgres' time.
    """
    needless = _superseded_reasons(session, rows)
    summaries = _summaries(session, rows)
    compared: dict[UUID, Mapping[str, Any]] = {}
    switched, revised = [], []
    for row in rows:
        study, summary = studies[row.study_id], summaries.get(row.id)
        if row.id in needless:
            _end(session, row, AnalysisState.SUPERSEDED, Cause(needless[row.id]), now)
        elif summary is None:
            _end(session, row, AnalysisState.FAILED, Cause(SupersededReason.IMAGES_MISSING), now)
        else:
            compared[row.id] = _analysis_columns(summary) | {
                "old_region": study.region, "old_model": study.bundle, "old_assessment": study.assessment,
                "old_severity": study.severity, "old_probability": study.fracture_probability,
            }  # fmt: skip
            if row.purpose == Purpose.RERUN:
                due = due_at(study.received_at, Priority(study.priority), summary, targets[row.site_id])
                # never later than it stood: a finding that became milder pushes nobody back
                due = min(study.due_at, due) if study.read_at is None else study.due_at
                switched.append(
                    _study_columns(summary, row.model) | {"id": row.study_id, "due_at": due, "revised_at": now}
                )
                # an abstention with a high raw score contradicts "negative" as well
                if newly_positive(study.assessment, ranked_as(summary.assessment, summary.score)):
                    revised.append(_old_result_columns(row, study, summary))
    ended = UNLEASED | {"finished_at": now, "reason": "", "reason_detail": ""}
    move(session, [row for row in rows if row.id in compared], AnalysisState.DONE, compared, **ended)
    update_each(session, StudyRow, switched)
    outbox.record_newer_model(session, [one["id"] for one in switched if studies[one["id"]].delivers])
    if revised:
        anew = insert(RevisedFindingRow).on_conflict_do_nothing().returning(RevisedFindingRow.study_id)
        outbox.record_alarms(session, session.scalars(anew, revised).all(), Event.REVISED_FINDING)
    sites = {row.site_id for row in rows}
    if revised:
        findings_revised(session, sites)
    elif switched:
        worklist_changed(session, sites)


def _superseded_reasons(session: Session, rows: Sequence[AnyRow]) -> dict[UUID, SupersededReason]:
    """Find the reruns and shadows that are superseded by now, and why."""
    if not rows:
        return {}
    ids = uuid_array([row.study_id for row in rows])
    stands = session.execute(select(StudyRow.id, StudyRow.status, StudyRow.bundle).where(StudyRow.id == any_(ids)))
    studies = {row.id: row for row in stands}
    active = active_bundle(session)
    name = active.name if active else ""
    found = {}
    for row in rows:
        study = studies[row.study_id]
        if study.status != StoredStatus.ANALYSED:
            found[row.id] = SupersededReason.ANALYSED_ANEW
        elif study.bundle == row.model:
            found[row.id] = SupersededReason.SPEAKS_ALREADY
        elif row.purpose == Purpose.RERUN and row.model != name:
            found[row.id] = SupersededReason.OTHER_BUNDLE
    return found


def _study_columns(summary: StudySummary, model: str) -> dict[str, Any]:
    """Make the columns of a study's row from a result."""
    return {
        "assessment": summary.assessment,
        "severity": summary.extent,
        "region": summary.region,
        "fracture_probability": summary.fracture_probability,
        "score": summary.score,
        "abstention": summary.abstention,
        "abstention_detail": summary.abstention_detail,
        "bundle": model,
    }


def _analysis_columns(summary: StudySummary) -> dict[str, Any]:
    """Make the columns of an analysis' row from a result."""
    return {
        "assessment": summary.assessment, "severity": summary.extent,
        "fracture_probability": summary.fracture_probability,
    }  # fmt: skip


def _summaries(session: Session, rows: Sequence[AnyRow]) -> dict[UUID, StudySummary | None]:
    """Summarise this model's findings of each study; None where it has not seen all images that can be read."""
    found: dict[UUID, StudySummary | None] = {}
    for model in {row.model for row in rows}:
        of_model = {row.study_id: row.id for row in rows if row.model == model}
        summaries = _current_summaries(session, list(of_model), model)
        found |= {of_model[study_id]: summary for study_id, summary in summaries.items()}
    return found


def _current_summaries(session: Session, study_ids: Sequence[UUID], model: str) -> dict[UUID, StudySummary | None]:
    gaps = {study_id for study_id, _ in instances_without_findings(session, study_ids, model)}
    failed = dict(
        session.execute(
            select(InstanceRow.study_id, func.count())
            .where(InstanceRow.study_id == any_(uuid_array(study_ids)), *IS_ANALYSED, InstanceRow.error_reason != "")
            .group_by(InstanceRow.study_id)
        ).all()
    )  # fmt: skip
    return {
        id_: None if id_ in gaps else summarise([finding for _, finding in each], failed.get(id_, 0))
        for id_, each in _findings_by_study(session, study_ids, model).items()
    }


def _findings_by_study(
    session: Session, study_ids: Sequence[UUID], model: str
) -> dict[UUID, list[tuple[UUID, Finding]]]:
    """By study: this model's findings without their heatmaps, each with its image's id."""
    row = FindingRow
    rows = session.execute(
        select(
            InstanceRow.study_id, row.instance_id, row.frame, row.bundle, row.region, row.region_probability,
            row.fracture_probability, row.assessment, row.severity, row.score, row.abstention, row.abstention_detail,
        )
        .join(InstanceRow, InstanceRow.id == row.instance_id)
        .where(InstanceRow.study_id == any_(uuid_array(study_ids)), *IS_ANALYSED, row.bundle == model)
    )  # fmt: skip
    found: dict[UUID, list[tuple[UUID, Finding]]] = {}
    for one in rows:
        finding = Finding(
            one.frame, one.bundle, one.region, one.region_probability, one.fracture_probability,
            Assessment(one.assessment), Extent(one.severity), NO_HEATMAP, one.score, abstention_of(one.abstention),
            one.abstention_detail,
        )  # fmt: skip
        found.setdefault(one.study_id, []).append((one.instance_id, finding))
    return found


def _old_result_columns(row: AnyRow, study: AnyRow, summary: StudySummary) -> dict[str, object]:
    return {
        "id": uuid4(),
        "site_id": row.site_id,
        "study_id": row.study_id,
        "run_id": row.run_id,
        "old_bundle": study.bundle,
        "new_bundle": row.model,
        "old_assessment": study.assessment,
        "new_assessment": summary.assessment,
        "region": summary.region,
        "old_probability": study.fracture_probability or 0.0,
        "new_probability": summary.fracture_probability,
    }


def _first_error(session: Session, study_id: UUID) -> Cause:
    """Find why the first of a study's images that has an error could not be analysed."""
    error = session.execute(
        select(InstanceRow.error_reason, InstanceRow.error_detail)
        .where(InstanceRow.study_id == study_id, *IS_ANALYSED, InstanceRow.error_reason != "")
        .order_by(InstanceRow.received_at, InstanceRow.id)
        .limit(1)
    ).one_or_none()
    return Cause(Reason(error[0]), error[1]) if error else Cause(Reason.NO_IMAGE)


# -- what people decide


def release_study(session: Session, key: Key, study_id: UUID, now: datetime) -> DueMessage | None:
    """Have a study analysed again with all attempts, as an administrator asks.

    That is a quarantined study, or an analysed one of which an image was set aside because it broke its decoder: such
    images are tried again, those that can never be read are not.

    Args:
        session: the caller's transaction.
        key: of the administrator; the study must be of the same site.
        study_id: of the study.
        now: Postgres' time.

    Returns:
        The message to send after the commit; None if there is no such study, or nothing of it was set aside.
    """
    is_this = StudyRow.id == study_id, StudyRow.site_id == key.site_id
    study = session.scalar(select(StudyRow).where(*is_this).with_for_update())
    if study is None or study.status in (StoredStatus.QUEUED, StoredStatus.KEPT):
        return None
    before = _audit_state(session, study)
    again = session.scalars(
        update(InstanceRow)
        .where(InstanceRow.study_id == study_id, InstanceRow.error_reason.in_(sorted(DECODING)))
        .values(error_reason="", error_detail="")
        .returning(InstanceRow.id)
    ).all()
    if study.status == StoredStatus.ANALYSED and not again:
        return None
    study.failed_images = (
        session.scalar(
            select(func.count()).where(InstanceRow.study_id == study_id, *IS_ANALYSED, InstanceRow.error_reason != "")
        )
        or 0
    )
    id_ = reopen_analysis(session, study, now, sent_at=now)
    record(
        session, EventKind.STUDY_RELEASED, key, about=Target(Subject.STUDY, study_id), study_id=study_id, before=before,
        after=_audit_state(session, study),
    )  # fmt: skip
    worklist_changed(session, [key.site_id])
    return DueMessage(id_, study_id, Priority(study.priority), now)


def _audit_state(session: Session, study: StudyRow) -> State:
    """Make the state of a study, as events show it."""
    attempts = session.scalar(select(AnalysisRow.attempts).where(AnalysisRow.id == study.current_analysis_id))
    return {
        "status": study.status, "reason": study.reason or None, "attempts": attempts or 0,
        "images set aside": study.failed_images,
    }  # fmt: skip


def lock_analyses(session: Session, study_id: UUID) -> None:
    """Lock all analyses of a study.

    Args:
        session: the caller's transaction, which has locked the study's row.
        study_id: of the study.
    """
    session.execute(select(AnalysisRow.id).where(AnalysisRow.study_id == study_id).with_for_update())


def supersede(session: Session, study_id: UUID, why: SupersededReason) -> None:
    """End reruns and shadows of a study that have not ended: a worker that holds one writes nothing any more.

    Args:
        session: the caller's transaction.
        study_id: of the study.
        why: stored as their reason.
    """
    waits = AnalysisRow.study_id == study_id, ~IS_FIRST, AnalysisRow.state.in_(NOT_ENDED)
    for row in session.execute(select(*QUEUE).where(*waits).with_for_update()).all():
        _end(session, row, AnalysisState.SUPERSEDED, Cause(why), db_now(session))


# -- what is lost, and what waits too long


def any_lost(session: Session, oldest: Mapping[Priority, datetime | None], now: datetime, grace: timedelta) -> bool:
    """Check whether an analysis that was sent and that no worker has begun is in no queue, as `resend_lost` finds it.

    Args:
        session: the caller's transaction.
        oldest: when the oldest message of each queue was sent; None for an empty queue.
        now: Postgres' time before the look at the queues.
        grace: a message that was sent so short a time ago may still be on its way.

    Returns:
        Whether there is one.
    """
    waiting = and_(AnalysisRow.state.in_(WAITING), _is_due(now))
    return bool(session.scalar(select(exists().where(waiting, in_no_queue(oldest, now, grace)))))


def resend_lost(
    session: Session, oldest: Mapping[Priority, datetime | None], now: datetime, grace: timedelta
) -> list[DueMessage]:
    """Find analyses that are in no queue, and mark them as sent.

    Queues are first in, first out, so one sent before its queue's oldest message cannot be waiting behind it: only
    that is sent again, and a long queue is never flooded. A study's own analysis that was in hand when its worker
    died was at its queue's front, so it goes one queue up rather than to the end.

    Args:
        session: the caller's transaction.
        oldest: when the oldest message of each queue was sent; None for an empty queue.
        now: Postgres' time before the look at the queues.
        grace: a message that was sent so short a time ago may still be on its way.

    Returns:
        The messages to send, MAX_SENT at most; empty if another reconciler is at work.
    """
    if not session.scalar(text("SELECT pg_try_advisory_xact_lock(:lock)"), {"lock": RECONCILER_LOCK}):
        return []
    rows = session.execute(
        select(*QUEUE)
        .where(_is_lost(oldest, now, grace))
        .order_by(URGENT_FIRST, AnalysisRow.queued_at, AnalysisRow.id)
        .limit(MAX_SENT)
        .with_for_update(skip_locked=True)
    ).all()
    forgotten = {row.id for row in rows if row.state != AnalysisState.RUNNING and row.sent_at is not None}
    moved: dict[Priority, list[AnyRow]] = {}
    for row in rows:
        queue = Priority(row.priority)
        # once an attempt: a message that was sent since then was not at the front
        held = row.state == AnalysisState.RUNNING and row.sent_at and row.lease_until and row.sent_at < row.lease_until
        moved.setdefault(
            NEXT_FASTER_QUEUE.get(queue, queue) if held and row.purpose == Purpose.FIRST else queue, []
        ).append(row)
    sent = {
        one.analysis_id: one for queue, its in moved.items() for one in mark_sent(session, its, now, priority=queue)
    }
    return [DueMessage(row.id, row.study_id, sent[row.id].queue, now, forgotten=row.id in forgotten) for row in rows]


def lost_but_locked(
    session: Session, oldest: Mapping[Priority, datetime | None], now: datetime, grace: timedelta
) -> set[UUID]:
    """Find analyses that `resend_lost` would take if another transaction had not locked their rows.

    Args:
        session: the caller's transaction.
        oldest: when the oldest message of each queue was sent; None for an empty queue.
        now: Postgres' time before the look at the queues.
        grace: a message that was sent so short a time ago may still be on its way.

    Returns:
        Their ids; some of them, if there are more than MAX_SENT.
    """
    open_ones = AnalysisRow.state.in_(OPEN)  # as the index says it
    lost = set(session.scalars(select(AnalysisRow.id).where(open_ones, _is_lost(oldest, now, grace)).limit(MAX_SENT)))
    if not lost:
        return lost
    free = (
        select(AnalysisRow.id).where(AnalysisRow.id == any_(uuid_array(list(lost)))).with_for_update(skip_locked=True)
    )
    return lost - set(session.scalars(free))


def _is_lost(oldest: Mapping[Priority, datetime | None], now: datetime, grace: timedelta) -> ColumnElement[bool]:
    nowhere = or_(AnalysisRow.sent_at.is_(None), in_no_queue(oldest, now, grace))
    return or_(
        and_(AnalysisRow.state.in_(WAITING), _is_due(now), nowhere),
        and_(
            AnalysisRow.state == AnalysisState.RUNNING,
            AnalysisRow.lease_until < now,
            # the message that led to this attempt is spent
            or_(AnalysisRow.sent_at < AnalysisRow.lease_until, nowhere),
        ),
    )


def in_no_queue(oldest: Mapping[Priority, datetime | None], now: datetime, grace: timedelta) -> ColumnElement[bool]:
    """Make the condition that an analysis was sent, and no queue has its message.

    That is so where the queue is empty, or its oldest message was sent later.

    Args:
        oldest: when the oldest message of each queue was sent; None for an empty queue.
        now: Postgres' time before the look at the queues.
        grace: a message that was sent so short a time ago may still be on its way.

    Returns:
        A condition on AnalysisRow.
    """
    return or_(
        *(
            and_(AnalysisRow.priority == queue, AnalysisRow.sent_at < min(head or now, now) - grace)
            for queue, head in oldest.items()
        )
    )


def promote_late(
    session: Session, limits: Mapping[Priority, timedelta], now: datetime, max_studies: int
) -> list[DueMessage]:
    """Move studies that waited beyond their queue's limit one queue up, longest wait first.

    The queues are served in strict order, so without this a slower one could starve. Because `max_studies` is a small
    share of what workers finish, those promoted delay an urgent study by little, however many wait.

    Args:
        session: the caller's transaction.
        limits: longest wait in each queue that studies can be promoted from.
        now: Postgres' time.
        max_studies: so many studies at most.

    Returns:
        The messages to send; those in the slower queue will find nothing to do.
    """
    promoted: list[DueMessage] = []
    for queue, limit in limits.items():
        rows = session.execute(
            select(*QUEUE)
            .where(
                IS_FIRST,
                AnalysisRow.state.in_(WAITING),
                AnalysisRow.priority == queue,
                AnalysisRow.queued_at < now - limit,
                _is_due(now),
            )
            .order_by(AnalysisRow.queued_at, AnalysisRow.id)
            .limit(max_studies - len(promoted))
            .with_for_update(skip_locked=True)
        ).all()
        # their messages in the slower queue will find nothing to do
        promoted += mark_sent(session, rows, now, priority=NEXT_FASTER_QUEUE[queue])
    return promoted


def _is_due(now: datetime) -> ColumnElement[bool]:
    """Make the condition that an analysis waits neither for its next attempt nor for images that are still arriving."""
    return or_(AnalysisRow.not_before.is_(None), AnalysisRow.not_before <= now)


# -- what runs over history ask for


def request_reruns(
    session: Session, run_id: UUID, model: str, purpose: Purpose, studies: Sequence[tuple[UUID, UUID]], now: datetime
) -> list[AnyRow]:
    """Have a model analyse studies again, marked as sent.

    There is one rerun or shadow for each study and model. What ended before may be asked for again, except for a study
    that killed its workers, and a shadow that is done. Locked rows are left out.

    Args:
        session: the caller's transaction.
        run_id: of the run that asks.
        model: name of the bundle.
        purpose: RERUN or SHADOW.
        studies: pairs of study and site.
        now: Postgres' time.

    Returns:
        The columns of QUEUE of those that were free for it.
    """
    ids = uuid_array([study_id for study_id, _ in studies])
    there = AnalysisRow.study_id == any_(ids), AnalysisRow.model == model, ~IS_FIRST
    known = set(session.scalars(select(AnalysisRow.study_id).where(*there))) if studies else set()
    rows: Sequence[AnyRow] = []
    if known:
        rows = session.execute(select(*QUEUE).where(*there).with_for_update(skip_locked=True)).all()
    values: dict[str, Any] = {"run_id": run_id, "purpose": purpose, "queued_at": now, "sent_at": now}
    free = [row for row in rows if row.reason != Reason.WORKER_DIED and _may_be_requested_again(row, purpose)]
    move(session, free, AnalysisState.QUEUED, **FRESH_START, **values)
    new = [
        {
            "id": uuid4(), "study_id": study_id, "site_id": site_id, "model": model, "state": AnalysisState.QUEUED,
            "priority": Priority.BACKLOG, **values,
        }
        for study_id, site_id in studies
        if study_id not in known
    ]  # fmt: skip
    added: Iterable[UUID] = ()
    if new:
        added = session.scalars(insert(AnalysisRow).on_conflict_do_nothing().returning(AnalysisRow.id), new).all()
    chosen = uuid_array([*(row.id for row in free), *added])
    return list(session.execute(select(*QUEUE).where(AnalysisRow.id == any_(chosen)).order_by(AnalysisRow.study_id)))


def _may_be_requested_again(row: AnyRow, purpose: Purpose) -> bool:
    state = AnalysisState(row.state)
    if purpose is Purpose.SHADOW:
        return state in (AnalysisState.FAILED, AnalysisState.SUPERSEDED, AnalysisState.PAUSED)
    # of a shadow that was promoted it may be out still
    return state in (*ENDED, AnalysisState.PAUSED) or row.purpose == Purpose.SHADOW


def pause_unbegun(session: Session, run_id: UUID, now: datetime) -> None:
    """Take back the analyses that a run has sent and no worker has begun. Messages that are left find nothing to do.

    Locked rows are left out. Studies' own analyses are not taken back: their studies stay queued.

    Args:
        session: the caller's transaction.
        run_id: of the run.
        now: Postgres' time.
    """
    abandoned = (AnalysisRow.state == AnalysisState.RUNNING) & (AnalysisRow.lease_until < now)
    out = AnalysisRow.run_id == run_id, ~IS_FIRST, or_(AnalysisRow.state.in_(WAITING), abandoned)
    rows = session.execute(select(*QUEUE).where(*out).order_by(AnalysisRow.id).with_for_update(skip_locked=True)).all()
    move(session, rows, AnalysisState.PAUSED, sent_at=None, lease_token=None, lease_until=None)


def send_stranded(
    session: Session, run_id: UUID, where: ColumnElement[bool], limit: int, now: datetime
) -> list[DueMessage]:
    """Send stranded analyses of studies again, for a run. They keep their queue: they are late, not unimportant.

    Args:
        session: the caller's transaction.
        run_id: of the run.
        where: which of them.
        limit: so many at most, the latest first.
        now: Postgres' time.

    Returns:
        The messages to send.
    """
    rows = session.execute(
        select(*QUEUE)
        .where(IS_FIRST, AnalysisRow.state == AnalysisState.QUEUED, _is_due(now), where)
        .order_by(AnalysisRow.queued_at.desc())
        .limit(limit)
        .with_for_update(skip_locked=True)
    ).all()
    return mark_sent(session, rows, now, attempts=0, not_before=None, run_id=run_id, leftover=LeftoverKind.STRANDED)


def uuid_array(values: Sequence[UUID]) -> ColumnElement[Sequence[UUID]]:
    """Make one parameter of however many ids, so that the statement is always the same."""
    return cast(literal([str(value) for value in values], ARRAY(Text)), ARRAY(Uuid))
