"""The studies of a benchmark: all of them are judged, and their pace is taken from the middle."""

from contextlib import nullcontext
from types import SimpleNamespace
from uuid import UUID

import pytest

from benchmarks.workload import Workload, pace
from shared.errors import StackError

IDS = [UUID(int=number) for number in range(2)]


def workload_of(waits: list[float]) -> Workload:
    """A workload whose studies took so long."""
    workload = Workload.__new__(Workload)
    session = SimpleNamespace(scalars=lambda *_: SimpleNamespace(all=lambda: waits))
    workload.database = SimpleNamespace(transaction=lambda: nullcontext(session))  # type: ignore[assignment]
    return workload


def test_a_study_that_is_never_served_fails_the_benchmark() -> None:
    """Without the slowest ones the verdict would be about the others."""
    assert workload_of([0.5, 1.5]).waits(IDS) == [0.5, 1.5]
    with pytest.raises(StackError, match="1 of 2 studies"):
        workload_of([0.5]).waits(IDS, limit_s=0.0)


def test_a_pace_leaves_out_how_the_line_fills_and_empties() -> None:
    """Ten a second in the middle are ten a second, however slow the first and last eighth were."""
    middle = [100 + number / 10 for number in range(60)]
    assert pace([0.0] * 10 + middle + [1e6] * 10) == pytest.approx(10, rel=0.05)
    assert pace(middle, edge=5) == pytest.approx(10, rel=0.05)


def test_studies_of_one_commit_are_not_cut_apart() -> None:
    """Group commits write many at one time: each of them counts, or none."""
    times = [float(number // 16) for number in range(160)]  # 16 a second
    assert pace(times) == 16
