"""Studies, their instances, and receipts."""

from datetime import date, datetime, time
from uuid import UUID, uuid4

from sqlalchemy import (
    BigInteger,
    ForeignKey,
    Index,
    LargeBinary,
    SmallInteger,
    String,
    TextClause,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from shared.tables.base import Base, assessed

# a study's day of arrival, as an index can hold it: in UTC, whatever the session's zone is
ARRIVED_ON = text("date(timezone('UTC'::text, received_at))")
UNREAD, READ = text("read_at IS NULL"), text("read_at IS NOT NULL")
# what is unread stands by the minute in which it is due, within it by score, highest first, then by id: all ascending,
# so that one comparison of rows finds the next page
DUE_MINUTE = "date_trunc('minute'::text, timezone('UTC'::text, due_at))"
CALMNESS = "(- COALESCE(score, 0::double precision))"
PLACE = (text(DUE_MINUTE), text(CALMNESS), "id")
AGE_BAND = "width_bucket(age_years, '{18,40,65}'::integer[])"  # 0 to 3, null where the age is not known
FILTERS: dict[str, str | TextClause] = {
    **{word: word for word in ("status", "assessment", "severity", "region", "priority", "modality")},
    "age": text(f"({AGE_BAND})"),
}
# what of the stored headers is in columns: 0, as studies had it before these columns were there; 1, all of the above
HEADER_VERSION = 1
# behind the order, so that a page with a second filter fetches no rows but its own; not in the archive's indexes
SECOND = ("priority", "assessment", "region", "severity")


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
    quarantined_at: Mapped[datetime | None]  # last
    reason: Mapped[str] = mapped_column(default="")  # why quarantined or retrying; never patient data
    # the summary
    due_at: Mapped[datetime]
    modality: Mapped[str] = mapped_column(String(16), default="")
    assessment: Mapped[str | None] = mapped_column(String(16))
    severity: Mapped[str | None] = mapped_column(String(16))
    region: Mapped[str] = mapped_column(String(32), default="")
    fracture_probability: Mapped[float | None]
    score: Mapped[float | None]  # of the finding that speaks, as that has it
    abstention: Mapped[str | None] = mapped_column(String(32))  # AbstentionReason; null: in scope, or not analysed
    abstention_detail: Mapped[str] = mapped_column(server_default="")
    bundle: Mapped[str] = mapped_column(default="")
    images: Mapped[int] = mapped_column(default=0)
    failed_images: Mapped[int] = mapped_column(default=0)
    # the reader
    read_at: Mapped[datetime | None]  # when a radiologist was done with it; a late image opens it again
    age_years: Mapped[int | None]  # the patient's at the study, at most 90: the oldest are too few
    scanner: Mapped[str] = mapped_column(String(128), server_default="")  # manufacturer and model
    # the examination, as the first images that tell it say; its description is in the vault
    sex: Mapped[str] = mapped_column(String(1), server_default="")  # M, F, O
    study_date: Mapped[date | None]
    study_time: Mapped[time | None]  # on the clock of the hospital
    body_part: Mapped[str] = mapped_column(String(16), server_default="")
    laterality: Mapped[str] = mapped_column(String(1), server_default="")  # R, L, B; B too where images show both sides
    views: Mapped[str] = mapped_column(String(64), server_default="")  # each once, in order of arrival, "AP, LL"
    header_version: Mapped[int] = mapped_column(SmallInteger, server_default="0")  # see HEADER_VERSION
    __table_args__ = (
        UniqueConstraint("site_id", "study_instance_uid"),
        *assessed("studies"),
        # the worklist, whole and with one filter: what is unread in its order, what was read in order of that; each
        # study stands in one half only, so that a worker's write touches no more indexes than before
        Index("ix_studies_unread", "site_id", *PLACE, postgresql_where=UNREAD),
        Index("ix_studies_read", "site_id", "read_at", "id", postgresql_where=READ),
        *(
            Index(
                f"ix_studies_unread_by_{word}",
                *("site_id", column, *PLACE, *(second for second in SECOND if second != word)),
                postgresql_where=UNREAD,
            )
            for word, column in FILTERS.items()
        ),
        *(
            Index(f"ix_studies_read_{word}", "site_id", column, "read_at", "id", postgresql_where=READ)
            for word, column in FILTERS.items()
        ),
        # the reconciler looks for those sent before the oldest message of their queue: none, however many wait
        Index("ix_studies_sent", "status", "queue", "sent_at", postgresql_where=text("status <> 'analysed'")),
        # what another bundle looks at again, newest day first and within a day the likeliest fracture first
        Index(
            "ix_studies_history",
            "bundle",
            ARRIVED_ON,
            "fracture_probability",
            "id",
            postgresql_where=text("status = 'analysed'"),
        ),
        # what the administrator sees: what waits and since when, what was set aside, and each minute's studies
        Index(
            "ix_studies_waiting",
            "site_id",
            "queue",
            "queued_at",
            postgresql_where=text("status IN ('queued', 'retrying')"),
        ),
        Index("ix_studies_quarantined_at", "quarantined_at", postgresql_where=text("status = 'quarantined'")),
        Index("ix_studies_received_at", "received_at"),
        Index("ix_studies_analysed_at", "analysed_at", postgresql_where=text("analysed_at IS NOT NULL")),
        Index("ix_studies_unfilled", "id", postgresql_where=text("header_version = 0")),
    )


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
    laterality: Mapped[str] = mapped_column(String(1), server_default="")
    view: Mapped[str] = mapped_column(String(32), server_default="")
    manufacturer: Mapped[str] = mapped_column(String(64), server_default="")
    model: Mapped[str] = mapped_column(String(64), server_default="")
    description: Mapped[bytes | None] = mapped_column(LargeBinary)  # of the series, encrypted: it may hold a name
    # of a corrected object with the same pixels; null: `sha256` is all there is. Pixels are read from `sha256`
    header_sha256: Mapped[str | None] = mapped_column(String(64))
    __table_args__ = (UniqueConstraint("site_id", "sop_instance_uid"),)


class UploadRow(Base):
    """The receipt of a request that came with an idempotency key, encrypted: file names may name patients."""

    __tablename__ = "uploads"
    site_id: Mapped[UUID] = mapped_column(ForeignKey("sites.id"), primary_key=True)
    idempotency_key: Mapped[str] = mapped_column(String(128), primary_key=True)
    content_sha256: Mapped[str] = mapped_column(String(64))
    receipt: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
