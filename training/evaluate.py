"""How good a model is on films it never saw: figures with intervals, overall and for each kind of film."""

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

from shared.errors import BadDataset
from shared.findings import ExposedField
from shared.vision.bundle import Calibration, Manifest
from shared.vision.engines import Engine
from shared.vision.reader import shown
from training.datasets import MISSING, REGIONS, Film, outline_mask, read_exposed

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
RESAMPLES = 1000
FEWEST = 10  # films of each kind in a group, below which a figure would only mislead
NEAR = 0.05  # of the side: how far beside a box still counts as near
FINE = 512  # pixels: the map is interpolated as the page shows it, and its peak taken there


@dataclass(frozen=True)
class Answers:
    """Raw logits for N films, and their labels."""

    films: list[Film]
    fracture: Floats  # (N,) logits
    region: Floats  # (N, R) logits
    severity: Floats  # (N, 3) logits
    heatmaps: Floats  # (N, h, w) logits
    strangeness: Floats  # (N,)
    hardware: Floats  # (N,) logits
    fields: list[ExposedField] | None = None  # what each square shows of its film; None: all of it

    @property
    def fractured(self) -> Ints:
        """(N,) 0, 1 or MISSING."""
        return np.array([film.fractured for film in self.films], np.int64)

    @property
    def true_region(self) -> Ints:
        """(N,) index or MISSING."""
        return np.array([film.region for film in self.films], np.int64)

    @property
    def true_severity(self) -> Ints:
        """(N,) 0..3 or MISSING."""
        return np.array([film.severity for film in self.films], np.int64)

    def only(self, keep: Flags) -> "Answers":
        """The films where `keep` (N,) is true."""
        films = [film for film, kept in zip(self.films, keep, strict=True) if kept]
        fields = [field for field, kept in zip(self.fields, keep, strict=True) if kept] if self.fields else None
        return Answers(
            films,
            self.fracture[keep],
            self.region[keep],
            self.severity[keep],
            self.heatmaps[keep],
            self.strangeness[keep],
            self.hardware[keep],
            fields,
        )


def joined(one: Answers, other: Answers) -> Answers:
    """The radiographs of both, in order."""
    return Answers(
        films=[*one.films, *other.films],
        **{name: np.concatenate([getattr(one, name), getattr(other, name)]) for name in ANSWER_FIELDS},
        fields=[*one.fields, *other.fields] if one.fields and other.fields else None,
    )


def answer(engine: Engine, films: list[Film], size: int, batch: int = 16) -> Answers:
    """Run a network over films exactly as the worker does: whole film, one view, no augmentation.

    engine: the one that serves on this machine, from `shared.vision.engines`; size: the bundle's input size, pixels.
    """
    said, fields = [], []
    for start in tqdm(range(0, len(films), batch), desc="evaluate", unit="batch"):
        read = [read_exposed(film.path, size) for film in films[start : start + batch]]
        said.append(engine(np.stack([square for square, _ in read])))
        fields += [field for _, field in read]
    parts = [np.concatenate([getattr(part, name) for part in said]).astype(np.float64) for name in said[0]._fields]
    return Answers(films, **dict(zip(ANSWER_FIELDS, parts, strict=True)), fields=fields)


# in the order of engines.Answer
ANSWER_FIELDS = ("region", "fracture", "severity", "heatmaps", "strangeness", "hardware")


@dataclass(frozen=True)
class Judged:
    """Answers with what a user would be told."""

    answers: Answers
    chance: Floats  # (N,) calibrated probabilities
    possible: Flags  # (N,) at or over the sensitive operating point
    likely: Flags  # (N,) at or over the specific one

    def only(self, keep: Flags) -> "Judged":
        """The films where `keep` (N,) is true."""
        return Judged(self.answers.only(keep), self.chance[keep], self.possible[keep], self.likely[keep])


def as_shipped(answers: Answers, manifest: Manifest) -> Judged:
    """Judge by a bundle's own calibration and operating points."""
    chance = probability(answers.fracture, manifest.calibration)
    return Judged(answers, chance, chance >= manifest.sensitive, chance >= max(manifest.specific, manifest.sensitive))


def cross_fitted(answers: Answers) -> Judged:
    """Judge each half of the blocks by calibration and operating points that were fitted on the other half.

    For films that will themselves choose the bundle's calibration: so no film has a say in its own judgement.
    Raises BadDataset if one half lacks a class.
    """
    blocks = sorted({film.block for film in answers.films})
    half = set(blocks[::2])
    side = np.array([film.block in half for film in answers.films], bool)
    chance, possible, likely = np.empty(len(side)), np.empty(len(side), bool), np.empty(len(side), bool)
    for own in (side, ~side):
        other = answers.only(~own & (answers.fractured != MISSING))
        calibration = fit_calibration(other.fracture, other.fractured)
        sensitive, specific = operating_points(probability(other.fracture, calibration), other.fractured)
        chance[own] = probability(answers.fracture[own], calibration)
        possible[own], likely[own] = chance[own] >= sensitive, chance[own] >= specific
    return Judged(answers, chance, possible, likely)


