"""The nightly run over what was left behind."""

from dataclasses import dataclass
from datetime import date, datetime
from uuid import UUID
from zoneinfo import ZoneInfo


@dataclass(frozen=True)
class BacklogRun:
    """One night's run; there is at most one a night."""

    id: UUID
    night: date  # in the hospital's time zone
    started_at: datetime
    finished_at: datetime | None
    failed: int  # quarantined studies tried once more
    stranded: int  # studies that waited without a message in any queue
    outdated: int  # studies whose findings come from an older bundle
    bundle: str


def night_of(now: datetime, timezone: str) -> date:
    """The date that a nightly run started at `now` belongs to. Raises ValueError for a naive time."""
    if now.tzinfo is None:
        raise ValueError("now must carry a time zone")
    return now.astimezone(ZoneInfo(timezone)).date()
