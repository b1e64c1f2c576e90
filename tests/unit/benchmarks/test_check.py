"""`--check`: when a benchmark is run again, what counts as missed, and what the table shows."""

import json
from collections.abc import Callable, Sequence

import pytest

from benchmarks import __main__ as cli
from benchmarks.check import RUNS, CheckResult, Verdict, check, exit_code, table
from benchmarks.measure import Case, Goal, MissingRequirement, Result

GOAL = Goal(">=", 0.9)
CERTAIN, LUCKY, UNLUCKY, BAD = [1.0, 1.1, 1.2], [0.8, 1.0, 1.2], [0.7, 0.8, 1.0], [0.1, 0.2, 0.3]


def result(ratios: Sequence[float], *more: Case) -> Result:
    return Result("one", "a with b", GOAL, (Case.of("case", "s", ratios, [1.0] * len(ratios)), *more))


def replayed(*runs: Sequence[float]) -> Callable[[], Result]:
    """A benchmark that gives these ratios, one run after the other."""
    left = list(runs)
    return lambda: result(left.pop(0))


@pytest.mark.parametrize(
    ("runs", "verdict"),
    [
        ([CERTAIN], Verdict.MET),
        ([LUCKY, CERTAIN], Verdict.MET),
        ([BAD, CERTAIN], Verdict.MET),
        ([BAD, BAD], Verdict.MISSED),
        ([LUCKY, LUCKY, LUCKY], Verdict.UNCERTAIN),
        ([UNLUCKY, UNLUCKY, UNLUCKY], Verdict.UNCERTAIN),
        ([BAD, UNLUCKY, BAD], Verdict.UNCERTAIN),
        ([UNLUCKY, BAD, BAD], Verdict.UNCERTAIN),
    ],
)
def test_what_is_not_certain_is_run_again(runs: list[list[float]], verdict: Verdict) -> None:
    """Once where the goal is certainly met, twice where a second run confirms a miss, never more than RUNS times."""
    found = check("one", replayed(*runs))
    assert (found.verdict, len(found.runs), len(found.seconds)) == (verdict, len(runs), len(runs))
    assert len(runs) <= RUNS
    assert exit_code([found]) == (verdict is Verdict.MISSED)


def test_a_miss_is_confirmed_by_the_same_case() -> None:
    """Two cases that miss in turns are noise; one that misses each time is not."""
    names = iter([("a", "b"), ("b", "a"), ("a", "b")])

    def run() -> Result:
        low, high = next(names)
        return Result("one", "", GOAL, (Case.of(low, "s", BAD, [1.0] * 3), Case.of(high, "s", CERTAIN, [1.0] * 3)))

    assert check("one", run).verdict is Verdict.UNCERTAIN


def test_what_cannot_run_is_told() -> None:
    """A crash fails the check; something that is not installed does not, but stands in the table."""

    def missing() -> Result:
        raise MissingRequirement("install it")

    def crashed() -> Result:
        raise RuntimeError("exit code 9")

    absent, broken = check("absent", missing), check("broken", crashed)
    assert (absent.verdict, broken.verdict) == (Verdict.NOT_RUN, Verdict.FAILED)
    assert (exit_code([absent]), exit_code([absent, broken])) == (0, 1)
    shown = table([absent, broken])
    assert "absent not run: install it" in shown
    assert "broken failed: exit code 9" in shown


def test_the_table_shows_the_case_closest_to_missing_its_goal() -> None:
    """Of all cases, those with a goal of their own too, whichever direction it has."""
    tight = Case.of("tight", "s", [1.04, 1.04, 1.04], [1.0] * 3, goal=Goal("<=", 1.05))
    found = CheckResult("one", Verdict.MET, (result(CERTAIN, tight),), (12.4,))
    lines = table([found]).splitlines()
    assert lines[0].split() == ["benchmark", "case", "ratio", "spread", "goal", "verdict", "seconds"]
    assert lines[1].split() == ["one", "tight", "1.04", "1.04", "-", "1.04", "<=", "1.05", "met", "12"]
    assert len(lines) == 2
    slow = CheckResult("one", Verdict.MET, (result(CERTAIN),), (61.0,))
    assert "over 60 s" in table([slow])


def test_the_command_checks_in_small_form(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """--check runs each with --quick, prints one table or one JSON object a line, and ends with the check's code."""
    asked: list[tuple[str, bool]] = []

    def apart(name: str, quick: bool) -> Result:
        asked.append((name, quick))
        return result(BAD if name == "worker" else CERTAIN)

    monkeypatch.setattr(cli, "_in_own_process", apart)
    assert cli.main(["heatmap", "--check"]) == 0
    assert asked == [("heatmap", True)]
    said = capsys.readouterr().out
    assert "machine: " in said
    assert "heatmap" in said
    assert cli.main(["heatmap", "worker", "--check", "--json"]) == 1
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["verdict"] for row in rows] == ["met", "missed"]
    assert all(row["machine"]["cores"] for row in rows)
    with pytest.raises(SystemExit):
        cli.main(["heatmap", "--check", "--write", "somewhere"])


def test_what_is_missing_has_an_exit_code_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A benchmark in a process of its own says so in JSON, and the one that started it understands."""

    def measure(name: str, quick: bool, say: object) -> Result:
        raise MissingRequirement("install it")

    monkeypatch.setattr(cli, "measure", measure)
    assert cli.main(["viewer", "--json"]) == cli.MISSING
    said = capsys.readouterr().out
    done = type("Done", (), {"returncode": cli.MISSING, "stdout": said})
    monkeypatch.setattr("benchmarks.__main__.subprocess.run", lambda *_, **__: done)
    with pytest.raises(MissingRequirement, match="install it"):
        cli._in_own_process("viewer", quick=True)
