"""Full-resolution frames: one frame with all its pixels and gray levels, as an object that a browser can read.

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

from shared.errors import Cause
from shared.pixels.decode import PREVIEW_PERCENTILES, PixelSource, Transform
from shared.pixels.radiograph import decode_radiograph, values_of
from shared.pixels.tensors import Float32Image

UInt16Image = npt.NDArray[np.uint16]  # (H, W)
MAX_UINT16 = 65535
MIN_WINDOW_SHARE = 1 / 255  # of the gray scale: a window that shows less is not used
FAILURE_LASTS_S = 300  # a decoder that died may succeed the next time


def picture(source: PixelSource, i: int) -> tuple[UInt16Image, dict[str, Any]]:
    """Prepare one frame for a viewer, without a loss where 16 bits suffice.

    Pixels need not be square: the page that shows them knows the image's proportions from its finding.
    Source: PS3.3 C.7.6.3.1.2, C.11.1, C.11.2.

    Args:
        source: the decoded file.
        i: index of the frame, 0 for the first.

    Returns:
        (rows, columns) uint16, and a description: rows, columns; bits that the file stores; exact (whether nothing was
        lost); slope and intercept (slope * pixel + intercept is what PixelSource.frame gives, bone is the greater);
        window ([black, white] in pixels), window_from ("file" or "percentiles"), window_shape ("LINEAR" or "SIGMOID");
        spacing in mm from row to row and column to column, or None; spacing_from, the DICOM keyword of it, or "".

    Raises:
        IndexError: There is no such frame.
        UndecodablePixels: The frame is damaged, or contradicts the header.
    """
    transform = source.transform(i)
    mirrored = source.photometric == "MONOCHROME1"
    low, high = source.ends
    stored = source.stored(i)
    seen = decode_radiograph(source, i, stored)
    if transform.lut is None and high - low <= MAX_UINT16:
        wide = stored.astype(np.int32)
        values = low + high - wide if mirrored else wide
        base = min(low, int(values.min()))
        slope, intercept = transform.slope, transform.intercept + transform.slope * base
        exact = int(values.max()) - base <= MAX_UINT16
        pixels = np.clip(values - base, 0, MAX_UINT16).astype(np.uint16) if exact else None
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
        "spacing_from": source.spacing_from,
    }


def _scaled(frame: Float32Image) -> tuple[UInt16Image, float, float, bool]:
    """Scale modality units to uint16; return pixels, slope, intercept, and whether nothing was lost."""
    low, high = float(frame.min()), float(frame.max())
    if high - low <= MAX_UINT16 and bool((frame == np.rint(frame)).all()):
        return (frame - np.float32(low)).astype(np.uint16), 1.0, low, True
    slope = (high - low) / MAX_UINT16 or 1.0
    return np.rint((frame.astype(np.float64) - low) / slope).astype(np.uint16), slope, low, False


def _window(
    pixels: UInt16Image,
    few: Float32Image,
    slope: float,
    intercept: float,
    transform: Transform,
    source: PixelSource,
) -> tuple[list[float], str, str]:
    """Find [black, white] in pixels, "file" or "percentiles", and its shape; few: values of the exposed field."""
    mirrored = source.photometric == "MONOCHROME1"
    if transform.window and not transform.voi_lut:
        units = few * np.float32(slope) + np.float32(intercept)
        ends = sum(transform.ends(*source.ends)) if mirrored else None
        shown = transform.voi(units if ends is None else np.float32(ends) - units)
        center, width, shape = transform.window
        if shown is not None and float(shown.max() - shown.min()) >= MIN_WINDOW_SHARE:
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
    """Write a frame as one object, in the format that this module describes.

    Args:
        pixels: (rows, columns).
        about: the description that `picture` made.

    Returns:
        The object's bytes.
    """
    # level 1: a person waits, and the network is near
    return _object(about, gzip.compress(pixels.astype("<u2", copy=False).tobytes(), 1, mtime=0))


def pack_raw(source: PixelSource, i: int) -> bytes:
    """Write a frame's stored values as one object of the same format, its pixels not compressed.

    Args:
        source: the decoded file.
        i: index of the frame, 0 for the first.

    Returns:
        The object's bytes; its description holds the size of the pixels in bytes.

    Raises:
        IndexError: There is no such frame.
        UndecodablePixels: The frame is damaged, or contradicts the header.
    """
    pixels = source.raw(i)
    return _object({"size": len(pixels)}, pixels)


def is_frame(content: bytes) -> bool:
    """Whether a stored object holds pixels, and not a refusal."""
    return len(content) > 4 + int.from_bytes(content[:4], "big")


def refusal(why: Cause, *, heals: bool) -> bytes:
    """Write the object that stands in a frame's place when it cannot be made.

    Args:
        why: reason and fact, for the page to put into words.
        heals: it may be tried again, FAILURE_LASTS_S later.

    Returns:
        The object's bytes.
    """
    until = time.time() + FAILURE_LASTS_S if heals else None
    return _object({"reason": why.reason, "detail": why.detail, "until": until}, b"")


def _object(about: dict[str, Any], body: bytes) -> bytes:
    described = json.dumps(about, separators=(",", ":")).encode()
    return len(described).to_bytes(4, "big") + described + body
