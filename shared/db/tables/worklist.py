"""What happens around the worklist: turnaround targets, who reads what, saved filters, search."""

from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import ForeignKey, Index, LargeBinary, String, UniqueConstraint, func, text
from sqlalchemy.orm import Mapped, mapped_column

from shared.db.tables.base import RECORD, Base, one_of
from shared.domain.worklist import ReadingEnd


class TurnaroundTargetsRow(Base):
    """How long a site lets its studies wait; its newest row counts, the others are its history."""

    __tablename__ = "turnaround_targets"
    id: Mapped[int] = mapped_column(primary_key=True)
    site_id: Mapped[UUID] = mapped_column(ForeignKey("sites.id"))
    minutes: Mapped[dict[str, Any]]  # as TURNAROUND_TARGETS in shared/domain/worklist.py
    key_id: Mapped[UUID] = mapped_column(ForeignKey("api_keys.id"))
    chosen_at: Mapped[datetime] = mapped_column(server_default=func.now())
    __table_args__ = (Index("ix_turnaround_targets_site_id_id", "site_id", "id"), RECORD)


class ReadingLockRow(Base):
    """Somebody reads, or read, a study. A row is ended, never deleted; one a study is open."""

    __tablename__ = "reading_locks"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    study_id: Mapped[UUID] = mapped_column(ForeignKey("studies.id", ondelete="CASCADE"), index=True)
    key_id: Mapped[UUID] = mapped_column(ForeignKey("api_keys.id"))
    login: Mapped[str] = mapped_column(String(32), server_default="")  # which login of the key; empty for a program
    token: Mapped[UUID]  # of the page that renewed it last: only that one gives it back
    locked_at: Mapped[datetime]
    until: Mapped[datetime]  # unless it is renewed
    taken_from: Mapped[UUID | None] = mapped_column(ForeignKey("api_keys.id"))
    ended_at: Mapped[datetime | None]
    ended: Mapped[str] = mapped_column(String(16), server_default="")  # ReadingEnd; empty while it is open
    __table_args__ = (
        one_of("reading_locks", "ended", ReadingEnd, empty=True),
        Index("uq_reading_locks_open", "study_id", unique=True, postgresql_where=text("ended_at IS NULL")),
    )


class SavedFilterRow(Base):
    """A choice of filters that a reader gave a name."""

    __tablename__ = "saved_filters"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    key_id: Mapped[UUID] = mapped_column(ForeignKey("api_keys.id"))
    name: Mapped[str] = mapped_column(String(40))
    query: Mapped[str] = mapped_column(String(400))  # of the page's URL
    __table_args__ = (UniqueConstraint("key_id", "name"),)


class IdentityTokenRow(Base):
    """A keyed hash of an identifying number: a search for the number finds it, and it reveals nothing else."""

    __tablename__ = "identity_tokens"
    study_id: Mapped[UUID] = mapped_column(ForeignKey("studies.id", ondelete="CASCADE"), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16), primary_key=True)
    token: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True, index=True)


class IdentitySearchRow(Base):
    """Who searched for a patient, when, and how many studies that showed; not for whom."""

    __tablename__ = "identity_searches"
    __table_args__ = RECORD
    id: Mapped[int] = mapped_column(primary_key=True)
    key_id: Mapped[UUID] = mapped_column(ForeignKey("api_keys.id"))
    found: Mapped[int]
    searched_at: Mapped[datetime] = mapped_column(server_default=func.now())
