"""What the header says of an image's surround and of the shape of its pixels: padding, shutters, proportions.

A value that has no meaning is ignored.
"""

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from shared.dicom.elements import value_of
from shared.dicom.image import stored_range
from shared.dicom.streams import SampleFormat
from shared.pixels.exposure import MIN_SHARE, BoolImage, areas_at_edge

# what is read of a data set for it, and nowhere else
SURROUND = [
    Tag(keyword)
    for keyword in (
        "PixelPaddingValue", "PixelPaddingRangeLimit", "LossyImageCompression", "PixelAspectRatio",
        *(
            name.format(blades)
            for blades in ("Shutter", "Collimator")
            for name in (
                "{}Shape", "{}LeftVerticalEdge", "{}RightVerticalEdge", "{}UpperHorizontalEdge",
                "{}LowerHorizontalEdge", "CenterOfCircular{}", "RadiusOfCircular{}", "VerticesOfThePolygonal{}",
            )
        ),
    )
]  # fmt: skip
LOSSY = frozenset(f"1.2.840.10008.1.2.4.{last}" for last in (50, 51, 81, 91, 203))  # need not give back what went in
NEAR = 0.02  # of the range of Bits Stored: how far a lossy stream may be off a padding value
MAX_STRETCH = 10.0  # a pixel that is said to be so much longer than broad is a mistake
NEARLY_SQUARE = 0.01  # spacings that differ by less differ by rounding
_FARTHEST = 1e6  # of a shutter's edge, pixels


@dataclass(frozen=True)
class Padding:
    """Stored values that mean "no pixel". Source: PS3.3 C.7.5.1.1.2."""

    least: int
    greatest: int
    near: int  # how far a value may be off; more than 0 where the stream is lossy

    def mask(self, stored: npt.NDArray[Any]) -> BoolImage | None:
        """Find padding in a frame.

        The value may also occur within the anatomy: only areas that reach the image's edge count.

        Args:
            stored: stored values, (H, W) integers.

        Returns:
            (H, W), True where it is padding; None if there is none, or nothing else.
        """
        values = stored if stored.dtype.itemsize > 2 else stored.astype(np.int32)
        found = areas_at_edge((values >= self.least - self.near) & (values <= self.greatest + self.near))
        return found if found.any() and not found.all() else None


@dataclass(frozen=True)
class Shutter:
    """Outlines outside of which nothing is to be shown, in pixels counted from 1, as in the header.

    Source: PS3.3 C.7.6.11; a collimator is described alike, C.8.7.3.
    """

    rectangle: tuple[float, float, float, float] | None = None  # first row, last row, first column, last column
    circle: tuple[float, float, float] | None = None  # row, column, and radius in columns
    polygon: tuple[tuple[float, float], ...] = ()  # row, column

    def mask(self, rows: int, columns: int, stretch: float) -> BoolImage | None:
        """Find what the shutter covers of an image.

        Args:
            rows: height of the image, pixels.
            columns: width of the image, pixels.
            stretch: height of a pixel over its width.

        Returns:
            (rows, columns), True where it is covered. None if nothing is, or so much that it must be a mistake.
        """
        open_ = np.ones((rows, columns), np.bool_)
        y, x = np.arange(1, rows + 1)[:, None], np.arange(1, columns + 1)[None]
        if self.rectangle:
            top, bottom, left, right = self.rectangle
            open_ &= (y >= top) & (y <= bottom) & (x >= left) & (x <= right)
        if self.circle:
            row, column, radius = self.circle
            open_ &= np.square((y - row) * stretch) + np.square(x - column) <= radius * radius
        if self.polygon:
            inside = np.zeros((rows, columns), np.uint8)
            corners = np.array([(column - 1, row - 1) for row, column in self.polygon])
            cv2.fillPoly(inside, [np.rint(corners).astype(np.int32)], 1)
            open_ &= inside > 0
        share = float(open_.mean())
        return None if share == 1 or share < MIN_SHARE else ~open_


@dataclass(frozen=True)
class Surround:
    """What the header says besides the pixels."""

    padding: Padding | None = None
    shutters: tuple[Shutter | None, ...] = (None,)  # one for all frames, or one for each
    collimator: Shutter | None = None
    stretch: float = 1.0  # height of a pixel over its width


