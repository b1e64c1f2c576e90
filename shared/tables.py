"""The tables; migrations/ must always lead to exactly these (tests/integration/test_migrations.py holds it so)."""

from datetime import date, datetime
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import (
    BigInteger,
    DateTime,
    ForeignKey,
    Index,
    LargeBinary,
    MetaData,
    String,
    UniqueConstraint,
    func,
    text,
)  # fmt: skip
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

NAMES = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
    "pk": "pk_%(table_name)s",
}


class Base(DeclarativeBase):
    """All tables; every time is aware (timestamptz), every id a UUID of ours."""

    metadata = MetaData(naming_convention=NAMES)
    type_annotation_map = {datetime: DateTime(timezone=True), dict[str, Any]: JSONB}  # noqa: RUF012 - SQLAlchemy's


class SiteRow(Base):
    """A hospital or department; studies, worklists and keys belong to one."""

    __tablename__ = "sites"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    name: Mapped[str] = mapped_column(unique=True)


class KeyRow(Base):
    """An API key, known by its hash only."""

    __tablename__ = "api_keys"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    site_id: Mapped[UUID] = mapped_column(ForeignKey("sites.id"))
    name: Mapped[str]
    role: Mapped[str] = mapped_column(String(16))
    sha256: Mapped[str] = mapped_column(String(64), unique=True)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    revoked_at: Mapped[datetime | None]


class BundleRow(Base):
    """A model bundle in the object store; exactly one may be active."""

    __tablename__ = "bundles"
    name: Mapped[str] = mapped_column(primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64))
    manifest: Mapped[dict[str, Any]]
    active: Mapped[bool] = mapped_column(default=False)
    added_at: Mapped[datetime] = mapped_column(server_default=func.now())
    __table_args__ = (Index("uq_bundles_active", "active", unique=True, postgresql_where=text("active")),)


class StudyRow(Base):
    """A study: its state, its lease, and the summary that ranks it."""

    __tablename__ = "studies"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    site_id: Mapped[UUID] = mapped_column(ForeignKey("sites.id"))
    study_instance_uid: Mapped[str] = mapped_column(String(64))
    priority: Mapped[str] = mapped_column(String(16))
    status: Mapped[str] = mapped_column(String(16))
    received_at: Mapped[datetime]
    # the queue
    queue: Mapped[str] = mapped_column(String(16))  # where its message goes; "backlog" in a nightly run
    queued_at: Mapped[datetime] = mapped_column(server_default=func.now())  # since when it waits
    sent_at: Mapped[datetime | None]  # when a message last left for the broker; null: none is out
    attempts: Mapped[int] = mapped_column(default=0)
    not_before: Mapped[datetime | None]  # earliest next attempt
    lease_token: Mapped[UUID | None]
    lease_until: Mapped[datetime | None]
    started_at: Mapped[datetime | None]
    analysed_at: Mapped[datetime | None]
    reason: Mapped[str] = mapped_column(default="")  # why quarantined or retrying; never patient data
    # the summary
    due_at: Mapped[datetime]
    modality: Mapped[str] = mapped_column(String(16), default="")
    call: Mapped[str | None] = mapped_column(String(16))
    severity: Mapped[str | None] = mapped_column(String(16))
    region: Mapped[str] = mapped_column(String(32), default="")
    fracture_probability: Mapped[float | None]
    scope: Mapped[str] = mapped_column(default="")
    bundle: Mapped[str] = mapped_column(default="")
    images: Mapped[int] = mapped_column(default=0)
    failed_images: Mapped[int] = mapped_column(default=0)
    __table_args__ = (
        UniqueConstraint("site_id", "study_instance_uid"),
        Index("ix_studies_worklist", "site_id", "due_at", "id"),
        # the worklist with a filter, in the same order; that of the status also counts
        *(
            Index(f"ix_studies_{column}", "site_id", column, "due_at", "id")
            for column in ("status", "call", "region", "priority", "modality")
        ),
        # the reconciler and the nightly run look at open studies only, which stay few
        Index("ix_studies_open", "status", "sent_at", postgresql_where=text("status <> 'analysed'")),
        Index("ix_studies_bundle", "bundle"),
    )


class IdentityRow(Base):
    """The patient's identity, encrypted; the only place where it stands."""

    __tablename__ = "identities"
    study_id: Mapped[UUID] = mapped_column(ForeignKey("studies.id", ondelete="CASCADE"), primary_key=True)
    ciphertext: Mapped[bytes] = mapped_column(LargeBinary)


class IdentityReadRow(Base):
    """Who saw whose identity, and when."""

    __tablename__ = "identity_reads"
    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[UUID] = mapped_column(ForeignKey("studies.id", ondelete="CASCADE"), index=True)
    key_id: Mapped[UUID] = mapped_column(ForeignKey("api_keys.id"))
    read_at: Mapped[datetime] = mapped_column(server_default=func.now())


class InstanceRow(Base):
    """One stored DICOM instance."""

    __tablename__ = "instances"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    site_id: Mapped[UUID] = mapped_column(ForeignKey("sites.id"))
    study_id: Mapped[UUID] = mapped_column(ForeignKey("studies.id", ondelete="CASCADE"), index=True)
    sop_instance_uid: Mapped[str] = mapped_column(String(64))
    sop_class_uid: Mapped[str] = mapped_column(String(64))
    transfer_syntax_uid: Mapped[str] = mapped_column(String(64))
    sha256: Mapped[str] = mapped_column(String(64))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    modality: Mapped[str] = mapped_column(String(16))
    body_part: Mapped[str] = mapped_column(String(16))
    rows: Mapped[int]
    columns: Mapped[int]
    frames: Mapped[int]
    received_at: Mapped[datetime]
    error_reason: Mapped[str] = mapped_column(default="")  # set when this image can never be analysed
    error_text: Mapped[str] = mapped_column(default="")
    __table_args__ = (UniqueConstraint("site_id", "sop_instance_uid"),)


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
    call: Mapped[str] = mapped_column(String(16))
    severity: Mapped[str] = mapped_column(String(16))
    scope: Mapped[str]
    heatmap: Mapped[bytes] = mapped_column(LargeBinary)
    heatmap_height: Mapped[int]
    heatmap_width: Mapped[int]
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    __table_args__ = (UniqueConstraint("instance_id", "frame", "bundle"),)


class UploadRow(Base):
    """The receipt of a request that came with an idempotency key, encrypted: file names may name patients."""

    __tablename__ = "uploads"
    site_id: Mapped[UUID] = mapped_column(ForeignKey("sites.id"), primary_key=True)
    idempotency_key: Mapped[str] = mapped_column(String(128), primary_key=True)
    content_sha256: Mapped[str] = mapped_column(String(64))
    receipt: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


class BacklogRunRow(Base):
    """One nightly run; the unique night keeps two schedulers from running it twice."""

    __tablename__ = "backlog_runs"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    night: Mapped[date] = mapped_column(unique=True)
    started_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]
    failed: Mapped[int] = mapped_column(default=0)
    stranded: Mapped[int] = mapped_column(default=0)
    outdated: Mapped[int] = mapped_column(default=0)
    bundle: Mapped[str] = mapped_column(default="")
