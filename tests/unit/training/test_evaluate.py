"""Figures with known answers."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from shared.errors import BadDataset
from shared.vision.bundle import Calibration
from training import evaluate
from training.datasets import MISSING, Film
from training.evaluate import (
    Answers,
    auroc,
    calibration_error,
    fit_calibration,
    interval,
    kappa,
    measure,
    operating_points,
    pointing,
    probability,
)

SQUARE = np.array([[0.5, 0.5], [0.75, 0.5], [0.75, 0.75], [0.5, 0.75]], np.float32)


def film(number: int, fractured: int = 0, *, outlined: bool = True, region: int = 0, severity: int = 0) -> Film:
    outlines = [SQUARE] if fractured and outlined else []
    return Film(Path(f"{number}.png"), str(number // 2), region, fractured, severity, 0, (100, 100), outlines)


def answers(films: list[Film], fracture: np.ndarray, heatmaps: np.ndarray | None = None) -> Answers:
    count = len(films)
    region = np.zeros((count, 5))
    region[:, 0] = 3
    maps = np.zeros((count, 4, 4)) if heatmaps is None else heatmaps
    return Answers(films, fracture, region, np.tile([2.0, -2.0, -3.0], (count, 1)), maps)


def test_auroc_knows_right_wrong_and_guess() -> None:
    """Perfect order is 1, reversed 0, a tie a half, and one class alone tells nothing."""
    truth = np.array([0, 0, 1, 1])
    assert auroc(truth, np.array([0.1, 0.2, 0.3, 0.4])) == 1
    assert auroc(truth, np.array([4.0, 3.0, 2.0, 1.0])) == 0
    assert auroc(truth, np.ones(4)) == 0.5
    assert auroc(truth, np.array([1.0, 3.0, 2.0, 4.0])) == 0.75
    assert math.isnan(auroc(np.ones(4, np.int64), np.arange(4.0)))


def test_calibration_error_of_known_bins() -> None:
    """Saying 0.25 where a quarter is fractured costs nothing; saying 0.75 there costs a half."""
    truth = np.array([1, 0, 0, 0] * 5)
    assert calibration_error(np.full(20, 0.25), truth, bins=5) == pytest.approx(0)
    assert calibration_error(np.full(20, 0.75), truth, bins=5) == pytest.approx(0.5)
    assert calibration_error(truth.astype(float), truth) == 0


def test_platt_scaling_finds_the_scale_that_made_the_labels() -> None:
    """Labels drawn from a known slope and offset lead back to them."""
    dice = np.random.default_rng(1)
    logits = dice.normal(0, 3, 20000)
    truth = (dice.random(20000) < probability(logits, Calibration(slope=0.7, offset=-1.0))).astype(np.int64)
    fitted = fit_calibration(logits, truth)
    assert fitted.slope == pytest.approx(0.7, abs=0.05)
    assert fitted.offset == pytest.approx(-1.0, abs=0.08)


def test_calibration_of_one_class_is_refused() -> None:
    """Without a fractured film there is nothing to calibrate on, and the message says so."""
    with pytest.raises(BadDataset, match="with and without a fracture"):
        fit_calibration(np.arange(4.0), np.zeros(4, np.int64))


def test_probability_of_any_logit_is_a_probability() -> None:
    """Far-off logits saturate without overflow."""
    chances = probability(np.array([-1e6, 0.0, 1e6]), Calibration(slope=3.0))
    assert chances.tolist() == pytest.approx([0, 0.5, 1])


@given(st.lists(st.tuples(st.integers(0, 1), st.floats(0, 0.999)), min_size=2, max_size=80))
@settings(deadline=None)
def test_operating_points_keep_their_promises(said: list[tuple[int, float]]) -> None:
    """On the films they are chosen on: sensitivity >= 0.95 at one, specificity >= 0.95 at the other, in order."""
    truth, chance = np.array([s[0] for s in said]), np.array([s[1] for s in said])
    assume(0 < truth.sum() < len(truth))
    sensitive, specific = operating_points(chance, truth)
    assert (chance[truth == 1] >= sensitive).mean() >= 0.95
    assert (chance[truth == 0] < specific).mean() >= 0.95
    assert 0 <= sensitive <= specific <= 1


def test_operating_points_are_the_best_that_keep_them() -> None:
    """The sensitive point is the highest, the specific one the lowest threshold that keeps its promise."""
    dice = np.random.default_rng(6)
    truth = np.array([0] * 200 + [1] * 100)
    chance = np.concatenate([dice.beta(2, 5, 200), dice.beta(5, 3, 100)])
    sensitive, specific = operating_points(chance, truth)
    assert sensitive == max(t for t in chance if (chance[truth == 1] >= t).mean() >= 0.95)
    assert specific == min(t for t in chance if (chance[truth == 0] < t).mean() >= 0.95)
    assert sensitive < specific


@pytest.mark.parametrize(
    ("truth", "graded", "expected"),
    [
        ([0, 1, 2, 3], [0, 1, 2, 3], 1.0),
        ([0, 0, 3, 3], [3, 3, 0, 0], -1.0),
        ([0, 0, 3, 3], [0, 3, 0, 3], 0.0),
        ([0, 1, 2, 3], [1, 1, 2, 2], 1 - 2 / 6),
    ],
)
def test_kappa(truth: list[int], graded: list[int], expected: float) -> None:
    """Quadratic weighted kappa: 1 for agreement, 0 for chance, -1 for the opposite, and a worked example."""
    assert kappa(np.array(truth), np.array(graded)) == pytest.approx(expected)


def test_kappa_of_one_grade_is_not_told() -> None:
    """Where both gave the same single grade, agreement beyond chance is not defined, and nothing divides by zero."""
    assert math.isnan(kappa(np.zeros(3, np.int64), np.zeros(3, np.int64)))


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """Of 40 samples from a coin of 0.3, the 95 % interval holds 0.3 nearly always, and its estimate lies within."""
    dice, held = np.random.default_rng(3), 0
    for _ in range(40):
        values = dice.random(120) < 0.3
        films = [film(2 * index) for index in range(120)]
        told = interval(films, lambda i, values=values: float(values[i].mean()))
        assert told is not None
        assert told[1] <= told[0] <= told[2]
        held += told[1] <= 0.3 <= told[2]
    assert held >= 34


def test_interval_keeps_a_patients_films_together() -> None:
    """Ten copies of each patient's film make the interval no narrower: patients are drawn, not films."""
    values = np.random.default_rng(4).random(30)
    alone = interval([film(2 * index) for index in range(30)], lambda i: float(values[i].mean()))
    tenfold = np.repeat(values, 10)
    films = [film(2 * (index // 10)) for index in range(300)]
    copied = interval(films, lambda i: float(tenfold[i].mean()))
    assert alone == copied


def test_interval_of_nothing_is_none() -> None:
    """No film, or a figure that these films do not tell, is null in JSON, which knows no nan."""
    assert interval([], lambda i: 1.0) is None
    assert interval([film(0)], lambda i: float("nan")) is None


def test_pointing_hits_inside_and_misses_outside() -> None:
    """The map's peak counts as a hit inside the outline's box only; films without an outline do not play."""
    maps = np.zeros((4, 4, 4))
    maps[0, 2, 2] = 1  # inside the square from 0.5 to 0.75
    maps[1, 0, 0] = 1
    maps[2, 2, 2] = maps[3, 2, 2] = 1
    films = [film(0, 1), film(1, 1), film(2, 0), film(3, 1, outlined=False)]
    hits, shown = pointing(answers(films, np.zeros(4), maps))
    assert hits.tolist() == [True, False]
    assert shown == films[:2]


def test_measure_tells_every_figure_and_null_where_films_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    """All figures come out, as strict JSON, also where a region has no film at all."""
    monkeypatch.setattr(evaluate, "RESAMPLES", 50)
    films = [film(n, n % 2, severity=n % 2 if n % 8 != 1 else MISSING) for n in range(40)]
    logits = np.array([1.0 if f.fractured else -1.0 for f in films]) + np.random.default_rng(0).normal(0, 1, 40)
    figures = measure(answers(films, logits))
    strict = json.loads(json.dumps(figures, allow_nan=False))
    assert strict["films"] == 40
    assert strict["fractured"] == 20
    assert strict["fracture_auroc"][0] > 0.7
    assert strict["fracture_auroc_by_region"]["hand"] == strict["fracture_auroc"]
    assert strict["fracture_auroc_by_region"]["hip"] is None
    assert strict["region_accuracy"] == [1.0, 1.0, 1.0]
