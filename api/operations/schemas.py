"""The response of GET /api/v1/operations, as pydantic models; the administrator's page shows the same."""

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, computed_field

from api.models.schemas import RunView
from api.operations.checks import CheckView
from api.operations.destinations import DeliveryView, DestinationView
from api.operations.keys import KeyView
from api.operations.peers import CallerView, PeerView
from api.reasons import WithReason
from api.schemas import Health, RowView
from shared.domain.held import HeldKind
from shared.domain.results import CaptureModality
from shared.domain.study import Priority, StoredOnly, StudyStatus
from shared.errors import Reason


class HistoryRange(StrEnum):
    """How much of the history to show."""

    HOUR = "1h"
    DAY = "24h"
    MONTH = "30d"


SPANS = {  # length and step
    HistoryRange.HOUR: (timedelta(hours=1), timedelta(minutes=1)),
    HistoryRange.DAY: (timedelta(days=1), timedelta(minutes=15)),
    HistoryRange.MONTH: (timedelta(days=30), timedelta(hours=6)),
}


class WorkerState(StrEnum):
    """What is known of a worker process."""

    ALIVE = "alive"
    SILENT = "silent"  # it ended without a word, or cannot reach Postgres
    STOPPED = "stopped"  # as it was asked to


class QueueView(RowView):
    """What waits in one queue."""

    queue: Priority = Field(description="urgent, routine or backlog")
    waiting: int = Field(description="studies of your site")
    oldest_at: datetime | None = Field(description="since when the oldest of them waits")
    waiting_everywhere: int = Field(description="studies of all sites: the same workers serve them")
    late: bool = Field(description="the oldest waits longer than this queue should let it")


class WorkerView(RowView):
    """One worker process."""

    id: UUID = Field(description="of the process")
    host: str = Field(description="its computer's name")
    pid: int = Field(description="its process id")
    device: str = Field(description="what the model runs on")
    bundle: str = Field(description="key of the model bundle that it has loaded; empty before the first")
    threads: int = Field(description="studies that it works on at a time")
    taken: int = Field(description="studies since its start")
    in_hand: int = Field(description="studies that it works on now")
    started_at: datetime = Field(description="when the process began")
    seen_at: datetime = Field(description="its last heartbeat")
    state: WorkerState = Field(description="a code")


class RunningStudy(BaseModel):
    """A study that a worker holds."""

    id: UUID = Field(description="of the study")
    queue: Priority = Field(description="urgent, routine or backlog")
    started_at: datetime | None = Field(description="when it began; null: not yet")
    attempts: int = Field(description="how often it was tried")
    flower_url: str = Field(description="page of its tasks in Flower")


class RetryingStudy(WithReason):
    """A study that failed and will be tried again."""

    id: UUID = Field(description="of the study")
    attempts: int = Field(description="how often it was tried")
    next_at: datetime | None = Field(description="not before then")
    flower_url: str = Field(description="page of its tasks in Flower")


class QuarantinedStudy(WithReason):
    """A study that was set aside."""

    id: UUID = Field(description="of the study")
    attempts: int = Field(description="how often it was tried")
    images: int = Field(description="how many images it has")
    since: datetime | None = Field(description="when it was set aside")
    flower_url: str = Field(description="page of its tasks in Flower")


class ReasonView(RowView, WithReason):
    """Why studies were set aside, and how many."""

    studies: int = Field(description="set aside for this reason")
    first_at: datetime | None = Field(description="the first time")
    last_at: datetime | None = Field(description="the last time")


class RejectionView(RowView):
    """Why files were rejected, and how many."""

    reason: Reason = Field(description="why, a code")
    failure: str = Field(description="DICOM Failure Reason (0008,1197), hexadecimal, such as 0xC000")
    text: str = Field(description="the reason as a sentence, with what was found in the last file")
    files: int = Field(description="files rejected for this reason")
    last_at: datetime = Field(description="the last time")


class BundleLine(BaseModel):
    """A model bundle, with the figures of its card."""

    name: str = Field(description="key of the bundle")
    title: str = Field(description="the name that people see")
    state: Literal["active", "shadow", "available"] = Field(description="active, shadow or available")
    added_at: datetime = Field(description="when it was stored")
    sha256: str = Field(description="of the file, hexadecimal")
    figures: dict[str, str] = Field(description="figures of the model card, by name")


class StorageView(BaseModel):
    """What your site has stored, and the room that is left."""

    counted_at: datetime | None = Field(description="when this was counted; null: never")
    images: int = Field(description="number of images")
    size_bytes: int = Field(description="bytes of all images")
    a_week_ago_bytes: int | None = Field(description="bytes of all images a week ago; null: not known")
    kind: str = Field(description="directory or S3")
    disk_bytes: int | None = Field(description="of the directory's disk; an S3 server does not tell")
    free_bytes: int | None = Field(description="free on the disk of the store; null: not known")
    days_left: int | None = Field(description="until the disk is full, if it goes on as in the last week")


class UsageView(RowView):
    """What one key, or the whole site, has sent within the last hour."""

    name: str = Field(description="of the key; of the site: an empty one")
    size_bytes: int = Field(description="sent in this hour")
    studies: int = Field(description="new ones")
    urgent: int = Field(description="studies that became urgent")
    most_bytes: int = Field(description="an hour; 0: no limit")
    most_studies: int = Field(description="studies that the key may send in an hour")


