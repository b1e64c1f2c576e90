"""python -m tests.mutants [NAME...]: does the quick suite find the faults of tests/mutants/faults.py?"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TextIO

from tests.mutants.faults import FAULTS, Fault
from tests.pace import slowness

ROOT = Path(__file__).parents[2]
QUICK = "not slow and not systems"  # as `make test` has it: what it does not run catches nothing
OF_THE_LIST = "tests/unit/test_mutants.py"  # fails with every fault, for its text is gone: that is no catch
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "runs", "build", "dist", "node_modules")
RAN = (0, 1)  # pytest's exit codes of a run to its end
DESCRIPTION = """\
Put each fault into a copy of the code alone, and see that the quick suite fails.

The checkout is never changed. The named tests run on the unchanged copy first and must pass there. A fault is caught
when each of its tests fails; it survives when one of them passes, and then the suite has a hole: write a test.
"""
EXAMPLES = """\
examples:
  python -m tests.mutants                     all faults, some minutes on two cores
  python -m tests.mutants lease-not-checked   one of them
  python -m tests.mutants --list              what they are
  python -m tests.mutants --whole NAME        all of `make test`, for those who doubt: which test finds it?

The faults stand in tests/mutants/faults.py. Exit codes: 0 all are caught, 1 one survives, 2 the list is wrong: a text
that no longer stands in the code exactly once, or a test that is missing, is not of the quick suite, or fails anyway.
"""


class InvalidFault(Exception):
    """The list does not fit the code or the tests any more; says what to change."""


class Outcome(StrEnum):
    """What became of a test in all its cases together."""

    PASSED = "passed"
    FAILED = "failed"  # at least one case
    SKIPPED = "skipped"


@dataclass(frozen=True)
class Verdict:
    """What came of one fault."""

    name: str
    wrong: str
    file: str
    caught: bool
    by: list[str]  # the tests that failed
    passed: list[str]  # the named ones that did not
    seconds: float


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutants",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="which faults; default: all")
    parser.add_argument("--list", action="store_true", help="print the faults and their tests, run nothing")
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end, for scripts")
    parser.add_argument(
        "--whole", action="store_true", help="run the whole quick suite on each fault, not only its tests"
    )
    given = parser.parse_args(arguments)
    unknown = set(given.names) - {fault.name for fault in FAULTS}
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}. There are: {', '.join(fault.name for fault in FAULTS)}")
    chosen = [fault for fault in FAULTS if not given.names or fault.name in given.names]
    if given.list:
        for fault in chosen:
            print(f"{fault.name} ({fault.file})\n  {fault.wrong}\n  found by {', '.join(fault.tests)}")
        return 0
    start = time.monotonic()
    try:
        with copy_of(ROOT) as tree:
            verdicts = list(judge_all(tree, chosen, whole=given.whole, told=sys.stderr if given.json else sys.stdout))
    except InvalidFault as error:
        print(error, file=sys.stderr)
        return 2
    survivors = [verdict for verdict in verdicts if not verdict.caught]
    seconds = round(time.monotonic() - start, 1)
    if given.json:
        print(json.dumps({"faults": [asdict(verdict) for verdict in verdicts], "seconds": seconds}, indent=2))
    else:
        print(f"{len(verdicts) - len(survivors)} of {len(verdicts)} faults caught in {seconds:.0f} s")
        for verdict in survivors:
            print(
                f"SURVIVES: {verdict.name}: {verdict.wrong} Passed with it: {', '.join(verdict.passed) or 'all tests'}"
            )
    return 1 if survivors else 0


@contextmanager
def copy_of(root: Path) -> Iterator[Path]:
    """A copy of the checkout that is gone after the block."""
    with tempfile.TemporaryDirectory(prefix="osteon-mutants-") as folder:
        tree = Path(folder) / "code"
        shutil.copytree(root, tree, ignore=LEFT_OUT, symlinks=True)
        yield tree


def judge_all(tree: Path, faults: Sequence[Fault], *, whole: bool, told: TextIO) -> Iterator[Verdict]:
    """The verdict on each fault; told: where a line is written as each comes. Raises InvalidFault."""
    for fault in faults:
        changed(tree / fault.file, fault)  # before minutes are spent
    slowness()  # measured once, for all processes that inherit it
    named = () if whole else tuple(dict.fromkeys(test for fault in faults for test in fault.tests))
    began = time.monotonic()
    check_unchanged(run_tests(tree, named), named)
    print(f"the unchanged code passes, {time.monotonic() - began:.1f} s", file=told, flush=True)
    for number, fault in enumerate(faults, start=1):
        began = time.monotonic()
        with planted(tree / fault.file, fault, number):
            outcomes = run_tests(tree, () if whole else fault.tests, stop=whole)
        verdict = judge(fault, outcomes, round(time.monotonic() - began, 1), whole=whole)
        place = f"{number:2}/{len(faults)} {fault.name:26} {verdict.seconds:6.1f} s"
        found = f"caught by {', '.join(verdict.by)}" if verdict.caught else "SURVIVES"
        print(f"{place}  {found}", file=told, flush=True)
        yield verdict


def check_unchanged(outcomes: Mapping[str, Outcome], named: Sequence[str]) -> None:
    """Raises InvalidFault unless all named tests ran and passed on the unchanged code."""
    missing = [test for test in named if outcomes.get(test, Outcome.SKIPPED) is Outcome.SKIPPED]
    if missing:
        raise InvalidFault(
            f"These tests are not run by `make test` (no such test, slow, or skipped): {', '.join(missing)}"
        )
    failing = [test for test, outcome in outcomes.items() if outcome is Outcome.FAILED]
    if failing:
        raise InvalidFault(f"These tests fail without any fault, so they tell nothing: {', '.join(failing)}")


def judge(fault: Fault, outcomes: Mapping[str, Outcome], seconds: float, *, whole: bool = False) -> Verdict:
    """Whether these outcomes catch the fault: each named test must fail, or, of the whole suite, any."""
    failed = [test for test, outcome in outcomes.items() if outcome is Outcome.FAILED]
    passed = [] if whole else [test for test in fault.tests if test not in failed]
    return Verdict(fault.name, fault.wrong, fault.file, bool(failed) and not passed, failed, passed, seconds)


def changed(file: Path, fault: Fault) -> str:
    """The file's text with the fault in it. Raises InvalidFault where the fault's text does not stand there exactly once."""
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    if text.count(fault.text) != 1:
        raise InvalidFault(
            f"{fault.name}: the text of this fault stands {text.count(fault.text)} times in {fault.file}, not once. "
            "Bring tests/mutants/faults.py up to date with the code."
        )
    made = text.replace(fault.text, fault.instead)
    if file.suffix == ".py":
        try:
            compile(made, str(file), "exec")
        except SyntaxError as error:
            raise InvalidFault(f"{fault.name}: with this fault {fault.file} is no Python any more: {error}") from error
    return made


@contextmanager
def planted(file: Path, fault: Fault, number: int) -> Iterator[None]:
    """The fault stands in the file during the block. number: another one for each fault. Raises InvalidFault."""
    made, before, times = changed(file, fault), file.read_bytes(), file.stat()
    file.write_text(made, encoding="utf-8")
    # Python takes compiled code for current by the source's size and second of change: give each fault one of its own
    os.utime(file, (times.st_atime, int(times.st_mtime) + 10 * number))
    try:
        yield
    finally:
        file.write_bytes(before)
        os.utime(file, (times.st_atime, times.st_mtime))


def run_tests(tree: Path, tests: Sequence[str], *, stop: bool = False) -> dict[str, Outcome]:
    """What became of the quick tests among these, or of all quick tests where none is named; by node id.

    stop: at the first failure. Raises InvalidFault where pytest did not come to its end.
    """
    report = tree.parent / "report.xml"
    report.unlink(missing_ok=True)
    how = ["-n", "0"] if tests else ["-n", "auto", "--dist", "loadgroup"]
    command = [
        sys.executable,
        "-m",
        "pytest",
        *how,
        "-m",
        QUICK,
        "-q",
        "-p",
        "no:cacheprovider",
        f"--junitxml={report}",
    ]
    command += [f"--ignore={OF_THE_LIST}"]
    command += ["--maxfail=1"] if stop else []
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "OSTEON_"))}
    # the tests start other programs: these too must find the copy, not the checkout
    environment["PYTHONPATH"] = str(tree)
    done = subprocess.run(
        [*command, *tests],
        cwd=tree,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if (done.returncode not in RAN and not (tests and done.returncode == 5)) or not report.is_file():
        raise InvalidFault(f"pytest did not come to its end (exit code {done.returncode}):\n{done.stdout[-4000:]}")
    return outcomes_of(report)


def outcomes_of(report: Path) -> dict[str, Outcome]:
    """What pytest's JUnit report says of each test, by node id without parameters."""
    found: dict[str, Outcome] = {}
    for case in ET.parse(report).getroot().iter("testcase"):
        where = case.get("classname", "").replace(".", "/")
        test = f"{where}.py::{case.get('name', '').partition('[')[0]}"
        kinds = {child.tag for child in case}
        outcome = (
            Outcome.FAILED
            if kinds & {"failure", "error"}
            else Outcome.SKIPPED
            if "skipped" in kinds
            else Outcome.PASSED
        )
        if found.get(test) is not Outcome.FAILED and not (test in found and outcome is Outcome.SKIPPED):
            found[test] = outcome
    return found


if __name__ == "__main__":
    sys.exit(main())
