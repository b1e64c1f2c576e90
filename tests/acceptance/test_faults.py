"""Parts of the running system are killed under load: nothing is lost, nothing is done twice."""

import hashlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import psycopg2
import pytest
import redis
from cryptography.fernet import Fernet

from infra.client import Client
from infra.postgres import EmbeddedPostgres
from infra.process import free_port
from infra.valkey import EmbeddedValkey
from samples.objects import pattern_image, set_pixels, to_bytes, uid
from shared.settings import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
STUDIES = 40
KEYS = {role: f"osk_faults_{role}_key_of_the_tests" for role in ("submitter", "radiologist", "admin")}
SETTINGS = {
    "LEASE_S": "4", "RECONCILE_EVERY_S": "1", "RESEND_GRACE_S": "2", "RETRY_BASE_S": "0.5", "MAX_ATTEMPTS": "3",
    "BATCH_SIZE": "4", "WORKER_THREADS": "8",
}  # fmt: skip
# The worker as it is, but that it starts at once rather than compile the network first, and that one image kills it.
WORKER = """
    import os, sys
    sys.modules["openvino"] = None
    import worker.analysis, worker.main, worker.tasks
    analyse = worker.tasks.analyse
    def analyse_or_die(claim, *rest, **more):
        if str(claim.study_id) == os.environ.get("POISON"):
            os.abort()
        return analyse(claim, *rest, **more)
    worker.tasks.analyse = analyse_or_die
    worker.main.main()
"""


