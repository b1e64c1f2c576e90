"""Studies, their series and instances, and receipts."""

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
    Uuid,
    func,
    text,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import Mapped, mapped_column

from shared.db.tables.base import Base, assessed, one_of
from shared.domain.completeness import Completeness
from shared.domain.findings import Extent
from shared.domain.study import Priority, Rejection, StoredOnly, StoredStatus
from shared.errors import Reason

# a study's day of arrival, as an index can hold it: in UTC, whatever the session's zone is
ARRIVED_ON = text("date(timezone('UTC'::text, received_at))")
# a study of which nothing is analysed stands on no list
UNREAD, READ = (text(f"{half} AND status <> 'kept'") for half in ("read_at IS NULL", "read_at IS NOT NULL"))
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
# what of the stored headers is in columns: 0, as code of before 0031 writes it; 2, all that is here, with the series.
# What lacks it is filled from the stored originals (shared.queries.examinations)
FILLED_VERSION = 2
# behind the order, so that a page with a second filter fetches no rows but its own; not in the archive's indexes
SECOND = ("priority", "assessment", "region", "severity")


class StudyRow(Base):
    """A study: where it stands, and the summary that ranks it. Who analyses it is in `analyses`."""

    __tablename__ = "studies"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    site_id: Mapped[UUID] = mapped_column(ForeignKey("sites.id"))
    study_instance_uid: Mapped[str] = mapped_column(String(64))
    priority: Mapped[str] = mapped_column(String(16))
    status: Mapped[str] = mapped_column(String(16))
    received_at: Mapped[datetime]
    # the first analysis that is open, or ended last. No foreign key: each analysis that goes would have to look here
    current_analysis_id: Mapped[UUID | None]
    analysed_at: Mapped[datetime | None]
    quarantined_at: Mapped[datetime | None]  # last
    revised_at: Mapped[datetime | None]  # when a newer model, or a corrected header, last changed what is told of it
    reason: Mapped[str] = mapped_column(default="")  # Reason: why quarantined
    reason_detail: Mapped[str] = mapped_column(server_default="")  # as shared.errors.Cause has it
    sender: Mapped[str] = mapped_column(String(128), server_default="")  # name of the key or peer that sent it first
    # the summary
    due_at: Mapped[datetime]
    modality: Mapped[str] = mapped_column(String(16), default="")
    assessment: Mapped[str | None] = mapped_column(String(16))
    severity: Mapped[str | None] = mapped_column(String(16))
    region: Mapped[str] = mapped_column(String(32), default="")
    fracture_probability: Mapped[float | None]
    score: Mapped[float | None]  # of the finding that ranks the study
    abstention: Mapped[str | None] = mapped_column(String(32))  # AbstentionReason; null: in scope, or not analysed
    abstention_detail: Mapped[str] = mapped_column(server_default="")
    bundle: Mapped[str] = mapped_column(default="")
    images: Mapped[int] = mapped_column(default=0)  # that are analysed; the other instances are `kept`
    failed_images: Mapped[int] = mapped_column(default=0)
    # the reader
    read_at: Mapped[datetime | None]  # when a radiologist was done with it; a late image opens it again
    age_years: Mapped[int | None]  # the patient's at the study, at most 90: the oldest are too few
    scanner: Mapped[str] = mapped_column(String(128), server_default="")  # manufacturer and model
    # the examination, from the first images that describe it; its description is encrypted
    sex: Mapped[str] = mapped_column(String(1), server_default="")  # M, F, O
    study_date: Mapped[date | None]
    study_time: Mapped[time | None]  # on the clock of the hospital
    body_part: Mapped[str] = mapped_column(String(16), server_default="")
    laterality: Mapped[str] = mapped_column(String(1), server_default="")  # R, L, B; B too where images show both sides
    views: Mapped[str] = mapped_column(String(64), server_default="")  # each once, in order of arrival, "AP, LL"
    utc_offset: Mapped[str] = mapped_column(String(5), server_default="")  # of the hospital's clock then, "+0100"
    # counts the corrections of the header that were applied, from 1; 0 or 1 in studies from before 0031
    header_version: Mapped[int] = mapped_column(SmallInteger, server_default="0")
    filled_version: Mapped[int] = mapped_column(SmallInteger, server_default="0")  # see FILLED_VERSION
    # instances that are stored and not analysed: kept from the first, or rejected by a document
    kept: Mapped[int] = mapped_column(server_default="0")
    # whether more images are expected (shared.domain.completeness); complete, as code of before 0032 leaves it
    completeness: Mapped[str] = mapped_column(String(16), server_default="complete")
    completeness_since: Mapped[datetime | None]  # of one that is received, its first image since it was last complete
    last_received_at: Mapped[datetime | None]
    expected_images: Mapped[int | None]  # as a sender counted its instances
    __table_args__ = (
        UniqueConstraint("site_id", "study_instance_uid"),
        *assessed("studies"),
        one_of("studies", "priority", Priority),
        one_of("studies", "status", StoredStatus),
        one_of("studies", "reason", Reason, empty=True),
        one_of("studies", "severity", Extent),
        one_of("studies", "completeness", Completeness),
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
        # what another bundle looks at again, newest day first and within a day the likeliest fracture first
        Index(
            "ix_studies_history",
            "bundle",
            ARRIVED_ON,
            "fracture_probability",
            "id",
            postgresql_where=text("status = 'analysed'"),
        ),
        # what the administrator sees: what was set aside, and each minute's arrivals
        Index("ix_studies_quarantined_at", "quarantined_at", postgresql_where=text("status = 'quarantined'")),
        Index("ix_studies_received_at", "received_at"),
        # results in the order in which they changed, as FHIR tells them
        Index(
            "ix_studies_reported",
            "site_id",
            text("GREATEST(analysed_at, quarantined_at, revised_at)"),
            "id",
            postgresql_where=text("assessment IS NOT NULL OR status = 'quarantined'"),
        ),
        Index("ix_studies_receiving", "id", postgresql_where=text("completeness = 'receiving'")),
        Index("ix_studies_lacking", "id", postgresql_where=text(f"filled_version < {FILLED_VERSION}")),
    )


