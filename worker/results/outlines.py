"""Where the evidence alone reaches an operating point: the closed lines that pages draw.

The same rule as `api/pages/static/viewer/contours.js` and `heat.js`, in numbers that differ by rounding only:
tests/data/contours.json holds both to the same lines. A line does not outline a fracture.
"""

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from shared.domain.findings import Assessment, ExposedField, Finding
from shared.domain.localization import cell_levels, local_probability
from shared.domain.results import ModelStatement

FINER = 8  # points of the drawn map for one cell
LOWEST = -14.0  # log odds that stand for "nothing here"
BEYOND = -1e9  # what lies beyond the edge

Line = npt.NDArray[np.float64]  # (N, 2): x and y of its points; from the last on to the first


class Level(StrEnum):
    """The operating point that a line is about."""

    SENSITIVE = "sensitive"
    SPECIFIC = "specific"


@dataclass(frozen=True, eq=False)
class Outline:
    """A closed line in a frame."""

    level: Level
    line: Line  # in square pixels of the whole frame, 0, 0 is the upper left pixel's upper left corner
    hole: bool  # it runs around a place where the evidence is less


def find_outlines(finding: Finding, model: ModelStatement, field: ExposedField) -> list[Outline]:
    """Find the lines of a finding.

    Args:
        finding: of a frame.
        model: that found it.
        field: the part of the frame that the heatmap covers.

    Returns:
        Those of the sensitive point, then those of the specific one; none where the model abstains.
    """
    if finding.assessment is Assessment.ABSTAINED:
        return []
    heatmap = finding.heatmap
    cells = cell_levels(heatmap, model.full)
    local = local_probability(cells, heatmap.width, finding.fracture_probability, model.slope)
    grid = refine(log_odds(np.array(local)).reshape(heatmap.height, heatmap.width))
    found: list[Outline] = []
    points = {Level.SENSITIVE: model.points.sensitive, Level.SPECIFIC: model.points.specific}
    for level, probability in points.items():
        lines = marching_squares(grid, math.log(probability / (1 - probability)))
        shape = heatmap.height, heatmap.width
        found += [Outline(level, _place(line, shape, field), hole=_area(line) < 0) for line in lines]
    return found


