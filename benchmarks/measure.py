"""Measures ratios on a noisy machine; defines what a benchmark returns.

All arms of a comparison are run in every repeat, in turns that rotate, so that a machine that slows down for a minute
slows all of them. Each repeat gives one ratio of neighbours in time; their median is the result. Its spread is the
sign-test interval: the two order statistics between which the median of all such ratios lies with at least 95 %
confidence (Conover 1999, Practical Nonparametric Statistics, 3.2). It assumes nothing of how noise is distributed, and
draws no random numbers. Under six repeats no such interval exists; then it is lowest to highest, and says so.
"""

import gc
import json
import math
import operator
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

CONFIDENCE = 0.95


class MissingRequirement(Exception):
    """Something that a benchmark needs is missing on this machine; the message says how to install it."""


Arm = Callable[[], float]  # runs once; returns what was measured, e.g. seconds or radiographs/s
Say = Callable[[str], None]  # is called with a line of progress


def time_of(work: Callable[[], object]) -> Arm:
    """Make an arm that returns the seconds that `work` takes."""

    def run() -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    return run


def interleaved(arms: Mapping[str, Arm], repeats: int, warmups: int = 1) -> dict[str, list[float]]:
    """Run every arm some times, in turns.

    The arm that starts is another one each time: going first or last favours none.

    Args:
        arms: by name.
        repeats: measurements of each arm.
        warmups: runs of each arm before, which are not counted.

    Returns:
        Each arm's measurements, those of one repeat at one index.
    """
    names = list(arms)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(-warmups, repeats):
        turn = repeat % len(names)
        for name in names[turn:] + names[:turn]:
            gc.collect()  # garbage of one arm is not cleared at the cost of the next
            measured = arms[name]()
            if repeat >= 0:
                samples[name].append(measured)
    return samples


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Find the sign-test interval of the median (95 %).

    Args:
        values: in any order.

    Returns:
        Its lower and upper end; lowest and highest of fewer than six values.

    Raises:
        ValueError: There are no values.
    """
    if not values:
        raise ValueError("there is nothing to take the median of")
    ordered, n = sorted(values), len(values)
    rank, below = 0, 0.0  # how many values to leave out at each end
    while rank < n // 2:
        below += math.comb(n, rank) / 2**n
        if 2 * below > 1 - CONFIDENCE:
            break
        rank += 1
    rank = max(0, rank - 1)
    return ordered[rank], ordered[n - 1 - rank]


@dataclass(frozen=True)
class Goal:
    """What a ratio must reach."""

    direction: Literal[">=", "<="]
    value: float

    def margin(self, ratio: float) -> float:
        """Compute how many times as good as the goal a ratio is: below 1 it misses."""
        if self.direction == ">=":
            return ratio / self.value
        return self.value / ratio if ratio > 0 else math.inf

    def met(self, ratio: float) -> bool:
        """Whether this ratio reaches the goal; nan never does."""
        return ratio >= self.value if self.direction == ">=" else ratio <= self.value

    def worst(self, cases: Sequence["Case"]) -> "Case":
        """Find the case that is farthest from the goal, or closest to missing it."""
        return (min if self.direction == ">=" else max)(cases, key=lambda case: case.ratio)

    def __str__(self) -> str:
        return f"{self.direction} {self.value:g}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what `str` made; raises ValueError for anything else."""
        sign, value = text.split()
        direction: Literal[">=", "<="] = ">=" if sign == ">=" else "<="
        if sign != direction:
            raise ValueError(f"{text} is no goal")
        return cls(direction, float(value))


