"""The backtest's laws: what no order of a list can change, and what ours entries."""

import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from infra import cli
from infra.backtest import arrivals as made
from infra.backtest.arrivals import Arrival
from infra.backtest.figures import figures
from infra.backtest.simulation import Department, Policy, Shift, simulate
from shared.domain.study import Priority
from shared.domain.worklist import TURNAROUND_TARGETS
from shared.settings import Settings

KINDS = [kind for kind in TURNAROUND_TARGETS if kind != "pending"]
PRIORITIES = st.sampled_from(list(Priority))


def arrival(minutes: st.SearchStrategy[float | None]) -> st.SearchStrategy[Arrival]:
    return st.builds(
        Arrival,
        at=st.integers(0, 3000).map(float),
        priority=PRIORITIES,
        kind=st.sampled_from(KINDS),
        probability=st.none() | st.floats(0, 1),
        fracture=st.none() | st.booleans(),
        reading_minutes=minutes,
    )


def listed(minutes: st.SearchStrategy[float | None]) -> st.SearchStrategy[list[Arrival]]:
    return st.lists(arrival(minutes), min_size=1, max_size=40).map(
        lambda found: sorted(found, key=lambda each: each.at)
    )


EQUAL = listed(st.none())
UNEQUAL = listed(st.integers(1, 60).map(float))
SHIFTS = st.lists(
    st.builds(Shift, st.integers(0, 23).map(float), st.integers(1, 24).map(float)), min_size=1, max_size=3
)
DELAYS = st.integers(0, 30).map(float)


def busy(readings: list[Any]) -> list[tuple[float, float]]:
    """The stretches of time in which one reader works."""
    found: list[tuple[float, float]] = []
    for each in sorted(readings, key=lambda each: each.start):
        if found and found[-1][1] == each.start:
            found[-1] = (found[-1][0], each.end)
        else:
            found.append((each.start, each.end))
    return found


@given(UNEQUAL, SHIFTS, DELAYS, st.sampled_from(Policy))
def test_each_study_is_read_once_and_after_it_came(
    replayed: list[Arrival], shifts: list[Shift], delay: float, policy: Policy
) -> None:
    """Nothing is lost or read twice, nobody reads before arrival, outside a shift, or two studies at once."""
    readings = simulate(replayed, policy, Department(shifts, 4.0, delay))
    assert Counter(id(each.arrival) for each in readings) == Counter(map(id, replayed))
    for each in readings:
        assert each.start >= each.arrival.at
        assert each.end - each.start == pytest.approx(each.arrival.reading_minutes)
        assert any(shift.next_from(each.start) == each.start for shift in shifts)
        assert sum(other.start <= each.start < other.end for other in readings) <= len(shifts)


@given(UNEQUAL, DELAYS)
def test_no_policy_works_more_or_rests_more(replayed: list[Arrival], delay: float) -> None:
    """A single reader is busy at the same times whatever the order: the policies differ in who waits, not in work."""
    first, *others = (busy(simulate(replayed, policy, Department((Shift(),), 4.0, delay))) for policy in Policy)
    assert all(other == first for other in others)


@given(EQUAL, SHIFTS, DELAYS, st.integers(1, 90).map(float))
def test_waits_are_conserved(replayed: list[Arrival], shifts: list[Shift], delay: float, minutes: float) -> None:
    """With equal reading times all policies have the same mean wait: what one study gains another loses."""
    means = [
        sum(each.wait for each in simulate(replayed, policy, Department(shifts, minutes, delay))) / len(replayed)
        for policy in Policy
    ]
    assert means == pytest.approx([means[0]] * len(means))


@given(EQUAL, SHIFTS, DELAYS, st.integers(1, 90).map(float))
def test_arrival_order_has_the_least_longest_wait(
    replayed: list[Arrival], shifts: list[Shift], delay: float, minutes: float
) -> None:
    """With equal reading times no policy has a shorter longest wait than first come, first served."""
    longest = {
        policy: max(each.wait for each in simulate(replayed, policy, Department(shifts, minutes, delay)))
        for policy in Policy
    }
    assert longest[Policy.ARRIVAL] <= min(longest.values()) + 1e-9


@given(UNEQUAL)
def test_ours_waits_at_most_its_target_and_the_work_then_left(replayed: list[Arrival]) -> None:
    """With findings at hand, nothing that comes after a study's due time is read before it: it waits no longer than its
    target, and then until what was there already is read."""
    readings = simulate(replayed, Policy.DUE, Department((Shift(),), 4.0, 0.0))
    for each in readings:
        due = each.arrival.at + TURNAROUND_TARGETS[each.arrival.kind][each.arrival.priority]
        there = [other for other in readings if other.arrival.at <= due < other.end]
        left = sum(other.end - max(due, other.start) for other in there)
        assert each.start <= due + left + 1e-9
        # those that came later and went first came before it was due
        assert all(other.arrival.at <= due for other in readings if other.start < each.start)


