"""Analysing again what was left behind: runs, reruns, and forecasts."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from shared.domain.findings import Assessment

POSITIVE = (Assessment.UNCLEAR, Assessment.POSITIVE)


class RunPurpose(StrEnum):
    """What a run over history is for."""

    BACKFILL = "backfill"
    SHADOW = "shadow"


class RunEnd(StrEnum):
    """Why a run over history ended."""

    NEXT_RUN = "next-run"  # the next run began
    RETIRED = "retired"  # its shadow bundle was
    OTHER_BUNDLE = "other-bundle"  # another bundle became active
    PROMOTED = "promoted"  # its shadow bundle became the active one
    WINDOW_CLOSED = "window-closed"
    HISTORY_ENDED = "history-ended"  # nothing is left to look at
    COUNT_REACHED = "count-reached"  # it chose as many studies as it may
    OTHER = "other"  # an earlier version's words, which this one does not know


class Stage(StrEnum):
    """How far a run is."""

    LEFTOVERS = "leftovers"  # failed and stranded studies come first
    HISTORY = "history"  # then history, from the cursor on
    EXHAUSTED = "exhausted"  # history came to its end


@dataclass(frozen=True)
class BackfillRun:
    """One run over history: a backfill run, of which there is at most one a day, or a shadow bundle's."""

    id: UUID
    day: date | None  # in the hospital's time zone; None for a shadow run
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
    ended_by: RunEnd | None  # None while it runs
    report: Mapping[str, Any] | None  # see `backfill_reports.report`; None while it runs


@dataclass(frozen=True)
class Forecast:
    """When a run will be finished, judged by its pace so far."""

    done: int
    left: int
    at_least: bool  # more are left than were counted
    per_hour: float | None  # None before the first is done
    finish_at: datetime | None  # None: not in this window, or not known yet; at the earliest, if more may be left
    windows: int | None  # windows that are still needed, this one included; None: not known, or there is no window

    def words(self) -> str:
        """For people."""
        left = f"{self.left}{' or more' if self.at_least else ''} left"
        if not self.left:
            return f"{self.done} done, nothing left"
        if self.per_hour is None:
            return f"{left}; too early to say when"
        if self.finish_at is not None and self.at_least:
            return f"{self.done} done, {left}; not finished before {self.finish_at:%Y-%m-%d %H:%M} UTC"
        if self.finish_at is not None:
            return f"{self.done} done, {left}; finished by {self.finish_at:%Y-%m-%d %H:%M} UTC"
        windows = f"{self.windows} windows{' or more' * self.at_least}"
        return f"{self.done} done, {left}; will not finish in this window; needs {windows}"


def forecast(
    run: BackfillRun, now: datetime, done: int, this_window: int, studies_left: int, *, at_least: bool = False
) -> Forecast:
    """Forecast when a run will be finished, by its pace so far.

    Args:
        run: the run.
        now: the present time, with a time zone.
        done: studies finished so far.
        this_window: of the studies that are left, how many this run may still choose.
        studies_left: how many studies are left.
        at_least: whether more than `studies_left` may be left, because counting stopped there.

    Returns:
        The forecast.
    """
    elapsed = (now - run.started_at).total_seconds()
    pace = done / elapsed if done and elapsed > 0 else None  # studies a second
    if pace is None or not studies_left:
        return Forecast(done, studies_left, at_least, pace and pace * 3600, None, None)
    finish_at = now + timedelta(seconds=min(studies_left / pace, 1e9))
    if run.ends_at is None:
        return Forecast(done, studies_left, at_least, pace * 3600, finish_at, None)
    window = (run.ends_at - run.started_at).total_seconds()
    studies_in_window = min(this_window, max(0, math.floor(pace * (run.ends_at - now).total_seconds())))
    if studies_in_window >= studies_left:
        return Forecast(done, studies_left, at_least, pace * 3600, finish_at, None if at_least else 1)
    a_window = max(1, min(math.floor(pace * window), run.most or studies_left))
    return Forecast(
        done, studies_left, at_least, pace * 3600, None, 1 + math.ceil((studies_left - studies_in_window) / a_window)
    )


def newly_positive(old: str | None, new: str | None) -> bool:
    """Check whether a bundle found something where the one before said "negative".

    Only "negative" counts: nobody may have looked at the study since. An abstention was no assessment, so a positive
    finding after it contradicts nothing; the report lists it apart.

    Args:
        old: the old bundle's assessment; None if it has none.
        new: the new bundle's assessment; None if it has none.

    Returns:
        Whether it went from "negative" to "unclear" or "positive".
    """
    return old == Assessment.NEGATIVE and new in POSITIVE


def day_of(now: datetime, timezone: str) -> date:
    """Find the date that a backfill run belongs to.

    Args:
        now: when the run started, with a time zone.
        timezone: the hospital's, as in the IANA database.

    Returns:
        The date in the hospital.

    Raises:
        ValueError: `now` has no time zone.
    """
    if now.tzinfo is None:
        raise ValueError("now must carry a time zone")
    return now.astimezone(ZoneInfo(timezone)).date()


def window_began(now: datetime, timezone: str, hour: int) -> datetime:
    """Find when the latest window began.

    Args:
        now: the present time, with a time zone.
        timezone: the hospital's, as in the IANA database.
        hour: when windows begin, 0 to 23, on the hospital's clock.

    Returns:
        The time in UTC, not after `now`.

    Raises:
        ValueError: `now` has no time zone.
    """
    today, zone = day_of(now, timezone), ZoneInfo(timezone)
    # in UTC: within a zone times are compared by the wall, which jumps twice a year
    begins = datetime.combine(today, time(hour), zone).astimezone(UTC)
    return begins if begins <= now else datetime.combine(today - timedelta(days=1), time(hour), zone).astimezone(UTC)
