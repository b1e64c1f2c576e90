"""Runs cases in children, so that one that crashes, hangs or eats memory is seen and blamed, and nobody else is."""

import resource
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pebble import ProcessExpired, ProcessPool
from rich import box
from rich.console import Console
from rich.table import Table

from tests.forked import CONTEXT
from tests.fuzz import cases
from tests.pace import limit_s

HANG_S = 30.0  # of the clock for a case that is never to end; processor time has a tighter limit in the path itself
ADDRESS_SPACE = 2**30  # bytes beyond what a child has when it starts
CHILDREN = 2
WAITING = 200  # cases handed out at a time
_way: Any = None


@dataclass
class Failure:
    """A case for which something happened that must not."""

    case: str
    wrong: str

    def __str__(self) -> str:
        return f"{self.wrong}\n    again: .venv/bin/python -m tests.fuzz '{self.case}'"


@dataclass
class Summary:
    """What became of all cases."""

    cases: int = 0
    failures: list[Failure] = field(default_factory=list)
    results: Counter[str] = field(default_factory=Counter)
    by_mutator: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    slowest: tuple[float, str] = (0.0, "")  # processor seconds
    largest: tuple[float, str] = (0.0, "")  # MiB beyond the process itself

    def add(self, case: str, outcome: Any) -> None:
        """Count one in; outcome: path.Outcome, or the exception that came in its place."""
        self.cases += 1
        if isinstance(outcome, TimeoutError):
            result, wrong = "hang", "no response within the limit"
        elif isinstance(outcome, ProcessExpired | BrokenProcessPool):
            result, wrong = "crash", f"the process died, exit code {getattr(outcome, 'exitcode', 'unknown')}"
        elif isinstance(outcome, BaseException):
            result, wrong = "harness", f"{type(outcome).__name__}: {outcome}"
        else:
            result, wrong = outcome.result.split(":")[0], outcome.wrong
            result = "wrong" if wrong else result
            self.slowest = max(self.slowest, (outcome.cpu_s, case))
            self.largest = max(self.largest, (outcome.mib, case))
        if wrong:
            self.failures.append(Failure(case, wrong))
        self.results[result] += 1
        short = "findings" if result == "findings" else "failed" if wrong else "named error"
        for name in cases.names(case) or ["sound"]:
            self.by_mutator[name][short if result not in ("archive", "request") else "held"] += 1

    def print(self) -> None:
        """Show the tables."""
        console = Console(width=110)
        mutators = Table("mutator", "cases", "findings", "named error", "held", "failed", box=box.SIMPLE_HEAD)
        for name, counts in sorted(self.by_mutator.items()):
            kinds = [counts[kind] for kind in ("findings", "named error", "held", "failed")]
            mutators.add_row(name, str(sum(kinds)), *(str(count) if count else "" for count in kinds))
        results = Table("outcome", "cases", box=box.SIMPLE_HEAD)
        for result, count in self.results.most_common():
            results.add_row(result, str(count))
        console.print(mutators, results)
        console.print(f"{self.cases} cases, {len(self.failures)} failed")
        console.print(f"slowest: {self.slowest[0]:.2f} s of processor time, {self.slowest[1]}")
        console.print(f"largest: {self.largest[0]:.0f} MiB beyond the process itself, {self.largest[1]}")


def run(wanted: Iterable[str], children: int = CHILDREN, hang_s: float = HANG_S) -> Summary:
    """Run the cases; returns when all are over. hang_s: what a case may take on a quiet machine, by the clock."""
    summary = Summary()
    waiting: deque[tuple[str, Any]] = deque()
    orphans: list[str] = []  # cases whose pool broke, by themselves or by a neighbour

    def collect(leave: int) -> None:
        while len(waiting) > leave:
            case, future = waiting.popleft()
            if isinstance(outcome := future.exception() or future.result(), BrokenProcessPool):
                orphans.append(case)
            else:
                summary.add(case, outcome)

    left = iter(wanted)
    case = next(left, None)
    while case is not None:  # a pool breaks when a child dies before it could say which case it had begun
        with _pool(children) as pool:
            while case is not None and pool.active:
                waiting.append((case, pool.schedule(_run_one, args=(case,), timeout=limit_s(hang_s))))
                case = next(left, None)
                if len(waiting) >= WAITING:
                    collect(WAITING // 2)
            collect(0)
    for orphan in orphans:
        with _pool(1) as pool:
            future = pool.schedule(_run_one, args=(orphan,), timeout=limit_s(hang_s))
            summary.add(orphan, future.exception() or future.result())
    return summary


@contextmanager
def _pool(children: int) -> Iterator[ProcessPool]:
    with ProcessPool(children, context=CONTEXT, initializer=_start) as pool:
        try:
            yield pool
        except BaseException:
            pool.stop()  # type: ignore[no-untyped-call]
            raise


def numbered(first: int, count: int) -> Iterator[str]:
    """So many cases."""
    return (cases.one(number) for number in range(first, first + count))


def _start() -> None:
    from tests.fuzz.path import ChildSystem

    global _way  # noqa: PLW0603 - one for each child
    _way = ChildSystem()
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + ADDRESS_SPACE
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _run_one(case: str) -> Any:
    if case.startswith("probe|"):
        return _way.probe(case.removeprefix("probe|"))
    made = cases.make(case)
    return _way.request(*made) if isinstance(made, tuple) else _way.file(made)
