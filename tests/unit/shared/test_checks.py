"""The daily check's comparison: any drift over the tolerance is found, and none under it."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.domain.checks import (
    CODES,
    STATES,
    CheckReason,
    CheckState,
    Deviation,
    FrameFinding,
    Tolerance,
    deviation,
    finding_of,
)

TOLERANCES = st.builds(Tolerance, st.floats(1e-6, 0.2), st.integers(0, 40))
VALUES = ("region_probability", "fracture_probability")


def made(image: int, frame: int, draw: Any) -> FrameFinding:
    height, width = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    cells = draw(st.binary(min_size=height * width, max_size=height * width))
    share = st.floats(0.25, 0.75)  # so that a drift either way is still a probability
    return FrameFinding(
        image, frame, draw(st.sampled_from(["hand", "hip"])), draw(st.sampled_from(["positive", "negative"])),
        draw(st.sampled_from(["none", "mild"])), draw(st.sampled_from(["", "metal"])),
        draw(st.sampled_from([(), (1, 2, 3, 4)])), draw(share), draw(share), cells, height, width,
    )  # fmt: skip


@st.composite
def findings(draw: Any) -> list[FrameFinding]:
    """Of one to four frames in up to three images."""
    places = draw(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 2)), min_size=1, max_size=4, unique=True))
    return [made(image, frame, draw) for image, frame in places]


def changed(one: FrameFinding, **values: Any) -> FrameFinding:
    """The finding with other values."""
    return replace(one, **values)


@given(expected=findings(), tolerance=TOLERANCES, data=st.data())
def test_what_is_expected_is_no_drift(
    expected: list[FrameFinding], tolerance: Tolerance, data: st.DataObject
) -> None:  # fmt: skip
    """In whatever order, and also after it was stored as JSON."""
    stored = [finding_of(json.loads(json.dumps(one.as_json()))) for one in data.draw(st.permutations(expected))]
    assert deviation(expected, stored) == Deviation((), 0.0, 0)
    assert deviation(expected, stored).reason(tolerance) is None


@given(
    expected=findings(), tolerance=TOLERANCES, value=st.sampled_from(VALUES), share=st.floats(0.0, 3.0),
    up=st.booleans(), data=st.data(),
)  # fmt: skip
def test_a_probability_drifts_exactly_beyond_the_tolerance(
    expected: list[FrameFinding], tolerance: Tolerance, value: str, share: float, up: bool, data: st.DataObject
) -> None:
    """Whichever probability of whichever frame it is, and in whichever direction."""
    index = data.draw(st.integers(0, len(expected) - 1))
    apart = share * tolerance.probability
    moved = getattr(expected[index], value) + (apart if up else -apart)
    found = [*expected]
    found[index] = changed(found[index], **{value: moved})
    told = deviation(expected, found)
    assert told.probability == pytest.approx(apart, abs=1e-12)
    if abs(share - 1) > 1e-6:  # at the limit itself rounding decides
        assert told.reason(tolerance) is (CheckReason.VALUES_DIFFER if share > 1 else None)


@given(expected=findings(), tolerance=TOLERANCES, level=st.integers(0, 255), data=st.data())
def test_a_cell_drifts_exactly_beyond_the_tolerance(
    expected: list[FrameFinding], tolerance: Tolerance, level: int, data: st.DataObject
) -> None:
    """Whichever cell of whichever heatmap it is."""
    index = data.draw(st.integers(0, len(expected) - 1))
    cells = bytearray(expected[index].heatmap)
    cell = data.draw(st.integers(0, len(cells) - 1))
    apart, cells[cell] = abs(cells[cell] - level), level
    found = [*expected]
    found[index] = replace(found[index], heatmap=bytes(cells))
    told = deviation(expected, found)
    assert told.heatmap == apart
    assert told.reason(tolerance) is (CheckReason.VALUES_DIFFER if apart > tolerance.heatmap else None)


@given(expected=findings(), code=st.sampled_from(CODES), tolerance=TOLERANCES, data=st.data())
def test_another_code_is_a_drift_whatever_the_tolerance(
    expected: list[FrameFinding], code: str, tolerance: Tolerance, data: st.DataObject
) -> None:
    """And it is said which one."""
    index = data.draw(st.integers(0, len(expected) - 1))
    found = [*expected]
    found[index] = changed(found[index], **{code: (9, 9, 9, 9) if code == "field" else "another"})
    told = deviation(expected, found)
    assert told.codes == (code,)
    assert told.reason(tolerance) is CheckReason.CODES_DIFFER


@given(expected=findings(), data=st.data())
def test_a_frame_too_few_or_too_many_is_a_drift(expected: list[FrameFinding], data: st.DataObject) -> None:
    """Lost, added, doubled, or all of them."""
    index = data.draw(st.integers(0, len(expected) - 1))
    lost = expected[:index] + expected[index + 1 :]
    for found in (lost, [*expected, expected[index]], [*expected, replace(expected[index], image=9)], []):
        assert "frames" in deviation(expected, found).codes
        assert "frames" in deviation(found, expected).codes


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("value", VALUES)
def test_what_is_no_number_is_a_drift(value: str, wrong: float) -> None:
    """A comparison with it is never true, and must not pass for that."""
    good = FrameFinding(1, 1, "hand", "positive", "mild", "", (), 0.9, 0.8, b"\0", 1, 1)
    bad = changed(good, **{value: wrong})
    for one, other in ((good, bad), (bad, good), (bad, bad)):
        told = deviation([one], [other])
        assert told.probability == 1.0
        assert told.reason(Tolerance(0.9, 255)) is CheckReason.VALUES_DIFFER


def test_a_heatmap_of_another_size_is_a_drift() -> None:
    """The same cells in another form show something else."""
    one = FrameFinding(1, 1, "hand", "positive", "mild", "", (), 0.9, 0.8, b"\0\1\2\3", 2, 2)
    for other in (replace(one, height=1, width=4), replace(one, heatmap=b"\0\1", height=1)):
        assert "size" in deviation([one], [other]).codes


def test_each_reason_ends_a_check_in_one_state() -> None:
    """Drift and being behind are told apart from what is broken."""
    assert set(STATES.values()) == {CheckState.DRIFTED, CheckState.BEHIND}
    assert {reason for reason, state in STATES.items() if state is CheckState.DRIFTED} == {
        CheckReason.CODES_DIFFER, CheckReason.VALUES_DIFFER,
    }  # fmt: skip
