"""What the administrator sees now: workers, queues, quarantine, and what was rejected. All of it bounded."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import Row, case, delete, func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from shared.db.clock import db_now
from shared.db.tables import AnalysisRow, RejectionRow, StudyRow, WorkerRow
from shared.db.tables.access import is_counted
from shared.domain.analysis import WAITING, AnalysisState
from shared.domain.study import Priority, StoredStatus
from shared.queries.access import Key
from shared.queries.analyses import ATTEMPTS, IS_FIRST, DueMessage, release_study
from shared.queries.quarantine import dismissed

SILENT_AFTER = timedelta(seconds=20)  # four heartbeats
ENDED_SHOWN_FOR = timedelta(days=1)  # a worker that has ended
MAX_WORKERS = 100
URGENT_LIMIT = timedelta(minutes=2)  # that an urgent study should wait, at most
MAX_REASONS = 50
MAX_RELEASED = 500  # studies in one transaction

# -- workers


@dataclass(frozen=True)
class Heartbeat:
    """What a worker process reports every few seconds."""

    id: UUID
    host: str
    pid: int
    device: str
    bundle: str
    threads: int
    taken: int
    in_hand: int
    stopped: bool = False


def write_heartbeat(session: Session, heartbeat: Heartbeat) -> None:
    """Write a worker's heartbeat, at Postgres' time.

    Args:
        session: the caller's transaction.
        heartbeat: what the worker says of itself.
    """
    now = func.clock_timestamp()
    values = {
        "device": heartbeat.device[:255],
        "bundle": heartbeat.bundle,
        "taken": heartbeat.taken,
        "in_hand": heartbeat.in_hand,
        "stopped_at": now if heartbeat.stopped else None,
    }
    row = {
        "id": heartbeat.id,
        "host": heartbeat.host[:255],
        "pid": heartbeat.pid,
        "threads": heartbeat.threads,
        **values,
    }
    session.execute(
        insert(WorkerRow).values(row).on_conflict_do_update(index_elements=["id"], set_={**values, "seen_at": now})
    )


def workers(session: Session) -> Sequence[WorkerRow]:
    """Running workers, and those that ended within a day; the running ones first, then the latest."""
    now = func.clock_timestamp()
    living = case((WorkerRow.stopped_at.is_(None) & (WorkerRow.seen_at > now - SILENT_AFTER), 0), else_=1)
    return session.scalars(
        select(WorkerRow)
        .where(WorkerRow.seen_at > now - ENDED_SHOWN_FOR)
        .order_by(living, WorkerRow.host, WorkerRow.seen_at.desc())
        .limit(MAX_WORKERS)
    ).all()


def living_workers(session: Session) -> int:
    """How many workers sent a heartbeat within SILENT_AFTER."""
    alive = WorkerRow.stopped_at.is_(None), WorkerRow.seen_at > func.clock_timestamp() - SILENT_AFTER
    return session.scalar(select(func.count()).select_from(WorkerRow).where(*alive)) or 0


# -- queues


@dataclass(frozen=True)
class QueueCount:
    """What waits in one queue."""

    queue: Priority
    waiting: int  # of the site
    oldest_at: datetime | None  # since when the site's oldest waits
    waiting_everywhere: int  # of all sites, which the same workers serve
    oldest_everywhere_at: datetime | None


def queue_limits(routine_s: float, backlog_s: float) -> dict[Priority, timedelta]:
    """How long the oldest study of each queue should wait at most.

    Args:
        routine_s: seconds of a routine study, OSTEON_ROUTINE_LIMIT_S.
        backlog_s: of one of the backlog, OSTEON_BACKLOG_LIMIT_S.

    Returns:
        By queue.
    """
    return {
        Priority.URGENT: URGENT_LIMIT,
        Priority.ROUTINE: timedelta(seconds=routine_s),
        Priority.BACKLOG: timedelta(seconds=backlog_s),
    }


def queues(session: Session, site_id: UUID | None = None) -> list[QueueCount]:
    """Count what waits in each queue, for its first attempt or the next.

    Counts an index that holds waiting studies only: 100,000 take some 20 ms.

    Args:
        session: the caller's transaction.
        site_id: the site; None: its numbers are those of all sites.

    Returns:
        The queues, the most urgent first.
    """
    of_site = AnalysisRow.site_id == site_id if site_id else AnalysisRow.site_id.is_not(None)
    rows = session.execute(
        select(
            AnalysisRow.priority,
            func.count().filter(of_site),
            func.min(AnalysisRow.queued_at).filter(of_site),
            func.count(),
            func.min(AnalysisRow.queued_at),
        )
        .where(IS_FIRST, AnalysisRow.state.in_(WAITING), is_counted(AnalysisRow.site_id))
        .group_by(AnalysisRow.priority)
    )
    found = {row[0]: QueueCount(Priority(row[0]), *row[1:]) for row in rows}
    return [found.get(queue, QueueCount(queue, 0, None, 0, None)) for queue in Priority]


def in_hand(session: Session, site_id: UUID, limit: int) -> Sequence[AnalysisRow]:
    """Read the analyses of a site's studies that workers hold.

    Args:
        session: the caller's transaction.
        site_id: the site.
        limit: how many studies.

    Returns:
        The rows, the longest held first.
    """
    running = AnalysisRow.site_id == site_id, IS_FIRST, AnalysisRow.state == AnalysisState.RUNNING
    return session.scalars(select(AnalysisRow).where(*running).order_by(AnalysisRow.started_at).limit(limit)).all()


def retrying(session: Session, site_id: UUID, limit: int) -> Sequence[AnalysisRow]:
    """Read the analyses of a site's unread studies that failed and will be tried again.

    Args:
        session: the caller's transaction.
        site_id: the site.
        limit: how many studies.

    Returns:
        The rows, the next one first.
    """
    failed = AnalysisRow.site_id == site_id, IS_FIRST, AnalysisRow.state == AnalysisState.RETRYING
    unread = select(AnalysisRow).join(StudyRow, StudyRow.id == AnalysisRow.study_id).where(StudyRow.read_at.is_(None))
    return session.scalars(unread.where(*failed).order_by(AnalysisRow.not_before).limit(limit)).all()


def last_analysed_at(session: Session) -> datetime | None:
    """When any study was last finished."""
    done = IS_FIRST, AnalysisRow.state == AnalysisState.DONE, AnalysisRow.finished_at.is_not(None)
    return session.scalar(select(func.max(AnalysisRow.finished_at)).where(*done, is_counted(AnalysisRow.site_id)))


# -- quarantine


@dataclass(frozen=True)
class ReasonCount:
    """Studies that were set aside for the same reason."""

    reason: str
    detail: str  # the fact that the reason is about, where it is the same of all
    count: int
    first_at: datetime | None
    last_at: datetime | None


def quarantine_reasons(session: Session, site_id: UUID) -> list[ReasonCount]:
    """Count a site's quarantined studies by their reason.

    Args:
        session: the caller's transaction.
        site_id: the site.

    Returns:
        At most MAX_REASONS reasons, the most frequent first.
    """
    since = func.min(StudyRow.quarantined_at), func.max(StudyRow.quarantined_at)
    same = func.min(StudyRow.reason_detail) == func.max(StudyRow.reason_detail)
    detail = case((same, func.min(StudyRow.reason_detail)), else_="")
    rows = session.execute(
        select(StudyRow.reason, detail, func.count().label("studies"), *since)
        .where(StudyRow.site_id == site_id, StudyRow.status == StoredStatus.QUARANTINED, ~dismissed())
        .group_by(StudyRow.reason)
        .order_by(text("studies DESC"), StudyRow.reason)
        .limit(MAX_REASONS)
    )
    return [ReasonCount(*row) for row in rows]


def quarantined(session: Session, site_id: UUID, limit: int) -> Sequence[Row[StudyRow, int]]:
    """Read a site's quarantined studies, each with the attempts at it.

    Args:
        session: the caller's transaction.
        site_id: the site.
        limit: how many studies.

    Returns:
        The rows, the latest first.
    """
    return session.execute(
        select(StudyRow, ATTEMPTS)
        .where(StudyRow.site_id == site_id, StudyRow.status == StoredStatus.QUARANTINED, ~dismissed())
        .order_by(StudyRow.quarantined_at.desc().nulls_last())
        .limit(limit)
    ).all()


def release_reason(session: Session, key: Key, reason: str) -> list[DueMessage]:
    """Give quarantined studies all their attempts again, at most MAX_RELEASED at a time.

    Args:
        session: the caller's transaction.
        key: of the administrator, for whose site this is.
        reason: why the studies are in quarantine, a code.

    Returns:
        The messages to send after the commit.
    """
    ids = session.scalars(
        select(StudyRow.id)
        .where(
            StudyRow.site_id == key.site_id,
            StudyRow.status == StoredStatus.QUARANTINED,
            StudyRow.reason == reason,
            ~dismissed(),
        )
        .order_by(StudyRow.id)
        .limit(MAX_RELEASED)
        .with_for_update(skip_locked=True)
    ).all()
    now = db_now(session)
    sent = [release_study(session, key, study_id, now) for study_id in ids]
    return [one for one in sent if one is not None]


# -- rejections


@dataclass(frozen=True)
class RejectionCount:
    """Files of a site that were rejected for one reason."""

    reason: str
    failure: str
    detail: str  # of the last file: the fact that the reason is about
    files: int
    last_at: datetime


def record_rejections(session: Session, site_id: UUID, rejected: Iterable[tuple[str, str, str]]) -> None:
    """Count rejected files; each hour has one row for each reason, however many files there are.

    Args:
        session: the caller's transaction.
        site_id: the site.
        rejected: for each file its reason, DICOM Failure Reason, and detail as in shared.errors.Cause.
    """
    facts: dict[str, tuple[str, str]] = {}
    counts: dict[str, int] = {}
    for reason, failure, detail in rejected:
        facts[reason] = failure, detail
        counts[reason] = counts.get(reason, 0) + 1
    now = func.clock_timestamp()
    for reason in sorted(counts):  # two uploads lock the same rows in the same order
        failure, detail = facts[reason]
        values = {"failure": failure[:8], "detail": detail[:500], "last_at": now}
        row = {"site_id": site_id, "hour": func.date_trunc("hour", now, "UTC"), "reason": reason[:64]}
        session.execute(
            insert(RejectionRow)
            .values(**row, **values, files=counts[reason])
            .on_conflict_do_update(
                index_elements=["site_id", "hour", "reason"],
                set_={**values, "files": RejectionRow.files + counts[reason]},
            )
        )


def rejections(session: Session, site_id: UUID, since: datetime) -> list[RejectionCount]:
    """Read what was rejected of a site's files.

    Args:
        session: the caller's transaction.
        site_id: the site.
        since: the time from which on.

    Returns:
        At most MAX_REASONS reasons, the latest first.
    """
    latest = func.array_agg(RejectionRow.detail, order_by=RejectionRow.last_at.desc())
    rows = session.execute(
        select(
            RejectionRow.reason,
            func.min(RejectionRow.failure),
            latest[1],
            func.sum(RejectionRow.files),
            func.max(RejectionRow.last_at).label("last"),
        )
        .where(RejectionRow.site_id == site_id, RejectionRow.hour >= since)
        .group_by(RejectionRow.reason)
        .order_by(text("last DESC"))
        .limit(MAX_REASONS)
    )
    return [RejectionCount(*row) for row in rows]


def forget_workers(session: Session, before: datetime) -> None:
    """Delete workers that were last seen long ago, at most 1000 at a time.

    Args:
        session: the caller's transaction.
        before: those last seen before this time.
    """
    old = select(WorkerRow.id).where(WorkerRow.seen_at < before).limit(1000)
    session.execute(delete(WorkerRow).where(WorkerRow.id.in_(old)).execution_options(synchronize_session=False))
