"""Nightly runs."""

from datetime import date, datetime
from uuid import UUID, uuid4

from sqlalchemy.orm import Mapped, mapped_column

from shared.tables.base import Base


class BacklogRunRow(Base):
    """One nightly run; the unique night keeps two schedulers from running it twice."""

    __tablename__ = "backlog_runs"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    night: Mapped[date] = mapped_column(unique=True)
    started_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]
    failed: Mapped[int] = mapped_column(default=0)
    stranded: Mapped[int] = mapped_column(default=0)
    outdated: Mapped[int] = mapped_column(default=0)
    bundle: Mapped[str] = mapped_column(default="")