def test_probability_alone_starves_who_looks_harmless() -> None:
    """One sound-looking study waits for as long as others keep coming; ours reads it once it is due."""
    steady = [Arrival(float(at), Priority.ROUTINE, "unclear", 0.3, None, 5.0) for at in range(0, 6000, 5)]
    harmless = Arrival(1.0, Priority.ROUTINE, "negative", 0.001, None, 5.0)
    replayed = sorted([*steady, harmless], key=lambda each: each.at)
    department = Department((Shift(),), 5.0, 0.0)
    waits = {
        policy: next(each.wait for each in simulate(replayed, policy, department) if each.arrival is harmless)
        for policy in Policy
    }
    assert waits[Policy.PROBABILITY] > 5900
    assert waits[Policy.DUE] <= 1440 + 5
    assert waits[Policy.ARRIVAL] <= 5


def test_a_shift_through_the_night() -> None:
    """A shift from 18 to 8 works at 23 and at 7, and not at noon; one from 0 to 24 always does."""
    night = Shift(18, 8)
    assert [night.next_from(hour * 60.0) / 60 for hour in (0, 7, 8, 12, 18, 23)] == [0, 7, 18, 18, 18, 23]
    assert Shift().next_from(12345.0) == 12345.0


def test_figures() -> None:
    """Mean, 95th percentile by nearest rank, maximum, and the share over its target, by class and over all."""
    replayed = [Arrival(0.0, Priority.ROUTINE, "positive", 0.5, True, 2.0) for _ in range(20)]
    rows = {row.kind: row for row in figures(Policy.DUE, simulate(replayed, Policy.DUE, Department()), Department())}
    assert set(rows) == {"positive", "all", "fractured"}
    assert (rows["positive"].mean, rows["positive"].p95, rows["positive"].maximum) == (19.0, 36.0, 38.0)
    assert rows["positive"].over == 4 / 20  # 32, 34, 36 and 38 minutes; 30 are allowed


@given(listed(st.none() | st.integers(1, 60).map(float)))
def test_arrivals_written_are_arrivals_read(tmp_path_factory: Any, replayed: list[Arrival]) -> None:
    """The CSV keeps all that a simulation needs; only the days before the first arrival fall away."""
    path = tmp_path_factory.mktemp("arrivals") / "a.csv"
    made.write_arrivals(path, replayed)
    days = math.floor(replayed[0].at / 1440) * 1440
    again = made.read_arrivals(path)
    assert [each.at + days for each in again] == [each.at for each in replayed]
    said = lambda each: (each.priority, each.kind, each.probability, each.fracture, each.reading_minutes)  # noqa: E731
    assert Counter(map(said, again)) == Counter(map(said, replayed))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "first line"),
        ("when\n1\n", "arrived_at"),
        ("arrived_at\n2026-01-05T08:00:00\n", "class"),
        ("arrived_at,class\nyesterday,negative\n", "line 2"),
        ("arrived_at,class\n2026-01-05T08:00:00,maybe\n", "positive severe"),
        ("arrived_at,class,probability\n2026-01-05T08:00:00,negative,7\n", "line 2"),
        ("arrived_at,class\n2026-01-05T08:00:00,negative\n2026-01-05T08:00:00+01:00,negative\n", "time zone"),
    ],
)
def test_arrivals_that_cannot_be_understood(tmp_path: Path, text: str, words: str) -> None:
    """A bad CSV is an error in words that names the line or the columns, and exit code 1."""
    (tmp_path / "a.csv").write_text(text)
    done = CliRunner().invoke(cli.app, ["backtest", str(tmp_path / "a.csv")])
    assert (done.exit_code, done.stdout) == (1, "")
    assert words in done.stderr


def test_call_and_severity_make_a_class(tmp_path: Path) -> None:
    """Exports that have assessment and severity instead of a class are understood; an empty assessment is pending."""
    lines = [
        "arrived_at,assessment,severity",
        "2026-01-05T08:00,positive,severe",
        "2026-01-05T08:01,positive,mild",
        "2026-01-05T08:02,,",
    ]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    assert [each.kind for each in made.read_arrivals(tmp_path / "a.csv")] == ["positive severe", "positive", "pending"]


