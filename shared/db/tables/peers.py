"""Who sends by DICOM: peers, what they sent, and callers that were refused."""

from datetime import date, datetime
from uuid import UUID, uuid4

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, String, UniqueConstraint, false, func, true
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column, relationship

from shared.db.tables.access import KeyRow, SiteRow
from shared.db.tables.base import Base, one_of
from shared.domain.peers import CallerReason


class PeerRow(Base):
    """A device or archive that may open associations; its columns are those of shared.domain.peers.PeerRule."""

    __tablename__ = "dicom_peers"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    site_id: Mapped[UUID] = mapped_column(ForeignKey("sites.id"), index=True)
    # the sender of its files, a key that nobody holds; its name and issuer are the peer's
    key_id: Mapped[UUID] = mapped_column(ForeignKey("api_keys.id"), unique=True)
    calling_ae: Mapped[str] = mapped_column(String(16))
    called_ae: Mapped[str] = mapped_column(String(16))
    address: Mapped[str] = mapped_column(String(49), server_default="")  # of a host, or CIDR; empty: any
    tls_fingerprint: Mapped[str] = mapped_column(String(64), server_default="")  # SHA-256 of the certificate's DER
    may_send: Mapped[bool] = mapped_column(server_default=true())
    may_commit: Mapped[bool] = mapped_column(server_default=false())  # ask for storage commitment
    query_host: Mapped[str] = mapped_column(String(253), server_default="")  # where a study's images can be counted
    query_port: Mapped[int] = mapped_column(server_default="0")
    query_ae: Mapped[str] = mapped_column(String(16), server_default="")
    silent_after_h: Mapped[int | None]  # 0: never; null: as its last days suggest
    added_at: Mapped[datetime] = mapped_column(server_default=func.now())
    disabled_at: Mapped[datetime | None]

    site: Mapped[SiteRow] = relationship()
    key: Mapped[KeyRow] = relationship()

    __table_args__ = (
        # also over sites: two equal ones would leave open whose images they send
        Index(
            "uq_dicom_peers_calling_ae", "calling_ae", "called_ae", "address", "tls_fingerprint", unique=True
        ),
        CheckConstraint("query_port BETWEEN 0 AND 65535", name="ck_dicom_peers_query_port"),
    )  # fmt: skip


class PeerDayRow(Base):
    """What a peer sent within a day of UTC."""

    __tablename__ = "dicom_peer_days"
    peer_id: Mapped[UUID] = mapped_column(ForeignKey("dicom_peers.id", ondelete="CASCADE"), primary_key=True)
    day: Mapped[date] = mapped_column(primary_key=True)
    associations: Mapped[int] = mapped_column(server_default="0")
    images: Mapped[int] = mapped_column(server_default="0")  # data sets that were stored or known already
    size_bytes: Mapped[int] = mapped_column(BigInteger, server_default="0")
    rejected: Mapped[int] = mapped_column(server_default="0")  # data sets
    last_contact_at: Mapped[datetime]
    last_images_at: Mapped[datetime | None]


class SendingRow(Base):
    """What one association has to do with a study that is being received; it goes when the study is complete."""

    __tablename__ = "dicom_sendings"
    association_id: Mapped[UUID] = mapped_column(primary_key=True)
    study_id: Mapped[UUID] = mapped_column(ForeignKey("studies.id", ondelete="CASCADE"), primary_key=True, index=True)
    peer_id: Mapped[UUID] = mapped_column(ForeignKey("dicom_peers.id", ondelete="CASCADE"), index=True)
    began_at: Mapped[datetime]
    ended_at: Mapped[datetime | None]
    released: Mapped[bool] = mapped_column(server_default=false())
    asked_at: Mapped[datetime | None]  # for the peer's count, last
    answered_at: Mapped[datetime | None]  # last, also if there was no answer of use
    counted: Mapped[int | None]  # instances of the study, as answered last


class CommitmentRow(Base):
    """A request for storage commitment that is still to be answered by a report; it goes with the report."""

    __tablename__ = "dicom_commitments"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    peer_id: Mapped[UUID] = mapped_column(ForeignKey("dicom_peers.id", ondelete="CASCADE"))
    transaction_uid: Mapped[str] = mapped_column(String(64))
    # whether the peer's transaction of this UID was in work, with other instances: nothing of this one is confirmed
    duplicate: Mapped[bool] = mapped_column(server_default=false())
    instances: Mapped[list[list[str]]] = mapped_column(JSONB)  # SOP Class UID and SOP Instance UID of each
    count: Mapped[int]  # of the instances
    asked_at: Mapped[datetime] = mapped_column(server_default=func.now())
    due_at: Mapped[datetime] = mapped_column(index=True)  # when a report is tried next
    failed: Mapped[int] = mapped_column(server_default="0")  # reports that did not arrive

    peer: Mapped[PeerRow] = relationship()

    __table_args__ = (UniqueConstraint("peer_id", "transaction_uid", "duplicate"),)


class CallerRow(Base):
    """A caller that was refused. Titles are whatever it sent; shared.queries.peers keeps their number small."""

    __tablename__ = "dicom_callers"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    calling_ae: Mapped[str] = mapped_column(String(16))
    called_ae: Mapped[str] = mapped_column(String(16))
    address: Mapped[str] = mapped_column(String(45))
    network: Mapped[str] = mapped_column(String(49), index=True)  # that callers are limited by
    tls_fingerprint: Mapped[str] = mapped_column(String(64), server_default="")  # that it showed last
    reason: Mapped[str] = mapped_column(String(16))
    times: Mapped[int] = mapped_column(server_default="1")
    first_at: Mapped[datetime] = mapped_column(server_default=func.now())
    last_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (
        one_of("dicom_callers", "reason", CallerReason),
        Index("uq_dicom_callers_calling_ae", "calling_ae", "called_ae", "address", unique=True),
    )
