"""Analyses: the one queue of work, and what each came to."""

from datetime import datetime
from uuid import UUID, uuid4

from sqlalchemy import ForeignKey, Index, String, func, text
from sqlalchemy.orm import Mapped, mapped_column

from shared.db.tables.base import Base, one_of
from shared.domain.analysis import AnalysisState, LeftoverKind, Purpose, SupersededReason
from shared.domain.findings import Assessment, Extent
from shared.domain.study import Priority
from shared.errors import Reason

FIRST_OPEN = text("purpose = 'first' AND state IN ('queued', 'running', 'retrying')")
FIRST_WAITING = text("purpose = 'first' AND state IN ('queued', 'retrying')")


class AnalysisRow(Base):
    """One study to be analysed by one model: its place in the queue, its lease, and what it came to.

    A study is queued while an analysis of it with the purpose `first` is open. Whoever opens or ends one holds the
    lock on the study's row; all else needs the analysis' own lock only. Who locks both locks the study first, or
    passes by what is locked (see docs/adr/0050).
    """

    __tablename__ = "analyses"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    study_id: Mapped[UUID] = mapped_column(ForeignKey("studies.id", ondelete="CASCADE"), index=True)
    site_id: Mapped[UUID] = mapped_column(ForeignKey("sites.id"))
    model: Mapped[str | None]  # a bundle's name; null: a first analysis that nobody has begun
    purpose: Mapped[str] = mapped_column(String(16))
    state: Mapped[str] = mapped_column(String(16))
    # the queue
    priority: Mapped[str] = mapped_column(String(16))  # where its message goes
    attempts: Mapped[int] = mapped_column(server_default="0")
    queued_at: Mapped[datetime] = mapped_column(server_default=func.now())  # since when it waits
    sent_at: Mapped[datetime | None]  # when a message last left for the broker; null: none is out
    not_before: Mapped[datetime | None]  # earliest next attempt
    lease_token: Mapped[UUID | None]
    lease_until: Mapped[datetime | None]
    started_at: Mapped[datetime | None]  # the last attempt
    finished_at: Mapped[datetime | None]
    reason: Mapped[str] = mapped_column(server_default="")  # Reason or SupersededReason: why it retries or has ended
    reason_detail: Mapped[str] = mapped_column(server_default="")  # as shared.errors.Cause has it
    # the backfill run that asked for it
    run_id: Mapped[UUID | None] = mapped_column(ForeignKey("backfill_runs.id"))
    leftover: Mapped[str | None] = mapped_column(String(16))  # of a first analysis: why the run took it up
    # the result, of the finding that speaks for the study
    assessment: Mapped[str | None] = mapped_column(String(16))
    severity: Mapped[str | None] = mapped_column(String(16))
    fracture_probability: Mapped[float | None]
    # what a rerun or a shadow is compared with, as the study had it
    old_model: Mapped[str | None]
    old_assessment: Mapped[str | None] = mapped_column(String(16))
    old_severity: Mapped[str | None] = mapped_column(String(16))
    old_probability: Mapped[float | None]
    old_region: Mapped[str | None] = mapped_column(String(32))
    __table_args__ = (
        one_of("analyses", "purpose", Purpose),
        one_of("analyses", "state", AnalysisState),
        one_of("analyses", "priority", Priority),
        one_of("analyses", "reason", Reason, SupersededReason, empty=True),
        one_of("analyses", "leftover", LeftoverKind),
        one_of("analyses", "assessment", Assessment),
        one_of("analyses", "severity", Extent),
        one_of("analyses", "old_assessment", Assessment),
        one_of("analyses", "old_severity", Extent),
        Index("uq_analyses_first_open", "study_id", unique=True, postgresql_where=FIRST_OPEN),
        Index(
            "uq_analyses_study_id_model", "study_id", "model", unique=True, postgresql_where=text("purpose <> 'first'")
        ),
        # what is out, or was taken back: the reconciler looks for those sent before the oldest message of their queue
        Index(
            "ix_analyses_open", "state", "priority", "sent_at",
            postgresql_where=text("state IN ('queued', 'running', 'retrying', 'paused')"),
        ),
        # what the administrator sees: what waits and since when, and each minute's results
        Index("ix_analyses_waiting", "site_id", "priority", "queued_at", postgresql_where=FIRST_WAITING),
        Index(
            "ix_analyses_finished", "finished_at",
            postgresql_where=text("purpose = 'first' AND finished_at IS NOT NULL"),
        ),
        Index("ix_analyses_run", "run_id", "state", "finished_at", postgresql_where=text("run_id IS NOT NULL")),
        Index(
            "ix_analyses_pairs", "model", "old_model", "site_id", "old_assessment", "assessment",
            postgresql_where=text("old_model IS NOT NULL"),
        ),
    )  # fmt: skip
