"""`make bench-quick`: runs every benchmark small, repeats what is uncertain, and prints one table.

A small run has few repeats, and a machine is noisy: so a goal counts as missed only where a second run confirms
it, with a case whose whole spread misses in each. What is neither certainly met nor certainly missed after RUNS runs is
reported as uncertain, and fails nothing.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from benchmarks.measure import Case, Goal, MissingRequirement, Result

RUNS = 3  # of one benchmark at most
ALLOWED_S = 60.0  # of one run, on two quiet cores


class Verdict(StrEnum):
    """Verdict on a benchmark's goals after all its runs."""

    MET = "met"
    UNCERTAIN = "uncertain"
    MISSED = "missed"
    FAILED = "failed"  # it did not run to its end
    NOT_RUN = "not run"  # what it needs is not here


@dataclass(frozen=True)
class CheckResult:
    """A benchmark with its runs and its verdict."""

    name: str
    verdict: Verdict
    runs: tuple[Result, ...]
    seconds: tuple[float, ...]  # of each run, with one that failed
    why: str = ""  # it failed, or was not run

    @property
    def shown(self) -> tuple[Case, Goal] | None:
        """The case that misses its goal most, or is closest to it, in the run in the middle; None without a run."""
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


def check(name: str, run: Callable[[], Result], clock: Callable[[], float] = time.monotonic) -> CheckResult:
    """Run a benchmark until its verdict is certain, RUNS times at most.

    Args:
        name: of the benchmark, for the table.
        run: runs it once; raises MissingRequirement where it cannot, or whatever failed.
        clock: seconds, for a test to replace.

    Returns:
        All runs and the verdict; what `run` raised is in it.
    """
    runs: list[Result] = []
    seconds: list[float] = []
    while len(runs) < RUNS:
        start = clock()
        try:
            runs.append(run())
        except MissingRequirement as error:
            return CheckResult(name, Verdict.NOT_RUN, tuple(runs), tuple(seconds), str(error))
        except Exception as error:  # noqa: BLE001 - the others are to be run all the same
            return CheckResult(name, Verdict.FAILED, tuple(runs), (*seconds, clock() - start), str(error))
        seconds.append(clock() - start)
        if runs[-1].met and runs[-1].certain:
            return CheckResult(name, Verdict.MET, tuple(runs), tuple(seconds))
        if len(runs) > 1 and set.intersection(*(set(one.certainly_missed) for one in runs)):
            return CheckResult(name, Verdict.MISSED, tuple(runs), tuple(seconds))
    return CheckResult(name, Verdict.UNCERTAIN, tuple(runs), tuple(seconds))


def table(checked: Sequence[CheckResult]) -> str:
    """Print for a terminal: a row a benchmark, and below it what went wrong."""
    head = ("benchmark", "case", "ratio", "spread", "goal", "verdict", "seconds")
    rows = [head, *map(_row, checked)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += [f"{one.name} {one.verdict}: {one.why}" for one in checked if one.why]
    slow = [one.name for one in checked if max(one.seconds, default=0.0) > ALLOWED_S]
    if slow:
        lines.append(f"over {ALLOWED_S:.0f} s in one run, which two quiet cores should not take: {', '.join(slow)}")
    return "\n".join(lines)


def exit_code(checked: Sequence[CheckResult]) -> int:
    """Return 1 where a goal is certainly missed or a benchmark failed, else 0."""
    return int(any(one.verdict in (Verdict.MISSED, Verdict.FAILED) for one in checked))


def _worst(run: Result) -> tuple[Case, Goal]:
    return min(((case, run.goal_of(case)) for case in run.cases), key=lambda found: found[1].margin(found[0].ratio))


def _row(one: CheckResult) -> tuple[str, ...]:
    seconds = " + ".join(f"{each:.0f}" for each in one.seconds)
    if one.shown is None:
        return (one.name, "", "", "", "", one.verdict, seconds)
    case, goal = one.shown
    spread = f"{case.spread[0]:.3g} - {case.spread[1]:.3g}"
    return (one.name, case.label, f"{case.ratio:.3g}", spread, str(goal), one.verdict, seconds)
