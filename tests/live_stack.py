"""The parts of Osteon as processes that tests may kill, and what stands in Postgres afterwards."""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import psycopg2
import redis

from api.server import main as api_main
from infra.client.api import Client
from infra.embedded.live_stack import LiveStack
from infra.embedded.postgres import EmbeddedPostgres
from infra.embedded.process import free_port
from infra.embedded.valkey import EmbeddedValkey
from samples.objects import pattern_image, set_pixels, to_bytes, uid
from shared.queue.celery_app import QUEUES
from shared.settings import ROOT
from tests import fake_worker, pace
from tests.forked import ForkedProcess, run_module, run_program
from tests.pace import LIMIT_S

KEYS = {role: f"osk_faults_{role}_key_of_the_tests" for role in ("submitter", "radiologist", "admin", "operator")}
SETTINGS = {
    # short, but not so short that a slow machine looks like a dead one
    **{name: str(seconds * pace.slowness()) for name, seconds in (
        ("LEASE_S", 4), ("RESEND_GRACE_S", 2), ("STALLED_CONSUMER_S", 4))},
    "RECONCILE_EVERY_S": "1", "RETRY_BASE_S": "0.5", "MAX_ATTEMPTS": "3", "BATCH_SIZE": "4", "WORKER_THREADS": "8",
    "DECODERS": "1",  # each takes a second of the processor to start
}  # fmt: skip


WAITING_COLUMNS = "id, state, priority, attempts, queued_at, sent_at, not_before, lease_until"


