"""GET and PUT /allowances: how long studies may wait for their reader, as a site chooses."""

from fastapi import APIRouter, HTTPException

from api.dependencies import Admin, Parts, PartsDep
from api.responses import AllowancesChoice, AllowancesView
from shared.repository.access import Key
from shared.repository.allowances import allowances_of, choose_allowances, chosen_by, redue
from shared.study import Priority
from shared.worklist import ALLOWANCES, HARD_MAXIMUM, longest_wait, objections

router = APIRouter(tags=["administer"])


@router.get("/allowances")
def allowances(parts: PartsDep, key: Admin) -> AllowancesView:
    """The table in force: minutes by class and priority."""
    return _view(parts, key, None)


@router.put("/allowances")
def choose(parts: PartsDep, key: Admin, wanted: AllowancesChoice) -> AllowancesView:
    """Give your site another table. Every unread study moves to its new place; `moved` says how many did.

    422, in words, for a table in which somebody graver or more urgent would wait longer, or anybody too long.
    """
    if wrong := objections(wanted.minutes):
        raise HTTPException(422, "; ".join(wrong))
    with parts.database.transaction() as session:
        choose_allowances(session, key, wanted.minutes)
    moved = 0
    while True:
        with parts.database.transaction() as session:
            now = redue(session, key.site_id)
        moved += now
        if not now:
            return _view(parts, key, moved)


def _view(parts: Parts, key: Key, moved: int | None) -> AllowancesView:
    with parts.database.transaction() as session:
        table = allowances_of(session, [key.site_id])[key.site_id]
        name, at = chosen_by(session, key.site_id) or (None, None)
    return AllowancesView(
        minutes={row: dict(table[row]) for row in ALLOWANCES},
        classes=list(ALLOWANCES),
        priorities=list(Priority),
        longest_minutes=int(longest_wait(table).total_seconds() // 60),
        most_minutes=int(HARD_MAXIMUM.total_seconds() // 60),
        chosen_by=name,
        chosen_at=at,
        moved=moved,
    )
