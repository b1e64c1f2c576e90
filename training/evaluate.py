"""`osteon evaluate`: how good a model is on films it never saw, with intervals, plots and operating points."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score, roc_curve
from tqdm import tqdm

from shared.errors import BadDataset
from shared.vision.bundle import Calibration
from shared.vision.network import BoneNet
from training.datasets import MISSING, REGIONS, Film, outline_mask, read_film

Floats = npt.NDArray[np.float64]
RESAMPLES = 1000


@dataclass(frozen=True)
class Answers:
    """Raw logits for N films, and their labels."""

    films: list[Film]
    fracture: Floats  # (N,) logits
    region: Floats  # (N, R) logits
    severity: Floats  # (N, 3) logits
    heatmaps: Floats  # (N, h, w)

    @property
    def fractured(self) -> npt.NDArray[np.int64]:
        """(N,) 0 or 1."""
        return np.array([film.fractured for film in self.films])

    @property
    def true_region(self) -> npt.NDArray[np.int64]:
        """(N,) index or MISSING."""
        return np.array([film.region for film in self.films])

    def only(self, keep: npt.NDArray[np.bool_]) -> "Answers":
        """The films where `keep` (N,) is true."""
        films = [film for film, kept in zip(self.films, keep, strict=True) if kept]
        return Answers(films, self.fracture[keep], self.region[keep], self.severity[keep], self.heatmaps[keep])


def answer(network: BoneNet, films: list[Film], size: int, batch: int = 32) -> Answers:
    """Run the network over films exactly as the worker does: whole film, one view, no augmentation."""
    network.eval()
    outs: list[list[Floats]] = [[], [], [], []]
    with torch.inference_mode():
        for start in tqdm(range(0, len(films), batch), desc="evaluate", unit="batch"):
            squares = np.stack([read_film(film.path, size) for film in films[start : start + batch]])
            reading = network(torch.from_numpy(squares)[:, None])
            for out, part in zip(
                outs, (reading.fracture, reading.region, reading.severity, reading.heatmap), strict=True
            ):
                out.append(part.double().numpy())
    return Answers(films, *(np.concatenate(out) for out in outs))


def interval(films: Sequence[Film], figure: Callable[[npt.NDArray[np.int64]], float]) -> list[float] | None:
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


def auroc(truth: npt.NDArray[np.int64], score: Floats) -> float:
    """Area under the ROC curve; nan when one class is missing."""
    return float(roc_auc_score(truth, score)) if 0 < truth.sum() < len(truth) else float("nan")


def fit_calibration(logits: Floats, truth: npt.NDArray[np.int64]) -> Calibration:
    """Platt scaling, as good as without regularisation. Raises BadDataset when one class is missing."""
    if not 0 < truth.sum() < len(truth):
        raise BadDataset("Calibration needs films with and without a fracture on both sides; give more films")
    fitted = LogisticRegression(C=1e6).fit(logits[:, None], truth)
    return Calibration(slope=float(fitted.coef_[0, 0]), offset=float(fitted.intercept_[0]))


def probability(logits: Floats, calibration: Calibration) -> Floats:
    """Calibrated probabilities."""
    return _sigmoid(logits * calibration.slope + calibration.offset)


def _sigmoid(logits: Floats) -> Floats:
    return 1 / (1 + np.exp(-np.clip(logits, -500, 500)))  # exp(710) overflows


def calibration_error(chance: Floats, truth: npt.NDArray[np.int64], bins: int = 10) -> float:
    """Expected calibration error with equally filled bins (Nixon et al. 2019, arXiv:1904.01685)."""
    order = np.array_split(np.argsort(chance, kind="stable"), bins)
    return float(
        sum(len(part) * abs(chance[part].mean() - truth[part].mean()) for part in order if len(part)) / len(truth)
    )


def operating_points(chance: Floats, truth: npt.NDArray[np.int64]) -> tuple[float, float]:
    """(sensitive, specific): highest threshold with sensitivity >= 0.95, lowest with specificity >= 0.95."""
    false_rate, true_rate, thresholds = roc_curve(truth, chance, drop_intermediate=False)
    sensitive = float(thresholds[true_rate >= 0.95][0])
    specific = float(thresholds[false_rate <= 0.05][-1])
    return min(sensitive, 1.0), min(max(sensitive, specific), 1.0)


def crossed(answers: Answers) -> Floats:
    """Probabilities where each half of the blocks was calibrated on the other half: an honest calibration error."""
    blocks = sorted({film.block for film in answers.films})
    half = set(blocks[::2])
    side = np.array([film.block in half for film in answers.films])
    chance = np.empty(len(side))
    for own in (side, ~side):
        chance[own] = probability(
            answers.fracture[own], fit_calibration(answers.fracture[~own], answers.fractured[~own])
        )
    return chance


def pointing(answers: Answers) -> tuple[npt.NDArray[np.bool_], list[Film]]:
    """Pointing game (Zhang et al. 2016, arXiv:1608.00507): is the map's peak in the box around an outline?

    Returns a hit or miss for every fractured film with an outline, and those films.
    """
    hits, films = [], []
    for film, heatmap in zip(answers.films, answers.heatmaps, strict=True):
        if film.fractured and film.outlines:
            fine = 512  # the map is interpolated as the page shows it, and its peak taken there
            import cv2

            drawn = cv2.resize(heatmap.astype(np.float32), (fine, fine), interpolation=cv2.INTER_CUBIC)
            row, column = np.unravel_index(int(drawn.argmax()), drawn.shape)
            hits.append(outline_mask(film, fine, boxes=True)[row, column] > 0)
            films.append(film)
    return np.array(hits, bool), films


def kappa(truth: npt.NDArray[np.int64], graded: npt.NDArray[np.int64], grades: int = 4) -> float:
    """Quadratic weighted kappa (Cohen 1968); nan when both gave one and the same grade to all."""
    table = np.zeros((grades, grades))
    np.add.at(table, (truth, graded), 1)
    weight = (np.subtract.outer(np.arange(grades), np.arange(grades)) / (grades - 1)) ** 2
    chance = np.outer(table.sum(1), table.sum(0)) / table.sum()
    by_chance = (weight * chance).sum()
    return float(1 - (weight * table).sum() / by_chance) if by_chance else float("nan")


def measure(answers: Answers) -> dict[str, Any]:
    """All figures with their intervals: overall, per region, and without the shortcuts of the data."""
    truth, chance = answers.fractured, crossed(answers)
    films = answers.films

    def area(part: Answers) -> list[float] | None:
        return interval(part.films, lambda i: auroc(part.fractured[i], part.fracture[i]))

    known = answers.true_region != MISSING
    placed = answers.only(known)
    right = placed.region.argmax(1) == placed.true_region
    graded = np.array([film.severity for film in films])
    has_grade = graded != MISSING
    steps = np.minimum.accumulate(_sigmoid(answers.severity), axis=1)
    said = (steps >= 0.5).sum(1)
    hits, shown = pointing(answers)
    sizes = [film.original_size for film in films]
    usual = max(set(sizes), key=sizes.count)
    hardware = np.array([film.hardware == 1 for film in films])
    return {
        "films": len(films),
        "fractured": int(truth.sum()),
        "fracture_auroc": area(answers),
        "fracture_auroc_without_hardware": area(answers.only(~hardware)),
        f"fracture_auroc_size_{usual[0]}x{usual[1]}": area(answers.only(np.array([s == usual for s in sizes]))),
        "fracture_auroc_by_region": {
            name: area(answers.only(answers.true_region == index)) for index, name in enumerate(REGIONS)
        },
        "region_accuracy": interval(placed.films, lambda i: float(right[i].mean())),
        "expected_calibration_error": interval(films, lambda i: calibration_error(chance[i], truth[i])),
        "pointing_game": interval(shown, lambda i: float(hits[i].mean())),
        "severity_kappa": interval(
            [film for film, has in zip(films, has_grade, strict=True) if has],
            lambda i: kappa(graded[has_grade][i], said[has_grade][i]),
        ),
    }


def plot(answers: Answers, path: Path) -> None:
    """ROC curve and reliability diagram side by side, as PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    truth, chance = answers.fractured, crossed(answers)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.6), layout="constrained")
    false_rate, true_rate, _ = roc_curve(truth, chance)
    left.plot(false_rate, true_rate, label=f"AUROC {auroc(truth, answers.fracture):.3f}")
    left.plot([0, 1], [0, 1], color="0.7", linestyle=":")
    left.set(xlabel="1 - specificity", ylabel="sensitivity", title="Fracture, validation films")
    left.legend(loc="lower right")
    parts = np.array_split(np.argsort(chance), 10)
    right.plot([chance[p].mean() for p in parts], [truth[p].mean() for p in parts], marker="o")
    right.plot([0, 1], [0, 1], color="0.7", linestyle=":")
    right.set(xlabel="calibrated probability", ylabel="share fractured", title="Reliability, tenths of the films")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def write_report(answers: Answers, out: Path) -> dict[str, Any]:
    """Measure, write metrics.json and evaluation.png under `out`, and return the figures."""
    out.mkdir(parents=True, exist_ok=True)
    figures = measure(answers)
    (out / "metrics.json").write_text(json.dumps(figures, indent=1))
    plot(answers, out / "evaluation.png")
    return figures
