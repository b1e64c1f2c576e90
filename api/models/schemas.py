"""Responses about history, as pydantic models: runs, revised findings, bundles and how they compare."""

from collections.abc import Mapping
from datetime import date, datetime
from typing import Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, computed_field
from pydantic.config import JsonDict

from api.reasons import run_end_words
from api.requests import Day
from api.schemas import STUDY_ID, RowView
from shared.db.tables import RevisedFindingRow
from shared.domain.backfill import BackfillRun, Forecast, RunEnd
from shared.domain.findings import RESEARCH_USE, Assessment, OperatingPoints, shown_score
from shared.queries.backfill_reports import Comparison
from shared.queries.revised import RevisedFinding

RUN: JsonDict = {
    "kind": "backfill",
    "day": "2026-01-12",
    "started_at": "2026-01-12T02:00:00Z",
    "ends_at": "2026-01-12T06:00:00Z",
    "finished_at": None,
    "failed": 2,
    "stranded": 0,
    "outdated": 310,
    "switched": 0,
    "bundle": "third-look",
    "ended_by": "",
    "detail": "",
    "forecast": {
        "done": 280,
        "left": 8200,
        "at_least": False,
        "per_hour": 1200.0,
        "finish_at": None,
        "windows": 2,
        "words": "280 done, 8200 left; will not finish in this window; needs 2 windows",
    },
}
REVISED_FINDING: JsonDict = {
    "id": "0a4c1a52-7b2c-4e5f-8a55-5d3c2c1f9b10",
    "study_id": STUDY_ID,
    "url": f"/api/v1/studies/{STUDY_ID}",
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


class ForecastView(RowView):
    """When a run will be finished, by its pace so far."""

    done: int = Field(description="studies that are done")
    left: int = Field(description="studies that are left")
    at_least: bool = Field(description="more are left than were counted")
    per_hour: float | None = Field(None, description="studies in an hour, at the present speed; null: not known")
    finish_at: datetime | None = Field(None, description="null: not in this window, or too early to say")
    windows: int | None = Field(None, description="windows still needed, this one included")
    words: str = Field(description="the same in words")

    @computed_field(json_schema_extra={"deprecated": True}, description="use windows")  # type: ignore[prop-decorator]
    @property
    def nights(self) -> int | None:
        """The name of `windows` before 0.2.0."""
        return self.windows

    @classmethod
    def of(cls, value: Forecast) -> "ForecastView":
        """From the value."""
        return cls.of_row(value, words=value.words())


class RunView(RowView):
    """A backfill run, or a shadow bundle's run over history."""

    model_config = ConfigDict(json_schema_extra={"example": RUN})

    kind: Literal["backfill", "shadow"] = Field(description="a backfill run, or a shadow bundle's run")
    day: date | None = Field(None, description="null for a shadow run")
    started_at: datetime = Field(description="when it began")
    ends_at: datetime | None = Field(None, description="the window's end: nothing is sent from then on")
    finished_at: datetime | None = Field(None, description="when it ended; null: it goes on")
    failed: int = Field(description="quarantined studies tried once more")
    stranded: int = Field(description="studies that waited without a message in any queue")
    outdated: int = Field(description="studies that another bundle spoke for")
    switched: int = Field(description="of these: the bundle had looked before, so that no image was decoded")
    bundle: str = Field(description="that analyses")
    ended_by: RunEnd | Literal[""] = Field(description="why it ended, a code; empty while it runs")
    detail: str = Field("", description="why it ended, in words")
    forecast: ForecastView | None = Field(None, description="null once it has ended")

    @computed_field(json_schema_extra={"deprecated": True}, description="use day")  # type: ignore[prop-decorator]
    @property
    def night(self) -> date | None:
        """The name of `day` before 0.2.0."""
        return self.day

    @classmethod
    def of(cls, run: BackfillRun, forecast: Forecast | None) -> "RunView":
        """Build it.

        Args:
            run: the run.
            forecast: of the run; None once it has ended.

        Returns:
            The view.
        """
        return cls.of_row(
            run,
            kind="backfill" if run.day else "shadow",
            ended_by=run.ended_by or "",
            detail=run_end_words(run.ended_by),
            forecast=ForecastView.of(forecast) if forecast else None,
        )


class RevisedFindingView(RowView):
    """A study that the old bundle called negative; the new one does not, or abstains with a score that high."""

    id: UUID = Field(description="its id")
    study_id: UUID = Field(description="of the study")
    url: str = Field(description="path of the study in the API")
    old_bundle: str = Field(description="the bundle that said otherwise before")
    new_bundle: str = Field(description="the bundle that says so now")
    old_assessment: Assessment = Field(description="what the old bundle said")
    new_assessment: Assessment = Field(description="what the new bundle says")
    region: str = Field(description="body region, a code")
    old_probability: float = Field(description="of a fracture, by the old bundle, 0 to 1")
    new_probability: float = Field(description="of a fracture, by the new bundle, 0 to 1")
    old_score: float | None = Field(None, description="0 to 10: unclear from 3, positive from 7")
    new_score: float | None = Field(None, description="0 to 10, by the new bundle")
    created_at: datetime = Field(description="when it was made")
    earlier_at: datetime | None = Field(None, description="when the old bundle had assessed the study")
    read_at: datetime | None = Field(None, description="when the study was marked as read; null: it is unread")
    seen_at: datetime | None = Field(None, description="when somebody saw it; null: nobody has")
    seen_by: str | None = Field(None, description="the name of the key that has seen it")

    @classmethod
    def of(
        cls, row: RevisedFindingRow, points: Mapping[str, tuple[float, float]], **more: object
    ) -> "RevisedFindingView":
        """Build it from a row.

        Args:
            row: the revised finding.
            points: sensitive and specific operating points by bundle; without one there is no score.
            **more: fields that neither holds.

        Returns:
            The view.
        """

        def score(bundle: str, probability: float) -> float | None:
            return shown_score(OperatingPoints(*points[bundle]).score(probability)) if bundle in points else None

        return cls.of_row(
            row,
            url=f"/api/v1/studies/{row.study_id}",
            old_score=score(row.old_bundle, row.old_probability),
            new_score=score(row.new_bundle, row.new_probability),
            **{"earlier_at": None, "read_at": None, "seen_by": None} | more,
        )

    @classmethod
    def revised(
        cls, revised_finding: RevisedFinding, points: Mapping[str, tuple[float, float]]
    ) -> "RevisedFindingView":
        """Build it with the state of its study.

        Args:
            revised_finding: the revised finding and its study.
            points: sensitive and specific operating points by bundle.

        Returns:
            The view.
        """
        return cls.of(
            revised_finding.finding,
            points,
            earlier_at=revised_finding.earlier_at,
            read_at=revised_finding.read_at,
            seen_by=revised_finding.seen_by,
        )


class RevisedFindingsCount(BaseModel):
    """How many revised findings no radiologist has seen."""

    unseen: int = Field(description="revised findings that nobody has seen yet, at most 100")
    at_least: bool = Field(description="not counted further")
    notice: str = Field(RESEARCH_USE, description="the research use notice, in words")


class RevisedFindingsPage(BaseModel):
    """Revised findings that no radiologist has seen; `next` is the `after` of the following page, null on the last."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "revised_findings": [REVISED_FINDING],
                "alerts": [REVISED_FINDING],
                "next": None,
                "notice": RESEARCH_USE,
            },
        }
    )

    revised_findings: list[RevisedFindingView] = Field(description="revised findings, the likeliest fracture first")
    alerts: list[RevisedFindingView] = Field(deprecated=True, description="as `revised_findings`; until 0.3.0")
    next: str | None = Field(None, description="the `after` of the next page; null: this is the last one")
    notice: str = Field(RESEARCH_USE, description="the research use notice, in words")


class RunReport(BaseModel):
    """The results of a run; while it is open, those so far."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "run": RUN,
                "kinds": {"failed": {"done": 2}, "outdated": {"done": 308, "failed": 2}},
                "changes": CHANGES,
                "newly_positive": 1,
                "newly_negative": 0,
                "from_abstained": 0,
                "revised_findings": [REVISED_FINDING],
                "alerts": [REVISED_FINDING],
                "from_abstained_studies": [],
                "notice": RESEARCH_USE,
            }
        }
    )

    run: RunView = Field(description="the run")
    kinds: dict[str, dict[str, int]] = Field(description="of each kind, how many stand where")
    changes: dict[str, dict[str, int]] = Field(description="old assessment -> new assessment -> studies")
    newly_positive: int = Field(description="the old bundle said negative, the new one unclear or positive")
    newly_negative: int = Field(description="studies that are negative now and were not before")
    from_abstained: int = Field(description="the old bundle abstained, the new one says unclear or positive")
    revised_findings: list[RevisedFindingView] = Field(
        description="the newly positive ones of this site, seen or not; at most 1000"
    )
    alerts: list[RevisedFindingView] = Field(deprecated=True, description="as `revised_findings`; until 0.3.0")
    from_abstained_studies: list[UUID] = Field(description="of this site; at most 1000")
    notice: str = Field(RESEARCH_USE, description="the research use notice, in words")