class StatisticsPointView(RowView):
    """A stretch of the history; times in seconds, null if nothing was finished, or no worker ran."""

    at: datetime = Field(description="when the step begins")
    received: int = Field(description="studies that came")
    analysed: int = Field(description="studies that were analysed")
    failed: int = Field(description="studies that were set aside")
    wait_p50_s: float | None = Field(description="median wait for the analysis, in seconds; null: none")
    wait_p95_s: float | None = Field(description="95th percentile of the wait, in seconds; null: none")
    work_p50_s: float | None = Field(description="median time of the analysis, in seconds; null: none")
    work_p95_s: float | None = Field(description="95th percentile of that time, in seconds; null: none")
    urgent: int | None = Field(description="urgent studies that waited at most; null: not known")
    routine: int | None = Field(description="routine studies that waited at most; null: not known")
    backlog: int | None = Field(description="studies of the backlog that waited at most; null: not known")


class Operations(BaseModel):
    """All that the administrator's page shows."""

    health: Health = Field(description="whether the parts answer")
    troubles: list[str] = Field(description="what is stuck, and what helps, in words")
    counts: dict[StudyStatus, int] = Field(description="how many studies there are, by state")
    queues: list[QueueView] = Field(description="what waits, by queue")
    workers: list[WorkerView] = Field(description="with a recent heartbeat, and lost ones")
    in_hand: list[RunningStudy] = Field(description="studies that a worker works on")
    retrying: list[RetryingStudy] = Field(description="studies that wait for another attempt")
    range: HistoryRange = Field(description="how far back the history goes")
    start: datetime = Field(description="of the history")
    end: datetime = Field(description="of the history")
    step_s: int = Field(description="seconds between two points of the history")
    history: list[StatisticsPointView] = Field(description="what came and was done, by time")
    quarantine: list[ReasonView] = Field(description="studies that were set aside, by reason")
    quarantined: list[QuarantinedStudy] = Field(description="studies that were set aside, the latest first")
    rejections: list[RejectionView] = Field(description="files that were rejected, by reason")
    held: dict[HeldKind, int] = Field(default_factory=dict, description="stored files that wait for a decision, by why")
    backfill_runs: list[RunView] = Field(description="the latest runs over history")
    bundles: list[BundleLine] = Field(description="the newest first")
    storage: StorageView = Field(description="what is stored")
    sent: list[UsageView] = Field(default_factory=list, description="in the last hour: your site, then its keys")
    urgent_share: float = Field(1.0, description="of the studies that a key sends in an hour; 1: no limit")
    urgent_free: int = Field(0, description="studies that may be urgent whatever their share")
    dicom_peers: list[PeerView] = Field(default_factory=list, description="of your site; an operator gets all")
    dicom_callers: list[CallerView] = Field(default_factory=list, description="refused ones that you may admit")
    destinations: list[DestinationView] = Field(default_factory=list, description="of your site; an operator gets all")
    undelivered: list[DeliveryView] = Field(
        default_factory=list, description="the latest deliveries of results that have failed or are held"
    )
    keys: list[KeyView] = Field(description="of your site; an operator gets all")
    check: CheckView | None = Field(None, description="the daily check that ended last; null: none, or it is off")
    flower_url: str = Field(description="where Flower is")

    @computed_field(json_schema_extra={"deprecated": True}, description="use rejections")  # type: ignore[prop-decorator]
    @property
    def refusals(self) -> list[RejectionView]:
        """The name of `rejections` before 0.2.0."""
        return self.rejections

    @computed_field(json_schema_extra={"deprecated": True}, description="use backfill_runs")  # type: ignore[prop-decorator]
    @property
    def nights(self) -> list[RunView]:
        """The name of `backfill_runs` before 0.2.0."""
        return self.backfill_runs


class ReleaseReason(BaseModel):
    """Which studies to release."""

    reason: Reason | Literal[""] = Field(description="the code, as GET /api/v1/operations gives it")


class ReleaseResult(BaseModel):
    """What a release came to."""

    released: int = Field(description="studies that are queued again")
    left: int = Field(description="studies of the same reason that are left; call again for the next ones")


class ResultChoicesView(BaseModel):
    """What a site has chosen for its results; a request states all of it."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"example": {"states_probability": False, "capture_modality": "OT"}}
    )

    states_probability: bool = Field(description="documents and pictures state the calibrated probability", strict=True)
    capture_modality: CaptureModality = Field(description="of pictures (Secondary Capture); some archives hide OT")


class RefusedKindsChoice(BaseModel):
    """Kinds of objects that a site refuses, in place of keeping them without analysis."""

    model_config = ConfigDict(json_schema_extra={"example": {"kinds": ["own-result", "secondary-capture"]}})

    kinds: list[StoredOnly] | None = Field(
        max_length=len(StoredOnly), description="the kinds, none in an empty list; null: as the installation's setting"
    )


class RefusedKindsView(RefusedKindsChoice):
    """What a site refuses."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "kinds": None, "in_force": ["colour"], "installation": ["colour"], "possible": list(StoredOnly),
            }
        }
    )  # fmt: skip

    in_force: list[StoredOnly] = Field(description="the kinds that are refused now")
    installation: list[StoredOnly] = Field(description="those of OSTEON_REFUSED_KINDS, for sites that have not chosen")
    possible: list[StoredOnly] = Field(description="all kinds that can be refused")
