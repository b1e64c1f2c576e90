"""What GET /operations answers, as pydantic models; the administrator's page shows the same."""

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Literal
from uuid import UUID

from pydantic import BaseModel, Field

from api.keys import KeyView
from api.responses import Health
from api.retrospect import RunView
from shared.held import Kind
from shared.study import Priority, StudyStatus


class Range(StrEnum):
    """How much of the history to show."""

    HOUR = "1h"
    DAY = "24h"
    MONTH = "30d"


SPANS = {  # length and step
    Range.HOUR: (timedelta(hours=1), timedelta(minutes=1)),
    Range.DAY: (timedelta(days=1), timedelta(minutes=15)),
    Range.MONTH: (timedelta(days=30), timedelta(hours=6)),
}


class WorkerState(StrEnum):
    """What is known of a worker process."""

    ALIVE = "alive"
    SILENT = "silent"  # it ended without a word, or cannot reach Postgres
    STOPPED = "stopped"  # as it was asked to


class QueueView(BaseModel):
    """What waits in one queue."""

    queue: Priority
    waiting: int = Field(description="studies of your site")
    oldest_at: datetime | None = Field(description="since when the oldest of them waits")
    waiting_everywhere: int = Field(description="studies of all sites: the same workers serve them")
    late: bool = Field(description="the oldest waits longer than this queue should let it")


class WorkerView(BaseModel):
    """One worker process."""

    id: UUID
    host: str
    pid: int
    device: str
    bundle: str
    threads: int
    taken: int = Field(description="studies since its start")
    in_hand: int
    started_at: datetime
    seen_at: datetime
    state: WorkerState


class StudyInHand(BaseModel):
    """A study that a worker holds."""

    id: UUID
    queue: Priority
    started_at: datetime | None
    attempts: int
    flower_url: str


class RetryingStudy(BaseModel):
    """A study that failed and will be tried again."""

    id: UUID
    reason: str
    attempts: int
    next_at: datetime | None = Field(description="not before then")
    flower_url: str


class QuarantinedStudy(BaseModel):
    """A study that was set aside."""

    id: UUID
    reason: str
    attempts: int
    images: int
    since: datetime | None
    flower_url: str


class ReasonView(BaseModel):
    """Why studies were set aside, and how many."""

    reason: str
    studies: int
    first_at: datetime | None
    last_at: datetime | None


class RefusalView(BaseModel):
    """Why files were refused, and how many."""

    reason: str
    failure: str
    text: str = Field(description="what the last sender was told")
    files: int
    last_at: datetime


class BundleLine(BaseModel):
    """A model bundle, with the figures of its card."""

    name: str
    state: Literal["active", "shadow", "available"]
    added_at: datetime
    sha256: str
    figures: dict[str, str]


class StorageView(BaseModel):
    """What your site has stored, and the room that is left."""

    counted_at: datetime | None
    images: int
    size_bytes: int
    a_week_ago_bytes: int | None
    kind: str = Field(description="directory or S3")
    disk_bytes: int | None = Field(description="of the directory's disk; an S3 server does not tell")
    free_bytes: int | None
    days_left: int | None = Field(description="until the disk is full, if it goes on as in the last week")


class Point(BaseModel):
    """A stretch of the history; times in seconds, null where nothing was finished or nobody looked."""

    at: datetime
    received: int
    analysed: int
    failed: int
    wait_p50_s: float | None
    wait_p95_s: float | None
    work_p50_s: float | None
    work_p95_s: float | None
    urgent: int | None
    routine: int | None
    backlog: int | None


class Operations(BaseModel):
    """All that the administrator's page shows."""

    health: Health
    troubles: list[str] = Field(description="what is stuck, and the cure, in words")
    counts: dict[StudyStatus, int]
    queues: list[QueueView]
    workers: list[WorkerView]
    in_hand: list[StudyInHand]
    retrying: list[RetryingStudy]
    range: Range
    start: datetime
    end: datetime
    step_s: int
    history: list[Point]
    quarantine: list[ReasonView]
    quarantined: list[QuarantinedStudy]
    refusals: list[RefusalView]
    held: dict[Kind, int] = Field(default_factory=dict, description="stored files that wait for a decision, by why")
    nights: list[RunView]
    bundles: list[BundleLine]
    storage: StorageView
    keys: list[KeyView]
    flower_url: str


class ReleaseReason(BaseModel):
    """Which studies to release."""

    reason: str = Field(
        max_length=2000, pattern=r"^[^\x00]*$", description="the reason, exactly as GET /operations gives it"
    )


class Released(BaseModel):
    """What a release came to."""

    released: int
    left: int = Field(description="studies of the same reason that are left; call again for the next ones")
