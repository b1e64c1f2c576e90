"""Sites, API keys, and who patients are."""

from datetime import datetime
from uuid import UUID, uuid4

from sqlalchemy import (
    CheckConstraint,
    ColumnElement,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    SmallInteger,
    String,
    UniqueConstraint,
    false,
    func,
    select,
    text,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import InstrumentedAttribute, Mapped, mapped_column, relationship

from shared.db.tables.base import RECORD, Base, one_of, some_of
from shared.domain.results import CaptureModality
from shared.domain.security import Role
from shared.domain.study import StoredOnly


class SiteRow(Base):
    """A hospital or department; studies, worklists and keys belong to one."""

    __tablename__ = "sites"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    name: Mapped[str] = mapped_column(unique=True)
    # StoredOnly: kinds of objects that it refuses and does not keep; null: those of the setting refused_kinds
    refused_kinds: Mapped[list[str] | None] = mapped_column(postgresql.ARRAY(String(32)))
    # of its results: whether documents state the calibrated probability, and the modality of Secondary Captures
    states_probability: Mapped[bool] = mapped_column(server_default=false())
    capture_modality: Mapped[str] = mapped_column(String(2), server_default=CaptureModality.OT)
    checks: Mapped[bool] = mapped_column(server_default=false())  # of the daily check: no hospital's, see is_counted
    __table_args__ = (
        some_of("sites", "refused_kinds", StoredOnly),
        one_of("sites", "capture_modality", CaptureModality),
        Index("uq_sites_checks", "checks", unique=True, postgresql_where=text("checks")),
    )


CHECKED_SITE = "(SELECT id FROM sites WHERE checks)"  # for statements in text: site_id IS DISTINCT FROM …


def is_counted(site_id: InstrumentedAttribute[UUID]) -> ColumnElement[bool]:
    """Whether a row belongs to a hospital: what all sites have is listed and counted without the daily check's.

    Args:
        site_id: the row's column with its site.

    Returns:
        The condition.
    """
    return site_id.is_distinct_from(select(SiteRow.id).where(SiteRow.checks).scalar_subquery())


class KeyRow(Base):
    """An API key, known by its hash only."""

    __tablename__ = "api_keys"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    site_id: Mapped[UUID] = mapped_column(ForeignKey("sites.id"))
    name: Mapped[str]
    role: Mapped[str] = mapped_column(String(16))
    # an admin's key that may also do what concerns all sites; those of an installation with one site before 0014 may
    operates: Mapped[bool] = mapped_column(server_default=false())
    sha256: Mapped[str] = mapped_column(String(64), unique=True)
    issuer: Mapped[str] = mapped_column(String(64), server_default="")  # of patient IDs that name none
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    revoked_at: Mapped[datetime | None]
    expires_at: Mapped[datetime | None]  # not valid from then on
    last_used_at: Mapped[datetime | None]  # coarse: written once in some minutes

    site: Mapped[SiteRow] = relationship()

    __table_args__ = (one_of("api_keys", "role", Role), UniqueConstraint("site_id", "name"))


class IdentityRow(Base):
    """The patient's identity, encrypted; it is kept nowhere else."""

    __tablename__ = "identities"
    study_id: Mapped[UUID] = mapped_column(ForeignKey("studies.id", ondelete="CASCADE"), primary_key=True)
    ciphertext: Mapped[bytes] = mapped_column(LargeBinary)
    # keyed numbers of pieces of its texts (Vault.piece_numbers), for patterns with wild cards; null: not made yet
    pieces: Mapped[list[int] | None] = mapped_column(postgresql.ARRAY(Integer))
    __table_args__ = (
        # each search reads the list of what is pending as a whole, so it is kept short (in kB)
        Index(
            "ix_identities_pieces",
            "pieces",
            postgresql_using="gin",
            postgresql_with={"gin_pending_list_limit": 512},
        ),
        Index("ix_identities_unfilled", "study_id", postgresql_where=text("pieces IS NULL")),
    )


class KeyCheckRow(Base):
    """One row, encrypted with OSTEON_IDENTITY_KEY, which shows whether that is the key of this database."""

    __tablename__ = "identity_key_check"
    id: Mapped[int] = mapped_column(SmallInteger, primary_key=True, server_default="1")
    sealed: Mapped[bytes] = mapped_column(LargeBinary)
    made_at: Mapped[datetime] = mapped_column(server_default=func.now())
    __table_args__ = (CheckConstraint("id = 1", "ck_identity_key_check_one"),)


class IdentityReadRow(Base):
    """Who saw which study's identity, and when."""

    __tablename__ = "identity_reads"
    __table_args__ = RECORD
    id: Mapped[int] = mapped_column(primary_key=True)
    study_id: Mapped[UUID] = mapped_column(index=True)  # no foreign key: the audit outlives the study
    key_id: Mapped[UUID] = mapped_column(ForeignKey("api_keys.id"))
    read_at: Mapped[datetime] = mapped_column(server_default=func.now())
