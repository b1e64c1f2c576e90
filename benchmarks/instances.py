"""DICOM instances to send and to read: noise under a smooth shape, each unlike the others, in any transfer syntax."""

import functools
from collections.abc import Iterator

import cv2
import numpy as np
import numpy.typing as npt

from samples.objects import SYNTAX, pattern_image, set_pixels, to_bytes, uid


@functools.lru_cache(maxsize=2)
def _shape(rows: int, columns: int) -> npt.NDArray[np.uint16]:
    """A smooth shape with grain, 12 bits, (rows, columns): compresses by a half or so."""
    rng = np.random.default_rng(rows * columns)
    coarse = rng.normal(0.5, 0.25, (8, 8)).astype(np.float32)
    smooth = cv2.resize(coarse, (columns, rows), interpolation=cv2.INTER_CUBIC)
    grain = rng.normal(0, 0.006, (rows, columns)).astype(np.float32)
    return np.asarray(np.clip((smooth + grain) * 4095, 0, 4095), np.uint16)


def instance(
    number: int, rows: int = 2500, columns: int = 2000, encoding: str = "explicit", run: str = "bench"
) -> bytes:
    """Make a 12-bit instance as a DICOM file, a study of its own; raw, 2500 x 2000 are 10 MB.

    Args:
        number: gives it UIDs and pixels unlike those of all other instances of the run.
        rows: pixels.
        columns: pixels.
        encoding: a key of `samples.objects.SYNTAX`, e.g. "explicit", "jpegls", "jpeg2000".
        run: instances of another run have other UIDs.

    Returns:
        The file.
    """
    ds = pattern_image(1, f"{run}/{number}")
    ds.StudyInstanceUID = uid(f"{run}/{number}")
    pixels = np.roll(_shape(rows, columns), number % columns, axis=1)
    pixels[0, :4] = [number >> shift & 0xFFF for shift in (0, 12, 24, 36)]
    set_pixels(ds, [pixels], 12, encoding)
    return to_bytes(ds, SYNTAX[encoding])


def instances(count: int, rows: int, columns: int, encoding: str = "explicit", run: str = "bench") -> Iterator[bytes]:
    """Make instances one after the other, numbered from 0.

    Args:
        count: how many.
        rows: pixels.
        columns: pixels.
        encoding: a key of `samples.objects.SYNTAX`.
        run: instances of another run have other UIDs.

    Yields:
        Each as a DICOM file.
    """
    for number in range(count):
        yield instance(number, rows, columns, encoding, run)
