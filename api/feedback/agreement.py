"""GET /api/v1/agreement: how often readers agree with the model, where, and whether that drifts."""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Literal
from uuid import UUID

from fastapi import Query
from pydantic import BaseModel, Field
from sqlalchemy.orm import Session

from api.dependencies import Parts, PartsDep, Radiologist
from api.feedback.drift import LIMIT, Rate, cusum_chart, wilson
from api.requests import API, Router
from api.schemas import RowView
from shared.domain.findings import RESEARCH_USE, Assessment
from shared.logs import get_logger
from shared.queries.access import Key
from shared.queries.feedback import Judgement, judgements
from shared.queries.models import active_bundle

router = Router(prefix=API, tags=["feedback"])
log = get_logger(__name__)
MAX_CHART_POINTS = 500  # values of a chart: more are not to be seen in a plot
FEW_VERDICTS = 20  # below, a rate says so
UNKNOWN_GROUP = "not known"
POSITIVE = (Assessment.POSITIVE, Assessment.UNCLEAR)
ALARMS_CACHED_S = 300  # for how long alarms are taken as counted: a scrape need not read all verdicts
_logged_alarms: set[tuple[UUID, str, str, int]] = set()  # alarms that this process has logged
_alarms: dict[tuple[UUID, str], tuple[float, list["DriftView"]]] = {}  # by site and bundle: when counted, by monotonic


class RateView(RowView):
    """A share of verdicts with its 95 % interval (Wilson)."""

    name: str = Field(description="what the rate is of")
    hits: int = Field(description="verdicts that agree")
    of: int = Field(description="verdicts in all")
    share: float | None = Field(description="hits of all, 0 to 1; null: no verdict")
    low: float = Field(description="lower end of the 95 % interval; 0 without a verdict")
    high: float = Field(description="upper end of the 95 % interval; 1 without a verdict")
    few: bool = Field(description=f"fewer than {FEW_VERDICTS} verdicts: hardly more than an anecdote")
    course: list[tuple[int, int]] = Field(
        [], description="hits and verdicts in each of `weeks`; of splits by place only"
    )


class DriftView(BaseModel):
    """One bundle in one region, or on one scanner: a CUSUM chart of disagreement."""

    bundle: str = Field(description="name of the model bundle")
    by: Literal["region", "scanner"] = Field(description="region or scanner")
    where: str = Field(description="that region or scanner")
    verdicts: int = Field(description="number of verdicts that are counted")
    answers: int = Field(deprecated=True, description="as `verdicts`; until 0.3.0")
    enough: bool = Field(description="whether there are verdicts enough to tell")
    expected: float | None = Field(description="disagreement that counts as unchanged, from the first verdicts")
    values: list[float] = Field(
        description=f"the chart, verdict by verdict after the first ones; the newest {MAX_CHART_POINTS}"
    )
    limit: float = Field(description="value from which on the chart alarms")
    alarm: bool = Field(description="readers agree less than before")
    alarm_since: datetime | None = Field(description="when the alarm began; null: none")


class Agreement(BaseModel):
    """Rates of agreement; readers are not named."""

    verdicts: int = Field(description="number of verdicts that are counted")
    answers: int = Field(deprecated=True, description="as `verdicts`; until 0.3.0")
    since: datetime | None = Field(description="verdicts from then on; null: all")
    overall: RateView = Field(description="all verdicts together")
    model: list[RateView] = Field(description="agreement by what the model said")
    reference: list[RateView] = Field(description="the model's assessments against what readers say they see")
    weeks: list[RateView] = Field(description="named by their Monday")
    regions: list[RateView] = Field(description="by body region")
    bundles: list[RateView] = Field(description="by model bundle")
    scanners: list[RateView] = Field(description="by device")
    drift: list[DriftView] = Field(description="charts of agreement over time, with their alarms")
    notice: str = Field(RESEARCH_USE, description="the research use notice, in words")


@router.get("/agreement")
def agreement(
    parts: PartsDep, key: Radiologist, days: Annotated[int, Query(ge=1, le=36_500, description="look back")] = 365
) -> Agreement:
    """Get rates of agreement of this site's readers with the model, and alarms where they fell."""
    return agreement_of(parts, key, days)


def agreement_of(parts: Parts, key: Key, days: int) -> Agreement:
    """Build the response of GET /api/v1/agreement, which the page uses too. Each process logs an alarm once.

    Args:
        parts: of this application.
        key: of the reader.
        days: how far back the verdicts go; charts use all.

    Returns:
        The rates and charts.
    """
    since = datetime.now(UTC) - timedelta(days=days)
    with parts.database.transaction() as session:
        rows = judgements(session, key.site_id)
    found = agreement_rates([row for row in rows if row.answered_at >= since], since, drift_charts(rows))
    _log_alarms(key.site_id, found.drift)
    return found


def alarms_of(session: Session, site_id: UUID) -> list[DriftView]:
    """Find the charts of the active bundle that alarm at a site, at most ALARMS_CACHED_S seconds old.

    Other bundles are left out: one that no reader gives verdicts on any more keeps its last alarm for ever.

    Args:
        session: the caller's transaction.
        site_id: the site.

    Returns:
        The charts.
    """
    active = active_bundle(session)
    if active is None:
        return []
    counted, alarms = _alarms.get((site_id, active.name), (-math.inf, []))
    if time.monotonic() - counted >= ALARMS_CACHED_S:
        alarms = [one for one in drift_charts(judgements(session, site_id, bundle=active.name)) if one.alarm]
        _alarms[site_id, active.name] = time.monotonic(), alarms
        _log_alarms(site_id, alarms)
    return alarms


