"""What happens around the worklist: allowances, who reads what, saved filters, search."""

from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import ForeignKey, Index, LargeBinary, String, UniqueConstraint, func, text
from sqlalchemy.orm import Mapped, mapped_column

from shared.tables.base import Base


class AllowancesRow(Base):
    """How long a site lets its studies wait; its newest row counts, the others tell what was before."""

    __tablename__ = "allowances"
    id: Mapped[int] = mapped_column(primary_key=True)
    site_id: Mapped[UUID] = mapped_column(ForeignKey("sites.id"))
    minutes: Mapped[dict[str, Any]]  # as ALLOWANCES in shared/worklist.py
    key_id: Mapped[UUID] = mapped_column(ForeignKey("api_keys.id"))
    chosen_at: Mapped[datetime] = mapped_column(server_default=func.now())
    __table_args__ = (Index("ix_allowances_site_id_id", "site_id", "id"),)


class StudyClaimRow(Base):
    """Somebody reads, or read, a study. A row is ended, never deleted; one a study is open."""

    __tablename__ = "study_claims"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    study_id: Mapped[UUID] = mapped_column(ForeignKey("studies.id", ondelete="CASCADE"), index=True)
    key_id: Mapped[UUID] = mapped_column(ForeignKey("api_keys.id"))
    desk: Mapped[str] = mapped_column(String(32), server_default="")  # which login of the key; empty for a program
    token: Mapped[UUID]  # of the page that renewed it last: only that one gives it back
    claimed_at: Mapped[datetime]
    until: Mapped[datetime]  # unless it is renewed
    taken_from: Mapped[UUID | None] = mapped_column(ForeignKey("api_keys.id"))
    ended_at: Mapped[datetime | None]
    ended: Mapped[str] = mapped_column(String(16), server_default="")  # released, expired, taken over, read
    __table_args__ = (
        Index("uq_study_claims_open", "study_id", unique=True, postgresql_where=text("ended_at IS NULL")),
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
    """A keyed hash of an identifying number: it can be asked for by who knows the number, and tells nothing else."""

    __tablename__ = "identity_tokens"
    study_id: Mapped[UUID] = mapped_column(ForeignKey("studies.id", ondelete="CASCADE"), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16), primary_key=True)
    token: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True, index=True)


class IdentitySearchRow(Base):
    """Who searched for a patient, when, and how many studies that showed; not for whom."""

    __tablename__ = "identity_searches"
    id: Mapped[int] = mapped_column(primary_key=True)
    key_id: Mapped[UUID] = mapped_column(ForeignKey("api_keys.id"))
    found: Mapped[int]
    searched_at: Mapped[datetime] = mapped_column(server_default=func.now())
