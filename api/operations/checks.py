"""GET, POST /api/v1/checks: the daily check, how it ended, and one at once."""

from datetime import datetime, timedelta
from typing import Annotated, Any
from uuid import UUID

from fastapi import Path, Query
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.orm import Session

from api.dependencies import AdminOrOperator, Operator, Parts, PartsDep, SessionDep
from api.reasons import check_words
from api.requests import API, Router
from api.schemas import RowView
from shared.db.clock import db_now
from shared.db.tables import CheckRow
from shared.domain.checks import CheckReason, CheckState, CheckStep
from shared.errors import InvalidState
from shared.queries import checks
from shared.queries.checks import MAX_LISTED
from shared.queries.models import any_active_before

router = Router(prefix=API, tags=["administer"])
CheckId = Annotated[UUID, Path(description="of a check, as GET /api/v1/checks lists it")]
LATE = timedelta(hours=26)  # a day, and what a check may take
OFF = {"description": "the daily check is off (OSTEON_DAILY_CHECK)"}
EXAMPLE: dict[str, Any] = {
    "id": "7d5c1f4e-3a44-4a53-9c8f-0f3b8a6f0b11", "state": "well", "scheduled": True,
    "asked_at": "2026-11-30T05:00:01Z", "started_at": "2026-11-30T05:00:01Z", "ended_at": "2026-11-30T05:00:14Z",
    "steps": [{"step": "tidied", "seconds": 0.02}, {"step": "sent", "seconds": 0.21}], "step": "deleted",
    "reason": None, "detail": "", "model": "second-look", "engine": "CPU, OpenVINO bf16", "learned": False,
    "probability_deviation": 0.0, "heatmap_deviation": 0,
}  # fmt: skip


class CheckStepView(BaseModel):
    """A step that is done."""

    step: CheckStep = Field(description="which, a code")
    seconds: float = Field(description="that it took")


class CheckView(RowView):
    """A daily check: a reference study that goes through the whole system, and is deleted."""

    model_config = ConfigDict(from_attributes=True, json_schema_extra={"example": EXAMPLE})

    id: UUID = Field(description="of the check")
    state: CheckState = Field(description="where it stands, or how it ended")
    scheduled: bool = Field(description="whether it is the day's; otherwise somebody asked for it")
    asked_at: datetime = Field(description="when it was asked for, or due")
    started_at: datetime | None = Field(description="when it began; null: it waits")
    ended_at: datetime | None = Field(description="when it ended; null: it has not")
    steps: list[CheckStepView] = Field(description="what is done, in order")
    step: CheckStep | None = Field(description="in which it is, or ended; null: it waits")
    reason: CheckReason | None = Field(description="why it did not end well, a code; null: it did, or has not ended")
    detail: str = Field(description="the reason as a sentence; empty: there is none")
    model: str = Field(description="name of the bundle that found what was compared; empty: it did not come so far")
    engine: str = Field(description="what the workers computed with; empty: it did not come so far")
    learned: bool = Field(
        description="what it found is expected from now on: nothing was known of this model on this engine, or "
        "somebody accepted it"
    )
    probability_deviation: float | None = Field(
        description="greatest difference of a probability from the expected one; null: nothing was compared"
    )
    heatmap_deviation: int | None = Field(
        description="greatest difference of a heatmap's cell, of 255 levels; null: nothing was compared"
    )


class CheckRequest(BaseModel):
    """A check that is wanted now."""

    model_config = ConfigDict(json_schema_extra={"example": {"accept": False}})

    accept: bool = Field(
        default=False, strict=True,
        description="expect what it finds from now on, of this model on this engine, whatever was expected before",
    )  # fmt: skip


@router.get("/checks")
def listed(
    key: AdminOrOperator,  # noqa: ARG001 - it may
    session: SessionDep,
    limit: Annotated[int, Query(ge=1, le=MAX_LISTED, description="checks to list")] = 30,
) -> list[CheckView]:
    """List the last checks, the latest first."""
    return [check_view(row) for row in checks.list_latest(session, limit)]


@router.get("/checks/{check_id}")
def one(check_id: CheckId, key: AdminOrOperator, session: SessionDep) -> CheckView:  # noqa: ARG001 - it may
    """Get one check, as far as it is. 404 if there is none."""
    return check_view(checks.get_check(session, check_id))


@router.post("/checks", status_code=202, responses={409: OFF})
def ask(parts: PartsDep, key: Operator, session: SessionDep, body: CheckRequest) -> CheckView:
    """Have the system checked now. Where a check waits or runs already, that one is returned.

    The process of the check takes it within seconds. GET /api/v1/checks/{check_id} says how far it is.
    """
    if not parts.settings.daily_check:
        raise InvalidState("The daily check is off: set OSTEON_DAILY_CHECK=true, and restart Osteon", "check-off")
    return check_view(checks.ask(session, key, accept=body.accept))


def check_view(row: CheckRow) -> CheckView:
    """A check with its reason in words."""
    reason = CheckReason(row.reason) if row.reason else None
    words = check_words(reason, row.reason_detail)
    return CheckView.of_row(row, step=row.step or None, reason=reason, detail=words)


def last_view(parts: Parts, session: Session) -> CheckView | None:
    """The check that ended last, for the overview.

    Args:
        parts: of this application.
        session: the caller's transaction.

    Returns:
        It; None: none has, or the check is off.
    """
    row = checks.last_ended(session) if parts.settings.daily_check else None
    return check_view(row) if row else None


def check_troubles(parts: Parts, session: Session, last: CheckView | None) -> list[str]:
    """What an administrator should know of the daily check.

    Args:
        parts: of this application.
        session: the caller's transaction.
        last: as `last_view` gave it.

    Returns:
        Sentences; none where it ended well and in time.
    """
    if not parts.settings.daily_check:
        return []
    troubles = []
    if last and last.state is CheckState.DRIFTED:
        troubles.append(
            f"The daily check found other findings than {last.model} is expected to have: {last.detail} Look what has "
            "changed on the workers' hosts; osteon check --accept takes the new ones as right."
        )
    elif last and last.state is CheckState.BROKEN:
        troubles.append(f"The daily check broke at the step {last.step}: {last.detail} osteon check makes it again.")
    elif last and last.state is CheckState.BEHIND:
        troubles.append(f"The daily check could not be made in time: {last.detail}")
    since = db_now(session) - LATE
    if (last is None or (last.ended_at or since) <= since) and any_active_before(session, since):
        troubles.append("The daily check has not run for over 26 hours: look whether its process runs (check).")
    return troubles
