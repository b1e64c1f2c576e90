"""The feedback log of readers' feedback."""

from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import ForeignKey, Index, LargeBinary, String, UniqueConstraint
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from shared.db.tables.base import ERASED, RECORD, Base, one_of
from shared.domain.feedback import Fracture, Verdict
from shared.domain.findings import Extent


class FeedbackRow(Base):
    """One entry, as shared.domain.feedback.Entry describes it; Postgres itself refuses to change or delete one.

    Only the words go once the study, or the image that they are about, was deleted.
    """

    __tablename__ = "feedback"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    site_id: Mapped[UUID] = mapped_column(ForeignKey("sites.id"))
    number: Mapped[int]
    study_id: Mapped[UUID] = mapped_column(index=True)  # no foreign key: the entry outlives the study
    key_id: Mapped[UUID] = mapped_column(ForeignKey("api_keys.id"))
    answered_at: Mapped[datetime]
    request_id: Mapped[str] = mapped_column(String(128))
    verdict: Mapped[str] = mapped_column(String(16))
    instance_id: Mapped[UUID | None]
    frame: Mapped[int | None]
    bundle: Mapped[str | None] = mapped_column(ForeignKey("bundles.name"))
    fracture: Mapped[str | None] = mapped_column(String(16))
    region: Mapped[str | None] = mapped_column(String(32))
    severity: Mapped[str | None] = mapped_column(String(16))
    marks: Mapped[list[dict[str, Any]]] = mapped_column(JSONB)
    words: Mapped[bytes | None] = mapped_column(LargeBinary, info=ERASED)  # by a deletion; a trigger sees to it
    words_sha256: Mapped[str | None] = mapped_column(String(64))
    model_shown: Mapped[bool]
    supersedes: Mapped[UUID | None] = mapped_column(ForeignKey("feedback.id"), unique=True)
    previous_hash: Mapped[str] = mapped_column(String(64))
    hash: Mapped[str] = mapped_column(String(64))
    __table_args__ = (
        one_of("feedback", "verdict", Verdict),
        one_of("feedback", "fracture", Fracture),
        one_of("feedback", "severity", Extent),
        UniqueConstraint("site_id", "number"),
        UniqueConstraint("site_id", "request_id"),
        Index("ix_feedback_site_id_answered_at", "site_id", "answered_at"),
        Index("ix_feedback_instance_id", "instance_id"),
        RECORD,
    )
