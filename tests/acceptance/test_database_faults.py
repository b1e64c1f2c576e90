"""Postgres ends, hangs, refuses; clocks jump; two schedulers ring: nothing is lost, nothing is done twice."""

import contextlib
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg2
import pytest

from infra.postgres import EmbeddedPostgres
from tests.pace import LIMIT_S
from tests.plant import Plant, frozen, kill, pid_of

pytestmark = pytest.mark.timeout(300)
FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
# beat as it is, but that a night comes every second
BEAT = """
    import sys
    from worker.main import app
    app.conf.beat_schedule["nightly"]["schedule"] = 1.0
    app.start(["beat", "-s", sys.argv[1]])
"""


@pytest.mark.parametrize("how", [pytest.param("stopped", marks=pytest.mark.slow), "killed"])
def test_a_database_that_goes_and_comes_back(plant: Plant, how: str) -> None:
    """Postgres ends and starts again: nothing that was accepted is lost or analysed twice, and the log tells the cure."""
    worker = plant.worker()
    ids = plant.submit(f"database {how}")
    plant.midway(ids)
    if how == "stopped":
        plant.postgres.stop()
    else:
        kill(plant.postgres)
    since = time.monotonic()
    time.sleep(3)
    plant.postgres.start()
    plant.all_analysed_once(ids, since)
    assert worker.poll() is None
    said = plant.complaints()
    assert any("worker: could not reconcile Postgres" in line and "OSTEON_DATABASE_URL" in line for line in said), said


@pytest.mark.slow
def test_a_database_that_refuses(plant: Plant) -> None:
    """No connection is to be had for 6 s: uploads are told 503 and the cure, and what was accepted is analysed after."""
    worker = plant.worker()
    ids = plant.submit("refuse")
    plant.midway(ids)
    admin = psycopg2.connect(plant.postgres.admin_url.replace("+psycopg2", ""))
    admin.autocommit = True
    with admin.cursor() as cursor:
        cursor.execute("ALTER ROLE osteon CONNECTION LIMIT 0")
        cursor.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'osteon'")
    since = time.monotonic()
    try:
        answer = plant.post("refused", 0)
        time.sleep(6)
    finally:
        with admin.cursor() as cursor:
            cursor.execute("ALTER ROLE osteon CONNECTION LIMIT -1")
        admin.close()
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    assert "OSTEON_DATABASE_URL" in answer.json()["detail"]
    plant.all_analysed_once(ids, since)
    assert worker.poll() is None
    assert any("OSTEON_DATABASE_URL" in line for line in plant.complaints())
    assert plant.post("refused", 0).json()["stored"] == 1


def test_a_database_that_hangs(plant: Plant) -> None:
    """Postgres stands still for 10 s, longer than a lease: an upload waits for it, nothing is lost or done twice."""
    workers = [plant.worker(), plant.worker()]
    ids = plant.submit("stands still")
    plant.midway(ids)
    since = time.monotonic()
    with frozen(pid_of(plant.postgres)):
        time.sleep(10)
    plant.all_analysed_once(ids, since)
    assert [worker.poll() for worker in workers] == [None, None]


@pytest.fixture
def cramped(tmp_path: Path, small_disk: Callable[[str], Path]) -> Iterator[tuple[Plant, Path]]:
    """A plant of the test's own whose Postgres lies on a small disk."""
    disk = small_disk("192m")
    made = Plant(tmp_path)
    made.postgres = EmbeddedPostgres(disk / "postgres")
    try:
        made.start()
        yield made, disk
    finally:
        made.stop()


