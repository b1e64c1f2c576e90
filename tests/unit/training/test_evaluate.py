"""Figures with known predictions, and promises that hold."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from shared.domain.manifest import Calibration, Manifest
from shared.errors import BadDataset
from shared.model.engines import EngineOutput
from training import evaluate
from training.datasets import MISSING, REGIONS, LabelledRadiograph
from training.evaluate import (
    Predictions,
    auroc,
    average_precision,
    bootstrap_interval,
    calibrated_probability,
    calibration_error,
    confusion,
    fit_calibration,
    judge_as_shipped,
    judge_cross_fitted,
    kappa,
    measure,
    operating_points,
    pointing_game,
    predict,
    predicted_extent,
    subgroups,
)

SQUARE = np.array([[0.5, 0.5], [0.75, 0.5], [0.75, 0.75], [0.5, 0.75]], np.float32)


def radiograph(number: int, fractured: int = 0, **changes: Any) -> LabelledRadiograph:
    """A hand of 100 x 100 pixels in a block of two, outlined where fractured, without metal."""
    outlines = [SQUARE] if fractured == 1 else []
    usual = LabelledRadiograph(Path(f"{number}.png"), str(number // 2), 0, fractured, 0, 0, (100, 100), outlines)
    return replace(usual, **changes)


def predictions(
    radiographs: list[LabelledRadiograph], fracture: np.ndarray, heatmaps: np.ndarray | None = None
) -> Predictions:
    """These fracture logits; region hand and extent mild for every radiograph."""
    count = len(radiographs)
    region = np.zeros((count, 5))
    region[:, 0] = 3
    return Predictions(
        radiographs=radiographs,
        fracture=np.asarray(fracture, np.float64),
        region=region,
        extent=np.tile([2.0, -2.0, -3.0], (count, 1)),
        heatmaps=np.zeros((count, 4, 4)) if heatmaps is None else heatmaps,
        ood_score=np.ones(count),
        hardware=np.full(count, -5.0),
    )


def manifest(**changes: object) -> Manifest:
    usual = {
        "name": "tiny-1",
        "regions": list(REGIONS),
        "input_size": 64,
        "sensitive": 0.2,
        "specific": 0.7,
        "modalities": ["DX"],
        "least_region_probability": 0.5,
        "most_ood_score": 2.0,
        "hardware": 0.9,
        "heatmap_full": 0.5,
    }
    return Manifest.model_validate(usual | changes)


def test_auroc_knows_right_wrong_and_guess() -> None:
    """Perfect order is 1, reversed 0, a tie a half, and one class alone tells nothing."""
    truth = np.array([0, 0, 1, 1])
    assert auroc(truth, np.array([0.1, 0.2, 0.3, 0.4])) == 1
    assert auroc(truth, np.array([4.0, 3.0, 2.0, 1.0])) == 0
    assert auroc(truth, np.ones(4)) == 0.5
    assert auroc(truth, np.array([1.0, 3.0, 2.0, 4.0])) == 0.75
    assert math.isnan(auroc(np.ones(4, np.int64), np.arange(4.0)))
    assert math.isnan(auroc(np.zeros(0, np.int64), np.zeros(0)))


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(-4, 4)), min_size=2, max_size=60))
@settings(deadline=None)
def test_auroc_is_what_sklearn_says(said: list[tuple[int, int]]) -> None:
    """With many ties too, ranks give the area that scikit-learn integrates."""
    truth, score = np.array([s[0] for s in said]), np.array([float(s[1]) for s in said])
    assume(0 < truth.sum() < len(truth))
    assert auroc(truth, score) == pytest.approx(roc_auc_score(truth, score))


def test_average_precision_needs_a_positive() -> None:
    """A perfect order is 1, and without a fractured radiograph there is no recall to average over."""
    assert average_precision(np.array([0, 1, 1]), np.array([0.1, 0.2, 0.3])) == 1
    assert math.isnan(average_precision(np.zeros(3, np.int64), np.arange(3.0)))


def test_calibration_error_of_known_bins() -> None:
    """Saying 0.25 where a quarter is fractured costs nothing; saying 0.75 there costs a half."""
    truth = np.array([1, 0, 0, 0] * 5)
    assert calibration_error(np.full(20, 0.25), truth, bins=5) == pytest.approx(0)
    assert calibration_error(np.full(20, 0.75), truth, bins=5) == pytest.approx(0.5)
    assert calibration_error(truth.astype(float), truth) == 0


def test_platt_scaling_finds_the_scale_that_made_the_labels() -> None:
    """Labels drawn from a known slope and offset lead back to them."""
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 3, 20000)
    truth = (rng.random(20000) < calibrated_probability(logits, Calibration(slope=0.7, offset=-1.0))).astype(np.int64)
    fitted = fit_calibration(logits, truth)
    assert fitted.slope == pytest.approx(0.7, abs=0.05)
    assert fitted.offset == pytest.approx(-1.0, abs=0.08)


@pytest.mark.parametrize("kind", [0, 1])
def test_one_class_is_refused(kind: int) -> None:
    """With radiographs of one kind only there is nothing to calibrate or to choose on, and the message says so."""
    truth = np.full(4, kind)
    with pytest.raises(BadDataset, match="with and without a fracture"):
        fit_calibration(np.arange(4.0), truth)
    with pytest.raises(BadDataset, match="with and without a fracture"):
        operating_points(np.arange(4.0) / 4, truth)


def test_probability_of_any_logit_is_a_probability() -> None:
    """Far-off logits saturate without overflow."""
    chances = calibrated_probability(np.array([-1e6, 0.0, 1e6]), Calibration(slope=3.0))
    assert chances.tolist() == pytest.approx([0, 0.5, 1])


@pytest.mark.parametrize("count", [19, 40, 77])
def test_operating_points_keep_their_promise_on_radiographs_to_come(count: int) -> None:
    """Over many draws, a fresh fractured radiograph is at or over the sensitive point, a fresh sound one under the specific
    point, at least as often as promised; and where there are enough radiographs, not much more often.
    """
    rng, draws, caught, spared = np.random.default_rng(2), 2000, [], []
    truth = np.repeat([0, 1], count)
    for _ in range(draws):
        sound, fractured = rng.beta(2, 5, count + 5), rng.beta(5, 3, count + 5)
        sensitive, specific = operating_points(np.concatenate([sound[:count], fractured[:count]]), truth)
        caught.append((fractured[count:] >= sensitive).mean())
        spared.append((sound[count:] < specific).mean())
    for kept in (caught, spared):
        noise = float(np.std(kept)) / math.sqrt(draws)
        assert 0.95 - 3 * noise <= np.mean(kept) <= 1 - 0.05 * 0.6


@given(st.integers(1, 18), st.integers(1, 18), st.integers(0, 1000))
@settings(deadline=None)
def test_few_radiographs_give_the_most_cautious_points(fractured: int, sound: int, seed: int) -> None:
    """Under 19 radiographs of a kind nothing can be promised: each is caught, or spared, that was seen."""
    chance = np.random.default_rng(seed).random(sound + fractured)
    truth = np.array([0] * sound + [1] * fractured)
    sensitive, specific = operating_points(chance, truth)
    assert sensitive == chance[truth == 1].min()
    assert specific == max(sensitive, np.nextafter(chance[truth == 0].max(), 2))


@given(st.lists(st.tuples(st.integers(0, 1), st.floats(0, 0.999)), min_size=2, max_size=80))
@settings(deadline=None)
def test_operating_points_are_in_order_and_hold_on_their_own_radiographs(said: list[tuple[int, float]]) -> None:
    """With any ties: 0 <= sensitive <= specific <= 1, and on the radiographs that chose them both rates are met."""
    truth, chance = np.array([s[0] for s in said]), np.array([s[1] for s in said])
    assume(0 < truth.sum() < len(truth))
    sensitive, specific = operating_points(chance, truth)
    assert 0 <= sensitive <= specific <= 1
    assert (chance[truth == 1] >= sensitive).mean() >= 0.95
    assert (chance[truth == 0] < specific).mean() >= 0.95


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


def test_confusion_has_the_truth_in_rows() -> None:
    """Two radiographs of kind 0 called 1 stand in row 0, column 1."""
    table = confusion(np.array([0, 0, 2]), np.array([1, 1, 2]), 3)
    assert table.tolist() == [[0, 2, 0], [0, 0, 0], [0, 0, 1]]


def test_a_grade_never_outgrows_the_one_below() -> None:
    """Extent counts the steps that are said from the bottom up: "severe" without "moderate" is mild."""
    said = replace(
        predictions([radiograph(n) for n in range(3)], np.zeros(3)),
        extent=np.array([[1, -1, 9], [1, 1, 1], [-1] * 3]),
    )
    assert predicted_extent(said).tolist() == [1, 3, 0]


def test_interval_covers_the_truth_about_as_often_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 40 samples from a coin of 0.3, the 95 % interval holds 0.3 nearly always, and its estimate lies within."""
    monkeypatch.setattr(evaluate, "RESAMPLES", 200)
    rng, held = np.random.default_rng(3), 0
    radiographs = [radiograph(2 * index) for index in range(120)]
    for _ in range(40):
        values = rng.random(120) < 0.3
        told = bootstrap_interval(radiographs, lambda i: float(values[i].mean()))  # noqa: B023 - called before the next values
        assert told is not None
        assert told[1] <= told[0] <= told[2]
        held += told[1] <= 0.3 <= told[2]
    assert held >= 34


