"""Studies in Postgres and their messages in the broker, by the thousand, without an upload; and how fast they go."""

import time
from bisect import bisect_right
from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import text

from benchmarks.plant import Plant
from shared.errors import StackError
from shared.jobs import Doorbell, celery_app
from shared.repository import Database, work
from shared.settings import Settings

STUDIES = """
    INSERT INTO studies (id, site_id, study_instance_uid, priority, status, received_at, queue, attempts, reason,
                         due_at, modality, region, bundle, images, failed_images)
    SELECT gen_random_uuid(), (SELECT id FROM sites LIMIT 1), '2.25.' || n || '.' || :run, :queue, 'queued', now(),
           :queue, 0, '', now(), 'DX', '', '', :images, 0
    FROM generate_series(1, :count) n
    RETURNING id
"""
# the films are given to the studies in turn
INSTANCES = """
    INSERT INTO instances (id, site_id, study_id, sop_instance_uid, sop_class_uid, transfer_syntax_uid, sha256,
                           size_bytes, modality, body_part, rows, columns, frames, received_at, error_reason,
                           error_text)
    SELECT gen_random_uuid(), site_id, id, study_instance_uid || '.' || image, '1.2', '1.2',
           (CAST(:films AS text[]))[1 + (row_number() OVER () - 1) % cardinality(CAST(:films AS text[]))],
           1, 'DX', 'HAND', 9, 9, 1, now(), '', ''
    FROM studies CROSS JOIN generate_series(1, images) image WHERE id = ANY(CAST(:ids AS uuid[]))
"""
WITHDRAWN = """
    UPDATE studies SET status = 'quarantined', quarantined_at = now() WHERE status IN ('queued', 'retrying')
    AND queue = :queue
"""
WAITED = """
    SELECT extract(epoch FROM analysed_at - queued_at) FROM studies
    WHERE id = ANY(CAST(:ids AS uuid[])) AND status = 'analysed'
"""
TIMES = "SELECT extract(epoch FROM analysed_at) FROM studies WHERE id = ANY(CAST(:ids AS uuid[])) ORDER BY 1"


class Line:
    """The studies of a plant."""

    def __init__(self, plant: Plant) -> None:
        self.plant = plant
        self.database = Database(plant.postgres.url, 2)
        self.doorbell = Doorbell(celery_app(Settings(broker_url=plant.valkey.url)))
        self.queued = 0  # studies, ever

    def queue(self, films: Sequence[str], count: int, queue: str = "routine", images: int = 1) -> list[UUID]:
        """Rows and messages of so many studies; films: sha256 of stored objects, used in turn. Returns their ids."""
        ids = self.rows(films, count, queue, images)
        for start in range(0, count, 5000):
            with self.database.transaction() as session:
                to_send = work.unsent(session, ids[start : start + 5000], work.clock(session))
            if self.doorbell.ring(to_send):
                raise StackError("the broker did not take the benchmark's messages")
        self.queued += count
        return ids

    def rows(self, films: Sequence[str], count: int, queue: str = "routine", images: int = 1) -> list[UUID]:
        """As queue, without messages."""
        with self.database.transaction() as session:
            values = {"count": count, "run": time.monotonic_ns(), "queue": queue, "images": images}
            ids = list(session.scalars(text(STUDIES), values))
            session.execute(text(INSTANCES), {"films": list(films), "ids": [str(one) for one in ids]})
        return ids

    def withdraw(self, queue: str) -> None:
        """Take what nobody has begun out of a queue again, and its rows out of the line."""
        with self.doorbell.app.connection_for_write() as connection:
            connection.default_channel.client.delete(queue)
        with self.database.transaction() as session:
            session.execute(text(WITHDRAWN), {"queue": queue})

    def done(self) -> int:
        """How many studies are analysed."""
        with self.database.transaction() as session:
            return session.scalar(text("SELECT count(*) FROM studies WHERE status = 'analysed'")) or 0

    def wait(self, count: int | None = None, limit_s: float = 600.0) -> None:
        """Until so many studies are analysed, or all that were queued. Raises StackError with the end of a log."""
        wanted, deadline = self.queued if count is None else count, time.monotonic() + limit_s
        while (done := self.done()) < wanted:
            worker = next(child for child in self.plant.children if child.name.startswith("worker"))
            if not worker.running or time.monotonic() > deadline:
                raise worker.failure(f"has analysed {done} of {wanted} studies in {limit_s:.0f} s")
            time.sleep(0.5)  # asked ten times a second, it would take a fortieth of what it measures

    def waits(self, ids: Sequence[UUID], limit_s: float = 120.0) -> list[float]:
        """Seconds from each one's row to its result, once all are analysed.

        Raises StackError where that takes longer than the limit: those left out would be the ones that waited longest.
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
        """When each was analysed, seconds, in order; by Postgres' clock."""
        with self.database.transaction() as session:
            rows = session.scalars(text(TIMES), {"ids": [str(one) for one in ids]})
            return [float(at) for at in rows]

    def close(self) -> None:
        """Give connections back."""
        self.database.close()


def pace(times: Sequence[float], edge: int | None = None) -> float:
    """Studies/s by the times at which each was done, in order, without the first and last eighth.

    While the line fills and empties it tells nothing. edge: how many to leave out at each end instead. As many as the
    worker holds at a time: then it has begun as many within the window as it ended, and none of the work was done
    before it.
    """
    edge = len(times) // 8 if edge is None else edge
    # from one commit to another: those that one transaction wrote have one time, and none of them is cut off
    first, last = times[edge], times[len(times) - 1 - edge]
    return (bisect_right(times, last) - bisect_right(times, first)) / (last - first)
