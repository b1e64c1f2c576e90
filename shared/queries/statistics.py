"""The history that the administrator sees: statistics of each minute, computed from the studies' own rows.

Nothing is counted in memory, so a restart of anything loses none of it. Minutes in which no worker ran are filled in
later; of those only the length of the queue stays unknown.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.orm import Session

from shared.db.tables.access import CHECKED_SITE

SAMPLER_LOCK = 0x05_7E_0A_03
COUNTER_LOCK = 0x05_7E_0A_04  # another one: statistics are written while what is stored is counted
COMMIT_GRACE = timedelta(seconds=15)  # for transactions that began in a minute and commit after it
BATCH_SPAN = timedelta(hours=6)  # filled in by one transaction
FIRST_SPAN = timedelta(days=30)  # how far back the first statistics look
KEPT_FOR = timedelta(days=400)
# no sender repeats a request after a month; one that does gets duplicates in its receipt
RECEIPTS_KEPT_FOR = timedelta(days=30)

# one site after the other, so that each reads only the end of an index
_LAST = text("""
    SELECT max(last.at) FROM sites CROSS JOIN LATERAL (
        SELECT at FROM statistics WHERE site_id = sites.id ORDER BY at DESC LIMIT 1) AS last""")
_NEXT = text("""
    SELECT date_trunc('minute', least(
        (SELECT min(received_at) FROM studies WHERE received_at >= :start),
        (SELECT min(finished_at) FROM analyses WHERE purpose = 'first' AND finished_at >= :start)), 'UTC')""")
_WRITE = text(f"""
    INSERT INTO statistics (site_id, at, queue, received, analysed, failed, wait_p50_s, wait_p95_s, work_p50_s,
                         work_p95_s, waiting, oldest_s)
    SELECT site_id, at, queue, sum(received), sum(analysed), sum(failed), max(wait_p50), max(wait_p95), max(work_p50),
           max(work_p95),
           CASE WHEN at = :last THEN coalesce(max(waiting), 0) END, CASE WHEN at = :last THEN max(oldest) END
    FROM (
        SELECT site_id, date_trunc('minute', received_at, 'UTC') AS at, priority AS queue,
            count(*) AS received, 0 AS analysed, 0 AS failed, NULL::float AS wait_p50, NULL::float AS wait_p95,
            NULL::float AS work_p50, NULL::float AS work_p95, NULL::int AS waiting, NULL::float AS oldest
        FROM studies WHERE received_at >= :start AND received_at < :end AND status <> 'kept' GROUP BY 1, 2, 3
        UNION ALL
        SELECT site_id, at, priority, 0, count(*) FILTER (WHERE done), count(*) FILTER (WHERE NOT done),
            percentile_cont(0.5) WITHIN GROUP (ORDER BY wait) FILTER (WHERE done),
            percentile_cont(0.95) WITHIN GROUP (ORDER BY wait) FILTER (WHERE done),
            percentile_cont(0.5) WITHIN GROUP (ORDER BY work) FILTER (WHERE done),
            percentile_cont(0.95) WITHIN GROUP (ORDER BY work) FILTER (WHERE done), NULL, NULL
        FROM (
            SELECT site_id, date_trunc('minute', finished_at, 'UTC') AS at, priority, state = 'done' AS done,
                greatest(0, extract(epoch FROM finished_at - queued_at))::float AS wait,
                greatest(0, extract(epoch FROM finished_at - started_at))::float AS work
            FROM analyses WHERE purpose = 'first' AND finished_at >= :start AND finished_at < :end) AS ended
        GROUP BY 1, 2, 3
        UNION ALL
        SELECT site_id, CAST(:last AS timestamptz), priority, 0, 0, 0, NULL, NULL, NULL, NULL, count(*),
            greatest(0, extract(epoch FROM clock_timestamp() - min(queued_at)))
        FROM analyses WHERE purpose = 'first' AND state IN ('queued', 'retrying')
            AND CAST(:last AS timestamptz) IS NOT NULL GROUP BY 1, 2, 3
    ) AS parts
    WHERE site_id IS DISTINCT FROM {CHECKED_SITE}
    GROUP BY site_id, at, queue
    ON CONFLICT DO NOTHING""")  # noqa: S608 - our own words
_HOLD = text(f"""
    INSERT INTO holdings (site_id, at, images, size_bytes)
    SELECT site_id, date_trunc('hour', clock_timestamp(), 'UTC'), count(*), sum(size_bytes)
    FROM instances WHERE site_id IS DISTINCT FROM {CHECKED_SITE} GROUP BY site_id
    ON CONFLICT DO NOTHING""")  # noqa: S608 - our own words
_HELD = text("SELECT 1 FROM holdings WHERE at = date_trunc('hour', clock_timestamp(), 'UTC') LIMIT 1")
_FORGET = [
    text(f"""
    DELETE FROM {table} WHERE ctid IN (
        SELECT old.row FROM sites CROSS JOIN LATERAL (
            SELECT ctid AS row FROM {table} WHERE site_id = sites.id AND {column} < :before ORDER BY {column} LIMIT 2000
        ) AS old)""")  # noqa: S608 - our own names
    for table, column in (("statistics", "at"), ("holdings", "at"), ("rejections", "hour"))
]
_FORGET_RECEIPTS = text(
    "DELETE FROM uploads WHERE ctid IN (SELECT ctid FROM uploads WHERE created_at < :before LIMIT 20000)"
)
_HISTORY = text("""
    SELECT date_bin(make_interval(secs => :step), at, CAST(:start AS timestamptz)) AS bucket, sum(received),
        sum(analysed), sum(failed),
        sum(wait_p50_s * analysed) FILTER (WHERE asked) / nullif(sum(analysed) FILTER (WHERE asked), 0),
        max(wait_p95_s) FILTER (WHERE asked),
        sum(work_p50_s * analysed) / nullif(sum(analysed), 0), max(work_p95_s),
        max(waiting) FILTER (WHERE queue = 'urgent'), max(waiting) FILTER (WHERE queue = 'routine'),
        max(waiting) FILTER (WHERE queue = 'backlog')
    FROM (
        SELECT *, queue <> 'backlog' AS asked FROM statistics
        WHERE site_id = :site AND at >= :start AND at < :end) AS own
    GROUP BY 1 ORDER BY 1""")
_STORED = text("SELECT at, images, size_bytes FROM holdings WHERE site_id = :site ORDER BY at DESC LIMIT 1")
_STORED_BEFORE = text("""
    SELECT at, images, size_bytes FROM holdings WHERE site_id = :site AND at <= :at - interval '7 days'
    ORDER BY at DESC LIMIT 1""")


@dataclass(frozen=True)
class StatisticsPoint:
    """A stretch of a site's history. Times in seconds; None if nothing was finished, or no worker ran."""

    at: datetime
    received: int
    analysed: int
    failed: int
    wait_p50_s: float | None  # urgent and routine studies; the backlog may wait
    wait_p95_s: float | None  # of the worst minute
    work_p50_s: float | None
    work_p95_s: float | None
    urgent: int | None  # most that waited at the end of a minute
    routine: int | None
    backlog: int | None


