"""The order of the worklist: who is due when, and why."""

import random
from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise
from uuid import uuid4

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from shared.domain.findings import AbstentionReason, Assessment, Extent, StudySummary
from shared.domain.study import Priority, StudyStatus
from shared.domain.worklist import (
    HARD_MAXIMUM,
    PENDING,
    TURNAROUND_TARGETS,
    TurnaroundTargets,
    WorklistEntry,
    due_at,
    longest_wait,
    target_errors,
    urgency_class,
)

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
TIMES = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.timezones())  # noqa: DTZ001
SUMMARIES = st.none() | st.builds(
    StudySummary,
    st.sampled_from(Assessment),
    st.sampled_from(Extent),
    st.just("hand"),
    st.floats(0, 1),
)
PRIORITIES = st.sampled_from(Priority)
URGENCY = ["positive severe", "positive", "unclear", "abstained", PENDING, "negative"]  # most urgent first


def entry(**changes: object) -> WorklistEntry:
    values: dict[str, object] = {
        "study_id": uuid4(),
        "priority": Priority.ROUTINE,
        "status": StudyStatus.ANALYSED,
        "received_at": NOON,
        "due_at": NOON + timedelta(minutes=30),
        "assessment": Assessment.POSITIVE,
        "extent": Extent.MODERATE,
        "region": "elbow",
        "fracture_probability": 0.93,
        "score": 8.2,
        "abstention": None,
        "abstention_detail": "",
        "modality": "DX",
        "images": 2,
        "failed_images": 0,
        "reason": None,
        "reason_detail": "",
    }
    return WorklistEntry(**(values | changes))  # type: ignore[arg-type]


