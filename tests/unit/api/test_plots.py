"""The administrator's plots: every value has its place, gaps stay gaps, marks are round."""

import itertools
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.pages.operations import size
from api.pages.plots import BOTTOM, LEFT, RIGHT, TOP, Plot, length, plot

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
VALUES = st.lists(st.none() | st.floats(0, 1e7), min_size=1, max_size=120)


def drawn(values: Sequence[float | None], *, seconds: bool = False) -> Plot:
    times = [NOON + n * MINUTE for n in range(len(values))]
    return plot("p", "P", "about", times, [("one", values)], MINUTE, seconds=seconds)


def points(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML](\S+?) ([\d.]+)", path)]


@given(VALUES, st.booleans())
def test_every_known_value_is_drawn_inside(values: list[float | None], seconds: bool) -> None:
    """A point for each value that is known, none for the others, all within the frame, larger ones higher."""
    line = drawn(values, seconds=seconds).lines[0]
    known = [value for value in values if value is not None]
    found = points(line.path)
    assert len(found) == len(known)
    assert all(LEFT <= x <= RIGHT and TOP - 0.1 <= y <= BOTTOM + 0.1 for x, y in found)
    heights = sorted(zip(known, (-y for _, y in found), strict=True))
    assert all(low[1] <= high[1] + 0.1 for low, high in itertools.pairwise(heights))


@given(VALUES)
def test_a_gap_is_never_bridged(values: list[float | None]) -> None:
    """A stroke joins neighbours only; a value between two gaps is a dot."""
    line = drawn(values).lines[0]
    joined = sum(a is not None and b is not None for a, b in itertools.pairwise(values))
    assert line.path.count("L") == joined
    padded = [None, *values, None]
    alone = sum(
        b is not None and a is None and c is None for a, b, c in zip(padded, padded[1:], padded[2:], strict=False)
    )
    assert len(line.dots) == alone


@given(st.floats(0, 1e7), st.booleans())
def test_marks_reach_the_largest_value_and_are_few(largest: float, seconds: bool) -> None:
    """From zero to no less than the largest value, in three to six equal steps, each with a label of its own."""
    up = drawn([largest], seconds=seconds).up
    assert up[0][0] == BOTTOM
    assert up[-1][0] == pytest.approx(TOP)
    assert 3 <= len(up) <= 6
    assert len({label for _, label in up}) == len(up)


def test_the_table_tells_the_same() -> None:
    """What is drawn stands in the table too, the latest first; times in which nothing happened are left out."""
    rows = drawn([0, 5, None, 1234]).rows
    assert rows == [(NOON + 3 * MINUTE, ["1,234"]), (NOON + MINUTE, ["5"])]
    assert drawn([0, None]).empty


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (0.25, "0.25 s"), (12, "12 s"), (60, "1 min"), (90, "90 s"), (150, "2.5 min"), (3600, "1 h"), (86400, "1 d"), (200_000, "2.31 d")],
)  # fmt: skip
def test_lengths_in_words(seconds: float, words: str) -> None:
    """A length of time has one unit, which its size chooses."""
    assert length(seconds).replace("\N{NO-BREAK SPACE}", " ") == words


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0 B"), (999, "999 B"), (8_400_000, "8.4 MB"), (840e9, "840 GB"), (5e15, "5,000 TB")]
)
def test_sizes_in_words(count: float, words: str) -> None:
    """Bytes in three digits."""
    assert size(int(count)).replace("\N{NO-BREAK SPACE}", " ") == words
