"""What a heatmap's cells amount to on the scale of the operating points, so that a contour can be drawn honestly.

The operating points are calibrated probabilities of the whole film; a cell has an uncalibrated one of its own. But the
film's logit is the log-sum-exp of its cells' (`shared/vision/network.py`), so the film's odds are the sum of theirs:
each cell adds its share. The shares of a neighbourhood, calibrated as the film is, are the probability that the film
would have with nothing else on it. That is `local_probability`. Where it reaches an operating point, the evidence
around that place alone would have the film called so. See docs/adr/0017-an-own-viewer.md.

The stored map is smoothed and cut off at `heatmap_full`, so its odds say how the evidence is spread, not how much of it
there is: they are scaled to add up to the film's own. No place can thus be over a point that its film is not over.
"""

import math
from collections.abc import Sequence
from typing import Any

from shared.findings import Heatmap

RADIUS = 4  # cells, a seventh of the film's longer side: evidence counts less the farther off it is, and here no more
ALMOST = 1e-9  # from 0 and 1: there odds have no end


def cell_levels(heatmap: Heatmap, manifest: dict[str, Any]) -> list[float]:
    """Each cell's own fracture probability, row by row, as far as the map tells it."""
    full = manifest.get("heatmap_full", 1.0)
    return [full * value / 255 for value in heatmap.values]


def local_probability(
    cells: Sequence[float], width: int, fracture_probability: float, manifest: dict[str, Any]
) -> list[float]:
    """The film's calibrated probability if it held the evidence around one cell and no other; for each cell.

    cells: (height * width,) probabilities as `cell_levels` gives them; fracture_probability: the film's, calibrated.
    Returns as many values in 0..fracture_probability; all 0 for a map that shows nothing.
    """
    odds = [_odds(cell) for cell in cells]
    total = sum(odds)
    if not total:
        return [0.0] * len(odds)
    slope = manifest.get("calibration", {}).get("slope", 1.0)
    around = _around(odds, width)
    film = math.log(max(ALMOST, _odds(fracture_probability)))
    # the film's logit is slope * log(all evidence) + offset: a share of the evidence loses slope * log(share) of it
    return [
        1 / (1 + math.exp(-(film + slope * math.log(share)))) if share else 0.0
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
