"""What the administrator sees now: workers, queues, quarantine, and what was refused. All of it bounded."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import case, delete, func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from shared.repository.quarantine import dismissed
from shared.repository.work import ToSend, clock, release
from shared.study import Priority, StudyStatus
from shared.tables import RefusalRow, StudyRow, WorkerRow

SILENT_AFTER = timedelta(seconds=20)  # four heartbeats
SHOWN_FOR = timedelta(days=1)  # a worker that has ended
MOST_WORKERS = 100
MOST_REASONS = 50
MOST_RELEASED = 500  # studies in one transaction

# -- workers


@dataclass(frozen=True)
class Pulse:
    """What a worker process says of itself every few seconds."""

    id: UUID
    host: str
    pid: int
    device: str
    bundle: str
    threads: int
    taken: int
    in_hand: int
    stopped: bool = False


def beat(session: Session, pulse: Pulse) -> None:
    """Write a worker's heartbeat, on Postgres' clock."""
    now = func.clock_timestamp()
    said = {
        "device": pulse.device[:255],
        "bundle": pulse.bundle,
        "taken": pulse.taken,
        "in_hand": pulse.in_hand,
        "stopped_at": now if pulse.stopped else None,
    }
    row = {"id": pulse.id, "host": pulse.host[:255], "pid": pulse.pid, "threads": pulse.threads, **said}
    session.execute(
        insert(WorkerRow).values(row).on_conflict_do_update(index_elements=["id"], set_={**said, "seen_at": now})
    )


def workers(session: Session) -> Sequence[WorkerRow]:
    """The workers that live, and those that ended within a day; the living first, then the latest."""
    now = func.clock_timestamp()
    living = case((WorkerRow.stopped_at.is_(None) & (WorkerRow.seen_at > now - SILENT_AFTER), 0), else_=1)
    return session.scalars(
        select(WorkerRow)
        .where(WorkerRow.seen_at > now - SHOWN_FOR)
        .order_by(living, WorkerRow.host, WorkerRow.seen_at.desc())
        .limit(MOST_WORKERS)
    ).all()


def living_workers(session: Session) -> int:
    """How many workers were heard of just now."""
    alive = WorkerRow.stopped_at.is_(None), WorkerRow.seen_at > func.clock_timestamp() - SILENT_AFTER
    return session.scalar(select(func.count()).select_from(WorkerRow).where(*alive)) or 0


# -- queues


@dataclass(frozen=True)
class Queue:
    """What waits in one queue."""

    queue: Priority
    waiting: int  # of the site
    oldest_at: datetime | None  # since when the site's oldest waits
    waiting_everywhere: int  # of all sites, which the same workers serve
    oldest_everywhere_at: datetime | None


def queues(session: Session, site_id: UUID | None = None) -> list[Queue]:
    """What waits in each queue, for its first attempt or the next; without a site its own numbers are everybody's.

    Counts an index that holds waiting studies only: 100,000 take some 20 ms.
    """
    mine = StudyRow.site_id == site_id if site_id else StudyRow.site_id.is_not(None)
    rows = session.execute(
        select(
            StudyRow.queue,
            func.count().filter(mine),
            func.min(StudyRow.queued_at).filter(mine),
            func.count(),
            func.min(StudyRow.queued_at),
        )
        .where(text("status IN ('queued', 'retrying')"))  # as the index says it
        .group_by(StudyRow.queue)
    )
    found = {row[0]: Queue(Priority(row[0]), *row[1:]) for row in rows}
    return [found.get(queue, Queue(queue, 0, None, 0, None)) for queue in Priority]


def in_hand(session: Session, site_id: UUID, most: int) -> Sequence[StudyRow]:
    """The site's studies that workers hold, the longest held first."""
    running = StudyRow.site_id == site_id, StudyRow.status == StudyStatus.RUNNING
    return session.scalars(select(StudyRow).where(*running).order_by(StudyRow.started_at).limit(most)).all()


def retrying(session: Session, site_id: UUID, most: int) -> Sequence[StudyRow]:
    """The site's unread studies that failed and will be tried again, the next one first."""
    failed = StudyRow.site_id == site_id, StudyRow.status == StudyStatus.RETRYING, StudyRow.read_at.is_(None)
    return session.scalars(select(StudyRow).where(*failed).order_by(StudyRow.not_before).limit(most)).all()