class Plant:
    """Postgres, Valkey and the API of these tests, and workers that come and go."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.postgres, self.valkey = EmbeddedPostgres(folder / "postgres"), EmbeddedValkey(folder / "valkey")
        self.processes: list[subprocess.Popen[bytes]] = []
        self.ends = threading.Event()

    def start(self) -> None:
        self.postgres.start()
        self.valkey.start()
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        own = {
            "DATABASE_URL": self.postgres.url, "BROKER_URL": self.valkey.url, "HOME": str(self.folder),
            "STORE_URL": f"file:{self.folder / 'objects'}", "SPOOL_DIR": str(self.folder / "spool"),
            "IDENTITY_KEY": Fernet.generate_key().decode(), "SESSION_SECRET": "a secret for the tests of faults",
            **{f"KEY_{role.upper()}": secret for role, secret in KEYS.items()},
            **SETTINGS,
        }  # fmt: skip
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("OSTEON_")}
        self.environment |= {f"OSTEON_{name}": value for name, value in own.items()} | {"PYTHONPATH": str(ROOT)}
        self.environment["OMP_NUM_THREADS"] = "2"
        alembic = ["-m", "alembic", "-c", str(ROOT / "migrations/alembic.ini"), "upgrade", "head"]
        for step in (alembic, ["-m", "infra.prepare"]):
            subprocess.run([sys.executable, *step], env=self.environment, check=True, capture_output=True, cwd=ROOT)
        self.run("api", "-m", "uvicorn", "api.main:create_app", "--factory", "--port", str(port), "--no-access-log")
        self.until(self.api_answers, 60)

    def api_answers(self) -> bool:
        try:
            with Client(self.url, KEYS["admin"]) as client:
                client.worklist()
        except Exception:
            return False
        return True

    def run(self, name: str, *arguments: str, **more: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, *arguments], env=self.environment | more, stdout=log, stderr=log, cwd=ROOT
            )
        self.processes.append(process)
        return process

    def worker(self, **more: str) -> subprocess.Popen[bytes]:
        return self.run("worker", "-c", textwrap.dedent(WORKER), **more)

    def stop(self) -> None:
        self.ends.set()
        for process in self.processes:
            process.kill()
            process.wait(20)
        self.valkey.stop()
        self.postgres.stop()

    def submit(self, folder: Path, label: str, count: int = STUDIES, priority: str = "routine") -> list[str]:
        """Upload so many studies of one small film each."""
        paths = []
        for number in range(count):
            ds = pattern_image(1, f"{label}/{number}")
            ds.StudyInstanceUID = uid(f"faults/{label}/{number}")
            seed = int.from_bytes(hashlib.sha256(f"{label}/{number}".encode()).digest()[:4], "big")
            set_pixels(ds, [np.random.default_rng(seed).integers(0, 256, (64, 64), np.uint8)], 8, "explicit")
            paths.append(folder / f"{label}-{number}.dcm")
            paths[-1].write_bytes(to_bytes(ds, "1.2.840.10008.1.2.1"))
        with Client(self.url, KEYS["submitter"]) as client:
            receipt = client.submit([(path, path.name) for path in paths], priority)
        assert receipt.count("stored") == count
        return list(receipt.studies)

    def ask(self, query: str, ids: list[str]) -> list[tuple]:
        connection = psycopg2.connect(self.postgres.url.replace("+psycopg2", ""))
        try:
            with connection.cursor() as cursor:
                cursor.execute(query, (ids,))
                return cursor.fetchall()
        finally:
            connection.close()

    def states(self, ids: list[str]) -> list[tuple[str, int, str, str]]:
        """(status, attempts, reason, id) of each study."""
        return self.ask("SELECT status, attempts, reason, id::text FROM studies WHERE id = ANY(%s::uuid[])", ids)

    def done(self, ids: list[str]) -> int:
        return sum(state[0] in ("analysed", "quarantined") for state in self.states(ids))

    def until(self, condition, limit_s: float) -> None:
        deadline = time.monotonic() + limit_s
        while not condition():
            logs = "\n".join(log.read_text()[-3000:] for log in self.folder.glob("*.log"))
            assert time.monotonic() < deadline, f"not within {limit_s} s\n{logs}"
            time.sleep(0.1)

    def midway(self, ids: list[str]) -> None:
        """Wait until some studies are analysed and most are not."""
        self.until(lambda: self.done(ids) >= 5, 90)
        assert self.done(ids) < len(ids), "the fault would come too late to show anything"

    def all_analysed_once(self, ids: list[str], since: float) -> None:
        """Every study is analysed within 60 s of the fault, with exactly one finding each."""
        self.until(lambda: self.done(ids) == len(ids), 60)
        print(f"back and done {time.monotonic() - since:.1f} s after the fault")
        assert {state[0] for state in self.states(ids)} == {"analysed"}
        findings = self.ask(
            "SELECT i.study_id, count(f.id) FROM instances i LEFT JOIN findings f ON f.instance_id = i.id "
            "WHERE i.study_id = ANY(%s::uuid[]) GROUP BY 1",
            ids,
        )
        assert [count for _, count in findings] == [1] * len(ids)


@pytest.fixture(scope="module")
def plant(tmp_path_factory):
    """The parts that outlive one test."""
    made = Plant(tmp_path_factory.mktemp("plant"))
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture
def worker(plant):
    """A worker, which the test may kill."""
    process = plant.worker()
    yield process
    for left in plant.processes[1:]:
        left.kill()
        left.wait(20)
    del plant.processes[1:]


def test_a_killed_worker(plant, worker, tmp_path):
    """kill -9 of the worker: the next one finishes its studies, each exactly once."""
    ids = plant.submit(tmp_path, "worker")
    plant.midway(ids)
    worker.kill()
    since = time.monotonic()
    plant.worker()
    plant.all_analysed_once(ids, since)


def test_a_broker_that_forgets_everything(plant, worker, tmp_path):
    """FLUSHALL: the reconciler sends what the broker forgot, and each study is analysed exactly once."""
    ids = plant.submit(tmp_path, "flush")
    plant.midway(ids)
    client = redis.Redis.from_url(plant.valkey.url)
    client.flushall()
    client.close()
    plant.all_analysed_once(ids, time.monotonic())


def test_a_killed_broker(plant, worker, tmp_path):
    """kill -9 of Valkey, and uploads meanwhile: they are accepted, and all is analysed once it is back."""
    ids = plant.submit(tmp_path, "broker")
    plant.midway(ids)
    os.kill(plant.valkey.child.pid, signal.SIGKILL)
    since = time.monotonic()
    ids += plant.submit(tmp_path, "meanwhile", 5)
    time.sleep(2)
    plant.valkey.start()
    plant.all_analysed_once(ids, since)


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_a_database_that_goes_and_comes_back(plant, worker, tmp_path, how):
    """Postgres ends and starts again: nothing that was accepted is lost or analysed twice."""
    ids = plant.submit(tmp_path, f"database {how}")
    plant.midway(ids)
    if how == "stopped":
        plant.postgres.stop()
    else:
        os.kill(plant.postgres.child.pid, signal.SIGKILL)
    since = time.monotonic()
    time.sleep(3)
    plant.postgres.start()
    plant.all_analysed_once(ids, since)


def test_sigterm_under_load(plant, worker, tmp_path):
    """SIGTERM: the worker finishes what it holds and ends with 0 within 60 s; the next one does the rest."""
    ids = plant.submit(tmp_path, "sigterm")
    plant.midway(ids)
    worker.send_signal(signal.SIGTERM)
    since = time.monotonic()
    assert worker.wait(60) == 0
    print(f"ended {time.monotonic() - since:.1f} s after SIGTERM")
    assert [state for state in plant.states(ids) if state[0] == "running"] == []
    plant.worker()
    plant.all_analysed_once(ids, since)


def test_a_study_that_kills_its_worker(plant, tmp_path):
    """Such a study is set aside after N attempts with words; its neighbours are analysed and not blamed."""
    poison = plant.submit(tmp_path, "poison", 1)
    ids = plant.submit(tmp_path, "neighbours", 12)
    stop, deaths = threading.Event(), []

    def supervise() -> None:
        while not stop.is_set():
            process = plant.worker(POISON=poison[0])
            while process.poll() is None and not stop.wait(0.1):
                pass
            process.kill()
            deaths.append(process.wait(20))

    supervisor = threading.Thread(target=supervise)
    supervisor.start()
    since = time.monotonic()
    try:
        plant.until(lambda: plant.done(poison + ids) == 13, 180)
    finally:
        stop.set()
        supervisor.join(30)
    print(f"done {time.monotonic() - since:.1f} s after the start, workers ended with {deaths}")
    (set_aside,) = plant.states(poison)
    assert set_aside[:3] == ("quarantined", 3, "3 attempts ended without a result: the worker died or hung each time")
    assert {state[0] for state in plant.states(ids)} == {"analysed"}
    assert deaths.count(-signal.SIGABRT) == 3
    # who was in hand when it first died is tried once more, alone; nobody is tried a third time
    assert max(state[1] for state in plant.states(ids)) <= 2
