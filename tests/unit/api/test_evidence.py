"""Outlines are drawn on the film's own scale: the law that lets them be."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.evidence import cell_levels, local_probability
from shared.findings import Heatmap

SIDE = 12
MANIFEST: dict[str, Any] = {"heatmap_full": 0.43, "calibration": {"slope": 1.1, "offset": -2.1}}
maps = st.lists(st.integers(0, 255), min_size=SIDE * SIDE, max_size=SIDE * SIDE).map(bytes)
chances = st.floats(0.001, 0.999)


def local(values: bytes, chance: float, manifest: dict[str, Any] = MANIFEST) -> list[float]:
    return local_probability(cell_levels(Heatmap(values, SIDE, SIDE), manifest), SIDE, chance, manifest)


@given(maps, chances)
def test_no_place_is_over_a_point_that_its_film_is_not_over(values: bytes, chance: float) -> None:
    """So no line is drawn on a film that the model does not call."""
    assert all(0 <= one <= chance + 1e-9 for one in local(values, chance))


@given(st.integers(0, SIDE * SIDE - 1), st.integers(1, 255), chances)
def test_evidence_in_one_cell_is_the_films(cell: int, level: int, chance: float) -> None:
    """If one cell holds all evidence, its place has the film's own probability, and places far away have none."""
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
def test_share_of_the_odds_is_calibrated_as_the_film(chance: float) -> None:
    """Two halves of the evidence, far apart, each lose slope * log 2 of the film's logit."""
    halves = bytearray(SIDE * SIDE)
    halves[0] = halves[-1] = 200
    found = local(bytes(halves), chance)
    logit = math.log(chance / (1 - chance)) - 1.1 * math.log(2)
    assert found[0] == found[-1] == pytest.approx(1 / (1 + math.exp(-logit)))


def test_nothing_shown_is_nothing_local() -> None:
    """A map that shows nothing has no place with evidence, whatever the film's probability."""
    assert set(local(bytes(SIDE * SIDE), 0.9)) == {0.0}


def test_a_bundle_that_says_little_is_taken_as_uncalibrated() -> None:
    """Without calibration in the manifest a share of the odds is a share of the odds."""
    halves = bytearray(SIDE * SIDE)
    halves[0] = halves[-1] = 200
    assert local(bytes(halves), 0.5, {})[0] == pytest.approx(1 / 3)