def interval(films: Sequence[Film], figure: Callable[[Ints], float]) -> list[float] | None:
    """[estimate, low, high]: 95 % percentile bootstrap over blocks, which keeps a patient's films together.

    figure: given film indices (with repeats), returns the number, nan where these films do not tell.
    None when all films together do not tell, for JSON knows no nan.
    """
    estimate = figure(np.arange(len(films))) if films else np.nan
    if not np.isfinite(estimate):
        return None
    blocks: dict[str, list[int]] = {}
    for index, film in enumerate(films):
        blocks.setdefault(film.block, []).append(index)
    groups = [np.array(group) for group in blocks.values()]
    dice = np.random.default_rng(0)
    values = [estimate]
    for _ in range(RESAMPLES):
        chosen = np.concatenate([groups[i] for i in dice.integers(len(groups), size=len(groups))])
        value = figure(chosen)
        if np.isfinite(value):
            values.append(value)
    low, high = np.percentile(values, [2.5, 97.5])
    return [round(float(v), 4) for v in (estimate, low, high)]


def auroc(truth: Ints, score: Floats) -> float:
    """Area under the ROC curve, by ranks (Hanley & McNeil 1982); nan when one class is missing."""
    positives = int(truth.sum())
    negatives = len(truth) - positives
    if not positives or not negatives:
        return float("nan")
    ranks = float(rankdata(score)[truth == 1].sum())
    return (ranks - positives * (positives + 1) / 2) / (positives * negatives)


def average_precision(truth: Ints, score: Floats) -> float:
    """Area under the precision-recall curve; nan without a positive."""
    return float(average_precision_score(truth, score)) if truth.any() else float("nan")


def fit_calibration(logits: Floats, truth: Ints) -> Calibration:
    """Platt scaling, as good as without regularisation. Raises BadDataset when one class is missing."""
    if not 0 < truth.sum() < len(truth):
        raise BadDataset("Calibration needs films with and without a fracture on both sides; give more films")
    fitted = LogisticRegression(C=1e6).fit(logits[:, None], truth)
    return Calibration(slope=float(fitted.coef_[0, 0]), offset=float(fitted.intercept_[0]))


def probability(logits: Floats, calibration: Calibration) -> Floats:
    """Calibrated probabilities."""
    return sigmoid(logits * calibration.slope + calibration.offset)


def sigmoid(logits: Floats) -> Floats:
    """Logistic function."""
    return 1 / (1 + np.exp(-np.clip(logits, -500, 500)))  # exp(710) overflows


def calibration_error(chance: Floats, truth: Ints, bins: int = 10) -> float:
    """Expected calibration error with equally filled bins (Nixon et al. 2019, arXiv:1904.01685)."""
    order = np.array_split(np.argsort(chance, kind="stable"), bins)
    return float(
        sum(len(part) * abs(chance[part].mean() - truth[part].mean()) for part in order if len(part)) / len(truth)
    )


def operating_points(chance: Floats, truth: Ints, least: float = 0.95) -> tuple[float, float]:
    """(sensitive, specific) thresholds: sensitivity, and specificity, of at least `least` on films yet to come.

    Split-conformal quantiles (Angelopoulos & Bates 2021, arXiv:2107.07511): with n positives, the k-th lowest of them
    for k = floor((1 - least) * (n + 1)) lets a new one through with probability >= least, where the usual choice on the
    same films is too hopeful. The specific point mirrors it. With fewer than 19 films of a kind nothing can be
    promised, and the most cautious threshold is taken. Raises BadDataset when one class is missing.
    """
    if not 0 < truth.sum() < len(truth):
        raise BadDataset("Operating points need films with and without a fracture; give more films")
    yes, no = np.sort(chance[truth == 1]), np.sort(chance[truth == 0])
    sensitive = yes[max(0, int((1 - least) * (len(yes) + 1)) - 1)]
    specific = np.nextafter(no[len(no) - max(1, int((1 - least) * (len(no) + 1)))], 2)
    return min(float(sensitive), 1.0), min(max(float(sensitive), float(specific)), 1.0)


@dataclass(frozen=True)
class Pointing:
    """Pointing game (Zhang et al. 2016, arXiv:1608.00507) over the P fractured films with an outline."""

    films: list[Film]
    inside: Flags  # (P,) the map's peak is in the box around an outline
    near: Flags  # (P,) or within 5 % of the side of it


