"""The states of an analysis, and which date a run belongs to."""

import itertools
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta, timezone

import pytest

from shared.domain.analysis import OPEN, AnalysisState, Purpose, may_move
from shared.domain.backfill import day_of

S, P = AnalysisState, Purpose
ENDS = {S.DONE, S.FAILED}
OWN = {  # where a study's own analysis may go
    S.QUEUED: {S.QUEUED, S.RUNNING, *ENDS},
    S.RUNNING: {S.QUEUED, S.RUNNING, S.RETRYING, *ENDS},
    S.RETRYING: {S.QUEUED, S.RUNNING, *ENDS},
}
RERUN = {state: after | {S.PAUSED, S.SUPERSEDED} for state, after in OWN.items()} | {
    S.PAUSED: {S.QUEUED, S.SUPERSEDED}, S.DONE: {S.QUEUED}, S.FAILED: {S.QUEUED}, S.SUPERSEDED: {S.QUEUED},
}  # fmt: skip


@pytest.mark.parametrize("purpose", list(P))
def test_an_analysis_goes_only_the_ways_of_the_table(purpose: Purpose) -> None:
    """Exactly these steps are allowed; a study's own analysis ends once, a rerun may be asked for again."""
    allowed: dict[AnalysisState, set[AnalysisState]] = OWN if purpose is P.FIRST else RERUN
    for now, then in itertools.product(S, S):
        assert may_move(purpose, now, then) == (then in allowed.get(now, set())), (now, then)


def test_no_open_state_is_a_dead_end() -> None:
    """From every open state an analysis can still come to be done, for nothing accepted is ever lost."""
    for purpose in P:
        for start in OPEN:
            found, ahead = {start}, [start]
            while ahead:
                now = ahead.pop()
                for state in [then for then in S if may_move(purpose, now, then) and then not in found]:
                    found.add(state)
                    ahead.append(state)
            assert S.DONE in found


def hours_of(day: date) -> Iterator[datetime]:
    for hour in range(24):
        yield datetime(day.year, day.month, day.day, hour, 30, tzinfo=UTC)


def test_a_run_belongs_to_a_date_of_the_hospital() -> None:
    """Two in the morning in Tokyo and the same moment in UTC are one date: that of the hospital's calendar."""
    moment = datetime(2026, 3, 1, 17, 0, tzinfo=UTC)  # 2 March, 02:00 in Tokyo
    assert day_of(moment, "Asia/Tokyo") == date(2026, 3, 2)
    assert day_of(moment, "UTC") == date(2026, 3, 1)
    assert day_of(moment.astimezone(timezone(timedelta(hours=-9))), "Asia/Tokyo") == date(2026, 3, 2)


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Pacific/Auckland"])
def test_a_utc_day_belongs_to_two_dates_at_most_and_dates_only_move_on(zone: str) -> None:
    """Whatever the zone, also where clocks change, later moments never belong to an earlier date."""
    days = [date(2026, 3, 28) + timedelta(days=offset) for offset in range(3)]
    dates = [day_of(moment, zone) for day in days for moment in hours_of(day)]
    assert dates == sorted(dates)
    assert len(set(dates)) in (3, 4)


def test_a_naive_time_has_no_date() -> None:
    """A time without a zone is refused rather than guessed at."""
    with pytest.raises(ValueError, match="time zone"):
        day_of(datetime(2026, 3, 1, 2), "UTC")  # noqa: DTZ001 - the point
