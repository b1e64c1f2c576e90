"""One frame with its exposed field: what the network reads of it, and what people see.

The worker, `osteon predict`, training and evaluation all come here, so that what is trained is what is served.

    PixelSource ─► padding painted black ─► exposed field ─► square, for the network
                                         └► whole image ──► preview, for people
"""

from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from shared.findings import ExposedField
from shared.vision.exposure import BoolImage, Exposure, find_exposure
from shared.vision.pixels import PixelSource, display
from shared.vision.tensors import Float32Image, UInt8Image, prepare, resample, shrink, true_size

SAMPLES = 1_000_000  # place a percentile well enough


@dataclass(frozen=True)
class Radiograph:
    """One frame, decoded. Made by `radiograph` or `of_picture`."""

    image: Float32Image = field(repr=False)  # (rows, columns) as stored, padding as dark as the darkest that is none
    padded: BoolImage | None = field(repr=False)  # (rows, columns), where it is padding; None: nowhere
    exposure: Exposure = field(repr=False)
    stretch: float  # height of a pixel over its width

    @property
    def field(self) -> ExposedField:
        """Where the field lies in the image as people see it."""
        box = self.exposure.box
        rows, columns = true_size(self.image.shape, self.stretch)
        down, across = rows / self.image.shape[0], columns / self.image.shape[1]
        top, left = round(box.top * down), round(box.left * across)
        bottom, right = round((box.top + box.height) * down), round((box.left + box.width) * across)
        return ExposedField(rows, columns, top, left, max(1, bottom - top), max(1, right - left))

    def square(self, size: int) -> UInt8Image:
        """The field in the network's square, (size, size) uint8, as `prepare` makes it."""
        return prepare(self.image[self.exposure.box.cut], size, self.exposure.covered, self.stretch)

    def preview(self, source: PixelSource, i: int, side: int) -> UInt8Image:
        """The whole image for people, true in proportions, the longer side at most `side` pixels; padding is black.

        source, i: where it is from.
        """
        shown = display(source, i, resample(shrink(self.image, side), self.stretch, side), self.field_values())
        if self.padded is not None:
            where = cv2.resize(self.padded.astype(np.uint8), shown.shape[::-1], interpolation=cv2.INTER_AREA)
            shown[where > 0] = 0
        return shown

    def field_values(self) -> npt.NDArray[np.float32]:
        """Some of the field's values, evenly taken; all of them where it is small."""
        return values_of(self.image, self.exposure)


def values_of(image: npt.NDArray[np.number], exposure: Exposure) -> npt.NDArray[np.float32]:
    """As Radiograph.field_values, of any image of the frame's shape."""
    part = image[exposure.box.cut]
    step = max(1, int((part.size / SAMPLES) ** 0.5))
    few = part[::step, ::step]
    if exposure.covered is not None and not exposure.covered[::step, ::step].all():
        few = few[~exposure.covered[::step, ::step]]
    return np.asarray(few, np.float32)


def radiograph(source: PixelSource, i: int, stored: npt.NDArray[Any] | None = None) -> Radiograph:
    """Decode frame i of a file, 0 for the first, and find its field. Raises as PixelSource.frame.

    stored: what source.stored(i) gave; saves decoding it again.
    """
    stored = source.stored(i) if stored is None else stored
    padded, shuttered = source.padded(stored), source.shuttered()
    image = source.units(stored, i)
    if padded is not None:
        image[padded] = image[~padded].min()
    hidden = shuttered if padded is None else padded if shuttered is None else padded | shuttered
    return Radiograph(image, padded, find_exposure(image, hidden), source.surround.stretch)


def of_picture(picture: npt.NDArray[np.number]) -> Radiograph:
    """A plain picture, (H, W), bone is the greater value."""
    image = np.ascontiguousarray(picture, np.float32)
    return Radiograph(image, None, find_exposure(image), 1.0)
