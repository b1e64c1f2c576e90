"""The list of faults follows the code and the tests, and its runner tells a caught fault from a survivor."""

import ast
from pathlib import Path

import pytest

from tests.mutants.__main__ import ROOT, InvalidFault, Outcome, changed, check_unchanged, judge, outcomes_of, planted
from tests.mutants.faults import FAULTS, Fault

FAULT = Fault("name", "What is wrong.", "code.py", "is_right", "is_wrong", ("tests/a.py::test_a", "tests/a.py::test_b"))
REPORT = """<testsuites><testsuite>
<testcase classname="tests.unit.test_x" name="test_one[1]"/>
<testcase classname="tests.unit.test_x" name="test_one[2]"><failure message="no"/></testcase>
<testcase classname="tests.unit.test_x" name="test_one[3]"/>
<testcase classname="tests.unit.test_x" name="test_two"><error message="no"/></testcase>
<testcase classname="tests.unit.test_x" name="test_three"/>
<testcase classname="tests.unit.test_x" name="test_four"><skipped message="not here"/></testcase>
</testsuite></testsuites>"""


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_fits_the_code_and_the_tests(fault: Fault) -> None:
    """Its text stands exactly once in its file, what it makes of it is Python, and its tests exist and are not slow."""
    assert changed(ROOT / fault.file, fault) != (ROOT / fault.file).read_text(encoding="utf-8")
    assert fault.wrong.endswith(".")
    assert fault.tests
    for test in fault.tests:
        file, _, name = test.partition("::")
        code = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        (found,) = [each for each in code.body if isinstance(each, ast.FunctionDef) and each.name == name]
        assert not any("mark.slow" in ast.unparse(decorator) for decorator in found.decorator_list)


def test_faults_have_names_of_their_own() -> None:
    """A name picks one fault, and there are at least twenty."""
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 20


def test_a_fault_must_fit_its_file(tmp_path: Path) -> None:
    """A text that is not there, is there twice, or makes no Python of the file, is refused with the cure."""
    file = tmp_path / "code.py"
    for content in ("", "is_right = is_right"):
        file.write_text(content)
        with pytest.raises(InvalidFault, match=r"faults\.py up to date"):
            changed(file, FAULT)
    with pytest.raises(InvalidFault, match="up to date"):
        changed(tmp_path / "gone.py", FAULT)
    file.write_text("is_right = 1")
    with pytest.raises(InvalidFault, match="no Python"):
        changed(file, Fault("name", "What is wrong.", "code.py", "is_right =", "is_right = =", ()))


def test_a_fault_stands_in_the_file_only_for_a_while(tmp_path: Path) -> None:
    """The file is as it was afterwards, and in between its time of change differs by seconds: no stale bytecode runs."""
    file = tmp_path / "code.py"
    file.write_text("is_right = 1")
    before = file.stat().st_mtime
    times = []
    for number in (1, 2):
        with planted(file, FAULT, number):
            assert file.read_text() == "is_wrong = 1"
            times.append(int(file.stat().st_mtime))
    assert file.read_text() == "is_right = 1"
    assert file.stat().st_mtime == before
    assert len({int(before), *times}) == 3


def test_what_pytest_reports(tmp_path: Path) -> None:
    """One failed case fails its test, an error counts as a failure, and what was skipped did not pass."""
    report = tmp_path / "report.xml"
    report.write_text(REPORT)
    here = "tests/unit/test_x.py::test_"
    expected = {"one": Outcome.FAILED, "two": Outcome.FAILED, "three": Outcome.PASSED, "four": Outcome.SKIPPED}
    assert outcomes_of(report) == {here + name: outcome for name, outcome in expected.items()}


def test_each_named_test_must_fail() -> None:
    """A fault is caught when each of its tests fails; one that passes makes it a survivor, as does one that is gone."""
    a, b = FAULT.tests
    assert judge(FAULT, {a: Outcome.FAILED, b: Outcome.FAILED}, 1).caught
    for outcomes in ({a: Outcome.FAILED, b: Outcome.PASSED}, {a: Outcome.FAILED}, {}):
        verdict = judge(FAULT, outcomes, 1)
        assert not verdict.caught
        assert b in verdict.passed
    assert judge(FAULT, {"tests/c.py::test_c": Outcome.FAILED, a: Outcome.PASSED}, 1, whole=True).caught
    assert not judge(FAULT, {a: Outcome.PASSED}, 1, whole=True).caught


def test_what_tells_nothing_is_refused() -> None:
    """A test that `make test` does not run, or that fails without any fault, cannot catch one."""
    a, b = FAULT.tests
    check_unchanged({a: Outcome.PASSED, b: Outcome.PASSED}, FAULT.tests)
    for outcomes, why in (
        ({a: Outcome.PASSED}, "not run by `make test`"),
        ({a: Outcome.PASSED, b: Outcome.SKIPPED}, "not run by `make test`"),
        ({a: Outcome.PASSED, b: Outcome.FAILED}, "fail without any fault"),
    ):
        with pytest.raises(InvalidFault, match=why):
            check_unchanged(outcomes, FAULT.tests)
