"""How often readers agree with the model, as a page."""

from fastapi import Response

from api.dependencies import PartsDep, Radiologist
from api.feedback.agreement import FEW_VERDICTS, RateView, agreement_of
from api.feedback.drift import BASELINE_VERDICTS, MIN_VERDICTS, VERDICTS_PER_FALSE_ALARM
from api.pages.render import header, render
from api.requests import Router

router = Router(include_in_schema=False)
DAYS = (30, 90, 365, 3650)
SHOWN = 300  # points of a chart: the newest


@router.get("/agreement")
def agreement(parts: PartsDep, key: Radiologist, days: int = 365) -> Response:
    """Show rates of agreement over time and by groups, and alarms where they fell."""
    days = days if days in DAYS else 365
    found = agreement_of(parts, key, days)
    with parts.database.transaction() as session:
        head = header(session, key)
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
        "needed": BASELINE_VERDICTS + MIN_VERDICTS,
        "baseline": BASELINE_VERDICTS,
        "run": VERDICTS_PER_FALSE_ALARM,
    }
    return render("agreement.html", 200, **context)


PLOT_WIDTH, PLOT_HEIGHT = 880, 180  # of a picture, in its own units


def _plot(weeks: list[RateView]) -> list[tuple[float, float, float, float, RateView]]:
    """Of each week with verdicts: x, and y of the share and of both ends of its interval; 0 is the top."""
    step = PLOT_WIDTH / max(1, len(weeks))
    return [
        (
            (place + 0.5) * step,
            PLOT_HEIGHT * (1 - week.share),
            PLOT_HEIGHT * (1 - week.low),
            PLOT_HEIGHT * (1 - week.high),
            week,
        )
        for place, week in enumerate(weeks)
        if week.share is not None
    ]


COURSE_WIDTH, COURSE_HEIGHT = 150, 26


def _course(rate: RateView) -> tuple[str, list[tuple[float, float, bool]]]:
    """A rate's weeks as a small picture: an SVG path with gaps for weeks without any, and dots (x, y, whether few)."""
    step = COURSE_WIDTH / max(1, len(rate.course))
    path, dots, joined = "", [], False
    for place, (hits, of) in enumerate(rate.course):
        if of:
            x, y = (place + 0.5) * step, COURSE_HEIGHT * (1 - hits / of)
            path += f"{'L' if joined else 'M'}{x:.1f} {y:.1f}"
            dots.append((x, y, of < FEW_VERDICTS))
        joined = of > 0
    return path, dots


def _line(values: list[float], limit: float) -> str:
    """The newest values as the points of a polyline; the limit is 10 units under the top."""
    shown = values[-SHOWN:]
    step = PLOT_WIDTH / max(1, len(shown) - 1)
    return " ".join(f"{place * step:.1f},{110 - 100 * value / limit:.1f}" for place, value in enumerate(shown))
