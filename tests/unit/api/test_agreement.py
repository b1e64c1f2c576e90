"""Rates of agreement from invented verdicts."""

import random
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from api.feedback.agreement import agreement_rates, drift_charts
from api.pages.agreement import _course
from shared.queries.feedback import Judgement

MONDAY = datetime(2026, 3, 2, tzinfo=UTC)


def row(number: int, agrees: bool, **changes: Any) -> Judgement:
    values = {"answered_at": MONDAY + timedelta(hours=number), "fracture": None, "assessment": "positive", "region": "hand",
              "bundle": "a", "scanner": "AGFA DX"} | changes  # fmt: skip
    return Judgement(number=number, agrees=agrees, **values)


ROWS = st.lists(
    st.tuples(st.booleans(), st.sampled_from(["positive", "unclear", "negative", "abstained"]), st.sampled_from(["hand", "leg"]),
              st.sampled_from([None, "yes", "no", "unsure"])), max_size=60,
)  # fmt: skip


def rows_of(drawn: list[Any]) -> list[Judgement]:
    return [row(n, agrees, assessment=assessment, region=region, fracture=None if agrees else fracture)
            for n, (agrees, assessment, region, fracture) in enumerate(drawn, start=1)]  # fmt: skip


@given(ROWS, st.randoms())
def test_rates_do_not_depend_on_the_order_of_rows(drawn: list[Any], rng: random.Random) -> None:
    """Whatever order the database gives, rates and charts are the same: charts go by the entries' numbers."""
    rows = rows_of(drawn)
    shuffled = list(rows)
    rng.shuffle(shuffled)
    assert agreement_rates(shuffled, None, drift_charts(shuffled)) == agreement_rates(rows, None, drift_charts(rows))


@given(ROWS)
def test_every_split_adds_up(drawn: list[Any]) -> None:
    """Each way to divide the verdicts holds every verdict exactly once."""
    found = agreement_rates(rows_of(drawn), None, [])
    for split in (found.model, found.weeks, found.regions, found.bundles, found.scanners):
        assert (sum(rate.of for rate in split), sum(rate.hits for rate in split)) == (
            found.overall.of,
            found.overall.hits,
        )


@given(ROWS)
def test_courses_add_up_to_their_weeks(drawn: list[Any]) -> None:
    """Week by week, the regions' verdicts are all of that week's, and so are those of bundles and scanners."""
    found = agreement_rates(rows_of(drawn), None, [])
    for split in (found.regions, found.bundles, found.scanners):
        for place, week in enumerate(found.weeks):
            hits, of = (sum(rate.course[place][side] for rate in split) for side in (0, 1))
            assert (hits, of) == (week.hits, week.of)
        for rate in split:
            assert [sum(side) for side in zip(*rate.course, strict=True)] == [rate.hits, rate.of]


def test_a_course_has_gaps_where_no_verdict_came() -> None:
    """A region's rate of the first and third week, and nothing in between, for another region was read then."""
    week = timedelta(weeks=1)
    rows = [row(1, True), row(2, True, answered_at=MONDAY + week, region="leg"),
            row(3, False, answered_at=MONDAY + 2 * week), row(4, True, answered_at=MONDAY + 2 * week)]  # fmt: skip
    hand, leg = agreement_rates(rows, None, []).regions
    assert (hand.course, leg.course) == ([(1, 1), (0, 0), (1, 2)], [(0, 0), (1, 1), (0, 0)])
    path, dots = _course(hand)
    assert path == "M25.0 0.0M125.0 13.0"
    assert dots == [(25.0, 0.0, True), (125.0, 13.0, True)]


def test_what_readers_see_is_the_reference() -> None:
    """Sensitivity and specificity count what is known: who agrees, and who says what they see; never abstentions."""
    rows = [
        row(1, True), row(2, True), row(3, False, fracture="no"), row(4, True, assessment="negative"),
        row(5, False, assessment="negative", fracture="yes"), row(6, False, fracture="unsure"), row(7, False),
        row(8, True, assessment="abstained"),
    ]  # fmt: skip
    sensitivity, specificity = agreement_rates(rows, None, []).reference
    assert (sensitivity.hits, sensitivity.of) == (2, 3)
    assert (specificity.hits, specificity.of) == (1, 2)


def test_weeks_without_verdicts_are_there() -> None:
    """Time goes on where nobody verdicts: the list of weeks has no holes."""
    rows = [row(1, True), row(2, False, answered_at=MONDAY + timedelta(weeks=3, days=6))]
    assert [(week.name, week.of) for week in agreement_rates(rows, None, []).weeks] == [
        ("2026-03-02", 1), ("2026-03-09", 0), ("2026-03-16", 0), ("2026-03-23", 1),
    ]  # fmt: skip


def test_drift_is_each_bundles_and_regions_own() -> None:
    """A shift in one region alarms there, however many steady verdicts of another stand between."""
    bad = [row(2 * n, n < 120 and n % 10 > 0, region="leg") for n in range(1, 180)]
    steady = [row(2 * n + 1, n % 10 > 0) for n in range(1, 180)]
    charts = drift_charts(steady + bad)
    found = {(one.bundle, one.where): one for one in charts if one.by == "region"}
    assert {where: one.alarm for where, one in found.items()} == {("a", "hand"): False, ("a", "leg"): True}
    assert [one.verdicts for one in charts if one.by == "scanner"] == [len(bad) + len(steady)]
    since = found["a", "leg"].alarm_since
    assert since is not None
    assert since > bad[118].answered_at