class BundleView(BaseModel):
    """A model bundle and what was measured of it."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "name": "third-look",
                "title": "Osteon FracAtlas 3",
                "state": "shadow",
                "added_at": "2026-01-11T15:00:00Z",
                "activated_at": None,
                "sensitive": 0.014,
                "specific": 0.35,
                "regions": ["hand", "elbow"],
                "metrics": {"radiographs": 703, "fracture_auroc": [0.931, 0.878, 0.966]},
                "run": RUN | {"kind": "shadow", "day": None, "ends_at": None},
            }
        }
    )

    name: str = Field(description="key of the bundle")
    title: str = Field(description="the name that people see")
    state: Literal["active", "shadow", "available"] = Field(description="active, shadow or available")
    added_at: datetime = Field(description="when it was stored")
    activated_at: datetime | None = Field(None, description="last; null: its findings were never shown")
    sensitive: float | None = Field(None, description="unclear from here on")
    specific: float | None = Field(None, description="positive from here on")
    regions: list[str] = Field(description="that it knows, codes")
    metrics: dict[str, object] = Field(description="as its manifest has them; [estimate, lower, upper] of 95 %")
    run: RunView | None = Field(None, description="its latest run as a shadow")


class ShadowRequest(BaseModel):
    """How much of history a shadow analyses."""

    since: Day | None = Field(None, description="only studies that arrived on this day (UTC) or later")
    limit: int | None = Field(None, ge=1, le=100_000_000, description="at most so many, newest day first")


class StratumView(RowView):
    """Studies that both bundles have analysed."""

    studies: int = Field(description="that are compared")
    changes: dict[str, dict[str, int]] = Field(description="old assessment -> new assessment -> studies")
    probability_change: float = Field(description="mean of new - old")
    abstention_change: int = Field(description="studies that the new one abstains on, less those that the old one did")


class ComparisonView(BaseModel):
    """Two bundles, paired on the studies of this site that both have analysed."""

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

    old: str = Field(description="name of the older bundle")
    new: str = Field(description="name of the newer bundle")
    all: StratumView = Field(description="all studies")
    regions: dict[str, StratumView] = Field(description="by the region that the old bundle recognised")
    newly_positive: int = Field(description="studies that are positive only by the new bundle")
    newly_negative: int = Field(description="studies that are negative only by the new bundle")
    newly_positive_studies: list[UUID] = Field(description="at most 1000, the likeliest fracture first")
    newly_negative_studies: list[UUID] = Field(description="their ids; empty for operators")
    notice: str = Field(RESEARCH_USE, description="the research use notice, in words")

    @classmethod
    def of(cls, old: str, new: str, value: Comparison, turned: dict[str, int]) -> "ComparisonView":
        """Build it.

        Args:
            old: name of the old bundle.
            new: name of the new bundle.
            value: the comparison.
            turned: how many studies turned positive and negative.

        Returns:
            The view.
        """
        return cls(
            old=old, new=new, all=StratumView.of_row(value.all),
            regions={region: StratumView.of_row(stratum) for region, stratum in value.regions.items()},
            newly_positive=turned["newly_positive"], newly_negative=turned["newly_negative"],
            newly_positive_studies=value.newly_positive, newly_negative_studies=value.newly_negative,
        )  # fmt: skip
