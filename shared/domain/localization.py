"""What a heatmap's cells amount to on the scale of the operating points, so that a contour can be drawn honestly.

The operating points are calibrated probabilities of the whole radiograph; a cell has an uncalibrated one of its own.
But the radiograph's logit is the log-sum-exp of its cells' (`shared/model/network.py`), so the radiograph's odds are
the sum of theirs: each cell adds its share. The shares of a neighbourhood, calibrated as the radiograph is, are the
probability that the radiograph would have with nothing else on it. That is `local_probability`. Where it reaches an
operating point, the evidence around that place alone would have the radiograph called so. See
docs/adr/0017-an-own-viewer.md.

The stored map is smoothed and cut off at `heatmap_full`, so its odds say how the evidence is spread, not how much of it
there is: they are scaled to add up to the radiograph's own. No place can thus be over a point that its radiograph is
not over.
"""

import math
from collections.abc import Sequence

from shared.domain.findings import Heatmap

# cells, a seventh of the radiograph's longer side: evidence counts less the farther off it is, and here no more
RADIUS = 4
ALMOST = 1e-9  # from 0 and 1: there odds have no end


def cell_levels(heatmap: Heatmap, full: float = 1.0) -> list[float]:
    """Read each cell's own fracture probability from a stored heatmap.

    Args:
        heatmap: as the database has it.
        full: `heatmap_full` of its bundle.

    Returns:
        (height * width,) probabilities, row by row; those above `full` are cut off.
    """
    return [full * value / 255 for value in heatmap.values]


def local_probability(
    cells: Sequence[float], width: int, fracture_probability: float, slope: float = 1.0
) -> list[float]:
    """Find, for each cell, the probability that the image would have with the evidence around that cell and no other.

    Args:
        cells: (height * width,) probabilities as `cell_levels` returns them.
        width: cells in a row.
        fracture_probability: the image's, calibrated.
        slope: of the calibration of the heatmap's bundle.

    Returns:
        (height * width,) calibrated probabilities, 0 to fracture_probability; all 0 for a map that shows nothing.
    """
    odds = [_odds(cell) for cell in cells]
    total = sum(odds)
    if not total:
        return [0.0] * len(odds)
    around = _around(odds, width)
    radiograph = math.log(max(ALMOST, _odds(fracture_probability)))
    # the radiograph's logit is slope * log(all evidence) + offset: a share of the evidence loses slope * log(share) of
    # it
    return [
        1 / (1 + math.exp(-(radiograph + slope * math.log(share)))) if share else 0.0
        for share in (min(1.0, part / total) for part in around)
    ]


def _around(values: Sequence[float], width: int) -> list[float]:
    """For each cell the sum of its neighbourhood, by a biweight: round, without a rim, 1 in the middle."""
    height, reach = len(values) // width, range(1 - RADIUS, RADIUS)
    near = [(y, x, (y * y + x * x) / RADIUS**2) for y in reach for x in reach]
    weights = [(y, x, (1 - far) ** 2) for y, x, far in near if far < 1]
    sums = [0.0] * len(values)
    for cell, value in enumerate(values):
        if value:
            row, column = divmod(cell, width)
            for down, across, weight in weights:
                y, x = row + down, column + across
                if 0 <= y < height and 0 <= x < width:
                    sums[y * width + x] += weight * value
    return sums


def _odds(probability: float) -> float:
    held = min(max(probability, 0.0), 1 - ALMOST)
    return held / (1 - held)
