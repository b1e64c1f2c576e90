"""Model bundles and what they found."""

from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import ARRAY, ForeignKey, Index, Integer, LargeBinary, String, UniqueConstraint, func, text
from sqlalchemy.orm import Mapped, mapped_column

from shared.db.tables.base import Base, assessed, one_of
from shared.domain.findings import Extent


class BundleRow(Base):
    """A model bundle in the object store; exactly one may be active."""

    __tablename__ = "bundles"
    name: Mapped[str] = mapped_column(primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64))
    manifest: Mapped[dict[str, Any]]
    active: Mapped[bool] = mapped_column(default=False)
    added_at: Mapped[datetime] = mapped_column(server_default=func.now())
    activated_at: Mapped[datetime | None]  # last; null: its findings were never for radiologists, and are not shown
    shadow: Mapped[bool] = mapped_column(server_default=text("false"))  # analyses history; readers see nothing of it
    __table_args__ = (Index("uq_bundles_active", "active", unique=True, postgresql_where=text("active")),)


class FindingRow(Base):
    """One frame's finding by one bundle."""

    __tablename__ = "findings"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    instance_id: Mapped[UUID] = mapped_column(ForeignKey("instances.id", ondelete="CASCADE"))
    frame: Mapped[int]
    bundle: Mapped[str] = mapped_column(ForeignKey("bundles.name"))
    region: Mapped[str] = mapped_column(String(32))
    region_probability: Mapped[float]
    fracture_probability: Mapped[float]
    assessment: Mapped[str] = mapped_column(String(16))
    severity: Mapped[str] = mapped_column(String(16))
    score: Mapped[float | None]  # 0 to 10; raw where the model abstains; null where it would mean nothing
    abstention: Mapped[str | None] = mapped_column(String(32))  # AbstentionReason; null: in scope
    abstention_detail: Mapped[str] = mapped_column(server_default="")  # as the body part that the reason is about
    heatmap: Mapped[bytes] = mapped_column(LargeBinary)
    heatmap_height: Mapped[int]
    heatmap_width: Mapped[int]
    # ExposedField.numbers; null: the whole image (all findings before version 0.2)
    field: Mapped[list[int] | None] = mapped_column(ARRAY(Integer))
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    __table_args__ = (
        UniqueConstraint("instance_id", "frame", "bundle"),
        *assessed("findings"),
        one_of("findings", "severity", Extent),
    )