@dataclass(frozen=True)
class StorageUsage:
    """What a site has stored, as counted at `at`."""

    at: datetime
    images: int
    size_bytes: int


def write_statistics(session: Session, now: datetime) -> bool:
    """Write the statistics of the minutes that are over. Does nothing while another worker does it.

    Args:
        session: the caller's transaction.
        now: Postgres' time.

    Returns:
        Whether minutes are left for the next call.
    """
    if not session.scalar(text("SELECT pg_try_advisory_xact_lock(:lock)"), {"lock": SAMPLER_LOCK}):
        return False
    over = (now - COMMIT_GRACE).replace(second=0, microsecond=0)  # every minute before this one is complete
    last: datetime | None = session.scalar(_LAST)
    if last is not None and last + timedelta(minutes=1) >= over:
        return False
    start = last + timedelta(minutes=1) if last else over - FIRST_SPAN
    start = min(session.scalar(_NEXT, {"start": start}) or over, over - timedelta(minutes=1))
    end = min(start + BATCH_SPAN, over)
    looked = over - timedelta(minutes=1) if end == over else None
    session.execute(_WRITE, {"start": start, "end": end, "last": looked})
    return end < over


def count_stored(session: Session) -> bool:
    """Count what is stored, once an hour; return whether it counted. It reads every image, which may take minutes."""
    if session.scalar(_HELD) or not session.scalar(text("SELECT pg_try_advisory_xact_lock(:l)"), {"l": COUNTER_LOCK}):
        return False
    session.execute(_HOLD)
    return True


def delete_old_statistics(session: Session, before: datetime) -> None:
    """Delete old history, some thousand rows of a site at a time.

    Args:
        session: the caller's transaction.
        before: what is older than this time.
    """
    for statement in _FORGET:
        session.execute(statement, {"before": before})


def delete_old_receipts(session: Session, before: datetime) -> None:
    """Delete old receipts of requests with an idempotency key, 20,000 at a time.

    Args:
        session: the caller's transaction.
        before: those older than this time.
    """
    session.execute(_FORGET_RECEIPTS, {"before": before})


def history(
    session: Session, site_id: UUID, start: datetime, end: datetime, step: timedelta
) -> Sequence[StatisticsPoint]:
    """Sum up a site's statistics.

    Args:
        session: the caller's transaction.
        site_id: the site.
        start: from this time on.
        end: until before this time.
        step: length of a stretch.

    Returns:
        The stretches in which something happened, in order.
    """
    values = {"site": site_id, "start": start, "end": end, "step": step.total_seconds()}
    return [StatisticsPoint(*row) for row in session.execute(_HISTORY, values)]


def stored(session: Session, site_id: UUID) -> tuple[StorageUsage | None, StorageUsage | None]:
    """Read what a site has stored.

    Args:
        session: the caller's transaction.
        site_id: the site.

    Returns:
        The last count, and the last one from a week or more before it; None where there is none.
    """
    row = session.execute(_STORED, {"site": site_id}).one_or_none()
    if row is None:
        return None, None
    before = session.execute(_STORED_BEFORE, {"site": site_id, "at": row.at}).one_or_none()
    return StorageUsage(*row), StorageUsage(*before) if before else None
