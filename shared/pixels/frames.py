"""The one path from the bytes of a file to what the model reads and what people look at, frame by frame.

The worker's decoders and `osteon predict` both use it, so one file has one result.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import cv2
import numpy as np

from shared.dicom.image import ImageLimits
from shared.domain.findings import ExposedField
from shared.errors import UnsupportedPixels
from shared.pixels.decode import PixelSource, open_pixels
from shared.pixels.radiograph import decode_radiograph, of_picture
from shared.pixels.tensors import UInt8Image, shrink

PREVIEW_SIDE = 1024  # pixels
PICTURES = (b"\x89PNG", b"\xff\xd8\xff")
UNKNOWN = "unknown"  # the modality of a DICOM file that names none: nobody validated the model on it


@dataclass(frozen=True)
class PreparedFrame:
    """One frame, ready for the model."""

    number: int  # 1 for the first
    square: UInt8Image  # (S, S), as Radiograph.square makes it
    exposed: ExposedField  # what the square shows of the frame
    preview: Callable[[], UInt8Image] = field(repr=False)  # gives (H, W) for people, longer side PREVIEW_SIDE at most


@dataclass(frozen=True)
class OpenedImage:
    """A file that was opened and checked; its frames are decoded one at a time."""

    modality: str  # DICOM's code, UNKNOWN where the file has none, "" for a picture
    body_part: str  # DICOM's Body Part Examined, "" where the file has none
    source: "PixelSource | UInt8Image" = field(repr=False)  # of a picture, its pixels

    def frames(self, size: int) -> Iterator[PreparedFrame]:
        """Yield the frames in order. size: side of the squares, pixels. Raises as PixelSource.frame."""
        source = self.source
        if not isinstance(source, PixelSource):
            seen = of_picture(source)
            yield PreparedFrame(1, seen.square(size), seen.field, partial(_whole, source))
            return
        for index in range(source.frames):
            seen = decode_radiograph(source, index)
            preview = partial(seen.preview, source, index, PREVIEW_SIDE)
            yield PreparedFrame(index + 1, seen.square(size), seen.field, preview)


def open_image(content: bytes, limits: ImageLimits) -> OpenedImage:
    """Open and check a file; decode nothing of a DICOM file yet.

    Args:
        content: a whole DICOM, PNG or JPEG file.
        limits: bounds on what a DICOM file may claim.

    Returns:
        The image, whose frames are decoded one at a time.

    Raises:
        UnsupportedPixels: a picture is damaged or too large.
        Rejected: a DICOM file is not accepted, as open_pixels says.
    """
    if content.startswith(PICTURES):
        return OpenedImage("", "", _picture(content))
    source = open_pixels(content, limits)
    return OpenedImage(source.modality or UNKNOWN, source.body_part, source)


def _whole(picture: UInt8Image) -> UInt8Image:
    return np.rint(shrink(picture, PREVIEW_SIDE)).astype(np.uint8)


def _picture(content: bytes) -> UInt8Image:
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE)
    except cv2.error:  # the size that it claims is over OpenCV's limit
        image = None
    if image is None:
        raise UnsupportedPixels("The picture is damaged or too large and cannot be decoded")
    return image.astype(np.uint8)