def _log_alarms(site_id: UUID, charts: Sequence[DriftView]) -> None:
    for one in charts:
        alarm = (site_id, one.bundle, one.where, int(one.alarm_since.timestamp()) if one.alarm_since else 0)
        if one.alarm and alarm not in _logged_alarms:
            _logged_alarms.add(alarm)
            log.warning("agreement reduced", bundle=one.bundle, by=one.by, where=one.where, since=str(one.alarm_since))


def agreement_rates(rows: Sequence[Judgement], since: datetime | None, charts: list[DriftView]) -> Agreement:
    """Compute rates of agreement.

    Args:
        rows: the verdicts, in any order.
        since: from when on they are; None: all.
        charts: what `drift_charts` returned.

    Returns:
        The rates with the charts.
    """
    return Agreement(
        verdicts=len(rows),
        answers=len(rows),
        since=since,
        overall=_rate_view("all", wilson(sum(row.agrees for row in rows), len(rows))),
        model=_rates_by(
            rows, lambda row: ASSESSMENT_NAMES[Assessment(row.assessment)], [*dict.fromkeys(ASSESSMENT_NAMES.values())]
        ),
        reference=_reference_rates(rows),
        weeks=_rates_by(rows, lambda row: str(_monday(row.answered_at)), _weeks(rows)),
        regions=_weekly_rates_by(rows, lambda row: row.region),
        bundles=_weekly_rates_by(rows, lambda row: row.bundle),
        scanners=_weekly_rates_by(rows, lambda row: row.scanner or UNKNOWN_GROUP),
        drift=charts,
    )


ASSESSMENT_NAMES = {
    Assessment.POSITIVE: "model says fracture",
    Assessment.UNCLEAR: "model says fracture",
    Assessment.NEGATIVE: "model says negative",
    Assessment.ABSTAINED: "model abstains",
}


def drift_charts(rows: Iterable[Judgement]) -> list[DriftView]:
    """Draw charts for each bundle in each region and on each scanner, in order of the verdicts' numbers."""
    groups: dict[tuple[str, Literal["region", "scanner"], str], list[Judgement]] = {}
    for row in sorted(rows, key=lambda row: row.number):
        groups.setdefault((row.bundle, "region", row.region), []).append(row)
        groups.setdefault((row.bundle, "scanner", row.scanner or UNKNOWN_GROUP), []).append(row)
    views = []
    for (bundle, by, where), group in sorted(groups.items()):
        made = cusum_chart([row.agrees for row in group])
        alarm = made.enough and made.alarm_at is not None
        views.append(
            DriftView(
                bundle=bundle, by=by, where=where, verdicts=made.verdicts, answers=made.verdicts, enough=made.enough,
                expected=made.expected,
                values=list(made.values[-MAX_CHART_POINTS:]), limit=LIMIT, alarm=alarm,
                alarm_since=group[made.alarm_at - 1].answered_at if alarm and made.alarm_at else None,
            )
        )  # fmt: skip
    return views


def _rates_by(
    rows: Sequence[Judgement], name: Callable[[Judgement], str], names: Sequence[str] | None = None
) -> list[RateView]:
    of = Counter(name(row) for row in rows)
    hits = Counter(name(row) for row in rows if row.agrees)
    return [_rate_view(one, wilson(hits[one], of[one])) for one in (names if names is not None else sorted(of))]


def _weekly_rates_by(rows: Sequence[Judgement], name: Callable[[Judgement], str]) -> list[RateView]:
    """As `_rates_by`, each with its rate week by week."""
    weeks = _weeks(rows)
    of = Counter((name(row), str(_monday(row.answered_at))) for row in rows)
    hits = Counter((name(row), str(_monday(row.answered_at))) for row in rows if row.agrees)
    return [
        rate.model_copy(update={"course": [(hits[rate.name, week], of[rate.name, week]) for week in weeks]})
        for rate in _rates_by(rows, name)
    ]


def _reference_rates(rows: Sequence[Judgement]) -> list[RateView]:
    """Sensitivity and specificity, where the reader's own view is known and the model did not abstain."""
    seen: Counter[tuple[bool, bool]] = Counter()
    for row in rows:
        positive = row.assessment in POSITIVE
        if row.assessment == Assessment.ABSTAINED or not (row.agrees or row.fracture in ("yes", "no")):
            continue
        seen[positive, positive if row.agrees else row.fracture == "yes"] += 1
    hit, miss, false_alarm, clear = seen[True, True], seen[False, True], seen[True, False], seen[False, False]
    return [
        _rate_view("of fractures that readers see, the model does not say negative", wilson(hit, hit + miss)),
        _rate_view("of radiographs that readers call clear, the model does too", wilson(clear, clear + false_alarm)),
    ]


def _rate_view(name: str, rate: Rate) -> RateView:
    return RateView.of_row(rate, name=name, few=rate.of < FEW_VERDICTS, course=[])


def _monday(at: datetime) -> date:
    day = at.astimezone(UTC).date()
    return day - timedelta(days=day.weekday())


def _weeks(rows: Sequence[Judgement]) -> list[str]:
    """Every week from the first verdict to the last, those without verdicts too."""
    if not rows:
        return []
    mondays = [_monday(row.answered_at) for row in rows]
    span = (max(mondays) - min(mondays)).days // 7
    return [str(min(mondays) + timedelta(weeks=week)) for week in range(span + 1)]
