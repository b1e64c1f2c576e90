"""Measures a model on radiographs that it never saw: figures with intervals, overall and for each kind of image."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from tqdm import tqdm

from shared.domain.findings import ExposedField
from shared.domain.manifest import Calibration, Manifest
from shared.errors import BadDataset
from shared.model.engines import Engine
from shared.model.predictor import displayed_heatmaps
from training.datasets import MISSING, REGIONS, LabelledRadiograph, outline_mask, read_exposed

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
RESAMPLES = 1000
MIN_RADIOGRAPHS = 10  # radiographs of each kind in a group, below which a figure would only mislead
NEAR_SHARE = 0.05  # of the side: how far beside a box still counts as near
FINE_MAP_SIDE = 512  # pixels: the map is interpolated as the page shows it, and its peak taken there


@dataclass(frozen=True)
class Predictions:
    """Raw logits for N radiographs, and their labels."""

    radiographs: list[LabelledRadiograph]
    fracture: Floats  # (N,) logits
    region: Floats  # (N, R) logits
    extent: Floats  # (N, 3) logits
    heatmaps: Floats  # (N, h, w) logits
    ood_score: Floats  # (N,)
    hardware: Floats  # (N,) logits
    fields: list[ExposedField] | None = None  # what each square shows of its radiograph; None: all of it

    @property
    def fractured(self) -> Ints:
        """(N,) 0, 1 or MISSING."""
        return np.array([radiograph.fractured for radiograph in self.radiographs], np.int64)

    @property
    def true_region(self) -> Ints:
        """(N,) index or MISSING."""
        return np.array([radiograph.region for radiograph in self.radiographs], np.int64)

    @property
    def true_extent(self) -> Ints:
        """(N,) 0..3 or MISSING."""
        return np.array([radiograph.extent for radiograph in self.radiographs], np.int64)

    def only(self, keep: Flags) -> "Predictions":
        """Select the radiographs where `keep` (N,) is true."""
        radiographs = [radiograph for radiograph, kept in zip(self.radiographs, keep, strict=True) if kept]
        fields = [field for field, kept in zip(self.fields, keep, strict=True) if kept] if self.fields else None
        return Predictions(
            radiographs,
            self.fracture[keep],
            self.region[keep],
            self.extent[keep],
            self.heatmaps[keep],
            self.ood_score[keep],
            self.hardware[keep],
            fields,
        )


def concatenate(one: Predictions, other: Predictions) -> Predictions:
    """Put the radiographs of both together, in order.

    Args:
        one: comes first.
        other: by the same network, on other radiographs.

    Returns:
        Predictions for all radiographs.
    """
    return Predictions(
        radiographs=[*one.radiographs, *other.radiographs],
        **{name: np.concatenate([getattr(one, name), getattr(other, name)]) for name in PREDICTION_FIELDS},
        fields=[*one.fields, *other.fields] if one.fields and other.fields else None,
    )


def predict(engine: Engine, radiographs: list[LabelledRadiograph], size: int, batch: int = 16) -> Predictions:
    """Run a network over radiographs exactly as the worker does: whole radiograph, one view, no augmentation.

    Args:
        engine: the one that serves on this machine, from `shared.model.engines`.
        radiographs: any number, read again from their files.
        size: the bundle's input size, pixels.
        batch: radiographs that the engine is given at a time.

    Returns:
        Raw logits for all radiographs, in order.

    Raises:
        BadDataset: A radiograph cannot be read; names the file.
    """
    outputs, fields = [], []
    for start in tqdm(range(0, len(radiographs), batch), desc="evaluate", unit="batch"):
        read = [read_exposed(radiograph.path, size) for radiograph in radiographs[start : start + batch]]
        outputs.append(engine(np.stack([square for square, _ in read])))
        fields += [field for _, field in read]
    parts = [
        np.concatenate([getattr(part, name) for part in outputs]).astype(np.float64) for name in outputs[0]._fields
    ]
    return Predictions(radiographs, **dict(zip(PREDICTION_FIELDS, parts, strict=True)), fields=fields)


# in the order of engines.EngineOutput
PREDICTION_FIELDS = ("region", "fracture", "extent", "heatmaps", "ood_score", "hardware")


@dataclass(frozen=True)
class CalibratedPredictions:
    """Predictions with the probabilities and assessments that a user would see."""

    predictions: Predictions
    chance: Floats  # (N,) calibrated probabilities
    possible: Flags  # (N,) at or over the sensitive operating point
    likely: Flags  # (N,) at or over the specific one

    def only(self, keep: Flags) -> "CalibratedPredictions":
        """Select the radiographs where `keep` (N,) is true."""
        return CalibratedPredictions(
            self.predictions.only(keep), self.chance[keep], self.possible[keep], self.likely[keep]
        )


def judge_as_shipped(predictions: Predictions, manifest: Manifest) -> CalibratedPredictions:
    """Judge by a bundle's own calibration and operating points.

    Args:
        predictions: of the bundle's network.
        manifest: of the same bundle.

    Returns:
        The predictions with calibrated probabilities and both assessments.
    """
    chance = calibrated_probability(predictions.fracture, manifest.calibration)
    return CalibratedPredictions(
        predictions, chance, chance >= manifest.sensitive, chance >= max(manifest.specific, manifest.sensitive)
    )


def judge_cross_fitted(predictions: Predictions) -> CalibratedPredictions:
    """Judge each half of the blocks by calibration and operating points that were fitted on the other half.

    For radiographs that will themselves choose the bundle's calibration: so no radiograph has a say in its own
    judgement.

    Args:
        predictions: radiographs of both classes, in two blocks at least.

    Returns:
        The predictions with calibrated probabilities and both assessments.

    Raises:
        BadDataset: One half lacks a class.
    """
    blocks = sorted({radiograph.block for radiograph in predictions.radiographs})
    half = set(blocks[::2])
    side = np.array([radiograph.block in half for radiograph in predictions.radiographs], bool)
    chance, possible, likely = np.empty(len(side)), np.empty(len(side), bool), np.empty(len(side), bool)
    for own in (side, ~side):
        other = predictions.only(~own & (predictions.fractured != MISSING))
        calibration = fit_calibration(other.fracture, other.fractured)
        sensitive, specific = operating_points(calibrated_probability(other.fracture, calibration), other.fractured)
        chance[own] = calibrated_probability(predictions.fracture[own], calibration)
        possible[own], likely[own] = chance[own] >= sensitive, chance[own] >= specific
    return CalibratedPredictions(predictions, chance, possible, likely)


def bootstrap_interval(
    radiographs: Sequence[LabelledRadiograph], figure: Callable[[Ints], float]
) -> list[float] | None:
    """Estimate a figure with its 95 % percentile bootstrap over blocks, which keeps a patient's radiographs together.

    Args:
        radiographs: N of them.
        figure: given radiograph indices (with repeats), returns the number; nan where these radiographs do not tell.

    Returns:
        [estimate, low, high]; None when all radiographs together do not tell, for JSON knows no nan.
    """
    estimate = figure(np.arange(len(radiographs))) if radiographs else np.nan
    if not np.isfinite(estimate):
        return None
    blocks: dict[str, list[int]] = {}
    for index, radiograph in enumerate(radiographs):
        blocks.setdefault(radiograph.block, []).append(index)
    groups = [np.array(group) for group in blocks.values()]
    rng = np.random.default_rng(0)
    values = [estimate]
    for _ in range(RESAMPLES):
        chosen = np.concatenate([groups[i] for i in rng.integers(len(groups), size=len(groups))])
        value = figure(chosen)
        if np.isfinite(value):
            values.append(value)
    low, high = np.percentile(values, [2.5, 97.5])
    return [round(float(v), 4) for v in (estimate, low, high)]


def auroc(truth: Ints, score: Floats) -> float:
    """Area under the ROC curve, by ranks (Hanley & McNeil 1982).

    Args:
        truth: (N,) 0 or 1.
        score: (N,) higher for more likely fractured.

    Returns:
        0..1; nan when one class is missing.
    """
    positives = int(truth.sum())
    negatives = len(truth) - positives
    if not positives or not negatives:
        return float("nan")
    ranks = float(rankdata(score)[truth == 1].sum())
    return (ranks - positives * (positives + 1) / 2) / (positives * negatives)


def average_precision(truth: Ints, score: Floats) -> float:
    """Area under the precision-recall curve.

    Args:
        truth: (N,) 0 or 1.
        score: (N,) higher for more likely fractured.

    Returns:
        0..1; nan without a positive.
    """
    return float(average_precision_score(truth, score)) if truth.any() else float("nan")


def fit_calibration(logits: Floats, truth: Ints) -> Calibration:
    """Fit Platt scaling, as good as without regularisation.

    Args:
        logits: (N,) raw fracture logits.
        truth: (N,) 0 or 1.

    Returns:
        Slope and offset.

    Raises:
        BadDataset: One class is missing.
    """
    if not 0 < truth.sum() < len(truth):
        raise BadDataset(
            "Calibration needs radiographs with and without a fracture on both sides; give more radiographs"
        )
    fitted = LogisticRegression(C=1e6).fit(logits[:, None], truth)
    return Calibration(slope=float(fitted.coef_[0, 0]), offset=float(fitted.intercept_[0]))


def calibrated_probability(logits: Floats, calibration: Calibration) -> Floats:
    """Turn raw logits into calibrated probabilities.

    Args:
        logits: (N,) of the fracture head.
        calibration: slope and offset.

    Returns:
        (N,) 0..1.
    """
    return sigmoid(logits * calibration.slope + calibration.offset)


def sigmoid(logits: Floats) -> Floats:
    """Logistic function."""
    return 1 / (1 + np.exp(-np.clip(logits, -500, 500)))  # exp(710) overflows


def calibration_error(chance: Floats, truth: Ints, bins: int = 10) -> float:
    """Expected calibration error with equally filled bins (Nixon et al. 2019, arXiv:1904.01685).

    Args:
        chance: (N,) calibrated probabilities.
        truth: (N,) 0 or 1.
        bins: how many parts the radiographs are divided into.

    Returns:
        0 where the probabilities are exact, 1 at most.
    """
    order = np.array_split(np.argsort(chance, kind="stable"), bins)
    return float(
        sum(len(part) * abs(chance[part].mean() - truth[part].mean()) for part in order if len(part)) / len(truth)
    )


def operating_points(chance: Floats, truth: Ints, least: float = 0.95) -> tuple[float, float]:
    """Choose thresholds that keep sensitivity, and specificity, on radiographs yet to come.

    Split-conformal quantiles (Angelopoulos & Bates 2021, arXiv:2107.07511): with n positives, the k-th lowest of them
    for k = floor((1 - least) * (n + 1)) lets a new one through with probability >= least, where the usual choice on the
    same radiographs is too hopeful. The specific point mirrors it. With fewer than 19 radiographs of a kind nothing can
    be promised, and the most cautious threshold is taken.

    Args:
        chance: (N,) calibrated probabilities.
        truth: (N,) 0 or 1.
        least: sensitivity at the one point, and specificity at the other, 0..1.

    Returns:
        (sensitive, specific) thresholds, 0..1; the specific one is never below the other.

    Raises:
        BadDataset: One class is missing.
    """
    if not 0 < truth.sum() < len(truth):
        raise BadDataset("Operating points need radiographs with and without a fracture; give more radiographs")
    yes, no = np.sort(chance[truth == 1]), np.sort(chance[truth == 0])
    sensitive = yes[max(0, int((1 - least) * (len(yes) + 1)) - 1)]
    specific = np.nextafter(no[len(no) - max(1, int((1 - least) * (len(no) + 1)))], 2)
    return min(float(sensitive), 1.0), min(max(float(sensitive), float(specific)), 1.0)


@dataclass(frozen=True)
class PointingResult:
    """Pointing game (Zhang et al. 2016, arXiv:1608.00507) over the P fractured radiographs with an outline."""

    radiographs: list[LabelledRadiograph]
    inside: Flags  # (P,) the map's peak is in the box around an outline
    near: Flags  # (P,) or within 5 % of the side of it


def pointing_game(predictions: Predictions) -> PointingResult:
    """Play the pointing game on the fractured radiographs with an outline."""
    inside, near, radiographs = [], [], []
    margin = np.ones((2 * round(NEAR_SHARE * FINE_MAP_SIDE) + 1,) * 2, np.uint8)
    fields: Sequence[ExposedField | None] = predictions.fields or [None] * len(predictions.radiographs)
    for radiograph, field, heatmap in zip(
        predictions.radiographs,
        fields,
        displayed_heatmaps(predictions.heatmaps) if predictions.radiographs else (),
        strict=True,
    ):
        if radiograph.fractured == 1 and radiograph.outlines:
            drawn = cv2.resize(heatmap, (FINE_MAP_SIDE, FINE_MAP_SIDE), interpolation=cv2.INTER_CUBIC)
            row, column = np.unravel_index(int(drawn.argmax()), drawn.shape)
            box = outline_mask(radiograph, FINE_MAP_SIDE, field, boxes=True)
            inside.append(box[row, column] > 0)
            near.append(cv2.dilate(box, margin)[row, column] > 0)
            radiographs.append(radiograph)
    return PointingResult(radiographs, np.array(inside, bool), np.array(near, bool))


def kappa(truth: Ints, graded: Ints, grades: int = 4) -> float:
    """Quadratic weighted kappa (Cohen 1968).

    Args:
        truth: (N,) 0 .. grades - 1.
        graded: (N,) likewise, by the model.
        grades: how many there are.

    Returns:
        1 for agreement, 0 for chance; nan when both gave one and the same grade to all.
    """
    table = confusion(truth, graded, grades)
    weight = (np.subtract.outer(np.arange(grades), np.arange(grades)) / (grades - 1)) ** 2
    chance = np.outer(table.sum(1), table.sum(0)) / table.sum()
    by_chance = (weight * chance).sum()
    return float(1 - (weight * table).sum() / by_chance) if by_chance else float("nan")


def confusion(truth: Ints, predicted: Ints, kinds: int) -> Ints:
    """Count each pair of true and given class.

    Args:
        truth: (N,) 0 .. kinds - 1.
        predicted: (N,) likewise, by the model.
        kinds: number of classes.

    Returns:
        (kinds, kinds) counts; rows are the truth.
    """
    table = np.zeros((kinds, kinds), np.int64)
    np.add.at(table, (truth, predicted), 1)
    return table


def predicted_extent(predictions: Predictions) -> Ints:
    """Read the extent from the extent logits, (N,) 0..3."""
    steps = np.minimum.accumulate(sigmoid(predictions.extent), axis=1)
    return np.asarray((steps >= 0.5).sum(1), np.int64)


def subgroups(predictions: Predictions) -> dict[str, Flags]:
    """Group radiographs by region, without shortcuts of the data (metal, image size), and by source; masks, (N,)."""
    radiographs = predictions.radiographs
    sizes = [radiograph.original_size for radiograph in radiographs]
    usual = max(set(sizes), key=sizes.count)
    kinds = {f"region {name}": predictions.true_region == index for index, name in enumerate(REGIONS)}
    kinds["without hardware"] = np.array([radiograph.hardware == 0 for radiograph in radiographs], bool)
    kinds[f"size {usual[0]}x{usual[1]}"] = np.array([size == usual for size in sizes], bool)
    sources = sorted({radiograph.source for radiograph in radiographs})
    if len(sources) > 1:
        kinds |= {
            f"source {name}": np.array([radiograph.source == name for radiograph in radiographs], bool)
            for name in sources
        }
    return {name: keep for name, keep in kinds.items() if keep.any()}


def measure(judged: CalibratedPredictions) -> dict[str, Any]:
    """Compute all figures with their intervals: overall and for each group of `subgroups`. Every leaf is JSON."""
    predictions = judged.predictions
    placed = predictions.only(predictions.true_region != MISSING)
    with_extent = predictions.only(predictions.true_extent != MISSING)
    truth, predicted = with_extent.true_extent, predicted_extent(with_extent)
    return {
        **_figures(judged),
        "severity_kappa": bootstrap_interval(with_extent.radiographs, lambda i: kappa(truth[i], predicted[i])),
        "operating_points": {
            "sensitive": _rates(judged, judged.possible),
            "specific": _rates(judged, judged.likely),
        },
        "groups": {name: _figures(judged.only(keep)) for name, keep in subgroups(predictions).items()},
        "region_confusion": confusion(placed.true_region, placed.region.argmax(1), len(REGIONS)).tolist(),
        "severity_confusion": confusion(truth, predicted, 4).tolist(),
    }


def _figures(judged: CalibratedPredictions) -> dict[str, Any]:
    predictions = judged.predictions
    labelled = judged.only(predictions.fractured != MISSING)
    truth, score, chance = labelled.predictions.fractured, labelled.predictions.fracture, labelled.chance
    placed = predictions.only(predictions.true_region != MISSING)
    right = placed.region.argmax(1) == placed.true_region
    game = pointing_game(predictions)
    enough = min(int(truth.sum()), int((truth == 0).sum())) >= MIN_RADIOGRAPHS
    radiographs = labelled.predictions.radiographs

    def if_enough(figure: Callable[[Ints], float]) -> list[float] | None:
        return bootstrap_interval(radiographs, figure) if enough else None

    return {
        "radiographs": len(predictions.radiographs),
        "fractured": int((truth == 1).sum()),
        "fracture_auroc": if_enough(lambda i: auroc(truth[i], score[i])),
        "fracture_average_precision": if_enough(lambda i: average_precision(truth[i], score[i])),
        "expected_calibration_error": if_enough(lambda i: calibration_error(chance[i], truth[i])),
        "region_accuracy": bootstrap_interval(placed.radiographs, lambda i: float(right[i].mean())),
        "pointing_game": bootstrap_interval(game.radiographs, lambda i: float(game.inside[i].mean()))
        if enough
        else None,
        "pointing_game_near": bootstrap_interval(game.radiographs, lambda i: float(game.near[i].mean()))
        if enough
        else None,
    }


def _rates(judged: CalibratedPredictions, called: Flags) -> dict[str, list[float] | None]:
    truth = judged.predictions.fractured
    yes, no = np.flatnonzero(truth == 1), np.flatnonzero(truth == 0)
    radiographs = judged.predictions.radiographs
    return {
        "sensitivity": bootstrap_interval([radiographs[i] for i in yes], lambda i: float(called[yes][i].mean())),
        "specificity": bootstrap_interval([radiographs[i] for i in no], lambda i: float(1 - called[no][i].mean())),
    }
