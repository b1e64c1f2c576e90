"""One frame with its exposed field: what the network reads of it, and what people see.

The worker, `osteon predict`, training and evaluation all use this module, so that the network is trained on what it
reads in service.

    PixelSource ─► padding painted black ─► exposed field ─► square, for the network
                                         └► whole image ──► preview, for people
"""

from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from shared.domain.findings import ExposedField
from shared.pixels.decode import PixelSource, display
from shared.pixels.exposure import BoolImage, Exposure, find_exposure
from shared.pixels.tensors import Float32Image, UInt8Image, prepare_square, resample, shrink, true_size

SAMPLES = 1_000_000  # place a percentile well enough
COLLIMATED_SPREAD = 0.5  # of the field's range of gray levels: what may vary beyond a collimator's edges


@dataclass(frozen=True)
class Radiograph:
    """One frame, decoded. Made by `decode_radiograph` or `of_picture`."""

    image: Float32Image = field(repr=False)  # (rows, columns) as stored, padding as dark as the darkest that is none
    padded: BoolImage | None = field(repr=False)  # (rows, columns), where it is padding; None: nowhere
    exposure: Exposure = field(repr=False)
    stretch: float  # height of a pixel over its width

    @property
    def field(self) -> ExposedField:
        """Where the field lies in the image as people see it."""
        box, upright = self.exposure.box, self.exposure.upright
        rows, columns = true_size(self.image.shape, self.stretch)
        if upright is not None:  # pixels are square
            lies = upright.turned
            top, left = round(lies.row - lies.height / 2), round(lies.column - lies.width / 2)
            return ExposedField(rows, columns, top, left, lies.height, lies.width, round(1000 * lies.angle))
        down, across = rows / self.image.shape[0], columns / self.image.shape[1]
        top, left = round(box.top * down), round(box.left * across)
        bottom, right = round((box.top + box.height) * down), round((box.left + box.width) * across)
        return ExposedField(rows, columns, top, left, max(1, bottom - top), max(1, right - left))

    def square(self, size: int) -> UInt8Image:
        """The field in the network's square, upright, (size, size) uint8, as `prepare_square` makes it."""
        if self.exposure.upright is not None:
            return prepare_square(self.exposure.upright.image, size, self.exposure.upright.covered)
        return prepare_square(self.image[self.exposure.box.cut], size, self.exposure.covered, self.stretch)

    def preview(self, source: PixelSource, i: int, side: int) -> UInt8Image:
        """Make the whole image for people, true in proportions; padding is black.

        Args:
            source: the image that the frame is from.
            i: index of the frame, from 0.
            side: the most pixels of the longer side.

        Returns:
            (H, W) uint8, 0..255, bone is white.
        """
        shown = display(source, i, resample(shrink(self.image, side), self.stretch, side), self.field_values())
        if self.padded is not None:
            where = cv2.resize(self.padded.astype(np.uint8), shown.shape[::-1], interpolation=cv2.INTER_AREA)
            shown[where > 0] = 0
        return shown

    def field_values(self) -> npt.NDArray[np.float32]:
        """Return about SAMPLES of the field's values, evenly spaced; all of them if it is small."""
        return values_of(self.image, self.exposure)


def values_of(image: npt.NDArray[np.number], exposure: Exposure) -> npt.NDArray[np.float32]:
    """Sample a field's values, of any image of the frame's shape.

    Args:
        image: (H, W), any numeric dtype.
        exposure: the field in it.

    Returns:
        (N,) float32: about SAMPLES values, evenly spaced, or all of them if there are fewer.
    """
    part = image[exposure.box.cut]
    step = max(1, int((part.size / SAMPLES) ** 0.5))
    few = part[::step, ::step]
    if exposure.covered is not None and not exposure.covered[::step, ::step].all():
        few = few[~exposure.covered[::step, ::step]]
    return np.asarray(few, np.float32)


def decode_radiograph(source: PixelSource, i: int, stored: npt.NDArray[Any] | None = None) -> Radiograph:
    """Decode a frame of a file and find its field.

    Args:
        source: the image.
        i: index of the frame, from 0.
        stored: what source.stored(i) returned, which saves decoding it again. None: decode it.

    Returns:
        The frame with its field. PixelSource.frame's errors pass through.
    """
    stored = source.stored(i) if stored is None else stored
    padded = source.padded(stored)
    image, padding = source.units(stored, i), None
    if padded is not None:
        padding = float(np.median(image[padded]))
        image[padded] = image[~padded].min()
    collimated = source.collimated()
    if collimated is not None and not _is_plausible_collimator(image, collimated):
        collimated = None
    parts = [part for part in (padded, source.shuttered(i), collimated) if part is not None]
    hidden = np.logical_or.reduce(parts) if parts else None
    if hidden is not None and hidden.all():
        hidden = None
    stretch = source.surround.stretch
    return Radiograph(image, padded, find_exposure(image, hidden, padding=padding, turn=stretch == 1), stretch)


def _is_plausible_collimator(image: Float32Image, covered: BoolImage) -> bool:
    """Whether a collimator may have been where the header says: hardly any radiation came there, so little varies.

    Its edges are often given in pixels of another image, of the detector's before it was cut, and then hide anatomy.
    """
    step = max(1, int((image.size / SAMPLES) ** 0.5))
    few, outside = image[::step, ::step], covered[::step, ::step]
    if outside.all() or not outside.any():
        return False
    beyond, within = (np.percentile(part, [5, 95]) for part in (few[outside], few[~outside]))
    return bool(beyond[1] - beyond[0] <= COLLIMATED_SPREAD * (within[1] - within[0]))


def of_picture(picture: npt.NDArray[np.number]) -> Radiograph:
    """Find the field of a plain picture, (H, W), in which bone is the greater value."""
    image = np.ascontiguousarray(picture, np.float32)
    return Radiograph(image, None, find_exposure(image), 1.0)
