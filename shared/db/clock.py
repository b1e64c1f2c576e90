"""The time that all hosts agree on."""

from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session


def db_now(session: Session) -> datetime:
    """Postgres' time: the one clock that all hosts share, so that a lease means the same on each."""
    return session.scalar(select(func.clock_timestamp()))  # type: ignore[return-value]
