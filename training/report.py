"""The report of a measurement: one HTML page that needs nothing but itself, and the same figures as JSON."""

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

from shared.errors import BadDataset
from shared.findings import RESEARCH_USE, Severity
from shared.vision.bundle import Manifest
from shared.vision.reader import shown
from training.card import reasons_in_words
from training.datasets import MISSING, REGIONS, Film, outline_mask, read_exposed
from training.evaluate import FEWEST, FINE, Floats, Ints, Judged, as_shipped, interval, measure, pointing

UInt8Picture = npt.NDArray[np.uint8]  # (H, W, 3), blue first as OpenCV has it
Points = Callable[[Ints, Floats], tuple[Floats, Floats]]  # truth and score to x, rising, and y

BANDS = 250  # resamples behind a curve's band
GRID = np.linspace(0, 1, 201)
TENTHS = 10
SHOWN = 6  # films in a row of the gallery
PICTURE = 256  # pixels, side of a film in the gallery
STRENGTH = 0.65  # of the overlay where the map is full: the film stays visible
# Okabe & Ito 2008: told apart with any kind of colour vision; the points also differ in shape
BLUE, VERMILION, BLACK, GRAY = "#0072B2", "#D55E00", "#111111", "#767676"
CALLS = (("unclear: sensitive point", "o", VERMILION), ("positive: specific point", "s", BLACK))
SKY = (233, 180, 86)
WEAK, STRONG = np.array([0, 190, 255], np.float32), np.array([0, 60, 225], np.float32)  # yellow to vermilion


