"""Adds studies to Postgres and messages to the broker, by the thousand, without an upload; and measures their rate."""

import time
from bisect import bisect_right
from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import text

from infra.embedded.live_stack import LiveStack
from shared.db.clock import db_now
from shared.db.engine import Database
from shared.errors import StackError
from shared.queries import analyses
from shared.queue.celery_app import celery_app
from shared.queue.publisher import TaskPublisher
from shared.settings import Settings

STUDIES = """
    INSERT INTO studies (id, site_id, study_instance_uid, priority, status, received_at, current_analysis_id, reason,
                         due_at, modality, region, bundle, images, failed_images)
    SELECT gen_random_uuid(), (SELECT id FROM sites LIMIT 1), '2.25.' || n || '.' || :run, :queue, 'queued', now(),
           gen_random_uuid(), '', now(), 'DX', '', '', :images, 0
    FROM generate_series(1, :count) n
    RETURNING id
"""
# what the rows of studies that have none yet name as their analyses
ANALYSES = """
    INSERT INTO analyses (id, study_id, site_id, model, purpose, state, priority, attempts, queued_at, started_at,
                          finished_at, reason)
    SELECT current_analysis_id, id, site_id, nullif(bundle, ''), 'first',
           CASE status WHEN 'analysed' THEN 'done' WHEN 'quarantined' THEN 'failed' ELSE status END, priority,
           CASE status WHEN 'queued' THEN 0 ELSE 1 END, received_at,
           coalesce(analysed_at, quarantined_at) - interval '2 seconds', coalesce(analysed_at, quarantined_at), reason
    FROM studies WHERE current_analysis_id IS NOT NULL
    AND NOT EXISTS (SELECT FROM analyses WHERE analyses.id = current_analysis_id)
"""
# the radiographs are given to the studies in turn
INSTANCES = """
    INSERT INTO instances (id, site_id, study_id, sop_instance_uid, sop_class_uid, transfer_syntax_uid, sha256,
                           size_bytes, modality, body_part, rows, columns, frames, received_at, error_reason)
    SELECT gen_random_uuid(), site_id, id, study_instance_uid || '.' || image, '1.2', '1.2',
           (CAST(:radiographs AS text[]))[1 + (row_number() OVER () - 1) % cardinality(CAST(:radiographs AS text[]))],
           1, 'DX', 'HAND', 9, 9, 1, now(), ''
    FROM studies CROSS JOIN generate_series(1, images) image WHERE id = ANY(CAST(:ids AS uuid[]))
"""
WITHDRAWN = """
    WITH gone AS (
        UPDATE analyses SET state = 'failed', finished_at = now()
        WHERE purpose = 'first' AND state IN ('queued', 'retrying') AND priority = :queue RETURNING study_id
    )
    UPDATE studies SET status = 'quarantined', quarantined_at = now() FROM gone WHERE id = study_id
"""
WAITED = """
    SELECT extract(epoch FROM finished_at - queued_at) FROM analyses
    WHERE study_id = ANY(CAST(:ids AS uuid[])) AND purpose = 'first' AND state = 'done'
"""
TIMES = "SELECT extract(epoch FROM analysed_at) FROM studies WHERE id = ANY(CAST(:ids AS uuid[])) ORDER BY 1"


