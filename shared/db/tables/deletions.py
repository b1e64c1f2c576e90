"""What was deleted, and what the store still has to remove."""

from datetime import datetime
from uuid import UUID, uuid4

from sqlalchemy import BigInteger, ForeignKey, Index, LargeBinary, SmallInteger, String, func
from sqlalchemy.orm import Mapped, mapped_column

from shared.db.tables.base import RECORD, Base, one_of
from shared.domain.deletion import DeletionReason


class DeletionRow(Base):
    """A study, or an image of it, that was deleted. Names no patient."""

    __tablename__ = "deletions"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    site_id: Mapped[UUID] = mapped_column(ForeignKey("sites.id"))
    study_id: Mapped[UUID]  # of a study that may be gone: no foreign key
    whole: Mapped[bool]  # the study; else an image of it
    reason: Mapped[str] = mapped_column(String(16))
    note: Mapped[bytes | None] = mapped_column(LargeBinary)  # encrypted, for it may name a patient
    key_id: Mapped[UUID] = mapped_column(ForeignKey("api_keys.id"))
    images: Mapped[int]
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    feedback_entries: Mapped[int]  # that stay in the feedback log
    deleted_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    __table_args__ = (
        one_of("deletions", "reason", DeletionReason),
        Index("ix_deletions_site_id_deleted_at", "site_id", "deleted_at"),
        RECORD,
    )


class LeftObjectRow(Base):
    """Content that a deleted row named: the store removes it unless another row names it; see shared.object_removal."""

    __tablename__ = "left_objects"
    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    frames: Mapped[int] = mapped_column(server_default="0")  # that may have pictures
    due_at: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp(), index=True)
    passes: Mapped[int] = mapped_column(SmallInteger, server_default="0")