def write_report(
    judged: Judged, manifest: Manifest, out: Path, note: str = "", extra: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Measure, then write `metrics.json` and `report.html` into the folder `out`, made where it is missing.

    judged: one film at least; labels may be MISSING. manifest: of the bundle that answered. note: a sentence that says
    which films these are. extra: further figures, JSON; of these the page shows "scope" as `scope.measure_scope` tells.
    Returns what metrics.json holds: the figures of `evaluate.measure` and `extra`.
    Raises BadDataset without a film, or for one in the gallery that cannot be read.
    """
    if not judged.answers.films:
        raise BadDataset("There is no film to measure; give a data set that has some")
    figures = measure(judged) | (extra or {})
    page = PAGES.get_template("report.html.j2").render(
        RESEARCH_USE=RESEARCH_USE,
        manifest=manifest,
        note=note,
        figures=figures,
        counts=_counts(judged, manifest),
        curves=_curves(judged) if figures["fracture_auroc"] else None,
        regions=_table(REGIONS, figures["region_confusion"]),
        extents=_table([str(grade) for grade in Severity], figures["severity_confusion"]),
        rows=_gallery(judged, manifest),
        fewest=FEWEST,
    )
    out.mkdir(parents=True, exist_ok=True)
    (out / "metrics.json").write_text(json.dumps(figures, indent=1, allow_nan=False) + "\n")
    (out / "report.html").write_text(page, encoding="utf-8")
    return figures


def _number(told: list[float] | None) -> str:
    return "too few" if told is None else f"{told[0]:.3f} ({told[1]:.3f} to {told[2]:.3f})"


def _percent(told: list[float] | None) -> str:
    return "too few" if told is None else "{:.1f} % ({:.1f} to {:.1f})".format(*(100 * part for part in told))


PAGES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
PAGES.filters |= {"reasons_in_words": reasons_in_words, "number": _number, "percent": _percent}


def _counts(judged: Judged, manifest: Manifest) -> dict[str, Any]:
    """What the page says in words beside the figures."""
    films = judged.answers.films
    shipped = as_shipped(judged.answers, manifest)
    return {
        "blocks": len({film.block for film in films}),
        "labelled": sum(film.fractured != MISSING for film in films),
        "outlined": sum(film.fractured == 1 and bool(film.outlines) for film in films),
        "sources": sorted({film.source for film in films if film.source}),
        "as_shipped": np.array_equal(shipped.possible, judged.possible)
        and np.array_equal(shipped.likely, judged.likely),
    }


def _curves(judged: Judged) -> dict[str, str]:
    return {
        "roc": _embedded(roc_figure(judged)),
        "precision": _embedded(precision_figure(judged)),
        "reliability": _embedded(reliability_figure(judged)),
    }


def _embedded(figure: Figure) -> str:
    """As a data: address of an SVG that is the same, byte for byte, whenever it is drawn."""
    content = io.BytesIO()
    with rc_context({"svg.hashsalt": "osteon", "svg.fonttype": "path"}):
        figure.savefig(content, format="svg", metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(content.getvalue()).decode()


def roc_figure(judged: Judged) -> Figure:
    """Receiver operating characteristic, its 95 % band over blocks, and both operating points.

    judged: films with a fracture and without; those that are not labelled are left out.
    """
    told = judged.only(judged.answers.fractured != MISSING)
    truth = told.answers.fractured
    figure, axes = _square("sound films called (1 - specificity)", "fractured films called (sensitivity)")
    axes.plot([0, 1], [0, 1], color=GRAY, linestyle=":", label="guessing")
    _draw_curve(axes, told, _roc_points)
    for (name, marker, colour), called in zip(CALLS, (told.possible, told.likely), strict=True):
        _mark(axes, called[truth == 0].mean(), called[truth == 1].mean(), name, marker, colour)
    axes.legend(loc="lower right", fontsize=8)
    return figure


def precision_figure(judged: Judged) -> Figure:
    """Precision and recall, with the same band and points as `roc_figure`."""
    told = judged.only(judged.answers.fractured != MISSING)
    truth = told.answers.fractured
    figure, axes = _square("fractured films called (recall)", "called films that are fractured (precision)")
    axes.axhline(truth.mean(), color=GRAY, linestyle=":", label="guessing")
    _draw_curve(axes, told, _precision_points)
    for (name, marker, colour), called in zip(CALLS, (told.possible, told.likely), strict=True):
        if called.any():
            _mark(axes, called[truth == 1].mean(), truth[called].mean(), name, marker, colour)
    axes.legend(loc="lower left", fontsize=8)
    return figure


def reliability_figure(judged: Judged) -> Figure:
    """Told probability against what came true, in tenths of the films, over a histogram of the probabilities.

    The tenths are those that `evaluate.calibration_error` adds up. judged: one labelled film at least.
    """
    told = judged.only(judged.answers.fractured != MISSING)
    truth, chance, films = told.answers.fractured, told.chance, told.answers.films
    figure = Figure(figsize=(4.8, 5.2), layout="constrained")
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    axes.plot([0, 1], [0, 1], color=GRAY, linestyle=":", label="told exactly")
    for part in np.array_split(np.argsort(chance, kind="stable"), TENTHS):
        share = interval([films[i] for i in part], _mean_of(truth[part]))
        if share:
            axes.vlines(chance[part].mean(), share[1], share[2], color=BLUE, alpha=0.5)
            axes.plot(chance[part].mean(), share[0], color=BLUE, marker="o", markersize=5)
    axes.set(ylabel="share fractured", ylim=(-0.02, 1.02))
    axes.legend(loc="upper left", fontsize=8)
    kinds = [chance[truth == 0], chance[truth == 1]]
    below.hist(kinds, bins=20, range=(0, 1), stacked=True, color=["#C9C9C9", BLUE], label=["sound", "fractured"])
    below.set(xlabel="told probability of a fracture", ylabel="films", xlim=(-0.02, 1.02))
    below.yaxis.get_major_locator().set_params(integer=True)
    below.legend(fontsize=8)
    for part_axes in (axes, below):
        _quiet(part_axes)
    return figure


def _mean_of(values: Ints) -> Callable[[Ints], float]:
    return lambda chosen: float(values[chosen].mean())


def _square(across: str, up: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.8, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=across, ylabel=up, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    _quiet(axes)
    return figure, axes


def _quiet(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#E4E4E4", linewidth=0.6)
    axes.set_axisbelow(True)


def _mark(axes: Axes, x: float, y: float, name: str, marker: str, colour: str) -> None:
    axes.plot(x, y, marker=marker, color=colour, markersize=8, markeredgecolor="white", linestyle="none", label=name)


def _draw_curve(axes: Axes, told: Judged, points: Points) -> None:
    truth, score = told.answers.fractured, told.answers.fracture
    redraws = [i for i in _redraws(told.answers.films) if 0 < truth[i].sum() < len(i)]
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


def _redraws(films: Sequence[Film]) -> Iterator[Ints]:
    """Film indices, BANDS times, drawn with repeats by block, as in `evaluate.interval`."""
    blocks: dict[str, list[int]] = {}
    for index, film in enumerate(films):
        blocks.setdefault(film.block, []).append(index)
    groups = [np.array(group, np.int64) for group in blocks.values()]
    dice = np.random.default_rng(0)
    for _ in range(BANDS):
        yield np.concatenate([groups[i] for i in dice.integers(len(groups), size=len(groups))])


@dataclass(frozen=True)
class Row:
    """One row of a confusion matrix."""

    name: str
    cells: list[tuple[int, float]]  # films, and their share of the row, 0..1
    films: int


def _table(names: Sequence[str], counts: list[list[int]]) -> list[Row]:
    return [
        Row(name, [(count, count / max(1, sum(row))) for count in row], sum(row))
        for name, row in zip(names, counts, strict=True)
    ]


@dataclass(frozen=True)
class Shown:
    """One film of the gallery."""

    picture: str  # data: address of a PNG
    name: str  # of its file
    chance: float
    assessment: str


@dataclass(frozen=True)
class Shelf:
    """One row of the gallery: films picked by a rule."""

    title: str
    rule: str
    shown: list[Shown]


def _gallery(judged: Judged, manifest: Manifest) -> list[Shelf]:
    films, truth, chance = judged.answers.films, judged.answers.fractured, judged.chance
    played = [i for i, film in enumerate(films) if film.fractured == 1 and film.outlines]
    inside = [i for i, hit in zip(played, pointing(judged.answers).inside, strict=True) if hit]
    outside = sorted(set(played) - set(inside))

    def highest(chosen: Iterable[int]) -> list[Shown]:
        first = sorted(chosen, key=lambda i: -chance[i])[:SHOWN]
        return [_shown(judged, i, manifest.heatmap_full) for i in first]

    def lowest(chosen: Iterable[int]) -> list[Shown]:
        first = sorted(chosen, key=lambda i: chance[i])[:SHOWN]
        return [_shown(judged, i, manifest.heatmap_full) for i in first]

    return [
        Shelf("Hits", "Fractured films whose peak lies in an annotated box, the most probable first.", highest(inside)),
        Shelf(
            "Misses", "Fractured films whose peak lies outside every box, the most probable first.", highest(outside)
        ),
        Shelf("False alarms", "Sound films, the most probable first.", highest(map(int, np.flatnonzero(truth == 0)))),
        Shelf(
            "Missed fractures",
            "Fractured films, the least probable first.",
            lowest(map(int, np.flatnonzero(truth == 1))),
        ),
    ]


def _shown(judged: Judged, index: int, full: float) -> Shown:
    film = judged.answers.films[index]
    small = cv2.resize(
        overlay(film, judged.answers.heatmaps[index], full), (PICTURE, PICTURE), interpolation=cv2.INTER_AREA
    )
    _, content = cv2.imencode(".png", small)
    picture = "data:image/png;base64," + base64.b64encode(content.tobytes()).decode()
    assessment = "positive" if judged.likely[index] else "unclear" if judged.possible[index] else "negative"
    return Shown(picture, film.path.name, float(judged.chance[index]), assessment)


def overlay(film: Film, heatmap: Floats, full: float) -> UInt8Picture:
    """The prepared film under its heatmap, with outlines, their boxes, and a ring around the map's peak.

    heatmap: (h, w) logits; full: the cell probability that is drawn at full strength, 0..1.
    Returns (FINE, FINE, 3) uint8, blue first. The map is interpolated as `evaluate.pointing` does, so that the ring
    stands where the pointing game looks. Raises BadDataset if the film cannot be read.
    """
    drawn = cv2.resize(shown(heatmap[None])[0], (FINE, FINE), interpolation=cv2.INTER_CUBIC)
    heat = np.clip(drawn / full, 0, 1).astype(np.float32)[..., None]
    square, field = read_exposed(film.path, FINE)
    gray = square[..., None]
    mixed = gray * (1 - STRENGTH * heat) + (WEAK * (1 - heat) + STRONG * heat) * STRENGTH * heat
    picture = np.ascontiguousarray(np.rint(mixed), np.uint8)
    for boxes, thickness in ((True, 2), (False, 4)):
        mask = outline_mask(film, FINE, field, boxes=boxes)
        edges, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        cv2.drawContours(picture, edges, -1, SKY, thickness)
    row, column = np.unravel_index(int(drawn.argmax()), drawn.shape)
    for colour, thickness in (((0, 0, 0), 7), ((255, 255, 255), 3)):
        cv2.circle(picture, (int(column), int(row)), 11, colour, thickness, cv2.LINE_AA)
    return picture
