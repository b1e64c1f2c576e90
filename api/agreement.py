"""GET /agreement: how often readers agree with the model, where, and whether that drifts."""

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Literal
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field
from sqlalchemy.orm import Session

from api.dependencies import Parts, PartsDep, Radiologist
from api.drift import LIMIT, Rate, chart, wilson
from shared.findings import RESEARCH_USE, Assessment
from shared.repository.access import Key
from shared.repository.answers import Judged, judged
from shared.repository.bundles import active_bundle

router = APIRouter(tags=["answer"])
log = logging.getLogger("osteon.agreement")
SHOWN = 500  # values of a chart: more are not to be seen in a plot
FEW = 20  # below, a rate says so
UNKNOWN = "not known"
POSITIVE = (Assessment.POSITIVE, Assessment.UNCLEAR)
KEPT_S = 300  # for how long alarms are taken as counted: a scrape need not read all answers
_told: set[tuple[UUID, str, str, int]] = set()  # alarms that this process has logged
_alarms: dict[tuple[UUID, str], tuple[float, list["DriftView"]]] = {}  # by site and bundle: when counted, by monotonic


class RateView(BaseModel):
    """A share of answers with its 95 % interval (Wilson)."""

    name: str
    hits: int
    of: int
    share: float | None
    low: float
    high: float
    few: bool = Field(description=f"fewer than {FEW} answers: hardly more than an anecdote")
    course: list[tuple[int, int]] = Field(
        [], description="hits and answers in each of `weeks`; of splits by place only"
    )


class DriftView(BaseModel):
    """One bundle in one region, or on one scanner: a CUSUM chart of disagreement."""

    bundle: str
    by: Literal["region", "scanner"]
    where: str = Field(description="that region or scanner")
    answers: int
    enough: bool = Field(description="whether there are answers enough to tell")
    expected: float | None = Field(description="disagreement that counts as unchanged, from the first answers")
    values: list[float] = Field(description=f"the chart, answer by answer after the first ones; the newest {SHOWN}")
    limit: float
    alarm: bool
    alarm_since: datetime | None


class Agreement(BaseModel):
    """Rates of agreement; readers are not named."""

    answers: int
    since: datetime | None
    overall: RateView
    model: list[RateView] = Field(description="agreement by what the model said")
    reference: list[RateView] = Field(description="the model's assessments against what readers say they see")
    weeks: list[RateView] = Field(description="named by their Monday")
    regions: list[RateView]
    bundles: list[RateView]
    scanners: list[RateView]
    drift: list[DriftView]
    notice: str = RESEARCH_USE


@router.get("/agreement")
def agreement(
    parts: PartsDep, key: Radiologist, days: Annotated[int, Query(ge=1, le=36_500, description="look back")] = 365
) -> Agreement:
    """Rates of agreement of this site's readers with the model, and an alarm where they fall."""
    return agreement_of(parts, key, days)


def agreement_of(parts: Parts, key: Key, days: int) -> Agreement:
    """What GET /agreement answers; the page shows the same. An alarm is logged once by each process."""
    since = datetime.now(UTC) - timedelta(days=days)
    with parts.database.transaction() as session:
        rows = judged(session, key.site_id)
    found = summary([row for row in rows if row.answered_at >= since], since, drift(rows))
    _tell(key.site_id, found.drift)
    return found


def alarms_of(session: Session, site_id: UUID) -> list[DriftView]:
    """The charts of the active bundle that alarm at this site, at most KEPT_S seconds old.

    Only of the active bundle: one that nobody answers any more keeps its last alarm for ever.
    """
    active = active_bundle(session)
    if active is None:
        return []
    counted, alarms = _alarms.get((site_id, active.name), (-math.inf, []))
    if time.monotonic() - counted >= KEPT_S:
        alarms = [one for one in drift(judged(session, site_id, bundle=active.name)) if one.alarm]
        _alarms[site_id, active.name] = time.monotonic(), alarms
        _tell(site_id, alarms)
    return alarms


def _tell(site_id: UUID, charts: Sequence[DriftView]) -> None:
    for one in charts:
        alarm = (site_id, one.bundle, one.where, int(one.alarm_since.timestamp()) if one.alarm_since else 0)
        if one.alarm and alarm not in _told:
            _told.add(alarm)
            what = {"bundle": one.bundle, one.by: one.where, "since": str(one.alarm_since)}
            log.warning("readers agree with the model less than they used to", extra=what)


