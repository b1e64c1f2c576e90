"""GET /api/v1/backfill-runs: what runs over history do and did, when they will be through, and what changed."""

from typing import Annotated

from fastapi import Path
from sqlalchemy.orm import Session

from api.dependencies import AdminOrOperator, PartsDep
from api.models.schemas import RevisedFindingView, RunReport, RunView
from api.requests import API, Day, Router
from shared.db.clock import db_now
from shared.domain.security import Role
from shared.queries import backfill_reports, revised
from shared.queries.models import thresholds

router = Router(prefix=API, tags=["administer"])


@router.get("/backfill-runs")
def runs(parts: PartsDep, _key: AdminOrOperator) -> list[RunView]:
    """The latest backfill and shadow runs, newest first; those under way with a forecast."""
    with parts.database.transaction() as session:
        return run_views(session)


def run_views(session: Session) -> list[RunView]:
    """The response of GET /api/v1/backfill-runs, which the page uses too."""
    now = db_now(session)
    return [RunView.of(run, backfill_reports.forecast_of(session, run, now)) for run in backfill_reports.runs(session)]


@router.get("/backfill-runs/{day}")
def backfill_report(
    day: Annotated[Day, Path(description="the `day` of a run, as GET /api/v1/backfill-runs lists it")],
    parts: PartsDep,
    key: AdminOrOperator,
) -> RunReport:
    """A backfill run's report: counts over all sites, and the studies of this site that turned positive.

    Studies are named to those who may see them: an operator gets the counts.
    """
    with parts.database.transaction() as session:
        run = backfill_reports.run_of_day(session, day)
        report = dict(run.report or backfill_reports.report(session, run.id))
        abstained = backfill_reports.keep_studies_of_site(session, key.site_id, report.pop("from_abstained_studies"))
        found = revised.of_run(session, key.site_id, run.id, backfill_reports.MAX_NAMED)
        if not key.may(Role.RADIOLOGIST):
            abstained, found = [], []
        points = thresholds(session, {name for row in found for name in (row.old_bundle, row.new_bundle)})
        view = RunView.of(run, backfill_reports.forecast_of(session, run, db_now(session)))
    revised_findings = [RevisedFindingView.of(row, points) for row in found]
    return RunReport(
        run=view, revised_findings=revised_findings, alerts=revised_findings, from_abstained_studies=abstained, **report
    )
