"""How the system does, as a page for administrators."""

from datetime import timedelta

from fastapi import APIRouter, Request, Response

from api.allowances import allowances
from api.dependencies import Admin, PartsDep
from api.held import held_page
from api.operations import LISTED, overview_of
from api.overview import Operations, Point, Range
from api.pages.plots import Plot, Value, length, plot
from api.pages.render import header, render, version_of
from shared.errors import BadRequest
from shared.held import Decision, Kind, State
from shared.repository.access import Role
from shared.repository.samples import GRACE

router = APIRouter(include_in_schema=False)
RANGES = {Range.HOUR: "1 hour", Range.DAY: "24 hours", Range.MONTH: "30 days"}
KINDS = {
    Kind.PATIENT: "Another patient",
    Kind.PIXELS: "Other pixels",
    Kind.CORRECTION: "Corrected header",
    Kind.COMPARING: "Being compared",
}
DECISIONS = {  # what a button says, and what is asked before
    Decision.ANOTHER_STUDY: ("Another study", "Make them a study of their own, under a new Study Instance UID?"),
    Decision.SAME_PATIENT: ("Same patient", "Add them to the study that they came for, as images of its patient?"),
    Decision.APPLY: ("Apply", "Let the corrected header count from now on? What it replaces is kept."),
    Decision.REJECT: ("Reject", "Reject: nothing of it is ever analysed, its bytes stay stored. Say why."),
}
STATES = {
    State.ANOTHER_STUDY: "made a study of its own",
    State.SAME_PATIENT: "added to its study",
    State.APPLIED: "correction applied",
    State.REJECTED: "rejected",
}
STEPS = {Range.HOUR: "minute", Range.DAY: "15 minutes", Range.MONTH: "6 hours"}


@router.get("/admin")
def operations(request: Request, parts: PartsDep, key: Admin) -> Response:
    """Queues, workers, history, quarantine, refusals, nights, bundles, storage, keys."""
    try:
        chosen = Range(request.query_params.get("range") or Range.HOUR)
    except ValueError:
        raise BadRequest(f"Choose one of: {', '.join(Range)}") from None
    view = overview_of(parts, key, chosen)
    before = request.headers.get("if-none-match")  # sent by a page that renews itself
    waiting = held_page(parts, key, renewed=before is not None)
    version = version_of(view, key, waiting.model_dump_json())
    if before == version:
        return Response(status_code=304, headers={"ETag": version})
    with parts.database.transaction() as session:
        head = header(parts, session, key)
    context = {
        **head,
        "counts": view.counts,
        "view": view,
        "version": version,
        "plots": plots(view),
        "held": waiting,
        "kinds": KINDS,
        "decisions": DECISIONS,
        "states": STATES,
        "ranges": RANGES,
        "roles": list(Role),
        "allowances": allowances(parts, key),
        "listed": LISTED,
        "size": size,
        "length": length,
    }
    return render("operations.html", 200, {"ETag": version}, **context)


def plots(view: Operations) -> list[Plot]:
    """The history as four plots."""
    step, found = timedelta(seconds=view.step_s), {point.at: point for point in view.history}
    times = [view.start + n * step for n in range(int((view.end - view.start) / step))]
    # of the latest minute nobody knows yet; what is known to have been quiet is a zero
    known = view.end - timedelta(minutes=1) - GRACE if view.range is Range.HOUR else view.end
    points = [found.get(at) for at in times]

    def counts(name: str) -> list[Value]:
        return [_count(point, name, at < known) for at, point in zip(times, points, strict=True)]

    def seconds(name: str) -> list[Value]:
        return [getattr(point, name) if point else None for point in points]

    per = STEPS[view.range]
    both = ("median", "p50_s"), ("95th percentile", "p95_s")

    def drawn(name: str, title: str, about: str, lines: list[tuple[str, list[Value]]], *, seconds: bool) -> Plot:
        return plot(name, title, about, times, lines, step, seconds=seconds)

    return [
        drawn(
            "throughput",
            f"Studies per {per}",
            "How many came, how many were answered, how many were set aside.",
            [(name, counts(name)) for name in ("received", "analysed", "failed")],
            seconds=False,
        ),
        drawn(
            "waits",
            "Wait for an answer",
            "From the queue to the answer, of urgent and routine studies; of the 95th percentile the worst minute.",
            [(words, seconds(f"wait_{name}")) for words, name in both],
            seconds=True,
        ),
        drawn(
            "work",
            "Time in the worker",
            "From the claim to the answer, decoding and model included.",
            [(words, seconds(f"work_{name}")) for words, name in both],
            seconds=True,
        ),
        drawn(
            "queue",
            "Studies waiting",
            "The most that waited at the end of a minute; gaps are times at which nobody looked.",
            [(name, counts(name)) for name in ("urgent", "routine", "backlog")],
            seconds=False,
        ),
    ]


def _count(point: Point | None, name: str, known: bool) -> Value:  # noqa: FBT001 - of a pair
    if point is None:
        return 0.0 if known else None
    if name in ("urgent", "routine", "backlog"):
        looked = any(value is not None for value in (point.urgent, point.routine, point.backlog))
        return float(getattr(point, name) or 0) if looked else None
    return float(getattr(point, name))


def size(count: int) -> str:
    """Bytes in three digits, as "1.25 GB"."""
    value, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.3g}\N{NO-BREAK SPACE}{units[0]}" if value < 1000 else f"{value:,.0f}\N{NO-BREAK SPACE}{units[0]}"
