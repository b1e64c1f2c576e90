"""Daily checks, and the findings that they expect of a model on an engine."""

from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import Index, String, false, func, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from shared.db.tables.base import Base, one_of
from shared.domain.checks import CheckReason, CheckState, CheckStep

_EMPTY = text("'[]'")


class CheckRow(Base):
    """A daily check: asked for or due, running, and how it ended."""

    __tablename__ = "checks"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    state: Mapped[str] = mapped_column(String(16), server_default=CheckState.ASKED)
    asked_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    scheduled: Mapped[bool] = mapped_column(server_default=false())  # nobody asked for it
    accept: Mapped[bool] = mapped_column(server_default=false())  # what it finds is what is expected from now on
    started_at: Mapped[datetime | None]
    lease_until: Mapped[datetime | None]  # of one that runs: its process lives
    ended_at: Mapped[datetime | None]
    steps: Mapped[list[dict[str, Any]]] = mapped_column(JSONB, server_default=_EMPTY)  # {"step": code, "seconds": s}
    step: Mapped[str] = mapped_column(String(16), server_default="")  # in which it is, or broke
    reason: Mapped[str] = mapped_column(String(24), server_default="")
    reason_detail: Mapped[str] = mapped_column(String(128), server_default="")  # a code, a number or a class
    model: Mapped[str] = mapped_column(server_default="")  # a bundle's name
    engine: Mapped[str] = mapped_column(String(512), server_default="")  # what the workers computed with
    learned: Mapped[bool] = mapped_column(server_default=false())  # nothing was expected before of this model
    probability_deviation: Mapped[float | None]
    heatmap_deviation: Mapped[int | None]  # levels of 255
    __table_args__ = (
        one_of("checks", "state", CheckState),
        one_of("checks", "step", CheckStep, empty=True),
        one_of("checks", "reason", CheckReason, empty=True),
        # one waits and one runs at a time
        Index("uq_checks_open", "state", unique=True, postgresql_where=text("state IN ('asked', 'running')")),
        Index("ix_checks_asked_at", "asked_at"),
    )


class CheckExpectationRow(Base):
    """The findings that are expected of a model on an engine for the reference study."""

    __tablename__ = "check_expectations"
    reference: Mapped[str] = mapped_column(String(64), primary_key=True)  # SHA-256 of the reference study's files
    bundle_sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    engine: Mapped[str] = mapped_column(String(512), primary_key=True)
    findings: Mapped[list[dict[str, Any]]] = mapped_column(JSONB)  # as shared.domain.checks.FrameFinding.told
    set_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