class Studies:
    """Studies as they stand in Postgres."""

    def __init__(self, url: str) -> None:
        """url: SQLAlchemy's."""
        self._url = url.replace("+psycopg2", "")

    def ask(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """The rows of one query, on a connection of its own, for the one before may be dead."""
        connection = psycopg2.connect(self._url, connect_timeout=3)
        try:
            with connection.cursor() as cursor:
                cursor.execute(query, values)
                return cursor.fetchall()
        finally:
            connection.close()

    def states(self, ids: Sequence[str]) -> list[tuple[Any, ...]]:
        """(status, attempts, reason, id) of each study."""
        query = (
            "SELECT CASE status WHEN 'queued' THEN state ELSE status END, attempts, analyses.reason, studies.id::text "
            "FROM studies JOIN analyses ON analyses.id = current_analysis_id WHERE studies.id = ANY(%s::uuid[])"
        )
        return self.ask(query, list(ids))

    def done(self, ids: Sequence[str]) -> int:
        """How many are analysed or quarantined."""
        return sum(state[0] in ("analysed", "quarantined") for state in self.states(ids))

    def findings(self, ids: Sequence[str]) -> list[int]:
        """How many findings each study has."""
        query = (
            "SELECT i.study_id, count(f.id) FROM instances i LEFT JOIN findings f ON f.instance_id = i.id "
            "WHERE i.study_id = ANY(%s::uuid[]) GROUP BY 1"
        )
        return [count for _, count in self.ask(query, list(ids))]


class BreakableStack(LiveStack):
    """A live stack whose parts tests may kill, freeze and start again; its workers have a model that is none."""

    def __init__(self, folder: Path) -> None:
        keys = {f"KEY_{role.upper()}": secret for role, secret in KEYS.items()}
        super().__init__(settings=keys | SETTINGS | {"LOG_LEVEL": "INFO"}, folder=folder)
        self.processes: list[subprocess.Popen[bytes] | ForkedProcess] = []
        self.workers: list[subprocess.Popen[bytes] | ForkedProcess] = []  # of this test
        self.since = datetime.now(UTC)

    def start(self) -> None:
        """Start what outlives one test."""
        super().start()
        self.environment |= {"OMP_NUM_THREADS": "2", "MODEL_S": "0.1"}
        self.studies = Studies(self.postgres.url)
        self.url = self.api()

    def _step(self, *arguments: str, **more: str) -> None:
        environment = self.environment | more
        kind, *rest = arguments
        if kind == "-m":
            done = run_module(rest, environment, self.folder)
        else:
            done = run_program(rest[0], [], environment, self.folder)
        assert done.returncode == 0, done.stdout

    def begin(self) -> None:
        """Make ready for a test: what the one before left dead runs again."""
        self.since = datetime.now(UTC)
        self.workers.clear()
        self.postgres.start()
        self.valkey.start()
        with self.broker() as client:
            client.flushall()

    def api(self, **more: str) -> str:
        """Start an API; returns its URL."""
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        self._begin("api", api_main, "api.server", OSTEON_API_PORT=str(port), **more)

        def responds() -> bool:
            try:
                with Client(url, KEYS["admin"]) as client:
                    client.worklist()
            except Exception:
                return False
            return True

        self.until(responds, 60)
        return url

    def run(  # type: ignore[override] # tests wait for it and kill it
        self, name: str, *arguments: str, **more: str
    ) -> "subprocess.Popen[bytes]":
        """Start a Python program; it writes to NAME.log."""
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, *arguments], env=self.environment | more, stdout=log, stderr=log, cwd=ROOT
            )
        self.processes.append(process)
        return process

    def worker(  # type: ignore[override] # as run
        self, **more: str
    ) -> "subprocess.Popen[bytes] | ForkedProcess":
        """Start a worker with a model that is none (fake_worker.py)."""
        process = self._begin("worker", fake_worker.main, "tests.fake_worker", **more)
        self.workers.append(process)
        return process

    def _begin(
        self, name: str, main: Callable[[], None], module: str, **more: str
    ) -> "subprocess.Popen[bytes] | ForkedProcess":
        """Fork a process that runs `main`, which is what `python -m` runs of the module."""
        if "LD_PRELOAD" in more:  # what is loaded before all else cannot be had by a fork
            return self.run(name, "-m", module, **more)
        with (self.folder / f"{name}.log").open("ab") as log:
            process = ForkedProcess(main, self.environment | more, log, ROOT)
        self.processes.append(process)
        return process

    @contextmanager
    def supervised(self, **more: str) -> Iterator[list[int]]:
        """A worker that is started again when it ends, as by its supervisor; yields what each ended with."""
        ends: list[int] = []
        process = self.worker(**more)

        def tend() -> None:
            nonlocal process
            if (code := process.poll()) is not None:
                ends.append(code)
                process = self.worker(**more)

        self._tend = tend
        try:
            yield ends
        finally:
            self._tend = lambda: None
            process.kill()
            process.wait(LIMIT_S)

    _tend: Callable[[], None] = staticmethod(lambda: None)

    def stop(self) -> None:
        """End everything."""
        self.end_processes(0)
        super().stop()

    def end_processes(self, keep: int) -> None:
        """Kill what was run, but for the first ones."""
        for process in self.processes[keep:]:
            process.kill()
            process.wait(LIMIT_S)
        del self.processes[keep:]

    @contextmanager
    def broker(self) -> Iterator[redis.Redis]:
        """A client of the broker."""
        client = redis.Redis.from_url(self.valkey.url)
        try:
            yield client
        finally:
            client.close()

    def sent(self) -> int:
        """Messages that entered the broker's lists since it started or its statistics were reset."""
        with self.broker() as client:
            return int(client.info("commandstats").get("cmdstat_lpush", {}).get("calls", 0))

    def submit(self, label: str, count: int = 40, priority: str = "routine", url: str = "") -> list[str]:
        """Upload so many studies of one small instance each; returns their ids."""
        (self.folder / "instances").mkdir(exist_ok=True)
        paths = []
        for number in range(count):
            paths.append(self.folder / "instances" / f"{label}-{number}.dcm")
            paths[-1].write_bytes(instance(label, number))
        with Client(url or self.url, KEYS["submitter"]) as client:
            receipt = client.submit([(path, path.name) for path in paths], priority)
        assert receipt.count("stored") == count
        return list(receipt.studies)

    def post(
        self, label: str, number: int, url: str = "", *, half_black: bool = False, study: int | None = None
    ) -> httpx.Response:
        """Upload one instance, whatever the response."""
        files = {"files": ("instance.dcm", instance(label, number, half_black=half_black, study=study))}
        headers = {"Authorization": f"Bearer {KEYS['submitter']}"}
        with httpx.Client(timeout=LIMIT_S, trust_env=False) as client:
            return client.post(f"{url or self.url}/api/v1/studies", files=files, headers=headers)

    def until(self, condition: Callable[[], object], limit_s: float) -> None:
        """Wait for it; a supervised worker that ends meanwhile is started again."""

        def held() -> object:
            found = condition()
            if not found:
                self._tend()
            return found

        pace.until(held, limit_s, self.logs)

    def logs(self) -> str:
        """What waits in Postgres and in the broker, what the workers' threads do, and the ends of all logs."""
        for worker in self.workers:
            if worker.poll() is None:
                worker.send_signal(fake_worker.STACKS)
        time.sleep(1)  # they write
        found = [f"workers: {[worker.poll() for worker in self.workers]}"]
        with contextlib.suppress(psycopg2.Error, redis.RedisError):
            found += map(
                str, self.studies.ask(f"SELECT now(), {WAITING_COLUMNS} FROM analyses WHERE state <> 'done' LIMIT 5")
            )
            with self.broker() as client:
                found += [f"{queue}: {client.llen(queue)}, {client.lindex(queue, -1)!r}" for queue in QUEUES]
        return "\n".join([*found, *(log.read_text()[-6000:] for log in self.folder.glob("*.log"))])

    def said(self, *messages: str) -> str:
        """The lines of all logs that hold one of these messages."""
        lines = (line for log in self.folder.glob("*.log") for line in log.read_text().splitlines())
        return "\n".join(line for line in lines if any(message in line for message in messages))

    def midway(self, ids: Sequence[str]) -> None:
        """Wait until some studies are analysed and most are not."""
        self.until(lambda: self.studies.done(ids) >= 5, 90)
        assert self.studies.done(ids) < len(ids), "the fault would come too late to show anything"

    def all_analysed_once(self, ids: Sequence[str], since: float) -> float:
        """Every study is analysed within 60 s, with exactly one finding each; returns the seconds since then."""
        self.until(lambda: self.studies.done(ids) == len(ids), 60)
        seconds = time.monotonic() - since
        print(f"back and done {seconds:.1f} s after the fault")
        assert {state[0] for state in self.studies.states(ids)} == {"analysed"}
        assert self.studies.findings(ids) == [1] * len(ids)
        return seconds

    @contextmanager
    def locked(self, study: str) -> Iterator[None]:
        """A session that has nothing to do with Osteon leaves a transaction open which has locked this study's rows."""
        connection = psycopg2.connect(self.postgres.url.replace("+psycopg2", ""))
        try:
            with connection.cursor() as cursor:
                rows = "SELECT studies.id FROM studies JOIN analyses ON study_id = studies.id WHERE studies.id = %s"
                cursor.execute(f"{rows} FOR UPDATE", [study])
            yield
        finally:
            connection.close()

    def complaints(self, level: str = "warning") -> list[str]:
        """What the parts logged at this level or above since the test began, as the admin sees it."""
        levels = ("warning", "error", "critical")
        found = []
        for log in self.folder.glob("*.log"):
            for line in log.read_text().splitlines():
                try:
                    entry = json.loads(line)
                except ValueError:
                    continue
                since = datetime.fromisoformat(entry["time"])
                if entry["level"] in levels[levels.index(level) :] and since >= self.since:
                    found.append(f"{log.stem}: {entry['message']} {entry.get('why', '')} {entry.get('error', '')}")
        return found