def last_analysed_at(session: Session) -> datetime | None:
    """When any study was last finished."""
    return session.scalar(select(func.max(StudyRow.analysed_at)).where(StudyRow.analysed_at.is_not(None)))


# -- quarantine


@dataclass(frozen=True)
class Reason:
    """Studies, or files, that were set aside or refused for the same reason."""

    reason: str
    count: int
    first_at: datetime | None
    last_at: datetime | None


def quarantine_reasons(session: Session, site_id: UUID) -> list[Reason]:
    """Why studies of the site stand in quarantine, the most frequent first."""
    since = func.min(StudyRow.quarantined_at), func.max(StudyRow.quarantined_at)
    rows = session.execute(
        select(StudyRow.reason, func.count().label("studies"), *since)
        .where(StudyRow.site_id == site_id, StudyRow.status == StudyStatus.QUARANTINED, ~dismissed())
        .group_by(StudyRow.reason)
        .order_by(text("studies DESC"), StudyRow.reason)
        .limit(MOST_REASONS)
    )
    return [Reason(*row) for row in rows]


def quarantined(session: Session, site_id: UUID, most: int) -> Sequence[StudyRow]:
    """The studies of the site in quarantine, the latest first."""
    return session.scalars(
        select(StudyRow)
        .where(StudyRow.site_id == site_id, StudyRow.status == StudyStatus.QUARANTINED, ~dismissed())
        .order_by(StudyRow.quarantined_at.desc().nulls_last())
        .limit(most)
    ).all()


def release_reason(session: Session, site_id: UUID, reason: str) -> list[ToSend]:
    """Give the site's studies that were set aside for this reason all their attempts again, MOST_RELEASED at a time."""
    ids = session.scalars(
        select(StudyRow.id)
        .where(
            StudyRow.site_id == site_id,
            StudyRow.status == StudyStatus.QUARANTINED,
            StudyRow.reason == reason,
            ~dismissed(),
        )
        .order_by(StudyRow.id)
        .limit(MOST_RELEASED)
        .with_for_update(skip_locked=True)
    ).all()
    now = clock(session)
    sent = [release(session, site_id, study_id, now) for study_id in ids]
    return [one for one in sent if one is not None]


# -- refusals


@dataclass(frozen=True)
class Refusal:
    """Files of a site that were refused for one reason."""

    reason: str
    failure: str
    text: str
    files: int
    last_at: datetime


def note_refusals(session: Session, site_id: UUID, refused: Iterable[tuple[str, str, str]]) -> None:
    """Count refused files, each given as (reason, failure code, text). An hour has one row a reason, however many."""
    texts: dict[str, tuple[str, str]] = {}
    counts: dict[str, int] = {}
    for reason, failure, words in refused:
        texts[reason] = failure, words
        counts[reason] = counts.get(reason, 0) + 1
    now = func.clock_timestamp()
    for reason in sorted(counts):  # two uploads lock the same rows in the same order
        failure, words = texts[reason]
        said = {"failure": failure[:8], "text": words[:500], "last_at": now}
        row = {"site_id": site_id, "hour": func.date_trunc("hour", now, "UTC"), "reason": reason[:64]}
        session.execute(
            insert(RefusalRow)
            .values(**row, **said, files=counts[reason])
            .on_conflict_do_update(
                index_elements=["site_id", "hour", "reason"], set_={**said, "files": RefusalRow.files + counts[reason]}
            )
        )


def refusals(session: Session, site_id: UUID, since: datetime) -> list[Refusal]:
    """What was refused of the site's files since then, by reason, the latest first."""
    latest = func.array_agg(RefusalRow.text, order_by=RefusalRow.last_at.desc())
    rows = session.execute(
        select(
            RefusalRow.reason,
            func.min(RefusalRow.failure),
            latest[1],
            func.sum(RefusalRow.files),
            func.max(RefusalRow.last_at).label("last"),
        )
        .where(RefusalRow.site_id == site_id, RefusalRow.hour >= since)
        .group_by(RefusalRow.reason)
        .order_by(text("last DESC"))
        .limit(MOST_REASONS)
    )
    return [Refusal(*row) for row in rows]


def forget_workers(session: Session, before: datetime) -> None:
    """Delete workers that were last seen before then."""
    old = select(WorkerRow.id).where(WorkerRow.seen_at < before).limit(1000)
    session.execute(delete(WorkerRow).where(WorkerRow.id.in_(old)).execution_options(synchronize_session=False))