class Workload:
    """The studies of one system."""

    def __init__(self, live_stack: LiveStack) -> None:
        self.live_stack = live_stack
        self.database = Database(live_stack.postgres.url, 2)
        self.publisher = TaskPublisher(celery_app(Settings(broker_url=live_stack.valkey.url)))
        self.queued = 0  # studies, ever

    def queue(self, radiographs: Sequence[str], count: int, queue: str = "routine", images: int = 1) -> list[UUID]:
        """Add studies with their messages.

        Args:
            radiographs: sha256 of stored objects, used in turn.
            count: studies to add.
            queue: a priority, which is the name of its queue.
            images: of each study.

        Returns:
            Ids of the studies.

        Raises:
            StackError: The broker did not take a message.
        """
        ids = self.rows(radiographs, count, queue, images)
        for start in range(0, count, 5000):
            with self.database.transaction() as session:
                to_send = analyses.mark_unsent_as_sent(session, ids[start : start + 5000], db_now(session))
            if self.publisher.send(to_send):
                raise StackError("the broker did not take the benchmark's messages")
        self.queued += count
        return ids

    def rows(self, radiographs: Sequence[str], count: int, queue: str = "routine", images: int = 1) -> list[UUID]:
        """Add studies as `queue` does, without messages.

        Args:
            radiographs: sha256 of stored objects, used in turn.
            count: studies to add.
            queue: a priority, which is the name of its queue.
            images: of each study.

        Returns:
            Ids of the studies.
        """
        with self.database.transaction() as session:
            values = {"count": count, "run": time.monotonic_ns(), "queue": queue, "images": images}
            ids = list(session.scalars(text(STUDIES), values))
            session.execute(text(ANALYSES))
            session.execute(text(INSTANCES), {"radiographs": list(radiographs), "ids": [str(one) for one in ids]})
        return ids

    def withdraw(self, queue: str) -> None:
        """Remove a queue's waiting studies: messages from the broker, and rows of their studies."""
        with self.publisher.app.connection_for_write() as connection:
            connection.default_channel.client.delete(queue)
        with self.database.transaction() as session:
            session.execute(text(WITHDRAWN), {"queue": queue})

    def done(self) -> int:
        """Count the analysed studies."""
        with self.database.transaction() as session:
            return session.scalar(text("SELECT count(*) FROM studies WHERE status = 'analysed'")) or 0

    def wait(self, count: int | None = None, limit_s: float = 600.0) -> None:
        """Wait until studies are analysed.

        Args:
            count: since this was made; None: all that were queued.
            limit_s: seconds to wait at most.

        Raises:
            StackError: The worker ended, or the limit is over; has the end of its log.
        """
        target, deadline = self.queued if count is None else count, time.monotonic() + limit_s
        while (done := self.done()) < target:
            worker = next(child for child in self.live_stack.children if child.name.startswith("worker"))
            if not worker.running or time.monotonic() > deadline:
                raise worker.failure(f"has analysed {done} of {target} studies in {limit_s:.0f} s")
            time.sleep(0.5)  # asked ten times a second, it would take a fortieth of what it measures

    def waits(self, ids: Sequence[UUID], limit_s: float = 120.0) -> list[float]:
        """Wait until studies are analysed, and measure how long each took.

        Args:
            ids: of the studies.
            limit_s: seconds to wait at most.

        Returns:
            Seconds from the row of each to its result.

        Raises:
            StackError: It takes longer than the limit: those left out would be the ones that waited longest.
        """
        deadline = time.monotonic() + limit_s
        while True:
            with self.database.transaction() as session:
                waits = session.scalars(text(WAITED), {"ids": [str(one) for one in ids]}).all()
            if len(waits) == len(ids):
                return [float(wait) for wait in waits]
            if time.monotonic() > deadline:
                raise StackError(f"{len(waits)} of {len(ids)} studies were analysed within {limit_s:.0f} s")
            time.sleep(0.2)

    def times(self, ids: Sequence[UUID]) -> list[float]:
        """Find when each of these studies was analysed, seconds by Postgres' clock, in order."""
        with self.database.transaction() as session:
            rows = session.scalars(text(TIMES), {"ids": [str(one) for one in ids]})
            return [float(at) for at in rows]

    def close(self) -> None:
        """Close the connections to Postgres."""
        self.database.close()


def pace(times: Sequence[float], edge: int | None = None) -> float:
    """Compute studies/s without the first and last eighth, in which the queue fills and empties.

    Args:
        times: when each was done, seconds, in order.
        edge: how many to leave out at each end instead. As many as the worker holds at a time: then it has begun as
            many within the window as it ended, and none of the work was done before it.

    Returns:
        Studies/s.
    """
    edge = len(times) // 8 if edge is None else edge
    # from one commit to another: those that one transaction wrote have one time, and none of them is cut off
    first, last = times[edge], times[len(times) - 1 - edge]
    return (bisect_right(times, last) - bisect_right(times, first)) / (last - first)