def summary(rows: Sequence[Judged], since: datetime | None, charts: list[DriftView]) -> Agreement:
    """Rates of these answers, whose order does not matter; charts: of `drift`, for which it does."""
    return Agreement(
        answers=len(rows),
        since=since,
        overall=_rate("all", wilson(sum(row.agrees for row in rows), len(rows))),
        model=_by(rows, lambda row: SAID[Assessment(row.assessment)], [*dict.fromkeys(SAID.values())]),
        reference=_reference(rows),
        weeks=_by(rows, lambda row: str(_monday(row.answered_at)), _weeks(rows)),
        regions=_in_course(rows, lambda row: row.region),
        bundles=_in_course(rows, lambda row: row.bundle),
        scanners=_in_course(rows, lambda row: row.scanner or UNKNOWN),
        drift=charts,
    )


SAID = {
    Assessment.POSITIVE: "model says fracture",
    Assessment.UNCLEAR: "model says fracture",
    Assessment.NEGATIVE: "model says negative",
    Assessment.ABSTAINED: "model abstains",
}


def drift(rows: Iterable[Judged]) -> list[DriftView]:
    """Charts for each bundle in each region and on each scanner, in order of answering, which the numbers tell."""
    groups: dict[tuple[str, Literal["region", "scanner"], str], list[Judged]] = {}
    for row in sorted(rows, key=lambda row: row.number):
        groups.setdefault((row.bundle, "region", row.region), []).append(row)
        groups.setdefault((row.bundle, "scanner", row.scanner or UNKNOWN), []).append(row)
    views = []
    for (bundle, by, where), group in sorted(groups.items()):
        made = chart([row.agrees for row in group])
        alarm = made.enough and made.alarm_at is not None
        views.append(
            DriftView(
                bundle=bundle, by=by, where=where, answers=made.answers, enough=made.enough, expected=made.expected,
                values=list(made.values[-SHOWN:]), limit=LIMIT, alarm=alarm,
                alarm_since=group[made.alarm_at - 1].answered_at if alarm and made.alarm_at else None,
            )
        )  # fmt: skip
    return views


def _by(rows: Sequence[Judged], name: Callable[[Judged], str], names: Sequence[str] | None = None) -> list[RateView]:
    of = Counter(name(row) for row in rows)
    hits = Counter(name(row) for row in rows if row.agrees)
    return [_rate(one, wilson(hits[one], of[one])) for one in (names if names is not None else sorted(of))]


def _in_course(rows: Sequence[Judged], name: Callable[[Judged], str]) -> list[RateView]:
    """As `_by`, each with its rate week by week."""
    weeks = _weeks(rows)
    of = Counter((name(row), str(_monday(row.answered_at))) for row in rows)
    hits = Counter((name(row), str(_monday(row.answered_at))) for row in rows if row.agrees)
    return [
        rate.model_copy(update={"course": [(hits[rate.name, week], of[rate.name, week]) for week in weeks]})
        for rate in _by(rows, name)
    ]


def _reference(rows: Sequence[Judged]) -> list[RateView]:
    """Sensitivity and specificity, where the reader's own view of the film is known and the model did not abstain."""
    seen: Counter[tuple[bool, bool]] = Counter()
    for row in rows:
        said = row.assessment in POSITIVE
        if row.assessment == Assessment.ABSTAINED or not (row.agrees or row.fracture in ("yes", "no")):
            continue
        seen[said, said if row.agrees else row.fracture == "yes"] += 1
    hit, miss, false_alarm, clear = seen[True, True], seen[False, True], seen[True, False], seen[False, False]
    return [
        _rate("of fractures that readers see, the model does not say negative", wilson(hit, hit + miss)),
        _rate("of films that readers call clear, the model does too", wilson(clear, clear + false_alarm)),
    ]


def _rate(name: str, rate: Rate) -> RateView:
    return RateView(
        name=name, hits=rate.hits, of=rate.of, share=rate.share, low=rate.low, high=rate.high, few=rate.of < FEW
    )


def _monday(at: datetime) -> date:
    day = at.astimezone(UTC).date()
    return day - timedelta(days=day.weekday())


def _weeks(rows: Sequence[Judged]) -> list[str]:
    """Every week from the first answer to the last, those without answers too."""
    if not rows:
        return []
    mondays = [_monday(row.answered_at) for row in rows]
    span = (max(mondays) - min(mondays)).days // 7
    return [str(min(mondays) + timedelta(weeks=week)) for week in range(span + 1)]
