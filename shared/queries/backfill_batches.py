"""What a run sends next: failed and stranded studies, what was taken back, then history from its cursor on."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import exists, or_, select
from sqlalchemy.orm import Session

from shared.db.notify import worklist_changed
from shared.db.tables import AnalysisRow, BackfillRunRow, InstanceRow, StudyRow
from shared.db.tables.access import is_counted
from shared.db.tables.studies import IS_ANALYSED
from shared.domain.analysis import AnalysisState, LeftoverKind, Purpose
from shared.domain.backfill import Stage
from shared.domain.study import Priority, StoredStatus
from shared.errors import Reason
from shared.queries import analyses
from shared.queries.analyses import DueMessage
from shared.queries.backfill_history import ORDER, outdated
from shared.queries.backfill_reports import BACKFILL
from shared.queries.quarantine import dismissed
from shared.queries.turnaround import targets_of

STRANDED_AFTER = timedelta(hours=6)
MAX_BATCH_STUDIES = 1000  # studies a transaction


@dataclass
class Batch:
    """What one transaction chose to send."""

    to_send: list[DueMessage] = field(default_factory=list)
    again: bool = False  # more can be sent at once


def studies_left(run: BackfillRunRow) -> int:
    """How many studies a run may still choose; those that are only switched cost nothing and do not count."""
    chosen = run.failed + run.stranded + run.outdated - run.switched
    return MAX_BATCH_STUDIES if run.most is None else run.most - chosen


def fill_batch(
    session: Session,
    run: BackfillRunRow,
    count: int,
    oldest: Mapping[Priority, datetime | None],
    grace: timedelta,
    now: datetime,
    batch: Batch,
) -> None:
    """Fill a batch: failed and stranded studies, those that an earlier run paused, then history from the cursor on.

    Args:
        session: the caller's transaction.
        run: the run, locked; its counts and cursor are changed.
        count: how many studies to choose.
        oldest: when the oldest waiting message of each queue was sent; None: the queue is empty.
        grace: time that a message may be on its way.
        now: Postgres' time.
        batch: is filled.
    """
    if run.stage == Stage.LEFTOVERS:
        # half of a run is kept for history: were more studies broken than a run may choose, it would never come
        share = max(0, studies_left(run) - (run.most or 0) // 2)
        chosen = _leftovers(session, run, min(count, share), oldest, grace, now)
        batch.to_send += chosen
        count -= len(chosen)
        if count and studies_left(run) > 0:
            run.stage = Stage.HISTORY
    if run.stage == Stage.HISTORY and count and studies_left(run) > 0:
        paused = _paused(session, run, min(count, studies_left(run)), now)
        batch.to_send += paused
        count -= len(paused)
    if run.stage == Stage.HISTORY and count and studies_left(run) > 0:
        reruns, full = _history(session, run, min(count, studies_left(run)), now)
        batch.to_send += reruns
        batch.again |= full and len(reruns) < count


def _leftovers(
    session: Session,
    run: BackfillRunRow,
    limit: int,
    oldest: Mapping[Priority, datetime | None],
    grace: timedelta,
    now: datetime,
) -> list[DueMessage]:
    """Failed and stranded studies back to the queue, each once a run.

    Failed ones are quarantined studies of which images without an error of their own may have healed.
    """
    before = now - STRANDED_AFTER
    # what merely waits in a long queue is not stranded: see `analyses.resend_lost`
    nowhere = analyses.in_no_queue(oldest, now, grace)
    stranded = or_(
        (AnalysisRow.sent_at < before) & nowhere, AnalysisRow.sent_at.is_(None) & (AnalysisRow.queued_at < before)
    ) & (AnalysisRow.run_id.is_distinct_from(run.id) & is_counted(AnalysisRow.site_id))
    # stranded ones first: the others become queued here, and would count as stranded too
    first = analyses.send_stranded(session, run.id, stranded, limit, now)
    then = _retry_failed(session, run, limit - len(first), now)
    run.stranded, run.failed = run.stranded + len(first), run.failed + len(then)
    return first + then


def _retry_failed(session: Session, run: BackfillRunRow, limit: int, now: datetime) -> list[DueMessage]:
    """Quarantined studies of which images without an error of their own may have healed, each once a run."""
    tried = exists().where(AnalysisRow.study_id == StudyRow.id, AnalysisRow.run_id == run.id, analyses.IS_FIRST)
    # an image that can never be analysed does not become readable by itself
    healable = select(InstanceRow.study_id).where(InstanceRow.error_reason == "", *IS_ANALYSED)
    studies = session.scalars(
        select(StudyRow)
        .where(
            StudyRow.status == StoredStatus.QUARANTINED,
            is_counted(StudyRow.site_id),
            # one that killed its workers would do so in every run, with its neighbours: it is left to people
            StudyRow.reason != Reason.WORKER_DIED,
            ~dismissed(),
            StudyRow.id.in_(healable),
            ~tried,
        )
        .order_by(StudyRow.received_at.desc())
        .limit(limit)
        .with_for_update(skip_locked=True)
    ).all()
    asked: dict[str, Any] = {
        "priority": Priority.BACKLOG,
        "sent_at": now,
        "run_id": run.id,
        "leftover": LeftoverKind.FAILED,
    }
    ids = {study.id: analyses.reopen_analysis(session, study, now, **asked) for study in studies}
    worklist_changed(session, {study.site_id for study in studies})
    return [DueMessage(ids[study.id], study.id, Priority.BACKLOG, now) for study in studies]


def _paused(session: Session, run: BackfillRunRow, limit: int, now: datetime) -> list[DueMessage]:
    """What was taken back when an earlier window of this bundle closed."""
    rows = session.execute(
        select(*analyses.QUEUE)
        .join(StudyRow, StudyRow.id == AnalysisRow.study_id)
        .where(
            AnalysisRow.state == AnalysisState.PAUSED,
            AnalysisRow.model == run.bundle,
            AnalysisRow.purpose == _purpose(run),
        )
        .order_by(*(column.desc() for column in ORDER))
        .limit(limit)
        .with_for_update(skip_locked=True, of=AnalysisRow)
    ).all()
    analyses.move(session, rows, AnalysisState.QUEUED, run_id=run.id, not_before=None)
    run.outdated += len(rows)
    return analyses.mark_sent(session, rows, now)


def _purpose(run: BackfillRunRow) -> Purpose:
    """What a run's analyses of history are for."""
    return Purpose.RERUN if run.purpose == BACKFILL else Purpose.SHADOW


