"""Connections to Postgres: their limits, their transactions, and what an error of theirs means."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from psycopg2.errors import DeadlockDetected, DiskFull, LockNotAvailable, QueryCanceled
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session, sessionmaker

from shared import tcp
from shared.errors import DatabaseFull, DatabaseUnavailable, Locked, Unavailable

CONNECTION = {  # libpq's; those of TCP mean nothing to a Unix socket
    "application_name": "osteon",
    "connect_timeout": 5,  # seconds
    "keepalives": 1,
    "keepalives_idle": tcp.IDLE_S,
    "keepalives_interval": tcp.INTERVAL_S,
    "keepalives_count": tcp.COUNT,
    "tcp_user_timeout": tcp.UNSENT_S * 1000,
}
# the same on the server's side, which else keeps the locks of a client that vanished for two hours
SERVER = {
    "tcp_keepalives_idle": tcp.IDLE_S,
    "tcp_keepalives_interval": tcp.INTERVAL_S,
    "tcp_keepalives_count": tcp.COUNT,
    "tcp_user_timeout": tcp.UNSENT_S * 1000,
}
HINT = "Check OSTEON_DATABASE_URL, and that the server runs, takes connections and has room on its disk."


@dataclass(frozen=True)
class Limits:
    """Time limits that Postgres sets a connection, in seconds; 0: none."""

    lock_s: float = 3.0  # waiting for a lock that another transaction holds
    statement_s: float = 60.0
    idle_s: float = 60.0  # a transaction open, and nothing asked: its locks hold up others


REQUESTS = Limits()  # a user waits for these
WORKER = Limits(statement_s=300.0)  # counts of everything there is
JOBS = Limits(lock_s=30.0, statement_s=3600.0, idle_s=3600.0)  # exports and checks of a whole site, by hand
MIGRATIONS = Limits(lock_s=300.0, statement_s=0.0, idle_s=3600.0)  # indexes are built for hours


def connect_arguments(url: str, limits: Limits) -> dict[str, Any]:
    """Make libpq's arguments beside the URL.

    Args:
        url: of Postgres, in libpq's or SQLAlchemy's form; settings in its `options` override ours.
        limits: time limits that Postgres sets the connection.

    Returns:
        Keyword arguments of psycopg2.connect.
    """
    settings = SERVER | {
        "lock_timeout": round(limits.lock_s * 1000),
        "statement_timeout": round(limits.statement_s * 1000),
        "idle_in_transaction_session_timeout": round(limits.idle_s * 1000),
    }
    options = " ".join(f"-c {name}={value}" for name, value in settings.items())
    url_options = make_url(url).query.get("options", "")
    return CONNECTION | {
        "options": f"{options} {url_options if isinstance(url_options, str) else ' '.join(url_options)}".strip()
    }


class Database:
    """One pool of connections per process; one per thread would exhaust Postgres."""

    def __init__(self, url: str, pool_size: int, limits: Limits = REQUESTS) -> None:
        """url: postgresql+psycopg2://…; nothing is connected yet."""
        self.limits = limits
        self.engine = create_engine(
            url,
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=30,
            pool_pre_ping=True,
            executemany_mode="values_plus_batch",  # many UPDATEs in one round trip
            hide_parameters=True,  # parameters can be identities, and errors are logged
            connect_args=connect_arguments(url, limits),
        )
        self._sessions = sessionmaker(self.engine, expire_on_commit=False)
        self._required: Callable[[Session], None] | None = None

    def require(self, check: Callable[[Session], None]) -> None:
        """Run this check in a transaction of its own before any other, until it has passed; its errors are raised."""
        self._required = check

    def check_reachable(self) -> None:
        """Ask for a row of our own tables.

        Raises Unavailable as `transaction` does, and SQLAlchemy's ProgrammingError where our tables are missing.
        """
        with self.transaction() as session:
            session.execute(text("SELECT 1 FROM bundles LIMIT 1"))

    @contextmanager
    def transaction(self, *, lock_s: float | None = None) -> Iterator[Session]:
        """Open a session that commits at the end, or rolls back.

        Args:
            lock_s: to wait for a lock no longer than this; None: as the connection's limits say.

        Yields:
            The session.

        Raises:
            DatabaseUnavailable: Postgres is away, or all connections are busy.
            DatabaseFull: Postgres has no room on its disk.
            Locked: another transaction holds what this one needs.
        """
        try:
            if self._required is not None:
                with self._sessions.begin() as session:
                    self._required(session)
                self._required = None
            with self._sessions.begin() as session:
                if lock_s is not None:
                    session.connection().exec_driver_sql(f"SET LOCAL lock_timeout = {round(lock_s * 1000)}")
                yield session
        except (OperationalError, InterfaceError) as error:
            raise self._unavailable(error, lock_s) from error
        except PoolTimeout as error:
            raise DatabaseUnavailable(
                "All connections to Postgres are busy; OSTEON_DATABASE_POOL_SIZE raises their number", "PoolTimeout"
            ) from error
        except DBAPIError as error:
            if error.connection_invalidated:
                kind = type(error.orig).__name__
                raise DatabaseUnavailable(f"Postgres closed the connection. {HINT}", kind) from error
            raise

    def _unavailable(self, error: DBAPIError, lock_s: float | None) -> Unavailable:
        """Make an error whose words hold no value of a row."""
        reason = error.orig
        if isinstance(reason, DiskFull):
            return DatabaseFull()
        if isinstance(reason, LockNotAvailable | DeadlockDetected):
            waited = self.limits.lock_s if lock_s is None else lock_s
            table = _locked_table(reason)
            lock = f"a lock on the table {table}" if table else "a lock"
            text = f"Another transaction held {lock} in Postgres for over {waited:g} s. {Locked.HINT}"
            return Locked(text, table)
        if isinstance(reason, QueryCanceled):
            text = f"Postgres gave a statement up after {self.limits.statement_s:g} s. {HINT}"
            return DatabaseUnavailable(text, type(reason).__name__)
        kind = type(reason).__name__
        return DatabaseUnavailable(f"Postgres does not answer ({kind}). {HINT}", kind)

    def close(self) -> None:
        """Give all connections back."""
        self.engine.dispose()


def _locked_table(error: Exception) -> str:
    """The table of the lock that was waited for, if Postgres names it; "" for an advisory lock."""
    context = getattr(getattr(error, "diag", None), "context", None) or ""
    found = re.search(r'relation "(\w+)"', context)
    return found[1] if found else ""
