"""A bare Celery application to compare the control plane with: its task inserts one row.

`python -m benchmarks.bare` is its worker process. It is what a competent engineer writes without Osteon's promises:
one task a study, acknowledged late, one connection a thread, one INSERT and one commit a task, safe to repeat. Broker,
database, their durability, Celery's settings, events for Flower, pool and number of threads are those of Osteon's
worker; the transport and the consumer are kombu's and Celery's own. It has no leases, no attempts, no retries, no
reconciler, no list of studies: what the comparison costs Osteon is the price of those.
"""

import os
import threading
import time
from pathlib import Path

import psycopg2
from celery import Celery
from kombu.entity import Queue
from psycopg2.extensions import connection as Connection  # noqa: N812 - a class

from shared.queue.celery_app import QUEUES, celery_app
from shared.settings import Settings

TASK = "bare.analyse"
NAMES = tuple(f"bare-{queue}" for queue in QUEUES)  # served strictly in this order, as Osteon's
TABLE = """
    CREATE TABLE bare (
        study_id uuid PRIMARY KEY, region text, region_probability float, fracture_probability float, assessment text,
        severity text, heatmap bytea, at timestamptz DEFAULT clock_timestamp())
"""
INSERT = """
    INSERT INTO bare (study_id, region, region_probability, fracture_probability, assessment, severity, heatmap)
    VALUES (%s, 'hand', 0.9, 0.8, 'positive', 'mild', %s) ON CONFLICT DO NOTHING
"""
HEATMAP = bytes(28 * 28)  # as large as a finding's
_own = threading.local()


def bare_app(settings: Settings) -> Celery:
    """Make Celery with Osteon's settings, but with kombu's own transport and its own queues."""
    app = celery_app(settings)
    options = {name: value for name, value in app.conf.broker_transport_options.items() if name != "quotas"}
    app.conf.update(
        broker_transport="redis",
        broker_transport_options=options,
        task_queues=[Queue(name) for name in NAMES],  # type: ignore[no-untyped-call]
        task_default_queue=NAMES[1],
        beat_schedule={},
    )
    return app


def main() -> None:
    """Work until SIGTERM. THREADS: size of the pool; HOLD: a file that holds all tasks while it exists."""
    settings, hold = Settings(), Path(os.environ["HOLD"])
    url = settings.database_url.get_secret_value().replace("+psycopg2", "")
    app = bare_app(settings)

    def connection() -> Connection:
        if not hasattr(_own, "connection"):
            _own.connection = psycopg2.connect(url)
        made: Connection = _own.connection
        return made

    @app.task(name=TASK)  # type: ignore[untyped-decorator]
    def analyse(study_id: str) -> None:
        """Wait until nothing holds the tasks, then one row, durable when this returns."""
        while hold.exists():
            time.sleep(0.05)
        with connection() as held, held.cursor() as cursor:
            cursor.execute(INSERT, (study_id, HEATMAP))

    app.worker_main(
        [
            "worker",
            "--pool=threads",
            f"--concurrency={os.environ['THREADS']}",
            f"--queues={','.join(NAMES)}",
            "--without-gossip",
            "--without-mingle",
            "--loglevel=WARNING",
        ]
    )


if __name__ == "__main__":
    main()
