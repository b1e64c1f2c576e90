"""What the API answers about history, as pydantic models: runs, alerts, bundles and how they compare."""

from collections.abc import Mapping
from datetime import date, datetime
from typing import Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from api.responses import STUDY_ID
from shared.backlog import BacklogRun, Forecast
from shared.findings import RESEARCH_USE, Assessment, OperatingPoints, shown_score
from shared.repository.alerts import Revised
from shared.repository.reports import Comparison, Stratum
from shared.tables import AlertRow

RUN: JsonDict = {
    "kind": "night",
    "night": "2026-01-12",
    "started_at": "2026-01-12T02:00:00Z",
    "ends_at": "2026-01-12T06:00:00Z",
    "finished_at": None,
    "failed": 2,
    "stranded": 0,
    "outdated": 310,
    "switched": 0,
    "bundle": "third-look",
    "ended_by": "",
    "forecast": {
        "done": 280,
        "left": 8200,
        "at_least": False,
        "per_hour": 1200.0,
        "finish_at": None,
        "nights": 2,
        "words": "280 done, 8200 left; will not finish tonight: 2 nights",
    },
}
ALERT: JsonDict = {
    "id": "0a4c1a52-7b2c-4e5f-8a55-5d3c2c1f9b10",
    "study_id": STUDY_ID,
    "url": f"/studies/{STUDY_ID}",
    "old_bundle": "second-look",
    "new_bundle": "third-look",
    "old_assessment": "negative",
    "new_assessment": "positive",
    "region": "elbow",
    "old_probability": 0.01,
    "new_probability": 0.91,
    "old_score": 2.1,
    "new_score": 9.5,
    "created_at": "2026-01-12T02:10:00Z",
    "earlier_at": "2025-11-03T09:12:00Z",
    "read_at": "2025-11-03T10:40:00Z",
    "seen_at": None,
    "seen_by": None,
}
CHANGES: JsonDict = {"negative": {"negative": 280, "positive": 1}, "positive": {"positive": 27}}
STRATUM: JsonDict = {"studies": 308, "changes": CHANGES, "probability_change": 0.004, "abstention_change": 0}


class ForecastView(BaseModel):
    """When a run will be through, by its pace so far."""

    done: int
    left: int
    at_least: bool = Field(description="more are left than were counted")
    per_hour: float | None = None
    finish_at: datetime | None = Field(None, description="null: not in this window, or too early to say")
    nights: int | None = Field(None, description="windows still needed, this one included")
    words: str

    @classmethod
    def of(cls, value: Forecast) -> "ForecastView":
        """From the value."""
        return cls(**value.__dict__, words=value.words())


class RunView(BaseModel):
    """A night's run, or a shadow bundle's."""

    model_config = ConfigDict(json_schema_extra={"example": RUN})

    kind: Literal["night", "shadow"]
    night: date | None = Field(None, description="null for a shadow run")
    started_at: datetime
    ends_at: datetime | None = Field(None, description="the window's end: nothing is sent from then on")
    finished_at: datetime | None = None
    failed: int = Field(description="quarantined studies tried once more")
    stranded: int = Field(description="studies that waited without a message in any queue")
    outdated: int = Field(description="studies that another bundle spoke for")
    switched: int = Field(description="of these: the bundle had looked before, so that no image was decoded")
    bundle: str
    ended_by: str = Field(description="why it ended, in words")
    forecast: ForecastView | None = Field(None, description="null once it has ended")

    @classmethod
    def of(cls, run: BacklogRun, forecast: Forecast | None) -> "RunView":
        """From the values."""
        return cls(
            kind="night" if run.night else "shadow", night=run.night, started_at=run.started_at, ends_at=run.ends_at,
            finished_at=run.finished_at, failed=run.failed, stranded=run.stranded, outdated=run.outdated,
            switched=run.switched, bundle=run.bundle, ended_by=run.ended_by,
            forecast=ForecastView.of(forecast) if forecast else None,
        )  # fmt: skip


class AlertView(BaseModel):
    """A study that the old bundle called negative and the new one does not."""

    id: UUID
    study_id: UUID
    url: str
    old_bundle: str
    new_bundle: str
    old_assessment: Assessment
    new_assessment: Assessment
    region: str
    old_probability: float
    new_probability: float
    old_score: float | None = Field(None, description="0 to 10: unclear from 3, positive from 7")
    new_score: float | None = None
    created_at: datetime
    earlier_at: datetime | None = Field(None, description="when the old bundle had assessed the study")
    read_at: datetime | None = Field(None, description="when the study was marked as read; null: it is unread")
    seen_at: datetime | None = None
    seen_by: str | None = Field(None, description="the name of the key that has seen it")

    @classmethod
    def of(cls, row: AlertRow, points: Mapping[str, tuple[float, float]], **more: object) -> "AlertView":
        """From the row and the operating points of its bundles; more: what neither holds."""
        names = cls.model_fields.keys() - {"url", "old_score", "new_score", "earlier_at", "read_at", "seen_by"}
        scores = {
            f"{age}_score": shown_score(OperatingPoints(*points[bundle]).score(probability))
            for age, bundle, probability in (
                ("old", row.old_bundle, row.old_probability),
                ("new", row.new_bundle, row.new_probability),
            )
            if bundle in points
        }
        known = {name: getattr(row, name) for name in names} | {"url": f"/studies/{row.study_id}"}
        return cls.model_validate(known | scores | more)

    @classmethod
    def revised(cls, one: Revised, points: Mapping[str, tuple[float, float]]) -> "AlertView":
        """With what has become of its study."""
        return cls.of(one.alert, points, earlier_at=one.earlier_at, read_at=one.read_at, seen_by=one.seen_by)


