"""Pictures of results: outlines on a radiograph, and strips of words beside the anatomy, never on it."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from shared.report_pdf import FONTS
from worker.results.outlines import Level, Line, Outline

Picture = npt.NDArray[np.uint8]  # (H, W, 3), RGB

LINE = (143, 240, 255)  # as the pages' outlines
WHITE, GRAY, BAND = (255, 255, 255), (190, 190, 190), (255, 226, 179)
NARROWEST = 480  # pixels of a picture: words need room
FRACTIONS = 4  # binary digits behind the point of a coordinate


def to_colour(gray: npt.NDArray[np.uint8]) -> Picture:
    """Convert (H, W) gray levels to RGB."""
    return np.repeat(gray[:, :, None], 3, axis=2)


def draw_outlines(picture: Picture, outlines: Sequence[Outline], scale: tuple[float, float]) -> None:
    """Draw lines as pages do: dotted at the sensitive point, solid at the specific one, on a dark halo.

    Args:
        picture: changed in place.
        outlines: in square pixels of the frame.
        scale: columns and rows of the picture for one of them.
    """
    thick = max(1, round(max(picture.shape) / 600))
    for outline in outlines:
        points = outline.line * np.array(scale)
        if outline.level is Level.SPECIFIC:
            _stroke(picture, points, (0, 0, 0), thick + 2)
            _stroke(picture, points, LINE, thick)
        else:
            dots = _along(points, 5.0 * thick)
            for colour, radius in (((0, 0, 0), thick + 1.0), (LINE, thick * 0.9)):
                for x, y in dots:
                    _dot(picture, x, y, radius, colour)


def _fixed(values: npt.NDArray[np.float64]) -> npt.NDArray[np.int32]:
    """Coordinates of pixels' corners as OpenCV counts: from the middle of the first pixel, in fixed point."""
    return np.round((values - 0.5) * (1 << FRACTIONS)).astype(np.int32)


def _stroke(picture: Picture, points: Line, colour: tuple[int, int, int], thick: int) -> None:
    cv2.polylines(picture, [_fixed(points)], True, colour, thick, cv2.LINE_AA, FRACTIONS)


def _dot(picture: Picture, x: float, y: float, radius: float, colour: tuple[int, int, int]) -> None:
    column, row = _fixed(np.array([x, y]))
    cv2.circle(picture, (int(column), int(row)), round(radius * (1 << FRACTIONS)), colour, -1, cv2.LINE_AA, FRACTIONS)


def _along(points: Line, step: float) -> Line:
    """Points along a closed line, evenly spaced by about `step` pixels."""
    closed = np.vstack([points, points[:1]])
    lengths = np.hypot(*np.diff(closed, axis=0).T)
    whole = float(lengths.sum())
    places = np.linspace(0, whole, max(3, round(whole / step)), endpoint=False)
    reached = np.concatenate([[0.0], np.cumsum(lengths)])
    return np.stack([np.interp(places, reached, closed[:, axis]) for axis in (0, 1)], axis=1)


def widen(picture: Picture) -> Picture:
    """A picture with black to its right, if it is narrower than words need; its pixels stay where they are."""
    missing = max(0, NARROWEST - picture.shape[1])
    return np.pad(picture, ((0, 0), (0, missing), (0, 0))) if missing else picture


def strip(width: int, lines: Sequence[str], closing: str = "", size: int | None = None) -> Picture:
    """Set words on black, the first line larger, and a closing one in a band.

    Args:
        width: of the strip, pixels.
        lines: wrapped to the width.
        closing: the last line; "" for none.
        size: of letters, pixels; None: as the width suggests.

    Returns:
        A picture as high as the words need.
    """
    small = size or max(13, min(34, round(width / 55)))
    large, gap = round(small * 1.35), round(small * 0.6)
    rows: list[tuple[str, Any, tuple[int, int, int]]] = []
    for place, line in enumerate(lines):
        font = _font(large if place == 0 else small, bold=place == 0)
        rows += [(part, font, WHITE if place == 0 else GRAY) for part in _wrap(line, font, width - 2 * gap)]
    closings = _wrap(closing, _font(small, bold=True), width - 2 * gap) if closing else []
    heights = [round(font.size * 1.3) for _, font, _ in rows]
    band = len(closings) * round(small * 1.3) + gap if closings else 0
    picture = Image.new("RGB", (width, gap + sum(heights) + gap + band), (0, 0, 0))
    draw, top = ImageDraw.Draw(picture), gap
    for (words, font, colour), height in zip(rows, heights, strict=True):
        draw.text((gap, top), words, colour, font)
        top += height
    if band:
        draw.rectangle((0, picture.height - band, width, picture.height), BAND)
    top = picture.height - band + gap // 2
    for words in closings:
        draw.text((gap, top), words, (0, 0, 0), _font(small, bold=True))
        top += round(small * 1.3)
    return np.asarray(picture, np.uint8)


@cache
def _font(size: int, *, bold: bool) -> ImageFont.FreeTypeFont:
    # the plain layout engine: the same letters in the same places, whatever libraries a machine has
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(FONTS / name, size, layout_engine=ImageFont.Layout.BASIC)


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    lines, line = [], ""
    for word in text.split():
        longer = f"{line} {word}".strip()
        if line and font.getlength(longer) > width:
            lines.append(line)
            longer = word
        line = longer
    return [*lines, line]


def stack(pictures: Sequence[Picture]) -> Picture:
    """Pictures under each other, each with black to its right where it is narrower than another."""
    width = max(picture.shape[1] for picture in pictures)
    return np.vstack([np.pad(one, ((0, 0), (0, width - one.shape[1]), (0, 0))) for one in pictures])
