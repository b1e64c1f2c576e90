"""A study's life, and which night a run belongs to."""

import itertools
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta, timezone

import pytest

from shared.backlog import night_of
from shared.study import TRANSITIONS, StudyStatus, may_become

S = StudyStatus
ALLOWED = {
    (S.QUEUED, S.RUNNING),
    (S.RUNNING, S.RUNNING),
    (S.RUNNING, S.QUEUED),
    (S.RUNNING, S.RETRYING),
    (S.RUNNING, S.ANALYSED),
    (S.RUNNING, S.QUARANTINED),
    (S.RETRYING, S.RUNNING),
    (S.RETRYING, S.QUEUED),
    (S.ANALYSED, S.QUEUED),
    (S.QUARANTINED, S.QUEUED),
}


@pytest.mark.parametrize(("now", "then"), list(itertools.product(S, S)), ids=str)
def test_a_study_goes_only_the_ways_of_its_life(now: S, then: S) -> None:
    """Exactly these ten steps are allowed, and each of the other fifteen is refused."""
    assert may_become(now, then) == ((now, then) in ALLOWED)


def reachable(start: S) -> set[S]:
    found, ahead = {start}, [start]
    while ahead:
        for status in TRANSITIONS[ahead.pop()] - found:
            found.add(status)
            ahead.append(status)
    return found


def test_no_state_is_a_dead_end() -> None:
    """From every state a study can still come to be analysed, for nothing accepted is ever lost."""
    assert all(S.ANALYSED in reachable(status) for status in S)


def hours_of(day: date) -> Iterator[datetime]:
    for hour in range(24):
        yield datetime(day.year, day.month, day.day, hour, 30, tzinfo=UTC)


def test_a_night_is_a_date_of_the_hospital() -> None:
    """Two in the morning in Tokyo and the same moment in UTC are one night: that of the hospital's calendar."""
    moment = datetime(2026, 3, 1, 17, 0, tzinfo=UTC)  # 2 March, 02:00 in Tokyo
    assert night_of(moment, "Asia/Tokyo") == date(2026, 3, 2)
    assert night_of(moment, "UTC") == date(2026, 3, 1)
    assert night_of(moment.astimezone(timezone(timedelta(hours=-9))), "Asia/Tokyo") == date(2026, 3, 2)


@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Pacific/Auckland"])
def test_a_day_belongs_to_two_nights_at_most_and_nights_only_move_on(zone: str) -> None:
    """Whatever the zone, also where clocks change, later moments never belong to an earlier night."""
    days = [date(2026, 3, 28) + timedelta(days=offset) for offset in range(3)]
    nights = [night_of(moment, zone) for day in days for moment in hours_of(day)]
    assert nights == sorted(nights)
    assert len(set(nights)) in (3, 4)


def test_a_naive_time_has_no_night() -> None:
    """A time without a zone is refused rather than guessed at."""
    with pytest.raises(ValueError, match="time zone"):
        night_of(datetime(2026, 3, 1, 2), "UTC")  # noqa: DTZ001 - the point
