"""Nightly runs, shadow runs, and the second looks that they send out."""

from datetime import date, datetime
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import Date, ForeignKey, Index, String, func, text
from sqlalchemy.orm import Mapped, mapped_column

from shared.findings import Assessment
from shared.tables.base import Base, one_of


class BacklogRunRow(Base):
    """One run over history; the unique night keeps two schedulers from running it twice. A shadow run has no night."""

    __tablename__ = "backlog_runs"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    purpose: Mapped[str] = mapped_column(String(16), server_default="night")  # night or shadow
    night: Mapped[date | None] = mapped_column(unique=True)
    started_at: Mapped[datetime]
    ends_at: Mapped[datetime | None]  # the window's end: nothing is sent from then on
    finished_at: Mapped[datetime | None]
    # what it chose
    failed: Mapped[int] = mapped_column(default=0)
    stranded: Mapped[int] = mapped_column(default=0)
    outdated: Mapped[int] = mapped_column(default=0)
    switched: Mapped[int] = mapped_column(server_default="0")  # of the outdated: findings were there already
    most: Mapped[int | None]  # studies it may choose, those that are merely switched apart
    bundle: Mapped[str] = mapped_column(default="")
    since: Mapped[date | None] = mapped_column(Date)  # only studies that arrived on this day or later
    # how far it came: the last study chosen, in the order of `nights.outdated`
    stage: Mapped[str] = mapped_column(String(16), server_default="exhausted")
    cursor_day: Mapped[date | None] = mapped_column(Date)
    cursor_probability: Mapped[float | None]
    cursor_study: Mapped[UUID | None]
    ended_by: Mapped[str] = mapped_column(server_default="")  # why it ended, in words
    report: Mapped[dict[str, Any] | None]  # counts, written when it ends
    __table_args__ = (Index("ix_backlog_runs_open", "purpose", postgresql_where=text("finished_at IS NULL")),)


class SecondLookRow(Base):
    """One study to be looked at by one bundle other than the one that speaks for it. See docs/adr/0015."""

    __tablename__ = "second_looks"
    study_id: Mapped[UUID] = mapped_column(ForeignKey("studies.id", ondelete="CASCADE"), primary_key=True)
    bundle: Mapped[str] = mapped_column(primary_key=True)
    site_id: Mapped[UUID] = mapped_column(ForeignKey("sites.id"))
    run_id: Mapped[UUID] = mapped_column(ForeignKey("backlog_runs.id"))
    purpose: Mapped[str] = mapped_column(String(16))
    state: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str] = mapped_column(default="")  # why failed or overtaken; never patient data
    # the queue, as of studies
    queued_at: Mapped[datetime] = mapped_column(server_default=func.now())
    sent_at: Mapped[datetime | None]
    attempts: Mapped[int] = mapped_column(default=0)
    not_before: Mapped[datetime | None]
    lease_token: Mapped[UUID | None]
    lease_until: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    # the comparison, written when it is done
    region: Mapped[str] = mapped_column(String(32), default="")  # as the old bundle has it
    old_bundle: Mapped[str] = mapped_column(default="")
    old_assessment: Mapped[str | None] = mapped_column(String(16))
    old_severity: Mapped[str | None] = mapped_column(String(16))
    old_probability: Mapped[float | None]
    new_assessment: Mapped[str | None] = mapped_column(String(16))
    new_severity: Mapped[str | None] = mapped_column(String(16))
    new_probability: Mapped[float | None]
    __table_args__ = (
        # those that are out, or were taken back: a few hundred, however many were done
        Index(
            "ix_second_looks_open", "state", "sent_at", postgresql_where=text("state IN ('queued', 'running', 'held')")
        ),
        one_of("second_looks", "old_assessment", Assessment),
        one_of("second_looks", "new_assessment", Assessment),
        Index("ix_second_looks_run", "run_id", "state", "finished_at"),
        Index("ix_second_looks_pairs", "bundle", "old_bundle", "site_id", "old_assessment", "new_assessment"),
    )


class AlertRow(Base):
    """A study that the old bundle called negative and the new one does not: to be put before a radiologist once."""

    __tablename__ = "alerts"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    site_id: Mapped[UUID] = mapped_column(ForeignKey("sites.id"))
    study_id: Mapped[UUID] = mapped_column(ForeignKey("studies.id", ondelete="CASCADE"))
    run_id: Mapped[UUID] = mapped_column(ForeignKey("backlog_runs.id"), index=True)
    old_bundle: Mapped[str]
    new_bundle: Mapped[str]
    old_assessment: Mapped[str] = mapped_column(String(16))
    new_assessment: Mapped[str] = mapped_column(String(16))
    region: Mapped[str] = mapped_column(String(32))
    old_probability: Mapped[float]
    new_probability: Mapped[float]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    seen_at: Mapped[datetime | None]
    seen_by: Mapped[UUID | None] = mapped_column(ForeignKey("api_keys.id"))
    __table_args__ = (
        one_of("alerts", "old_assessment", Assessment),
        one_of("alerts", "new_assessment", Assessment),
        Index("uq_alerts_study_id_new_bundle", "study_id", "new_bundle", unique=True),
        Index("ix_alerts_unseen", "site_id", "new_probability", "id", postgresql_where=text("seen_at IS NULL")),
    )
