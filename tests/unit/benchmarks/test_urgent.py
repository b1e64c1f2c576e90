"""The benchmark of urgent studies judges all of them."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.urgent import _waits
from shared.errors import StackError


def line_of(waits: list[float]) -> Any:
    """A line whose urgent studies took so long."""
    session = SimpleNamespace(scalars=lambda _: waits)
    return SimpleNamespace(database=SimpleNamespace(transaction=lambda: nullcontext(session)))


def test_an_urgent_study_that_is_never_served_fails_the_benchmark() -> None:
    """Without the slowest ones the verdict would be about the others."""
    assert _waits(line_of([0.5, 1.5]), 2) == [0.5, 1.5]
    with pytest.raises(StackError, match="2 of 3 urgent studies"):
        _waits(line_of([0.5, 1.5]), 3, limit_s=0.0)
