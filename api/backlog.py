"""GET /backlog: what runs over history do and did, when they will be through, and what changed."""

from datetime import date

from fastapi import APIRouter
from sqlalchemy.orm import Session

from api.dependencies import Admin, PartsDep
from api.retrospect import AlertView, RunReport, RunView
from shared.repository import alerts, reports, work
from shared.repository.bundles import thresholds

router = APIRouter(tags=["administer"])


@router.get("/backlog")
def backlog(parts: PartsDep, _key: Admin) -> list[RunView]:
    """The latest nightly and shadow runs, newest first; those under way with a forecast."""
    with parts.database.transaction() as session:
        return run_views(session)


def run_views(session: Session) -> list[RunView]:
    """What GET /backlog answers; the page shows the same."""
    now = work.clock(session)
    return [RunView.of(run, reports.forecast_of(session, run, now)) for run in reports.runs(session)]


@router.get("/backlog/{night}")
def night_report(night: date, parts: PartsDep, key: Admin) -> RunReport:
    """A night's report: counts over all sites, and by name the studies of this site that turned positive."""
    with parts.database.transaction() as session:
        run = reports.night(session, night)
        told = dict(run.report or reports.report(session, run.id))
        abstained = reports.of_site(session, key.site_id, told.pop("from_abstained_studies"))
        found = alerts.of_run(session, key.site_id, run.id, reports.NAMED)
        points = thresholds(session, {name for row in found for name in (row.old_bundle, row.new_bundle)})
        view = RunView.of(run, reports.forecast_of(session, run, work.clock(session)))
    return RunReport(
        run=view, alerts=[AlertView.of(row, points) for row in found], from_abstained_studies=abstained, **told
    )  # fmt: skip
