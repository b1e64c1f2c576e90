"""How often readers agree with the model, as a page."""

from fastapi import APIRouter, Response

from api.agreement import FEW, RateView, agreement_of
from api.dependencies import PartsDep, Radiologist
from api.drift import ANSWERS_PER_FALSE_ALARM, BASELINE, LEAST
from api.pages.render import header, render

router = APIRouter(include_in_schema=False)
DAYS = (30, 90, 365, 3650)
SHOWN = 300  # points of a chart: the newest


@router.get("/agreement.html")
def agreement(parts: PartsDep, key: Radiologist, days: int = 365) -> Response:
    """Rates over time and by what they differ by, and where readers agree less than they used to."""
    days = days if days in DAYS else 365
    found = agreement_of(parts, key, days)
    with parts.database.transaction() as session:
        head = header(parts, session, key)
    context = {
        **head,
        "found": found,
        "days": days,
        "choices": DAYS,
        "alarms": [one for one in found.drift if one.alarm],
        "plot": _plot(found.weeks),
        "course": _course,
        "last_week": found.weeks[-1].name if found.weeks else "",
        "lines": {
            f"{one.bundle} {one.by} {one.where}": _line(one.values, one.limit) for one in found.drift if one.enough
        },
        "needed": BASELINE + LEAST,
        "baseline": BASELINE,
        "run": ANSWERS_PER_FALSE_ALARM,
    }
    return render("agreement.html", 200, **context)


WIDE, HIGH = 880, 180  # of a picture, in its own units


def _plot(weeks: list[RateView]) -> list[tuple[float, float, float, float, RateView]]:
    """Of each week with answers: x, and y of the share and of both ends of its interval; 0 is the top."""
    step = WIDE / max(1, len(weeks))
    return [
        ((place + 0.5) * step, HIGH * (1 - week.share), HIGH * (1 - week.low), HIGH * (1 - week.high), week)
        for place, week in enumerate(weeks)
        if week.share is not None
    ]


COURSE_WIDE, COURSE_HIGH = 150, 26


def _course(rate: RateView) -> tuple[str, list[tuple[float, float, bool]]]:
    """A rate's weeks as a small picture: an SVG path with gaps where nobody answered, and dots (x, y, few answers)."""
    step = COURSE_WIDE / max(1, len(rate.course))
    path, dots, joined = "", [], False
    for place, (hits, of) in enumerate(rate.course):
        if of:
            x, y = (place + 0.5) * step, COURSE_HIGH * (1 - hits / of)
            path += f"{'L' if joined else 'M'}{x:.1f} {y:.1f}"
            dots.append((x, y, of < FEW))
        joined = of > 0
    return path, dots


def _line(values: list[float], limit: float) -> str:
    """The newest values as the points of a polyline; the limit is 10 units under the top."""
    shown = values[-SHOWN:]
    step = WIDE / max(1, len(shown) - 1)
    return " ".join(f"{place * step:.1f},{110 - 100 * value / limit:.1f}" for place, value in enumerate(shown))
