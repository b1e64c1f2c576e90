"""The ledger of what readers answered."""

from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import ForeignKey, Index, LargeBinary, String, UniqueConstraint
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from shared.tables.base import Base


class AnswerRow(Base):
    """One entry, as shared.answers.Entry describes it; Postgres itself refuses to change or delete one."""

    __tablename__ = "answers"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    site_id: Mapped[UUID] = mapped_column(ForeignKey("sites.id"))
    number: Mapped[int]
    study_id: Mapped[UUID] = mapped_column(ForeignKey("studies.id"), index=True)
    key_id: Mapped[UUID] = mapped_column(ForeignKey("api_keys.id"))
    answered_at: Mapped[datetime]
    request_id: Mapped[str] = mapped_column(String(128))
    verdict: Mapped[str] = mapped_column(String(16))
    instance_id: Mapped[UUID | None] = mapped_column(ForeignKey("instances.id"))
    frame: Mapped[int | None]
    bundle: Mapped[str | None] = mapped_column(ForeignKey("bundles.name"))
    fracture: Mapped[str | None] = mapped_column(String(16))
    region: Mapped[str | None] = mapped_column(String(32))
    severity: Mapped[str | None] = mapped_column(String(16))
    marks: Mapped[list[dict[str, Any]]] = mapped_column(JSONB)
    words: Mapped[bytes | None] = mapped_column(LargeBinary)
    model_shown: Mapped[bool]
    supersedes: Mapped[UUID | None] = mapped_column(ForeignKey("answers.id"), unique=True)
    previous_hash: Mapped[str] = mapped_column(String(64))
    hash: Mapped[str] = mapped_column(String(64))
    __table_args__ = (
        UniqueConstraint("site_id", "number"),
        UniqueConstraint("site_id", "request_id"),
        Index("ix_answers_site_id_answered_at", "site_id", "answered_at"),
        Index("ix_answers_instance_id", "instance_id"),
    )
