"""Looking again at what was left behind: runs, second looks, and what a night says of itself."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from shared.findings import Assessment

POSITIVE = (Assessment.UNCLEAR, Assessment.POSITIVE)


class Purpose(StrEnum):
    """Why a run chose a study."""

    FAILED = "failed"  # quarantined by something that may have healed: tried once more
    STRANDED = "stranded"  # waited long without a message in any queue
    OUTDATED = "outdated"  # an older bundle speaks for it; the new findings replace the summary
    SHADOW = "shadow"  # another bundle looks, and nobody is shown what it found


class LookState(StrEnum):
    """Where a second look stands."""

    QUEUED = "queued"  # a message is out, or will be
    RUNNING = "running"  # a worker holds a lease on it
    HELD = "held"  # taken back when its window closed; the next night goes on with it
    DONE = "done"
    FAILED = "failed"
    OVERTAKEN = "overtaken"  # something newer made it needless: a late image, another bundle


class Stage(StrEnum):
    """How far a run is."""

    LEFTOVERS = "leftovers"  # failed and stranded studies come first
    HISTORY = "history"  # then history, from the cursor on
    EXHAUSTED = "exhausted"  # history came to its end


@dataclass(frozen=True)
class BacklogRun:
    """One run over history: a night's, of which there is at most one a night, or a shadow bundle's."""

    id: UUID
    night: date | None  # in the hospital's time zone; None for a shadow run
    started_at: datetime
    ends_at: datetime | None  # nothing is sent from then on; None: no window
    finished_at: datetime | None
    failed: int  # quarantined studies tried once more
    stranded: int  # studies that waited without a message in any queue
    outdated: int  # studies whose findings come from another bundle
    switched: int  # of these: the bundle had looked at them before, so that no image was decoded
    most: int | None  # studies that it may choose, those that are merely switched apart
    bundle: str
    stage: Stage
    ended_by: str  # why it ended, in words
    report: Mapping[str, Any] | None  # see `nights.report`; None while it runs


@dataclass(frozen=True)
class Forecast:
    """When a run will be through, judged by its pace so far."""

    done: int
    left: int
    at_least: bool  # more are left than were counted
    per_hour: float | None  # None before the first is done
    finish_at: datetime | None  # None: not in this window, or not known yet; at the earliest, if more may be left
    nights: int | None  # windows that are still needed, this one included; None: not known, or there is no window

    def words(self) -> str:
        """For people."""
        left = f"{self.left}{' or more' if self.at_least else ''} left"
        if not self.left:
            return f"{self.done} done, nothing left"
        if self.per_hour is None:
            return f"{left}; too early to say when"
        if self.finish_at is not None and self.at_least:
            return f"{self.done} done, {left}; not through before {self.finish_at:%Y-%m-%d %H:%M} UTC"
        if self.finish_at is not None:
            return f"{self.done} done, {left}; through by {self.finish_at:%Y-%m-%d %H:%M} UTC"
        return f"{self.done} done, {left}; will not finish tonight: {self.nights} nights{' or more' * self.at_least}"


def forecast(run: BacklogRun, now: datetime, done: int, tonight: int, left: int, *, at_least: bool = False) -> Forecast:
    """done: studies finished so far; tonight: of those left, how many this run may still choose; left: all of them.

    at_least: left was not counted to its end.
    """
    elapsed = (now - run.started_at).total_seconds()
    pace = done / elapsed if done and elapsed > 0 else None  # studies a second
    if pace is None or not left:
        return Forecast(done, left, at_least, pace and pace * 3600, None, None)
    finish_at = now + timedelta(seconds=min(left / pace, 1e9))
    if run.ends_at is None:
        return Forecast(done, left, at_least, pace * 3600, finish_at, None)
    window = (run.ends_at - run.started_at).total_seconds()
    here = min(tonight, max(0, math.floor(pace * (run.ends_at - now).total_seconds())))
    if here >= left:
        return Forecast(done, left, at_least, pace * 3600, finish_at, None if at_least else 1)
    a_night = max(1, min(math.floor(pace * window), run.most or left))
    return Forecast(done, left, at_least, pace * 3600, None, 1 + math.ceil((left - here) / a_night))


def newly_positive(old: str | None, new: str | None) -> bool:
    """Whether the old bundle said "negative" and the new one says "unclear" or "positive".

    Both words count: what the old bundle called negative nobody may have looked at since. An abstention was no answer,
    so that it turns positive contradicts nobody; the report lists it apart.
    """
    return old == Assessment.NEGATIVE and new in POSITIVE


def night_of(now: datetime, timezone: str) -> date:
    """The date that a nightly run started at `now` belongs to. Raises ValueError for a naive time."""
    if now.tzinfo is None:
        raise ValueError("now must carry a time zone")
    return now.astimezone(ZoneInfo(timezone)).date()


def night_began(now: datetime, timezone: str, hour: int) -> datetime:
    """When the latest night began, by its hour on the wall; in UTC. Raises ValueError for a naive time."""
    today, zone = night_of(now, timezone), ZoneInfo(timezone)
    # in UTC: within a zone times are compared by the wall, which jumps twice a year
    begins = datetime.combine(today, time(hour), zone).astimezone(UTC)
    return begins if begins <= now else datetime.combine(today - timedelta(days=1), time(hour), zone).astimezone(UTC)
