"""Whatever comes in: findings or a named error, within limits of time and memory, and no word about the patient."""

import os

import pytest

from tests.fuzz import cases
from tests.fuzz.campaign import Summary, numbered, run

QUICK, ALL = 500, 10_000
SEEN = ("abort", "hang", "memory", "all memory", "unnamed", "patient", "quote", "print", "warn")


def held(summary: Summary, least: int) -> None:
    """Show the tables; fail with every case that did not hold."""
    summary.print()
    assert summary.cases >= least
    assert not summary.failures, "\n".join(map(str, summary.failures[:20]))


@pytest.mark.slow
def test_the_harness_sees_what_must_not_happen() -> None:
    """A process that dies, hangs or eats memory, an unnamed error, and a patient's name anywhere are each found."""
    summary = run([f"probe|{name}" for name in SEEN], hang_s=5)
    assert {failure.case for failure in summary.failures} == {f"probe|{name}" for name in SEEN}


def test_sound_files_give_findings() -> None:
    """Every file that cases start from is read to its findings; without that, no damage to it would mean a thing."""
    summary = run(cases.sound_ones())
    held(summary, 40)
    assert summary.results == {"findings": summary.cases - 1, "kept": 1}  # a palette


def test_what_once_failed_holds() -> None:
    """Kept files, each of which once crashed, blew up or leaked, and the published broken ones, hold."""
    held(run([*cases.kept_ones(), *cases.broken_ones()]), 15)


def test_some_cases_hold() -> None:
    """Some hundred damaged files, archives and requests hold."""
    held(run(numbered(0, QUICK)), QUICK)


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_all_cases_hold() -> None:
    """All further ones hold; OSTEON_FUZZ_CASES asks for more."""
    count = int(os.environ.get("OSTEON_FUZZ_CASES", ALL)) - QUICK
    held(run(numbered(QUICK, count)), count)
