"""The broker forgets, dies, hangs; the reconciler makes it good and never floods it."""

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from sqlalchemy import text

from infra.valkey import EmbeddedValkey
from shared.jobs import Doorbell, celery_app
from shared.repository import Database, work
from shared.settings import Settings
from tests.pace import limit_s
from tests.plant import Plant, frozen, kill, pid_of

pytestmark = pytest.mark.timeout(400)
# copies of a study and its image, under other names
STUDY_COPIES = """
    INSERT INTO studies (id, site_id, study_instance_uid, priority, status, received_at, queue, attempts, reason, due_at,
    modality, region, bundle, images, failed_images)
    SELECT gen_random_uuid(), site_id, 'flood.' || n, priority, 'queued', received_at, queue, 0, '', due_at,
    modality, '', '', 1, 0 FROM studies, generate_series(1, 10000) n WHERE id = :first
"""
IMAGE_COPIES = """
    INSERT INTO instances (id, site_id, study_id, sop_instance_uid, sop_class_uid, transfer_syntax_uid, sha256,
    size_bytes, modality, body_part, rows, columns, frames, received_at, error_reason, error_text)
    SELECT gen_random_uuid(), s.site_id, s.id, s.study_instance_uid || '.1', i.sop_class_uid, i.transfer_syntax_uid,
    i.sha256, i.size_bytes, i.modality, i.body_part, i.rows, i.columns, i.frames, i.received_at, '', ''
    FROM studies s, instances i WHERE s.study_instance_uid LIKE 'flood.%' AND i.study_id = :first
"""


def test_a_broker_that_forgets_everything(plant: Plant) -> None:
    """FLUSHALL: the reconciler sends what the broker forgot, and each study is analysed exactly once."""
    plant.worker()
    ids = plant.submit("flush")
    plant.midway(ids)
    with plant.broker() as client:
        client.flushall()
    plant.all_analysed_once(ids, time.monotonic())


@pytest.mark.slow
def test_two_reconcilers_send_a_lost_study_once(plant: Plant) -> None:
    """Two workers sweep the same loss at the same time, and each forgotten study gets one message, not two."""
    ids = plant.submit("two reconcilers", 100)
    with plant.broker() as client:
        # the API sends them once its receipt is on its way
        plant.until(lambda: client.llen("routine") == len(ids), 20)
        client.flushall()
        client.config_resetstat()
    since = time.monotonic()
    workers = [plant.worker(), plant.worker()]
    plant.all_analysed_once(ids, since)
    assert all(worker.poll() is None for worker in workers)
    print(f"{plant.sent()} messages for {len(ids)} lost studies")
    assert plant.sent() == len(ids)


@pytest.mark.slow
@pytest.mark.parametrize(
    "memory",
    ["kept", "lost", "never kept"],
)
def test_a_killed_broker(plant: Plant, memory: str) -> None:
    """kill -9 of Valkey, with its file, without it, and where it never wrote one (no AOF), and uploads meanwhile: all is
    accepted, and analysed once it is back."""
    if memory == "never kept":
        with plant.broker() as client:
            client.config_set("appendonly", "no")
    worker = plant.worker()
    ids = plant.submit(f"broker {memory}")
    plant.midway(ids)
    kill(plant.valkey)
    ids += plant.submit(f"meanwhile {memory}", 5)
    if memory != "kept":  # without AOF what lies there is of an earlier test
        for file in (plant.valkey.folder / "appendonlydir").iterdir():
            file.unlink()
    plant.until(lambda: told(plant, "api: ") and told(plant, "worker: could not reconcile"), 30)
    since = time.monotonic()
    plant.valkey.start()
    plant.all_analysed_once(ids, since)
    assert worker.poll() is None


def told(plant: Plant, who: str) -> bool:
    """Whether this part complained of the broker, and named the cure."""
    return any(who in line and "OSTEON_BROKER_URL" in line for line in plant.complaints())


