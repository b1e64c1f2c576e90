"""GET and PUT /api/v1/turnaround-targets: how long studies may wait for their reader, as a site chooses."""

from fastapi import HTTPException
from sqlalchemy.orm import Session

from api.dependencies import Admin, PartsDep, SessionDep
from api.requests import API, Router
from api.schemas import TurnaroundTargetsChoice, TurnaroundTargetsView
from shared.domain.study import Priority
from shared.domain.worklist import HARD_MAXIMUM, TURNAROUND_TARGETS, longest_wait, target_errors
from shared.queries.access import Key
from shared.queries.turnaround import choose_targets, chosen_by, targets_of, update_due_times

router = Router(prefix=API, tags=["administer"])


@router.get("/turnaround-targets")
def targets(key: Admin, session: SessionDep) -> TurnaroundTargetsView:
    """Get the table in force: minutes by class and priority."""
    return _view(session, key, None)


@router.put("/turnaround-targets")
def choose(parts: PartsDep, key: Admin, body: TurnaroundTargetsChoice) -> TurnaroundTargetsView:
    """Give your site another table. Every unread study moves to its new place; `moved` says how many did.

    422 for a table in which a graver or more urgent study would wait longer, or any study too long; the response says
    which.
    """
    if errors := target_errors(body.minutes):
        raise HTTPException(422, "; ".join(errors))
    with parts.database.transaction() as session:
        choose_targets(session, key, body.minutes)
    moved = 0
    while True:
        with parts.database.transaction() as session:
            now = update_due_times(session, key.site_id)
        moved += now
        if not now:
            break
    with parts.database.transaction() as session:
        return _view(session, key, moved)


def _view(session: Session, key: Key, moved: int | None) -> TurnaroundTargetsView:
    table = targets_of(session, [key.site_id])[key.site_id]
    name, at = chosen_by(session, key.site_id) or (None, None)
    return TurnaroundTargetsView(
        minutes={row: dict(table[row]) for row in TURNAROUND_TARGETS},
        classes=list(TURNAROUND_TARGETS),
        priorities=list(Priority),
        longest_minutes=int(longest_wait(table).total_seconds() // 60),
        most_minutes=int(HARD_MAXIMUM.total_seconds() // 60),
        chosen_by=name,
        chosen_at=at,
        moved=moved,
    )
