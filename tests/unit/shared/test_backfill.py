"""What a run says of itself."""

from datetime import UTC, date, datetime, timedelta
from uuid import uuid4

from hypothesis import given
from hypothesis import strategies as st

from shared.domain.backfill import BackfillRun, Stage, forecast, newly_positive, window_began
from shared.domain.findings import Assessment

TWO = datetime(2026, 3, 2, 2, tzinfo=UTC)
HOUR = timedelta(hours=1)


def run(most: int | None = 5000, hours: int | None = 4) -> BackfillRun:
    ends_at = None if hours is None else TWO + hours * HOUR
    day = None if hours is None else date(2026, 3, 2)
    return BackfillRun(uuid4(), day, TWO, ends_at, None, 0, 0, 0, 0, most, "b", Stage.HISTORY, None, None)


def test_a_forecast_says_when() -> None:
    """By the pace so far: within the window an hour, beyond it the number of windows."""
    told = forecast(run(), TWO + HOUR, done=100, this_window=200, studies_left=200)
    assert (told.per_hour, told.finish_at, told.windows) == (100.0, TWO + 3 * HOUR, 1)
    assert told.words() == "100 done, 200 left; finished by 2026-03-02 05:00 UTC"
    told = forecast(run(), TWO + HOUR, done=100, this_window=900, studies_left=900)
    assert (told.finish_at, told.windows) == (None, 1 + 2)  # 300 this_window, then twice up to 400
    assert "will not finish in this window; needs 3 windows" in told.words()
    told = forecast(run(most=150), TWO + HOUR, done=100, this_window=50, studies_left=200)
    assert told.windows == 2, "the run's count ends it before its window does"


def test_a_forecast_is_honest_about_what_it_does_not_know() -> None:
    """Before the first is done, with nothing left, without a window, and where not all was counted."""
    assert "too early" in forecast(run(), TWO + HOUR, done=0, this_window=5, studies_left=5).words()
    assert forecast(run(), TWO + HOUR, done=7, this_window=0, studies_left=0).words() == "7 done, nothing left"
    shadow = forecast(run(None, None), TWO + HOUR, done=10, this_window=100, studies_left=100)
    assert (shadow.finish_at, shadow.windows) == (TWO + 11 * HOUR, None)
    many = forecast(run(), TWO + HOUR, done=10_000, this_window=4000, studies_left=10_000, at_least=True)
    assert (many.finish_at, "or more" in many.words()) == (None, True)
    some = forecast(run(), TWO + HOUR, done=10_000, this_window=10_000, studies_left=10_000, at_least=True)
    assert some.words() == "10000 done, 10000 or more left; not finished before 2026-03-02 04:00 UTC"


@given(
    done=st.integers(0, 10**6), this_window=st.integers(0, 10**6), more=st.integers(0, 10**6), minutes=st.integers(0, 300),
    most=st.none() | st.integers(0, 10**5), hours=st.none() | st.integers(1, 24), at_least=st.booleans(),
)  # fmt: skip
def test_a_forecast_always_has_words(
    done: int, this_window: int, more: int, minutes: int, most: int | None, hours: int | None, at_least: bool
) -> None:
    """Whatever the counts, there are words, no time in the past, and never fewer windows than one."""
    now = TWO + timedelta(minutes=minutes)
    told = forecast(run(most, hours), now, done, this_window, this_window + more, at_least=at_least)
    assert told.words()
    assert told.finish_at is None or told.finish_at >= now
    assert told.windows is None or told.windows >= 1


def test_what_counts_as_newly_positive() -> None:
    """Only negative that turned unclear or positive: an abstention was no assessment."""
    positive = {(old, new) for old in [*Assessment, None] for new in [*Assessment, None] if newly_positive(old, new)}
    assert positive == {(Assessment.NEGATIVE, Assessment.UNCLEAR), (Assessment.NEGATIVE, Assessment.POSITIVE)}


@given(minutes=st.integers(0, 2 * 365 * 24 * 60), hour=st.integers(0, 23))
def test_the_latest_window_began_within_a_day(minutes: int, hour: int) -> None:
    """Whatever the hour and the season, the latest window began at that hour, and at most a day ago (25 h in autumn)."""
    now = datetime(2025, 1, 2, tzinfo=UTC) + timedelta(minutes=minutes)
    for zone in ("UTC", "Europe/Berlin", "America/New_York"):
        assert timedelta(0) <= now - window_began(now, zone, hour) <= 25 * HOUR
    assert window_began(now, "UTC", hour).hour == hour


def test_a_window_may_begin_before_midnight() -> None:
    """At one o'clock a window that began at ten in the evening is yesterday's."""
    assert window_began(datetime(2026, 3, 2, 1, tzinfo=UTC), "UTC", 22) == datetime(2026, 3, 1, 22, tzinfo=UTC)
