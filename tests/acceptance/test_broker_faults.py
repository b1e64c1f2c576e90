"""The broker forgets, dies, hangs; the reconciler makes it good and never floods it."""

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from sqlalchemy import text

from benchmarks.workload import ANALYSES
from infra.embedded.valkey import EmbeddedValkey
from shared.db.clock import db_now
from shared.db.engine import Database
from shared.queries import analyses
from shared.queue.celery_app import celery_app
from shared.queue.publisher import TaskPublisher
from shared.settings import Settings
from tests.live_stack import BreakableStack, frozen, kill, pid_of
from tests.pace import limit_s

pytestmark = pytest.mark.timeout(400)
# copies of a study and its image, under other names
STUDY_COPIES = """
    INSERT INTO studies (id, site_id, study_instance_uid, priority, status, received_at, current_analysis_id, reason, due_at,
    modality, region, bundle, images, failed_images)
    SELECT gen_random_uuid(), site_id, 'flood.' || n, priority, 'queued', received_at, gen_random_uuid(), '', due_at,
    modality, '', '', 1, 0 FROM studies, generate_series(1, 10000) n WHERE id = :first
"""
IMAGE_COPIES = """
    INSERT INTO instances (id, site_id, study_id, sop_instance_uid, sop_class_uid, transfer_syntax_uid, sha256,
    size_bytes, modality, body_part, rows, columns, frames, received_at, error_reason)
    SELECT gen_random_uuid(), s.site_id, s.id, s.study_instance_uid || '.1', i.sop_class_uid, i.transfer_syntax_uid,
    i.sha256, i.size_bytes, i.modality, i.body_part, i.rows, i.columns, i.frames, i.received_at, ''
    FROM studies s, instances i WHERE s.study_instance_uid LIKE 'flood.%' AND i.study_id = :first
"""


def test_a_broker_that_forgets_everything(live_stack: BreakableStack) -> None:
    """FLUSHALL: the reconciler sends what the broker forgot, and each study is analysed exactly once."""
    live_stack.worker()
    ids = live_stack.submit("flush")
    live_stack.midway(ids)
    with live_stack.broker() as client:
        client.flushall()
    live_stack.all_analysed_once(ids, time.monotonic())


@pytest.mark.slow
def test_two_reconcilers_send_a_lost_study_once(live_stack: BreakableStack) -> None:
    """Two workers sweep the same loss at the same time, and each forgotten study gets one message, not two."""
    ids = live_stack.submit("two reconcilers", 100)
    with live_stack.broker() as client:
        # the API sends them once its receipt is on its way
        live_stack.until(lambda: client.llen("routine") == len(ids), 20)
        client.flushall()
        client.config_resetstat()
    since = time.monotonic()
    workers = [live_stack.worker(), live_stack.worker()]
    live_stack.all_analysed_once(ids, since)
    assert all(worker.poll() is None for worker in workers)
    print(f"{live_stack.sent()} messages for {len(ids)} lost studies")
    assert live_stack.sent() == len(ids), live_stack.said("sweep finished", "lost messages", "not started")


@pytest.mark.slow
@pytest.mark.parametrize(
    "memory",
    ["kept", "lost", "never kept"],
)
def test_a_killed_broker(live_stack: BreakableStack, memory: str) -> None:
    """kill -9 of Valkey, with its file, without it, and where it never wrote one (no AOF), and uploads meanwhile: all is
    accepted, and analysed once it is back."""
    if memory == "never kept":
        with live_stack.broker() as client:
            client.config_set("appendonly", "no")
    worker = live_stack.worker()
    ids = live_stack.submit(f"broker {memory}")
    live_stack.midway(ids)
    kill(live_stack.valkey)
    ids += live_stack.submit(f"meanwhile {memory}", 5)
    if memory != "kept":  # without AOF what lies there is of an earlier test
        for file in (live_stack.valkey.folder / "appendonlydir").iterdir():
            file.unlink()
    live_stack.until(lambda: told(live_stack, "api: ") and told(live_stack, "worker: sweep failed"), 30)
    since = time.monotonic()
    live_stack.valkey.start()
    live_stack.all_analysed_once(ids, since)
    assert worker.poll() is None


def told(live_stack: BreakableStack, who: str) -> bool:
    """Whether this part complained of the broker, and named the cure."""
    return any(who in line and "OSTEON_BROKER_URL" in line for line in live_stack.complaints())


@pytest.mark.slow
def test_a_broker_that_hangs(live_stack: BreakableStack) -> None:
    """A broker that stands still for 10 s holds no upload for long, and no worker ends for its silence."""
    worker = live_stack.worker()
    ids = live_stack.submit("hang")
    live_stack.midway(ids)
    since = time.monotonic()
    with frozen(pid_of(live_stack.valkey)):
        ids += live_stack.submit("into the silence", 5)
        took = time.monotonic() - since
        time.sleep(max(0.0, 10 - took))
    print(f"an upload took {took:.1f} s meanwhile")
    assert took < limit_s(10)
    live_stack.all_analysed_once(ids, since)
    assert worker.poll() is None


