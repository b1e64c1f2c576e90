"""`make bench-quick`: every benchmark in its small form, what is not certain again, one table, one exit code.

A small run has few repeats, and a machine has its moods: so a goal counts as missed only where a second run confirms
it, with a case whose whole spread misses in each. What is neither certainly met nor certainly missed after RUNS runs is
told as uncertain, and fails nothing.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from benchmarks.measure import Case, Goal, Missing, Result

RUNS = 3  # of one benchmark at most
ALLOWED_S = 60.0  # of one run, on two quiet cores


class Verdict(StrEnum):
    """What is known of a benchmark's goals after all its runs."""

    MET = "met"
    UNCERTAIN = "uncertain"
    MISSED = "missed"
    FAILED = "failed"  # it did not run to its end
    NOT_RUN = "not run"  # what it needs is not here


@dataclass(frozen=True)
class Checked:
    """A benchmark, its runs, and what came of them."""

    name: str
    verdict: Verdict
    runs: tuple[Result, ...]
    seconds: tuple[float, ...]  # of each run, with one that failed
    why: str = ""  # it failed, or was not run

    @property
    def shown(self) -> tuple[Case, Goal] | None:
        """The case that is closest to missing its goal or misses it most, from the run in the middle; None: no run."""
        if not self.runs:
            return None
        worst = sorted((_worst(run) for run in self.runs), key=lambda found: found[1].margin(found[0].ratio))
        return worst[len(worst) // 2]

    def as_json(self) -> dict[str, Any]:
        """One object with the table's columns, and all runs."""
        row: dict[str, Any] = {"name": self.name, "verdict": self.verdict, "seconds": list(self.seconds)}
        if self.shown:
            case, goal = self.shown
            row |= {"case": case.label, "ratio": case.ratio, "spread": list(case.spread), "goal": str(goal)}
        return row | {"why": self.why, "runs": [run.as_json() for run in self.runs]}


def check(name: str, run: Callable[[], Result], clock: Callable[[], float] = time.monotonic) -> Checked:
    """Run a benchmark until its verdict is certain, RUNS times at most. run: once; raises Missing, or what failed."""
    runs: list[Result] = []
    seconds: list[float] = []
    while len(runs) < RUNS:
        start = clock()
        try:
            runs.append(run())
        except Missing as what:
            return Checked(name, Verdict.NOT_RUN, tuple(runs), tuple(seconds), str(what))
        except Exception as wrong:  # noqa: BLE001 - the others are to be run all the same
            return Checked(name, Verdict.FAILED, tuple(runs), (*seconds, clock() - start), str(wrong))
        seconds.append(clock() - start)
        if runs[-1].met and runs[-1].certain:
            return Checked(name, Verdict.MET, tuple(runs), tuple(seconds))
        if len(runs) > 1 and set.intersection(*(set(one.certainly_missed) for one in runs)):
            return Checked(name, Verdict.MISSED, tuple(runs), tuple(seconds))
    return Checked(name, Verdict.UNCERTAIN, tuple(runs), tuple(seconds))


def table(checked: Sequence[Checked]) -> str:
    """For a terminal: a row a benchmark, and below it what went wrong."""
    head = ("benchmark", "case", "ratio", "spread", "goal", "verdict", "seconds")
    rows = [head, *map(_row, checked)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += [f"{one.name} {one.verdict}: {one.why}" for one in checked if one.why]
    slow = [one.name for one in checked if max(one.seconds, default=0.0) > ALLOWED_S]
    if slow:
        lines.append(f"over {ALLOWED_S:.0f} s in one run, which two quiet cores should not take: {', '.join(slow)}")
    return "\n".join(lines)


def exit_code(checked: Sequence[Checked]) -> int:
    """1 where a goal is certainly missed or a benchmark failed, else 0."""
    return int(any(one.verdict in (Verdict.MISSED, Verdict.FAILED) for one in checked))


def _worst(run: Result) -> tuple[Case, Goal]:
    return min(((case, run.goal_of(case)) for case in run.cases), key=lambda found: found[1].margin(found[0].ratio))


def _row(one: Checked) -> tuple[str, ...]:
    seconds = " + ".join(f"{each:.0f}" for each in one.seconds)
    if one.shown is None:
        return (one.name, "", "", "", "", one.verdict, seconds)
    case, goal = one.shown
    spread = f"{case.spread[0]:.3g} - {case.spread[1]:.3g}"
    return (one.name, case.label, f"{case.ratio:.3g}", spread, str(goal), one.verdict, seconds)