@st.composite
def tables(draw: st.DrawFn, most: int = int(HARD_MAXIMUM.total_seconds() // 60)) -> TurnaroundTargets:
    """Any table that a site may choose."""
    table: dict[str, dict[Priority, int]] = {}
    graver = dict.fromkeys(Priority, 1)
    for name in URGENCY:
        row, least = {}, 1
        for priority in Priority:  # urgent, routine, backlog
            least = row[priority] = draw(st.integers(max(least, graver[priority]), most))
        table[name] = graver = row
    return table


@given(tables())
def test_every_table_that_keeps_the_order_may_be_chosen(table: TurnaroundTargets) -> None:
    """A table in which nobody graver or more urgent waits longer, and nobody beyond the hard maximum, has no objection."""
    assert target_errors(table) == []
    assert longest_wait(table) <= HARD_MAXIMUM
    assert target_errors(TURNAROUND_TARGETS) == []


@given(tables(most=500), st.sampled_from(URGENCY), PRIORITIES, st.integers(-5, 20_000))
def test_a_table_that_breaks_the_order_may_not(
    table: TurnaroundTargets, name: str, priority: Priority, minutes: int
) -> None:
    """With one cell changed, a table is refused exactly if somebody graver or more urgent would wait longer, or too long."""
    changed = {row: dict(cells) for row, cells in table.items()}
    changed[name][priority] = minutes
    columns = [[changed[row][each] for row in URGENCY] for each in Priority]
    rows = [[cells[each] for each in Priority] for cells in changed.values()]
    sound = 1 <= minutes <= 10080 and all(line == sorted(line) for line in columns + rows)
    assert (target_errors(changed) == []) == sound


@given(TIMES, PRIORITIES, SUMMARIES, tables())
def test_nothing_waits_longer_than_the_longest_wait(
    received: datetime, priority: Priority, summary: StudySummary | None, table: TurnaroundTargets
) -> None:
    """By any table, every study is due after its arrival and within the table's longest wait of it: nobody starves."""
    wait = due_at(received, priority, summary, table) - received.astimezone(UTC)
    assert timedelta(0) < wait <= longest_wait(table) <= HARD_MAXIMUM


@given(st.lists(st.tuples(TIMES, PRIORITIES, SUMMARIES), min_size=2, max_size=5), tables())
def test_later_than_longest_wait_never_overtakes(
    studies: list[tuple[datetime, Priority, StudySummary | None]], table: TurnaroundTargets
) -> None:
    """Due times order all studies, and one that came the longest wait before another is read before it."""
    in_order = sorted(studies, key=lambda study: due_at(study[0], study[1], study[2], table))
    for place, (received, *_) in enumerate(in_order):
        assert all(
            earlier[0].astimezone(UTC) - received.astimezone(UTC) < longest_wait(table) for earlier in in_order[:place]
        )


@given(
    st.lists(st.tuples(st.integers(0, 3), PRIORITIES, SUMMARIES), min_size=2, max_size=8), tables(most=5), st.randoms()
)
def test_the_order_is_total(
    studies: list[tuple[int, Priority, StudySummary | None]], table: TurnaroundTargets, chance: random.Random
) -> None:
    """By (due_at, id) the list is the same whatever order studies arrived in; of any two one comes first."""
    places = [
        (due_at(NOON + timedelta(minutes=minute), priority, summary, table), uuid4())
        for minute, priority, summary in studies
    ]
    shuffled = chance.sample(places, len(places))
    in_order = sorted(shuffled)
    assert in_order == sorted(places)
    assert all(one < other for one, other in pairwise(in_order))


MINUTE = timedelta(minutes=1)


def readable_in_time(studies: list[tuple[int, int]]) -> bool:
    """Whether one reader who needs a minute a study could read all (arrival, due) in time, in whatever order.

    Exactly if no span of time holds more studies that come and are due within it than minutes (Horn 1974).
    """
    return all(
        sum(start <= arrived and due <= end for arrived, due in studies) <= end - start
        for start in {arrived for arrived, _ in studies}
        for end in {due for _, due in studies}
    )


@given(st.lists(st.tuples(st.integers(0, 12), PRIORITIES, SUMMARIES), min_size=1, max_size=14), tables(most=12))
def test_the_hard_maximum_holds_on_a_list_that_is_kept_up_with(
    arrivals: list[tuple[int, Priority, StudySummary | None]], table: TurnaroundTargets
) -> None:
    """If any order of reading lets nobody wait beyond their due time, ours does: none waits beyond the longest wait."""
    studies = [
        (minute, (due_at(NOON + minute * MINUTE, priority, summary, table) - NOON) // MINUTE)
        for minute, priority, summary in arrivals
    ]
    assume(readable_in_time(studies))
    waiting, now = sorted(studies, key=lambda study: study[1]), 0
    while waiting:
        arrived = [study for study in waiting if study[0] <= now]
        now += 1
        if arrived:  # earliest due time first
            assert now <= arrived[0][1]
            assert (now - arrived[0][0]) * MINUTE <= longest_wait(table)
            waiting.remove(arrived[0])


@given(TIMES, PRIORITIES, SUMMARIES, st.timedeltas(timedelta(0), timedelta(days=30)))
def test_within_a_class_first_come_first_read(
    received: datetime, priority: Priority, summary: StudySummary | None, later: timedelta
) -> None:
    """Of two studies of one class and priority the earlier one is never due later."""
    after = (received.astimezone(UTC) + later).astimezone(UTC)
    assert due_at(received.astimezone(UTC), priority, summary) <= due_at(after, priority, summary)


@pytest.mark.parametrize("priority", Priority)
def test_more_urgent_class_is_never_due_later(priority: Priority) -> None:
    """Down the classes, from a severe positive one to a negative one, the target never shrinks."""
    allowed = [TURNAROUND_TARGETS[name][priority] for name in URGENCY]
    assert allowed == sorted(allowed)


@pytest.mark.parametrize("name", URGENCY)
def test_more_urgent_priority_is_never_due_later(name: str) -> None:
    """In every class urgent comes no later than routine, and routine no later than the backlog."""
    allowed = [TURNAROUND_TARGETS[name][priority] for priority in (Priority.URGENT, Priority.ROUTINE, Priority.BACKLOG)]
    assert allowed == sorted(allowed)


def test_every_class_and_priority_has_a_target() -> None:
    """Whatever a model may say and a sender may ask for stands in the table, and nothing else does."""
    said = {
        urgency_class(StudySummary(assessment, extent, "", 0.5)) for assessment in Assessment for extent in Extent
    } | {urgency_class(None)}
    assert said == set(TURNAROUND_TARGETS) == set(URGENCY)
    assert all(set(row) == set(Priority) for row in TURNAROUND_TARGETS.values())


def test_only_positive_and_severe_is_the_most_urgent_class() -> None:
    """A large extent alone does not make a merely unclear finding the most urgent."""
    assert urgency_class(StudySummary(Assessment.POSITIVE, Extent.SEVERE, "", 0.9)) == "positive severe"
    assert urgency_class(StudySummary(Assessment.POSITIVE, Extent.MODERATE, "", 0.9)) == "positive"
    assert urgency_class(StudySummary(Assessment.UNCLEAR, Extent.SEVERE, "", 0.4)) == "unclear"


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
        ({}, "due 12:30 UTC: routine, positive, elbow, extent moderate"),
        ({"extent": Extent.NONE}, "due 12:30 UTC: routine, positive, elbow"),
        ({"assessment": Assessment.UNCLEAR, "extent": None}, "due 12:30 UTC: routine, unclear, elbow"),
        (
            {"assessment": Assessment.NEGATIVE, "extent": Extent.NONE},
            "due 12:30 UTC: routine, negative, elbow",
        ),
        (
            {
                "assessment": Assessment.ABSTAINED,
                "abstention": AbstentionReason.BLANK,
                "score": None,
                "priority": Priority.URGENT,
            },
            "due 12:30 UTC: urgent, abstained, outside the validated scope: blank image",
        ),
        ({"assessment": None, "extent": None, "region": ""}, "due 12:30 UTC: routine, not analysed"),
        (
            {"due_at": (NOON + timedelta(minutes=30)).astimezone(timezone(timedelta(hours=-5)))},
            "due 12:30 UTC: routine, positive, elbow, extent moderate",
        ),
        ({"due_at": NOON + timedelta(hours=24), "assessment": None}, "due DAY 12:00 UTC: routine, not analysed"),
    ],
)
def test_every_place_explains_itself(changes: dict[str, object], words: str) -> None:
    """A row says in words when it is due, in UTC whatever zone the database answers in, and why."""
    assert entry(**changes).why() == words.replace("DAY", f"{NOON + timedelta(days=1):%Y-%m-%d}")
