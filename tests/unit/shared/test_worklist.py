"""The order of the worklist: who is due when, and why."""

from datetime import UTC, datetime, timedelta, timezone
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.findings import Call, Severity, StudySummary
from shared.study import Priority, StudyStatus
from shared.worklist import ALLOWANCES, LONGEST_WAIT, PENDING, WorklistEntry, due_at, urgency_class

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
TIMES = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.timezones())  # noqa: DTZ001
SUMMARIES = st.none() | st.builds(
    StudySummary,
    st.sampled_from(Call),
    st.sampled_from(Severity),
    st.just("hand"),
    st.floats(0, 1),
    st.just("in scope"),
)
PRIORITIES = st.sampled_from(Priority)
URGENCY = ["likely severe", "likely", "possible", "abstained", PENDING, "none"]  # most urgent first


def entry(**changes: object) -> WorklistEntry:
    values: dict[str, object] = {
        "study_id": uuid4(),
        "priority": Priority.ROUTINE,
        "status": StudyStatus.ANALYSED,
        "received_at": NOON,
        "due_at": NOON + timedelta(minutes=30),
        "call": Call.LIKELY,
        "severity": Severity.MODERATE,
        "region": "elbow",
        "fracture_probability": 0.93,
        "scope": "in scope",
        "modality": "DX",
        "images": 2,
        "failed_images": 0,
        "reason": "",
    }
    return WorklistEntry(**(values | changes))  # type: ignore[arg-type]


@given(TIMES, PRIORITIES, SUMMARIES)
def test_nothing_waits_longer_than_the_longest_wait(
    received: datetime, priority: Priority, summary: StudySummary | None
) -> None:
    """Every study is due after its arrival and within LONGEST_WAIT of it: nobody starves."""
    assert timedelta(0) < due_at(received, priority, summary) - received.astimezone(UTC) <= LONGEST_WAIT


@given(st.lists(st.tuples(TIMES, PRIORITIES, SUMMARIES), min_size=2, max_size=5))
def test_later_than_longest_wait_never_overtakes(studies: list[tuple[datetime, Priority, StudySummary | None]]) -> None:
    """Due times order all studies, and one that came LONGEST_WAIT before another is read before it."""
    in_order = sorted(studies, key=lambda study: due_at(*study))
    for place, (received, *_) in enumerate(in_order):
        assert all(earlier[0].astimezone(UTC) - received.astimezone(UTC) < LONGEST_WAIT for earlier in in_order[:place])


@given(TIMES, PRIORITIES, SUMMARIES, st.timedeltas(timedelta(0), timedelta(days=30)))
def test_within_a_class_first_come_first_read(
    received: datetime, priority: Priority, summary: StudySummary | None, later: timedelta
) -> None:
    """Of two studies of one class and priority the earlier one is never due later."""
    after = (received.astimezone(UTC) + later).astimezone(UTC)
    assert due_at(received.astimezone(UTC), priority, summary) <= due_at(after, priority, summary)


@pytest.mark.parametrize("priority", Priority)
def test_more_urgent_class_is_never_due_later(priority: Priority) -> None:
    """Down the classes, from a likely severe fracture to none, the allowance never shrinks."""
    allowed = [ALLOWANCES[name][priority] for name in URGENCY]
    assert allowed == sorted(allowed)


@pytest.mark.parametrize("name", URGENCY)
def test_more_urgent_priority_is_never_due_later(name: str) -> None:
    """In every class urgent comes no later than routine, and routine no later than the backlog."""
    allowed = [ALLOWANCES[name][priority] for priority in (Priority.URGENT, Priority.ROUTINE, Priority.BACKLOG)]
    assert allowed == sorted(allowed)


def test_every_class_and_priority_has_an_allowance() -> None:
    """Whatever a model may say and a sender may ask for stands in the table, and nothing else does."""
    said = {urgency_class(StudySummary(call, severity, "", 0.5, "")) for call in Call for severity in Severity} | {
        urgency_class(None)
    }
    assert said == set(ALLOWANCES) == set(URGENCY)
    assert all(set(row) == set(Priority) for row in ALLOWANCES.values())


def test_only_likely_and_severe_is_the_most_urgent_class() -> None:
    """A large extent alone does not make a merely possible fracture the most urgent."""
    assert urgency_class(StudySummary(Call.LIKELY, Severity.SEVERE, "", 0.9, "")) == "likely severe"
    assert urgency_class(StudySummary(Call.LIKELY, Severity.MODERATE, "", 0.9, "")) == "likely"
    assert urgency_class(StudySummary(Call.POSSIBLE, Severity.SEVERE, "", 0.4, "")) == "possible"


def test_naive_time_is_refused() -> None:
    """A time without a zone would be due hours off, so it is refused."""
    with pytest.raises(ValueError, match="time zone"):
        due_at(NOON.replace(tzinfo=None), Priority.ROUTINE, None)


def test_time_zones_are_one_time_line() -> None:
    """The same instant in two zones is due at the same instant."""
    tokyo = NOON.astimezone(timezone(timedelta(hours=9)))
    assert due_at(tokyo, Priority.ROUTINE, None) == due_at(NOON, Priority.ROUTINE, None)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "due 12:30 UTC: routine, likely fracture, elbow, extent moderate"),
        ({"severity": Severity.NONE}, "due 12:30 UTC: routine, likely fracture, elbow"),
        ({"call": Call.POSSIBLE, "severity": None}, "due 12:30 UTC: routine, possible fracture, elbow"),
        ({"call": Call.NONE, "severity": Severity.NONE}, "due 12:30 UTC: routine, no fracture found, elbow"),
        (
            {"call": Call.ABSTAINED, "scope": "the image is blank", "priority": Priority.URGENT},
            "due 12:30 UTC: urgent, the model abstains (the image is blank)",
        ),
        ({"call": None, "severity": None, "region": ""}, "due 12:30 UTC: routine, not analysed"),
        (
            {"due_at": (NOON + timedelta(minutes=30)).astimezone(timezone(timedelta(hours=-5)))},
            "due 12:30 UTC: routine, likely fracture, elbow, extent moderate",
        ),
    ],
)
def test_every_place_explains_itself(changes: dict[str, object], words: str) -> None:
    """A row says in words when it is due, in UTC whatever zone the database answers in, and why."""
    assert entry(**changes).why() == words