def padding_of(dataset: Dataset, syntax: str, samples: SampleFormat) -> Padding | None:
    """Read which stored values are padding. Source: PS3.3 C.7.5.1.1.2.

    Pixel Representation decides how a value's bits are read: some write US where SS was meant, or the reverse.

    Args:
        dataset: the header.
        syntax: Transfer Syntax UID; lossy ones may change a padding value a little.
        samples: what the header says of the samples.

    Returns:
        The padding values; None if the header has none, or none that the samples can hold.
    """
    ends = stored_range(samples.bits_stored, signed=samples.signed)
    value = _stored_value(dataset, "PixelPaddingValue", samples)
    limit = _stored_value(dataset, "PixelPaddingRangeLimit", samples)
    if value == (1 << min(16, samples.bits_allocated)) - 1 and limit is None:
        value = min(value, ends[1])  # all bits set, where only Bits Stored count
    other = value if limit is None else limit
    if value is None or other is None or max(value, other) < ends[0] or min(value, other) > ends[1]:
        return None
    lossy = syntax in LOSSY or _text(dataset, "LossyImageCompression") == "01"
    return Padding(min(value, other), max(value, other), round(NEAR * (ends[1] - ends[0])) if lossy else 0)


def shutter_of(dataset: Dataset, blades: str = "Shutter") -> Shutter | None:
    """Read the outlines of a display shutter or a collimator. Source: PS3.3 C.7.6.11, C.7.6.16.2.16, C.8.7.3.

    Args:
        dataset: the header, or an item of Frame Display Shutter Sequence.
        blades: "Shutter" or "Collimator", the word in the keywords.

    Returns:
        The outlines; None if the header has no usable one.
    """
    shapes = {str(shape).strip().upper() for shape in _several(dataset, f"{blades}Shape")}
    edges = [_numbers(dataset, f"{blades}{edge}Edge") for edge in ("UpperHorizontal", "LowerHorizontal")]
    edges += [_numbers(dataset, f"{blades}{edge}Edge") for edge in ("LeftVertical", "RightVertical")]
    rectangle = circle = None
    if "RECTANGULAR" in shapes and all(len(edge) == 1 for edge in edges):
        (top,), (bottom,), (left,), (right,) = edges
        if top < bottom and left < right:
            rectangle = top, bottom, left, right
    centre, radius = _numbers(dataset, f"CenterOfCircular{blades}"), _numbers(dataset, f"RadiusOfCircular{blades}")
    if "CIRCULAR" in shapes and len(centre) == 2 and len(radius) == 1 and radius[0] > 0:
        circle = centre[0], centre[1], radius[0]
    vertices = _numbers(dataset, f"VerticesOfThePolygonal{blades}") if "POLYGONAL" in shapes else []
    polygon = tuple(zip(vertices[::2], vertices[1::2], strict=True)) if len(vertices) % 2 == 0 else ()
    polygon = polygon if len(polygon) >= 3 else ()
    return Shutter(rectangle, circle, polygon) if rectangle or circle or polygon else None


def stretch_of(dataset: Dataset, spacing: tuple[float, float] | None) -> float:
    """Find the proportions of a pixel. Source: PS3.3 C.7.6.3.1.7.

    Args:
        dataset: the header; its Pixel Aspect Ratio is for images without a spacing.
        spacing: mm from row to row and from column to column; None if the file does not say.

    Returns:
        Height of a pixel over its width; 1 if it is nearly that, not known, or not believable.
    """
    ratio = spacing or tuple(_numbers(dataset, "PixelAspectRatio"))
    if len(ratio) != 2 or min(ratio) <= 0:
        return 1.0
    stretch = ratio[0] / ratio[1]
    if abs(stretch - 1) < NEARLY_SQUARE or not 1 / MAX_STRETCH <= stretch <= MAX_STRETCH:
        return 1.0
    return stretch


def _stored_value(dataset: Dataset, keyword: str, samples: SampleFormat) -> int | None:
    """A value of VR US or SS as a stored value of the image."""
    try:
        value = value_of(dataset, keyword)
        if isinstance(value, bytes):
            value = int.from_bytes(value[:2], "little") if len(value) >= 2 else None
        number = None if value is None or value == "" else int(value)
    except Exception:  # noqa: BLE001 - broken: no reason to reject the image
        return None
    if number is None:
        return None
    width = min(16, samples.bits_allocated)
    number &= (1 << width) - 1
    return number - (1 << width) if samples.signed and number >> (width - 1) else number


def _several(dataset: Dataset, keyword: str) -> list[Any]:
    try:
        value = value_of(dataset, keyword)
    except Exception:  # noqa: BLE001 - as above
        return []
    if value is None or value == "":
        return []
    return list(value) if hasattr(value, "append") or isinstance(value, list | tuple) else [value]


def _numbers(dataset: Dataset, keyword: str) -> list[float]:
    """The numbers of a value, [] where one of them is none."""
    try:
        numbers = [float(value) for value in _several(dataset, keyword)]
    except (TypeError, ValueError):
        return []
    return numbers if all(math.isfinite(number) and abs(number) <= _FARTHEST for number in numbers) else []


def _text(dataset: Dataset, keyword: str) -> str:
    return "".join(str(value).strip() for value in _several(dataset, keyword)[:1])