@pytest.fixture
def refusing(
    live_stack: BreakableStack, small_disk: Callable[[str], Path], fill: Callable[[Path], Path]
) -> Iterator[tuple[str, Callable[[str], None], Callable[[str], None]]]:
    """A broker of the test's own on a small disk, and functions that make it refuse writes and take them again."""
    disk = small_disk("8m")
    broker = EmbeddedValkey(disk / "valkey")
    broker.start()
    client = redis.Redis.from_url(broker.url)

    def refuse(how: str) -> None:
        if how == "memory":
            client.config_set("maxmemory", 1)
        else:
            fill(disk)

    def take(how: str) -> None:
        if how == "memory":
            client.config_set("maxmemory", 0)
        else:
            (disk / "filler").unlink()

    yield broker.url, refuse, take
    live_stack.end_processes(1)
    client.close()
    broker.stop()


@pytest.mark.parametrize("full", ["memory", pytest.param("disk", marks=pytest.mark.slow)])
def test_a_broker_that_is_full(
    live_stack: BreakableStack, refusing: tuple[str, Callable[[str], None], Callable[[str], None]], full: str
) -> None:
    """A broker that may take no more memory (OOM), or whose disk is full (MISCONF), for 8 s: uploads are accepted, the
    log tells the cure, no worker ends for it, and all is analysed once there is room."""
    broker, refuse, take = refusing
    own = {"OSTEON_BROKER_URL": broker}
    url, worker = live_stack.api(**own), live_stack.worker(**own)
    ids = live_stack.submit(f"full {full}", url=url)
    live_stack.midway(ids)
    refuse(full)
    since = time.monotonic()
    ids += live_stack.submit(f"full {full} meanwhile", 5, url=url)
    print(f"an upload took {time.monotonic() - since:.1f} s meanwhile")
    live_stack.until(lambda: told(live_stack, "api: "), 30)
    time.sleep(max(0.0, 8 - (time.monotonic() - since)))
    take(full)
    live_stack.all_analysed_once(ids, time.monotonic())
    assert worker.poll() is None


@pytest.mark.slow
def test_a_broker_killed_again_and_again(live_stack: BreakableStack) -> None:
    """Eight times kill -9 under load, with results finished in between: no consumer stays stalled, no study is lost."""
    rng = random.Random(8)
    with live_stack.supervised(MODEL_S="0.05") as ends:
        for number in range(8):
            ids = live_stack.submit(f"again {number}")
            live_stack.midway(ids)
            kill(live_stack.valkey)
            time.sleep(rng.uniform(0, 3))
            live_stack.valkey.start()
            live_stack.all_analysed_once(ids, time.monotonic())
    print(f"workers ended with {ends}")
    assert set(ends) <= {70}  # watchdog.EXIT_CODE: a consumer that stood still, started anew in time


@pytest.mark.slow
def test_a_long_queue_is_not_flooded(live_stack: BreakableStack) -> None:
    """10,000 studies wait more than 60 s for a slow worker: the reconciler sends at most 5 % more messages than studies."""
    (first,) = live_stack.submit("flood", 1)
    with live_stack.broker() as client:
        client.flushall()
        client.config_resetstat()
    database = Database(live_stack.postgres.url, 2)
    app = celery_app(Settings(broker_url=live_stack.valkey.url))
    with database.transaction() as session:
        for statement in (STUDY_COPIES, ANALYSES, IMAGE_COPIES):
            session.execute(text(statement), {"first": first})
        ids = list(session.scalars(text("SELECT id FROM studies WHERE study_instance_uid LIKE 'flood.%'")))
        to_send = analyses.mark_unsent_as_sent(session, ids, db_now(session))
    assert TaskPublisher(app).send(to_send) == []
    since = time.monotonic()
    live_stack.worker(MODEL_S="0.4")
    try:
        live_stack.until(lambda: live_stack.studies.done(ids) > 20, 120)
        time.sleep(max(0.0, 65 - (time.monotonic() - since)))
        done, sent = live_stack.studies.done(ids), live_stack.sent()
    finally:
        live_stack.end_processes(1)
        with database.transaction() as session:
            session.execute(text("DELETE FROM studies WHERE study_instance_uid LIKE 'flood.%'"))
        database.close()
        app.close()
    print(f"{sent} messages for {len(ids)} studies in {time.monotonic() - since:.0f} s, of which {done} are analysed")
    assert len(ids) == 10_000
    assert done < 5_000, "the queue was not long"
    assert sent <= 1.05 * len(ids)
