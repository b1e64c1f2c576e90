"""The arithmetic of the benchmarks: turns, ratios, spreads, goals."""

import math
import random
import statistics

import pytest

from benchmarks.measure import Case, Goal, Result, interleaved, median_interval, time_of


def result(ratios: list[float], goal: Goal) -> Result:
    return Result("one", "a with b", goal, (Case.of("case", "s", ratios, [1.0] * len(ratios)),), {"more": 1})


def test_arms_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every arm runs once a repeat, another one first each time, and warm-ups are not counted."""
    monkeypatch.setattr("benchmarks.measure.gc.collect", lambda: 0)  # takes seconds late in the suite
    calls: list[str] = []
    arms = {name: (lambda name=name: calls.append(name) or float(len(calls))) for name in "abc"}
    samples = interleaved(arms, 4, warmups=1)
    turns = ["".join(calls[at : at + 3]) for at in range(0, 15, 3)]
    assert turns == ["cab", "abc", "bca", "cab", "abc"]
    assert {name: len(values) for name, values in samples.items()} == {"a": 4, "b": 4, "c": 4}
    assert min(min(values) for values in samples.values()) == 4.0


def test_a_slow_minute_slows_both_and_leaves_the_ratio() -> None:
    """The median of paired ratios does not move when the machine is four times slower for half of the repeats."""
    load = [1.0] * 5 + [4.0] * 6
    case = Case.of("c", "s", [2.0 * factor for factor in load], load)
    assert (case.ratio, case.spread) == (2.0, (2.0, 2.0))


@pytest.mark.parametrize(("n", "rank"), [(6, 1), (8, 1), (9, 2), (11, 2), (20, 6), (41, 14)])
def test_interval_is_the_tabled_one(n: int, rank: int) -> None:
    """The order statistics are those of the sign test's table for 95 % (counted from 1)."""
    assert median_interval([float(i) for i in range(1, n + 1)]) == (rank, n + 1 - rank)
    left_out = 2 * sum(math.comb(n, k) for k in range(rank)) / 2**n
    assert left_out <= 0.05 < 2 * sum(math.comb(n, k) for k in range(rank + 1)) / 2**n


def test_few_repeats_give_lowest_to_highest() -> None:
    """Under six values no interval has 95 %: then all of them are shown; of none there is no median."""
    assert median_interval([3.0, 1.0, 2.0]) == (1.0, 3.0)
    assert median_interval([5.0]) == (5.0, 5.0)
    with pytest.raises(ValueError, match="median"):
        median_interval([])


def test_interval_holds_the_true_median_as_often_as_it_says() -> None:
    """Of 2,000 samples of a skewed distribution, at least 94 % of the intervals hold its median."""
    rng = random.Random(3)
    median = math.exp(0)
    held = 0
    for _ in range(2000):
        low, high = median_interval([rng.lognormvariate(0, 1) for _ in range(15)])
        held += low <= median <= high
    assert held / 2000 >= 0.94


@pytest.mark.parametrize(
    ("goal", "ratio", "met"),
    [
        (Goal(">=", 0.9), 0.9, True), (Goal(">=", 0.9), 0.89, False), (Goal(">=", 0.9), 1.4, True),
        (Goal("<=", 5), 5.0, True), (Goal("<=", 5), 5.01, False), (Goal("<=", 5), 0.2, True),
        (Goal(">=", 0.9), math.nan, False), (Goal("<=", 5), math.nan, False),
    ],
)  # fmt: skip
def test_met_honours_the_direction(goal: Goal, ratio: float, met: bool) -> None:
    """At least means at least, at most means at most, and no number meets nothing."""
    assert goal.met(ratio) is met
    assert result([ratio], goal).met is met


@pytest.mark.parametrize(("direction", "worst"), [(">=", "slow"), ("<=", "fast")])
def test_the_worst_case_speaks(direction: str, worst: str) -> None:
    """A benchmark of several cases has the ratio of the one farthest from its goal."""
    cases = tuple(Case.of(label, "s", [ratio], [1.0]) for label, ratio in (("slow", 0.5), ("fast", 2.0)))
    found = Result("n", "", Goal(direction, 1.0), cases)  # type: ignore[arg-type]
    assert (found.worst.label, found.met) == (worst, False)
    assert found.as_json()["ratio"] == found.worst.ratio


def test_a_spread_over_the_goal_is_said() -> None:
    """A ratio that meets its goal with a spread that does not is met, and not certain."""
    doubtful, clear = result([0.8, 1.0, 1.2], Goal(">=", 0.9)), result([1.0, 1.1, 1.2], Goal(">=", 0.9))
    assert (doubtful.met, doubtful.certain, clear.certain) == (True, False, True)
    assert "reaches over the goal" in doubtful.as_text()
    assert "reaches over the goal" not in clear.as_text()


def test_json_says_everything() -> None:
    """What is printed as JSON can be read back to the same result, and has the promised fields."""
    one = result([1.0, 2.0, 3.0], Goal("<=", 5))
    said = one.as_json()
    assert {name: said[name] for name in ("name", "ratio", "spread", "goal", "met")} == {
        "name": "one", "ratio": 2.0, "spread": [1.0, 3.0], "goal": "<= 5", "met": True,
    }  # fmt: skip
    assert Result.from_json(said) == one


def test_a_case_may_have_a_goal_of_its_own() -> None:
    """Such a case is held to its own goal and never speaks for the benchmark; missing it is missing the benchmark's."""
    main, own = Case.of("main", "s", [1.5], [1.0]), Case.of("own", "s", [1.5], [1.0], goal=Goal("<=", 1.05))
    found = Result("n", "", Goal(">=", 1.0), (main, own))
    assert (found.worst, found.met, found.missed) == (main, False, ["own"])
    assert "not met (own)" in found.as_text()
    assert "goal <= 1.05" in found.as_text()
    assert found.as_json()["goal"] == ">= 1"
    assert Result.from_json(found.as_json()) == found
    assert Result("n", "", Goal(">=", 1.0), (main, Case.of("own", "s", [1.0], [1.0], goal=Goal("<=", 1.05)))).met


def test_a_miss_beyond_doubt_is_certain() -> None:
    """One case that certainly misses makes the miss certain, however doubtful the others are."""
    doubtful, clear = Case.of("a", "s", [0.8, 0.95, 1.2], [1.0] * 3), Case.of("b", "s", [0.1, 0.2, 0.3], [1.0] * 3)
    assert Result("n", "", Goal(">=", 0.9), (doubtful, clear)).certain
    assert not Result("n", "", Goal(">=", 0.9), (doubtful,)).certain


def test_a_goal_can_be_read_back() -> None:
    """What a goal prints is that goal again; anything else is refused."""
    for goal in (Goal(">=", 0.9), Goal("<=", 1.05)):
        assert Goal.parse(str(goal)) == goal
    for wrong in ("== 3", "3", ">= three"):
        with pytest.raises(ValueError, match=r"goal|unpack|convert"):
            Goal.parse(wrong)


def test_pairs_must_pair_up() -> None:
    """Measurements of different repeats are not set against each other."""
    with pytest.raises(ValueError, match="shorter"):
        Case.of("c", "s", [1.0, 2.0], [1.0])


def test_timed_returns_seconds() -> None:
    """An arm made of work returns how long it took."""
    arm = time_of(lambda: statistics.median(range(100_000)))
    assert 0 < arm() < 60
