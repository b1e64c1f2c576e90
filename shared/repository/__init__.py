"""Every query, by noun: access, bundles, intake, work, reading, nights, alerts. Callers own the transaction."""

from collections.abc import Iterator
from contextlib import contextmanager

from psycopg2.errors import DiskFull
from sqlalchemy import create_engine
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session, sessionmaker

from shared.errors import DatabaseFull, Unavailable

CONNECTION = {  # libpq's; those of TCP mean nothing to a Unix socket
    "application_name": "osteon",
    "connect_timeout": 5,  # seconds
    # a server that vanished without a word is given up after some 25 s of silence, or 15 s with something unsent
    "keepalives": 1,
    "keepalives_idle": 10,  # seconds
    "keepalives_interval": 5,  # seconds
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,  # milliseconds
}
CURE = "Check OSTEON_DATABASE_URL, and that the server runs, takes connections and has room on its disk."


class Database:
    """One pool of connections per process; one per thread would exhaust Postgres."""

    def __init__(self, url: str, pool_size: int) -> None:
        """url: postgresql+psycopg2://…; nothing is connected yet."""
        self.engine = create_engine(
            url,
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=30,
            pool_pre_ping=True,
            executemany_mode="values_plus_batch",  # many UPDATEs in one round trip
            hide_parameters=True,  # parameters can be identities, and errors are logged
            connect_args=dict(CONNECTION),
        )
        self._sessions = sessionmaker(self.engine, expire_on_commit=False)

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """A session that commits at the end, or rolls back. Raises Unavailable if Postgres is away or full."""
        try:
            with self._sessions.begin() as session:
                yield session
        except (OperationalError, InterfaceError) as wrong:
            if isinstance(wrong.orig, DiskFull):
                raise DatabaseFull from wrong
            raise Unavailable(f"Postgres does not answer ({type(wrong.orig).__name__}). {CURE}") from wrong
        except PoolTimeout as wrong:
            raise Unavailable(
                "All connections to Postgres are busy; OSTEON_DATABASE_POOL_SIZE raises their number"
            ) from wrong
        except DBAPIError as wrong:
            if wrong.connection_invalidated:
                raise Unavailable(f"Postgres closed the connection. {CURE}") from wrong
            raise

    def close(self) -> None:
        """Give all connections back."""
        self.engine.dispose()
