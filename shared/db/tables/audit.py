"""Logins of the pages, where keys are used from, and who did what."""

from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import BigInteger, ForeignKey, Identity, Index, String, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from shared.db.tables.base import RECORD, Base, one_of
from shared.domain.security import FAILURES, EventKind, LoginEnd, Subject

_FAILED = "kind IN ({})".format(", ".join(f"'{kind}'" for kind in FAILURES))
_ABOUT = "subject_kind IS NOT NULL"


class SessionRow(Base):
    """One login of the pages. The browser's cookie holds its id, signed."""

    __tablename__ = "sessions"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    key_id: Mapped[UUID] = mapped_column(ForeignKey("api_keys.id"), index=True)
    address: Mapped[str] = mapped_column(String(45))  # where it came from
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    active_at: Mapped[datetime] = mapped_column(server_default=func.now())  # coarse; streams and polling do not count
    ended_at: Mapped[datetime | None]
    ended_for: Mapped[str | None] = mapped_column(String(16))

    __table_args__ = (one_of("sessions", "ended_for", LoginEnd),)


class KeyAddressRow(Base):
    """An address that a key was used from."""

    __tablename__ = "key_addresses"
    key_id: Mapped[UUID] = mapped_column(ForeignKey("api_keys.id"), primary_key=True)
    address: Mapped[str] = mapped_column(String(45), primary_key=True)  # of IPv6 the /64
    first_at: Mapped[datetime] = mapped_column(server_default=func.now())


class AuditEventRow(Base):
    """Who did what to keys, models, studies, settings. Postgres refuses to change or remove one. Names no patient."""

    __tablename__ = "audit_events"
    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    kind: Mapped[str] = mapped_column(String(32))
    site_id: Mapped[UUID | None] = mapped_column(ForeignKey("sites.id"))  # null: no site's, or all sites'
    key_id: Mapped[UUID | None] = mapped_column(ForeignKey("api_keys.id"))  # who did it; null: unknown, or a System
    actor: Mapped[str | None] = mapped_column(
        String(64)
    )  # the key's name then, or a System; null before 0020: the key's
    address: Mapped[str] = mapped_column(String(45), server_default="")  # where from; empty: a program of this host
    network: Mapped[str] = mapped_column(String(49), server_default="")  # that failures are counted by
    study_id: Mapped[UUID | None]  # no foreign key: the event outlives the study
    subject_kind: Mapped[str | None] = mapped_column(String(16))  # what it happened to
    subject_id: Mapped[str | None] = mapped_column(String(64))
    before: Mapped[dict[str, Any] | None] = mapped_column(
        JSONB(none_as_null=True)
    )  # codes and numbers; null: it was not
    after: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))  # null: it is not any more
    detail: Mapped[dict[str, Any]] = mapped_column(server_default=text("'{}'::jsonb"))

    __table_args__ = (
        one_of("audit_events", "kind", EventKind),
        one_of("audit_events", "subject_kind", Subject),
        Index("ix_audit_events_site_id_id", "site_id", "id"),
        Index("ix_audit_events_failed_from", "network", "at", postgresql_where=text(_FAILED)),
        Index("ix_audit_events_failed_by", "key_id", "at", postgresql_where=text(_FAILED)),
        Index("ix_audit_events_subject", "subject_kind", "subject_id", "id", postgresql_where=text(_ABOUT)),
        RECORD,
    )
