"""Outlines are drawn on the radiograph's own scale: the law that lets them be."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.domain.findings import Heatmap
from shared.domain.localization import cell_levels, local_probability

SIDE = 12
maps = st.lists(st.integers(0, 255), min_size=SIDE * SIDE, max_size=SIDE * SIDE).map(bytes)
chances = st.floats(0.001, 0.999)


def local(values: bytes, chance: float, full: float = 0.43, slope: float = 1.1) -> list[float]:
    return local_probability(cell_levels(Heatmap(values, SIDE, SIDE), full), SIDE, chance, slope)


@given(maps, chances)
def test_no_place_is_over_a_point_that_its_radiograph_is_not_over(values: bytes, chance: float) -> None:
    """So no line is drawn on a radiograph that the model does not call."""
    assert all(0 <= one <= chance + 1e-9 for one in local(values, chance))


@given(st.integers(0, SIDE * SIDE - 1), st.integers(1, 255), chances)
def test_evidence_in_one_cell_is_the_radiographs(cell: int, level: int, chance: float) -> None:
    """If one cell holds all evidence, its place has the radiograph's own probability, and places far away have none."""
    values = bytearray(SIDE * SIDE)
    values[cell] = level
    found = local(bytes(values), chance)
    assert found[cell] == pytest.approx(chance)
    assert max(found) == found[cell]
    row, column = divmod(cell, SIDE)
    assert all(
        found[y * SIDE + x] == 0 for y in range(SIDE) for x in range(SIDE) if math.hypot(y - row, x - column) >= 4
    )


@given(chances)
def test_share_of_the_odds_is_calibrated_as_the_radiograph(chance: float) -> None:
    """Two halves of the evidence, far apart, each lose slope * log 2 of the radiograph's logit."""
    halves = bytearray(SIDE * SIDE)
    halves[0] = halves[-1] = 200
    found = local(bytes(halves), chance)
    logit = math.log(chance / (1 - chance)) - 1.1 * math.log(2)
    assert found[0] == found[-1] == pytest.approx(1 / (1 + math.exp(-logit)))


def test_nothing_shown_is_nothing_local() -> None:
    """A map that shows nothing has no place with evidence, whatever the radiograph's probability."""
    assert set(local(bytes(SIDE * SIDE), 0.9)) == {0.0}


def test_a_bundle_that_says_little_is_taken_as_uncalibrated() -> None:
    """Without a calibration a share of the odds is a share of the odds."""
    halves = bytearray(SIDE * SIDE)
    halves[0] = halves[-1] = 200
    assert local_probability(cell_levels(Heatmap(bytes(halves), SIDE, SIDE)), SIDE, 0.5)[0] == pytest.approx(1 / 3)