@dataclass(frozen=True)
class Case:
    """One comparison: the median of the repeats' ratios, its spread, and both sides' medians in `unit`."""

    label: str
    ratio: float
    spread: tuple[float, float]
    repeats: int
    unit: str
    subject: float
    baseline: float
    goal: Goal | None = None  # its own; None: the benchmark's

    @classmethod
    def of(
        cls,
        label: str,
        unit: str,
        subject: Sequence[float],
        baseline: Sequence[float],
        ratio: Callable[[float, float], float] = operator.truediv,
        *,
        goal: Goal | None = None,
    ) -> Self:
        """Make a case from measurements of the same repeats.

        Args:
            label: what differs from the other cases.
            unit: of the measurements.
            subject: one a repeat.
            baseline: of the same repeats, in the same order.
            ratio: computes the figure from one subject and its baseline.
            goal: its own; None: the benchmark's.

        Returns:
            Median and spread of the ratios.

        Raises:
            ValueError: Subject and baseline differ in length, or are empty.
        """
        ratios = [ratio(one, other) for one, other in zip(subject, baseline, strict=True)]
        spread = median_interval(ratios)
        middles = statistics.median(subject), statistics.median(baseline)
        return cls(label, statistics.median(ratios), spread, len(ratios), unit, *middles, goal)

    def as_text(self) -> str:
        """Write the case for a terminal."""
        measured = f"{self.ratio:.3g} ({self.spread[0]:.3g} - {self.spread[1]:.3g}, {self.repeats} repeats)"
        own = f"; goal {self.goal}" if self.goal else ""
        return f"{self.label}: {measured}; {self.subject:.4g} to {self.baseline:.4g} {self.unit}{own}"


@dataclass(frozen=True)
class Result:
    """Result of a benchmark: the ratio of the worst case under its goal. It is met if the goals of all cases are."""

    name: str
    compares: str  # what with what, in words
    goal: Goal
    cases: tuple[Case, ...]  # at least one without a goal of its own
    details: dict[str, Any] = field(default_factory=dict)  # what else was measured, as JSON can hold it; no goal
    quick: bool = False

    @property
    def worst(self) -> Case:
        """The case that is reported: of those under the benchmark's goal the farthest from it."""
        return self.goal.worst([case for case in self.cases if case.goal is None])

    def goal_of(self, case: Case) -> Goal:
        """Take the case's own goal, or the benchmark's."""
        return case.goal or self.goal

    @property
    def missed(self) -> list[str]:
        """The labels of the cases that miss their goals."""
        return [case.label for case in self.cases if not self.goal_of(case).met(case.ratio)]

    @property
    def certainly_missed(self) -> list[str]:
        """The labels of the cases whose whole spread misses their goals."""
        return [case.label for case in self.cases if not any(map(self.goal_of(case).met, case.spread))]

    @property
    def met(self) -> bool:
        """Whether every case reaches its goal."""
        return not self.missed

    @property
    def certain(self) -> bool:
        """Whether the verdict would be the same at either end of the spreads."""
        cases = [case for case in self.cases if case.label in self.missed] or self.cases
        clear = [len({self.goal_of(case).met(end) for end in case.spread}) == 1 for case in cases]
        return all(clear) if self.met else any(clear)

    def as_json(self) -> dict[str, Any]:
        """Make one object, with at least name, ratio, spread, goal, met."""
        worst = self.worst
        return {
            "name": self.name,
            "ratio": worst.ratio,
            "spread": list(worst.spread),
            "goal": str(self.goal),
            "met": self.met,
            "missed": self.missed,
            "certain": self.certain,
            "compares": self.compares,
            "unit": worst.unit,
            "baseline": worst.baseline,
            "quick": self.quick,
            "cases": [asdict(case) | {"goal": case.goal and str(case.goal)} for case in self.cases],
            "details": self.details,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Read what `as_json` made; raises KeyError, TypeError or ValueError for anything else."""
        cases = tuple(
            Case(**{**case, "spread": tuple(case["spread"]), "goal": case["goal"] and Goal.parse(case["goal"])})
            for case in values["cases"]
        )
        return cls(
            values["name"], values["compares"], Goal.parse(values["goal"]), cases, values["details"], values["quick"]
        )

    def as_text(self) -> str:
        """Write the result for a terminal."""
        lines = [f"{self.name}: {self.compares}"]
        lines += [f"  {case.as_text()}" for case in self.cases]
        lines += [f"  {name}: {_plain(value)}" for name, value in self.details.items()]
        lines.append(f"  goal {self.goal}: {self.verdict()}")
        return "\n".join(lines)

    def verdict(self) -> str:
        """Say whether the goal is met."""
        sure = "" if self.certain else ", though the spread reaches over the goal"
        where = f" ({', '.join(self.missed)})" if len(self.cases) > 1 else ""
        return f"{'met' if self.met else f'not met{where}'}{sure}"


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
