"""Rules for results: of which studies, at which hours; and how long a destination that is away is left alone."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.domain.destinations import (
    FIRST_WAIT,
    MAX_WAIT,
    Destination,
    DestinationKind,
    Rule,
    StudyFacts,
    applies,
    is_within_hours,
    next_wait,
    send_time,
)
from shared.domain.notices import Event
from shared.errors import BadRequest

ZONE = ZoneInfo("Europe/Berlin")
# clocks that change at 02:00, by half an hour, at midnight, and never
ZONES = [ZoneInfo(name) for name in ("Europe/Berlin", "Australia/Lord_Howe", "Africa/Cairo", "Asia/Kolkata")]
HOURS = st.integers(0, 23)
MOMENTS = st.datetimes(datetime(2026, 1, 1), datetime(2027, 12, 31), timezones=st.sampled_from(ZONES))  # noqa: DTZ001
FACTS = StudyFacts("CT-ROOM", "hand", "positive", 40)


@pytest.mark.parametrize(
    ("rule", "facts", "fits"),
    [
        (Rule(), FACTS, True),
        (Rule(), StudyFacts(), True),
        (Rule(senders=("CT-ROOM", "PACS")), FACTS, True),
        (Rule(senders=("PACS",)), FACTS, False),
        (Rule(senders=("PACS",)), replace(FACTS, sender=""), False),  # an unknown sender is none that is named
        (Rule(regions=("wrist",)), FACTS, False),
        (Rule(assessments=("positive", "unclear")), FACTS, True),
        (Rule(assessments=("negative",)), FACTS, False),
        (Rule(senders=("CT-ROOM",), assessments=("negative",)), FACTS, False),  # all of them must hold
        (Rule(age_from=40, age_to=40), FACTS, True),  # both included
        (Rule(age_from=41), FACTS, False),
        (Rule(age_to=39), FACTS, False),
        (Rule(age_from=0), replace(FACTS, age_years=None), False),  # an unknown age is within no limit
        (Rule(age_to=130), replace(FACTS, age_years=None), False),
        (Rule(age_from=0), replace(FACTS, age_years=0), True),
    ],
)
def test_which_studies_a_rule_is_about(rule: Rule, facts: StudyFacts, fits: bool) -> None:
    assert applies(rule, facts) is fits


@given(st.integers(0, 130), st.integers(0, 130), st.integers(0, 130))
def test_a_limit_of_age_only_takes_away(age: int, least: int, most: int) -> None:
    """Two limits let through what each lets through."""
    facts = replace(FACTS, age_years=age)
    both = applies(Rule(age_from=least, age_to=most), facts)
    assert both is (applies(Rule(age_from=least), facts) and applies(Rule(age_to=most), facts))
    assert both is (least <= age <= most)


@pytest.mark.parametrize(
    ("hours", "now", "then"),
    [
        ((0, 0), "2026-11-30 03:20", "2026-11-30 03:20"),
        ((18, 6), "2026-11-30 17:59", "2026-11-30 18:00"),
        ((18, 6), "2026-11-30 18:00", "2026-11-30 18:00"),
        ((18, 6), "2026-11-30 23:30", "2026-11-30 23:30"),
        ((18, 6), "2026-12-01 05:59", "2026-12-01 05:59"),
        ((18, 6), "2026-12-01 06:00", "2026-12-01 18:00"),
        ((8, 16), "2026-11-30 16:00", "2026-12-01 08:00"),
        ((8, 16), "2026-11-30 07:10", "2026-11-30 08:00"),
        ((2, 4), "2026-03-29 01:30", "2026-03-29 03:00"),  # at 02:00, which this day has not, it is 03:00
        ((2, 3), "2026-03-29 01:30", "2026-03-30 02:00"),  # this day has none of these hours
        ((2, 3), "2026-10-25 02:30", "2026-10-25 02:30"),  # this day has them twice
    ],
)
def test_the_hours_of_a_rule(hours: tuple[int, int], now: str, then: str) -> None:
    local = datetime.fromisoformat(now).replace(tzinfo=ZONE)
    found = send_time(Rule(hour_from=hours[0], hour_to=hours[1]), local)
    assert found == datetime.fromisoformat(then).replace(tzinfo=ZONE)
    assert found >= local


@given(HOURS, HOURS, MOMENTS)
def test_results_go_within_the_hours_and_no_later_than_they_begin_next(begin: int, end: int, now: datetime) -> None:
    """Never earlier than now, always at an hour of the rule, and at the first one, whatever clocks do meanwhile."""
    zone = now.tzinfo
    at = send_time(Rule(hour_from=begin, hour_to=end), now).astimezone(UTC)
    earliest = now.astimezone(UTC)
    assert earliest <= at
    hours = {(begin + n) % 24 for n in range((end - begin) % 24 or 24)}
    assert at.astimezone(zone).hour in hours
    step = timedelta(minutes=30)
    while earliest < at:
        assert earliest.astimezone(zone).hour not in hours
        earliest += step


@given(HOURS, HOURS, HOURS)
def test_an_hour_is_within_or_quiet(begin: int, end: int, hour: int) -> None:
    """From the first one on, until before the last one, over midnight too; the same hour twice is the whole day."""
    assert is_within_hours(begin, end, hour) == (hour in {(begin + n) % 24 for n in range((end - begin) % 24 or 24)})


@pytest.mark.parametrize(
    "address", ["a@b", "reading.room+osteon@mail.hospital.example", "o'brien@x-y.example", f"{'a' * 64}@b.example"]
)
def test_an_address_is_one(address: str) -> None:
    assert Destination(DestinationKind.MAIL, address=f" {address} ").validate().address == address


@pytest.mark.parametrize(
    "address",
    [
        "", "a", "@b", "a@", "a@b@c", "a b@c", "a@b, c@d", "a@b\nBcc: c@d", "<a@b>", '"a b"@c', "a@[127.0.0.1]",
        "a..b@c", ".a@b", "a@-b", "a@b-.example", "ä@b", "a@ä", f"{'a' * 65}@b", f"a@{'b' * 64}", "a@" + "b." * 126 + "cc",
        "a@b\0", "a@b;c@d", "a@b.",
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused_without_repeating_it(address: str) -> None:
    """One line, one person or group: nothing that could become another header, or another recipient."""
    with pytest.raises(BadRequest) as caught:
        Destination(DestinationKind.MAIL, address=address).validate()
    assert len(address) < 4 or address not in str(caught.value)


def test_mail_and_hl7_tell_what_fits_them() -> None:
    """An end is not chosen: it goes where its beginning went."""
    for kind, event, words in (
        (DestinationKind.MAIL, Event.ANALYSED, "Mail tells"),
        (DestinationKind.HL7, Event.OVERDUE, "HL7 messages tell"),
    ):
        with pytest.raises(BadRequest, match=words):
            Rule(events=(event,)).validate([]).check_kind(kind)
    with pytest.raises(BadRequest, match=r"goes where queue\.late went"):
        Rule(events=(Event.QUEUE_ON_TIME,)).validate([])


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_a_destination_that_is_away_is_asked_less_and_less(attempts: int, draw: float) -> None:
    """Half to one and a half times 10 s, doubled each time, up to an hour."""
    wait = next_wait(attempts, draw)
    whole = min(MAX_WAIT.total_seconds(), FIRST_WAIT.total_seconds() * 2.0 ** min(attempts - 1, 60))
    assert wait.total_seconds() == pytest.approx(whole * (0.5 + draw), rel=1e-6)
