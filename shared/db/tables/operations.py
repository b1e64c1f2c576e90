"""What the administrator sees: workers, statistics of each minute, what is stored, and what was rejected."""

from datetime import datetime
from uuid import UUID, uuid4

from sqlalchemy import BigInteger, ForeignKey, LargeBinary, String, Text, func
from sqlalchemy.orm import Mapped, mapped_column

from shared.db.tables.base import ERASED, RECORD, Base, one_of
from shared.domain.study import Priority, QuarantineDecision
from shared.errors import Reason


class WorkerRow(Base):
    """One worker process, from its start to its end; it writes here every few seconds."""

    __tablename__ = "workers"
    id: Mapped[UUID] = mapped_column(primary_key=True)  # made again at each start
    host: Mapped[str] = mapped_column(String(255))
    pid: Mapped[int]
    device: Mapped[str] = mapped_column(String(255))  # in words
    bundle: Mapped[str] = mapped_column(server_default="")  # the one in its memory; "" before the first
    threads: Mapped[int]
    taken: Mapped[int] = mapped_column(server_default="0")  # studies since its start
    in_hand: Mapped[int] = mapped_column(server_default="0")
    started_at: Mapped[datetime] = mapped_column(server_default=func.now())
    seen_at: Mapped[datetime] = mapped_column(server_default=func.now(), index=True)
    stopped_at: Mapped[datetime | None]  # set by a worker that ended as it was asked to


class StatisticRow(Base):
    """One minute of one site and queue, summed up from the rows of its studies; a minute without any has none."""

    __tablename__ = "statistics"
    site_id: Mapped[UUID] = mapped_column(ForeignKey("sites.id"), primary_key=True)
    at: Mapped[datetime] = mapped_column(primary_key=True)  # its beginning
    queue: Mapped[str] = mapped_column(String(16), primary_key=True)
    received: Mapped[int]
    analysed: Mapped[int]
    failed: Mapped[int]  # quarantined
    # seconds, of the studies that were analysed in it
    wait_p50_s: Mapped[float | None]  # from the queue to the result
    wait_p95_s: Mapped[float | None]
    work_p50_s: Mapped[float | None]  # from the claim to the result
    work_p95_s: Mapped[float | None]
    # at its end; null if no worker ran, which counts them
    waiting: Mapped[int | None]
    oldest_s: Mapped[float | None]
    __table_args__ = (one_of("statistics", "queue", Priority),)


class HoldingRow(Base):
    """How many images of a site are stored, and their bytes, once an hour."""

    __tablename__ = "holdings"
    site_id: Mapped[UUID] = mapped_column(ForeignKey("sites.id"), primary_key=True)
    at: Mapped[datetime] = mapped_column(primary_key=True)
    images: Mapped[int] = mapped_column(BigInteger)
    size_bytes: Mapped[int] = mapped_column(BigInteger)


class RejectionRow(Base):
    """Files of one site that were rejected for one reason within one hour. No names: those may name patients."""

    __tablename__ = "rejections"
    site_id: Mapped[UUID] = mapped_column(ForeignKey("sites.id"), primary_key=True)
    hour: Mapped[datetime] = mapped_column(primary_key=True)
    reason: Mapped[str] = mapped_column(String(64), primary_key=True)
    failure: Mapped[str] = mapped_column(String(8))  # DICOM Failure Reason, hexadecimal
    detail: Mapped[str] = mapped_column(server_default="")  # of the last one, as shared.errors.Cause has it
    # words of versions before 0019, which may run beside this one during an update; the next release drops it
    text: Mapped[str] = mapped_column(server_default="")
    files: Mapped[int]
    last_at: Mapped[datetime]
    __table_args__ = (one_of("rejections", "reason", Reason),)


class UploadUsageRow(Base):
    """What a key has sent within one minute; its quotas are compared with the rows of the last hour."""

    __tablename__ = "upload_usage"
    site_id: Mapped[UUID] = mapped_column(ForeignKey("sites.id"), primary_key=True)
    at: Mapped[datetime] = mapped_column(primary_key=True)  # the minute's beginning
    key_id: Mapped[UUID] = mapped_column(ForeignKey("api_keys.id"), primary_key=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)  # of request bodies; less than none where some never came
    studies: Mapped[int]  # new ones
    urgent: Mapped[int]  # studies that became urgent


class QuarantineDecisionRow(Base):
    """Who dismissed or deleted a quarantined study, and why. It outlives the study."""

    __tablename__ = "quarantine_decisions"
    id: Mapped[UUID] = mapped_column(primary_key=True, default=uuid4)
    site_id: Mapped[UUID] = mapped_column(ForeignKey("sites.id"))
    study_id: Mapped[UUID] = mapped_column(index=True)
    decision: Mapped[str] = mapped_column(String(16))
    set_aside_for: Mapped[str] = mapped_column(Text)  # the study's reason, a code
    set_aside_detail: Mapped[str] = mapped_column(server_default="")
    why: Mapped[bytes] = mapped_column(LargeBinary, info=ERASED)  # encrypted: free text may name a patient
    key_id: Mapped[UUID] = mapped_column(ForeignKey("api_keys.id"))
    decided_at: Mapped[datetime] = mapped_column(server_default=func.now())
    __table_args__ = (
        one_of("quarantine_decisions", "decision", QuarantineDecision),
        one_of("quarantine_decisions", "set_aside_for", Reason, empty=True),
        RECORD,
    )
