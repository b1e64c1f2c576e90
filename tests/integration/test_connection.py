"""What a connection to Postgres is made of."""

import os
import socket
from collections.abc import Callable

import psycopg2
import pytest
from sqlalchemy import text

from shared.db.engine import JOBS, MIGRATIONS, REQUESTS, WORKER, Database, Limits, connect_arguments
from shared.errors import Locked, Unavailable


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="the names are Linux's")
def test_a_server_that_vanishes_is_noticed(database: Database, database_url: str) -> None:
    """Every pooled connection over TCP is probed while silent, and given up when nothing is acknowledged."""
    assert "@127.0.0.1" in database_url or "@localhost" in database_url
    with database.transaction() as session:
        assert session.scalar(text("SELECT 1")) == 1
        raw = session.connection().connection.dbapi_connection
        assert raw is not None
        with socket.socket(fileno=os.dup(raw.fileno())) as peer:
            options = {
                name: peer.getsockopt(socket.IPPROTO_TCP, getattr(socket, name))
                for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
            }
            assert peer.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    expected = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 15_000}
    assert options == expected


SHOWN = (
    "lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout", "tcp_keepalives_idle",
    "tcp_keepalives_interval", "tcp_keepalives_count", "tcp_user_timeout",
)  # fmt: skip


@pytest.mark.parametrize(
    ("limits", "shown"),
    [(REQUESTS, ["3s", "1min", "1min"]), (WORKER, ["3s", "5min", "1min"]), (JOBS, ["30s", "1h", "1h"]),
     (MIGRATIONS, ["5min", "0", "1h"])],
)  # fmt: skip
def test_every_connection_has_limits(database_url: str, limits: Limits, shown: list[str]) -> None:
    """Postgres lets no lock, statement or idle transaction last, and itself notices a client that vanished."""
    connected = Database(database_url, 1, limits)
    try:
        with connected.transaction() as session:
            found = [session.scalar(text(f"SHOW {name}")) for name in SHOWN]
    finally:
        connected.close()
    assert found == [*shown, "10", "5", "3", "15000"]


def test_whoever_connects_by_himself_has_them_too(database_url: str, run_alembic: Callable[..., None]) -> None:
    """The listener's arguments, for a plain URL, and what an administrator sets in the URL goes before ours."""
    plain = database_url.replace("+psycopg2", "")
    for url, expected in ((plain, "1min"), (f"{plain}?options=-c%20statement_timeout%3D5s", "5s")):
        connection = psycopg2.connect(url, **connect_arguments(url, REQUESTS))
        with connection.cursor() as cursor:
            cursor.execute("SHOW statement_timeout")
            assert cursor.fetchone() == (expected,)
            cursor.execute("SHOW lock_timeout")
            assert cursor.fetchone() == ("3s",)
        connection.close()
    changed = Database(f"{database_url}?options=-c%20lock_timeout%3D7s", 1)
    with changed.transaction() as session:
        assert session.scalar(text("SHOW lock_timeout")) == "7s"
    changed.close()
    run_alembic(database_url, "current")


def test_a_lock_and_a_limit_are_told_in_words(database_url: str) -> None:
    """The error names the database, the lock's table and the cure, neither the broker nor a value of a row."""
    connected = Database(database_url, 3, Limits(lock_s=0.1, statement_s=0.2, idle_s=0.2))
    try:
        with connected.transaction() as session:
            session.execute(text("INSERT INTO sites (id, name) VALUES (gen_random_uuid(), 'Clinic of Doe')"))
        row = text("SELECT id FROM sites FOR UPDATE")
        with connected.transaction(lock_s=5) as holder:
            holder.execute(row)
            with pytest.raises(Locked) as told, connected.transaction() as session:
                session.execute(row)
        assert "a lock on the table sites in Postgres for over 0.1 s" in str(told.value)
        assert "OSTEON_DATABASE_URL" in str(told.value)
        assert "Doe" not in str(told.value)
        with pytest.raises(Unavailable, match=r"gave a statement up after 0\.2 s"), connected.transaction() as session:
            session.execute(text("SELECT pg_sleep(30)"))
        with pytest.raises(Unavailable, match="Postgres"), connected.transaction() as session:
            session.execute(row)
            with connected.transaction(lock_s=30) as other:
                other.execute(row)  # until Postgres has ended the one that does nothing
            session.execute(row)
    finally:
        connected.close()
