"""Full films: one frame with all its pixels and gray levels, as one object that a browser can read as it lies there.

    4 bytes, big endian: length of the description | the description, JSON | the pixels, gzip

The pixels are uint16, little endian, row by row, MONOCHROME1 mirrored. They are the stored values, shifted so that the
least is 0: nothing is lost. Only what does not fit into 16 bits, or comes out of a modality LUT with fractions, is
scaled, and says so. Padding, which is no image, has the value that is shown darkest.
"""

import gzip
import json
import time
from typing import Any

import numpy as np
import numpy.typing as npt

from shared.vision.pixels import PREVIEW_PERCENTILES, PixelSource, Transform
from shared.vision.radiograph import radiograph, values_of
from shared.vision.tensors import Float32Image

UInt16Image = npt.NDArray[np.uint16]  # (H, W)
TOP = 65535
LEAST_SEEN = 1 / 255  # of the gray scale; a window that shows less shows nothing
FAILURE_STANDS_S = 300  # a decoder that died may live the next time


def picture(source: PixelSource, i: int) -> tuple[UInt16Image, dict[str, Any]]:
    """Frame i, 0 for the first, and what a viewer must know of it.

    Returns (rows, columns) uint16, and a description: rows, columns; bits that the file stores; exact (whether nothing
    was lost); slope and intercept (slope * pixel + intercept is what PixelSource.frame gives, bone is the greater);
    window ([black, white] in pixels), window_from ("file" or "percentiles"), window_shape ("LINEAR" or "SIGMOID");
    spacing in mm from row to row and column to column, or None. Pixels need not be square: the page that shows them
    knows the image's proportions from its finding.
    Raises as PixelSource.frame. Source: PS3.3 C.7.6.3.1.2, C.11.1, C.11.2.
    """
    transform = source.transform(i)
    mirrored = source.photometric == "MONOCHROME1"
    low, high = source.ends
    stored = source.stored(i)
    seen = radiograph(source, i, stored)
    if transform.lut is None and high - low <= TOP:
        wide = stored.astype(np.int32)
        values = low + high - wide if mirrored else wide
        base = min(low, int(values.min()))
        slope, intercept = transform.slope, transform.intercept + transform.slope * base
        exact = int(values.max()) - base <= TOP
        pixels = np.clip(values - base, 0, TOP).astype(np.uint16) if exact else None
    else:
        pixels = None
    if pixels is None:
        pixels, slope, intercept, exact = _scaled(seen.image)
    if seen.padded is not None:
        image = pixels[~seen.padded]
        pixels[seen.padded] = image.min() if slope > 0 else image.max()
    window, origin, shape = _window(pixels, values_of(pixels, seen.exposure), slope, intercept, transform, source)
    return pixels, {
        "rows": source.rows,
        "columns": source.columns,
        "bits": source.bits_stored,
        "exact": exact,
        "slope": slope,
        "intercept": intercept,
        "window": window,
        "window_from": origin,
        "window_shape": shape,
        "spacing": source.spacing,
    }


def _scaled(frame: Float32Image) -> tuple[UInt16Image, float, float, bool]:
    """Modality units as uint16: pixels, slope, intercept, and whether nothing was lost."""
    low, high = float(frame.min()), float(frame.max())
    if high - low <= TOP and bool((frame == np.rint(frame)).all()):
        return (frame - np.float32(low)).astype(np.uint16), 1.0, low, True
    slope = (high - low) / TOP or 1.0
    return np.rint((frame.astype(np.float64) - low) / slope).astype(np.uint16), slope, low, False


def _window(
    pixels: UInt16Image,
    few: Float32Image,
    slope: float,
    intercept: float,
    transform: Transform,
    source: PixelSource,
) -> tuple[list[float], str, str]:
    """[black, white] in pixels, "file" or "percentiles", and the window's shape. few: values of the exposed field."""
    mirrored = source.photometric == "MONOCHROME1"
    if transform.window and not transform.voi_lut:
        units = few * np.float32(slope) + np.float32(intercept)
        ends = sum(transform.ends(*source.ends)) if mirrored else None
        shown = transform.voi(units if ends is None else np.float32(ends) - units)
        center, width, shape = transform.window
        if shown is not None and float(shown.max() - shown.min()) >= LEAST_SEEN:
            if shape == "LINEAR":  # C.11.2.1.2.1, as Transform.voi has it
                center, width = center - 0.5, max(width - 1, 1e-6)
            if ends is not None:
                center = ends - center
            sides = [(center + half * width - intercept) / slope for half in (-0.5, 0.5)]
            return sides, "file", "SIGMOID" if shape == "SIGMOID" else "LINEAR"
    low, high = (float(value) for value in np.percentile(few, PREVIEW_PERCENTILES))
    if high <= low:
        low, high = float(pixels.min()), float(pixels.max())
    # with a negative slope the greater stored value is the smaller unit, and shown darker
    return ([low, high] if slope > 0 else [high, low]), "percentiles", "LINEAR"


def pack(pixels: UInt16Image, about: dict[str, Any]) -> bytes:
    """The object of a film."""
    # level 1: a person waits, and the network is near
    return _object(about, gzip.compress(pixels.astype("<u2", copy=False).tobytes(), 1, mtime=0))


def is_film(content: bytes) -> bool:
    """Whether a stored object holds pixels, and not a refusal."""
    return len(content) > 4 + int.from_bytes(content[:4], "big")


def refusal(reason: str, text: str, *, heals: bool) -> bytes:
    """The object that stands in a film's place when it cannot be made; heals: it may be tried again later."""
    until = time.time() + FAILURE_STANDS_S if heals else None
    return _object({"error": text, "reason": reason, "until": until}, b"")


def _object(about: dict[str, Any], body: bytes) -> bytes:
    described = json.dumps(about, separators=(",", ":")).encode()
    return len(described).to_bytes(4, "big") + described + body