def log_odds(probabilities: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The log odds of probabilities of any shape, within LOWEST and its opposite."""
    with np.errstate(divide="ignore"):
        odds = np.log(probabilities) - np.log1p(-probabilities)
    clipped: npt.NDArray[np.float64] = np.clip(odds, LOWEST, np.where(probabilities < 1, np.inf, -LOWEST))
    return clipped


def refine(values: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """Interpolate by a cubic (Catmull & Rom 1974) along both axes; the edge's cells go on beyond it.

    Args:
        values: (H, W).

    Returns:
        (FINER * H, FINER * W) float32.
    """
    across = _interpolate(np.asarray(values, np.float64), 1)
    return _interpolate(across.astype(np.float32).astype(np.float64), 0).astype(np.float32)


def _interpolate(values: npt.NDArray[np.float64], axis: int) -> npt.NDArray[np.float64]:
    count = values.shape[axis]
    where = (np.arange(count * FINER) + 0.5) / FINER - 0.5
    cell = np.floor(where).astype(int)
    a, b, c, d = (np.take(values, np.clip(cell + step, 0, count - 1), axis) for step in (-1, 0, 1, 2))
    t = (where - cell)[:, None] if axis == 0 else where - cell
    spread: npt.NDArray[np.float64] = b + 0.5 * t * (
        c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a))
    )
    return spread


Edge = tuple[int, int, int]  # 0 for a horizontal one, 1 for a vertical one; x, y of its upper left end


def marching_squares(values: npt.NDArray[np.floating], level: float) -> list[Line]:
    """Find closed lines at a level (Lorensen & Cline 1987, in the plane).

    Beyond the edge everything is below the level, so lines close. A saddle is cut so that its high corners stay apart.

    Args:
        values: (H, W).
        level: of the lines.

    Returns:
        Lines of points between the grid's, each with three points or more; around a hole they run the other way.
    """
    above = np.pad(np.asarray(values, np.float64) - level, 1, constant_values=BEYOND)
    high = above >= 0
    corners = [high[:-1, :-1], high[:-1, 1:], high[1:, 1:], high[1:, :-1]]
    kinds = np.sum([corner.astype(int) << place for place, corner in enumerate(corners)], axis=0)
    follows: dict[Edge, tuple[Edge, tuple[float, float]]] = {}
    for row, column in zip(*np.nonzero((kinds != 0) & (kinds != 15)), strict=True):
        _cross(above, int(row), int(column), int(kinds[row, column]), follows)
    lines = []
    while follows:
        edge = next(iter(follows))
        line = []
        while (step := follows.pop(edge, None)) is not None:
            edge, point = step
            line.append(point)
        if len(line) > 2:
            lines.append(np.array(line))
    return lines


def _cross(
    above: npt.NDArray[np.float64],
    row: int,
    column: int,
    kind: int,
    follows: dict[Edge, tuple[Edge, tuple[float, float]]],
) -> None:
    """Note the lines through one square, whose upper left corner is the padded grid's (row, column)."""
    x, y = column - 1, row - 1
    ends = [((x, y), (x + 1, y)), ((x + 1, y), (x + 1, y + 1)), ((x, y + 1), (x + 1, y + 1)), ((x, y), (x, y + 1))]
    edges: list[Edge] = [(0, x, y), (1, x + 1, y), (0, x, y + 1), (1, x, y)]  # top, right, bottom, left
    high = [bool(kind >> place & 1) for place in range(4)]
    for i in range(4):
        # walking round the corners: a line comes in where low turns to high, and goes out at the high run's end
        if high[i] or not high[(i + 1) % 4]:
            continue
        j = (i + 1) % 4
        while high[(j + 1) % 4]:
            j = (j + 1) % 4
        (x1, y1), (x2, y2) = ends[j]
        a, b = above[y1 + 1, x1 + 1], above[y2 + 1, x2 + 1]
        t = 0.0 if abs(b) > 1e8 else 1.0 if abs(a) > 1e8 else a / (a - b)
        follows[edges[j]] = edges[i], (x1 + t * (x2 - x1), y1 + t * (y2 - y1))


def _place(line: Line, shape: tuple[int, int], field: ExposedField) -> Line:
    """From the finer map's points to the frame's square pixels: the field is centred in the map, and may lie askew."""
    pixels = max(field.height, field.width) / np.array(shape[::-1])  # for one cell
    inside = (line + 0.5) / FINER * pixels  # from the map's corner
    longest = max(field.height, field.width)
    margin = np.array([longest - field.width, longest - field.height]) / 2
    middle = np.array([field.left + field.width / 2, field.top + field.height / 2])
    away = inside - margin + np.array([field.left, field.top]) - middle
    angle = math.radians(field.turn / 1000)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    placed: Line = middle + away @ turn
    return placed


def _area(line: Line) -> float:
    """Twice the signed area within a line, by the shoelace formula: positive where it runs clockwise on the screen."""
    following = np.roll(line, -1, axis=0)
    return float(np.sum(line[:, 0] * following[:, 1] - following[:, 0] * line[:, 1]))


def holds(outer: Line, inner: Line) -> bool:
    """Whether a line lies around another one, which it does not cross.

    Args:
        outer: the one.
        inner: the other.

    Returns:
        Whether the inner one's first point is within (by the even-odd rule).
    """
    x, y = inner[0]
    following = np.roll(outer, -1, axis=0)
    crossed = (outer[:, 1] > y) != (following[:, 1] > y)
    with np.errstate(divide="ignore", invalid="ignore"):
        at = outer[:, 0] + (y - outer[:, 1]) * (following[:, 0] - outer[:, 0]) / (following[:, 1] - outer[:, 1])
    return bool(np.count_nonzero(crossed & (x < at)) % 2)
