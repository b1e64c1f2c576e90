"""The report of a measurement: one self-contained HTML page, and the same figures as JSON."""

import base64
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import precision_recall_curve, roc_curve

from shared.domain.findings import RESEARCH_USE, Extent
from shared.domain.manifest import Manifest
from shared.errors import BadDataset
from shared.model.predictor import displayed_heatmaps
from training.card import reasons_in_words
from training.datasets import MISSING, REGIONS, LabelledRadiograph, outline_mask, read_exposed
from training.evaluate import (
    FINE_MAP_SIDE,
    MIN_RADIOGRAPHS,
    CalibratedPredictions,
    Floats,
    Ints,
    bootstrap_interval,
    judge_as_shipped,
    measure,
    pointing_game,
)

UInt8Picture = npt.NDArray[np.uint8]  # (H, W, 3), blue first as OpenCV has it
Points = Callable[[Ints, Floats], tuple[Floats, Floats]]  # truth and score to x, rising, and y

BAND_RESAMPLES = 250  # resamples behind a curve's band
GRID = np.linspace(0, 1, 201)
RELIABILITY_BINS = 10
GALLERY_SIZE = 6  # radiographs in a row of the gallery
PICTURE_SIDE = 256  # pixels, side of a radiograph in the gallery
OVERLAY_STRENGTH = 0.65  # of the overlay where the map is full: the radiograph stays visible
# Okabe & Ito 2008: told apart with any kind of colour vision; the points also differ in shape
BLUE, VERMILION, BLACK, GRAY = "#0072B2", "#D55E00", "#111111", "#767676"
OPERATING_POINT_MARKS = (("unclear: sensitive point", "o", VERMILION), ("positive: specific point", "s", BLACK))
SKY = (233, 180, 86)
WEAK, STRONG = np.array([0, 190, 255], np.float32), np.array([0, 60, 225], np.float32)  # yellow to vermilion