@pytest.mark.slow
@pytest.mark.parametrize("full", ["tables", "log"])
def test_a_database_whose_disk_is_full(cramped: tuple[Plant, Path], fill: Callable[[Path], Path], full: str) -> None:
    """Postgres can extend no table, or ends for want of room for its log: uploads are told 503 and the cure, or are
    accepted and kept; with room again, and Postgres started again by its supervisor, all is analysed once."""
    plant, disk = cramped
    worker = plant.worker()
    ids = plant.submit(f"full {full}", 300)  # the worker has work until after the disk is full
    plant.midway(ids)
    filler = fill(disk)
    since = time.monotonic()
    if full == "log":
        admin = psycopg2.connect(plant.postgres.admin_url.replace("+psycopg2", ""))
        with contextlib.closing(admin), admin.cursor() as cursor, contextlib.suppress(psycopg2.Error):
            cursor.execute("SELECT pg_switch_wal()")
    answers = [plant.post(f"full {full} meanwhile", number) for number in range(30)]
    refused = [number for number, answer in enumerate(answers) if answer.status_code != 200]
    print(f"{30 - len(refused)} of 30 uploads were accepted meanwhile; Postgres runs: {plant.postgres.running}")
    assert refused
    for answer in (answers[number] for number in refused):
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
        assert "OSTEON_DATABASE_URL" in answer.json()["detail"]
        assert "room on its disk" in answer.json()["detail"]
    ids += [answer.json()["files"][0]["study_id"] for answer in answers if answer.status_code == 200]
    time.sleep(max(0.0, 8 - (time.monotonic() - since)))
    # the tables' last pages may have room for some studies more
    plant.until(lambda: any("worker: " in line and "room on its disk" in line for line in plant.complaints()), 30)
    if full == "log":
        plant.until(lambda: not plant.postgres.running, 20)
    filler.unlink()
    plant.postgres.start()
    plant.all_analysed_once(ids, time.monotonic())
    assert worker.poll() is None
    again = [plant.post(f"full {full} meanwhile", number) for number in refused]
    assert {answer.status_code for answer in again} == {200}


@pytest.mark.slow
@pytest.mark.skipif(FAKETIME is None, reason="Debian's package faketime is not installed")
@pytest.mark.parametrize("jump", ["+2h", "-2h"])
def test_a_clock_that_jumps(plant: Plant, tmp_path: Path, jump: str) -> None:
    """The clock of one worker and of the API jumps by two hours under load, and messages are lost: all leases and
    messages go by Postgres' clock, so nobody's study is stolen, and nothing waits two hours to be found."""
    clock = tmp_path / "clock"
    clock.write_text("+0")
    fake = {
        "LD_PRELOAD": str(FAKETIME), "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1", "FAKETIME_DONT_RESET": "1",
    }  # fmt: skip
    url = plant.api(**fake)
    workers = [plant.worker(), plant.worker(**fake)]
    ids = plant.submit(f"before {jump}", url=url)
    plant.midway(ids)
    clock.write_text(jump)
    since = time.monotonic()
    time.sleep(2)
    ids += plant.submit(f"after {jump}", url=url)
    with plant.broker() as client:
        client.flushall()
    plant.all_analysed_once(ids, since)
    assert {state[1] for state in plant.studies.states(ids)} == {1}, "a study was stolen"
    assert [worker.poll() for worker in workers] == [None, None]
    query = "SELECT max(abs(extract(epoch FROM now() - sent_at))) FROM studies WHERE id = ANY(%s::uuid[])"
    ((ahead,),) = plant.studies.ask(query, ids)
    assert ahead < 600


@pytest.mark.slow
def test_two_beats_run_one_night(plant: Plant, tmp_path: Path) -> None:
    """Two schedulers ring for the night on and on, one is killed with -9 and started again: one night is run."""
    plant.worker()
    beats = [plant.run("beat", "-c", textwrap.dedent(BEAT), str(tmp_path / f"schedule-{n}")) for n in range(2)]
    plant.until(lambda: plant.studies.ask("SELECT id FROM backlog_runs WHERE finished_at IS NOT NULL"), 60)
    beats[0].kill()
    since = time.monotonic()
    beats[0].wait(LIMIT_S)
    before = plant.sent()
    plant.run("beat", "-c", textwrap.dedent(BEAT), str(tmp_path / "schedule-0"))
    plant.until(lambda: plant.sent() >= before + 6, 60)
    print(f"rung six more times {time.monotonic() - since:.1f} s after the kill")
    assert plant.studies.ask("SELECT count(*) FROM backlog_runs") == [(1,)]