class AlertCount(BaseModel):
    """How many revised findings nobody has seen."""

    unseen: int
    at_least: bool = Field(description="not counted further")
    notice: str = RESEARCH_USE


class AlertPage(BaseModel):
    """Alerts that nobody has seen; `next` is the `after` of the following page, null on the last."""

    model_config = ConfigDict(json_schema_extra={"example": {"alerts": [ALERT], "next": None, "notice": RESEARCH_USE}})

    alerts: list[AlertView]
    next: str | None = None
    notice: str = RESEARCH_USE


class RunReport(BaseModel):
    """What a night came to; of a night that still runs, so far."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "run": RUN,
                "kinds": {"failed": {"done": 2}, "outdated": {"done": 308, "failed": 2}},
                "changes": CHANGES,
                "newly_positive": 1,
                "newly_negative": 0,
                "from_abstained": 0,
                "alerts": [ALERT],
                "from_abstained_studies": [],
                "notice": RESEARCH_USE,
            }
        }
    )

    run: RunView
    kinds: dict[str, dict[str, int]] = Field(description="of each kind, how many stand where")
    changes: dict[str, dict[str, int]] = Field(description="old assessment -> new assessment -> studies")
    newly_positive: int = Field(description="the old bundle said negative, the new one unclear or positive")
    newly_negative: int
    from_abstained: int = Field(description="the old bundle abstained, the new one says unclear or positive")
    alerts: list[AlertView] = Field(description="the newly positive ones of this site, seen or not; at most 1000")
    from_abstained_studies: list[UUID] = Field(description="of this site; at most 1000")
    notice: str = RESEARCH_USE


class BundleView(BaseModel):
    """A model bundle and what was measured of it."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "name": "third-look",
                "state": "shadow",
                "added_at": "2026-01-11T15:00:00Z",
                "activated_at": None,
                "sensitive": 0.014,
                "specific": 0.35,
                "regions": ["hand", "elbow"],
                "metrics": {"films": 703, "fracture_auroc": [0.931, 0.878, 0.966]},
                "run": RUN | {"kind": "shadow", "night": None, "ends_at": None},
            }
        }
    )

    name: str
    state: Literal["active", "shadow", "available"]
    added_at: datetime
    activated_at: datetime | None = Field(None, description="last; null: its findings were never shown")
    sensitive: float | None = Field(None, description="unclear from here on")
    specific: float | None = Field(None, description="positive from here on")
    regions: list[str]
    metrics: dict[str, object] = Field(description="as its manifest has them; [estimate, lower, upper] of 95 %")
    run: RunView | None = Field(None, description="its latest run as a shadow")


class ShadowWanted(BaseModel):
    """How much of history a shadow looks at."""

    since: date | None = Field(None, description="only studies that arrived on this day (UTC) or later")
    limit: int | None = Field(None, ge=1, description="at most so many, newest day first")


class StratumView(BaseModel):
    """Studies that both bundles have looked at."""

    studies: int
    changes: dict[str, dict[str, int]] = Field(description="old assessment -> new assessment -> studies")
    probability_change: float = Field(description="mean of new - old")
    abstention_change: int = Field(description="studies that the new one abstains on, less those that the old one did")

    @classmethod
    def of(cls, value: Stratum) -> "StratumView":
        """From the value."""
        return cls(**value.__dict__)


class ComparisonView(BaseModel):
    """Two bundles, paired on the studies of this site that both have looked at."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "old": "second-look",
                "new": "third-look",
                "all": STRATUM,
                "regions": {"elbow": STRATUM},
                "newly_positive": 1,
                "newly_negative": 0,
                "newly_positive_studies": [STUDY_ID],
                "newly_negative_studies": [],
                "notice": RESEARCH_USE,
            }
        }
    )

    old: str
    new: str
    all: StratumView
    regions: dict[str, StratumView] = Field(description="by the region that the old bundle recognised")
    newly_positive: int
    newly_negative: int
    newly_positive_studies: list[UUID] = Field(description="at most 1000, the likeliest fracture first")
    newly_negative_studies: list[UUID]
    notice: str = RESEARCH_USE

    @classmethod
    def of(cls, old: str, new: str, value: Comparison, turned: dict[str, int]) -> "ComparisonView":
        """From the values."""
        return cls(
            old=old, new=new, all=StratumView.of(value.all),
            regions={region: StratumView.of(stratum) for region, stratum in value.regions.items()},
            newly_positive=turned["newly_positive"], newly_negative=turned["newly_negative"],
            newly_positive_studies=value.newly_positive, newly_negative_studies=value.newly_negative,
        )  # fmt: skip