def write_report(
    judged: CalibratedPredictions, manifest: Manifest, out: Path, note: str = "", extra: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Measure, then write `metrics.json` and `report.html`.

    Args:
        judged: one radiograph at least; labels may be MISSING.
        manifest: of the bundle that predicted.
        out: a folder, made where it is missing.
        note: a sentence that says which radiographs these are.
        extra: further figures, JSON; of these the page shows "scope" as `scope.measure_scope` returns it.

    Returns:
        What metrics.json holds: the figures of `evaluate.measure` and `extra`.

    Raises:
        BadDataset: There is no radiograph, or one in the gallery cannot be read.
    """
    if not judged.predictions.radiographs:
        raise BadDataset("There is no radiograph to measure; give a data set that has some")
    figures = measure(judged) | (extra or {})
    page = PAGES.get_template("report.html.j2").render(
        RESEARCH_USE=RESEARCH_USE,
        manifest=manifest,
        note=note,
        figures=figures,
        counts=_counts(judged, manifest),
        curves=_curves(judged) if figures["fracture_auroc"] else None,
        regions=_table(REGIONS, figures["region_confusion"]),
        extents=_table([str(grade) for grade in Extent], figures["severity_confusion"]),
        rows=_gallery(judged, manifest),
        fewest=MIN_RADIOGRAPHS,
    )
    out.mkdir(parents=True, exist_ok=True)
    (out / "metrics.json").write_text(json.dumps(figures, indent=1, allow_nan=False) + "\n")
    (out / "report.html").write_text(page, encoding="utf-8")
    return figures


def _number(interval: list[float] | None) -> str:
    return "too few" if interval is None else f"{interval[0]:.3f} ({interval[1]:.3f} to {interval[2]:.3f})"


def _percent(interval: list[float] | None) -> str:
    return "too few" if interval is None else "{:.1f} % ({:.1f} to {:.1f})".format(*(100 * part for part in interval))


PAGES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
PAGES.filters |= {"reasons_in_words": reasons_in_words, "number": _number, "percent": _percent}


def _counts(judged: CalibratedPredictions, manifest: Manifest) -> dict[str, Any]:
    """Count what the page names beside the figures."""
    radiographs = judged.predictions.radiographs
    shipped = judge_as_shipped(judged.predictions, manifest)
    return {
        "blocks": len({radiograph.block for radiograph in radiographs}),
        "labelled": sum(radiograph.fractured != MISSING for radiograph in radiographs),
        "outlined": sum(radiograph.fractured == 1 and bool(radiograph.outlines) for radiograph in radiographs),
        "sources": sorted({radiograph.source for radiograph in radiographs if radiograph.source}),
        "as_shipped": np.array_equal(shipped.possible, judged.possible)
        and np.array_equal(shipped.likely, judged.likely),
    }


def _curves(judged: CalibratedPredictions) -> dict[str, str]:
    return {
        "roc": _embedded(roc_figure(judged)),
        "precision": _embedded(precision_figure(judged)),
        "reliability": _embedded(reliability_figure(judged)),
    }


def _embedded(figure: Figure) -> str:
    """Encode as a data: address of an SVG; the same figure gives the same bytes."""
    content = io.BytesIO()
    with rc_context({"svg.hashsalt": "osteon", "svg.fonttype": "path"}):
        figure.savefig(content, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(content.getvalue()).decode()


def roc_figure(judged: CalibratedPredictions) -> Figure:
    """Draw the receiver operating characteristic, its 95 % band over blocks, and both operating points.

    Args:
        judged: radiographs with a fracture and without; those that are not labelled are left out.

    Returns:
        A figure that is not saved yet.
    """
    labelled = judged.only(judged.predictions.fractured != MISSING)
    truth = labelled.predictions.fractured
    figure, axes = _square("sound radiographs called (1 - specificity)", "fractured radiographs called (sensitivity)")
    axes.plot([0, 1], [0, 1], color=GRAY, linestyle=":", label="guessing")
    _draw_curve(axes, labelled, _roc_points)
    for (name, marker, colour), called in zip(OPERATING_POINT_MARKS, (labelled.possible, labelled.likely), strict=True):
        _mark(axes, called[truth == 0].mean(), called[truth == 1].mean(), name, marker, colour)
    axes.legend(loc="lower right", fontsize=8)
    return figure


def precision_figure(judged: CalibratedPredictions) -> Figure:
    """Draw precision and recall, with the same band and points as `roc_figure`."""
    labelled = judged.only(judged.predictions.fractured != MISSING)
    truth = labelled.predictions.fractured
    figure, axes = _square("fractured radiographs called (recall)", "called radiographs that are fractured (precision)")
    axes.axhline(truth.mean(), color=GRAY, linestyle=":", label="guessing")
    _draw_curve(axes, labelled, _precision_points)
    for (name, marker, colour), called in zip(OPERATING_POINT_MARKS, (labelled.possible, labelled.likely), strict=True):
        if called.any():
            _mark(axes, called[truth == 1].mean(), truth[called].mean(), name, marker, colour)
    axes.legend(loc="lower left", fontsize=8)
    return figure


def reliability_figure(judged: CalibratedPredictions) -> Figure:
    """Draw told probability against what came true, in tenths of the images, over a histogram of the probabilities.

    The tenths are those that `evaluate.calibration_error` adds up.

    Args:
        judged: one labelled radiograph at least.

    Returns:
        A figure that is not saved yet.
    """
    labelled = judged.only(judged.predictions.fractured != MISSING)
    truth, chance, radiographs = labelled.predictions.fractured, labelled.chance, labelled.predictions.radiographs
    figure = Figure(figsize=(4.8, 5.2), layout="constrained")
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    axes.plot([0, 1], [0, 1], color=GRAY, linestyle=":", label="told exactly")
    for part in np.array_split(np.argsort(chance, kind="stable"), RELIABILITY_BINS):
        share = bootstrap_interval([radiographs[i] for i in part], _mean_of(truth[part]))
        if share:
            axes.vlines(chance[part].mean(), share[1], share[2], color=BLUE, alpha=0.5)
            axes.plot(chance[part].mean(), share[0], color=BLUE, marker="o", markersize=5)
    axes.set(ylabel="share fractured", ylim=(-0.02, 1.02))
    axes.legend(loc="upper left", fontsize=8)
    kinds = [chance[truth == 0], chance[truth == 1]]
    below.hist(kinds, bins=20, range=(0, 1), stacked=True, color=["#C9C9C9", BLUE], label=["sound", "fractured"])
    below.set(xlabel="told probability of a fracture", ylabel="radiographs", xlim=(-0.02, 1.02))
    below.yaxis.get_major_locator().set_params(integer=True)
    below.legend(fontsize=8)
    for part_axes in (axes, below):
        _style_axes(part_axes)
    return figure


def _mean_of(values: Ints) -> Callable[[Ints], float]:
    return lambda chosen: float(values[chosen].mean())


def _square(across: str, up: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.8, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=across, ylabel=up, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    _style_axes(axes)
    return figure, axes


def _style_axes(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#E4E4E4", linewidth=0.6)
    axes.set_axisbelow(True)


def _mark(axes: Axes, x: float, y: float, name: str, marker: str, colour: str) -> None:
    axes.plot(x, y, marker=marker, color=colour, markersize=8, markeredgecolor="white", linestyle="none", label=name)


def _draw_curve(axes: Axes, judged: CalibratedPredictions, points: Points) -> None:
    truth, score = judged.predictions.fractured, judged.predictions.fracture
    redraws = [i for i in _bootstrap_indices(judged.predictions.radiographs) if 0 < truth[i].sum() < len(i)]
    drawn = [np.interp(GRID, *points(truth[i], score[i])) for i in (np.arange(len(truth)), *redraws)]
    low, high = np.percentile(drawn, [2.5, 97.5], axis=0)
    axes.fill_between(GRID, low, high, color=BLUE, alpha=0.18, linewidth=0, label="95 % band")
    axes.plot(*points(truth, score), color=BLUE, linewidth=1.6, label="this bundle")


def _roc_points(truth: Ints, score: Floats) -> tuple[Floats, Floats]:
    across, up, _ = roc_curve(truth, score)
    return across, up


def _precision_points(truth: Ints, score: Floats) -> tuple[Floats, Floats]:
    precision, recall, _ = precision_recall_curve(truth, score)
    return recall[::-1], precision[::-1]


def _bootstrap_indices(radiographs: Sequence[LabelledRadiograph]) -> Iterator[Ints]:
    """Draw radiograph indices BAND_RESAMPLES times, with repeats by block, as `evaluate.bootstrap_interval` does."""
    blocks: dict[str, list[int]] = {}
    for index, radiograph in enumerate(radiographs):
        blocks.setdefault(radiograph.block, []).append(index)
    groups = [np.array(group, np.int64) for group in blocks.values()]
    rng = np.random.default_rng(0)
    for _ in range(BAND_RESAMPLES):
        yield np.concatenate([groups[i] for i in rng.integers(len(groups), size=len(groups))])


@dataclass(frozen=True)
class Row:
    """One row of a confusion matrix."""

    name: str
    cells: list[tuple[int, float]]  # radiographs, and their share of the row, 0..1
    radiographs: int


def _table(names: Sequence[str], counts: list[list[int]]) -> list[Row]:
    return [
        Row(name, [(count, count / max(1, sum(row))) for count in row], sum(row))
        for name, row in zip(names, counts, strict=True)
    ]


@dataclass(frozen=True)
class Example:
    """One radiograph of the gallery."""

    picture: str  # data: address of a PNG
    name: str  # of its file
    chance: float
    assessment: str


@dataclass(frozen=True)
class Gallery:
    """One row of the gallery: radiographs picked by a rule."""

    title: str
    rule: str
    shown: list[Example]


def _gallery(judged: CalibratedPredictions, manifest: Manifest) -> list[Gallery]:
    radiographs, truth, chance = judged.predictions.radiographs, judged.predictions.fractured, judged.chance
    played = [i for i, radiograph in enumerate(radiographs) if radiograph.fractured == 1 and radiograph.outlines]
    inside = [i for i, hit in zip(played, pointing_game(judged.predictions).inside, strict=True) if hit]
    outside = sorted(set(played) - set(inside))

    def highest(chosen: Iterable[int]) -> list[Example]:
        first = sorted(chosen, key=lambda i: -chance[i])[:GALLERY_SIZE]
        return [_example(judged, i, manifest.heatmap_full) for i in first]

    def lowest(chosen: Iterable[int]) -> list[Example]:
        first = sorted(chosen, key=lambda i: chance[i])[:GALLERY_SIZE]
        return [_example(judged, i, manifest.heatmap_full) for i in first]

    return [
        Gallery(
            "Hits",
            "Fractured radiographs whose peak lies in an annotated box, the most probable first.",
            highest(inside),
        ),
        Gallery(
            "Misses",
            "Fractured radiographs whose peak lies outside every box, the most probable first.",
            highest(outside),
        ),
        Gallery(
            "False alarms", "Sound radiographs, the most probable first.", highest(map(int, np.flatnonzero(truth == 0)))
        ),
        Gallery(
            "Missed fractures",
            "Fractured radiographs, the least probable first.",
            lowest(map(int, np.flatnonzero(truth == 1))),
        ),
    ]


def _example(judged: CalibratedPredictions, index: int, full: float) -> Example:
    radiograph = judged.predictions.radiographs[index]
    small = cv2.resize(
        overlay(radiograph, judged.predictions.heatmaps[index], full),
        (PICTURE_SIDE, PICTURE_SIDE),
        interpolation=cv2.INTER_AREA,
    )
    _, content = cv2.imencode(".png", small)
    picture = "data:image/png;base64," + base64.b64encode(content.tobytes()).decode()
    assessment = "positive" if judged.likely[index] else "unclear" if judged.possible[index] else "negative"
    return Example(picture, radiograph.path.name, float(judged.chance[index]), assessment)


def overlay(radiograph: LabelledRadiograph, heatmap: Floats, full: float) -> UInt8Picture:
    """Draw the prepared radiograph under its heatmap, with outlines, their boxes, and a ring around the map's peak.

    The map is interpolated as `evaluate.pointing_game` does, so that the ring stands where the pointing game looks.

    Args:
        radiograph: read again from its file.
        heatmap: (h, w) logits.
        full: the cell probability that is drawn at full strength, 0..1.

    Returns:
        (FINE_MAP_SIDE, FINE_MAP_SIDE, 3) uint8, blue first.

    Raises:
        BadDataset: The radiograph cannot be read.
    """
    drawn = cv2.resize(
        displayed_heatmaps(heatmap[None])[0], (FINE_MAP_SIDE, FINE_MAP_SIDE), interpolation=cv2.INTER_CUBIC
    )
    heat = np.clip(drawn / full, 0, 1).astype(np.float32)[..., None]
    square, field = read_exposed(radiograph.path, FINE_MAP_SIDE)
    gray = square[..., None]
    mixed = gray * (1 - OVERLAY_STRENGTH * heat) + (WEAK * (1 - heat) + STRONG * heat) * OVERLAY_STRENGTH * heat
    picture = np.ascontiguousarray(np.rint(mixed), np.uint8)
    for boxes, thickness in ((True, 2), (False, 4)):
        mask = outline_mask(radiograph, FINE_MAP_SIDE, field, boxes=boxes)
        edges, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        cv2.drawContours(picture, edges, -1, SKY, thickness)
    row, column = np.unravel_index(int(drawn.argmax()), drawn.shape)
    for colour, thickness in (((0, 0, 0), 7), ((255, 255, 255), 3)):
        cv2.circle(picture, (int(column), int(row)), 11, colour, thickness, cv2.LINE_AA)
    return picture