def _history(session: Session, run: BackfillRunRow, limit: int, now: datetime) -> tuple[list[DueMessage], bool]:
    """The next of history, and whether there may be more. Those that the bundle has seen are switched at once."""
    page = outdated(session, run, limit)
    if page:
        run.cursor_day, run.cursor_probability, run.cursor_study = page[-1].day, page[-1].probability, page[-1].id
    if len(page) < limit:
        run.stage = Stage.EXHAUSTED
    # one whose study is locked is passed by: the next run over history comes to it
    free = analyses.lock_studies(session, [row.id for row in page], to_refer=True)
    studies = [(row.id, row.site_id) for row in page if row.id in free]
    chosen = analyses.request_reruns(session, run.id, run.bundle, _purpose(run), studies, now)
    if not chosen:
        return [], run.stage != Stage.EXHAUSTED
    unseen = {
        study_id
        for study_id, _ in analyses.instances_without_findings(session, [row.study_id for row in chosen], run.bundle)
    }
    ready = analyses.lock_studies(session, [row.study_id for row in chosen if row.study_id not in unseen])
    switched = [row for row in chosen if row.study_id in ready]
    # read once the studies are ours, see `redue`
    targets = targets_of(session, {row.site_id for row in switched})
    analyses.finish_comparisons(session, switched, ready, targets, now)
    run.outdated, run.switched = run.outdated + len(chosen), run.switched + len(switched)
    place = {row.id: place for place, row in enumerate(page)}
    to_send = sorted((row for row in chosen if row.study_id not in ready), key=lambda row: place[row.study_id])
    return [DueMessage(row.id, row.study_id, Priority.BACKLOG, now) for row in to_send], run.stage != Stage.EXHAUSTED
