"""Stored files that wait for a decision: of another patient, or other than the stored image of their UID."""

from datetime import datetime
from uuid import UUID, uuid4

from sqlalchemy import BigInteger, ForeignKey, Index, LargeBinary, String, UniqueConstraint, func, text
from sqlalchemy.orm import Mapped, mapped_column

from shared.db.tables.base import Base, one_of
from shared.domain.held import HeldKind, HeldState
from shared.domain.study import Priority


class HeldFileRow(Base):
    """A file whose bytes are stored, and that is no image of a study until an administrator decides."""

    __tablename__ = "held_files"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    site_id: Mapped[UUID] = mapped_column(ForeignKey("sites.id"))
    # that it came for; null: that was deleted, while the file is an image of another study
    study_id: Mapped[UUID | None] = mapped_column(ForeignKey("studies.id"))
    instance_id: Mapped[UUID | None] = mapped_column(ForeignKey("instances.id"))  # that has its SOP Instance UID
    kind: Mapped[str] = mapped_column(String(16))  # as shared.domain.held.HeldKind
    state: Mapped[str] = mapped_column(String(16))  # as shared.domain.held.HeldState
    sop_instance_uid: Mapped[str] = mapped_column(String(64))  # as in the file
    study_instance_uid: Mapped[str] = mapped_column(String(64))
    sha256: Mapped[str] = mapped_column(String(64))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    priority: Mapped[str] = mapped_column(String(16))
    patient: Mapped[bytes] = mapped_column(LargeBinary)  # keyed hash of the identity: files of one patient go together
    header: Mapped[bytes] = mapped_column(LargeBinary)  # shared.domain.study.Header, encrypted
    attempts: Mapped[int] = mapped_column(server_default="0")  # of a worker to compare
    not_before: Mapped[datetime | None]
    received_at: Mapped[datetime] = mapped_column(server_default=func.now())
    # the decision
    decided_at: Mapped[datetime | None]
    decided_by: Mapped[UUID | None] = mapped_column(ForeignKey("api_keys.id"))
    reason: Mapped[bytes | None] = mapped_column(LargeBinary)  # in words, encrypted
    new_study_id: Mapped[UUID | None] = mapped_column(ForeignKey("studies.id", ondelete="SET NULL"))
    new_instance_id: Mapped[UUID | None] = mapped_column(ForeignKey("instances.id", ondelete="SET NULL"))
    before: Mapped[bytes | None] = mapped_column(LargeBinary)  # what a correction replaced, encrypted
    __table_args__ = (
        one_of("held_files", "kind", HeldKind),
        one_of("held_files", "state", HeldState),
        one_of("held_files", "priority", Priority),
        UniqueConstraint("site_id", "sha256"),
        Index("ix_held_files_open", "site_id", "received_at", "id", postgresql_where=text("state = 'open'")),
        Index("ix_held_files_sha256", "sha256"),
        Index("ix_held_files_study_id", "study_id", "kind", "patient"),
    )


class HeldTokenRow(Base):
    """A held file's keyed hash of an identifying number, as IdentityTokenRow has it for studies."""

    __tablename__ = "held_tokens"
    held_id: Mapped[UUID] = mapped_column(ForeignKey("held_files.id", ondelete="CASCADE"), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16), primary_key=True)
    token: Mapped[bytes] = mapped_column(LargeBinary, index=True)
