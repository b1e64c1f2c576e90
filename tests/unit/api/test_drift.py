"""Intervals and the drift chart: when they alarm, and when they must not."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.feedback.drift import (
    BASELINE_VERDICTS,
    LIMIT,
    MIN_VERDICTS,
    VERDICTS_PER_FALSE_ALARM,
    cusum,
    cusum_chart,
    wilson,
)

VERDICTS = st.lists(st.booleans(), max_size=400)


@given(st.integers(0, 500), st.integers(0, 500))
def test_interval_holds_its_share(hits: int, others: int) -> None:
    """The interval lies in 0..1 and around the share, and mirrors when hits and misses change places."""
    rate, mirrored = wilson(hits, hits + others), wilson(others, hits + others)
    assert 0 <= rate.low <= rate.high <= 1
    if rate.share is not None:
        assert rate.low <= rate.share <= rate.high
        assert math.isclose(rate.low, 1 - mirrored.high, abs_tol=1e-12)


def test_interval_is_wilsons() -> None:
    """Figures of Brown, Cai and DasGupta's kind of table: 0 of 10, and 8 of 10."""
    assert (wilson(0, 10).low, round(wilson(0, 10).high, 4)) == (0, 0.2775)
    assert [round(value, 4) for value in (wilson(8, 10).low, wilson(8, 10).high)] == [0.4902, 0.9433]


@pytest.mark.parametrize("rate", [0.05, 0.5, 0.9])
def test_interval_covers(rate: float) -> None:
    """Of many samples of 60, the interval holds the true rate in about 95 %."""
    rng = random.Random(5)
    held = 0
    for _ in range(2000):
        found = wilson(sum(rng.random() < rate for _ in range(60)), 60)
        held += found.low <= rate <= found.high
    assert 0.93 <= held / 2000 <= 0.985


def test_more_hits_than_cases_is_refused() -> None:
    """A share above 1 is a bug of the caller, not a number."""
    with pytest.raises(ValueError, match="3 of 2"):
        wilson(3, 2)


@pytest.mark.parametrize("rate", [0.03, 0.1, 0.3, 0.6])
def test_false_alarms_stay_under_their_nominal_rate(rate: float) -> None:
    """At exactly the expected rate, runs of n verdicts alarm in at most n / VERDICTS_PER_FALSE_ALARM of all cases."""
    rng, length, runs = random.Random(11), 400, 500
    alarms = 0
    for _ in range(runs):
        values, _ = cusum([rng.random() < rate for _ in range(length)], rate)
        alarms += max(values) >= LIMIT
    assert alarms / runs <= length / VERDICTS_PER_FALSE_ALARM


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.3])
def test_constant_rates_rarely_alarm_though_the_rate_is_learned(rate: float) -> None:
    """With the expected rate learned from the first verdicts, 500 further ones alarm in fewer than one run of ten."""
    rng = random.Random(13)
    alarms = sum(
        cusum_chart([rng.random() >= rate for _ in range(BASELINE_VERDICTS + 500)]).alarm_at is not None
        for _ in range(300)
    )
    assert alarms / 300 < 0.1


@pytest.mark.parametrize(("before", "after", "within"), [(0.05, 0.4, 60), (0.1, 0.4, 120), (0.2, 0.6, 100)])
def test_a_real_shift_alarms_soon(before: float, after: float, within: int) -> None:
    """When readers begin to disagree far more often, nearly every run alarms within that many verdicts."""
    rng = random.Random(17)
    caught = 0
    for _ in range(200):
        steady = [rng.random() >= before for _ in range(BASELINE_VERDICTS + 100)]
        caught += cusum_chart(steady + [rng.random() >= after for _ in range(within)]).alarm_at is not None
    assert caught / 200 >= 0.9


@given(VERDICTS)
def test_more_disagreement_never_lowers_the_chart(agrees: list[bool]) -> None:
    """Turning one later agreement into a disagreement moves no value down."""
    changed = list(agrees)
    for place in range(len(changed) - 1, BASELINE_VERDICTS - 1, -1):
        if changed[place]:
            changed[place] = False
            break
    assert all(new >= old for old, new in zip(cusum_chart(agrees).values, cusum_chart(changed).values, strict=True))


@given(st.lists(st.booleans(), min_size=BASELINE_VERDICTS, max_size=BASELINE_VERDICTS), VERDICTS, st.randoms())
def test_order_among_the_first_verdicts_does_not_matter(
    first: list[bool], rest: list[bool], rng: random.Random
) -> None:
    """The first verdicts only tell a rate; later ones are a course, in which the order is the point."""
    shuffled = list(first)
    rng.shuffle(shuffled)
    assert cusum_chart(first + rest) == cusum_chart(shuffled + rest)


@given(VERDICTS)
def test_a_chart_of_few_verdicts_says_nothing(agrees: list[bool]) -> None:
    """There is no value before the first verdicts are in, and none outside 0..LIMIT afterwards."""
    made = cusum_chart(agrees)
    assert made.enough == (len(agrees) >= BASELINE_VERDICTS + MIN_VERDICTS)
    assert len(made.values) == max(0, len(agrees) - BASELINE_VERDICTS)
    assert (made.expected is None) == (len(agrees) < BASELINE_VERDICTS)
    assert all(0 <= value <= LIMIT for value in made.values)


def test_an_alarm_ends_when_readers_agree_again() -> None:
    """The alarm holds while disagreement lasts and ends once the chart is back at 0."""
    good, bad = [True] * 200, [False] * 60
    assert cusum_chart(good + bad).alarm_at is not None
    assert cusum_chart(good + bad + [True] * 5).alarm_at == cusum_chart(good + bad).alarm_at
    assert cusum_chart(good + bad + [True] * 400).alarm_at is None