def instance(label: str, number: int, *, half_black: bool = False, study: int | None = None) -> bytes:
    """A study of one small instance, another one for each label and number, or a further instance of the study of that number.

    half_black: the model raises at it.
    """
    ds = pattern_image(1, f"{label}/{number}")
    ds.StudyInstanceUID = uid(f"faults/{label}/{number if study is None else study}")
    seed = int.from_bytes(hashlib.sha256(f"{label}/{number}".encode()).digest()[:4], "big")
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 64), np.uint8)
    if half_black:
        pixels[:, :32] = 0
    set_pixels(ds, [pixels], 8, "explicit")
    return to_bytes(ds, "1.2.840.10008.1.2.1")


def pid_of(server: EmbeddedPostgres | EmbeddedValkey) -> int:
    """The process id of a server that was started."""
    assert server.child is not None
    assert server.child.pid is not None
    return server.child.pid


def kill(server: EmbeddedPostgres | EmbeddedValkey) -> None:
    """kill -9, and wait for its end."""
    os.kill(pid_of(server), signal.SIGKILL)
    pace.until(lambda: not server.running, 20, every_s=0.01)


def decoders_of(worker: int) -> list[psutil.Process]:
    """The children of a worker that decode."""
    found = []
    for child in psutil.Process(worker).children():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):  # it has just died
            if any("spawn_main" in word for word in child.cmdline()):
                found.append(child)
    return found


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """A process and all its children stand still during the block, alive but silent."""
    parent = psutil.Process(pid)
    parent.suspend()  # first, so that it has no more children
    family = [parent]
    try:
        family += parent.children(recursive=True)
        for member in family[1:]:
            with contextlib.suppress(psutil.NoSuchProcess):  # a connection that has just ended
                member.suspend()
        yield
    finally:
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.resume()
