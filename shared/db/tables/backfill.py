"""Backfill runs, shadow runs, and the alerts that come of them."""

from datetime import date, datetime
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import Date, ForeignKey, Index, String, func, text
from sqlalchemy.orm import Mapped, mapped_column

from shared.db.tables.base import Base, one_of
from shared.domain.backfill import RunEnd, RunPurpose, Stage
from shared.domain.findings import Assessment


class BackfillRunRow(Base):
    """One run over history; the unique day keeps two schedulers from opening it twice. A shadow run has no day."""

    __tablename__ = "backfill_runs"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    purpose: Mapped[str] = mapped_column(String(16), server_default="backfill")  # RunPurpose
    day: Mapped[date | None] = mapped_column(unique=True)
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
    # how far it came: the last study chosen, in the order of `backfill_history.outdated`
    stage: Mapped[str] = mapped_column(String(16), server_default="exhausted")
    cursor_day: Mapped[date | None] = mapped_column(Date)
    cursor_probability: Mapped[float | None]
    cursor_study: Mapped[UUID | None]
    ended_by: Mapped[str] = mapped_column(server_default="")  # RunEnd; empty while it runs
    report: Mapped[dict[str, Any] | None]  # counts, written when it ends
    __table_args__ = (
        one_of("backfill_runs", "purpose", RunPurpose),
        one_of("backfill_runs", "stage", Stage),
        one_of("backfill_runs", "ended_by", RunEnd, empty=True),
        Index("ix_backfill_runs_open", "purpose", postgresql_where=text("finished_at IS NULL")),
    )


class RevisedFindingRow(Base):
    """A study that the old bundle called negative, and the new one unclear or positive, or abstained with such a score.

    It is to be put before a radiologist once.
    """

    __tablename__ = "revised_findings"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    site_id: Mapped[UUID] = mapped_column(ForeignKey("sites.id"))
    study_id: Mapped[UUID] = mapped_column(ForeignKey("studies.id", ondelete="CASCADE"))
    run_id: Mapped[UUID] = mapped_column(ForeignKey("backfill_runs.id"), index=True)
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
        one_of("revised_findings", "old_assessment", Assessment),
        one_of("revised_findings", "new_assessment", Assessment),
        Index("uq_revised_findings_study_id_new_bundle", "study_id", "new_bundle", unique=True),
        Index(
            "ix_revised_findings_unseen", "site_id", "new_probability", "id", postgresql_where=text("seen_at IS NULL")
        ),
    )
