"""The outlines in results are those that pages draw: tests/frontend/outlines.test.js holds the page to the same file."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from shared.domain.findings import Assessment, ExposedField, Extent, Finding, Heatmap, OperatingPoints
from shared.domain.results import ModelStatement
from shared.settings import ROOT
from worker.results.outlines import FINER, Level, find_outlines, holds, log_odds, marching_squares, refine

CASES: list[dict[str, Any]] = json.loads((ROOT / "tests/data/contours.json").read_text())


def told(
    case: dict[str, Any], assessment: Assessment = Assessment.UNCLEAR
) -> tuple[Finding, ModelStatement, ExposedField]:
    heatmap = Heatmap(bytes(case["heatmap"]), case["height"], case["width"])
    field = ExposedField(*case["field"])
    finding = Finding(1, "m", "hand", 0.9, case["probability"], assessment, Extent.NONE, heatmap, field=field)
    points = OperatingPoints(case["sensitive"], case["specific"])
    return finding, ModelStatement("m", "M", "a" * 64, points, case["slope"], case["full"]), field


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_lines_are_those_of_the_page(case: dict[str, Any]) -> None:
    found = find_outlines(*told(case))
    for level in Level:
        ours = [one.line for one in found if one.level is level]
        theirs = [np.array(line) for line in case["lines"][level]]
        assert len(ours) == len(theirs)
        for line in theirs:  # they may begin with other lines and points
            assert any(len(other) == len(line) and _alike(other, line) for other in ours)


def _alike(one: Any, other: Any) -> bool:
    start = int(np.argmin(np.hypot(*(one - other[0]).T)))
    return bool(np.abs(np.roll(one, -start, axis=0) - other).max() < 0.1)


def test_the_cases_have_lines_of_both_levels_and_a_hole() -> None:
    found = [one for case in CASES for one in find_outlines(*told(case))]
    assert {one.level for one in found} == set(Level)
    assert any(one.hole for one in found)
    assert any(not CASES[i]["lines"]["sensitive"] for i in range(len(CASES)))


def test_no_line_is_drawn_where_the_model_abstains() -> None:
    assert find_outlines(*told(CASES[0]))
    assert find_outlines(*told(CASES[0], Assessment.ABSTAINED)) == []


@given(
    arrays(np.float64, st.tuples(st.integers(1, 7), st.integers(1, 7)), elements=st.floats(0, 1)), st.floats(0.1, 0.9)
)
def test_lines_part_what_is_over_the_level_from_what_is_not(values: Any, level: float) -> None:
    """A point of the grid is over the level exactly where an odd number of lines lies around it."""
    values = np.pad(values, 1)  # lines at the edge run through its points
    lines = marching_squares(values, level)
    assert all(len(line) > 2 and np.isfinite(line).all() for line in lines)
    for (row, column), value in np.ndenumerate(values):
        if abs(value - level) > 1e-6:
            around = sum(holds(line, np.array([[column, row + 1e-9]])) for line in lines)
            assert (around % 2 == 1) == (value > level)


def test_a_finer_map_is_as_even_as_its_cells() -> None:
    assert np.allclose(refine(np.full((2, 3), 3.0)), 3)
    assert refine(np.zeros((2, 3))).shape == (2 * FINER, 3 * FINER)


def test_log_odds_end_at_fourteen_either_way() -> None:
    assert list(log_odds(np.array([0.5, 0.0, 1e-9, 1.0]))) == [0, -14, -14, 14]
    assert log_odds(np.array([0.9]))[0] == pytest.approx(np.log(9))