def test_synthetic_department_is_as_the_manifest_says() -> None:
    """Prevalence, calls and abstentions of many synthetic studies come near the figures they are made from."""
    manifest = made.manifest_of(Settings().bundle_path)
    studies = made.synthetic_arrivals(manifest, 1, 60, 400)
    assert studies == made.synthetic_arrivals(manifest, 1, 60, 400)
    assert studies != made.synthetic_arrivals(manifest, 2, 60, 400)
    broken = [each for each in studies if each.fracture]
    assert len(broken) / len(studies) == pytest.approx(made.PREVALENCE, abs=0.01)
    called = [each for each in studies if each.kind != "abstained"]
    sensitive = sum(each.kind != "negative" for each in called if each.fracture) / sum(
        bool(each.fracture) for each in called
    )
    specific = sum(not each.kind.startswith("positive") for each in called if not each.fracture) / sum(
        not each.fracture for each in called
    )
    assert sensitive == pytest.approx(manifest["metrics"]["operating_points"]["sensitive"]["sensitivity"][0], abs=0.01)
    assert specific == pytest.approx(manifest["metrics"]["operating_points"]["specific"]["specificity"][0], abs=0.01)
    for each in called:
        assert (each.probability >= manifest["specific"]) == each.kind.startswith("positive")
        assert (each.probability < manifest["sensitive"]) == (each.kind == "negative")


def test_command(tmp_path: Path) -> None:
    """What --synthetic saves can be replayed to the same figures; the plot is a picture; other targets change ours only."""
    saved, picture, table = tmp_path / "a.csv", tmp_path / "plots" / "a.png", tmp_path / "targets.json"
    run: Callable[..., Result] = lambda *words: CliRunner().invoke(cli.app, ["backtest", *map(str, words)])  # noqa: E731
    first = run("--synthetic", "--days", 3, "--save", saved, "--plot", picture, "--json")
    assert first.exit_code == 0, first.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")
    told = json.loads(first.stdout)["figures"]
    assert {row["policy"] for row in told} == {"first come, first served", "probability only", "osteon"}
    again = json.loads(run(saved, "--json").stdout)["figures"]
    assert [row["studies"] for row in again] == [row["studies"] for row in told]
    assert [row["mean"] for row in again] == pytest.approx(
        [row["mean"] for row in told], abs=0.1
    )  # seconds are rounded
    whole = {kind: dict.fromkeys(row, 5) for kind, row in TURNAROUND_TARGETS.items()}
    table.write_text(json.dumps({"minutes": whole, "longest_minutes": 5}))  # as GET /api/v1/turnaround-targets answers
    other = json.loads(run(saved, "--json", "--targets", table).stdout)["figures"]
    of_before = run(saved, "--json", "--allowances", table)
    assert json.loads(of_before.stdout)["figures"] == other
    assert "--allowances is now --targets" in " ".join(of_before.stderr.split())
    means: Callable[..., list[float]] = lambda rows, policy: [row["mean"] for row in rows if row["policy"] == policy]  # noqa: E731
    assert means(other, "probability only") == means(again, "probability only")
    assert means(other, "osteon") != means(again, "osteon")
    shown = run(saved, "--readers", 2, "--hours", "8-18,18-8")
    assert "maximum" in shown.stdout
    assert "Research use only" in shown.stdout


def test_unsound_tables_and_other_encodings_are_refused(tmp_path: Path) -> None:
    """A table that no department could switch on is refused with the reasons, a CSV of a spreadsheet's own with the cure."""
    table, arrivals = tmp_path / "targets.json", tmp_path / "arrivals.csv"
    table.write_text('{"negative": {"routine": 1, "urgent": 1}}')
    arrivals.write_bytes("arrived_at,class\n2026-01-01,negative\nM\u00fcller,negative\n".encode("cp1252"))
    for arguments, words in (
        (["--synthetic", "--targets", str(table)], "may not wait longer"),
        (["--synthetic", "--targets", str(table), "--allowances", str(table)], "give --targets alone"),
        ([str(arrivals)], "save it as CSV UTF-8"),
    ):
        done = CliRunner().invoke(cli.app, ["backtest", *arguments])
        assert done.exit_code == 1
        assert words in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--synthetic"),
        (["--synthetic", "--hours", "8to18"], "8-18"),
        (["--synthetic", "--hours", "8-18,18-8", "--readers", "3"], "one for each"),
        (["--synthetic", "--reading-minutes", "positive=x"], "positive=6"),
        (["--synthetic", "--reading-minutes", "maybe=3"], "abstained"),
    ],
)
def test_wrong_options(arguments: list[str], words: str) -> None:
    """An option that makes no sense is said with what would."""
    done = CliRunner().invoke(cli.app, ["backtest", *arguments])
    assert done.exit_code == 1
    assert words in done.stderr