class SeriesRow(Base):
    """A series of a study; what may name somebody is encrypted."""

    __tablename__ = "series"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    site_id: Mapped[UUID] = mapped_column(ForeignKey("sites.id"))
    study_id: Mapped[UUID] = mapped_column(ForeignKey("studies.id", ondelete="CASCADE"))
    series_instance_uid: Mapped[str] = mapped_column(String(64))
    modality: Mapped[str] = mapped_column(String(16))
    series_number: Mapped[int | None]
    series_date: Mapped[date | None]
    series_time: Mapped[time | None]  # on the clock of the hospital, as all of a header's times
    performed_date: Mapped[date | None]  # start of the performed procedure step
    performed_time: Mapped[time | None]
    # JSON: description, protocol, performed step, requests, as shared.queries.series has it; null: there is none
    sealed: Mapped[bytes | None] = mapped_column(LargeBinary)
    __table_args__ = (UniqueConstraint("study_id", "series_instance_uid"),)


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
    error_reason: Mapped[str] = mapped_column(default="")  # Reason, set when this image can never be analysed
    error_detail: Mapped[str] = mapped_column(server_default="")  # as shared.errors.Cause has it
    # words of versions before 0019, which may run beside this one during an update; the next release drops it
    error_text: Mapped[str] = mapped_column(server_default="")
    laterality: Mapped[str] = mapped_column(String(1), server_default="")
    view: Mapped[str] = mapped_column(String(32), server_default="")
    manufacturer: Mapped[str] = mapped_column(String(64), server_default="")
    model: Mapped[str] = mapped_column(String(64), server_default="")
    description: Mapped[bytes | None] = mapped_column(LargeBinary)  # of the series, encrypted: it may hold a name
    # of a corrected object with the same pixels; null: `sha256` is all there is. Pixels are read from `sha256`
    header_sha256: Mapped[str | None] = mapped_column(String(64))
    series_id: Mapped[UUID | None] = mapped_column(ForeignKey("series.id", ondelete="CASCADE"))  # null: not filled yet
    instance_number: Mapped[int | None]
    bits_allocated: Mapped[int] = mapped_column(SmallInteger, server_default="0")  # 0: no image, or not filled yet
    kept: Mapped[str] = mapped_column(String(32), server_default="")  # StoredOnly: why it is not analysed; empty: it is
    # Rejection: the title of the document that rejects it; empty: none does
    rejected_by_ko: Mapped[str] = mapped_column(String(16), server_default="")
    __table_args__ = (
        one_of("instances", "error_reason", Reason, empty=True),
        one_of("instances", "kept", StoredOnly, empty=True),
        one_of("instances", "rejected_by_ko", Rejection, empty=True),
        Index("ix_instances_series_id", "series_id"),
        UniqueConstraint("site_id", "sop_instance_uid"),
        # whether a deleted row was the last to name an object
        Index("ix_instances_sha256", "sha256"),
        Index("ix_instances_header_sha256", "header_sha256", postgresql_where=text("header_sha256 IS NOT NULL")),
    )


# which instances DICOMweb gives: those that no document rejects; and which of these are analysed
IS_SHOWN = InstanceRow.rejected_by_ko == ""
IS_ANALYSED = (InstanceRow.kept == "", IS_SHOWN)


class RejectedInstanceRow(Base):
    """An instance that a Key Object Selection Document rejects; it may come later than the document."""

    __tablename__ = "rejected_instances"
    # the document
    instance_id: Mapped[UUID] = mapped_column(ForeignKey("instances.id", ondelete="CASCADE"), primary_key=True)
    sop_instance_uid: Mapped[str] = mapped_column(String(64), primary_key=True)  # that it rejects
    site_id: Mapped[UUID] = mapped_column(ForeignKey("sites.id"))
    title: Mapped[str] = mapped_column(String(16))  # as shared.domain.study.Rejection
    __table_args__ = (
        one_of("rejected_instances", "title", Rejection),
        Index("ix_rejected_instances_sop_instance_uid", "site_id", "sop_instance_uid"),
    )


class UploadRow(Base):
    """The receipt of a request that came with an idempotency key, encrypted: file names may name patients."""

    __tablename__ = "uploads"
    site_id: Mapped[UUID] = mapped_column(ForeignKey("sites.id"), primary_key=True)
    idempotency_key: Mapped[str] = mapped_column(String(128), primary_key=True)
    content_sha256: Mapped[str] = mapped_column(String(64))
    receipt: Mapped[bytes] = mapped_column(LargeBinary)
    study_ids: Mapped[list[UUID]] = mapped_column(
        postgresql.ARRAY(Uuid), server_default=text("'{}'")
    )  # that it tells of
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    __table_args__ = (Index("ix_uploads_study_ids", "study_ids", postgresql_using="gin"),)
