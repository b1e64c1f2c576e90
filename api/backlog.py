"""GET /backlog: what the nightly runs did."""

from fastapi import APIRouter

from api.dependencies import Admin, PartsDep
from api.responses import BacklogRunView
from shared.repository.nights import nights

router = APIRouter(tags=["administer"])


@router.get("/backlog")
def backlog(parts: PartsDep, _key: Admin) -> list[BacklogRunView]:
    """The latest nightly runs, newest first."""
    with parts.database.transaction() as session:
        runs = nights(session)
    return [
        BacklogRunView(
            night=run.night.isoformat(),
            started_at=run.started_at,
            finished_at=run.finished_at,
            failed=run.failed,
            stranded=run.stranded,
            outdated=run.outdated,
            bundle=run.bundle,
        )
        for run in runs
    ]