def test_interval_keeps_a_patients_radiographs_together() -> None:
    """Ten copies of each patient's radiograph make the interval no narrower: patients are drawn, not radiographs."""
    values = np.random.default_rng(4).random(30)
    alone = bootstrap_interval([radiograph(2 * index) for index in range(30)], lambda i: float(values[i].mean()))
    tenfold = np.repeat(values, 10)
    radiographs = [radiograph(2 * (index // 10)) for index in range(300)]
    copied = bootstrap_interval(radiographs, lambda i: float(tenfold[i].mean()))
    assert alone == copied


def test_interval_of_nothing_is_none() -> None:
    """No radiograph, or a figure that these radiographs do not tell, is null in JSON, which knows no nan."""
    assert bootstrap_interval([], lambda i: 1.0) is None
    assert bootstrap_interval([radiograph(0)], lambda i: float("nan")) is None


def hot(row: int, column: int) -> np.ndarray:
    """A map of 64 x 64 cells with one peak; SQUARE spans the cells 32 to 47."""
    heatmap = np.zeros((64, 64))
    heatmap[row, column] = 9
    return heatmap


def test_pointing_hits_inside_near_and_misses() -> None:
    """A peak counts inside the outline's box, nearly within 5 % of the side; radiographs without an outline do not play."""
    maps = np.stack([hot(40, 40), hot(40, 49), hot(40, 56), hot(40, 40), hot(40, 40), hot(40, 40)])
    radiographs = [radiograph(n, 1) for n in range(3)]
    idle = [radiograph(3, 0), radiograph(4, 1, outlines=[]), radiograph(5, MISSING, outlines=[SQUARE])]
    game = pointing_game(predictions(radiographs + idle, np.zeros(6), maps))
    assert game.inside.tolist() == [True, False, False]
    assert game.near.tolist() == [True, True, False]
    assert game.radiographs == radiographs
    assert pointing_game(predictions(idle, np.zeros(3), maps[3:])).inside.shape == (0,)


def test_pointing_asks_for_the_box_not_the_outline() -> None:
    """A peak beside a slanting outline, yet within the box around it, is a hit."""
    half = radiograph(0, 1, outlines=[SQUARE[:3]])  # the triangle over the diagonal
    assert pointing_game(predictions([half], np.zeros(1), hot(46, 33)[None])).inside.tolist() == [True]


def test_outputs_carry_each_field_of_the_engine(tmp_path: Path) -> None:
    """Every radiograph is asked once, in order, and each output stands under its name, whatever the batch."""
    radiographs = []
    for number in range(5):
        path = tmp_path / f"{number}.png"
        cv2.imwrite(str(path), np.random.default_rng(number).integers(0, 255, (40, 30)).astype(np.uint8))
        radiographs.append(radiograph(number, path=path))

    def engine(squares: np.ndarray) -> EngineOutput:
        mean = squares.mean((1, 2)).astype(np.float32)
        fields = (
            mean[:, None] + np.arange(5),
            mean,
            mean[:, None] + [1, 2, 3],
            squares[:, ::8, ::8],
            mean + 7,
            mean - 7,
        )
        return EngineOutput(*(np.asarray(value, np.float32) for value in fields))

    said, alone = predict(engine, radiographs, 32, batch=2), predict(engine, radiographs, 32, batch=1)
    assert said.radiographs == radiographs
    assert said.fracture.dtype == np.float64
    assert (said.region.shape, said.extent.shape, said.heatmaps.shape) == ((5, 5), (5, 3), (5, 4, 4))
    np.testing.assert_array_equal(said.ood_score, said.fracture + 7)
    np.testing.assert_array_equal(said.hardware, said.fracture - 7)
    np.testing.assert_array_equal(said.region[:, 0], said.fracture)
    np.testing.assert_array_equal(said.fracture, alone.fracture)


def test_only_keeps_every_field_of_the_chosen_radiographs() -> None:
    """A part of the predictions, or of the judgements, is those radiographs' and no others'."""
    whole = judge_as_shipped(predictions([radiograph(n, n % 2) for n in range(6)], np.arange(6.0) - 3), manifest())
    part = whole.only(np.array([True, False, False, True, False, True]))
    assert [f.path.name for f in part.predictions.radiographs] == ["0.png", "3.png", "5.png"]
    assert part.predictions.fracture.tolist() == [-3, 0, 2]
    assert part.chance.tolist() == whole.chance[[0, 3, 5]].tolist()
    assert {len(getattr(part.predictions, name)) for name in evaluate.PREDICTION_FIELDS} == {3}


def test_as_shipped_is_the_bundles_own_judgement() -> None:
    """A radiograph is possible at the sensitive point and likely at the specific one, by the bundle's calibration."""
    bundle = manifest(sensitive=0.5, specific=0.9, calibration={"slope": 2.0, "offset": -2.0})
    judged = judge_as_shipped(predictions([radiograph(n) for n in range(3)], np.array([0.9, 1.0, 2.5])), bundle)
    assert judged.chance == pytest.approx(1 / (1 + np.exp([0.2, 0.0, -3.0])))
    assert judged.possible.tolist() == [False, True, True]
    assert judged.likely.tolist() == [False, False, True]


SIDES = 40  # radiographs in each of two blocks, which are then the two halves


def two_blocks() -> tuple[list[LabelledRadiograph], np.ndarray]:
    rng = np.random.default_rng(8)
    truth = rng.integers(0, 2, 2 * SIDES)
    truth[::9] = MISSING
    radiographs = [radiograph(n, int(t), block=str(n // SIDES)) for n, t in enumerate(truth)]
    return radiographs, np.where(truth == 1, 1.0, -1.0) + rng.normal(0, 1.5, 2 * SIDES)


@given(st.integers(0, 2 * SIDES - 1), st.floats(-20, 20), st.sampled_from([0, 1, MISSING]))
@settings(deadline=None, max_examples=30)
def test_no_radiograph_has_a_say_in_its_own_judgement(number: int, logit: float, label: int) -> None:
    """Whatever a radiograph scores and however it is labelled, it and its half are judged as the other half alone says."""
    radiographs, logits = two_blocks()
    before = judge_cross_fitted(predictions(radiographs, logits))
    changed, radiographs[number] = logits.copy(), replace(radiographs[number], fractured=label)
    changed[number] = logit
    after = judge_cross_fitted(predictions(radiographs, changed))
    own = np.arange(2 * SIDES) // SIDES == number // SIDES
    others = own & (np.arange(2 * SIDES) != number)
    for part in ("chance", "possible", "likely"):
        np.testing.assert_array_equal(getattr(after, part)[others], getattr(before, part)[others])

    far = after.predictions.only(~own & (after.predictions.fractured != MISSING))
    calibration = fit_calibration(far.fracture, far.fractured)
    sensitive, specific = operating_points(calibrated_probability(far.fracture, calibration), far.fractured)
    chance = calibrated_probability(np.array([logit]), calibration)[0]
    assert after.chance[number] == chance
    assert (after.possible[number], after.likely[number]) == (chance >= sensitive, chance >= specific)


def test_a_half_without_a_class_cannot_judge_the_other() -> None:
    """Where all fractured radiographs stand in one block, cross-fitting is refused in words."""
    radiographs = [radiograph(n, int(n < 2)) for n in range(8)]
    with pytest.raises(BadDataset, match="on both sides"):
        judge_cross_fitted(predictions(radiographs, np.arange(8.0)))


def test_groups_are_those_that_have_radiographs() -> None:
    """Radiographs by region, without metal, of the usual size; by source only where there are several."""
    radiographs = [
        radiograph(0),
        radiograph(1, region=3, hardware=1),
        radiograph(2, region=MISSING, hardware=MISSING),
        radiograph(3, original_size=(9, 9)),
    ]
    told = {name: keep.tolist() for name, keep in subgroups(predictions(radiographs, np.zeros(4))).items()}
    assert told == {
        "region hand": [True, False, False, True],
        "region hip": [False, True, False, False],
        "without hardware": [True, False, False, True],
        "size 100x100": [True, True, True, False],
    }
    radiographs[1] = replace(radiographs[1], source="elsewhere")
    told = {name: keep.tolist() for name, keep in subgroups(predictions(radiographs, np.zeros(4))).items()}
    assert told["source elsewhere"] == [False, True, False, False]
    assert told["source "] == [True, False, True, True]


def test_measure_tells_every_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """All figures come out for known radiographs, overall and for each group, and radiographs that are not labelled do not count."""
    monkeypatch.setattr(evaluate, "RESAMPLES", 50)
    radiographs = [radiograph(n, n % 2, extent=n % 2) for n in range(40)]
    radiographs += [radiograph(40 + n, MISSING, region=MISSING, extent=MISSING) for n in range(4)]
    logits = np.array([1.0 if f.fractured == 1 else -1.0 for f in radiographs]) + np.random.default_rng(0).normal(
        0, 1, 44
    )
    maps = np.stack([hot(40, 40 if n % 4 == 1 else 60) for n in range(44)])
    figures = measure(judge_as_shipped(predictions(radiographs, logits, maps), manifest(sensitive=0.0, specific=1.0)))
    assert (figures["radiographs"], figures["fractured"]) == (44, 20)
    assert figures["fracture_auroc"][0] > 0.7
    assert figures["region_accuracy"] == [1.0, 1.0, 1.0]
    assert figures["pointing_game"][0] == figures["pointing_game_near"][0] == 0.5
    assert figures["groups"]["region hand"]["fracture_auroc"] == figures["fracture_auroc"]
    assert figures["region_confusion"][0] == [40, 0, 0, 0, 0]
    assert figures["severity_confusion"][:2] == [[0, 20, 0, 0], [0, 20, 0, 0]]
    assert figures["severity_kappa"][0] == 0
    assert figures["operating_points"]["sensitive"] == {"sensitivity": [1.0] * 3, "specificity": [0.0] * 3}
    assert figures["operating_points"]["specific"] == {"sensitivity": [0.0] * 3, "specificity": [1.0] * 3}


def test_too_few_radiographs_give_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """With nine fractured radiographs, what is said of fractures would mislead and is null; the region is still told."""
    monkeypatch.setattr(evaluate, "RESAMPLES", 20)
    radiographs = [radiograph(n, int(n < 9)) for n in range(40)]
    figures = measure(judge_as_shipped(predictions(radiographs, np.zeros(40)), manifest()))
    names = ("fracture_auroc", "fracture_average_precision", "expected_calibration_error", "pointing_game")
    assert [figures[name] for name in names] == [None] * 4
    assert figures["region_accuracy"] is not None


LABELS = st.tuples(st.sampled_from([0, 1, MISSING]), st.integers(-1, 4), st.integers(-1, 3), st.integers(-1, 1))


@given(st.lists(LABELS, min_size=1, max_size=24), st.booleans(), st.integers(0, 1000))
@settings(deadline=None, max_examples=40)
def test_every_figure_is_json(labels: list[tuple[int, int, int, int]], outlined: bool, seed: int) -> None:
    """However few radiographs there are and whatever they lack, measuring ends, in strict JSON that reads back the same."""
    radiographs = [
        radiograph(n, fractured, region=region, extent=extent, hardware=hardware, outlines=[SQUARE] if outlined else [])
        for n, (fractured, region, extent, hardware) in enumerate(labels)
    ]
    rng = np.random.default_rng(seed)
    said = predictions(radiographs, rng.normal(0, 3, len(radiographs)), rng.normal(0, 1, (len(radiographs), 4, 4)))
    with mock.patch.object(evaluate, "RESAMPLES", 3):
        figures = measure(judge_as_shipped(said, manifest()))
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