def pointing(answers: Answers) -> Pointing:
    """Play the pointing game."""
    inside, near, films = [], [], []
    margin = np.ones((2 * round(NEAR * FINE) + 1,) * 2, np.uint8)
    fields: Sequence[ExposedField | None] = answers.fields or [None] * len(answers.films)
    for film, field, heatmap in zip(
        answers.films, fields, shown(answers.heatmaps) if answers.films else (), strict=True
    ):
        if film.fractured == 1 and film.outlines:
            drawn = cv2.resize(heatmap, (FINE, FINE), interpolation=cv2.INTER_CUBIC)
            row, column = np.unravel_index(int(drawn.argmax()), drawn.shape)
            box = outline_mask(film, FINE, field, boxes=True)
            inside.append(box[row, column] > 0)
            near.append(cv2.dilate(box, margin)[row, column] > 0)
            films.append(film)
    return Pointing(films, np.array(inside, bool), np.array(near, bool))


def kappa(truth: Ints, graded: Ints, grades: int = 4) -> float:
    """Quadratic weighted kappa (Cohen 1968); nan when both gave one and the same grade to all."""
    table = confusion(truth, graded, grades)
    weight = (np.subtract.outer(np.arange(grades), np.arange(grades)) / (grades - 1)) ** 2
    chance = np.outer(table.sum(1), table.sum(0)) / table.sum()
    by_chance = (weight * chance).sum()
    return float(1 - (weight * table).sum() / by_chance) if by_chance else float("nan")


def confusion(truth: Ints, said: Ints, kinds: int) -> Ints:
    """(kinds, kinds) counts; rows are the truth."""
    table = np.zeros((kinds, kinds), np.int64)
    np.add.at(table, (truth, said), 1)
    return table


def graded(answers: Answers) -> Ints:
    """(N,) 0..3, the extent that the severity logits say."""
    steps = np.minimum.accumulate(sigmoid(answers.severity), axis=1)
    return np.asarray((steps >= 0.5).sum(1), np.int64)


def groups(answers: Answers) -> dict[str, Flags]:
    """Films by region, without the shortcuts of the data (metal, film size), and by where they come from."""
    films = answers.films
    sizes = [film.original_size for film in films]
    usual = max(set(sizes), key=sizes.count)
    kinds = {f"region {name}": answers.true_region == index for index, name in enumerate(REGIONS)}
    kinds["without hardware"] = np.array([film.hardware == 0 for film in films], bool)
    kinds[f"size {usual[0]}x{usual[1]}"] = np.array([size == usual for size in sizes], bool)
    sources = sorted({film.source for film in films})
    if len(sources) > 1:
        kinds |= {f"source {name}": np.array([film.source == name for film in films], bool) for name in sources}
    return {name: keep for name, keep in kinds.items() if keep.any()}


def measure(judged: Judged) -> dict[str, Any]:
    """All figures with their intervals: overall and for each group of `groups`. Every leaf is JSON."""
    answers = judged.answers
    placed = answers.only(answers.true_region != MISSING)
    with_extent = answers.only(answers.true_severity != MISSING)
    truth, said = with_extent.true_severity, graded(with_extent)
    return {
        **_figures(judged),
        "severity_kappa": interval(with_extent.films, lambda i: kappa(truth[i], said[i])),
        "operating_points": {
            "sensitive": _rates(judged, judged.possible),
            "specific": _rates(judged, judged.likely),
        },
        "groups": {name: _figures(judged.only(keep)) for name, keep in groups(answers).items()},
        "region_confusion": confusion(placed.true_region, placed.region.argmax(1), len(REGIONS)).tolist(),
        "severity_confusion": confusion(truth, said, 4).tolist(),
    }


def _figures(judged: Judged) -> dict[str, Any]:
    answers = judged.answers
    told = judged.only(answers.fractured != MISSING)
    truth, score, chance = told.answers.fractured, told.answers.fracture, told.chance
    placed = answers.only(answers.true_region != MISSING)
    right = placed.region.argmax(1) == placed.true_region
    game = pointing(answers)
    enough = min(int(truth.sum()), int((truth == 0).sum())) >= FEWEST
    films = told.answers.films

    def if_enough(figure: Callable[[Ints], float]) -> list[float] | None:
        return interval(films, figure) if enough else None

    return {
        "films": len(answers.films),
        "fractured": int((truth == 1).sum()),
        "fracture_auroc": if_enough(lambda i: auroc(truth[i], score[i])),
        "fracture_average_precision": if_enough(lambda i: average_precision(truth[i], score[i])),
        "expected_calibration_error": if_enough(lambda i: calibration_error(chance[i], truth[i])),
        "region_accuracy": interval(placed.films, lambda i: float(right[i].mean())),
        "pointing_game": interval(game.films, lambda i: float(game.inside[i].mean())) if enough else None,
        "pointing_game_near": interval(game.films, lambda i: float(game.near[i].mean())) if enough else None,
    }


def _rates(judged: Judged, called: Flags) -> dict[str, list[float] | None]:
    truth = judged.answers.fractured
    yes, no = np.flatnonzero(truth == 1), np.flatnonzero(truth == 0)
    films = judged.answers.films
    return {
        "sensitivity": interval([films[i] for i in yes], lambda i: float(called[yes][i].mean())),
        "specificity": interval([films[i] for i in no], lambda i: float(1 - called[no][i].mean())),
    }