@pytest.mark.slow
def test_a_broker_that_hangs(plant: Plant) -> None:
    """A broker that stands still for 10 s holds no upload for long, and no worker ends for its silence."""
    worker = plant.worker()
    ids = plant.submit("hang")
    plant.midway(ids)
    since = time.monotonic()
    with frozen(pid_of(plant.valkey)):
        ids += plant.submit("into the silence", 5)
        took = time.monotonic() - since
        time.sleep(max(0.0, 10 - took))
    print(f"an upload took {took:.1f} s meanwhile")
    assert took < limit_s(10)
    plant.all_analysed_once(ids, since)
    assert worker.poll() is None


@pytest.fixture
def refusing(
    plant: Plant, small_disk: Callable[[str], Path], fill: Callable[[Path], Path]
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
    plant.end_processes(1)
    client.close()
    broker.stop()


@pytest.mark.parametrize("full", ["memory", pytest.param("disk", marks=pytest.mark.slow)])
def test_a_broker_that_is_full(
    plant: Plant, refusing: tuple[str, Callable[[str], None], Callable[[str], None]], full: str
) -> None:
    """A broker that may take no more memory (OOM), or whose disk is full (MISCONF), for 8 s: uploads are accepted, the
    log tells the cure, no worker ends for it, and all is analysed once there is room."""
    broker, refuse, take = refusing
    own = {"OSTEON_BROKER_URL": broker}
    url, worker = plant.api(**own), plant.worker(**own)
    ids = plant.submit(f"full {full}", url=url)
    plant.midway(ids)
    refuse(full)
    since = time.monotonic()
    ids += plant.submit(f"full {full} meanwhile", 5, url=url)
    print(f"an upload took {time.monotonic() - since:.1f} s meanwhile")
    plant.until(lambda: told(plant, "api: "), 30)
    time.sleep(max(0.0, 8 - (time.monotonic() - since)))
    take(full)
    plant.all_analysed_once(ids, time.monotonic())
    assert worker.poll() is None


@pytest.mark.slow
def test_a_broker_killed_again_and_again(plant: Plant) -> None:
    """Eight times kill -9 under load, with results finished in between: no consumer stays deaf, no study is lost."""
    dice = random.Random(8)
    with plant.supervised(MODEL_S="0.05") as ends:
        for number in range(8):
            ids = plant.submit(f"again {number}")
            plant.midway(ids)
            kill(plant.valkey)
            time.sleep(dice.uniform(0, 3))
            plant.valkey.start()
            plant.all_analysed_once(ids, time.monotonic())
    print(f"workers ended with {ends}")
    assert set(ends) <= {70}  # watchdog.EXIT: a consumer that stood still, started anew in time


@pytest.mark.slow
def test_a_long_queue_is_not_flooded(plant: Plant) -> None:
    """10,000 studies wait more than 60 s for a slow worker: the reconciler sends at most 5 % more messages than studies."""
    (first,) = plant.submit("flood", 1)
    with plant.broker() as client:
        client.flushall()
        client.config_resetstat()
    database = Database(plant.postgres.url, 2)
    app = celery_app(Settings(broker_url=plant.valkey.url))
    with database.transaction() as session:
        for statement in (STUDY_COPIES, IMAGE_COPIES):
            session.execute(text(statement), {"first": first})
        ids = list(session.scalars(text("SELECT id FROM studies WHERE study_instance_uid LIKE 'flood.%'")))
        to_send = work.unsent(session, ids, work.clock(session))
    assert Doorbell(app).ring(to_send) == []
    since = time.monotonic()
    plant.worker(MODEL_S="0.4")
    try:
        plant.until(lambda: plant.studies.done(ids) > 20, 120)
        time.sleep(max(0.0, 65 - (time.monotonic() - since)))
        done, sent = plant.studies.done(ids), plant.sent()
    finally:
        plant.end_processes(1)
        with database.transaction() as session:
            session.execute(text("DELETE FROM studies WHERE study_instance_uid LIKE 'flood.%'"))
        database.close()
        app.close()
    print(f"{sent} messages for {len(ids)} studies in {time.monotonic() - since:.0f} s, of which {done} are analysed")
    assert len(ids) == 10_000
    assert done < 5_000, "the queue was not long"
    assert sent <= 1.05 * len(ids)
