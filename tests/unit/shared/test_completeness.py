"""When a study is complete: what holds whatever came, and by whichever associations."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from shared.domain.completeness import (
    COUNT_AWAITED,
    COUNTED_AFTER,
    Completeness,
    Reception,
    Sending,
    completeness,
    completeness_words,
    is_count_due,
    quiet_from,
    received_words,
)

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
PEERS = [UUID(int=number) for number in range(3)]
QUIET, LIMIT = timedelta(seconds=20), timedelta(minutes=15)
seconds = st.integers(0, 1000).map(lambda number: timedelta(seconds=number))


@st.composite
def sendings(draw: st.DrawFn) -> Sending:
    """An association: open, released or cut; its peer counts or does not, and was asked or was not."""
    began = START + draw(seconds)
    ended = draw(st.none() | seconds.map(began.__add__))
    asked = draw(st.none() | seconds.map(began.__add__))
    answered = draw(st.none() | seconds.map(asked.__add__)) if asked else None
    countable = draw(st.booleans())
    return Sending(draw(st.sampled_from(PEERS)), began, ended, draw(st.booleans()), countable, asked, answered)


@st.composite
def receptions(draw: st.DrawFn) -> Reception:
    """A study with its associations."""
    return Reception(
        draw(st.integers(1, 5)), START, START + draw(seconds), draw(st.none() | st.integers(0, 5)),
        draw(st.lists(sendings(), max_size=4)),
    )  # fmt: skip


@given(receptions(), seconds, seconds)
def test_what_is_complete_has_a_reason(reception: Reception, after: timedelta, longer: timedelta) -> None:
    """As many as were counted; or quiet, nothing open, nothing more counted, no count awaited, nobody cut for good."""
    now = START + after
    state = completeness(reception, now, QUIET, LIMIT)
    if state is Completeness.FORCED:
        assert after >= LIMIT
    if state is Completeness.RECEIVING:
        assert after < LIMIT
    if state is Completeness.COMPLETE and reception.stored != reception.expected:
        assert (reception.expected or 0) < reception.stored
        end = quiet_from(reception)
        assert end is not None and now - end >= QUIET and now - reception.last_received_at >= QUIET
        assert all(one.ended_at and now - one.ended_at >= QUIET for one in reception.sendings)
        if now - end < COUNT_AWAITED:
            assert all(one.answered_at for one in reception.sendings if one.countable)
        for cut in [one for one in reception.sendings if not one.released]:
            cut_at = cut.ended_at or now
            assert any(one.released and one.peer == cut.peer and one.began_at > cut_at for one in reception.sendings)
    later = completeness(reception, now + longer, QUIET, LIMIT)
    if state is not Completeness.RECEIVING:
        assert later is not Completeness.RECEIVING
    if state is Completeness.COMPLETE:
        assert later is Completeness.COMPLETE


@given(receptions(), st.sampled_from(PEERS))
def test_a_peer_is_asked_twice_at_most_after_an_end(reception: Reception, peer: UUID) -> None:
    """Looked at every second: 30 s and 2 min after the end, and never while an association is open."""
    its = [Sending(one.peer, one.began_at, one.ended_at, one.released) for one in reception.sendings]
    end = quiet_from(reception)
    asked: list[datetime] = []
    for second in range(2300):
        now = START + timedelta(seconds=second)
        latest = [Sending(peer, START, START, released=True, asked_at=asked[-1])] if asked else []
        one = Reception(1, START, reception.last_received_at, None, [*its, *latest])
        if is_count_due(one, peer, now):
            asked.append(now)
    expected = [] if end is None else [end + after for after in COUNTED_AFTER]
    assert asked == expected


def test_words() -> None:
    """A number only where a sender counted; nothing behind a complete study."""
    assert completeness_words("complete", 2, 3) == ""
    assert completeness_words("receiving", 2, None) == completeness_words("receiving", 2, 2) == "more expected"
    assert completeness_words("receiving", 2, 3) == completeness_words("forced", 2, 3) == "2 of 3"
    assert completeness_words("forced", 2, None) == completeness_words("forced", 4, 3) == "more were expected"
    assert received_words("complete", 1, None) == "1 image"
    assert received_words("receiving", 2, None) == "2 images, more expected"
    assert received_words("forced", 2, 3) == "2 of 3 images"
