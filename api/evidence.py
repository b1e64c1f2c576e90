"""What a heatmap's cells amount to on the scale of the operating points, so that a contour can be drawn honestly.

The operating points are calibrated probabilities of the whole film; a cell has an uncalibrated probability of its own. But
the film's logit is the log-sum-exp of its cells' (`shared/vision/network.py`), so the film's odds are the sum of theirs:
each cell adds its share, and the shares of a neighbourhood, calibrated as the film is, are the probability that the film
would have with nothing else on it. That is `local_probability`. Where it reaches an operating point, the evidence around
that place alone would have the film called so.

The stored map is smoothed and cut off at `heatmap_full`, so its odds say how the evidence is spread, not how much there is:
they are scaled to add up to the film's own. No place can therefore be over a point that its film is not over.
"""

import math
from collections.abc import Sequence
from typing import Any

from shared.findings import Heatmap

AROUND = 2  # cells on each side: 5 x 5 of them are less than a fifth of the film's longer side
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
    height = len(odds) // width
    across = [_sums(odds[row * width : (row + 1) * width]) for row in range(height)]
    around = list(zip(*(_sums([row[column] for row in across]) for column in range(width)), strict=True))
    film = math.log(max(ALMOST, _odds(fracture_probability)))
    # the film's logit is slope * log(all evidence) + offset: a share of the evidence loses slope * log(share) of it
    return [
        1 / (1 + math.exp(-(film + slope * math.log(share)))) if share else 0.0
        for share in (min(1.0, part / total) for row in around for part in row)
    ]


def _sums(values: Sequence[float]) -> list[float]:
    """Each value with its neighbours within AROUND."""
    return [sum(values[max(0, i - AROUND) : i + AROUND + 1]) for i in range(len(values))]


def _odds(probability: float) -> float:
    held = min(max(probability, 0.0), 1 - ALMOST)
    return held / (1 - held)
